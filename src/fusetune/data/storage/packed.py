"""Decoded cells packed into arrays: one Python object per cell would take several times the memory of its content."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from fusetune.data.storage.mapped import mapped_full, mapped_take, mapped_zeros, pieces

BLOCK = 2**20
"""Size in bytes of a block, in which short arrays are stored one after another."""
SLOT = 100
"""Approximate size in bytes of a dictionary entry."""


class PackedExamples:
    """Examples by index.

    Numbers and one-dimensional arrays are packed, memory-mapped if there are many; other objects are kept unchanged.
    """

    def __init__(self, num: int) -> None:
        """
        Args:
            num: number of indices.
        """
        self._num = num
        self._objects: dict[int, Any] = {}
        self._dtype: np.dtype[Any] | None = None
        self._blocks: list[np.ndarray] = []
        self._filled = BLOCK
        self._starts = self._lengths = np.zeros(0, dtype=np.int64)
        self._numbers = np.zeros(0)
        self._is_number = np.zeros(0, dtype=bool)

    def __contains__(self, index: int) -> bool:
        return self._is_packed(index) or self._is_float(index) or index in self._objects

    def __len__(self) -> int:
        packed = int((self._lengths >= 0).sum()) if len(self._lengths) else 0
        return packed + int(self._is_number.sum()) + len(self._objects)

    def _is_packed(self, index: int) -> bool:
        return len(self._lengths) > 0 and bool(self._lengths[index] >= 0)

    def _is_float(self, index: int) -> bool:
        return len(self._is_number) > 0 and bool(self._is_number[index])

    def add(self, index: int, example: Any, free: int) -> int:
        """Store an example if it needs at most `free` bytes; return the bytes used, 0 if it was not stored."""
        if type(example) is float:
            return self._add_number(index, example) if free >= 9 else 0
        if isinstance(example, np.ndarray) and self._packs(example):
            return self._pack(index, example) if free >= example.nbytes + 12 else 0
        size = SLOT + nbytes_of(example)
        if size > free:
            return 0
        self._objects[index] = example
        return size

    def _add_number(self, index: int, value: float) -> int:
        if not len(self._is_number):
            self._numbers, self._is_number = mapped_zeros((self._num,), np.float64), mapped_zeros((self._num,), bool)
        self._numbers[index], self._is_number[index] = value, True
        return 9

    def _packs(self, example: np.ndarray) -> bool:
        plain = example.ndim == 1 and example.nbytes <= BLOCK // 16 and example.dtype.kind in "iuf"
        return plain and self._dtype in (None, example.dtype)

    def _pack(self, index: int, example: np.ndarray) -> int:
        if self._dtype is None:
            self._dtype = example.dtype
            self._starts = mapped_zeros((self._num,), np.int64)
            self._lengths = mapped_full(self._num, -1, np.int32)
        capacity = BLOCK // self._dtype.itemsize
        if self._filled + len(example) > capacity:
            self._blocks.append(mapped_zeros((capacity,), self._dtype))
            self._filled = 0
        self._blocks[-1][self._filled : self._filled + len(example)] = example
        self._starts[index] = (len(self._blocks) - 1) * capacity + self._filled
        self._lengths[index] = len(example)
        self._filled += len(example)
        return example.nbytes + 12

    def get(self, index: int) -> Any:
        """Return the example at an index that has one; an array is a view that must not be changed."""
        if index in self._objects:
            return self._objects[index]
        if self._is_float(index):
            return float(self._numbers[index])
        assert self._dtype is not None and self._lengths[index] >= 0, "the index has an example"
        block, start = divmod(int(self._starts[index]), BLOCK // self._dtype.itemsize)
        return self._blocks[block][start : start + int(self._lengths[index])]

    def numbers(self, indices: np.ndarray) -> np.ndarray | None:
        """Return the numbers at these indices, float64 of the same shape, or None if one of them has no number."""
        if not len(self._is_number) or not all(self._is_number[indices[piece]].all() for piece in pieces(len(indices))):
            return None
        return mapped_take(self._numbers, indices)


def nbytes_of(example: Any) -> int:
    """Return the size of an object and its content in bytes."""
    own = sys.getsizeof(example)
    if isinstance(example, np.ndarray):
        return own + (0 if example.flags.owndata else int(example.nbytes))
    if isinstance(example, list | tuple):
        return own + sum(map(nbytes_of, example))
    return own
