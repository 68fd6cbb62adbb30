"""Who is in which split: a pure function of a document's group, and of what its sources say of the group.

A group lies at a place between 0 and 1 that only its name and the seed decide, so no group moves another.
Where the shares cut is up to the source of the group's first document; a source may also declare the split
of its documents, and the rest of their groups follows.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nima.dataset.tokens import Tokens
from nima.workspace.errors import UserError
from nima.workspace.outputs import remove, writing_to

if TYPE_CHECKING:
    from nima.corpus.document import Document
    from nima.workspace.params.data import RatiosParams

SPLITS = ("train", "validation", "test")
"""Of a group's declared splits the last one here decides: test is never learnt from."""

BY_SHARE = NOWHERE = -1
"""In place of a split's number: none is declared, none holds the document."""

Ratios = tuple[float, float, float]
"""Shares of train, validation and test; they add to 1."""
Texts = Sequence[str] | np.ndarray
"""One text a document."""

ROWS_AT_ONCE = 65_536


def ratios_of(settings: RatiosParams) -> Ratios:
    return settings.train, settings.validation, settings.test


def position(group: str, seed: int) -> float:
    """Where a group lies between 0 and 1, evenly spread over groups and other for each seed."""
    digest = hashlib.sha256(f"{seed}\0{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_of(group: str, seed: int, ratios: Ratios) -> str:
    """The split of all documents of a group: "train", "validation" or "test"."""
    place, edge = position(group, seed), 0.0
    used = [(name, ratio) for name, ratio in zip(SPLITS, ratios, strict=True) if ratio > 0]
    for name, ratio in used:
        edge += ratio
        if place < edge:
            return name
    # The shares may add to a little less than 1 when rounded.
    return used[-1][0]


def numbers_of(groups: np.ndarray, seed: int, ratios: Ratios) -> np.ndarray:
    """`split_of` of many groups, given as bytes: int8, numbers in `SPLITS`."""
    salt, sha256 = f"{seed}\0".encode(), hashlib.sha256
    used = [number for number, ratio in enumerate(ratios) if ratio > 0]
    edges = list(accumulate(ratios[number] for number in used))
    numbers = np.empty(len(groups), np.int8)
    for start in range(0, len(groups), ROWS_AT_ONCE):
        some = groups[start : start + ROWS_AT_ONCE].tolist()
        heads = b"".join([sha256(salt + group).digest()[:8] for group in some])
        places = np.frombuffer(heads, ">u8").astype(np.float64) / 2.0**64
        found = np.searchsorted(edges, places, side="right")
        numbers[start : start + len(some)] = np.array([*used, used[-1]])[found]
    return numbers


def assign(
    groups: Texts,
    seed: int,
    ratios: Ratios,
    *,
    sources: Texts | None = None,
    source_ratios: Mapping[str, Ratios] | None = None,
    declared: Texts | None = None,
) -> dict[str, np.ndarray]:
    """The documents of each split, as ascending int64 indices into `groups`.

    `source_ratios` holds the shares of sources that have their own; those of a group are its first
    document's. `declared` is the split that each document's source declares, "" for none.
    """
    special = source_ratios or {}
    wanted = None if declared is None else declared_numbers(declared)
    if not special and (wanted is None or (wanted == BY_SHARE).all()):
        # The group alone decides: there is no need to know which documents share one.
        return by_name(numbers_of(packed(groups), seed, ratios))
    names, first, members = np.unique(packed(groups), return_index=True, return_inverse=True)
    shares = (ratios if sources is None else special.get(sources[index], ratios) for index in first)
    by_share = (
        SPLITS.index(split_of(name.decode(), seed, own)) for name, own in zip(names, shares, strict=True)
    )
    numbers = np.fromiter(by_share, np.int8, len(names))
    if wanted is None:
        return by_name(numbers[members])
    decided = decided_numbers(members, wanted)
    numbers = np.where(decided == BY_SHARE, numbers, decided)
    return by_name(np.where(wanted == BY_SHARE, numbers[members], wanted))


def by_name(numbers: np.ndarray) -> dict[str, np.ndarray]:
    return {name: np.flatnonzero(numbers == number) for number, name in enumerate(SPLITS)}


def numbered(assignment: Mapping[str, np.ndarray], num_documents: int) -> np.ndarray:
    """int8[num_documents]: the place in `SPLITS` of each document's split, or `NOWHERE`."""
    numbers = np.full(num_documents, NOWHERE, np.int8)
    for number, name in enumerate(SPLITS):
        numbers[assignment[name]] = number
    return numbers


def packed(groups: Texts) -> np.ndarray:
    """Groups as an array of bytes: 16 a document, where a list of texts takes 70."""
    return groups if isinstance(groups, np.ndarray) and groups.dtype.kind == "S" else np.array(groups, "S")


def declared_numbers(declared: Texts) -> np.ndarray:
    """int8[num_documents]: places in `SPLITS`, or `BY_SHARE`. Raises `UserError` at an unknown name."""
    known = {"": BY_SHARE} | {name: number for number, name in enumerate(SPLITS)}
    try:
        return np.fromiter((known[name] for name in declared), np.int8, len(declared))
    except KeyError as error:
        raise UserError(
            f"a document declares the split {error.args[0]!r}, which is none of {', '.join(SPLITS)}"
        ) from None


def decided_numbers(members: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """int8[num_groups]: the last declared split of each group; `members` are the groups of documents."""
    decided = np.full(int(members.max(initial=-1)) + 1, BY_SHARE, np.int8)
    np.maximum.at(decided, members, wanted)
    return decided


def conflicts(groups: Texts, declared: Texts) -> np.ndarray:
    """int64[num_conflicts, 2]: documents, ascending, that are declared for one split while a document of
    their group is declared for a later one of `SPLITS`; and the first such document of the group.
    """
    _, members = np.unique(packed(groups), return_inverse=True)
    wanted = declared_numbers(declared)
    decided = decided_numbers(members, wanted)[members]
    deciding = np.flatnonzero((wanted != BY_SHARE) & (wanted == decided))
    first = np.full(len(members), len(members), np.int64)
    np.minimum.at(first, members[deciding], deciding)
    beaten = np.flatnonzero((wanted != BY_SHARE) & (wanted < decided))
    return np.stack([beaten, first[members[beaten]]], axis=1)


def without(assignment: Mapping[str, np.ndarray], documents: np.ndarray) -> dict[str, np.ndarray]:
    """The assignment with these documents in no split."""
    return {name: np.setdiff1d(indices, documents) for name, indices in assignment.items()}


# ------------------------------------------------------------------------------------------- the gates


def check_no_empty(
    assignment: Mapping[str, np.ndarray],
    ratios: Ratios,
    *,
    sources: Texts | None = None,
    source_ratios: Mapping[str, Ratios] | None = None,
) -> None:
    """Raises `UserError` when a split that should have documents has none.

    A split of share 0 needs none; it may still hold those that are declared for it.
    """
    num_documents = sum(map(len, assignment.values()))
    for key, shares in shares_in_use(ratios, sources, source_ratios or {}):
        for name, ratio in zip(SPLITS, shares, strict=True):
            if ratio > 0 and not len(assignment[name]):
                raise UserError(
                    f"{key}.{name} = {ratio:g}: no document of {num_documents} falls there; add documents, "
                    "raise this share or choose another split.seed"
                )


def shares_in_use(
    ratios: Ratios, sources: Texts | None, source_ratios: Mapping[str, Ratios]
) -> list[tuple[str, Ratios]]:
    """The shares that some source goes by, with their keys in params.yaml."""
    names = sorted(set(sources)) if sources is not None else []
    own = [(f"split.sources.{name}", source_ratios[name]) for name in names if name in source_ratios]
    return own if names and len(own) == len(names) else [("split", ratios), *own]


def check_no_overlap(tokens: Tokens, assignment: Mapping[str, np.ndarray], known: Iterable[int] = ()) -> None:
    """Raises `UserError` naming two documents of equal group or equal tokens in different splits.

    `known` documents are not looked at: their sources declare what was reported as a conflict.
    """
    numbers = numbered(assignment, tokens.num_documents)
    numbers[np.fromiter(known, np.int64)] = NOWHERE
    documents = np.flatnonzero(numbers != NOWHERE)
    contents = (content_hash(tokens.document(index)) for index in documents.tolist())
    for identities in (packed(tokens.groups)[documents], np.fromiter(contents, np.uint64, len(documents))):
        places = np.argsort(identities, kind="stable")
        order, equal = documents[places], identities[places[1:]] == identities[places[:-1]]
        clash = np.flatnonzero(equal & (numbers[order[1:]] != numbers[order[:-1]]))
        if len(clash):
            one, other = (named(tokens, int(i), SPLITS[numbers[i]]) for i in order[clash[0] : clash[0] + 2])
            raise UserError(
                f"{one} and {other} are the same text; prepare.duplicates.exact keeps one of them"
            )


def check_no_conflict(tokens: Tokens, found: np.ndarray) -> None:
    """Raises `UserError` with the number of `conflicts` and the first of them."""
    if len(found):
        one, other = (named(tokens, index, tokens.splits[index]) for index in found[0].tolist())
        raise UserError(
            f"{len(found)} documents are declared for one split, their groups for another: first {one}, with "
            f"{other}; take them out of the sources, or set split.leakage.action to drop"
        )


def named(tokens: Tokens, index: int, split: str) -> str:
    return f"document {tokens.ids[index]} of {tokens.sources[index]} in {split}"


def content_hash(ids: np.ndarray) -> int:
    """64 bits: two of four million different texts agree with a probability of one in two million."""
    return int.from_bytes(hashlib.sha256(ids.tobytes()).digest()[:8], "little")


# ------------------------------------------------------------------------------------------ the folder


def save(folder: Path, assignment: Mapping[str, np.ndarray]) -> None:
    """Rewrites `folder` with one SPLIT.npy for each split. Raises `UserError` if it cannot write."""
    with writing_to(folder):
        remove(folder)
        folder.mkdir(parents=True)
        for name in SPLITS:
            np.save(folder / f"{name}.npy", assignment[name].astype("<i8"), allow_pickle=False)


def load(folder: Path) -> dict[str, np.ndarray]:
    """The documents of each split, as ascending int64 indices. Raises `UserError` naming a broken file."""
    return {name: read_indices(folder / f"{name}.npy") for name in SPLITS}


def read_indices(path: Path) -> np.ndarray:
    try:
        indices = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: broken: {str(error).splitlines()[0]}; run the stage split again") from error
    if not isinstance(indices, np.ndarray) or indices.dtype != np.int64 or indices.ndim != 1:
        raise UserError(f"{path}: broken: expected one list of whole numbers; run the stage split again")
    if len(indices) and (indices[0] < 0 or (np.diff(indices) <= 0).any()):
        raise UserError(f"{path}: broken: its numbers do not ascend from 0; run the stage split again")
    return indices


# ------------------------------------------------------------------ text by split, before there are tokens


def texts_in(documents: Iterable[Document], name: str, seed: int, ratios: Ratios) -> Iterator[str]:
    """What a person wrote in the documents of one split."""
    for document in documents:
        if split_of(document.group, seed, ratios) == name:
            yield from document.plain_texts()


class SplitTexts:
    """What a person wrote, by split. The documents are read once more to learn which are where."""

    def __init__(
        self,
        read: Callable[[], Iterable[Document]],
        seed: int,
        ratios: Ratios,
        source_ratios: Mapping[str, Ratios] | None = None,
    ) -> None:
        self.read = read
        known = columns(read())
        assignment = assign(
            known.groups,
            seed,
            ratios,
            sources=known.sources,
            source_ratios=source_ratios,
            declared=known.declared,
        )
        self.numbers = numbered(assignment, len(known.groups))
        """int8[num_documents]: places in `SPLITS`."""
        self.num_bytes = {name: int(known.sizes[indices].sum()) for name, indices in assignment.items()}
        """UTF-8 bytes of what a person wrote, by split."""

    def documents(self, name: str) -> Iterator[Document]:
        number = SPLITS.index(name)
        for document, own in zip(self.read(), self.numbers, strict=True):
            if own == number:
                yield document

    def texts(self, name: str) -> Iterator[str]:
        for document in self.documents(name):
            yield from document.plain_texts()


@dataclass(frozen=True)
class Columns:
    """What decides over documents, one entry each: 40 bytes."""

    groups: np.ndarray
    sources: np.ndarray
    declared: np.ndarray
    sizes: np.ndarray
    """int64: UTF-8 bytes of what a person wrote."""


def columns(documents: Iterable[Document]) -> Columns:
    rows = ((one.group, sys.intern(one.source), sys.intern(one.split), said_bytes(one)) for one in documents)
    kinds = ("S", "O", "O", "i8")
    parts = [[np.zeros(0, kind) for kind in kinds]]
    while batch := list(islice(rows, ROWS_AT_ONCE)):
        parts.append(
            [np.array(column, kind) for column, kind in zip(zip(*batch, strict=True), kinds, strict=True)]
        )
    return Columns(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def said_bytes(document: Document) -> int:
    return sum(len(text.encode()) for text in document.plain_texts())


class TrainingTexts:
    """The training part's text for the tokenizer, up to `max_bytes` of it.

    A training part beyond that is thinned evenly, by a hash of each document's group, so that late sources
    count as much as early ones. The same documents give the same texts. Raises `UserError` when the
    training part has no text.
    """

    def __init__(
        self,
        read: Callable[[], Iterable[Document]],
        seed: int,
        ratios: Ratios,
        max_bytes: int,
        source_ratios: Mapping[str, Ratios] | None = None,
    ) -> None:
        self.split = SplitTexts(read, seed, ratios, source_ratios)
        self.seed, self.max_bytes = seed, max_bytes
        self.num_documents = self.num_bytes = 0
        self.available_bytes = self.split.num_bytes["train"]
        if not self.available_bytes:
            raise UserError(
                f"the tokenizer has no text to learn from: none of {len(self.split.numbers)} documents falls "
                "into the training part; add documents or raise split.train"
            )

    def __iter__(self) -> Iterator[str]:
        self.num_documents = self.num_bytes = 0
        share = self.max_bytes / self.available_bytes
        for document in self.split.documents("train"):
            if share < 1 and position(f"{document.group}\0tokenizer", self.seed) >= share:
                continue
            texts = list(document.plain_texts())
            num_bytes = sum(len(text.encode()) for text in texts)
            if self.num_bytes + num_bytes <= self.max_bytes:
                self.num_documents += 1
                self.num_bytes += num_bytes
                yield from texts

    def counts(self) -> dict[str, int]:
        """Documents and UTF-8 bytes of the last iteration."""
        return {"documents": self.num_documents, "bytes": self.num_bytes}
