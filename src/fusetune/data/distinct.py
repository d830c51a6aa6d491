"""Missing and equal cells of an Arrow column, found in bounded memory."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fusetune.data.missing import is_missing as is_missing
from fusetune.data.storage.mapped import (
    index_type,
    mapped_argsort,
    mapped_concatenate,
    mapped_full,
    mapped_take,
    mapped_zeros,
    pieces,
)

MAX_INTERNED = 1000
"""Distinct strings that are interned while cells are iterated over."""


def cell_key(cell: Any) -> Any:
    """Return a hashable key that is equal for equal cells; 1, 1.0, True and "1" have different keys."""
    if isinstance(cell, str | bytes | int | float | bool):
        return type(cell), cell
    return "json", json.dumps(cell, sort_keys=True, default=_jsonable)


def _jsonable(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else str(value)


def as_cells(array: pa.Array, as_json: bool) -> list[Any]:
    """Return an Arrow array's cells as Python values; `as_json` parses its strings as JSON."""
    cells = array.to_pylist()
    return [None if cell is None else json.loads(cell) for cell in cells] if as_json else cells


def missing_in(array: pa.Array, as_json: bool) -> np.ndarray:
    """Return `is_missing` of an Arrow array's cells, (rows,) bool."""
    kind = array.type
    if as_json or not (_is_text(kind) or _is_bytes(kind) or _is_number(kind) or pa.types.is_null(kind)):
        cells = as_cells(array, as_json)
        return np.fromiter((is_missing(cell) for cell in cells), dtype=bool, count=len(cells))
    missing = np.array(pc.is_null(array, nan_is_null=pa.types.is_floating(kind)).to_numpy(zero_copy_only=False))
    if not _is_text(kind) or missing.all():
        return missing
    offsets, data = _parts(array)
    missing |= offsets[1:] == offsets[:-1]
    first = data[np.minimum(offsets[:-1], max(len(data) - 1, 0))] if len(data) else np.zeros(len(array), np.uint8)
    # A blank string starts with a control character, a space, or a character beyond ASCII.
    for index in np.flatnonzero(~missing & ((first <= 0x20) | (first > 0x7E))).tolist():
        missing[index] = array[index].as_py().isspace()
    return missing


def keys_in(array: pa.Array, as_json: bool) -> np.ndarray:
    """Return 128-bit hashes of an Arrow array's cells, (rows, 2) uint64, equal where `cell_key` is equal.

    No cell may be missing.
    """
    kind, keys = array.type, np.zeros((len(array), 2), dtype=np.uint64)
    if as_json or not (_is_text(kind) or _is_bytes(kind) or _is_number(kind)):
        return hashed(_key_text(cell) for cell in as_cells(array, as_json))
    if _is_number(kind):
        values = array.to_numpy(zero_copy_only=False)
        # 0.0 and -0.0 are equal.
        same = values.astype(np.float64) + 0.0 if pa.types.is_floating(kind) else values.astype(_wide(values.dtype))
        keys[:, 0] = same.view(np.uint64)
        return keys
    offsets, data = _parts(array)
    content, ends = memoryview(data), offsets.tolist()  # type: ignore[arg-type]
    return hashed(content[start:end] for start, end in pairwise(ends))


def hashed(texts: Iterator[Any]) -> np.ndarray:
    """Return the BLAKE2b hashes of some bytes, (texts, 2) uint64."""
    sums = b"".join(blake2b(text, digest_size=16).digest() for text in texts)
    return np.frombuffer(sums, dtype=np.uint64).reshape(-1, 2)


def _key_text(cell: Any) -> bytes:
    key = cell_key(cell + 0.0 if isinstance(cell, float) else cell)
    return repr(key).encode("utf-8", "surrogatepass")


def numbered(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the distinct keys from 0, in the order of their first rows.

    Args:
        keys: (rows, 2) uint64.

    Returns:
        (rows,) the number of each row's key; and (numbers,) the first row of each number. int32 where that is wide
        enough.
    """
    rows, kind = len(keys), index_type(len(keys))
    order, begins = _together(keys)
    firsts = mapped_concatenate(
        (order[piece][begins[piece]].astype(kind) for piece in pieces(rows)), int(np.count_nonzero(begins))
    )
    firsts.sort()
    numbers = mapped_zeros((rows,), kind)
    for piece in pieces(len(firsts)):
        numbers[firsts[piece]] = np.arange(piece.start, piece.stop)
    last = order[:1]
    for piece in pieces(rows):
        begun = np.concatenate([last, order[piece][begins[piece]]])  # the first rows of the keys so far
        numbers[order[piece]] = numbers[begun[np.cumsum(begins[piece])]]
        last = begun[-1:]
    return numbers, firsts


def _together(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows grouped by key, ascending within a key, (rows,) int64; and where a new key begins, (rows,) bool.

    Rows are sorted by a hash of the key. The rare keys that share a hash are then sorted by the key itself.
    """
    rows, bits = len(keys), 63 - len(keys).bit_length()
    order = mapped_argsort(mapped_concatenate((_mixed(keys[piece], bits) for piece in pieces(rows)), rows))
    begins = mapped_zeros((rows,), bool)
    begins[:1] = True
    shared: list[int] = []
    for piece in pieces(rows):
        near = keys[order[max(piece.start - 1, 0) : piece.stop]]
        differs, mixed = (near[1:] != near[:-1]).any(1), _mixed(near, bits)
        start = piece.stop - len(differs)
        begins[start : piece.stop] = differs
        shared += (np.flatnonzero(differs & (mixed[1:] == mixed[:-1])) + start).tolist()
    end = 0
    for index in shared:
        if index >= end:
            start, end = _run(keys, order, index, bits)
            some = order[start:end].copy()
            order[start:end] = some[np.lexsort((keys[some, 1], keys[some, 0]))]  # stable
            near = keys[order[start:end]]
            begins[start + 1 : end] = (near[1:] != near[:-1]).any(1)
    return order, begins


def _run(keys: np.ndarray, order: np.ndarray, index: int, bits: int) -> tuple[int, int]:
    """Return start and end of the run in `order` whose hash is that at an index."""

    def mixed(at: int) -> int:
        return int(_mixed(keys[order[at : at + 1]], bits)[0])

    indices = range(len(order))
    return bisect_left(indices, mixed(index), key=mixed), bisect_right(indices, mixed(index), key=mixed)


def _mixed(keys: np.ndarray, bits: int) -> np.ndarray:
    """Return a hash of `bits` bits of both words of each key, (rows,) int64."""
    mixed = keys[:, 0] * np.uint64(0x9E3779B97F4A7C15) ^ keys[:, 1]
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(0xD6E8FEB86659FD93)
    mixed ^= mixed >> np.uint64(32)
    return np.asarray(mixed >> np.uint64(64 - bits), dtype=np.int64)


def distinct(arrays: Iterator[pa.Array], as_json: bool, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a column's cells as codes, like `pandas.factorize`.

    Args:
        arrays: the cells, in order.
        as_json: whether their strings are JSON.
        rows: number of cells.

    Returns:
        (rows,) codes of the distinct cells, -1 for missing ones; and (cells,) the first row of each distinct cell.
        int32 where that is wide enough.
    """
    indices, keys = mapped_zeros((rows,), index_type(rows)), mapped_zeros((rows, 2), np.uint64)
    start = num = 0
    for array in arrays:
        present = ~missing_in(array, as_json)
        result = np.flatnonzero(present)
        indices[num : num + len(result)] = start + result
        keys[num : num + len(result)] = keys_in(array if present.all() else array.filter(pa.array(present)), as_json)
        start, num = start + len(array), num + len(result)
    numbers, firsts = numbered(keys[:num])
    del keys
    if num == rows:
        return numbers, firsts
    codes = mapped_full(rows, -1, indices.dtype)
    for piece in pieces(num):
        codes[indices[:num][piece]] = numbers[piece]
    return codes, mapped_take(indices, firsts)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _wide(dtype: np.dtype[Any]) -> type:
    return np.uint64 if dtype == np.uint64 else np.int64


def _parts(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return the offsets, (rows + 1,), and the data buffer of an Arrow array of strings or bytes, without a copy."""
    wide = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    _, starts, data = array.buffers()
    if starts is None or not starts.size:
        return np.zeros(len(array) + 1, dtype=np.int64), np.zeros(0, dtype=np.uint8)
    offsets = np.frombuffer(starts, dtype=np.int64 if wide else np.int32)[array.offset : array.offset + len(array) + 1]
    return offsets, np.frombuffer(data, dtype=np.uint8) if data is not None else np.zeros(0, dtype=np.uint8)


class Cells(Sequence[Any]):
    """A lazy sequence of a table column's cells."""

    def __init__(self, table: Any, column: str, rows: np.ndarray | None = None) -> None:
        """
        Args:
            table: the `Table`.
            column: its name.
            rows: (cells,) positions of rows; all rows where None.
        """
        self.table, self.column, self.rows = table, column, rows

    def __len__(self) -> int:
        return len(self.table) if self.rows is None else len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.take([index])[0]

    def __iter__(self) -> Iterator[Any]:
        interned: dict[str, str] = {}  # equal labels share one object, however many rows have them
        step = self.table.at_once(self.column)
        for start in range(0, len(self), step):
            for cell in self.take(np.arange(start, min(start + step, len(self)))):
                if type(cell) is str and len(interned) < MAX_INTERNED:
                    cell = interned.setdefault(cell, cell)
                yield cell

    def take(self, indices: Sequence[int] | np.ndarray) -> list[Any]:
        """Return the cells at some indices, in their order."""
        wanted = np.asarray(indices, dtype=np.int64)
        return self.table.cells(self.column, wanted if self.rows is None else self.rows[wanted])  # type: ignore[no-any-return]

    def of(self, indices: np.ndarray) -> Cells:
        """Return a lazy sequence of the cells at some indices."""
        return Cells(self.table, self.column, indices if self.rows is None else self.rows[indices])
