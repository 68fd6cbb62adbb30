"""In what two versions of an output differ: keys of metrics, tensors of a model, rows of a table."""

import filecmp
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from nima.repository.revisions import flat

MAX_KEYS = 20
BATCH_ROWS = 10_000
CHUNK_BYTES = 1 << 20
ABSENT = object()
LINES = (".jsonl", ".tsv", ".csv", ".md", ".txt", ".jinja")


@dataclass(frozen=True)
class Difference:
    """What became of one file of an output."""

    file: str
    text: str
    """In one line."""
    figures: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def differences(recorded: dict[str, Path], found: dict[str, Path]) -> list[Difference]:
    """Of an output's files, by name (a single file: by ""), those that are not the same bytes."""
    result = []
    for name in sorted(recorded.keys() | found.keys()):
        if name not in found:
            result.append(Difference(name, "is missing now"))
        elif name not in recorded:
            result.append(Difference(name, "is new"))
        elif not filecmp.cmp(recorded[name], found[name], shallow=False):
            result.append(difference(name, recorded[name], found[name]))
    return result


def difference(name: str, recorded: Path, found: Path) -> Difference:
    """`recorded` may lie in a cache, without its name; what the files are follows from that of `found`."""
    compare: dict[str, Callable[[Path, Path], tuple[str, dict[str, Any]]]] = {
        ".json": of_keys,
        ".safetensors": of_tensors,
        ".parquet": of_rows,
        ".npy": of_arrays,
    } | dict.fromkeys(LINES, of_lines)
    try:
        text, figures = compare.get(found.suffix, of_bytes)(recorded, found)
    except (ValueError, OSError):  # not what its name says
        text, figures = of_bytes(recorded, found)
    return Difference(name, text, figures)


# ----------------------------------------------------------------------------------------- metrics


def of_keys(recorded: Path, found: Path) -> tuple[str, dict[str, Any]]:
    before, after = (dict(flat(json.loads(path.read_text(encoding="utf-8")))) for path in (recorded, found))
    keys = [key for key in before | after if before.get(key, ABSENT) != after.get(key, ABSENT)]
    if not keys:
        return "the same keys and values, written in another way", {}
    changes = [key_change(key, before.get(key, ABSENT), after.get(key, ABSENT)) for key in keys]
    more = f", and {len(keys) - MAX_KEYS} more keys" if len(keys) > MAX_KEYS else ""
    text = ", ".join(change["text"] for change in changes[:MAX_KEYS])
    return f"{text}{more}", {"keys": {change.pop("key"): change for change in changes}}


def key_change(key: str, before: Any, after: Any) -> dict[str, Any]:
    if before is ABSENT or after is ABSENT:
        gone = after is ABSENT
        value = before if gone else after
        text = f"{key} {'is gone' if gone else 'is new'} ({shown(value)})"
        return {"key": key, "text": text, ("recorded" if gone else "now"): value}
    change = {"key": key, "recorded": before, "now": after, "text": f"{key} {shown(before)} → {shown(after)}"}
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in (before, after)):
        change["difference"] = after - before
        change["text"] += f" ({after - before:+.3g})"
    return change


def shown(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:39]}…"


# ----------------------------------------------------------------------------------------- tensors


def of_tensors(recorded: Path, found: Path) -> tuple[str, dict[str, Any]]:
    import torch

    from nima.network.tensors import read_tensors

    before, after = read_tensors(recorded), read_tensors(found)
    shared = before.keys() & after.keys()
    alike = [name for name in shared if before[name].shape == after[name].shape]
    different = [name for name in alike if not torch.equal(before[name], after[name])]
    gaps = {name: largest_gap(before[name], after[name]) for name in different}
    num_other = len(before.keys() ^ after.keys()) + len(shared) - len(alike)
    figures = {
        "tensors": len(before),
        "different": len(different),
        "other_names_or_shapes": num_other,
        "largest_difference": max(gaps.values(), default=0.0),
    }
    if not different and not num_other:
        return "the same tensors, written in another way", figures
    parts = []
    if different:
        worst = max(gaps, key=lambda name: gaps[name])
        parts.append(
            f"{len(different)} of {len(before)} tensors differ, by {gaps[worst]:.3g} at most ({worst})"
        )
    if num_other:
        parts.append(f"{num_other} have other names or shapes")
    return "; ".join(parts), figures


def largest_gap(before: Any, after: Any) -> float:
    """Infinite where only one side is not a number."""
    gap = (before.double() - after.double()).abs()
    same = (before == after) | (before.isnan() & after.isnan())
    return float(gap.masked_fill(same, 0.0).nan_to_num(nan=math.inf).max())


def of_arrays(recorded: Path, found: Path) -> tuple[str, dict[str, Any]]:
    import numpy as np

    before, after = (np.load(path, allow_pickle=False) for path in (recorded, found))
    if before.shape != after.shape or before.dtype != after.dtype:
        text = f"{before.dtype} {list(before.shape)} → {after.dtype} {list(after.shape)}"
        return text, {"recorded": list(before.shape), "now": list(after.shape)}
    count = int((before != after).sum())
    return f"{count:,} of {before.size:,} values differ", {"values": before.size, "different": count}


# ----------------------------------------------------------------------------------------- rows


def of_rows(recorded: Path, found: Path) -> tuple[str, dict[str, Any]]:
    return of_sequences(rows_of(recorded), rows_of(found), "rows")


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH_ROWS):
            yield from batch.to_pylist()


def of_lines(recorded: Path, found: Path) -> tuple[str, dict[str, Any]]:
    with recorded.open("rb") as before, found.open("rb") as after:
        return of_sequences(before, after, "lines")


def of_sequences(before: Iterator[Any], after: Iterator[Any], what: str) -> tuple[str, dict[str, Any]]:
    """Position by position."""
    numbers = {"recorded": 0, "now": 0, "different": 0}
    for one, other in zip_longest(before, after, fillvalue=ABSENT):
        numbers["recorded"] += one is not ABSENT
        numbers["now"] += other is not ABSENT
        numbers["different"] += one is not ABSENT and other is not ABSENT and one != other
    shared = min(numbers["recorded"], numbers["now"])
    text = f"{numbers['different']:,} of {shared:,} {what} differ"
    if numbers["recorded"] != numbers["now"]:
        text += f", {numbers['recorded']:,} → {numbers['now']:,} {what}"
    return text, {what: numbers}


def of_bytes(recorded: Path, found: Path) -> tuple[str, dict[str, Any]]:
    sizes = [path.stat().st_size for path in (recorded, found)]
    start = first_difference(recorded, found)
    length = f"{sizes[0]:,} → {sizes[1]:,} bytes" if sizes[0] != sizes[1] else f"{sizes[0]:,} bytes"
    figures = {"recorded_bytes": sizes[0], "bytes": sizes[1], "first_difference": start}
    return f"{length}, different from byte {start:,} on", figures


def first_difference(recorded: Path, found: Path) -> int:
    """The position, from 0, of the first byte that is not the same."""
    with recorded.open("rb") as before, found.open("rb") as after:
        start = 0
        while (one := before.read(CHUNK_BYTES)) == (other := after.read(CHUNK_BYTES)) and one:
            start += len(one)
    pairs = enumerate(zip(one, other, strict=False))
    return start + next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
