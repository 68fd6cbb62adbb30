"""Tokenizers that are learnt from text: byte-level BPE, Unigram, characters and bytes.

Every kind writes each text, and the same texts give the same tokenizer.
"""

import io
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from nima.tokenizer.encoders import pre_tokenizer
from nima.tokenizer.special_tokens import END_OF_TEXT, SPECIAL_TOKENS
from nima.tokenizer.vocabulary import byte_alphabet
from nima.workspace.errors import UserError

# A pair seen once in the whole corpus says nothing about text.
MIN_PAIR_COUNT = 2

MAX_WORD_CHARS = 1024
"""Longer words without a break are cut before Unigram learns from them."""

MAX_PIECE_CHARS = 32
"""Of Unigram's tokens: room for indentation and rules of dashes, which are longer than words."""

MAX_CANDIDATES = 2_000_000
"""Parts of words that Unigram chooses from: those of the commonest words. Bounds memory."""

AS_LISTED: dict[str, Any] = {
    "model_type": "unigram",
    "input_format": "tsv",
    "hard_vocab_limit": False,
    "character_coverage": 1.0,
    "max_sentence_length": 4 * MAX_WORD_CHARS,
    "max_sentencepiece_length": MAX_PIECE_CHARS,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "split_by_unicode_script": False,
    "split_by_number": False,
    "split_by_whitespace": False,
    "unk_id": 0,
    "bos_id": -1,
    "eos_id": -1,
    "pad_id": -1,
    "num_threads": 1,
    "minloglevel": 3,
}
"""sentencepiece's settings for words that are split and spelled already, and must stay as they are."""


def learnt_bpe(
    texts: Iterable[str], vocab_size: int, special: Sequence[str] = SPECIAL_TOKENS
) -> tokenizers.Tokenizer:
    """Byte-level BPE (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909) over GPT-2's bytes."""
    untrained = byte_level_tokenizer(models.BPE(), pre_tokenizer())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_PAIR_COUNT,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    untrained.train_from_iterator(map(checked, texts), trainer)
    return with_begin(untrained)


def learnt_unigram(
    texts: Iterable[str], vocab_size: int, special: Sequence[str] = SPECIAL_TOKENS
) -> tokenizers.Tokenizer:
    """Unigram (Kudo 2018, https://arxiv.org/abs/1804.10959) over the characters that spell bytes.

    Learnt by sentencepiece in one thread: `tokenizers` gives other scores each time.
    """
    words: Counter[str] = Counter()
    split = pre_tokenizer()
    for text in texts:
        found = split.pre_tokenize_str(checked(text))
        words.update(part for word, _ in found for part in cut(word))
    pieces = unigram_pieces(words, vocab_size - len(special))
    # A character that the texts lack costs more than any piece that they have.
    rarest = min(pieces.values(), default=0.0) - 10.0
    pieces |= {character: rarest for character in sorted(byte_alphabet()) if character not in pieces}
    learnt = sorted(pieces.items(), key=lambda piece: (-piece[1], piece[0]))
    scored = [(name, 0.0) for name in special] + learnt
    return with_special(byte_level_tokenizer(models.Unigram(scored), split), special)


def unigram_pieces(words: Counter[str], num_pieces: int) -> dict[str, float]:
    """The most useful pieces of the words with their log-probabilities; unseen characters fit beside."""
    try:
        import sentencepiece
    except ImportError:
        raise UserError(
            "tokenize.kind: unigram: needs the extra unigram: pip install 'nima-lm[unigram]'"
        ) from None
    if not words:
        return {}
    unseen = len(byte_alphabet().keys() - set().union(*words))
    lines = (f"{word}\t{count}" for word, count in sorted(words.items()))
    model = io.BytesIO()
    with TemporaryDirectory() as folder:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=model,
            seed_sentencepieces_file=str(write_candidates(words, Path(folder))),
            vocab_size=num_pieces - unseen + 1,  # with its token for unknown characters
            **AS_LISTED,
        )
    found = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    numbers = [number for number in range(found.get_piece_size()) if not found.is_unknown(number)]
    return {found.id_to_piece(number): found.get_score(number) for number in numbers}


def write_candidates(words: Counter[str], folder: Path) -> Path:
    """Parts of words with how often the texts have them.

    sentencepiece itself would count each word once, and never find a word that other words do not contain.
    """
    counts: Counter[str] = Counter()
    for word in sorted(words, key=lambda word: (-words[word], word)):
        if len(counts) >= MAX_CANDIDATES:
            break
        for start in range(len(word)):
            for end in range(start + 2, min(len(word), start + MAX_PIECE_CHARS) + 1):
                counts[word[start:end]] += words[word]
    repeated = sorted(part for part, count in counts.items() if count >= MIN_PAIR_COUNT)
    path = folder / "candidates.tsv"
    written = "".join(f"{part}\t{counts[part]}\n" for part in repeated)
    path.write_text(written, encoding="utf-8")
    return path


def cut(word: str) -> list[str]:
    return [word[start : start + MAX_WORD_CHARS] for start in range(0, len(word), MAX_WORD_CHARS)]


def learnt_characters(texts: Iterable[str], special: Sequence[str] = SPECIAL_TOKENS) -> tokenizers.Tokenizer:
    """One token for each character of the texts, and 256 for the bytes of all others."""
    characters: set[str] = set()
    for text in texts:
        characters.update(checked(text))
    names = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(characters)]
    learnt = tokenizers.Tokenizer(models.BPE(vocab=numbered(names), merges=[], byte_fallback=True))
    learnt.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return with_special(learnt, special)


def all_bytes(special: Sequence[str] = SPECIAL_TOKENS) -> tokenizers.Tokenizer:
    """One token for each byte, in their order."""
    spelled = sorted(byte_alphabet(), key=byte_alphabet().__getitem__)
    model = models.BPE(vocab=numbered([*special, *spelled]), merges=[])
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return with_special(byte_level_tokenizer(model, split), special)


# ------------------------------------------------------------------------------------------- the parts


def numbered(names: Sequence[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}


def byte_level_tokenizer(model: Any, split: Any) -> tokenizers.Tokenizer:
    untrained = tokenizers.Tokenizer(model)
    untrained.pre_tokenizer = split
    untrained.decoder = decoders.ByteLevel()
    return untrained


def with_special(learnt: tokenizers.Tokenizer, special: Sequence[str]) -> tokenizers.Tokenizer:
    learnt.add_special_tokens(list(special))
    return with_begin(learnt)


def with_begin(learnt: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Other software puts the end of text in front of a text, where it stands for its beginning."""
    begin = (END_OF_TEXT, learnt.token_to_id(END_OF_TEXT))
    learnt.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", pair=f"{END_OF_TEXT} $A $B", special_tokens=[begin]
    )
    return learnt


def all_special(own: Iterable[str]) -> list[str]:
    """Nima's special tokens and the user's own, in the order of their ids.

    Raises `UserError` for a name that could come out of plain text as a token.
    """
    names = list(dict.fromkeys([*SPECIAL_TOKENS, *own]))
    for name in names:
        if len(pre_tokenizer().pre_tokenize_str(checked(name))) < 2:
            raise UserError(
                f"tokenize.special_tokens: {name!a} is a word that plain text may have; expected a name with "
                "marks around it, such as <|name|>"
            )
    return names


def checked(text: str) -> str:
    """`text`, or a `UserError` when it holds half of a surrogate pair, which UTF-8 cannot write.

    Documents come from UTF-8 files and never hold one; prompts from JSON escapes may.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"U+{ord(text[error.start]):04X} at character {error.start}"
        raise UserError(
            f"text {short(text)}: lone surrogate {found}; expected text that UTF-8 can hold"
        ) from None
    return text


def short(text: str, max_chars: int = 60) -> str:
    """A short, printable rendering of a text for one line of a message."""
    return ascii(text if len(text) <= max_chars else text[:max_chars] + "…")
