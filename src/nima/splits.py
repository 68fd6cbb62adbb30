"""Who is in which split: a pure function of the document's group, so that no document moves another."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nima.conversation import plain_texts
from nima.errors import UserError
from nima.outputs import remove, writing_to
from nima.tokens import Tokens

if TYPE_CHECKING:
    from nima.corpus.document import Document

SPLITS = ("train", "validation", "test")

Ratios = tuple[float, float, float]
"""Shares of train, validation and test; they add to 1."""


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


def assign(groups: Sequence[str], seed: int, ratios: Ratios) -> dict[str, np.ndarray]:
    """The documents of each split, as ascending int64 indices into `groups`."""
    names = np.array([split_of(group, seed, ratios) for group in groups], dtype=np.str_)
    return {name: np.flatnonzero(names == name).astype(np.int64) for name in SPLITS}


# ------------------------------------------------------------------------------------------- the gates


def check_no_empty(assignment: Mapping[str, np.ndarray], ratios: Ratios) -> None:
    """Raises `UserError` when a split that should have documents has none."""
    num_documents = sum(map(len, assignment.values()))
    for name, ratio in zip(SPLITS, ratios, strict=True):
        if ratio > 0 and not len(assignment[name]):
            raise UserError(
                f"split.{name} = {ratio:g}: no document of {num_documents} falls there; add documents, "
                "raise this share or choose another split.seed"
            )


def check_no_overlap(tokens: Tokens, assignment: Mapping[str, np.ndarray]) -> None:
    """Raises `UserError` naming two documents of equal group or equal tokens in different splits."""
    seen: dict[bytes, tuple[str, int]] = {}
    for name, documents in assignment.items():
        for index in map(int, documents):
            for identity in (tokens.groups[index].encode(), content_hash(tokens.document(index))):
                other_name, other = seen.setdefault(identity, (name, index))
                if other_name != name:
                    pair = f"{named(tokens, other, other_name)} and {named(tokens, index, name)}"
                    raise UserError(
                        f"{pair} are the same text; prepare.duplicates.exact keeps one of them"
                    )


def named(tokens: Tokens, index: int, split: str) -> str:
    return f"document {tokens.ids[index]} of {tokens.sources[index]} in {split}"


def content_hash(ids: np.ndarray) -> bytes:
    return hashlib.sha256(ids.tobytes()).digest()


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
            yield from plain_texts(document)


class TrainingTexts:
    """The training part's text for the tokenizer, up to `max_bytes` of it.

    A training part beyond that is thinned evenly, by a hash of each document's group, so that late sources
    count as much as early ones. The same documents give the same texts. Raises `UserError` when the
    training part has no text.
    """

    def __init__(
        self, read: Callable[[], Iterable[Document]], seed: int, ratios: Ratios, max_bytes: int
    ) -> None:
        self.read, self.seed, self.ratios, self.max_bytes = read, seed, ratios, max_bytes
        self.num_documents = self.num_bytes = 0
        self.available_bytes = sum(len(text.encode()) for text in texts_in(read(), "train", seed, ratios))
        if not self.available_bytes:
            found = sum(1 for _ in read())
            raise UserError(
                f"the tokenizer has no text to learn from: none of {found} documents falls into the training "
                "part; add documents or raise split.train"
            )

    def __iter__(self) -> Iterator[str]:
        self.num_documents = self.num_bytes = 0
        share = self.max_bytes / self.available_bytes
        for document in self.read():
            if split_of(document.group, self.seed, self.ratios) != "train":
                continue
            if share < 1 and position(f"{document.group}\0tokenizer", self.seed) >= share:
                continue
            texts = list(plain_texts(document))
            num_bytes = sum(len(text.encode()) for text in texts)
            if self.num_bytes + num_bytes <= self.max_bytes:
                self.num_documents += 1
                self.num_bytes += num_bytes
                yield from texts

    def counts(self) -> dict[str, int]:
        """Documents and UTF-8 bytes of the last iteration."""
        return {"documents": self.num_documents, "bytes": self.num_bytes}
