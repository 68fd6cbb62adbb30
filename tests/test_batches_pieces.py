"""Pieces of documents: which ones there are, their order, and the memory that a plan takes."""

import tracemalloc
from collections.abc import Iterator
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny_documents import numbered

from nima.batches import Batching, TokenizedDocuments, pieces, training_batches
from nima.batches.pieces import CutDocuments, grouped


@pytest.fixture(params=[3, 1 << 16])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many documents or pieces are looked at together."""
    monkeypatch.setattr(pieces, "AT_ONCE", request.param)
    return int(request.param)


def cut(lengths: list[int], max_tokens: int) -> Iterator[tuple[int, int, int]]:
    """Document, start and length of each piece, one after the other."""
    for document, length in enumerate(lengths):
        for start in range(0, length, max_tokens):
            yield document, start, min(max_tokens, length - start)


@pytest.mark.parametrize("max_tokens", [1, 7, 127, 40_000])
def test_pieces_are_documents_cut_at_the_length_of_a_row(max_tokens: int, at_once: int) -> None:
    lengths = [0, 5, 0, 0, 14, 7, 8, 300, 1, 0]
    expected = list(cut(lengths, max_tokens))
    tokens = cast(TokenizedDocuments, numbered(lengths))
    found = CutDocuments(tokens, np.arange(len(lengths), dtype=np.int32), max_tokens)
    assert (found.num_pieces, found.num_tokens) == (len(expected), sum(lengths))
    assert found.lengths().tolist() == [length for _, _, length in expected]
    order = np.random.default_rng(0).permutation(len(expected))
    taken = found.taken(order)
    parts = zip(taken.documents.tolist(), taken.starts.tolist(), taken.lengths.tolist(), strict=True)
    assert list(parts) == [expected[number] for number in order]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=40), st.sampled_from([np.int8, np.int16, np.int32]))
def test_grouped_places_are_those_of_a_stable_sort(keys: list[int], dtype: type) -> None:
    array: NDArray[np.signedinteger] = np.array(keys, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "AT_ONCE", 7)
        places, edges = grouped(array, 10)
    assert places.tolist() == np.argsort(array, kind="stable").tolist()
    assert edges.tolist() == np.searchsorted(np.sort(array), np.arange(11)).tolist()


class ManyDocuments:
    """Only lengths: enough to make a plan."""

    def __init__(self, num_documents: int) -> None:
        lengths = np.random.default_rng(0).lognormal(5.2, 1.0, num_documents)
        self.num_documents, self.lengths = num_documents, lengths.astype(np.int64) + 1
        self.weights = np.broadcast_to(np.ones(1), num_documents)


@pytest.mark.parametrize(
    ("batching", "kept_bytes", "peak_bytes"), [("blocks", 13, 26), ("packed", 22, 60), ("padded", 18, 40)]
)
def test_a_plan_takes_a_few_bytes_for_each_document(
    batching: Batching, kept_bytes: int, peak_bytes: int
) -> None:
    tokens = ManyDocuments(200_000)
    documents = np.arange(tokens.num_documents)
    tracemalloc.start()
    plan = training_batches(
        cast(TokenizedDocuments, tokens),
        documents,
        seed=0,
        batching=batching,
        mixture={},
        block_tokens=256,
        batch_tokens=4096,
        end_of_text=0,
    )
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert plan.order.units_per_epoch > 10_000
    assert kept < kept_bytes * tokens.num_documents
    assert peak < peak_bytes * tokens.num_documents
