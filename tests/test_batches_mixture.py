"""Sources with shares of the training tokens, exact at every moment."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_documents import ListedDocuments, numbered

from nima.batches import Batching, TrainingBatches, steps_of, training_batches
from nima.batches.mixture import Mixture, turns, whole_parts
from nima.network.targets import IGNORED
from nima.workspace.errors import UserError

ROW = 8


@dataclass(frozen=True)
class Sourced(ListedDocuments):
    """Listed documents that know their sources."""

    names: list[str] = field(default_factory=list)

    @property
    def sources(self) -> np.ndarray:
        return np.array(self.names, dtype=np.str_)


def documents(**sizes: list[int]) -> Sourced:
    """Numbered documents of several sources, one source behind the other."""
    made = numbered([size for found in sizes.values() for size in found])
    return Sourced(made.contents, names=[name for name, found in sizes.items() for _ in found])


def mixed(
    tokens: Sourced,
    shares: Mapping[str, float],
    batching: Batching = "blocks",
    per_batch: int = 1,
    chosen: np.ndarray | None = None,
) -> TrainingBatches:
    return training_batches(
        tokens,
        np.arange(tokens.num_documents) if chosen is None else chosen,
        seed=3,
        batching=batching,
        mixture=shares,
        block_tokens=ROW,
        batch_tokens=ROW * per_batch,
        end_of_text=0,
    )


def mixture_of(batches: TrainingBatches) -> Mixture:
    assert isinstance(batches.order, Mixture)
    return batches.order


def tokens_by_source(tokens: Sourced, batches: TrainingBatches, steps: range) -> Counter[str]:
    owner = np.repeat(tokens.sources, tokens.lengths)
    seen: Counter[str] = Counter()
    for step in steps:
        targets = batches.batch(step).targets
        seen.update(owner[targets[targets != IGNORED]].tolist())
    return seen


# ----------------------------------------------------------------------------------------------- turns


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=9))
def test_after_any_number_of_units_no_source_is_a_whole_unit_from_its_share(parts: list[int]) -> None:
    sources, counts = turns(parts)
    shares = np.array(parts) / sum(parts)
    came = np.cumsum(sources[:, None] == np.arange(len(parts)), axis=0)
    assert np.abs(came - np.arange(1, len(sources) + 1)[:, None] * shares).max() < 1 - 1e-9
    assert came[-1].tolist() == parts
    assert counts.tolist() == [came[place, source] - 1 for place, source in enumerate(sources)]


def test_many_small_sources_do_not_crowd_out_a_large_one() -> None:
    sources, _ = turns([50, *[1] * 50])
    ahead = np.cumsum(sources == 0) - np.arange(1, 101) / 2
    assert np.abs(ahead).max() < 1


def test_turns_go_on_for_ever() -> None:
    mixture = mixture_of(mixed(documents(a=[80], b=[80], c=[80]), {"a": 0.5, "b": 0.3, "c": 0.2}))
    found: list[list[int]] = [[], [], []]
    for unit in range(1000):
        assert mixture.counts(unit) == [len(came) for came in found]
        source, turn = mixture.turn(unit)
        found[source].append(turn)
    assert found == [list(range(count)) for count in (500, 300, 200)]


@pytest.mark.parametrize(
    ("shares", "parts"),
    [
        ((0.7, 0.3), [7, 3]),
        ((0.1, 0.2, 0.7), [1, 2, 7]),
        ((3.0, 1.0), [3, 1]),
        ((1e-5, 1.0), [1, 100_000]),
        ((1.0,), [1]),
    ],
)
def test_shares_are_the_decimals_that_were_written(shares: tuple[float, ...], parts: list[int]) -> None:
    assert whole_parts([Fraction(str(share)) for share in shares], 100_001) == parts


def test_shares_of_too_many_digits_are_rounded_and_none_is_lost() -> None:
    parts = whole_parts([Fraction("0.123456789"), Fraction("0.876543210"), Fraction("0.000000001")], 1000)
    assert parts == [123, 877, 1]


# --------------------------------------------------------------------------------------------- sources


@pytest.mark.parametrize("batching", ["blocks", "packed", "padded"])
def test_sources_have_their_shares_of_tokens_whatever_their_sizes(batching: Batching) -> None:
    # Five tokens never pair in a row of eight: packed rows of `loose` are a third emptier than the others.
    tokens = documents(large=[8] * 300, loose=[5] * 30, small=[4] * 7)
    shares = {"large": 0.2, "loose": 0.5, "small": 0.3}
    seen = tokens_by_source(tokens, mixed(tokens, shares, batching), range(1000))
    for name, share in shares.items():
        assert seen[name] / seen.total() == pytest.approx(share, abs=0.003)


@pytest.mark.parametrize("batching", ["blocks", "packed", "padded"])
def test_each_source_has_epochs_of_its_own(batching: Batching) -> None:
    tokens = documents(a=[8] * 5, b=[8] * 3)
    batches = mixed(tokens, {"a": 0.5, "b": 0.5}, batching)
    starts: dict[str, list[int]] = {"a": [], "b": []}
    for step in range(60):
        [first, *_] = batches.batch(step).targets[0]
        starts["a" if first < 40 else "b"].append(int(first))
    for name, rows in (("a", 5), ("b", 3)):
        epochs = [starts[name][at : at + rows] for at in range(0, 30, rows)]
        assert all(len(set(epoch)) == rows for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 2
    assert batches.epochs_by_source(60) == {"a": 6.0, "b": 10.0}


def test_a_source_is_read_the_same_whatever_stands_beside_it() -> None:
    tokens, more = documents(a=[9] * 9, b=[7] * 9), documents(a=[9] * 9, b=[7] * 9, c=[8] * 9)

    def blocks_of_a(batches: TrainingBatches) -> list[list[int]]:
        found = [batches.batch(step).ids[0].tolist() for step in range(100)]
        return [ids for ids in found if max(ids) < 81][:20]

    assert blocks_of_a(mixed(tokens, {"a": 1, "b": 1})) == blocks_of_a(mixed(more, {"a": 2, "b": 3, "c": 4}))


def test_sources_of_equal_size_are_not_visited_in_step() -> None:
    tokens = documents(english=[8] * 50, french=[8] * 50)
    batches = mixed(tokens, {"english": 1, "french": 1}, "packed")
    firsts = [int(batches.batch(step).targets[0, 0]) for step in range(100)]
    same = sum(one % 400 == other % 400 for one, other in zip(firsts[::2], firsts[1::2], strict=True))
    assert same < 5


def test_shares_stand_in_the_place_of_weights() -> None:
    made = documents(a=[8] * 4, b=[8] * 4)
    heavy = Sourced(made.contents, None, [0.25] * 4 + [5.0] * 4, names=made.names)
    seen = Counter(mixed(heavy, {"a": 1, "b": 1}, "packed").batch(step).ids[0, 1].item() for step in range(8))
    assert set(seen.values()) == {1}


def test_the_documents_of_a_mixed_batch_are_named_by_their_numbers_in_the_split() -> None:
    tokens = documents(a=[8] * 4, b=[8] * 4)
    batches = mixed(tokens, {"a": 1, "b": 1}, "packed", per_batch=3)
    for step in range(10):
        owners = sorted(set((batches.batch(step).targets // 8).ravel().tolist()))
        assert batches.documents_of(step) == owners


def test_an_epoch_of_a_mixture_is_as_many_rows_as_its_sources_have() -> None:
    batches = mixed(documents(a=[8] * 4, b=[8] * 6), {"a": 3, "b": 1}, per_batch=5)
    assert steps_of(None, 3.0, batches) == 6
    assert batches.epochs(6) == 3.0
    assert batches.order.num_tokens == 80


def test_the_packing_efficiency_of_a_mixture_is_that_of_what_is_read() -> None:
    tokens = documents(full=[8] * 4, loose=[5] * 4)
    batches = mixed(tokens, {"full": 0.5, "loose": 0.5}, "packed")
    read = [batches.batch(step) for step in range(sum(mixture_of(batches).parts))]
    text, slots = sum(batch.num_tokens for batch in read), sum(batch.ids.size for batch in read)
    assert batches.packing_efficiency == pytest.approx(text / slots)


def test_a_far_unit_is_found_at_once() -> None:
    batches = mixed(documents(a=[50] * 9, b=[60] * 9), {"a": 0.123, "b": 0.877}, per_batch=8)
    started = time.perf_counter()
    batches.batch(1_000_000)
    assert time.perf_counter() - started < 0.5


# ---------------------------------------------------------------------------------------------- errors


def test_a_source_without_a_share_is_an_error_that_names_it() -> None:
    tokens = documents(wiki=[9], code=[9], notes=[9])
    with pytest.raises(UserError, match=r"^training\.mixture: no share for code, notes; give every source"):
        mixed(tokens, {"wiki": 1.0})


def test_a_share_of_0_leaves_a_source_out() -> None:
    tokens = documents(wiki=[9] * 3, code=[2])
    batches = mixed(tokens, {"wiki": 1.0, "code": 0.0})
    assert set(tokens_by_source(tokens, batches, range(30))) == {"wiki"}
    assert batches.epochs_by_source(3) == {"wiki": 1.0}


def test_a_share_of_a_source_that_is_not_there_is_an_error_that_names_what_is() -> None:
    tokens = documents(wiki=[9], code=[9])
    with pytest.raises(UserError, match=r"^training\.mixture\.wkii: .* no document .*; known: code, wiki$"):
        mixed(tokens, {"wiki": 1.0, "code": 1.0, "wkii": 1.0})
    with pytest.raises(UserError, match=r"^training\.mixture\.code: .*; known: wiki$"):
        mixed(tokens, {"wiki": 1.0, "code": 1.0}, chosen=np.array([0]))


def test_a_source_that_fills_no_block_is_named() -> None:
    with pytest.raises(UserError, match=r"but source code of the training part has only 7; shorten"):
        mixed(documents(wiki=[9], code=[7]), {"wiki": 1.0, "code": 1.0})
