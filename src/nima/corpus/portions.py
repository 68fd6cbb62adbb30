"""What one worker reads at a time: some small files, one file, or a part of a long JSONL file."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from nima.corpus.formats.formats import Span, is_splittable
from nima.corpus.sources.sources import SourceFile
from nima.workspace.params import SourceParams

PORTION_BYTES = 4_000_000
PORTION_FILES = 1024
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Portion:
    """A stretch of a source in its order; parts of a file lie side by side."""

    source: SourceParams
    files: tuple[SourceFile, ...]
    span: Span | None = None
    """The part of the only file; None for whole files."""

    @property
    def num_files(self) -> int:
        """Files that begin here."""
        return len(self.files) if self.span is None or self.span.start_bytes == 0 else 0

    def name(self, rules: dict[str, Any]) -> str:
        """Another for other contents, another way of reading them, or other `rules`; 32 hex characters."""
        source = self.source.model_dump(
            include={"name", "format", "record", "fields", "encoding", "group_by"}
        )
        files = [(file.key, file.identity()) for file in self.files]
        decides = json.dumps([rules, source, files, str(self.span)], sort_keys=True)
        return hashlib.sha256(decides.encode()).hexdigest()[:32]


def portions_of(source: SourceParams, files: Iterable[SourceFile]) -> Iterator[Portion]:
    """The files of a source, cut or put together to portions of about `PORTION_BYTES`, in their order."""
    small: list[SourceFile] = []
    small_bytes = 0
    for file in files:
        num_bytes = file.num_bytes
        if num_bytes is not None and num_bytes <= PORTION_BYTES:
            small.append(file)
            small_bytes += num_bytes
            if small_bytes < PORTION_BYTES and len(small) < PORTION_FILES:
                continue
        if small:
            yield Portion(source, tuple(small))
            small, small_bytes = [], 0
        if num_bytes is None or num_bytes > PORTION_BYTES:
            splits = is_splittable(file, source)
            yield from (Portion(source, (file,), span) for span in (spans_of(file) if splits else [None]))
    if small:
        yield Portion(source, tuple(small))


def spans_of(file: SourceFile) -> Iterator[Span]:
    """Cuts behind line ends. Reads the file once, since a line's number counts in messages and ids."""
    start = first_line = position = num_lines = 0
    with file.open() as stream:
        while block := stream.read(BLOCK_BYTES):
            line_end = block.rfind(b"\n") + 1
            if line_end and position + line_end - start >= PORTION_BYTES:
                stop = position + line_end
                lines_before = num_lines + block.count(b"\n", 0, line_end)
                yield Span(start, stop, first_line)
                start, first_line = stop, lines_before
            num_lines += block.count(b"\n")
            position += len(block)
    if position > start:
        yield Span(start, position, first_line)
