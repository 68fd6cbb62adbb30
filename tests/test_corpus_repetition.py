from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nima.corpus.quality.repetition import excess_in, shares
from nima.workspace.params.data import RepetitionParams

WORDS = st.lists(st.sampled_from(["a", "bb", "ccc", "d", "eeee"]), max_size=40)


def measures(text: str) -> dict[str, float]:
    return dict(shares(text))


def numbered(count: int) -> str:
    return " ".join(f"w{number}" for number in range(count))


def test_every_limit_has_its_measure() -> None:
    assert list(measures("a b c")) == list(RepetitionParams.model_fields)


def test_a_text_without_repetition_has_no_share_of_it() -> None:
    assert set(measures(numbered(30) + "\n\nOther lines here\n").values()) == {0}


def test_lines_that_came_before_count_with_their_characters() -> None:
    found = measures("long line one\nab\nab\n  ab  \n\nx")
    assert found["duplicate_lines"] == 2 / 5
    assert found["duplicate_line_chars"] == 4 / 20


def test_paragraphs_that_came_before_count_with_their_characters() -> None:
    found = measures("one\ntwo\n\nthree\n \none\ntwo\n\n\nx")
    assert found["duplicate_paragraphs"] == 1 / 4
    assert found["duplicate_paragraph_chars"] == 7 / (7 + 5 + 7 + 1)


def test_the_most_frequent_ngram_covers_all_its_places() -> None:
    found = measures("aa bb x aa bb y aa bb z")
    assert found["top_2gram_chars"] == 12 / 15
    assert found["top_3gram_chars"] == 0


def test_of_equally_frequent_ngrams_the_longest_counts() -> None:
    assert measures("a b x lengthy words y a b z lengthy words q")["top_2gram_chars"] == 24 / 32


def test_overlapping_places_of_an_ngram_count_once() -> None:
    assert measures("ha ha ha ha")["top_2gram_chars"] == 1
    assert measures("ha " * 12)["duplicate_5gram_chars"] == 11 / 12


def test_duplicate_ngrams_cover_the_places_after_the_first() -> None:
    text = f"one two three four five six x {numbered(6)} one two three four five six"
    found = measures(text)
    num_chars = len(text.replace(" ", ""))
    assert found["duplicate_5gram_chars"] == found["duplicate_6gram_chars"] == 22 / num_chars
    assert found["duplicate_7gram_chars"] == 0


@settings(max_examples=200, deadline=None)
@given(WORDS)
def test_ngram_shares_equal_those_counted_the_long_way(words) -> None:
    found = measures(" ".join(words))
    num_chars = max(sum(map(len, words)), 1)
    for size in range(2, 11):
        ngrams = [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
        counts = Counter(ngrams)
        if size < 5:
            most = max([count for count in counts.values() if count > 1], default=0)
            tops = [ngram for ngram, count in counts.items() if most and count == most]
            covers = [{i for i, ngram in enumerate(ngrams) if ngram == top} for top in tops]
            name = f"top_{size}gram_chars"
        else:
            covers = [{i for i, ngram in enumerate(ngrams) if ngram in ngrams[:i]}]
            name = f"duplicate_{size}gram_chars"
        covered = [{place for start in starts for place in range(start, start + size)} for starts in covers]
        expected = max((sum(len(words[place]) for place in places) for places in covered), default=0)
        assert found[name] == expected / num_chars


@pytest.mark.parametrize("rule", RepetitionParams.model_fields)
def test_each_limit_holds_at_its_value_fails_beyond_and_can_be_off(rule: str) -> None:
    text = f"{numbered(12)}\n\nthe same line again\n\nthe same line again\n\n{'oh no ' * 9}"
    text += f"\n\n{numbered(12)}"
    off = dict.fromkeys(RepetitionParams.model_fields)
    found = measures(text)[rule]
    assert 0 < found < 1
    assert excess_in(text, RepetitionParams(**off | {rule: found})) is None
    excess = excess_in(text, RepetitionParams(**off | {rule: found - 1e-9}))
    assert excess == (rule, found, found - 1e-9)
    assert excess_in(text, RepetitionParams(**off)) is None


def test_real_prose_passes_and_a_stuck_record_does_not() -> None:
    prose = (
        "A container is a process with its own view of files, network and users. It starts in a moment,\n"
        "because no kernel boots with it.\n\nAn image is a stack of read-only layers. Each instruction of a\n"
        "Dockerfile adds one, and equal layers are stored once.\n"
    )
    assert excess_in(prose, RepetitionParams()) is None
    stuck = prose + "Click here to subscribe to our newsletter today. " * 6
    assert excess_in(stuck, RepetitionParams()).rule == "top_2gram_chars"


def test_a_long_text_takes_linear_time() -> None:
    # Quadratic counting of 200,000 words would take minutes.
    assert measures("buffalo " * 200_000)["duplicate_10gram_chars"] == pytest.approx(1, abs=1e-3)
