import hashlib
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nima.corpus.duplicates import similarity
from nima.corpus.duplicates.similarity import (
    MIN_RECALL,
    NEIGHBOURS,
    NUM_HASHES,
    SKETCH_BYTES,
    banding,
    near_duplicates,
    sketch,
    unite,
    united_groups,
)
from nima.workspace.params.data import NearDuplicatesParams

SOURCE = Path(__file__).parent.parent / "src"
RULES = NearDuplicatesParams()
VOCABULARY = [f"word{number}" for number in range(3000)]


def sketches_of(texts: list[str]) -> np.ndarray:
    rows = b"".join(sketch(text, RULES) for text in texts)
    return np.frombuffer(rows, np.uint32).reshape(-1, NUM_HASHES)


def written(draw: random.Random, num_words: int) -> list[str]:
    return draw.choices(VOCABULARY, k=num_words)


def edited(draw: random.Random, words: list[str], share: float) -> list[str]:
    """A text with a share of its words replaced."""
    return [draw.choice(VOCABULARY) if draw.random() < share else word for word in words]


def alike(draw: np.random.Generator, one: np.ndarray, similarity: float) -> np.ndarray:
    """A sketch of which each value is that of another one with a given probability."""
    own = draw.integers(0, 2**32, NUM_HASHES, dtype=np.uint32)
    return np.where(draw.random(NUM_HASHES) < similarity, one, own)


# ------------------------------------------------------------------------------------------- sketches


def test_sketches_have_one_length_and_are_what_they_were() -> None:
    assert {len(sketch(text, RULES)) for text in ("", "one", "a b c d e f g", "word " * 5000)} == {
        SKETCH_BYTES
    }
    digest = hashlib.sha256(sketch("To list all buckets, run this command: aws s3 ls", RULES)).hexdigest()
    assert digest[:16] == "c4c4109c92e1599c"


def test_case_punctuation_and_layout_make_no_difference() -> None:
    assert sketch("Run `aws s3 ls`, then wait.\n", RULES) == sketch("run aws s3\n\n ls THEN wait", RULES)


def test_a_text_shorter_than_an_ngram_is_compared_as_a_whole() -> None:
    assert sketch("a b c", RULES) == sketch("A, b, c", RULES)
    one, other = sketches_of(["a b c", "a b d"])
    assert (one == other).mean() < 0.05


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_the_estimate_has_no_bias_and_the_known_error(share: float) -> None:
    draw, errors = random.Random(1), []
    for _ in range(300):
        shared = [" ".join(written(draw, 5)) for _ in range(round(100 * share))]
        rests = [[" ".join(written(draw, 5)) for _ in range(100 - len(shared))] for _ in range(2)]
        # n-grams of one word each, so that the sets are exactly as planned
        one, other = (
            np.frombuffer(
                sketch(
                    " ".join(line.replace(" ", "x") for line in shared + rest),
                    RULES.model_copy(update={"ngram_words": 1}),
                ),
                np.uint32,
            )
            for rest in rests
        )
        exact = len(shared) / (len(shared) + 2 * (100 - len(shared)))
        errors.append((one == other).mean() - exact)
    expected = (exact * (1 - exact) / NUM_HASHES) ** 0.5
    assert abs(np.mean(errors)) < 4 * expected / 300**0.5
    assert 0.85 * expected < np.std(errors) < 1.15 * expected


def test_long_texts_are_sketched_in_pieces_as_if_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(written(random.Random(2), 3000))
    whole = sketch(text, RULES)
    monkeypatch.setattr(similarity, "NGRAMS_AT_ONCE", 7)
    assert sketch(text, RULES) == whole


# --------------------------------------------------------------------------------------------- banding


@given(st.floats(0.5, 0.999))
@settings(deadline=None, max_examples=60)
def test_bands_find_a_pair_at_the_threshold_nearly_always_with_as_few_candidates_as_that_allows(
    min_similarity: float,
) -> None:
    bands, rows = banding(min_similarity)
    assert bands * rows <= NUM_HASHES
    assert 1 - (1 - min_similarity**rows) ** bands >= MIN_RECALL
    for more in range(rows + 1, NUM_HASHES + 1):
        assert 1 - (1 - min_similarity**more) ** (NUM_HASHES // more) < MIN_RECALL


@pytest.mark.parametrize("min_similarity", [0.5, 0.7, 0.8, 0.9])
def test_pairs_above_the_threshold_are_found_and_others_are_not(min_similarity: float) -> None:
    draw = np.random.default_rng(3)
    pairs = []
    for _ in range(1500):
        one = draw.integers(0, 2**32, NUM_HASHES, dtype=np.uint32)
        pairs += [one, alike(draw, one, min_similarity)]
    sketches = np.array(pairs)
    similar = (sketches[::2] == sketches[1::2]).mean(axis=1) >= min_similarity
    found = near_duplicates(sketches, min_similarity)
    joined = found.first_of[1::2] == found.first_of[::2]
    assert 500 < similar.sum() < 1100
    assert not (joined & ~similar).any()
    assert joined[similar].mean() >= MIN_RECALL
    assert found.num_pairs == joined.sum()
    assert (found.first_of[::2] == np.arange(0, len(sketches), 2)).all()


# -------------------------------------------------------------------------------------------- clusters


def test_planted_near_duplicates_are_found_in_text_and_unlike_texts_are_kept_apart() -> None:
    draw = random.Random(4)
    originals = [written(draw, 200) for _ in range(60)]
    near = [edited(draw, words, 0.01) for words in originals]
    far = [edited(draw, words, 0.15) for words in originals]
    texts = [" ".join(words) for words in originals + near + far]
    first_of = near_duplicates(sketches_of(texts), 0.8).first_of
    assert first_of[:60].tolist() == list(range(60))
    assert (first_of[60:120] == np.arange(60)).mean() >= 0.95
    assert first_of[120:].tolist() == list(range(120, 180))


def test_clusters_are_those_of_comparing_everything_with_everything() -> None:
    draw = np.random.default_rng(5)
    rows = list(draw.integers(0, 2**32, (40, NUM_HASHES), dtype=np.uint32))
    for _ in range(360):
        rows.append(alike(draw, rows[draw.integers(len(rows))], draw.choice([0.6, 0.85, 0.97])))
    sketches = np.array([rows[place] for place in draw.permutation(len(rows))])
    expected = np.arange(len(sketches))
    equal = (sketches[:, None] == sketches[None]).mean(axis=2)
    unite(expected, *np.nonzero(equal >= 0.8))
    first_of = near_duplicates(sketches, 0.8).first_of
    assert (similarity.roots(expected, first_of) == similarity.roots(expected, np.arange(400))).all()
    assert (first_of == expected).mean() > 0.97


def test_texts_without_words_are_like_no_other() -> None:
    found = near_duplicates(sketches_of(["--- ***", "", "--- ***", "a", "a"]), 0.8)
    assert found.first_of.tolist() == [0, 1, 2, 3, 3]


def test_no_documents_and_one_have_no_duplicates() -> None:
    for count in (0, 1):
        found = near_duplicates(sketches_of(["text"])[:count], 0.8)
        assert found.first_of.tolist() == list(range(count))
        assert found.num_pairs == 0


def test_a_hundred_thousand_equal_documents_cost_one_comparison_each(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def counted(sketches: np.ndarray, documents: np.ndarray) -> np.ndarray:
        compared.append(len(documents))
        return sketches[documents]

    monkeypatch.setattr(similarity, "chosen", counted)
    row = sketches_of(["the same text in all of them"])
    found = near_duplicates(np.broadcast_to(row, (100_000, NUM_HASHES)), 0.8)
    assert not found.first_of.any()
    assert found.num_pairs == 99_999
    assert sum(compared) == 2 * 99_999


def test_clusters_that_share_a_large_bucket_are_told_apart() -> None:
    draw = np.random.default_rng(6)
    kinds = draw.integers(0, 2**32, (5, NUM_HASHES), dtype=np.uint32)
    kinds[:, :70] = kinds[0, :70]  # ten of eighteen bands are everybody's; similarity 0.55
    order = draw.integers(0, 5, 2000)
    first_of = near_duplicates(kinds[order], 0.8).first_of
    assert len(order) > 50 * NEIGHBOURS
    assert first_of.tolist() == [int(np.flatnonzero(order == kind)[0]) for kind in order]


def test_similar_documents_are_found_beside_a_first_one_that_is_like_neither() -> None:
    draw = np.random.default_rng(8)
    bands, rows = banding(0.8)
    other, one = draw.integers(0, 2**32, (2, NUM_HASHES), dtype=np.uint32)
    one[: 13 * rows] = other[: 13 * rows]  # thirteen bands are everybody's; similarity 0.71
    twin = one.copy()
    twin[13 * rows : bands * rows : rows] += np.uint32(1)  # and in these alone the two meet
    assert near_duplicates(np.array([other, one, twin]), 0.8).first_of.tolist() == [0, 1, 1]


def test_a_mapped_file_gives_the_same_clusters(tmp_path: Path) -> None:
    draw = random.Random(7)
    words = [written(draw, 50) for _ in range(50)]
    texts = [" ".join(edited(draw, one, 0.01)) for one in words for _ in range(4)]
    sketches = sketches_of(texts)
    (tmp_path / "sketches").write_bytes(bytes(SKETCH_BYTES) + sketches.tobytes())
    mapped = np.memmap(tmp_path / "sketches", np.uint32, "r", offset=SKETCH_BYTES).reshape(-1, NUM_HASHES)
    assert np.array_equal(near_duplicates(mapped, 0.8).first_of, near_duplicates(sketches, 0.8).first_of)


def test_memory_is_a_few_bytes_a_document(tmp_path: Path) -> None:
    """300,000 documents, half of them duplicates: 154 MB of sketches, of which little is ever in memory."""
    code = f"""
import resource, numpy as np
from nima.corpus.duplicates.similarity import near_duplicates
draw = np.random.default_rng(0)
with open({str(tmp_path / "sketches")!r}, "wb") as file:
    for _ in range(30):
        rows = draw.integers(0, 2**32, (5_000, 128), dtype=np.uint32)
        file.write(np.concatenate([rows, rows]).tobytes())
del rows
sketches = np.memmap({str(tmp_path / "sketches")!r}, np.uint32, "r").reshape(-1, 128)
near_duplicates(sketches[:1], 0.8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = near_duplicates(sketches, 0.8)
assert found.num_pairs == 150_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(SOURCE)}, check=True, capture_output=True
    )
    assert int(done.stdout) < 45_000  # kilobytes: 60 bytes a document and blocks of constant size


# ------------------------------------------------------------------------------------ what hangs together

pairs = st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=60)


def components(count: int, links: list[tuple[int, int]]) -> list[int]:
    """The smallest member of each one's component, by plain search."""
    smallest = list(range(count))
    while True:
        before = list(smallest)
        for one, other in links:
            smallest[one] = smallest[other] = min(smallest[one], smallest[other])
        if smallest == before:
            return smallest


@given(pairs, pairs)
@settings(deadline=None, max_examples=150)
def test_united_documents_have_the_first_of_all_they_hang_together_with(
    once: list[tuple[int, int]], again: list[tuple[int, int]]
) -> None:
    first_of = np.arange(30)
    for links in (once, again):
        left, right = np.array(links, np.int64).reshape(-1, 2).T
        unite(first_of, left, right)
    assert similarity.roots(first_of, np.arange(30)).tolist() == components(30, once + again)


def test_a_long_chain_is_united_in_few_rounds() -> None:
    first_of = np.arange(200_000)
    unite(first_of, np.arange(1, 200_000), np.arange(199_999))
    assert not similarity.roots(first_of, np.arange(200_000)).any()


@given(st.lists(st.integers(0, 9), min_size=30, max_size=30), pairs)
@settings(deadline=None, max_examples=100)
def test_groups_hang_together_by_equal_groups_and_by_clusters(
    names: list[int], links: list[tuple[int, int]]
) -> None:
    clusters = np.array(components(30, links))
    groups = np.array([f"{name:016x}" for name in names])
    same = [(one, other) for one in range(30) for other in range(one) if names[one] == names[other]]
    expected = [groups[first] for first in components(30, links + same)]
    assert united_groups(groups, clusters).tolist() == expected
    numbers = np.array(names, np.uint64)
    assert [f"{name:016x}" for name in united_groups(numbers, clusters)] == expected


def test_groups_stay_as_they_are_without_clusters() -> None:
    groups = np.array([7, 3, 7, 9], np.uint64)
    assert united_groups(groups, np.arange(4)).tolist() == [7, 3, 7, 9]


def test_later_documents_leave_the_groups_of_earlier_ones_as_they_were() -> None:
    """New near duplicates join the group of the first, so their split is decided already."""
    before = united_groups(np.array([7, 3, 9], np.uint64), np.array([0, 1, 1]))
    after = united_groups(np.array([7, 3, 9, 5, 1], np.uint64), np.array([0, 1, 1, 0, 4]))
    assert after[:3].tolist() == before.tolist() == [7, 3, 3]
    assert after[3:].tolist() == [7, 1]
