"""Arrow columns straight from Python's values, and back.

pyarrow's own conversions first ask pandas, wherever it is installed, whether the values are its own: an
import of 0.4 s in each process.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa


def column(values: Sequence[str | bytes | int | None], kind: pa.DataType) -> pa.Array:
    """A column of strings, of binaries of any or of fixed width, or of numbers."""
    if values.count(None) == len(values):
        return pa.nulls(len(values), kind)
    if not (pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind)):
        return numbers(np.array(values, kind.to_pandas_dtype()))
    if pa.types.is_string(kind) and (texts := ascii_texts(values)) is not None:
        return texts
    nothing = bytes(kind.byte_width) if pa.types.is_fixed_size_binary(kind) else b""
    contents = [nothing if value is None else encoded(value) for value in values]
    buffers = [validity(values), pa.py_buffer(b"".join(contents))]
    if not nothing:
        buffers.insert(1, pa.py_buffer(offsets_of(contents, np.int32)))
    return pa.Array.from_buffers(kind, len(values), buffers)


def ascii_texts(values: Sequence[Any]) -> pa.Array | None:
    """A column of strings, encoded all at once; None if some are missing or hold other characters."""
    try:
        text = "".join(values)
    except TypeError:
        return None
    if not text.isascii():
        return None
    buffers = [None, pa.py_buffer(offsets_of(values, np.int32)), pa.py_buffer(text.encode())]
    return pa.Array.from_buffers(pa.string(), len(values), buffers)


def numbers(values: np.ndarray) -> pa.Array:
    """A column of numbers or of truth values; those of numbers are not copied."""
    data = np.packbits(values, bitorder="little") if values.dtype == bool else np.ascontiguousarray(values)
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(data)])


def array_of(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """What a column of numbers or truth values holds, which has no nulls."""
    dtype = values.type.to_pandas_dtype()
    if len(values) == 0:
        return np.zeros(0, dtype)
    if isinstance(values, pa.ChunkedArray):
        parts = [array_of(chunk) for chunk in values.chunks]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
    start, stop, data = values.offset, values.offset + len(values), values.buffers()[1]
    if pa.types.is_boolean(values.type):
        return np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[start:stop].astype(bool)
    return np.frombuffer(data, dtype)[start:stop]


def structs(values: Sequence[Sequence[Sequence[str]] | None], kind: pa.DataType) -> pa.Array:
    """A column of lists, each of structs whose fields are texts."""
    if values.count(None) == len(values):
        return pa.nulls(len(values), kind)
    rows = [row for value in values for row in value or ()]
    fields = [kind.value_type.field(number) for number in range(kind.value_type.num_fields)]
    parts = [column([row[number] for row in rows], field.type) for number, field in enumerate(fields)]
    items = pa.StructArray.from_arrays(parts, fields=fields)
    starts = pa.py_buffer(offsets_of([value or () for value in values], np.int32))
    return pa.Array.from_buffers(kind, len(values), [validity(values), starts], children=[items])


def encoded(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def validity(values: Sequence[object]) -> pa.Buffer | None:
    """Which values are there, as Arrow keeps it: a bit each; None if all are."""
    if None not in values:
        return None
    there = np.fromiter((value is not None for value in values), bool, len(values))
    return pa.py_buffer(np.packbits(there, bitorder="little"))


def offsets_of(parts: Sequence[Sequence[object]], dtype: type) -> np.ndarray:
    return np.cumsum([0, *map(len, parts)], dtype=dtype)
