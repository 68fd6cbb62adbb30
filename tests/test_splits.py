from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nima.corpus.document import Document, Message
from nima.dataset import splits
from nima.dataset.splits import (
    SPLITS,
    SplitTexts,
    TrainingTexts,
    assign,
    check_no_conflict,
    check_no_empty,
    check_no_overlap,
    conflicts,
    ratios_of,
    split_of,
    without,
)
from nima.dataset.tokens import Tokens
from nima.encoding.conversation import TokenizedDocument
from nima.encoding.token_writer import TokenWriter
from nima.workspace.errors import UserError
from nima.workspace.params import params_file

ROOT = Path(__file__).parent.parent
EIGHTY = (0.8, 0.1, 0.1)
GROUPS = [f"{number:016x}" for number in range(20_000)]

groups = st.lists(st.text("0123456789abcdef", min_size=16, max_size=16), unique=True, max_size=60)
seeds = st.integers(0, 2**63)


@st.composite
def ratios(draw: st.DrawFn) -> tuple[float, float, float]:
    shares = draw(st.tuples(*[st.integers(0, 100)] * 3))
    assume(sum(shares))
    first, second, third = (share / sum(shares) for share in shares)
    return first, second, third


def membership(names: list[str], seed: int, shares: tuple[float, float, float]) -> dict[str, str]:
    assignment = assign(names, seed, shares)
    return {names[index]: name for name, indices in assignment.items() for index in indices}


# -------------------------------------------------------------------------------- nobody moves another


@given(groups, groups, seeds, ratios())
@settings(deadline=None)
def test_adding_documents_moves_none(
    before: list[str], added: list[str], seed: int, shares: tuple[float, float, float]
) -> None:
    old = membership(before, seed, shares)
    new = membership(before + [group for group in added if group not in before], seed, shares)
    assert {group: new[group] for group in before} == old


@given(groups, seeds, ratios(), st.data())
@settings(deadline=None)
def test_removing_and_reordering_documents_moves_none(
    before: list[str], seed: int, shares: tuple[float, float, float], data: st.DataObject
) -> None:
    kept = data.draw(st.permutations(before))[: data.draw(st.integers(0, len(before)))]
    old = membership(before, seed, shares)
    assert membership(kept, seed, shares) == {group: old[group] for group in kept}


@given(groups, seeds, ratios())
@settings(deadline=None)
def test_every_document_is_in_exactly_one_split_in_ascending_order(
    names: list[str], seed: int, shares: tuple[float, float, float]
) -> None:
    assignment = assign(names, seed, shares)
    assert list(assignment) == list(SPLITS)
    assert sorted(np.concatenate(list(assignment.values())).tolist()) == list(range(len(names)))
    for name, share in zip(SPLITS, shares, strict=True):
        assert assignment[name].dtype == np.int64
        assert (np.diff(assignment[name]) > 0).all()
        assert share > 0 or not len(assignment[name])


def test_documents_of_a_group_stay_together() -> None:
    assignment = assign([GROUPS[index // 5] for index in range(500)], 0, EIGHTY)
    for indices in assignment.values():
        assert set(Counter(index // 5 for index in indices.tolist()).values()) <= {5}


def test_a_smaller_training_share_moves_documents_out_of_training_only() -> None:
    for group in GROUPS[:5000]:
        before, after = split_of(group, 0, EIGHTY), split_of(group, 0, (0.7, 0.2, 0.1))
        place = splits.position(group, 0)
        assert (before != after) == (0.7 <= place < 0.8)
        if before != after:
            assert (before, after) == ("train", "validation")


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_shares_are_those_asked_for_within_chance(seed: int) -> None:
    for shares in (EIGHTY, (0.5, 0.25, 0.25), (0.98, 0.01, 0.01)):
        assignment = assign(GROUPS, seed, shares)
        for name, share in zip(SPLITS, shares, strict=True):
            spread = (len(GROUPS) * share * (1 - share)) ** 0.5
            assert abs(len(assignment[name]) - len(GROUPS) * share) < 5 * spread


def test_another_seed_draws_independently() -> None:
    test = [set(assign(GROUPS, seed, EIGHTY)["test"].tolist()) for seed in (0, 1)]
    expected = len(GROUPS) / 100
    assert abs(len(test[0] & test[1]) - expected) < 5 * expected**0.5


def test_the_hash_is_what_it_was() -> None:
    """Splits of published runs must not move: these values are a promise."""
    assert splits.position("0123456789abcdef", 0) == 0.8887663798617874
    assert [split_of(group, 7, EIGHTY) for group in ("a", "b", "c", "d")] == [
        "train",
        "test",
        "train",
        "train",
    ]


def test_shares_that_add_to_a_little_less_than_one_leave_nobody_out() -> None:
    shares = (0.1, 0.2, 0.7 - 1e-9)
    assert {split_of(group, 0, shares) for group in GROUPS} == set(SPLITS)
    assert split_of("x", 0, (0.0, 1.0 - 1e-9, 0.0)) == "validation"


def test_a_group_at_the_very_edge_is_behind_it() -> None:
    place = splits.position("x", 0)
    shares = (place, 0.0, 1 - place)
    assert split_of("x", 0, shares) == "test"
    assert assign(["x"], 0, shares)["test"].tolist() == [0]


def test_groups_may_come_as_texts_or_as_bytes() -> None:
    assert_equal = np.testing.assert_equal
    assert_equal(assign(np.array(GROUPS[:99], "S16"), 3, EIGHTY), assign(GROUPS[:99], 3, EIGHTY))
    assert_equal(assign(np.array(GROUPS[:99]), 3, EIGHTY), assign(GROUPS[:99], 3, EIGHTY))
    assert assign([], 0, EIGHTY)["train"].tolist() == []


# --------------------------------------------------------------------- shares of sources, declared splits

OWN = {"books": (0.0, 0.5, 0.5), "talks": (1.0, 0.0, 0.0)}
members = st.lists(
    st.tuples(
        st.sampled_from("abcdefgh"),
        st.sampled_from(["books", "talks", "web"]),
        st.sampled_from(["", *SPLITS]),
    ),
    max_size=40,
)
Member = tuple[str, str, str]


def splits_with(documents: list[Member], seed: int = 0) -> list[str]:
    """The split of each document, given its group, its source and what that declares."""
    names, sources, declared = zip(*documents, strict=True) if documents else ((), (), ())
    assignment = assign(names, seed, EIGHTY, sources=sources, source_ratios=OWN, declared=declared)
    assert sorted(np.concatenate(list(assignment.values())).tolist()) == list(range(len(documents)))
    return [
        next(name for name in SPLITS if index in assignment[name].tolist()) for index in range(len(documents))
    ]


@given(members, st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_a_document_is_where_its_group_and_its_declaration_put_it(documents: list[Member], seed: int) -> None:
    """The rule, said once more in plain loops."""
    found = splits_with(documents, seed)
    for (group, _, wanted), split in zip(documents, found, strict=True):
        siblings = [member for member in documents if member[0] == group]
        declared = {member[2] for member in siblings} - {""}
        by_share = split_of(group, seed, OWN.get(siblings[0][1], EIGHTY))
        assert split == (wanted or next((name for name in reversed(SPLITS) if name in declared), by_share))


@given(members, members)
@settings(deadline=None, max_examples=60)
def test_documents_added_behind_move_only_those_whose_group_gets_a_declaration(
    documents: list[Member], added: list[Member]
) -> None:
    before, after = splits_with(documents), splits_with(documents + added)
    declared = {group for group, _, wanted in added if wanted}
    for (group, _, wanted), old, new in zip(documents, before, after, strict=False):
        assert new == old or (group in declared and not wanted)


@given(members, members)
@settings(deadline=None, max_examples=60)
def test_documents_added_anywhere_move_none_of_other_groups(
    documents: list[Member], added: list[Member]
) -> None:
    others = [(group.upper(), source, wanted) for group, source, wanted in added]
    assert splits_with(others + documents)[len(others) :] == splits_with(documents)


@given(members)
@settings(deadline=None, max_examples=40)
def test_without_new_options_nothing_changes(documents: list[Member]) -> None:
    names, sources, _ = zip(*documents, strict=True) if documents else ((), (), ())
    plain = assign(names, 5, EIGHTY)
    nothing = assign(names, 5, EIGHTY, sources=sources, source_ratios={}, declared=[""] * len(names))
    np.testing.assert_equal(nothing, plain)
    assert {name: indices.dtype for name, indices in plain.items()} == dict.fromkeys(SPLITS, np.int64)


def test_a_source_has_its_own_shares() -> None:
    sources = ["books", "web"] * 10_000
    assignment = assign(GROUPS, 0, EIGHTY, sources=np.array(sources), source_ratios=OWN)
    counts = {
        name: Counter(sources[index] for index in indices.tolist()) for name, indices in assignment.items()
    }
    assert counts["train"]["books"] == 0
    assert 4800 < counts["test"]["books"] < 5200
    assert 900 < counts["test"]["web"] < 1100


def test_documents_that_declare_nothing_are_where_their_groups_alone_put_them() -> None:
    groups = [f"{n % 70:016x}" for n in range(100)]
    nothing, sources = [""] * 100, ["a", "b"] * 50
    found = [
        assign(groups, 3, (0.5, 0.3, 0.2)),
        assign(groups, 3, (0.5, 0.3, 0.2), declared=nothing),
        assign(groups, 3, (0.5, 0.3, 0.2), declared=nothing, sources=sources, source_ratios={"c": (1, 0, 0)}),
    ]
    assert all(np.array_equal(found[0][name], other[name]) for other in found for name in found[0])
    assert min(map(len, found[0].values())) > 0


def test_an_unknown_declared_split_is_named() -> None:
    with pytest.raises(UserError, match="declares the split 'dev', which is none of train, validation, test"):
        assign(["a"], 0, EIGHTY, declared=["dev"])


def test_a_group_declared_twice_is_a_conflict_that_names_both_documents() -> None:
    names = ["a", "b", "a", "c", "a", "c", "b", "d"]
    declared = ["train", "train", "test", "validation", "test", "test", "", "train"]
    assert conflicts(names, declared).tolist() == [[0, 2], [3, 5]]
    assert conflicts([], []).tolist() == []
    assignment = assign(names, 0, EIGHTY, declared=declared)
    assert assignment["train"].tolist() == [0, 1, 6, 7]
    kept = without(assignment, conflicts(names, declared)[:, 0])
    assert {name: indices.tolist() for name, indices in kept.items()} == {
        "train": [1, 6, 7],
        "validation": [],
        "test": [2, 4, 5],
    }


def test_shares_come_from_params() -> None:
    split = params_file.load(ROOT / "params.yaml").split
    assert ratios_of(split) == (split.train, split.validation, split.test)


# ----------------------------------------------------------------------------------------- the gates


def tokens_of(
    folder: Path, documents: list[tuple[str, list[int]]], declared: dict[int, str] | None = None
) -> Tokens:
    with TokenWriter(folder, 300, 1000) as writer:
        for number, (group, ids) in enumerate(documents):
            spans = np.array([[0, len(ids)]])
            token_ids = np.array(ids, dtype=np.uint32)
            source = f"source-{number % 2}"
            writer.write(
                TokenizedDocument(
                    f"id-{number}",
                    source,
                    group,
                    1.0,
                    token_ids,
                    spans,
                    2 * len(ids),
                    (declared or {}).get(number, ""),
                )
            )
    return Tokens.open(folder)


HALVES = {"train": np.array([0, 1]), "validation": np.array([2]), "test": np.array([3])}


def test_different_texts_pass_the_overlap_gate(tmp_path: Path) -> None:
    tokens = tokens_of(tmp_path / "tokens", [("a", [4, 5]), ("b", [4, 5]), ("c", [4]), ("d", [5, 4])])
    check_no_overlap(tokens, HALVES)


@pytest.mark.parametrize(
    "documents",
    [
        [("a", [4, 5]), ("b", [6]), ("c", [7]), ("d", [4, 5])],
        [("a", [4, 5]), ("b", [6]), ("c", [7]), ("a", [8])],
    ],
)
def test_equal_texts_or_groups_in_two_splits_are_named(
    tmp_path: Path, documents: list[tuple[str, list[int]]]
) -> None:
    tokens = tokens_of(tmp_path / "tokens", documents)
    with pytest.raises(
        UserError, match="document id-0 of source-0 in train and document id-3 of source-1 in test"
    ):
        check_no_overlap(tokens, HALVES)


def test_declared_conflicts_are_let_through_or_named(tmp_path: Path) -> None:
    documents = [("a", [4, 5]), ("b", [6]), ("c", [7]), ("a", [4, 5])]
    tokens = tokens_of(tmp_path / "tokens", documents, {0: "train", 3: "test"})
    found = conflicts(tokens.groups, tokens.splits)
    check_no_overlap(tokens, HALVES, known=found[:, 0])
    check_no_overlap(tokens, without(HALVES, found[:, 0]))
    with pytest.raises(
        UserError,
        match=r"1 documents are declared .* first document id-0 of source-0 in train, with document id-3 of "
        "source-1 in test; take",
    ):
        check_no_conflict(tokens, found)
    check_no_conflict(tokens, found[:0])


def test_an_empty_split_is_named_with_what_to_do() -> None:
    with pytest.raises(
        UserError, match=r"split\.test = 0\.1: no document of 3 falls there; add documents, raise"
    ):
        check_no_empty({"train": np.arange(2), "validation": np.array([2]), "test": np.array([])}, EIGHTY)


def test_a_split_of_share_zero_may_be_empty() -> None:
    check_no_empty(
        {"train": np.arange(2), "validation": np.array([2]), "test": np.array([])}, (0.8, 0.2, 0.0)
    )


def test_a_split_of_share_zero_may_hold_declared_documents() -> None:
    shares = (1.0, 0.0, 0.0)
    assignment = assign(["a", "b", "c"], 0, shares, declared=["", "validation", "test"])
    assert [assignment[name].tolist() for name in SPLITS] == [[0], [1], [2]]
    check_no_empty(assignment, shares)


def test_only_shares_that_a_source_goes_by_need_documents() -> None:
    sources, own = ["books", "talks"], {"books": (1.0, 0.0, 0.0), "talks": (0.5, 0.5, 0.0)}
    some = {"train": np.array([0]), "validation": np.array([1]), "test": np.array([])}
    check_no_empty(some, EIGHTY, sources=sources, source_ratios=own)
    with pytest.raises(UserError, match=r"split\.test = 0\.1: no document of 2"):
        check_no_empty(some, EIGHTY, sources=[*sources, "web"], source_ratios=own)
    none = some | {"validation": np.array([])}
    with pytest.raises(UserError, match=r"split\.sources\.talks\.validation = 0\.5: no document of 1"):
        check_no_empty(none, EIGHTY, sources=sources, source_ratios=own)


# ------------------------------------------------------------------------------------------ the folder


def test_splits_come_back_as_they_were_saved(tmp_path: Path) -> None:
    splits.save(tmp_path / "splits", HALVES)
    (tmp_path / "splits" / "old.npy").write_bytes(b"old")
    splits.save(tmp_path / "splits", HALVES)
    loaded = splits.load(tmp_path / "splits")
    assert {name: indices.tolist() for name, indices in loaded.items()} == {
        "train": [0, 1],
        "validation": [2],
        "test": [3],
    }
    assert sorted(path.name for path in (tmp_path / "splits").iterdir()) == [
        "test.npy",
        "train.npy",
        "validation.npy",
    ]


@pytest.mark.parametrize(
    "content",
    [None, b"", b"\x93NUMPY", b"text", np.array([1.5]), np.array([[1]]), np.array([2, 1]), np.array([-1, 3])],
)
def test_a_missing_or_broken_split_is_named(tmp_path: Path, content: bytes | np.ndarray | None) -> None:
    splits.save(tmp_path, HALVES)
    path = tmp_path / "validation.npy"
    path.unlink()
    if isinstance(content, np.ndarray):
        np.save(path, content)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"validation\.npy: broken: .*run the stage split again") as raised:
        splits.load(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_split_that_holds_pickled_objects_is_refused(tmp_path: Path) -> None:
    splits.save(tmp_path, HALVES)
    np.save(tmp_path / "train.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"train\.npy: broken"):
        splits.load(tmp_path)


# ----------------------------------------------------------------------------- text for the tokenizer


def document(number: int, source: str = "a", text: str | None = None) -> Document:
    text = f"text {number:05d}" if text is None else text
    return Document(f"{number:016x}", source, f"{number}", f"{number:016x}", 1.0, "", text, None)


DOCUMENTS = [document(number, "early" if number < 1000 else "late") for number in range(2000)]


def test_the_tokenizer_learns_from_all_training_text_if_it_fits() -> None:
    texts = TrainingTexts(lambda: DOCUMENTS, 0, EIGHTY, 10**6)
    expected = [one.text for one in DOCUMENTS if split_of(one.group, 0, EIGHTY) == "train"]
    assert list(texts) == list(texts) == expected
    assert texts.counts() == {"documents": len(expected), "bytes": 10 * len(expected)}


@pytest.mark.parametrize("max_bytes", [10, 999, 4000, 12_000])
def test_more_training_text_is_thinned_evenly(max_bytes: int) -> None:
    texts = TrainingTexts(lambda: DOCUMENTS, 0, EIGHTY, max_bytes)
    chosen = list(texts)
    assert sum(map(len, chosen)) == texts.num_bytes <= max_bytes
    if max_bytes >= 4000:
        assert texts.num_bytes > 0.85 * max_bytes
        late = sum(text >= "text 01000" for text in chosen)
        assert 0.35 < late / len(chosen) < 0.6


def test_messages_are_text_too_and_markup_is_not() -> None:
    talk = Document(
        "f" * 16, "c", "k", "f" * 16, 1.0, "", "", (Message("user", "Why?"), Message("assistant", "So."))
    )
    assert list(TrainingTexts(lambda: [talk], 0, (1.0, 0.0, 0.0), 100)) == ["Why?", "So."]


def test_an_empty_training_part_is_an_error_with_a_way_out() -> None:
    with pytest.raises(
        UserError, match=r"none of 2 documents falls into the training part; .*raise split\.train"
    ):
        TrainingTexts(lambda: DOCUMENTS[:2], 0, (0.0, 0.5, 0.5), 100)


def test_text_by_split_follows_declarations_and_shares_of_sources() -> None:
    documents = [
        replace(one, source="talks" if number % 3 else "web", split="test" if number % 7 == 0 else "")
        for number, one in enumerate(DOCUMENTS[:200])
    ]
    expected = assign(
        [one.group for one in documents],
        0,
        EIGHTY,
        sources=[one.source for one in documents],
        source_ratios=OWN,
        declared=[one.split for one in documents],
    )
    texts = SplitTexts(lambda: documents, 0, EIGHTY, OWN)
    for name, indices in expected.items():
        assert list(texts.texts(name)) == [documents[index].text for index in indices.tolist()]
        assert texts.num_bytes[name] == 10 * len(indices)
    learnt = TrainingTexts(lambda: documents, 0, EIGHTY, 10**6, OWN)
    assert list(learnt) == [documents[index].text for index in expected["train"].tolist()]
    assert list(learnt.split.texts("validation")) == list(texts.texts("validation"))


def test_many_documents_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = SplitTexts(lambda: iter(DOCUMENTS), 0, EIGHTY)
    monkeypatch.setattr(splits, "ROWS_AT_ONCE", 300)
    parts = SplitTexts(lambda: iter(DOCUMENTS), 0, EIGHTY)
    assert parts.numbers.tolist() == whole.numbers.tolist()
    assert parts.num_bytes == whole.num_bytes
