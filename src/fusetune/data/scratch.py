"""Large arrays that need not fit into memory: beyond a size they lie in a file without a name, mapped."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from fusetune.errors import StorageError

LARGE = 16 * 2**20
"""Bytes from which on an array lies in a file."""
PIECE_ROWS = 65_536
"""Rows that are computed at a time where the rest of them stays in a file."""


def room(shape: Sequence[int], dtype: Any = np.float32) -> np.ndarray:
    """Zeros to be filled in. A large array's file is gone with it; the system keeps as much of it in memory as is free.

    Raises:
        StorageError: the temporary folder has no space.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < max(LARGE, 1):
        return np.zeros(shape, dtype)
    try:
        with tempfile.TemporaryFile(prefix="fusetune-") as file:
            if hasattr(os, "posix_fallocate"):  # a disk that is full is found out here, not when a page is written
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            return np.frombuffer(mmap.mmap(file.fileno(), size), dtype).reshape(shape)
    except OSError as error:
        raise StorageError(
            f"{tempfile.gettempdir()}: {size / 2**30:.1f} GiB cannot be laid out there ({error}). Free some, or set "
            "TMPDIR to another disk"
        ) from error


def pieces(rows: int) -> list[slice]:
    """`PIECE_ROWS` rows at a time; one empty piece of no rows."""
    return [slice(start, min(start + PIECE_ROWS, rows)) for start in range(0, max(rows, 1), PIECE_ROWS)]
