"""Files for readers' tests: bytes that are held in memory, and what readers make of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO

from nima.corpus.document import Rejection
from nima.corpus.formats.formats import Record, read_records
from nima.workspace.params import LimitsParams, SourceParams


@dataclass(frozen=True)
class HeldFile:
    """What readers need of a source's file."""

    key: str
    content: bytes

    @property
    def place(self) -> str:
        return f"data/{self.key}"

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        with BytesIO(self.content) as stream:
            yield stream


def source_of(**settings: Any) -> SourceParams:
    return SourceParams(name="s", path="unused", **settings)


def read(name: str, content: bytes, limits: dict[str, int] | None = None, **settings: Any) -> list[Any]:
    """All records and rejections of a file; `settings` are its source's."""
    file = HeldFile(name, content)
    return list(read_records(file, source_of(**settings), LimitsParams(**(limits or {}))))


def rejected(name: str, content: bytes, limits: dict[str, int] | None = None, **settings: Any) -> Rejection:
    """The only outcome of a file, which is a rejection."""
    (rejection,) = read(name, content, limits, **settings)
    assert isinstance(rejection, Rejection)
    assert (rejection.source, rejection.key.partition("#")[0]) == ("s", name)
    return rejection


def summary(outcomes: list[Any]) -> list[str]:
    """Texts of the records, and reasons of the rejections, in their order."""
    return [said(outcome) for outcome in outcomes]


def said(outcome: Record | Rejection) -> str:
    if isinstance(outcome, Rejection):
        return outcome.reason
    if outcome.messages is None:
        return outcome.text
    return " | ".join(f"{message.role}: {message.content}" for message in outcome.messages)
