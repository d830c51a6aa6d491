"""A table's rows, decoded: each distinct cell is read once, and rows become batches."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fusetune.data.quarantine import Rejected
from fusetune.data.table import Table, is_missing
from fusetune.errors import BadCell
from fusetune.modalities.base import Augmenter, Modality
from fusetune.types import Batch, Tokens

if TYPE_CHECKING:
    from fusetune.tasks.base import Task

DECODE_AHEAD = 512
DECODE_TOGETHER = 16
"""Cells that a thread decodes one after another: a cell alone takes less than handing it over."""
Progress = Callable[[Iterator[Any], str, int], Iterator[Any]]


def cell_key(cell: Any) -> Any:
    """Equal for equal cells, hashable; 1, 1.0, True and "1" differ."""
    if isinstance(cell, str | bytes | int | float | bool):
        return type(cell), cell
    return "json", json.dumps(cell, sort_keys=True, default=_jsonable)


def _jsonable(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else str(value)


class Column:
    """One column's distinct cells.

    Attributes:
        cells: the distinct cells as the table has them.
        codes: (rows,) int64, which of them each row has, -1 where it is missing or could not be read.
        bad: the cells that could not be read, by their place in `cells`.
        features: (cells, tokens, dim), the encoder's output computed before, or None.
        trunk: from places of cells to the encoder's input, where its first layers ran before; or None.
    """

    def __init__(self, modality: Modality, values: Sequence[Any], rows: np.ndarray, base_dir: Path) -> None:
        self.modality, self.base_dir = modality, base_dir
        self.cells: list[Any] = []
        self.bad: dict[int, BadCell] = {}
        self.features: Tokens | None = None
        self.trunk: Callable[[np.ndarray], dict[str, Tensor]] | None = None
        self.codes = np.full(len(values), -1, dtype=np.int64)
        self._examples: dict[int, Any] = {}
        self._sizes: list[int] = []
        self._first_row: list[int] = []
        places: dict[Any, int] = {}
        for index, value in enumerate(values):
            if is_missing(value):
                continue
            place = places.setdefault(cell_key(value), len(self.cells))
            if place == len(self.cells):
                self.cells.append(value)
                self._first_row.append(int(rows[index]))
            self.codes[index] = place

    def decode_all(self, budget: int, progress: Progress | None = None) -> int:
        """Read every distinct cell once; keep what fits into `budget` bytes and return the bytes kept."""
        used = 0
        steps = self._decoded()
        if progress is not None:
            steps = progress(steps, f"reading {self.modality.column}", len(self.cells))
        for place, outcome in enumerate(steps):
            if isinstance(outcome, BadCell):
                self.bad[place] = outcome
                self._sizes.append(0)
                continue
            self._sizes.append(self.modality.size(outcome))
            size = _bytes(outcome)
            if used + size <= budget:
                self._examples[place] = outcome
                used += size
        return used

    def _decoded(self) -> Iterator[Any]:
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(self.cells), DECODE_AHEAD):
                places = range(start, min(start + DECODE_AHEAD, len(self.cells)))
                some = [places[first : first + DECODE_TOGETHER] for first in range(0, len(places), DECODE_TOGETHER)]
                for outcomes in pool.map(lambda part: [self._try_decode(place) for place in part], some):
                    yield from outcomes

    def _try_decode(self, place: int) -> Any:
        try:
            return self.modality.decode(self.cells[place], row=self._first_row[place], base_dir=self.base_dir)
        except BadCell as error:
            return error

    def example(self, place: int) -> Any:
        """A distinct cell's example, from memory or decoded again."""
        if place in self._examples:
            return self._examples[place]
        return self.modality.decode(self.cells[place], row=self._first_row[place], base_dir=self.base_dir)

    def size(self, code: int) -> int:
        """What the cell costs to encode; 0 where there is none."""
        return self._sizes[code] if code >= 0 else 0

    def some_cell(self) -> np.ndarray:
        """The place of a distinct cell that can be read, none where there is none."""
        return np.asarray([place for place in range(len(self.cells)) if place not in self.bad][:1], dtype=np.int64)

    def tensors(self, places: np.ndarray) -> dict[str, Tensor]:
        """The encoder's input for some distinct cells."""
        if self.features is not None:
            chosen = torch.from_numpy(places)
            real = self.features.mask[chosen]
            longest = int(real.any(0).nonzero().max()) + 1 if real.any() else real.shape[1]  # no more than needed
            return {"features": self.features.values[chosen, :longest], "real": real[:, :longest]}
        if self.trunk is not None:
            return self.trunk(places)
        return self.modality.collate([self.example(int(place)) for place in places])

    def digest(self, place: int) -> bytes:
        """16 bytes that are equal for cells with equal examples, in any table."""
        sums = hashlib.blake2b(digest_size=16)
        _digest(self.example(place), sums)
        return sums.digest()


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


def _bytes(example: Any) -> int:
    if isinstance(example, np.ndarray):
        return int(example.nbytes)
    if isinstance(example, list | tuple):
        return sum(_bytes(part) for part in example)
    return len(example) if isinstance(example, str | bytes) else 32


class Examples:
    """Rows of a table that can be made into batches.

    `prepare` reads every cell once. After it, each row is either used or in `rejected`; a row that has none of
    its input columns is always rejected, as there is nothing to predict from.

    Attributes:
        augment: per column, what changes its cells in training; none but where it was put there.
        seed: of these changes.
        num_views: how many views of an augmented cell a frozen encoder sees in turn; 0: a new one in every epoch.
        views: per augmented column, its views, where they were made (`fusetune.data.views`).
        always: whether a batch without a cell of a column brings one that no row has, so that its encoder runs.
        mix: how train rows are drawn where the table is several joined ones, as `UpdateSampler` takes it.
    """

    def __init__(
        self,
        table: Table,
        modalities: Mapping[str, Modality],
        tasks: Mapping[str, Task] | None = None,
        *,
        weight: str | None = None,
        group: str | None = None,
    ) -> None:
        self.table = table
        self.rows = table.rows
        self.columns = {
            name: Column(modality, table.cells(name), table.rows, table.base_dir)
            for name, modality in modalities.items()
        }
        self.tasks = dict(tasks or {})
        self.targets = {name: table.cells(task.target) for name, task in self.tasks.items()}
        self.weights = np.ones(len(table), dtype=np.float32)
        self._weight = weight
        self.groups = _group_codes(table.cells(group)) if group is not None else np.full(len(table), -1, dtype=np.int64)
        self.rejected: list[Rejected] = []
        self.masked: list[Rejected] = []
        self.used = np.arange(len(table))
        self.augment: dict[str, Augmenter] = {}
        self.seed = 0
        self.num_views = 0
        self.views: dict[str, Sequence[Column]] = {}
        self.mix = 1.0
        self.always = False

    def prepare(self, *, on_bad_cell: str, memory: float = 4.0, progress: Progress | None = None) -> None:
        """Decode every cell, and set apart the rows that cannot be used.

        Args:
            on_bad_cell: "reject" sets apart every row with a cell that cannot be read; "mask" takes such a cell as
                missing, and notes it in `masked`.
            memory: GiB of decoded cells to keep.
            progress: wraps an iterator: (iterator, description, total).
        """
        budget = int(memory * 2**30)
        keep = np.ones(len(self.rows), dtype=bool)
        for name, column in self.columns.items():
            budget -= column.decode_all(budget, progress)
            noted = self.rejected if on_bad_cell == "reject" else self.masked
            for index in np.flatnonzero(np.isin(column.codes, list(column.bad))):
                error = column.bad[int(column.codes[index])]
                noted.append(Rejected(int(self.rows[index]), name, error.value, error.why))
                keep[index] &= on_bad_cell != "reject"
                column.codes[index] = -1
        self._read_weights(keep)
        absent = np.all([column.codes < 0 for column in self.columns.values()], axis=0)
        for index in np.flatnonzero(absent & keep):
            self.rejected.append(Rejected(int(self.rows[index]), None, None, "no input column has a value"))
        self.used = np.flatnonzero(keep & ~absent)

    def _augmented(self, name: str, places: np.ndarray, epoch: int) -> dict[str, Tensor]:
        """The encoder's input for a column's cells in some rows, augmented; these rows have it."""
        if views := self.views.get(name):
            view = views[epoch % len(views)]
            return view.tensors(view.codes[places])
        return self.columns[name].modality.collate([self.augmented(name, int(place), epoch) for place in places])

    def augmented(self, name: str, place: int, epoch: int) -> Any:
        """The example of a row's cell, which it has, as the column's augmenter changes it in an epoch."""
        column = self.columns[name]
        code, draws = int(column.codes[place]), _draws(self.seed, epoch, int(self.rows[place]), name)
        return self.augment[name](column.cells[code], column.example(code), draws, column.base_dir)

    def _read_weights(self, keep: np.ndarray) -> None:
        if self._weight is None:
            return
        for index, cell in enumerate(self.table.cells(self._weight)):
            try:
                weight = 1.0 if is_missing(cell) else float(cell)
                ok = np.isfinite(weight) and weight >= 0
            except (TypeError, ValueError):
                ok = False
            if ok:
                self.weights[index] = weight
            elif keep[index]:
                keep[index] = False
                why = "the weight is no number of 0 or more"
                self.rejected.append(Rejected(int(self.rows[index]), self._weight, cell, why))

    def fit(self) -> None:
        """Let the modalities learn from these rows, and the tasks from their targets: call it on train rows only."""
        for column in self.columns.values():
            if type(column.modality).fit is not Modality.fit:
                codes = column.codes[self.used]
                column.modality.fit([column.example(int(code)) for code in codes[codes >= 0]])
        for name, task in self.tasks.items():
            task.fit([self.targets[name][index] for index in self.used])

    def check_targets(self) -> None:
        """Set apart the used rows whose target cannot be encoded; call it once the tasks are fitted."""
        keep = []
        for index in self.used:
            try:
                for name, task in self.tasks.items():
                    value = self.targets[name][index]
                    if not is_missing(value):
                        task.check(value, row=int(self.rows[index]))
            except BadCell as error:
                self.rejected.append(Rejected.from_error(error))
            else:
                keep.append(index)
        self.used = np.asarray(keep, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.used)

    def restrict(self, columns: Collection[str]) -> Examples:
        """These rows as seen through some of the columns; rows that have none of them are not among the used.

        The cells and features are shared with this object, not copied.
        """
        view = copy.copy(self)
        view.columns = {name: column for name, column in self.columns.items() if name in columns}
        there = np.any([column.codes[self.used] >= 0 for column in view.columns.values()], axis=0)
        view.used = self.used[there]
        return view

    def labelled(self, task: str) -> np.ndarray:
        """Which of the used rows have the task's target: their places in the table."""
        return np.asarray([i for i in self.used if not is_missing(self.targets[task][i])], dtype=np.int64)

    def sizes(self, indices: np.ndarray) -> np.ndarray:
        """What each row costs to encode, over all its columns."""
        total = np.zeros(len(indices), dtype=np.int64)
        for column in self.columns.values():
            total += np.asarray([column.size(int(code)) for code in column.codes[indices]], dtype=np.int64)
        return total

    def batch(self, indices: Sequence[int] | np.ndarray, *, epoch: int | None = None) -> Batch:
        """Some rows, by their places in the table, as a batch.

        Args:
            indices: the places.
            epoch: of training: cells are augmented, each row's by itself, with draws that depend on (seed, epoch, row,
                column) alone. None: they are as they are.
        """
        places = np.asarray(indices, dtype=np.int64)
        inputs: dict[str, dict[str, Tensor]] = {}
        cells: dict[str, Tensor] = {}
        for name, column in self.columns.items():
            codes = column.codes[places]
            present = codes >= 0
            distinct, inverse = np.unique(codes[present], return_inverse=True)
            if self.always and not len(distinct):
                distinct = column.some_cell()
            row_cells = np.full(len(places), -1, dtype=np.int64)
            row_cells[present] = inverse
            if epoch is not None and name in self.augment and column.features is None and present.any():
                row_cells[present] = np.arange(int(present.sum()))
                inputs[name] = self._augmented(name, places[present], epoch)
            else:
                inputs[name] = column.tensors(distinct) if len(distinct) else {}
            cells[name] = torch.from_numpy(row_cells)
        targets = {
            name: task.encode([self.targets[name][index] for index in places]) for name, task in self.tasks.items()
        }
        return Batch(
            inputs=inputs,
            cells=cells,
            weights=torch.from_numpy(self.weights[places]),
            rows=torch.from_numpy(self.rows[places].astype(np.int64)),
            targets=targets,
            codes={name: torch.from_numpy(column.codes[places]) for name, column in self.columns.items()},
            groups=torch.from_numpy(self.groups[places]),
        )


def _draws(seed: int, epoch: int, row: int, column: str) -> np.random.Generator:
    """What one row's cell is augmented with in an epoch."""
    return np.random.default_rng((seed, epoch, row, zlib.crc32(column.encode())))


def _group_codes(cells: Sequence[Any]) -> np.ndarray:
    """(rows,) int64: equal for equal cells, -1 where the cell is missing."""
    places: dict[Any, int] = {}
    codes = [-1 if is_missing(cell) else places.setdefault(cell_key(cell), len(places)) for cell in cells]
    return np.asarray(codes, dtype=np.int64)
