"""Random, stratified and grouped assignment of rows to splits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fusetune.data.storage.mapped import (
    mapped_argsort,
    mapped_concatenate,
    mapped_flatnonzero,
    mapped_full,
    mapped_take,
    mapped_zeros,
    pieces,
)


def partition(strata: np.ndarray, units: np.ndarray, fractions: Sequence[float], seed: int) -> np.ndarray:
    """Assign rows to parts: units stay together, strata are spread in proportion, and no part is empty.

    Args:
        strata: (rows,) int64, each row's class, from 0.
        units: (rows,) int64, from 0 without gaps; rows of one unit stay together. At least as many units as parts.
        fractions: the parts' shares, above 0, summing to 1; the first part is train.
        seed: equal seeds give equal parts.

    Returns:
        (rows,) int64, each row's part. Rare strata have a row in train where another unit can stay in their part.
    """
    rng = np.random.default_rng(seed)
    shares = np.asarray(fractions, dtype=np.float64)
    members = _Units(units)
    which = mapped_full(len(units), -1, np.int64)
    _place_groups([members.rows(int(index)) for index in np.flatnonzero(members.sizes > 1)], strata, shares, which, rng)
    _place_singles(mapped_take(members.first, mapped_flatnonzero(members.sizes == 1)), strata, shares, which, rng)
    _fill_empty(members, which, len(shares))
    _keep_rare(members, strata, which)
    return which


class _Units:
    """The rows of each unit.

    Attributes:
        numbers: (rows,) int64, each row's unit.
        sizes: (units,) int64, the rows of each.
        first: (units,) int64, the first row of each.
    """

    def __init__(self, numbers: np.ndarray) -> None:
        self.numbers, self.sizes = numbers, _counts(numbers)
        self._order = mapped_argsort(numbers)
        self._starts = mapped_zeros(self.sizes.shape, np.int64)
        np.cumsum(self.sizes, out=self._starts)
        self._starts -= self.sizes
        self.first = mapped_take(self._order, self._starts)

    def rows(self, unit: int) -> np.ndarray:
        """Return a unit's rows in ascending order."""
        return self._order[self._starts[unit] : self._starts[unit] + self.sizes[unit]]


def _counts(numbers: np.ndarray) -> np.ndarray:
    """Return `np.bincount(numbers)`, memory-mapped and computed in pieces."""
    counts = mapped_zeros((int(numbers.max(initial=-1)) + 1,), np.int64)
    for piece in pieces(len(numbers)):
        np.add.at(counts, numbers[piece], 1)
    return counts


def _place_groups(
    groups: list[np.ndarray], strata: np.ndarray, shares: np.ndarray, which: np.ndarray, rng: np.random.Generator
) -> None:
    """Assign groups, largest first, each to the part with room for it that lacks its classes most."""
    desired = shares[:, None] * _counts(strata)[None, :]  # (parts, strata)
    room = shares * len(strata)
    have = np.zeros_like(desired)
    shuffled = [groups[index] for index in rng.permutation(len(groups))]
    for rows in sorted(shuffled, key=len, reverse=True):
        classes, counts = np.unique(strata[rows], return_counts=True)
        lack = ((1 - have[:, classes] / np.maximum(desired[:, classes], 1e-9)) * counts).sum(1) / len(rows)
        fits = room >= len(rows)
        part = int(np.argmax(np.where(fits, lack, -np.inf))) if fits.any() else int(np.argmax(room))
        which[rows] = part
        room[part] -= len(rows)
        have[part, classes] += counts


def _place_singles(
    rows: np.ndarray, strata: np.ndarray, shares: np.ndarray, which: np.ndarray, rng: np.random.Generator
) -> None:
    """Assign single rows: in order of their class, each part takes evenly spaced ones, which stratifies it."""
    if not len(rows):
        return
    rng.shuffle(rows)
    if np.count_nonzero(_counts(strata)) <= shares[0] * len(strata) / 2:
        first = mapped_full(int(strata.max()) + 1, len(rows), np.int64)
        for piece in pieces(len(rows)):
            np.minimum.at(first, strata[rows[piece]], np.arange(piece.start, piece.stop))
        rare = first[(first < len(rows)) & ~_in_train(strata, which)]
        which[rows[rare]] = 0
        others = mapped_full(len(rows), True, bool)
        others[rare] = False
        rows = mapped_take(rows, mapped_flatnonzero(others))
    ranks = rng.permutation(int(strata.max()) + 1)
    left = mapped_take(rows, mapped_argsort(mapped_take(ranks, mapped_take(strata, rows))))
    _put(which, left, 0)
    for part in range(len(shares) - 1, 0, -1):
        lacking = max(shares[part] * len(strata) - np.count_nonzero(which == part), 0)
        chosen = _evenly_spaced(len(left), min(lacking / max(len(left), 1), 1.0))
        _put(which, mapped_take(left, mapped_flatnonzero(chosen)), part)
        left = mapped_take(left, mapped_flatnonzero(np.logical_not(chosen, out=chosen)))


def _in_train(strata: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Return which strata have a row in train, (strata,) bool."""
    result = mapped_zeros((int(strata.max(initial=-1)) + 1,), bool)
    for piece in pieces(len(strata)):
        result[strata[piece][which[piece] == 0]] = True
    return result


def _put(which: np.ndarray, rows: np.ndarray, part: int) -> None:
    for piece in pieces(len(rows)):
        which[rows[piece]] = part


def _evenly_spaced(num: int, rate: float) -> np.ndarray:
    """Return a (num,) bool mask with `num * rate` evenly spaced True values."""
    steps = (np.floor(np.arange(piece.start, piece.stop + 1) * rate + 0.5) for piece in pieces(num))
    return mapped_concatenate((np.diff(step) > 0 for step in steps), num)


def _fill_empty(members: _Units, which: np.ndarray, num_parts: int) -> None:
    """Move the smallest unit of the part with the most units into each part without rows."""
    for part in range(num_parts):
        if (which == part).any():
            continue
        owners = which[members.first]
        owned = np.flatnonzero(owners == np.bincount(owners, minlength=num_parts).argmax())
        which[members.rows(int(owned[members.sizes[owned].argmin()]))] = part


def _keep_rare(members: _Units, strata: np.ndarray, which: np.ndarray) -> None:
    """Move a unit of each class that train lacks into train, if its part keeps another unit."""
    lost = np.flatnonzero((_counts(strata) > 0) & ~_in_train(strata, which))
    if not len(lost) or len(lost) > len(members.sizes) / 4:
        return
    owners = which[members.first]
    for stratum in lost:
        if (strata[which == 0] == stratum).any():
            continue
        holding = np.unique(members.numbers[strata == stratum])
        spare = holding[np.bincount(owners)[owners[holding]] > 1]
        if len(spare):
            index = int(spare[members.sizes[spare].argmin()])
            which[members.rows(index)] = 0
            owners[index] = 0
