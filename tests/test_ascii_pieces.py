"""Texts of ASCII split all at once: the pieces and ids that `tokenizers` gives, wherever they lie."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nima.tokenizer import Tokenizer, ascii_pieces
from nima.tokenizer.ascii_pieces import PieceEncoder, starts_of
from nima.tokenizer.encoders import pre_tokenizer

REFERENCE = pre_tokenizer()[0]
END = "<|endoftext|>"
EVERY_KIND = "as1 \t\n\r.'"
"""Of each class of characters one, of line ends and of letters both kinds: s ends a contraction."""
WORDS = (
    "They'll say: \"I've\n\n   seen (two) 'dogs' and 1,234 cats!\""
    "\r\n\tdon't() \n) \n x='re\x1c\x00\x7f\x0b\x0c~'d'm"
)
TEXTS = st.text(st.sampled_from(EVERY_KIND + "lvretdm\x0b\x0c\x00\x1c\x7f("), max_size=40)
TOKENIZER = Tokenizer.train([WORDS * 9, "the cat, the dogs and the numbers 12 34"], 320)


def pieces_of(texts: list[str]) -> list[list[str]]:
    joined = "\xff".join([*texts, ""])
    starts = starts_of(joined.encode("latin-1")).tolist()
    pieces = [joined[start:end] for start, end in itertools.pairwise([*starts, len(joined)])]
    found: list[list[str]] = [[]]
    for piece in pieces:
        if piece == "\xff":
            found.append([])
        else:
            found[-1].append(piece)
    return found[:-1]


def expected(text: str) -> list[str]:
    return [text[start:end] for _, (start, end) in REFERENCE.pre_tokenize_str(text)]


@pytest.mark.parametrize("length", range(6))
def test_all_short_texts_are_split_as_the_pattern_splits_them(length: int) -> None:
    """Four characters decide; the fifth shows that none beyond them does."""
    texts = ["".join(characters) for characters in itertools.product(EVERY_KIND, repeat=length)]
    for text, pieces in zip(texts, pieces_of(texts), strict=True):
        assert pieces == expected(text)


@pytest.mark.parametrize("character", [*map(chr, range(128))])
def test_each_character_is_of_the_class_that_it_has_in_the_pattern(character: str) -> None:
    texts = [before + character + after for before in ("", *EVERY_KIND) for after in ("", *EVERY_KIND)]
    assert pieces_of(texts) == [expected(text) for text in texts]


@given(st.lists(TEXTS, min_size=1, max_size=8))
@settings(max_examples=300, deadline=None)
def test_texts_are_split_as_the_pattern_splits_each(texts: list[str]) -> None:
    assert pieces_of(texts) == [expected(text) for text in texts]


def test_long_runs_of_one_kind_are_split_as_the_pattern_splits_them() -> None:
    texts = [*(kind * 1000 for kind in EVERY_KIND), *(f"x\n{kind * 999}\ny" for kind in EVERY_KIND), WORDS]
    texts += [
        f".{ends}  \t{last}" for ends in ("\n", "\r\n\n") for last in ("", "\n", "x", ".", "1", "\n\n  x")
    ]
    assert pieces_of(texts) == [expected(text) for text in texts]


# ---------------------------------------------------------------------------------------------------- ids


def assert_ids(texts: list[str]) -> None:
    ids, lengths = TOKENIZER.encode_ended(texts, END)
    each = [[*TOKENIZER.reference_ids(text), TOKENIZER.special_ids[END]] for text in texts]
    assert ids.dtype == np.uint32
    assert (ids.tolist(), lengths.tolist()) == (list(itertools.chain(*each)), list(map(len, each)))


@given(st.lists(st.one_of(TEXTS, st.just(WORDS), st.text(max_size=20)), min_size=1, max_size=8))
@settings(max_examples=150, deadline=None)
def test_ids_are_those_of_each_text_also_beside_texts_of_other_characters(texts: list[str]) -> None:
    assert_ids([text.encode("utf-8", "ignore").decode() for text in texts])


def test_pieces_that_were_forgotten_are_learnt_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ascii_pieces, "MAX_KNOWN_BYTES", 60)
    for part in ("the cat and the dogs", "numbers 12 34 " * 50, "the dogs", "", "and 'the' cat's"):
        assert_ids([part, part.upper()])


@pytest.mark.parametrize(("max_bytes", "times"), [(1000, 1), (10, 2)])
def test_each_piece_is_encoded_once_unless_it_was_forgotten(
    max_bytes: int, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ascii_pieces, "MAX_KNOWN_BYTES", max_bytes)
    asked: list[str] = []

    def encode(texts: list[str]) -> np.ndarray:
        asked.extend(texts)
        return np.array([number for text in texts for number in (*text.encode(), 999)], np.uint32)

    encoder = PieceEncoder(encode, 999)
    for _ in range(2):
        ids = encoder.encode_ended(["to be or not to be", "", "to"])
        assert ids is not None
        assert ids.tolist() == [*b"to be or not to be", 999, 999, *b"to", 999]
    assert sorted(asked) == sorted(["to", " be", " or", " not", " to"] * times)


def test_texts_beyond_the_encoder_are_told() -> None:
    assert PieceEncoder(lambda _: None, 0).encode_ended(["text"]) is None
    blanks = ["x" + " " * 600_000 + "y", "plain"]
    ids, lengths = TOKENIZER.encode_ended(blanks, END)
    assert TOKENIZER.decode(ids[: lengths[0] - 1].tolist()) == blanks[0]
