"""The order of the data, as a pure function of seed and step: streams, blocks, batches, weights, windows."""

import hashlib
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_documents import ListedDocuments, numbered

from nima.batches import (
    PADDING,
    Batch,
    Batching,
    Stream,
    TrainingBatches,
    Window,
    evenly_spread,
    scoring_windows,
    steps_of,
    training_batches,
)
from nima.batches.permutation import permuted
from nima.batches.stream import training_order
from nima.network.targets import IGNORED
from nima.workspace.errors import UserError

lengths = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(lambda found: sum(found) >= 4)


def everything(tokens: ListedDocuments) -> np.ndarray:
    return np.arange(tokens.num_documents)


def batches_of(
    tokens: ListedDocuments,
    seed: int = 0,
    block_tokens: int = 4,
    per_batch: int = 3,
    batching: Batching = "blocks",
    documents: np.ndarray | None = None,
) -> TrainingBatches:
    return training_batches(
        tokens,
        everything(tokens) if documents is None else documents,
        seed=seed,
        batching=batching,
        mixture={},
        block_tokens=block_tokens,
        batch_tokens=block_tokens * per_batch,
        end_of_text=0,
    )


def block(batches: TrainingBatches, number: int) -> Batch:
    """One block by its number from the beginning of training."""
    return TrainingBatches(batches.tokens, batches.order, units_per_batch=1, end_of_text=0).batch(number)


# ---------------------------------------------------------------------------------------------- stream


@given(lengths, st.integers(0, 200), st.integers(1, 60))
def test_a_stream_reads_as_if_its_documents_were_one_endless_array(
    sizes: list[int], start: int, count: int
) -> None:
    tokens = numbered(sizes)
    order = np.random.default_rng(0).permutation(len(sizes))
    flat = [token for document in order for token in tokens.contents[document]]
    owners = [document for document in order for _ in tokens.contents[document]]
    ids, trained, documents = Stream(tokens, order).read(start, count)
    places = [(start + offset) % len(flat) for offset in range(count)]
    assert ids.tolist() == [flat[place] for place in places]
    assert documents.tolist() == [owners[place] for place in places]
    assert trained.all()


@given(st.data())
def test_the_trained_tokens_of_a_read_are_those_in_the_spans(data: st.DataObject) -> None:
    sizes = data.draw(lengths)
    masks = [data.draw(st.lists(st.booleans(), min_size=size, max_size=size)) for size in sizes]
    spans = [[(place, place + 1) for place, kept in enumerate(mask) if kept] for mask in masks]
    tokens = ListedDocuments(numbered(sizes).contents, spans)
    flat = [kept for mask in masks for kept in mask]
    start, count = data.draw(st.integers(0, 50)), data.draw(st.integers(1, 50))
    found = Stream(tokens, everything(tokens)).read(start, count)[1]
    assert found.tolist() == [flat[(start + offset) % len(flat)] for offset in range(count)]


def test_long_spans_are_cut_at_the_edges_of_a_read() -> None:
    tokens = ListedDocuments([list(range(10))], [[(2, 5), (7, 9)]])
    read = Stream(tokens, np.array([0])).read
    assert read(3, 5)[1].tolist() == [True, True, False, False, True]
    assert read(5, 2)[1].tolist() == [False, False]
    assert read(8, 4)[1].tolist() == [True, False, False, False]


# ------------------------------------------------------------------------------------------- one epoch


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 63, 64, 65, 100, 257, 1000])
def test_a_permutation_names_every_place_once(size: int) -> None:
    assert sorted(permuted(place, size, (3, 1)) for place in range(size)) == list(range(size))


def test_permutations_of_other_seeds_and_epochs_differ() -> None:
    orders = [
        tuple(permuted(place, 50, (seed, epoch)) for place in range(50))
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len(set(orders)) == 9
    assert tuple(range(50)) not in orders


def test_a_permutation_leaves_hardly_a_place_where_it_was() -> None:
    fixed = sum(permuted(place, 1000, (seed, 0)) == place for seed in range(5) for place in range(1000))
    assert fixed < 25  # 5 are expected


@settings(max_examples=40)
@given(lengths, st.integers(0, 3), st.integers(0, 5))
def test_an_epoch_visits_each_of_its_blocks_exactly_once(sizes: list[int], seed: int, epoch: int) -> None:
    batches = batches_of(numbered(sizes), seed)
    blocks = batches.order.units_per_epoch
    seen: Counter[int] = Counter()
    for number in range(epoch * blocks, (epoch + 1) * blocks):
        seen.update(block(batches, number).ids.ravel().tolist())
    assert set(seen.values()) == {1}
    assert seen.total() == blocks * 4
    assert sum(sizes) - seen.total() < 4


def test_over_the_epochs_no_token_is_left_out_for_ever() -> None:
    batches = batches_of(numbered([7, 4]))  # 11 tokens: two blocks of 4, three tokens left over
    seen = {token for number in range(24) for token in block(batches, number).ids.ravel().tolist()}
    assert seen == set(range(11))


def test_each_epoch_visits_its_blocks_in_another_order() -> None:
    batches = batches_of(numbered([400]))
    orders = [
        tuple(int(block(batches, epoch * 100 + place).ids[0, 0]) for place in range(100))
        for epoch in range(3)
    ]
    # Which token an epoch begins to count from differs too: only the steps between blocks are compared.
    assert len({tuple((start - order[0]) % 400 for start in order) for order in orders}) == 3


# ---------------------------------------------------------------------------------------------- batches


def same(one: object, other: object) -> bool:
    return bool(np.array_equal(one.ids, other.ids) and np.array_equal(one.targets, other.targets))


def test_a_batch_depends_on_its_step_alone() -> None:
    tokens = numbered([5, 9, 2, 30])
    forwards = [batches_of(tokens).batch(step) for step in range(12)]
    fresh = batches_of(tokens)
    for step in (11, 0, 7, 7, 3):
        assert same(fresh.batch(step), forwards[step])


def test_the_order_of_blocks_is_that_of_every_version_before() -> None:
    draw = np.random.default_rng(0)
    sizes = draw.integers(0, 40, 60).tolist()
    spans = [[(size // 3, size)] if size else [] for size in sizes]
    weights = (draw.integers(1, 12, 60) / 4).tolist()
    batches = batches_of(ListedDocuments(numbered(sizes).contents, spans, weights), 7, 16, 4)
    digest = hashlib.sha256()
    for step in (*range(60), 1000, 1_000_000):
        batch = batches.batch(step)
        digest.update(batch.ids.tobytes() + batch.targets.tobytes())
    assert digest.hexdigest() == "35e7dcfd9548b88ca573640a62b927e138a7ea1cd2c70a36066b79ad6eaacba2"


@settings(max_examples=40, deadline=None)
@given(lengths, st.sampled_from(["blocks", "packed", "padded"]), st.integers(1, 9), st.integers(0, 9))
def test_the_parts_of_any_number_of_ranks_are_the_batch_in_its_order(
    sizes: list[int], batching: Batching, num_ranks: int, step: int
) -> None:
    batches = batches_of(numbered(sizes), batching=batching, per_batch=5)
    whole = batches.batch(step)
    parts = [batches.batch(step, rank, num_ranks) for rank in range(num_ranks)]
    held = np.concatenate([(part.documents != PADDING).any(axis=1) for part in parts])
    for name in ("ids", "targets", "documents"):
        rows = np.concatenate([getattr(part, name) for part in parts])
        assert np.array_equal(rows[held], getattr(whole, name))
    assert {part.ids.shape for part in parts} == {(-(-len(whole.ids) // num_ranks), whole.ids.shape[1])}
    assert (np.concatenate([part.targets for part in parts])[~held] == IGNORED).all()


@pytest.mark.parametrize("max_tokens", [3, 4, 9, 16, 100])
def test_micro_batches_are_the_batch_in_parts_of_limited_size(max_tokens: int) -> None:
    batch = batches_of(numbered([50]), per_batch=7).batch(0)
    parts = list(batch.micro_batches(max_tokens))
    assert all(part.ids.size <= max_tokens or len(part.ids) == 1 for part in parts)
    assert all(len(part.ids) == max(1, max_tokens // 4) for part in parts[:-1])
    for name in ("ids", "targets", "documents"):
        assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(batch, name))


@settings(max_examples=40, deadline=None)
@given(lengths, st.integers(0, 30))
def test_a_block_tells_its_documents_apart_by_their_targets(sizes: list[int], number: int) -> None:
    tokens = numbered(sizes)
    starts = {content[0] for content in tokens.contents if content}
    found = block(batches_of(tokens), number)
    begins = [token in starts for token in found.targets[0, 1:].tolist()]
    assert (np.diff(found.documents[0]) != 0).tolist() == begins
    assert found.num_tokens == 4


def test_targets_are_the_tokens_that_follow() -> None:
    batches = batches_of(numbered([40]), block_tokens=8)
    batch = batches.batch(0)
    assert batch.ids.shape == batch.targets.shape == (3, 8)
    assert batch.ids.dtype == batch.targets.dtype == np.int64
    assert np.array_equal(batch.targets, (batch.ids + 1) % 40)


def test_a_target_is_ignored_unless_it_is_trained_itself() -> None:
    tokens = ListedDocuments([list(range(20))], [[(5, 11)]])
    batch = batches_of(tokens, block_tokens=5).batch(0)
    following = (batch.ids + 1) % 20
    trained = (following >= 5) & (following < 11)
    assert np.array_equal(batch.targets, np.where(trained, following, IGNORED))
    assert trained.any()


def test_other_seeds_and_epochs_give_other_blocks() -> None:
    tokens = numbered([50, 50])
    first = [batches_of(tokens, seed).batch(0).ids.tolist() for seed in range(3)]
    assert first[0] != first[1] != first[2] != first[0]
    batches = batches_of(tokens, per_batch=25)
    assert batches.batch(0).ids.tolist() != batches.batch(1).ids.tolist()


@pytest.mark.parametrize("batching", ["blocks", "packed", "padded"])
def test_batch_one_million_is_found_as_fast_as_the_first(batching: Batching) -> None:
    batches = batches_of(numbered([100] * 50), per_batch=8, batching=batching)
    started = time.perf_counter()
    batches.batch(1_000_000)
    assert time.perf_counter() - started < 0.5


@pytest.mark.parametrize("batching", ["blocks", "packed", "padded"])
def test_the_documents_of_a_batch_are_those_whose_tokens_it_trains_on(batching: Batching) -> None:
    sizes = [3, 11, 2, 8, 5, 13]
    tokens = numbered(sizes)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    batches = batches_of(tokens, per_batch=2, batching=batching)
    for step in range(10):
        targets = batches.batch(step).targets
        assert batches.documents_of(step) == sorted(set(owner[targets[targets != IGNORED]]))


def test_only_documents_of_the_split_are_read() -> None:
    tokens = numbered([10, 10, 10])
    batches = batches_of(tokens, documents=np.array([0, 2]))
    seen = {token for step in range(20) for token in batches.batch(step).ids.ravel().tolist()}
    assert seen == set(range(10)) | set(range(20, 30))


@pytest.mark.parametrize("batching", ["packed", "padded"])
@pytest.mark.parametrize("sizes", [[], [0, 0]])
def test_nothing_to_train_on_is_one_line(sizes: list[int], batching: Batching) -> None:
    with pytest.raises(UserError, match=r"training.batching: the training part has no token"):
        batches_of(numbered(sizes), batching=batching)


@pytest.mark.parametrize("sizes", [[3], [1, 2], []])
def test_too_little_text_for_one_block_is_one_line(sizes: list[int]) -> None:
    with pytest.raises(UserError, match=rf"training.block_tokens: 4 .* has only {sum(sizes)}; shorten"):
        batches_of(numbered(sizes))


def test_a_run_has_whole_updates_for_its_epochs() -> None:
    batches = batches_of(numbered([40]), per_batch=3)  # 10 blocks an epoch
    assert steps_of(7, None, batches) == 7
    per_batch = int(batches.tokens_per_batch)
    lengths = (1, per_batch, per_batch + 1)
    assert [steps_of(None, None, batches, max_tokens) for max_tokens in lengths] == [1, 1, 2]
    assert [steps_of(None, epochs, batches) for epochs in (0.01, 1.0, 3.0, 3.1)] == [1, 4, 10, 11]
    assert batches.epochs(20) == 6.0
    assert batches.epochs_by_source(20) == {}
    assert (batches.tokens_per_batch, batches.packing_efficiency) == (12, 1.0)


# ---------------------------------------------------------------------------------------------- weights


def copies(weights: list[float], seed: int = 0) -> Counter[int]:
    tokens = ListedDocuments([[1]] * len(weights), None, weights)
    return Counter(training_order(tokens, everything(tokens), seed).tolist())


def test_whole_weights_are_that_many_copies() -> None:
    assert copies([1.0, 3.0, 0.0, 2.0]) == {0: 1, 1: 3, 3: 2}


def test_a_fraction_of_a_weight_is_a_copy_for_that_share_of_documents() -> None:
    found = copies([2.25] * 4000)
    assert set(found.values()) == {2, 3}
    assert 900 < sum(count == 3 for count in found.values()) < 1100


def test_the_weight_of_one_document_does_not_move_the_copies_of_another() -> None:
    before = copies([0.5] * 200)
    after = copies([0.5] * 100 + [2.5] + [0.5] * 99)
    assert {index: before[index] for index in range(200) if index != 100} == {
        index: after[index] for index in range(200) if index != 100
    }


def test_more_documents_do_not_move_the_copies_of_the_earlier_ones() -> None:
    before, after = copies([0.5] * 200), copies([0.5] * 300)
    assert all(before[index] == after[index] for index in range(200))


def test_leaving_a_document_out_of_the_split_does_not_move_the_copies_of_another() -> None:
    tokens = ListedDocuments([[1]] * 200, None, [0.5] * 200)
    after = Counter(training_order(tokens, np.arange(50, 200), 0).tolist())
    before = copies([0.5] * 200)
    assert {index: count for index, count in before.items() if index >= 50} == after


def test_the_order_of_documents_is_shuffled_by_the_seed() -> None:
    tokens = numbered([1] * 50)
    orders = [tuple(training_order(tokens, everything(tokens), seed)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(50)) != list(orders[0])


# ---------------------------------------------------------------------------------------------- scoring

windows_of = st.tuples(st.integers(0, 200), st.integers(2, 40)).flatmap(
    lambda sizes: st.tuples(st.just(sizes[0]), st.just(sizes[1]), st.integers(1, sizes[1]))
)


@given(windows_of)
def test_windows_score_each_token_once_with_the_promised_context(sizes: tuple[int, int, int]) -> None:
    total, window_tokens, stride_tokens = sizes
    scored: list[int] = []
    for window in scoring_windows(total, window_tokens, stride_tokens):
        stop = window.start + window.num_tokens
        fresh = range(stop - window.num_scored, stop)
        assert window.num_tokens <= window_tokens
        assert window.start >= 0
        assert stop <= total
        # The token before the window is read too, so this many tokens stand before the first scored one.
        context = fresh.start - window.start + min(window.start, 1)
        assert context >= min(fresh.start, window_tokens - stride_tokens)
        scored.extend(fresh)
    assert scored == list(range(total))


def test_an_even_spread_keeps_the_budget_and_reaches_over_the_list() -> None:
    windows = [Window(start * 10, 10, 10) for start in range(100)]
    kept = evenly_spread(windows, 100)
    assert [window.start for window in kept] == list(range(0, 1000, 100))
    assert evenly_spread(windows, None) == windows
    assert evenly_spread(windows, 10_000) == windows
    assert evenly_spread([], 10) == []
    assert len(evenly_spread(windows, 3)) == 1


@given(st.integers(1, 300), st.integers(10, 400))
def test_an_even_spread_never_scores_more_than_allowed(total: int, max_tokens: int) -> None:
    windows = scoring_windows(total, 10, 4)
    kept = evenly_spread(windows, max_tokens)
    assert sum(window.num_scored for window in kept) <= max_tokens
    assert [window for window in windows if window in kept] == kept
