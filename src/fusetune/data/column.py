"""One column's distinct cells: read once, kept within a budget, read again where they are not."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusetune.data.distinct import Cells
from fusetune.data.storage.mapped import (
    index_type,
    mapped_argsort,
    mapped_concatenate,
    mapped_flatnonzero,
    mapped_full,
    mapped_take,
    mapped_zeros,
    pieces,
)
from fusetune.data.storage.packed import PackedExamples
from fusetune.data.table import Table
from fusetune.errors import BadCell
from fusetune.modalities.base import Modality
from fusetune.types import Tokens

DECODE_AHEAD = 512
DECODE_TOGETHER = 16
"""Cells that a thread decodes one after another: a cell alone takes less than handing it over."""
LEARNT_TOGETHER = 4096
"""Rows whose examples a modality is given together."""
Progress = Callable[[Iterator[Any], str, int], Iterator[Any]]


class Column:
    """One column's distinct cells, which stay in the table.

    Attributes:
        cells: the distinct cells as the table has them, read when they are asked for.
        codes: (rows,), which of them each row has, -1 where it is missing or could not be read; int32 where it is wide
            enough.
        bad: the cells that could not be read, by their place in `cells`.
        sizes: (cells,) int32, what each costs to encode.
        features: (cells, tokens, dim), the encoder's output computed before, or None.
        trunk: from places of cells to the encoder's input, where its first layers ran before; or None.
    """

    def __init__(self, modality: Modality, table: Table, name: str, rows: np.ndarray | None = None) -> None:
        """
        Args:
            modality: reads the cells.
            table: has them.
            name: of the column in it.
            rows: whose cells are taken, each for one of its own; where None, the distinct cells of all rows.
        """
        self.modality, self.base_dir = modality, table.base_dir
        if rows is None:
            self.codes, self._first = table.distinct(name)
        else:
            self.codes, self._first = mapped_full(len(table), -1, index_type(len(table))), rows
            for piece in pieces(len(rows)):
                self.codes[rows[piece]] = np.arange(piece.start, piece.stop)
        self.cells: Cells = table.lazy(name, self._first)
        self.bad: dict[int, BadCell] = {}
        self.sizes = mapped_zeros((len(self.cells),), np.int32)
        self.features: Tokens | None = None
        self.trunk: Callable[[np.ndarray], dict[str, Tensor]] | None = None
        self._rows = table.rows
        self._kept = PackedExamples(len(self.cells))

    def given(
        self, *, features: Tokens | None = None, trunk: Callable[[np.ndarray], dict[str, Tensor]] | None = None
    ) -> Column:
        """Return this column with what was computed of its cells before; the cells are shared, not copied."""
        view = copy.copy(self)
        view.features, view.trunk = features, trunk
        return view

    def decode_all(self, budget: int, progress: Progress | None = None) -> int:
        """Read every distinct cell once; keep what fits into `budget` bytes and return the bytes kept."""
        used = 0
        steps = self._decoded()
        if progress is not None:
            steps = progress(steps, f"reading {self.modality.column}", len(self.cells))
        for place, outcome in enumerate(steps):
            if isinstance(outcome, BadCell):
                self.bad[place] = outcome
                continue
            self.sizes[place] = self.modality.size(outcome)
            used += self._kept.add(place, outcome, budget - used)
        return used

    def _decoded(self) -> Iterator[Any]:
        ahead = min(DECODE_AHEAD, self.cells.table.at_once(self.cells.column))
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(self.cells), ahead):
                places = range(start, min(start + ahead, len(self.cells)))
                cells = list(zip(places, self.cells.take(places), strict=True))
                some = [cells[first : first + DECODE_TOGETHER] for first in range(0, len(cells), DECODE_TOGETHER)]
                for outcomes in pool.map(lambda part: [self._try_decode(*one) for one in part], some):
                    yield from outcomes

    def _try_decode(self, place: int, cell: Any) -> Any:
        try:
            return self._decode(place, cell)
        except BadCell as error:
            return error

    def _decode(self, place: int, cell: Any) -> Any:
        return self.modality.decode(cell, row=int(self._rows[self._first[place]]), base_dir=self.base_dir)

    def example(self, place: int) -> Any:
        """Return a distinct cell's example, from memory or decoded again."""
        return self.examples([place])[0]

    def examples(self, places: Sequence[int] | np.ndarray) -> list[Any]:
        """Some distinct cells' examples; those that are not in memory are read together."""
        wanted = [int(place) for place in places]
        lost = list(dict.fromkeys(place for place in wanted if place not in self._kept))
        again = {place: self._decode(place, cell) for place, cell in zip(lost, self.cells.take(lost), strict=True)}
        return [again[place] if place in again else self._kept.get(place) for place in wanted]

    def unread(self) -> Iterator[int]:
        """Yield the rows whose cell could not be read, in order."""
        for piece in pieces(len(self.codes)) if self.bad else ():
            yield from (np.flatnonzero(np.isin(self.codes[piece], list(self.bad))) + piece.start).tolist()

    def learn(self, codes: np.ndarray) -> None:
        """Let the modality learn from the examples of some rows, by their codes; rows without a cell are left out."""
        codes = mapped_take(codes, mapped_flatnonzero(codes >= 0))
        if type(self.modality).fit is Modality.fit:
            return
        numbers = self._kept.numbers(codes)
        self.modality.fit(_Lazy(self, codes) if numbers is None else numbers)  # type: ignore[arg-type]

    def rows_of(self, codes: np.ndarray) -> Sequence[Any]:
        """Return the examples of some rows, by their codes, made when asked for."""
        return _Lazy(self, codes)

    def costs(self, codes: np.ndarray) -> np.ndarray:
        """Return what each of some rows' cells costs to encode, by its code, (codes,) int64; 0 where there is none."""
        if not len(self.sizes):
            return np.zeros(len(codes), dtype=np.int64)
        return np.where(codes >= 0, self.sizes[codes], 0).astype(np.int64)

    def good(self) -> np.ndarray:
        """Return the places of the cells that could be read, most costly first."""
        good = mapped_full(len(self.cells), True, bool)
        good[list(self.bad)] = False
        places = mapped_flatnonzero(good)
        costs = mapped_take(self.sizes, places)
        order = mapped_argsort(np.negative(costs, out=costs))
        return mapped_concatenate((places[order[piece]].astype(np.int64) for piece in pieces(len(order))), len(order))

    def some_cell(self) -> np.ndarray:
        """Return the place of a distinct cell that can be read, none where there is none."""
        found = next((place for place in range(len(self.cells)) if place not in self.bad), None)
        return np.asarray([] if found is None else [found], dtype=np.int64)

    def tensors(self, places: np.ndarray) -> dict[str, Tensor]:
        """Return the encoder's input for some distinct cells."""
        if self.features is not None:
            chosen = torch.from_numpy(places.astype(np.int64))
            real = self.features.mask[chosen]
            longest = int(real.any(0).nonzero().max()) + 1 if real.any() else real.shape[1]  # no more than needed
            return {"features": self.features.values[chosen, :longest], "real": real[:, :longest]}
        if self.trunk is not None:
            return self.trunk(places)
        return self.modality.collate(self.examples(places))

    def digests(self) -> np.ndarray:
        """Return (cells, 16) uint8, equal for cells with equal examples, in any table; zeros for bad ones."""
        found = mapped_zeros((len(self.cells), 16), np.uint8)
        step = self.cells.table.at_once(self.cells.column)
        for start in range(0, len(found), step):
            places = [p for p in range(start, min(start + step, len(found))) if p not in self.bad]
            for place, example in zip(places, self.examples(places), strict=True):
                sums = hashlib.blake2b(digest_size=16)
                _digest(example, sums)
                found[place] = np.frombuffer(sums.digest(), dtype=np.uint8)
        return found


class _Lazy(Sequence[Any]):
    """The examples of some rows, by their codes, made some at a time."""

    def __init__(self, column: Column, codes: np.ndarray) -> None:
        self.column, self.codes = column, codes

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, place: Any) -> Any:
        codes = self.codes[place]
        return self.column.examples(codes) if isinstance(place, slice) else self.column.example(int(codes))

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), LEARNT_TOGETHER):
            yield from self[start : start + LEARNT_TOGETHER]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(list(self), dtype)


def _digest(example: Any, sums: Any) -> None:
    if isinstance(example, list | tuple):
        sums.update(f"[{len(example)}".encode())
        for part in example:
            _digest(part, sums)
    elif isinstance(example, np.ndarray):
        sums.update(f"{example.dtype.str}{example.shape}".encode())
        sums.update(np.ascontiguousarray(example).data)
    else:
        sums.update(repr(example).encode())
