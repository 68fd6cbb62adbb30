"""Lines at the beginnings and ends of documents that many documents share: menus, notices, licences.

A line is known by 64 bits of its hash, so that counting them costs 8 bytes a line and not the texts.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from nima.corpus.quality.blocks import verbatim_lines
from nima.workspace.params.data import BoilerplateParams

# Rows of tables, directives, and lines that underline a title or part a text.
NO_PROSE = re.compile(r"\||\+[-=]|\.\. |[\W_]+$")


def edge_line_hashes(text: str, rules: BoilerplateParams) -> list[int]:
    """Unsigned 64-bit hashes of the lines at the edges of `text`, each once, in their order.

    Edges are the first and the last `edge_lines` lines that are not blank. Lines of fewer than `min_chars`
    characters, indented ones, tables and fenced code are left out.
    """
    lines = text.split("\n")
    return list(dict.fromkeys(line_hash(lines[number]) for number in edge_lines(lines, rules)))


def without_boilerplate(text: str, hashes: frozenset[int], rules: BoilerplateParams) -> str:
    """`text` without the lines at its edges that are in `hashes`, and without the blank lines they leave.

    Whether the text ends in a newline stays as it was.
    """
    lines = text.split("\n")
    shared = {number for number in edge_lines(lines, rules) if line_hash(lines[number]) in hashes}
    if not shared:
        return text
    kept = "\n".join(kept_lines(lines, shared)).strip("\n")
    return kept + "\n" if kept and text.endswith("\n") else kept


def kept_lines(lines: Sequence[str], shared: set[int]) -> list[str]:
    """The lines beside the shared ones; blank lines on both sides of a gap become those on one side."""
    kept: list[str] = []
    skips_blank = False
    for number, line in enumerate(lines):
        if number in shared:
            skips_blank = not kept or not kept[-1].strip()
        elif line.strip() or not skips_blank:
            kept.append(line)
            skips_blank = False
    return kept


def shared_lines(hashes: Iterable[np.ndarray], min_documents: int) -> frozenset[int]:
    """The hashes that at least `min_documents` documents hold.

    Each array (uint64) holds the hashes of one or more documents, a hash once for each document that has
    it. Sorts all of them: 8 bytes a hash, and 16 while they are joined.
    """
    arrays = list(hashes)
    if not arrays:
        return frozenset()
    every = np.concatenate(arrays).astype(np.uint64, copy=False)
    every.sort()
    # In sorted order, the equal hashes of enough documents reach over this distance.
    distance = min_documents - 1
    shared = every[distance:][every[distance:] == every[: len(every) - distance]]
    return frozenset(np.unique(shared).tolist())


def edge_lines(lines: Sequence[str], rules: BoilerplateParams) -> list[int]:
    """Numbers of the lines at the edges that can be boilerplate, ascending."""
    numbers = {*first_filled(lines, range(len(lines)), rules.edge_lines)}
    numbers |= {*first_filled(lines, range(len(lines) - 1, -1, -1), rules.edge_lines)}
    fenced = fenced_lines(lines)
    return [
        number for number in sorted(numbers) if number not in fenced and is_candidate(lines[number], rules)
    ]


def first_filled(lines: Sequence[str], numbers: Iterable[int], num_lines: int) -> Iterator[int]:
    """The first `num_lines` of the numbers whose lines are not blank."""
    for number in numbers:
        if num_lines == 0:
            return
        if lines[number].strip():
            yield number
            num_lines -= 1


def fenced_lines(lines: Sequence[str]) -> frozenset[int]:
    if not any("```" in line or "~~~" in line for line in lines):
        return frozenset()
    return frozenset(np.flatnonzero(verbatim_lines(lines, "markdown")).tolist())


def is_candidate(line: str, rules: BoilerplateParams) -> bool:
    """Whether a line is prose and long enough, and no code below depends on it.

    Indented lines may be code, whatever the markup.
    """
    is_prose = not line[0].isspace() and not NO_PROSE.match(line) and not line.rstrip().endswith("::")
    return is_prose and len(line.strip()) >= rules.min_chars


def line_hash(line: str) -> int:
    """64 bits of a hash of the line without the space around it."""
    return int.from_bytes(hashlib.blake2b(line.strip().encode(), digest_size=8).digest(), "little")
