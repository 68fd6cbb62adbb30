"""First appearances of contents, found in sorted tables."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nima.corpus.digests import NEW, SeenDigests


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 12), max_size=9), max_size=12))
def test_firsts_are_those_of_a_plain_dictionary_whatever_the_portions(portions: list[list[int]]) -> None:
    seen, plain, number = SeenDigests(), {}, 0
    for portion in portions:
        # Half of them differ in one of the two words only.
        digests = np.array([[value // 2, value] for value in portion], dtype=np.uint64).reshape(-1, 2)
        found = seen.firsts(digests)
        seen.add(digests, found)
        for place, value in enumerate(portion):
            first = plain.setdefault(value, number)
            assert found[place] == (NEW if first == number else first)
            number += 1


def test_runs_stay_few() -> None:
    seen = SeenDigests()
    generator = np.random.default_rng(0)
    for _ in range(200):
        digests = generator.integers(0, 2**63, (50, 2)).astype(np.uint64)
        seen.add(digests, seen.firsts(digests))
    assert seen.num_documents == 10_000
    assert len(seen.runs) <= 14
