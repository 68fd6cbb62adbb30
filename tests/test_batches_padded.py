"""One document a row, in batches by a budget of tokens."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_documents import ListedDocuments, numbered

from nima.batches import PADDING, Batch, TrainingBatches, training_batches
from nima.network.targets import IGNORED

END, ROW, BUDGET = 999, 8, 32
lengths = st.lists(st.integers(0, 30), min_size=1, max_size=20).filter(any)


def padded(tokens: ListedDocuments, seed: int = 0, row: int = ROW, budget: int = BUDGET) -> TrainingBatches:
    return training_batches(
        tokens,
        np.arange(tokens.num_documents),
        seed=seed,
        batching="padded",
        mixture={},
        block_tokens=row,
        batch_tokens=budget,
        end_of_text=END,
    )


def epoch(batches: TrainingBatches, number: int = 0) -> list[Batch]:
    count = batches.order.units_per_epoch
    return [batches.batch(step) for step in range(number * count, (number + 1) * count)]


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(0, 3), st.integers(0, 2))
def test_an_epoch_trains_on_each_token_exactly_once(sizes: list[int], seed: int, number: int) -> None:
    seen: Counter[int] = Counter()
    for batch in epoch(padded(numbered(sizes), seed), number):
        seen.update(batch.targets[batch.targets != IGNORED].tolist())
    assert seen == Counter(range(sum(sizes)))


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(0, 2))
def test_a_row_is_one_document_and_a_batch_keeps_the_budget(sizes: list[int], number: int) -> None:
    tokens = numbered(sizes)
    pieces = [content[at : at + ROW] for content in tokens.contents for at in range(0, len(content), ROW)]
    found = []
    for batch in epoch(padded(tokens), number):
        assert batch.ids.size <= BUDGET
        for ids, targets, documents in zip(batch.ids, batch.targets, batch.documents, strict=True):
            text = targets[: (documents == 0).sum()].tolist()
            found.append(text)
            first = text[0] in {content[0] for content in tokens.contents if content}
            assert ids[: len(text)].tolist() == [END if first else text[0] - 1, *text[:-1]]
            assert (targets[len(text) :] == IGNORED).all()
            assert (documents[len(text) :] == PADDING).all()
        assert not (batch.documents[:, -1] == PADDING).all()  # no wider than its longest row
    assert sorted(found) == sorted(pieces)


def test_a_batch_has_as_many_rows_as_the_budget_holds_of_its_longest() -> None:
    shapes = Counter(batch.ids.shape for batch in epoch(padded(numbered([8] * 10 + [3] * 25 + [1] * 3))))
    # Four rows of 8; then the last two of them with two of 3; then ten rows of 3; the rest.
    assert shapes == {(4, 8): 3, (10, 3): 2, (6, 3): 1}


def test_documents_of_like_length_come_together() -> None:
    draw = np.random.default_rng(0)
    batches = padded(numbered(draw.integers(1, 101, 1000).tolist()), row=100, budget=1000)
    assert batches.packing_efficiency > 0.97
    text = sum(batch.num_tokens for batch in epoch(batches))
    slots = sum(batch.ids.size for batch in epoch(batches))
    assert batches.packing_efficiency == pytest.approx(text / slots)
    assert batches.tokens_per_batch == pytest.approx(text / batches.order.units_per_epoch)


def test_each_epoch_has_another_order_and_other_documents_side_by_side() -> None:
    batches = padded(numbered([5, 6, 7] * 40))
    epochs = [epoch(batches, number) for number in range(3)]
    widths = [[batch.ids.shape for batch in found] for found in epochs]
    assert widths[0] != widths[1]
    assert Counter(widths[0]) == Counter(widths[1]) == Counter(widths[2])
    together = [{frozenset(batch.targets[:, 0].tolist()) for batch in found} for found in epochs]
    assert len(together[0] & together[1]) < len(together[0]) / 4


def test_the_order_depends_on_the_seed_and_on_nothing_else() -> None:
    tokens = numbered([7, 3, 5, 3, 6, 2] * 10)
    first, second, other = (padded(tokens, seed).batch(5).ids for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_weights_are_copies() -> None:
    tokens = ListedDocuments([[1, 2], [3, 4, 5]], None, [3.0, 1.0])
    seen = Counter(token for batch in epoch(padded(tokens)) for token in batch.targets.ravel().tolist())
    del seen[IGNORED]
    assert seen == {1: 3, 2: 3, 3: 1, 4: 1, 5: 1}
