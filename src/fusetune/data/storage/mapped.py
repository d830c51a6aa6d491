"""Large arrays that need not fit into memory: beyond a size they lie in a file without a name, mapped."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fusetune.errors import StorageError

LARGE = 2**20
"""Bytes from which on an array lies in a file: what a fit holds by itself does not grow with the rows."""
PIECE_ROWS = 65_536
"""Rows that are computed at a time where the rest of them stays in a file."""

NARROW = 2**31
"""Places below it are int32."""


def mapped_zeros(shape: Sequence[int], dtype: Any = np.float32) -> np.ndarray:
    """Zeros to be filled in. A large array's file is gone with it; the system keeps as much of it in memory as is free.

    Raises:
        StorageError: the temporary folder has no space.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < max(LARGE, 1):
        return np.zeros(shape, dtype)
    import torch

    try:
        with tempfile.NamedTemporaryFile(prefix="fusetune-") as file:
            if hasattr(os, "posix_fallocate"):  # a disk that is full is found out here, not when a page is written
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            # Unlike Python's mmap it keeps no file open: there may be more arrays than files that may be open.
            mapped = torch.from_file(file.name, shared=True, size=size, dtype=torch.uint8)
        return np.asarray(mapped.numpy().view(dtype).reshape(shape))
    except OSError as error:
        raise StorageError(
            f"{tempfile.gettempdir()}: {size / 2**30:.1f} GiB cannot be laid out there ({error}). Free some, or set "
            "TMPDIR to another disk"
        ) from error


def pieces(rows: int) -> list[slice]:
    """`PIECE_ROWS` rows at a time; one empty piece of no rows."""
    return [slice(start, min(start + PIECE_ROWS, rows)) for start in range(0, max(rows, 1), PIECE_ROWS)]


def index_type(most: int) -> type[np.signedinteger[Any]]:
    """The type of places up to `most`: int32 where it holds them."""
    return np.int32 if most < NARROW else np.int64


def mapped_concatenate(parts: Iterable[np.ndarray], rows: int) -> np.ndarray:
    """`np.concatenate` of one or more parts, which have so many rows together."""
    made, start = np.zeros(0), 0
    for number, part in enumerate(parts):
        if number == 0:
            made = mapped_zeros((rows, *part.shape[1:]), part.dtype)
        made[start : start + len(part)] = part
        start += len(part)
    return made


def mapped_narrow(places: np.ndarray, most: int) -> np.ndarray:
    """A copy of places up to `most`, in the narrowest type."""
    return mapped_concatenate((places[piece].astype(index_type(most)) for piece in pieces(len(places))), len(places))


def mapped_take(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """`values[places]`, for places of whole numbers."""
    return mapped_concatenate((values[places[piece]] for piece in pieces(len(places))), len(places))


def mapped_flatnonzero(mask: np.ndarray) -> np.ndarray:
    """`np.flatnonzero` of a (rows,) mask, in the narrowest type."""
    kind = index_type(len(mask))
    found = ((np.flatnonzero(mask[piece]) + piece.start).astype(kind) for piece in pieces(len(mask)))
    return mapped_concatenate(found, int(np.count_nonzero(mask)))


def mapped_full(rows: int, value: Any, dtype: Any) -> np.ndarray:
    """`np.full` of (rows,)."""
    made = mapped_zeros((rows,), dtype)
    made[:] = value
    return made


def mapped_arange(rows: int) -> np.ndarray:
    """`np.arange`, int64."""
    return mapped_concatenate((np.arange(piece.start, piece.stop) for piece in pieces(rows)), rows)


def mapped_argsort(numbers: np.ndarray) -> np.ndarray:
    """`np.argsort(numbers, kind="stable")` of whole numbers, (rows,) int64.

    Number and place are packed into one word each, which are sorted where they lie.
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
