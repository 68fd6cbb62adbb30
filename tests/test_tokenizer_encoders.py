"""Fast encoders beside the reference: on which tokenizers they may stand in, and that they then agree."""

import itertools
import json
import random
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from nima.tokenizer import Tokenizer
from nima.tokenizer.encoders import (
    DIGITS_PATTERN,
    GPT2_PATTERN,
    GPT4_PATTERNS,
    GPT4O_PATTERN,
    PATTERN,
    READ_ALIKE,
    fast_form,
)
from nima.tokenizer.learning import all_bytes, learnt_characters, short
from nima.tokenizer.special_tokens import SPECIAL_TOKENS
from nima.tokenizer.vocabulary import byte_alphabet
from nima.workspace.errors import UserError

SPELLED = {byte: character for character, byte in byte_alphabet().items()}
BYTE_RANKS = {bytes([byte]): byte for byte in range(256)}
CORPUS = [
    "It's the pod's log: they'll say I'VE seen 12345 errors / 6789 warnings.\n\n  for pod in all:\n\t\tgo()",
    "Der Dienst läuft über Nacht. Kết nối mạng. सेवा चल रही है। 网络恢复了。 🚀🚀 café\u0301 ǅungla — IDs\r\n"
    * 2,
    "aaaa bbbb aaab abab ---- ====  ====\n" * 3,
]

# One character of each class that patterns tell apart, and what case folding could confuse.
FOLDED = [
    chr(point)
    for point in range(0x80, 0x30000)
    if set(chr(point).casefold() + chr(point).upper() + chr(point).lower()) & set("stremvldSTREMVLD")
]
HOSTILE = [
    *"aAéÉǅʰª你\u0301\u20dd1²٣Ⅷ \t\n\r\x0b\u00a0\u2028\u0085!-_/'sStTlLvVeErRmMdD🚀\x00\u200d",
    *FOLDED,
]
HOSTILE += ["'s", "'LL", "'ll", "'Re", "  ", "\r\n", " \n", "1234", " 1", "aB", "Ab"]


def split_of(pattern: str) -> Any:
    """How `tokenizers` splits by a pattern, without spelling bytes."""
    return pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")


def pieces_in(split: Any, text: str) -> list[bytes]:
    return [piece.encode() for piece, _ in split.pre_tokenize_str(text)]


def differences(split: Any, pattern: str, texts: Iterable[str]) -> Iterator[str]:
    """Texts that tiktoken splits by `pattern` in another way than `split` does.

    Its splits show in its tokens if every piece is one, and every two neighbours together too.
    """
    found = {text: pieces_in(split, text) for text in texts}
    pairs = [pair for pieces in found.values() for pair in itertools.pairwise(pieces)]
    joined = [first + second for first, second in pairs]
    singles = [piece for pieces in found.values() for piece in pieces]
    longer = [piece for piece in dict.fromkeys([*singles, *joined]) if len(piece) > 1]
    ranks = BYTE_RANKS | {piece: rank for rank, piece in enumerate(longer, start=256)}
    encoding = tiktoken.Encoding(
        "test", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<|x|>": len(ranks)}
    )
    for text, pieces in found.items():
        if encoding.encode_ordinary(text) != [ranks[piece] for piece in pieces]:
            yield text


# ------------------------------------------------------------------------------------------- patterns


def test_both_packages_have_the_same_class_for_every_code_point() -> None:
    """Each run of one class, as `tokenizers` finds it, is one piece of that class for tiktoken."""
    shown = {
        r"\p{Lu}": "A",
        r"\p{Ll}": "a",
        r"\p{Lt}": "ǅ",
        r"\p{Lm}": "ʰ",
        r"\p{Lo}": "ª",
        r"\p{M}": "\u0301",
    }
    shown |= {r"\p{N}": "1", r"\s": " ", r"[^\s\p{L}\p{M}\p{N}]": "!"}
    pattern = "|".join(f"{name}+" for name in shown)
    split = split_of(pattern)
    points = [chr(point) for point in range(sys.maxunicode + 1) if not 0xD800 <= point < 0xE000]
    num_checked = 0
    for start in range(0, len(points), 1 << 16):
        runs = [run for run, _ in split.pre_tokenize_str("".join(points[start : start + (1 << 16)]))]
        texts = [
            first + run
            for run in runs
            for first in shown.values()
            if len(pieces_in(split, first + run[0])) == 1
        ]
        assert len(texts) == len(runs)
        assert [short(text) for text in differences(split, pattern, texts)] == []
        num_checked += sum(map(len, runs))
    assert num_checked == len(points)


@pytest.mark.parametrize("pattern", READ_ALIKE)
def test_both_packages_split_any_text_by_a_pattern_alike(pattern: str) -> None:
    assert list(differences(split_of(pattern), pattern, hostile_texts())) == []


@pytest.mark.parametrize("pattern", [*READ_ALIKE, DIGITS_PATTERN])
def test_the_fast_form_of_a_pattern_splits_any_text_as_the_pattern_does(pattern: str) -> None:
    assert fast_form(pattern) != pattern
    assert list(differences(split_of(pattern), fast_form(pattern), hostile_texts())) == []


@pytest.mark.parametrize(
    ("split", "pattern"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False), GPT2_PATTERN),
        (
            pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Digits(individual_digits=True),
                    pre_tokenizers.ByteLevel(add_prefix_space=False),
                ]
            ),
            DIGITS_PATTERN,
        ),
    ],
)
def test_patterns_that_are_written_out_split_as_what_they_stand_for(split: Any, pattern: str) -> None:
    def spelled(pieces: list[bytes]) -> list[bytes]:
        return [bytes(map(byte_alphabet().__getitem__, piece.decode())) for piece in pieces]

    class Spelled:
        def pre_tokenize_str(self, text: str) -> list[tuple[str, None]]:
            return [(piece.decode("latin-1"), None) for piece in spelled(pieces_in(split, text))]

    for text in hostile_texts():
        expected = [piece for piece, _ in Spelled().pre_tokenize_str(text)]
        found = [piece.decode("latin-1") for piece in pieces_in(split_of(pattern), text)]
        assert found == expected, ascii(text)


def hostile_texts() -> list[str]:
    chance = random.Random(0)
    texts = ["".join(chance.choices(HOSTILE, k=chance.randint(1, 30))) for _ in range(1500)]
    texts += [f"x'{character}e y'{character} {character}'s" for character in HOSTILE]
    return [*texts, *CORPUS, *(unicodedata.normalize("NFD", text) for text in CORPUS)]


def test_a_difference_would_be_seen() -> None:
    wrong = GPT2_PATTERN.replace(r"\p{N}+", r"\p{N}")
    assert list(differences(split_of(GPT2_PATTERN), wrong, ["a 12"])) == ["a 12"]
    assert list(differences(split_of(wrong), GPT2_PATTERN, ["a 12"])) == ["a 12"]


# ------------------------------------------------------------------------------ which tokenizers qualify


def learnt(split: Any, vocab_size: int = 420, texts: Iterable[str] = CORPUS) -> dict[str, Any]:
    """A byte-level BPE as models have it, as the content of tokenizer.json, without special tokens."""
    reference = tokenizers.Tokenizer(models.BPE())
    reference.pre_tokenizer = split
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=sorted(SPELLED.values()), show_progress=False
    )
    reference.train_from_iterator(texts, trainer)
    return json.loads(reference.to_str())


def built(described: dict[str, Any], **model: Any) -> tokenizers.Tokenizer:
    """A tokenizer of this description with the special tokens behind its own, as in pretrained ones."""
    described = described | {"model": described["model"] | model}
    reference = tokenizers.Tokenizer.from_str(json.dumps(described))
    reference.decoder = decoders.ByteLevel()
    reference.add_special_tokens(list(SPECIAL_TOKENS))
    return reference


def as_models_have_it(pattern: str) -> Any:
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split_of(pattern), spelled])


def all_pairs(vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token, by its id: how converted tiktoken files list their merges."""
    return [
        (name[:cut], name[cut:])
        for name in sorted(vocab, key=vocab.__getitem__)
        for cut in range(1, len(name))
        if name[:cut] in vocab and name[cut:] in vocab
    ]


def assert_same_ids(tokenizer: Tokenizer, num_texts: int = 1500) -> None:
    chance = random.Random(1)
    pieces = [
        text for token in range(tokenizer.vocab_size) if "\ufffd" not in (text := tokenizer.decode([token]))
    ]
    for text in [*hostile_texts(), *("".join(chance.choices(pieces, k=8)) for _ in range(num_texts))]:
        assert tokenizer.encode(text) == tokenizer.reference_ids(text), ascii(text)
        assert tokenizer.decode(tokenizer.encode(text)) == tokenizer.normalized(text)


@pytest.mark.parametrize("pattern", [*GPT4_PATTERNS, GPT4O_PATTERN])
def test_patterns_of_pretrained_models_are_encoded_fast_with_the_same_ids(pattern: str) -> None:
    tokenizer = Tokenizer(built(learnt(as_models_have_it(pattern))))
    assert tokenizer.report()["encoder"] == "tiktoken"
    assert_same_ids(tokenizer, 200)


def test_gpt2s_pattern_is_encoded_fast_with_digits_apart_too() -> None:
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for split in (plain, pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])):
        tokenizer = Tokenizer(built(learnt(split)))
        assert tokenizer.report()["encoder"] == "tiktoken"
        assert_same_ids(tokenizer, 200)


def test_merges_listed_in_every_way_with_whole_pieces_first_are_encoded_fast() -> None:
    described = learnt(as_models_have_it(GPT4_PATTERNS[0]))
    merges = all_pairs(described["model"]["vocab"])
    assert len(merges) > len(described["model"]["merges"])
    tokenizer = Tokenizer(built(described, merges=merges, ignore_merges=True))
    assert tokenizer.report()["encoder"] == "tiktoken"
    assert_same_ids(tokenizer)


@pytest.mark.parametrize("seed", range(6))
def test_vocabularies_made_at_random_never_get_an_encoder_that_differs(seed: int) -> None:
    """Few letters and short tokens in any order: where merges overlap and the conditions often fail."""
    chance = random.Random(seed)
    num_fast = 0
    for _ in range(60):
        names = list(dict.fromkeys("".join(chance.choices("ab", k=chance.randint(2, 4))) for _ in range(6)))
        vocab = {name: number for number, name in enumerate([*SPELLED.values(), *names])}
        merges = [pair for pair in all_pairs(vocab) if chance.random() < 0.8]
        described = learnt(as_models_have_it(GPT2_PATTERN), 256, [])
        reference = built(described, vocab=vocab, merges=merges, ignore_merges=chance.random() < 0.5)
        tokenizer = Tokenizer(reference)
        num_fast += tokenizer.report()["encoder"] == "tiktoken"
        for _ in range(200):
            text = "".join(chance.choices("ab", k=chance.randint(1, 12)))
            assert tokenizer.encode(text) == tokenizer.reference_ids(text), (vocab, merges, text)
    assert 0 < num_fast < 60


def test_whole_pieces_first_is_left_to_the_reference_if_a_special_token_is_in_reach() -> None:
    described = learnt(as_models_have_it(GPT2_PATTERN))
    described["model"]["vocab"] |= {"kubectl": len(described["model"]["vocab"])}
    reference = built(described, ignore_merges=True)
    reference.add_special_tokens(["kubectl"])
    assert Tokenizer(reference).report()["encoder"] == "tokenizers"


@pytest.mark.parametrize(
    "changed",
    [
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)},
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)},
        {"pre_tokenizer": as_models_have_it(r"\s+|\S+")},
        {"normalizer": normalizers.Lowercase()},
        {"normalizer": normalizers.Replace("a", "b")},
    ],
)
def test_other_splits_and_changes_of_text_are_left_to_the_reference(changed: dict[str, Any]) -> None:
    reference = built(learnt(pre_tokenizers.ByteLevel(add_prefix_space=False)))
    assert Tokenizer(reference).report()["encoder"] == "tiktoken"
    for name, part in changed.items():
        setattr(reference, name, part)
    assert Tokenizer(reference).report()["encoder"] == "tokenizers"


# ------------------------------------------------------------------- normal forms and added text tokens


def test_text_outside_the_tokenizers_normal_form_is_left_to_the_reference() -> None:
    reference = built(learnt(as_models_have_it(GPT4_PATTERNS[1])))
    reference.normalizer = normalizers.NFC()
    tokenizer = Tokenizer(reference)
    assert tokenizer.report() == {
        "vocab_size": tokenizer.vocab_size,
        "encoder": "tiktoken",
        "normal_form": "NFC",
    }
    for text in ("cafe\u0301", "\u212b", "caf\u00e9", "<\u0338"):
        assert tokenizer.encode(text) == tokenizer.reference_ids(text)
        assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)
    assert_same_ids(tokenizer, 200)


def with_text_tokens(*names: str, pattern: str = GPT4_PATTERNS[1], **flags: bool) -> Tokenizer:
    reference = built(learnt(as_models_have_it(pattern)))
    reference.add_tokens([AddedToken(name, normalized=False, special=False, **flags) for name in names])
    return Tokenizer(reference)


TAGS = ("<tool_call>", "</tool_call>", "<think>")


@given(st.lists(st.sampled_from([*TAGS, *SPECIAL_TOKENS, "<", "think", " ", "\n", "é", "</"]), max_size=12))
@settings(max_examples=150, deadline=None)
def test_added_tokens_of_text_are_found_alike(parts: list[str]) -> None:
    tokenizer = TAGGED
    text = "".join(parts)
    ids = tokenizer.encode(text)
    assert ids == tokenizer.reference_ids(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())
    assert sum(tokenizer.decode([token]) in TAGS for token in ids) == sum(text.count(tag) for tag in TAGS)


TAGGED, OWN_TAGGED = with_text_tokens(*TAGS), with_text_tokens(*TAGS, pattern=PATTERN)
TABLES = [Tokenizer(learnt_characters(CORPUS)), Tokenizer(all_bytes())]


def test_added_tokens_of_text_that_do_not_overlap_are_encoded_fast() -> None:
    assert TAGGED.report()["encoder"] == "tiktoken"
    assert TAGGED.special_ids.keys() == set(SPECIAL_TOKENS)


# -------------------------------------------------------------------------------------- many texts at once


def assert_ended(tokenizer: Tokenizer, texts: list[str], end: str = "<|endoftext|>") -> None:
    number = tokenizer.special_ids[end]
    ids, lengths = tokenizer.encode_ended(texts, end)
    expected = [[*tokenizer.reference_ids(text), number] for text in texts]
    assert (ids.dtype, lengths.dtype) == (np.uint32, np.int64)
    assert ids.tolist() == list(itertools.chain.from_iterable(expected))
    assert lengths.tolist() == [len(found) for found in expected]


@given(st.lists(st.lists(st.sampled_from([*TAGS, *SPECIAL_TOKENS, "<|endo", "text|>", " ", "\n", "a", "é"]))))
@settings(max_examples=150, deadline=None)
def test_texts_that_are_encoded_together_have_the_ids_of_each_by_itself(parts: list[list[str]]) -> None:
    texts = ["".join(part) for part in parts]
    for tokenizer in (TAGGED, OWN_TAGGED, *TABLES):
        assert_ended(tokenizer, texts)


@pytest.mark.parametrize("pattern", [*READ_ALIKE])
def test_texts_that_are_encoded_together_end_where_they_end(pattern: str) -> None:
    """Spaces, newlines and marks at the edges of a text never reach over the token between texts."""
    tokenizer = Tokenizer(built(learnt(as_models_have_it(pattern))))
    assert tokenizer._encoder is not None
    assert tokenizer._encoder.encode_ended is not None
    assert tokenizer._encoder.encode_ended(["a", "b"], "<|endoftext|>") is not None
    assert_ended(tokenizer, hostile_texts())


def test_texts_of_another_normal_form_are_encoded_one_by_one() -> None:
    reference = built(learnt(as_models_have_it(GPT4_PATTERNS[1])))
    reference.normalizer = normalizers.NFC()
    assert_ended(Tokenizer(reference), ["plain", "cafe\u0301", "<", "\u0338"])


@pytest.mark.parametrize("end", ["aba", "ab", "b<|"])
def test_an_end_whose_name_could_be_found_elsewhere_is_not_put_between_texts(end: str) -> None:
    reference = built(learnt(as_models_have_it(GPT4_PATTERNS[1])))
    reference.add_special_tokens([end, "abc", "|endo"])
    assert_ended(Tokenizer(reference), ["x", "xa", "c", "ab", "", "c<", "b"], end)


def test_a_lone_surrogate_among_many_texts_is_named() -> None:
    with pytest.raises(UserError, match="surrogate"):
        TAGGED.encode_ended(["fine", "\ud800"], "<|endoftext|>")


@pytest.mark.parametrize(
    ("names", "flags"),
    [
        (("ab", "abc"), {}),
        (("xy", "yz"), {}),
        (("end|>",), {}),
        (("|> <|",), {}),
        (("abc",), {"lstrip": True}),
        (("abc",), {"single_word": True}),
    ],
)
def test_added_tokens_that_could_be_found_at_other_places_are_left_to_the_reference(
    names: tuple[str, ...], flags: dict[str, bool]
) -> None:
    assert with_text_tokens(*names, **flags).report()["encoder"] == "tokenizers"


# ---------------------------------------------------------------------------------------------- tables


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_tables_of_characters_and_bytes_give_the_ids_of_the_file(text: str) -> None:
    for tokenizer in TABLES:
        ids = tokenizer.encode_many([text])[0]
        assert ids.tolist() == tokenizer.reference_ids(text)
        assert ids.dtype == np.uint32
        assert tokenizer.decode(ids) == text


def test_tables_are_in_use() -> None:
    assert [tokenizer.report()["encoder"] for tokenizer in TABLES] == ["table", "table"]


def test_a_table_is_left_to_the_reference_where_text_is_split_or_changed() -> None:
    for changed in ({"pre_tokenizer": pre_tokenizers.Whitespace()}, {"normalizer": normalizers.Lowercase()}):
        for reference in (learnt_characters(CORPUS), all_bytes()):
            for name, part in changed.items():
                setattr(reference, name, part)
            assert Tokenizer(reference).report()["encoder"] == "tokenizers"
