import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nima.corpus import ngrams
from nima.corpus.ngrams import ngram_hashes, words_of

SOURCE = Path(__file__).parent.parent / "src"

texts = st.text(st.characters(codec="utf-32", exclude_categories=("Cs",)), max_size=80)


def words(text: str) -> list[str]:
    found = words_of(text)
    return [found.text[start:stop] for start, stop in zip(found.starts, found.ends, strict=True)]


def test_words_are_runs_of_letters_and_digits() -> None:
    assert words("Don't panic: run `aws s3_ls` 3x, now!") == [
        "don", "t", "panic", "run", "aws", "s3", "ls", "3x", "now"
    ]  # fmt: skip
    assert words("») —\n\t…") == words("") == []


def test_scripts_without_spaces_have_a_word_a_character() -> None:
    assert words("機械学習 and คน, naïve Straße") == [*"機械学習", "and", *"คน", "naïve", "strasse"]


def test_case_and_punctuation_make_no_difference_and_letters_do() -> None:
    plain = words_of("the quick straße").hashes
    assert np.array_equal(words_of("«The» Quick... STRASSE!").hashes, plain)
    assert not np.isin(words_of("teh quik strase").hashes, plain).any()


@given(texts, texts)
@settings(deadline=None, max_examples=60)
def test_a_word_has_its_hash_wherever_it_stands(before: str, after: str) -> None:
    found = words_of(f"{before} wordlet {after}")
    place = [found.text[start:stop] for start, stop in zip(found.starts, found.ends, strict=True)].index(
        "wordlet"
    )
    assert found.hashes[place] == words_of("Wordlet").hashes[0]


@given(texts)
@settings(deadline=None, max_examples=100)
def test_equal_words_and_only_they_have_equal_hashes(text: str) -> None:
    found = words_of(text)
    by_hash = dict(zip(found.hashes.tolist(), words(text), strict=True))
    assert [by_hash[value] for value in found.hashes.tolist()] == words(text)
    assert len(by_hash) == len(set(words(text)))


def test_lone_surrogates_are_no_error() -> None:
    assert words("a \ud800 b") == ["a", "b"]


@pytest.mark.parametrize("separator", [" ", "\n", ""])
def test_long_texts_are_cut_where_it_does_not_show(monkeypatch: pytest.MonkeyPatch, separator: str) -> None:
    text = separator.join(f"w{n}" if separator else "語" for n in range(3000)) + " end"
    whole = words_of(text)
    monkeypatch.setattr(ngrams, "BLOCK_CHARS", 1000)
    cut = words_of(text)
    assert len(ngrams.blocks_of(text)) > 2
    assert np.array_equal(cut.hashes, whole.hashes)
    assert np.array_equal(cut.starts, whole.starts)
    assert np.array_equal(cut.ends, whole.ends)


def test_ngrams_are_equal_where_their_words_are_in_order() -> None:
    first, second = words_of("a b c d e f").hashes, words_of("x c d e y d c e").hashes
    assert len(ngram_hashes(first, 3)) == 4
    shared = np.isin(ngram_hashes(first, 3), ngram_hashes(second, 3))
    assert shared.tolist() == [False, False, True, False]
    assert not np.isin(ngram_hashes(words_of("c b a").hashes, 3), ngram_hashes(first, 3)).any()
    assert len(ngram_hashes(first, 7)) == 0
    assert len(ngram_hashes(first, 6)) == 1


def test_ngrams_of_different_lengths_differ() -> None:
    hashes = words_of(" ".join("abcdefghij" * 3)).hashes
    distinct = [set(ngram_hashes(hashes, length).tolist()) for length in (1, 2, 3, 8)]
    assert len(set.union(*distinct)) == sum(map(len, distinct)) == 40


def test_hashes_spread_over_all_bits() -> None:
    hashes = ngram_hashes(words_of(" ".join(map(str, range(20_000)))).hashes, 2)
    bits = np.unpackbits(hashes.view(np.uint8).reshape(-1, 8), axis=1).mean(axis=0)
    assert np.abs(bits - 0.5).max() < 0.02
    assert len(np.unique(hashes >> np.uint64(32))) > len(hashes) * 0.9999


def test_hashes_are_what_they_were_in_every_process() -> None:
    assert words_of("The").hashes.tolist() == [10375451222921519936]
    code = (
        "from nima.corpus.ngrams import *; print(ngram_hashes(words_of('The end, of it').hashes, 3).tolist())"
    )
    for seed in ("1", "2"):
        environment = {"PYTHONPATH": str(SOURCE), "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
        assert done.stdout.decode().strip() == str(ngram_hashes(words_of("the END of it").hashes, 3).tolist())
