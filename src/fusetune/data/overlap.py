"""Duplicate rows across splits, on which a model is measured on what it was trained on."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import numpy as np

from fusetune.data.detect.leakage import plain
from fusetune.data.examples import Examples

FILES = ("image", "audio")
"""Values of `Modality.part_of` whose text cells are paths."""


def overlapping(train: Examples, other: Examples) -> np.ndarray:
    """Return which used rows of `other` have the same inputs as a used train row, (used,) bool.

    Cells are compared as text, ignoring type, surrounding white space and case. Images and sounds are equal where they
    are the same file or the same bytes.

    Args:
        train, other: prepared rows with the same columns.
    """
    ours, theirs = row_keys(train), row_keys(other)
    if not ours.shape[1]:
        return np.zeros(len(theirs), dtype=bool)
    return np.asarray(np.isin(_as_void(theirs), _as_void(ours)))


def row_keys(examples: Examples) -> np.ndarray:
    """Return a digest of every cell of the used rows, (used, columns) uint64; 0 where it is missing."""
    keys = np.zeros((len(examples.used), len(examples.columns)), dtype=np.uint64)
    for index, column in enumerate(examples.columns.values()):
        is_file = column.modality.part_of in FILES
        digests = np.fromiter(
            (_digest(cell, str(column.base_dir) if is_file else "") for cell in column.cells),
            dtype=np.uint64,
            count=len(column.cells),
        )
        codes = np.asarray(column.codes[examples.used])
        there = codes >= 0
        keys[there, index] = digests[codes[there]]
    return keys


def _as_void(keys: np.ndarray) -> np.ndarray:
    """Return (rows, columns) as (rows,) of type void, one comparable value a row."""
    contiguous = np.ascontiguousarray(keys)
    return contiguous.view(np.dtype((np.void, contiguous.dtype.itemsize * contiguous.shape[1]))).reshape(-1)


def _digest(cell: Any, folder: str) -> int:
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes | bytearray | memoryview):
        content = bytes(cell)
    else:
        content = f"{folder if isinstance(cell, str | list) else ''}\0{plain(cell)}".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little")
