"""`Column`: the distinct cells of a column, decoded once and cached within a memory budget."""

from __future__ import annotations

import copy
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusetune.data.detect.media import MEDIA
from fusetune.data.distinct import Cells
from fusetune.data.reading.fetch import protocol
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
from fusetune.modalities.passages import text_tokens
from fusetune.types import TextTokens, Tokens

PREFETCH = 512
"""Cells that are decoded ahead, at most."""
CELLS_A_TASK = 16
"""Cells that a thread decodes at a time, as passing a single cell to a thread costs more than decoding it."""
ROWS_A_CHUNK = 4096
"""Rows whose examples are decoded together while a modality is fitted."""
Progress = Callable[[Iterator[Any], str, int], Iterator[Any]]


class Column:
    """The distinct cells of a column and their examples.

    Attributes:
        modality: of the column.
        base_dir: folder that relative media paths start from.
        cells: the distinct cells, a lazy sequence.
        codes: (rows,) the index in `cells` of each row's cell, -1 where it is missing or cannot be decoded; int32 where
            that is wide enough.
        bad: the cells that cannot be decoded, by their index in `cells`.
        sizes: (cells,) int32, the cost of encoding each cell.
        features: the precomputed encoder output, (cells, tokens, dim), or None.
        trunk: `trunk(indices of cells)` returns the encoder's input where its first layers ran before; or None.
        keys: (rows,) int64, equal where cells are equal, also between columns with common keys; -1 where it is missing.
            None: `codes` tell which cells of this column are equal.
    """

    def __init__(self, modality: Modality, table: Table, name: str, rows: np.ndarray | None = None) -> None:
        """
        Args:
            modality: decodes the cells.
            table: holds them.
            name: of the column in the table.
            rows: positions of rows, each of which gets a cell of its own; None takes the distinct cells of all rows.
        """
        self.modality, self.base_dir = modality, table.base_dir
        self._fetcher = table.fetcher if modality.kind in MEDIA else None
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
        self.keys: np.ndarray | None = None
        self._rows = table.rows
        self._cache = PackedExamples(len(self.cells))

    def given(
        self, *, features: Tokens | None = None, trunk: Callable[[np.ndarray], dict[str, Tensor]] | None = None
    ) -> Column:
        """Return a view of the column with precomputed features; the cells are shared, not copied."""
        view = copy.copy(self)
        view.features, view.trunk = features, trunk
        return view

    @property
    def row_keys(self) -> np.ndarray:
        """(rows,) which tell rows with equal cells: `keys`, or `codes` without them."""
        return self.codes if self.keys is None else self.keys

    def of_rows(self, rows: np.ndarray) -> Column:
        """Return a view in which each row has the cell of another row; the cells are shared, not copied.

        Args:
            rows: (rows,) the positions of the rows whose cells are taken; -1 for a missing cell.
        """
        view = copy.copy(self)
        view.codes = np.where(rows >= 0, self.codes[rows], -1).astype(self.codes.dtype)
        view.keys = None if self.keys is None else np.where(rows >= 0, self.keys[rows], -1)
        return view

    def keyed(self, keys: np.ndarray) -> Column:
        """Return a view of the column with keys; the cells are shared, not copied."""
        view = copy.copy(self)
        view.keys = keys
        return view

    def decode_all(self, budget: int, progress: Progress | None = None) -> int:
        """Decode every distinct cell once, cache examples up to `budget` bytes, and return the bytes used."""
        used = 0
        steps = self._decoded()
        if progress is not None:
            steps = progress(steps, f"reading {self.modality.column}", len(self.cells))
        for index, outcome in enumerate(steps):
            if isinstance(outcome, BadCell):
                self.bad[index] = outcome
                continue
            self.sizes[index] = self.modality.size(outcome)
            used += self._cache.add(index, outcome, budget - used)
        return used

    def _decoded(self) -> Iterator[Any]:
        if len(self.cells) <= CELLS_A_TASK:  # as in a request to a server: starting a thread would take longer
            yield from itertools.starmap(self._try_decode, enumerate(self.cells.take(range(len(self.cells)))))
            return
        ahead = min(PREFETCH, self.cells.table.at_once(self.cells.column))
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(self.cells), ahead):
                indices = range(start, min(start + ahead, len(self.cells)))
                cells = list(zip(indices, self.cells.take(indices), strict=True))
                some = [cells[first : first + CELLS_A_TASK] for first in range(0, len(cells), CELLS_A_TASK)]
                for outcomes in pool.map(lambda part: [self._try_decode(*item) for item in part], some):
                    yield from outcomes

    def _try_decode(self, index: int, cell: Any) -> Any:
        try:
            return self._decode(index, cell)
        except BadCell as error:
            return error

    def _decode(self, index: int, cell: Any) -> Any:
        row = int(self._rows[self._first[index]])
        here = self._here(cell, row)
        try:
            return self.modality.decode(here, row=row, base_dir=self.base_dir)
        except BadCell as error:
            if here is cell:
                raise
            raise BadCell(row=row, column=error.column or "", value=cell, why=error.why, do=error.do) from None

    def _here(self, cell: Any, row: int) -> Any:
        """Return a cell with files on this machine in the place of addresses that are fetched."""
        return cell if self._fetcher is None else self._fetcher.local(cell, row=row, column=self.modality.column)

    def local(self, indices: Sequence[int] | np.ndarray) -> list[Any]:
        """Return some distinct cells, with files on this machine in the place of addresses that are fetched."""
        cells = self.cells.take(indices)
        if self._fetcher is None:
            return cells
        rows = self._rows[self._first[np.asarray(indices, dtype=np.int64)]]
        return [self._here(cell, int(row)) for cell, row in zip(cells, rows, strict=True)]

    def fetched(self) -> tuple[str, str] | None:
        """Return a sentence on the column's media that were fetched and a digest of them; None where none were."""
        if self._fetcher is None:
            return None
        cells = [cell for cell in self.cells if protocol(cell) or not isinstance(cell, str)]
        note = self._fetcher.note(self.modality.column, cells)
        return None if note is None else (note, self._fetcher.digest(cells))

    def example(self, index: int) -> Any:
        """Return a distinct cell's example, cached or decoded again."""
        return self.examples([index])[0]

    def examples(self, indices: Sequence[int] | np.ndarray) -> list[Any]:
        """Return some distinct cells' examples; those that are not cached are decoded again, together."""
        requested = [int(index) for index in indices]
        uncached = list(dict.fromkeys(index for index in requested if index not in self._cache))
        cells = zip(uncached, self.cells.take(uncached), strict=True)
        decoded = {index: self._decode(index, cell) for index, cell in cells}
        return [decoded[index] if index in decoded else self._cache.get(index) for index in requested]

    def text_tokens(self, rows: np.ndarray) -> TextTokens:
        """Return what a column of text's tokens stand for in some rows, by their positions in the table.

        Args:
            rows: (rows,); a row without the column has no real token.
        """
        modality: Any = self.modality
        codes = self.codes[rows]
        distinct, inverse = np.unique(codes[codes >= 0], return_inverse=True)
        spans = [modality.tokens(example) for example in self.examples(distinct)]
        read: list[list[str]] = [modality.texts(cell, row=-1) for cell in self.cells.take(distinct)]
        which = np.full(len(rows), -1)
        which[codes >= 0] = inverse
        return text_tokens(
            [spans[place] if place >= 0 else None for place in which],
            [read[place] if place >= 0 else () for place in which],
        )

    def token_ids(self, places: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Some distinct cells' token ids, for a column of text."""
        return [self.modality.token_ids(example) for example in self.examples(places)]  # type: ignore[attr-defined]

    def unread(self) -> Iterator[int]:
        """Yield the positions of the rows whose cell cannot be decoded, ascending."""
        for piece in pieces(len(self.codes)) if self.bad else ():
            yield from (np.flatnonzero(np.isin(self.codes[piece], list(self.bad))) + piece.start).tolist()

    def learn(self, codes: np.ndarray) -> None:
        """Fit the modality on the examples of some rows, given by their codes; missing cells (-1) are left out."""
        codes = mapped_take(codes, mapped_flatnonzero(codes >= 0))
        if type(self.modality).fit is Modality.fit:
            return
        numbers = self._cache.numbers(codes)
        self.modality.fit(_LazyExamples(self, codes) if numbers is None else numbers)  # type: ignore[arg-type]

    def rows_of(self, codes: np.ndarray) -> Sequence[Any]:
        """Return a lazy sequence of the examples of some rows, given by their codes."""
        return _LazyExamples(self, codes)

    def costs(self, codes: np.ndarray) -> np.ndarray:
        """Return the cost of encoding the cells with these codes, (codes,) int64; 0 where a code is -1."""
        if not len(self.sizes):
            return np.zeros(len(codes), dtype=np.int64)
        return np.where(codes >= 0, self.sizes[codes], 0).astype(np.int64)

    def good(self) -> np.ndarray:
        """Return the indices of the cells that can be decoded, the most costly first."""
        good = mapped_full(len(self.cells), True, bool)
        good[list(self.bad)] = False
        indices = mapped_flatnonzero(good)
        costs = mapped_take(self.sizes, indices)
        order = mapped_argsort(np.negative(costs, out=costs))
        return mapped_concatenate((indices[order[piece]].astype(np.int64) for piece in pieces(len(order))), len(order))

    def some_cell(self) -> np.ndarray:
        """Return the index of a distinct cell that can be decoded, (1,) int64; (0,) where there is none."""
        result = next((index for index in range(len(self.cells)) if index not in self.bad), None)
        return np.asarray([] if result is None else [result], dtype=np.int64)

    def tensors(self, indices: np.ndarray) -> dict[str, Tensor]:
        """Return the encoder's input for some distinct cells."""
        if self.features is not None:
            chosen = torch.from_numpy(indices.astype(np.int64))
            real = self.features.mask[chosen]
            longest = int(real.any(0).nonzero().max()) + 1 if real.any() else real.shape[1]  # trims padding
            return {"features": self.features.values[chosen, :longest], "real": real[:, :longest]}
        if self.trunk is not None:
            return self.trunk(indices)
        return self.modality.collate(self.examples(indices))

    def digests(self) -> np.ndarray:
        """Return a hash of every cell's example, (cells, 16) uint8, comparable across tables; zeros for bad cells."""
        result = mapped_zeros((len(self.cells), 16), np.uint8)
        step = self.cells.table.at_once(self.cells.column)
        for start in range(0, len(result), step):
            indices = [p for p in range(start, min(start + step, len(result))) if p not in self.bad]
            for index, example in zip(indices, self.examples(indices), strict=True):
                sums = hashlib.blake2b(digest_size=16)
                _digest(example, sums)
                result[index] = np.frombuffer(sums.digest(), dtype=np.uint8)
        return result


class _LazyExamples(Sequence[Any]):
    """A lazy sequence of the examples of some rows, decoded in chunks."""

    def __init__(self, column: Column, codes: np.ndarray) -> None:
        self.column, self.codes = column, codes

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: Any) -> Any:
        codes = self.codes[index]
        return self.column.examples(codes) if isinstance(index, slice) else self.column.example(int(codes))

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), ROWS_A_CHUNK):
            yield from self[start : start + ROWS_A_CHUNK]

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
