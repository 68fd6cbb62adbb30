"""First appearances of contents, found in sorted tables."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nima.corpus.duplicates import digests
from nima.corpus.duplicates.digests import NEW, SeenDigests


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 12), max_size=9), max_size=12))
def test_firsts_are_those_of_a_plain_dictionary_whatever_the_portions(portions: list[list[int]]) -> None:
    seen, plain, number = SeenDigests(), {}, 0
    for portion in portions:
        # Half of them differ in one of the two words only.
        pairs = np.array([[value // 2, value] for value in portion], dtype=np.uint64).reshape(-1, 2)
        found = seen.firsts(pairs)
        seen.add(pairs, found)
        for place, value in enumerate(portion):
            first = plain.setdefault(value, number)
            assert found[place] == (NEW if first == number else first)
            number += 1


def test_long_runs_stay_as_they_are_and_are_still_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "RUN_DOCUMENTS", 64)
    seen = SeenDigests()
    values = np.stack([np.arange(1000), np.arange(1000)], axis=1).astype(np.uint64)
    for start in range(0, 1000, 20):
        seen.add(values[start : start + 20], seen.firsts(values[start : start + 20]))
    assert max(len(heads) for heads, _, _ in seen.runs) <= 64
    assert np.array_equal(seen.firsts(values), np.arange(1000))


def test_runs_stay_few() -> None:
    seen = SeenDigests()
    generator = np.random.default_rng(0)
    for _ in range(200):
        pairs = generator.integers(0, 2**63, (50, 2)).astype(np.uint64)
        seen.add(pairs, seen.firsts(pairs))
    assert seen.num_documents == 10_000
    assert len(seen.runs) <= 14
