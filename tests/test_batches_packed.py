"""Rows of whole documents: the packing, and what is read of it."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_documents import ListedDocuments, numbered

from nima.batches import PADDING, Batch, TrainingBatches, training_batches
from nima.batches.packed import best_fit
from nima.network.targets import IGNORED

END, ROW = 999, 8
lengths = st.lists(st.integers(0, 30), min_size=1, max_size=20).filter(any)


def packed(tokens: ListedDocuments, seed: int = 0, per_batch: int = 1, row: int = ROW) -> TrainingBatches:
    return training_batches(
        tokens,
        np.arange(tokens.num_documents),
        seed=seed,
        batching="packed",
        mixture={},
        block_tokens=row,
        batch_tokens=row * per_batch,
        end_of_text=END,
    )


def epoch(batches: TrainingBatches, number: int = 0) -> list[Batch]:
    """The rows of an epoch, in their order; for batches of one row."""
    rows = batches.order.units_per_epoch
    return [batches.batch(step) for step in range(number * rows, (number + 1) * rows)]


# --------------------------------------------------------------------------------------------- packing


def one_by_one(sizes: list[int], row: int) -> list[int]:
    """Best-fit-decreasing as its name says it: the tokens in each row."""
    rows: list[int] = []
    for size in sorted(sizes, reverse=True):
        fullest = max((fill for fill in rows if fill + size <= row), default=None)
        if fullest is not None:
            rows.remove(fullest)
        rows.append((fullest or 0) + size)
    return sorted(rows)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 24), max_size=60))
def test_packing_is_best_fit_decreasing(sizes: list[int]) -> None:
    rows = best_fit(np.array(sizes, dtype=np.int32), 24)
    fills = np.bincount(rows, weights=sizes).astype(int).tolist() if sizes else []
    assert sorted(fills) == one_by_one(sizes, 24)


def test_packing_of_documents_as_they_are_fills_nearly_every_slot() -> None:
    sizes = np.random.default_rng(0).lognormal(5, 1, 20_000).astype(np.int32).clip(1, 1024)
    rows = best_fit(sizes, 1024)
    fills = np.bincount(rows, weights=sizes)
    assert fills.max() <= 1024
    assert sizes.sum() / (len(fills) * 1024) > 0.999


# ------------------------------------------------------------------------------------------------ rows


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(0, 3), st.integers(0, 2))
def test_an_epoch_trains_on_each_token_exactly_once(sizes: list[int], seed: int, number: int) -> None:
    seen: Counter[int] = Counter()
    for batch in epoch(packed(numbered(sizes), seed), number):
        seen.update(batch.targets[batch.targets != IGNORED].tolist())
    assert seen == Counter(range(sum(sizes)))


@settings(max_examples=60, deadline=None)
@given(lengths)
def test_a_target_is_predicted_from_the_token_before_it_a_first_one_from_end_of_text(
    sizes: list[int],
) -> None:
    tokens = numbered(sizes)
    starts = {content[0] for content in tokens.contents if content}
    for batch in epoch(packed(tokens)):
        for before, target in zip(batch.ids[0].tolist(), batch.targets[0].tolist(), strict=True):
            if target != IGNORED:
                assert before == (END if target in starts else target - 1)


@settings(max_examples=60, deadline=None)
@given(lengths)
def test_documents_that_fit_a_row_are_whole_and_told_apart(sizes: list[int]) -> None:
    tokens = numbered(sizes)
    whole = {tuple(content) for content in tokens.contents if 0 < len(content) <= ROW}
    found = set()
    for batch in epoch(packed(tokens)):
        documents, targets = batch.documents[0], batch.targets[0]
        assert ((targets == IGNORED) == (documents == PADDING)).all()
        assert (np.diff(documents[documents != PADDING]) >= 0).all()
        found |= {tuple(targets[documents == number].tolist()) for number in set(documents) - {PADDING}}
    assert whole <= found
    long = [piece for piece in found - whole if len(piece) == ROW]
    assert len(long) == sum(size // ROW for size in sizes if size > ROW)


def test_slots_behind_the_last_document_are_padding() -> None:
    [batch] = epoch(packed(numbered([5])))
    assert batch.ids.tolist() == [[END, 0, 1, 2, 3, END, END, END]]
    assert batch.targets.tolist() == [[0, 1, 2, 3, 4, IGNORED, IGNORED, IGNORED]]
    assert batch.documents.tolist() == [[0, 0, 0, 0, 0, PADDING, PADDING, PADDING]]
    assert (batch.num_tokens, batch.num_trained_tokens) == (5, 5)


def test_only_trained_tokens_are_targets() -> None:
    tokens = ListedDocuments([list(range(20))], [[(2, 4), (7, 13)]])
    seen = [target for batch in epoch(packed(tokens)) for target in batch.targets.ravel().tolist()]
    assert sorted(target for target in seen if target != IGNORED) == [2, 3, 7, 8, 9, 10, 11, 12]


def test_copies_of_one_document_in_a_row_are_told_apart() -> None:
    tokens = ListedDocuments([[1, 2, 3]], None, [2.0])
    [batch] = epoch(packed(tokens))
    assert batch.documents[0, :6].tolist() == [0, 0, 0, 1, 1, 1]


def test_inside_a_row_documents_do_not_stand_by_size() -> None:
    batches = packed(numbered([1, 2, 5] * 40))
    firsts = {int((batch.documents[0] == 0).sum()) for batch in epoch(batches)}
    assert firsts == {1, 2, 5}


def test_each_epoch_visits_the_rows_in_another_order_and_each_row_once() -> None:
    batches = packed(numbered([7, 8, 5, 3, 6, 2] * 10))
    orders = [[batch.ids.tobytes() for batch in epoch(batches, number)] for number in range(3)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert set(orders[0]) == set(orders[1]) == set(orders[2])
    assert len(set(orders[0])) == len(orders[0])


def test_the_plan_depends_on_the_seed_and_on_nothing_else() -> None:
    tokens = numbered([7, 3, 5, 3, 6, 2] * 10)
    first, second, other = (packed(tokens, seed, 3).batch(5).ids for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_a_batch_says_how_full_its_rows_are() -> None:
    batches = packed(numbered([5, 3, 6]), per_batch=2)
    assert batches.order.units_per_epoch == 2
    assert batches.packing_efficiency == pytest.approx(14 / 16)
    assert batches.tokens_per_batch == 14
    assert batches.batch(0).num_tokens == 14
