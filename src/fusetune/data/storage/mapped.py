"""Memory-mapped arrays: above a size, an array is backed by an unnamed temporary file instead of memory."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fusetune.errors import StorageError

LARGE = 2**20
"""Size in bytes from which an array is backed by a file, so that a fit's own memory does not grow with the rows."""
PIECE_ROWS = 65_536
"""Rows that are processed at a time, while the others stay in the file."""

NARROW = 2**31
"""Indices below it are stored as int32."""


def mapped_zeros(shape: Sequence[int], dtype: Any = np.float32) -> np.ndarray:
    """Return an array of zeros, backed by a temporary file if it is large.

    The file is deleted with the array. The system caches as much of it in memory as is free.

    Raises:
        StorageError: the temporary folder has not enough space.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < max(LARGE, 1):
        return np.zeros(shape, dtype)
    import torch

    try:
        with tempfile.NamedTemporaryFile(prefix="fusetune-") as file:
            if hasattr(os, "posix_fallocate"):  # fails here if the disk is full, not when a page is written
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            # Unlike mmap, this keeps no file descriptor: there may be more arrays than a process may open files.
            mapped = torch.from_file(file.name, shared=True, size=size, dtype=torch.uint8)
        return np.asarray(mapped.numpy().view(dtype).reshape(shape))
    except OSError as error:
        raise StorageError(
            f"{tempfile.gettempdir()}: {size / 2**30:.1f} GiB cannot be laid out there ({error}). Free some, or set "
            "TMPDIR to another disk"
        ) from error


def pieces(rows: int) -> list[slice]:
    """Split rows into slices of up to `PIECE_ROWS`; zero rows give one empty slice."""
    return [slice(start, min(start + PIECE_ROWS, rows)) for start in range(0, max(rows, 1), PIECE_ROWS)]


def index_type(most: int) -> type[np.signedinteger[Any]]:
    """Return the narrowest dtype, int32 or int64, for indices up to `most`."""
    return np.int32 if most < NARROW else np.int64


def mapped_concatenate(parts: Iterable[np.ndarray], rows: int) -> np.ndarray:
    """Return `np.concatenate` of parts that have `rows` rows together."""
    joined, start = np.zeros(0), 0
    for number, part in enumerate(parts):
        if number == 0:
            joined = mapped_zeros((rows, *part.shape[1:]), part.dtype)
        joined[start : start + len(part)] = part
        start += len(part)
    return joined


def mapped_narrow(indices: np.ndarray, most: int) -> np.ndarray:
    """Copy indices up to `most` in the narrowest dtype."""
    return mapped_concatenate((indices[piece].astype(index_type(most)) for piece in pieces(len(indices))), len(indices))


def mapped_take(values: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return `values[indices]`, for integer indices."""
    return mapped_concatenate((values[indices[piece]] for piece in pieces(len(indices))), len(indices))


def mapped_flatnonzero(mask: np.ndarray) -> np.ndarray:
    """Return `np.flatnonzero` of a (rows,) mask, in the narrowest dtype."""
    kind = index_type(len(mask))
    parts = ((np.flatnonzero(mask[piece]) + piece.start).astype(kind) for piece in pieces(len(mask)))
    return mapped_concatenate(parts, int(np.count_nonzero(mask)))


def mapped_full(rows: int, value: Any, dtype: Any) -> np.ndarray:
    """Return `np.full` of shape (rows,)."""
    filled = mapped_zeros((rows,), dtype)
    filled[:] = value
    return filled


def mapped_arange(rows: int) -> np.ndarray:
    """Return `np.arange`, int64."""
    return mapped_concatenate((np.arange(piece.start, piece.stop) for piece in pieces(rows)), rows)


def mapped_argsort(numbers: np.ndarray) -> np.ndarray:
    """Return `np.argsort(numbers, kind="stable")` of integers, (rows,) int64.

    Packs each number and its index into one 64-bit word and sorts the words in place.
    """
    rows = len(numbers)
    if not rows:
        return np.zeros(0, dtype=np.int64)
    low, bits = int(numbers.min()), rows.bit_length()
    if int(numbers.max()) - low >= 2 ** (63 - bits):
        return np.argsort(numbers, kind="stable")
    words = mapped_zeros((rows,), np.int64)
    for piece in pieces(rows):
        np.subtract(numbers[piece], low, out=words[piece], dtype=np.int64)
        words[piece] <<= bits
        words[piece] |= np.arange(piece.start, piece.stop)
    words.sort()
    words &= 2**bits - 1
    return words
