"""Decoded cells kept in memory, packed tightly: a Python object a cell would cost several times what it holds."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from fusetune.data.storage.mapped import mapped_full, mapped_take, mapped_zeros, pieces

BLOCK = 2**20
"""Bytes that short arrays are laid into, one after another."""
SLOT = 100
"""Bytes that a dictionary takes for an entry, about."""


class PackedExamples:
    """Examples by place, as they were put in.

    Arrays of one dimension and numbers are packed, where they are many in files; anything else is kept as the object
    that it is.
    """

    def __init__(self, num: int) -> None:
        """
        Args:
            num: how many places there are.
        """
        self._num = num
        self._objects: dict[int, Any] = {}
        self._dtype: np.dtype[Any] | None = None
        self._blocks: list[np.ndarray] = []
        self._filled = BLOCK
        self._starts = self._lengths = np.zeros(0, dtype=np.int64)
        self._numbers = np.zeros(0)
        self._is_number = np.zeros(0, dtype=bool)

    def __contains__(self, place: int) -> bool:
        return self._is_packed(place) or self._is_float(place) or place in self._objects

    def __len__(self) -> int:
        packed = int((self._lengths >= 0).sum()) if len(self._lengths) else 0
        return packed + int(self._is_number.sum()) + len(self._objects)

    def _is_packed(self, place: int) -> bool:
        return len(self._lengths) > 0 and bool(self._lengths[place] >= 0)

    def _is_float(self, place: int) -> bool:
        return len(self._is_number) > 0 and bool(self._is_number[place])

    def add(self, place: int, example: Any, free: int) -> int:
        """Keep an example that takes no more than `free` bytes; gives the bytes that it takes, 0 if it is not kept."""
        if type(example) is float:
            return self._add_number(place, example) if free >= 9 else 0
        if isinstance(example, np.ndarray) and self._packs(example):
            return self._pack(place, example) if free >= example.nbytes + 12 else 0
        size = SLOT + held(example)
        if size > free:
            return 0
        self._objects[place] = example
        return size

    def _add_number(self, place: int, value: float) -> int:
        if not len(self._is_number):
            self._numbers, self._is_number = mapped_zeros((self._num,), np.float64), mapped_zeros((self._num,), bool)
        self._numbers[place], self._is_number[place] = value, True
        return 9

    def _packs(self, example: np.ndarray) -> bool:
        plain = example.ndim == 1 and example.nbytes <= BLOCK // 16 and example.dtype.kind in "iuf"
        return plain and self._dtype in (None, example.dtype)

    def _pack(self, place: int, example: np.ndarray) -> int:
        if self._dtype is None:
            self._dtype = example.dtype
            self._starts = mapped_zeros((self._num,), np.int64)
            self._lengths = mapped_full(self._num, -1, np.int32)
        capacity = BLOCK // self._dtype.itemsize
        if self._filled + len(example) > capacity:
            self._blocks.append(mapped_zeros((capacity,), self._dtype))
            self._filled = 0
        self._blocks[-1][self._filled : self._filled + len(example)] = example
        self._starts[place] = (len(self._blocks) - 1) * capacity + self._filled
        self._lengths[place] = len(example)
        self._filled += len(example)
        return example.nbytes + 12

    def get(self, place: int) -> Any:
        """The example at a place that has one; an array is a view, not to be changed."""
        if place in self._objects:
            return self._objects[place]
        if self._is_float(place):
            return float(self._numbers[place])
        assert self._dtype is not None and self._lengths[place] >= 0, "nothing is kept there"
        block, start = divmod(int(self._starts[place]), BLOCK // self._dtype.itemsize)
        return self._blocks[block][start : start + int(self._lengths[place])]

    def numbers(self, places: np.ndarray) -> np.ndarray | None:
        """(places,) float64 where each of these places has a number, else None."""
        if not len(self._is_number) or not all(self._is_number[places[piece]].all() for piece in pieces(len(places))):
            return None
        return mapped_take(self._numbers, places)


def held(example: Any) -> int:
    """Bytes of an object and what it holds."""
    own = sys.getsizeof(example)
    if isinstance(example, np.ndarray):
        return own + (0 if example.flags.owndata else int(example.nbytes))
    if isinstance(example, list | tuple):
        return own + sum(map(held, example))
    return own
