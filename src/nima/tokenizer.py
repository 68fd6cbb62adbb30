"""Byte-level BPE: text to token ids and back, without loss.

`tokenizers` trains and writes tokenizer.json, `tiktoken` encodes from the same merges, twice as fast.
Both give the same ids. That is no matter of luck: `encoder_of` states the condition and checks it, and
what does not meet it is encoded by `tokenizers` alone.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from nima.conversation import CHAT_TEMPLATE, END_OF_TEXT, PAD, SPECIAL_TOKENS
from nima.errors import UserError

# GPT-4's pattern with three changes. Marks belong to words: they are vowels and accents in many scripts.
# Numbers split into pairs of digits: of 4,096 tokens learnt from the AWS CLI's documentation, groups of three
# spend 82 more on numbers for 0.2 % shorter text. Contractions are lower case only, so that no engine's rules
# of case folding matter. As there, spaces stay together but for the last, which belongs to the word behind:
# indentation is one token.
PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)"
    r"|[^\r\n\p{L}\p{M}\p{N}]?+[\p{L}\p{M}]++"
    r"|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{M}\p{N}]++[\r\n]*+"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s"
)

# A pair seen once in the whole corpus says nothing about text.
MIN_PAIR_COUNT = 2

TOKENIZER_FILE = "tokenizer.json"


class Tokenizer:
    """A view of one trained tokenizer; it never changes."""

    def __init__(self, reference: tokenizers.Tokenizer) -> None:
        """Wraps a tokenizer of the `tokenizers` package, which must hold Nima's special tokens."""
        self.special_ids = special_ids(reference)
        # In text, the names of special tokens are text.
        reference.encode_special_tokens = True
        self._reference = reference
        self._bytes = bytes_of_tokens(reference)
        self._encoder = encoder_of(reference, self._bytes)
        self.vocab_size = len(self._bytes)
        self.end_of_text = self.special_ids[END_OF_TEXT]
        """Ends a document, and stands before the first as the begin token."""
        self.pad = self.special_ids[PAD]

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learns at most `vocab_size` tokens, special ones and the 256 bytes included.

        Fewer come out when the texts hold too few repeated pairs. The same texts in any number of threads
        give the same tokenizer.
        """
        untrained = tokenizers.Tokenizer(models.BPE())
        untrained.pre_tokenizer = pre_tokenizer()
        untrained.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=MIN_PAIR_COUNT,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        untrained.train_from_iterator(map(checked, texts), trainer)
        begin = (END_OF_TEXT, untrained.token_to_id(END_OF_TEXT))
        untrained.post_processor = processors.TemplateProcessing(
            single=f"{END_OF_TEXT} $A", pair=f"{END_OF_TEXT} $A $B", special_tokens=[begin]
        )
        return cls(untrained)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Reads `folder`/tokenizer.json. Raises `UserError` when it is missing or broken."""
        path = folder / TOKENIZER_FILE
        try:
            return cls(tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read ({error}); the stage tokenize writes it") from error
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except Exception as error:  # `tokenizers` raises nothing more special than this
            raise UserError(f"{path}: is no tokenizer ({error}); the stage tokenize writes it") from error

    def save(self, folder: Path, context_tokens: int | None = None) -> None:
        """Writes a tokenizer that Hugging Face's AutoTokenizer loads without custom code.

        `context_tokens`: the longest sequence of the model that it is for, if it is for one. There,
        `tok(text)` puts the begin token in front and reads the names of special tokens as such tokens;
        `tok(text, split_special_tokens=True)` reads them as text, as Nima does.
        """
        folder.mkdir(parents=True, exist_ok=True)
        written = self._reference.to_str(pretty=True)
        (folder / TOKENIZER_FILE).write_text(written + "\n", encoding="utf-8")
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "pad_token": PAD,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        }
        if context_tokens is not None:
            config["model_max_length"] = context_tokens
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        """Token ids; the names of special tokens are text. Raises `UserError` on a lone surrogate."""
        ids: list[int] = self._encode(text).tolist()
        return ids

    def encode_many(self, texts: Sequence[str], threads: int = 1) -> list[np.ndarray]:
        """The ids of each text as uint32."""
        if threads == 1:
            return [self._encode(text) for text in texts]
        # Shares of work that are long beside the switch between threads.
        shares = [texts[start : start + 64] for start in range(0, len(texts), 64)]
        with ThreadPoolExecutor(threads) as pool:
            return list(itertools.chain.from_iterable(pool.map(self.encode_many, shares)))

    def _encode(self, text: str) -> np.ndarray:
        if self._encoder is not None:
            try:
                return self._encoder.encode_to_numpy(text, disallowed_special=())
            except UnicodeEncodeError:
                checked(text)
            except ValueError:
                # Its regular expressions give up on runs of hundreds of thousands of blanks.
                pass
        return np.array(self.reference_ids(text), dtype=np.uint32)

    def reference_ids(self, text: str) -> list[int]:
        """What tokenizer.json gives: by definition right, and slower than `encode`."""
        ids: list[int] = self._reference.encode(checked(text), add_special_tokens=False).ids
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that the tokens stand for. Special tokens stand for none."""
        return b"".join(map(self._bytes.__getitem__, ids))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the tokens; bytes that are no UTF-8, as in a half character, become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def token_bytes(self) -> np.ndarray:
        """int64[vocab_size]: the number of bytes that each token stands for, 0 for special ones."""
        return np.array([len(token) for token in self._bytes], dtype=np.int64)


def pre_tokenizer() -> Any:
    split = pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


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


# ------------------------------------------------------------------------------------ the fast encoder


def special_ids(reference: tokenizers.Tokenizer) -> dict[str, int]:
    found = {name: reference.token_to_id(name) for name in SPECIAL_TOKENS}
    ids = {name: token for name, token in found.items() if token is not None}
    if missing := [name for name in SPECIAL_TOKENS if name not in ids]:
        raise UserError(f"the tokenizer has no token {missing[0]}; it needs {', '.join(SPECIAL_TOKENS)}")
    return ids


def bytes_of_tokens(reference: tokenizers.Tokenizer) -> list[bytes]:
    """The bytes of each token by id; empty for special ones. tokenizer.json spells a byte as a character."""
    alphabet = byte_alphabet()
    special = {token for token, added in reference.get_added_tokens_decoder().items() if added.special}
    vocabulary = {token: name for name, token in reference.get_vocab(with_added_tokens=True).items()}
    if sorted(vocabulary) != list(range(len(vocabulary))):
        raise UserError("the tokenizer's ids have gaps; expected 0, 1, 2, … without any")
    try:
        spelled = [vocabulary[token] if token not in special else "" for token in range(len(vocabulary))]
        return [bytes(map(alphabet.__getitem__, name)) for name in spelled]
    except KeyError as error:
        raise UserError(f"the tokenizer is not a byte-level one: {error} spells no byte") from error


def byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling: printable bytes are themselves, the others the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def encoder_of(reference: tokenizers.Tokenizer, token_bytes: list[bytes]) -> tiktoken.Encoding | None:
    """tiktoken on the same merges, where it is certain to give the same ids; else None.

    `tokenizers` merges the listed pairs, tiktoken any pair whose bytes together are a token. They agree on
    every text if (1) each token has exactly one listed pair, in the order of ids, and (2) each token's own
    bytes encode to that token. For take the first step at which they differ: both hold [.. l r ..], and l + r
    is a token T that lists another pair (a, b). No merge has crossed the edges of this stretch, so T alone
    would also have come to [l, r]. But T alone ends as [T] by (2), which (1) allows from [a, b] only.
    """
    described = json.loads(reference.to_str())
    model = described["model"]
    ours = tokenizers.Tokenizer(models.BPE())
    ours.pre_tokenizer = pre_tokenizer()
    expected = json.loads(ours.to_str())
    plain = ("normalizer", "pre_tokenizer")
    settings = ("type", "dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    if any(described[key] != expected[key] for key in plain):
        return None
    if any(model.get(key) != expected["model"].get(key) for key in settings):
        return None
    if not merges_are_tokens_in_order(model) or not tokens_encode_to_themselves(reference, model):
        return None
    ranks = {spelled: token for token, spelled in enumerate(token_bytes) if spelled}
    return tiktoken.Encoding(
        "nima", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special_ids(reference)
    )


def merges_are_tokens_in_order(model: dict[str, Any]) -> bool:
    merged = [model["vocab"].get("".join(pair)) for pair in model["merges"]]
    names = [name for name in model["vocab"] if name not in SPECIAL_TOKENS]
    learned = sorted(model["vocab"][name] for name in names if len(name) > 1)
    return merged == learned


def tokens_encode_to_themselves(reference: tokenizers.Tokenizer, model: dict[str, Any]) -> bool:
    names = (name for name in model["vocab"] if name not in SPECIAL_TOKENS)
    return all(len(reference.model.tokenize(name)) == 1 for name in names)


# ------------------------------------------------------------------------------------------- the gate

GATE_MAX_BYTES = 64_000_000
"""Held-out text that the gate reads at most."""

# Where software that handles text goes wrong: controls, spaces, letters with marks, joiners and bidirectional
# controls, surrogate neighbours, private use, full width, emoji, unassigned planes.
FUZZED_RANGES = (
    *((0x00, 0x7F), (0x80, 0xFF), (0x300, 0x36F), (0x600, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F)),
    *((0x1100, 0x11FF), (0x2000, 0x206F), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xD700, 0xD7FF)),
    *((0xE000, 0xE0FF), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFF00, 0xFFFF), (0x1F300, 0x1FAFF)),
    *((0x20000, 0x200FF), (0xE0000, 0xE01FF), (0x10FF00, 0x10FFFF)),
)


def gate(tokenizer: Tokenizer, texts: Iterable[str], min_vocab_size: int) -> dict[str, int | float]:
    """Proves that a tokenizer may be used; `texts` are held-out ones. Returns what was checked.

    Raises `UserError` naming the check that failed and the text that it failed on.
    """
    check_bytes(tokenizer)
    check_vocabulary(tokenizer, min_vocab_size)
    num_fuzzed, _, _ = check_texts(tokenizer, fuzzed_texts(), "fuzzed text")
    num_texts, num_bytes, num_tokens = check_texts(tokenizer, texts, "held-out text")
    return {
        "fuzzed_texts": num_fuzzed,
        "held_out_texts": num_texts,
        "held_out_bytes": num_bytes,
        "held_out_bytes_per_token": round(num_bytes / num_tokens, 6) if num_tokens else 0.0,
    }


def failed(what: str) -> UserError:
    return UserError(f"tokenizer gate: {what}")


def check_vocabulary(tokenizer: Tokenizer, min_vocab_size: int) -> None:
    found = list(tokenizer.special_ids.values())
    if found != list(range(len(SPECIAL_TOKENS))):
        raise failed(f"special tokens have the ids {found}, expected the first ones")
    if tokenizer.vocab_size < min_vocab_size:
        raise failed(
            f"{tokenizer.vocab_size} tokens were learnt, tokenize.min_vocab_size asks for {min_vocab_size}; "
            "add text or lower it"
        )
    if tokenizer.token_bytes().max() < 2:
        raise failed("no token is longer than a byte; add text or raise tokenize.train_max_bytes")


def check_bytes(tokenizer: Tokenizer) -> None:
    """Every byte is a token, so that no text is out of reach."""
    single = {tokenizer.decode_bytes([token]): token for token in range(tokenizer.vocab_size)}
    for byte in range(256):
        if bytes([byte]) not in single:
            raise failed(f"byte 0x{byte:02X} has no token")
    invalid = bytes(reversed(range(256)))
    ids = [single[bytes([byte])] for byte in invalid]
    if tokenizer.decode_bytes(ids) != invalid:
        raise failed("tokens of single bytes do not decode to these bytes")


def check_texts(tokenizer: Tokenizer, texts: Iterable[str], kind: str) -> tuple[int, int, int]:
    """Checks texts up to `GATE_MAX_BYTES`; returns how many, their bytes and their tokens."""
    num_texts = num_bytes = num_tokens = 0
    for text in texts:
        ids = tokenizer.encode(text)
        check_text(tokenizer, text, ids, kind)
        num_texts, num_tokens = num_texts + 1, num_tokens + len(ids)
        num_bytes += len(text.encode())
        if num_bytes >= GATE_MAX_BYTES:
            break
    return num_texts, num_bytes, num_tokens


def check_text(tokenizer: Tokenizer, text: str, ids: list[int], kind: str) -> None:
    if not set(ids).isdisjoint(tokenizer.special_ids.values()):
        raise failed(f"{kind} {short(text)} encodes to a special token; expected only tokens of text")
    if (decoded := tokenizer.decode(ids)) != text:
        raise failed(f"{kind} {short(text)} does not survive encoding: it comes back as {short(decoded)}")
    if ids != tokenizer.reference_ids(text):
        raise failed(f"{kind} {short(text)} has other ids in {TOKENIZER_FILE} than from the fast encoder")


def fuzzed_texts(num_texts: int = 500, seed: int = 0) -> Iterator[str]:
    """The same hostile texts on each call: names of special tokens, then random characters."""
    for name, other in itertools.product(SPECIAL_TOKENS, SPECIAL_TOKENS):
        yield f"{name}{other} in {name}\ntext {other}"
    generator = np.random.Generator(np.random.PCG64(seed))
    for _ in range(num_texts):
        starts = generator.integers(0, len(FUZZED_RANGES), size=generator.integers(1, 60))
        points = [generator.integers(*FUZZED_RANGES[start], endpoint=True) for start in starts]
        yield "".join(map(chr, points))
