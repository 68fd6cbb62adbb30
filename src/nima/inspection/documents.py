"""Tokenized documents to look at: which, and what each of their tokens writes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nima.dataset import splits
from nima.dataset.tokens import DOCUMENTS_FILE, Tokens
from nima.inspection.characters import Part, visible_bytes
from nima.tokenizer import Tokenizer
from nima.workspace.errors import UserError
from nima.workspace.params import nearest

TOKENS = Path("data/tokens")
SPLITS = Path("data/splits")
TOKENIZER = Path("models/tokenizer")

MAX_SHOWN_TOKENS = 20_000
"""Of one document; what follows is only counted."""
NO_SPLIT = "none"


class TokenView(NamedTuple):
    id: int
    parts: list[Part]
    """What it writes but for line ends behind; a special token's name."""
    line_ends: str
    special: bool
    trained: bool


@dataclass(frozen=True)
class DocumentView:
    """A document as it is shown."""

    id: str
    source: str
    split: str
    weight: float
    num_tokens: int
    num_bytes: int
    num_trained_tokens: int
    tokens: list[TokenView]
    """At most `MAX_SHOWN_TOKENS`, from the first on."""

    @property
    def num_hidden_tokens(self) -> int:
        return self.num_tokens - len(self.tokens)


@dataclass(frozen=True)
class Choice:
    """Which documents to show: of a source and a split, or all; by id, from a number on, or drawn."""

    source: str | None = None
    split: str | None = None
    id: str | None = None
    number: int | None = None
    seed: int | None = None
    count: int = 1


class TokenizedData:
    """What the stages tokenize and split left in the project. Raises `UserError` for what is missing."""

    def __init__(self) -> None:
        for path in (TOKENS / DOCUMENTS_FILE, SPLITS, TOKENIZER):
            if not path.exists():
                raise UserError(f"{path}: not found; run `dvc repro split` first, in the project's root")
        self.tokens = Tokens.open(TOKENS)
        self.tokenizer = Tokenizer.load(TOKENIZER)
        self.names = {token: name for name, token in self.tokenizer.special_ids.items()}
        self.split_of = np.full(self.tokens.num_documents, NO_SPLIT, dtype="<U16")
        for name, documents in splits.load(SPLITS).items():
            if len(documents) and documents[-1] >= self.tokens.num_documents:
                found = f"names document {documents[-1]} of {self.tokens.num_documents}"
                raise UserError(f"{SPLITS}: {found}; run `dvc repro split`")
            self.split_of[documents] = name

    def views(self, choice: Choice, *, whitespace: bool) -> list[DocumentView]:
        return [self.view(index, whitespace=whitespace) for index in self.chosen(choice)]

    # ------------------------------------------------------------------------------------ which documents

    def chosen(self, choice: Choice) -> list[int]:
        """Numbers of documents. Raises `UserError` for what isn't there."""
        if sum(given is not None for given in (choice.id, choice.number, choice.seed)) > 1:
            raise UserError("--id, --number and --random: expected one of them")
        candidates = self.candidates(choice.source, choice.split)
        if choice.id is not None:
            return [self.with_id(choice.id, candidates)]
        if choice.seed is not None:
            draw = np.random.Generator(np.random.PCG64(choice.seed))
            return draw.choice(candidates, min(choice.count, len(candidates)), replace=False).tolist()
        first = choice.number or 0
        if first >= len(candidates):
            raise UserError(f"--number {first}: there are {len(candidates)} documents, numbered from 0")
        return candidates[first : first + choice.count].tolist()

    def candidates(self, source: str | None, split: str | None) -> np.ndarray:
        kept = np.ones(self.tokens.num_documents, dtype=np.bool_)
        for option, wanted, names in (
            ("--source", source, self.tokens.sources),
            ("--split", split, self.split_of),
        ):
            if wanted is None:
                continue
            known = sorted(set(names.tolist()))
            if wanted not in known:
                raise UserError(f"{option} {wanted}: no document has it{nearest(wanted, known)}")
            kept &= names == wanted
        if not kept.any():
            raise UserError(f"no document is of source {source} in split {split}")
        return np.flatnonzero(kept)

    def with_id(self, wanted: str, candidates: np.ndarray) -> int:
        ids = self.tokens.ids
        found = next((index for index in candidates.tolist() if ids[index] == wanted), None)
        if found is None:
            raise UserError(
                f"--id {wanted}: no such document; the nearest is {nearest_id(wanted, ids, candidates)}"
            )
        return int(found)

    # ---------------------------------------------------------------------------------- what they look like

    def view(self, index: int, *, whitespace: bool) -> DocumentView:
        tokens = self.tokens
        ids = tokens.document(index)[:MAX_SHOWN_TOKENS].tolist()
        if max(ids, default=0) >= self.tokenizer.vocab_size:
            raise UserError(
                f"{TOKENS}: has token {max(ids)}, but {TOKENIZER} only {self.tokenizer.vocab_size} tokens; "
                "run `dvc repro split`"
            )
        trained = np.zeros(len(ids), dtype=np.bool_)
        for start, end in tokens.spans(index):
            trained[start:end] = True
        return DocumentView(
            id=tokens.ids[index],
            source=str(tokens.sources[index]),
            split=str(self.split_of[index]),
            weight=float(tokens.weights[index]),
            num_tokens=int(tokens.lengths[index]),
            num_bytes=int(tokens.text_bytes[index]),
            num_trained_tokens=int(tokens.trained_tokens[index]),
            tokens=[
                TokenView(token, *self.shown(token, whitespace), token in self.names, learnt)
                for token, learnt in zip(ids, trained.tolist(), strict=True)
            ],
        )

    def shown(self, token: int, whitespace: bool) -> tuple[list[Part], str]:
        """What a token writes, and the line ends behind it."""
        if token in self.names:
            return [Part(self.names[token], False)], ""
        parts = visible_bytes(self.tokenizer.decode_bytes([token]), whitespace=whitespace)
        if not parts or parts[-1].coded:
            return parts, ""
        text = parts[-1].text
        kept = text.rstrip("\n")
        return [*parts[:-1], Part(kept, False)], text[len(kept) :]


def nearest_id(wanted: str, ids: Sequence[str], candidates: np.ndarray) -> str:
    """The id with the longest beginning in common: a measure that finds it among millions."""
    known = sorted(ids[index] for index in candidates.tolist())
    place = bisect_left(known, wanted)
    return max(known[max(0, place - 1) : place + 1], key=lambda other: num_shared_chars(wanted, other))


def num_shared_chars(one: str, other: str) -> int:
    """The length of the beginning that two texts have in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
