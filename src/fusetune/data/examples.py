"""A table's rows, decoded: each distinct cell is read once, and rows become batches."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fusetune.data.column import Column, Progress
from fusetune.data.distinct import is_missing
from fusetune.data.quarantine import Rejected
from fusetune.data.storage.mapped import (
    mapped_arange,
    mapped_concatenate,
    mapped_flatnonzero,
    mapped_full,
    mapped_take,
    mapped_zeros,
    pieces,
)
from fusetune.data.table import Table
from fusetune.errors import BadCell
from fusetune.modalities.base import Augmenter, Modality
from fusetune.modalities.text import TextModality
from fusetune.types import Batch, Tokens

if TYPE_CHECKING:
    from fusetune.tasks.base import TargetTask

PIECE = 4096
"""Rows whose targets or weights are looked at together."""


@dataclass(frozen=True)
class Augmentation:
    """How cells are changed in training.

    Attributes:
        augmenters: per column that is augmented.
        seed: of the changes.
        num_views: how many views of an augmented cell a frozen encoder sees in turn; 0: a new one in every epoch.
    """

    augmenters: Mapping[str, Augmenter] = field(default_factory=dict)
    seed: int = 0
    num_views: int = 0


class Examples:
    """Rows of a table that can be made into batches.

    `prepare` reads every cell once. After it, each row is either used or in `rejected`; a row that has none of
    its input columns is always rejected, as there is nothing to predict from.

    What a batch holds is decided here and by the views that `restrict` and `given` make of these rows: nothing is set
    on examples from outside.

    Attributes:
        targets: per task, its target's cells, which stay in the table.
        augmentation: how cells are changed in training.
        views: per augmented column, its views, where they were made (`fusetune.data.views`).
        always: whether a batch without a cell of a column brings one that no row has, so that its encoder runs.
        mix: how train rows are drawn where the table is several joined ones, as `UpdateSampler` takes it.
    """

    def __init__(
        self,
        table: Table,
        modalities: Mapping[str, Modality],
        tasks: Mapping[str, TargetTask] | None = None,
        *,
        weight: str | None = None,
        group: str | None = None,
    ) -> None:
        self.table = table
        self.rows = table.rows
        self.columns = {name: Column(modality, table, name) for name, modality in modalities.items()}
        self.tasks = dict(tasks or {})
        self.targets = {name: table.lazy(task.target) for name, task in self.tasks.items()}
        self._missing = {name: table.missing(task.target) for name, task in self.tasks.items()}
        self.weights: np.ndarray = np.broadcast_to(np.float32(1), len(table))  # of all rows, without their memory
        self._weight = weight
        self.groups = table.distinct(group)[0] if group is not None else np.broadcast_to(np.int64(-1), len(table))
        self.rejected: list[Rejected] = []
        self.masked: list[Rejected] = []
        self.used = mapped_arange(len(table))
        self.augmentation = Augmentation()
        self.views: Mapping[str, Sequence[Column]] = {}
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
        keep = mapped_full(len(self.rows), True, bool)
        for name, column in self.columns.items():
            budget -= column.decode_all(budget, progress)
            noted = self.rejected if on_bad_cell == "reject" else self.masked
            for index in column.unread():
                error = column.bad[int(column.codes[index])]
                noted.append(Rejected(int(self.rows[index]), name, error.value, error.why))
                keep[index] &= on_bad_cell != "reject"
                column.codes[index] = -1
        self._read_weights(keep)
        for piece in pieces(len(keep)):
            absent = np.all([column.codes[piece] < 0 for column in self.columns.values()], axis=0)
            for index in np.flatnonzero(absent & keep[piece]) + piece.start:
                self.rejected.append(Rejected(int(self.rows[index]), None, None, "no input column has a value"))
            keep[piece] &= ~absent
        self.used = mapped_flatnonzero(keep)

    def _augmented(self, name: str, places: np.ndarray, epoch: int) -> dict[str, Tensor]:
        """Return the encoder's input for a column's cells in some rows, augmented; these rows have it."""
        if views := self.views.get(name):
            view = views[epoch % len(views)]
            return view.tensors(view.codes[places])
        return self.columns[name].modality.collate(self.augmented(name, places, epoch))

    def augmented(self, name: str, places: np.ndarray, epoch: int) -> list[Any]:
        """Return the augmented examples of some rows in an epoch; every one of these rows has the column's cell."""
        column, augmenter = self.columns[name], self.augmentation.augmenters[name]
        codes, examples = column.codes[places], []
        for place, cell, example in zip(places, column.cells.take(codes), column.examples(codes), strict=True):
            draws = _draws(self.augmentation.seed, epoch, int(self.rows[place]), name)
            examples.append(augmenter(cell, example, draws, column.base_dir))
        return examples

    def _read_weights(self, keep: np.ndarray) -> None:
        if self._weight is None:
            return
        self.weights = mapped_full(len(self.rows), 1, np.float32)
        for index, cell in enumerate(self.table.lazy(self._weight)):
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
            column.learn(mapped_take(column.codes, self.used))
        for name, task in self.tasks.items():
            task.fit(self.targets[name].of(self.used))

    def check_targets(self) -> None:
        """Set apart the used rows whose target cannot be encoded; call it once the tasks are fitted."""
        keep = mapped_full(len(self.used), True, bool)
        for start in range(0, len(self.used), PIECE):
            some = self.used[start : start + PIECE]
            cells = [self.targets[name].take(some) for name in self.tasks]
            for at, index in enumerate(some):
                try:
                    for column, task in zip(cells, self.tasks.values(), strict=True):
                        if not is_missing(column[at]):
                            task.check(column[at], row=int(self.rows[index]))
                except BadCell as error:
                    self.rejected.append(Rejected.from_error(error))
                    keep[start + at] = False
        self.used = mapped_take(self.used, mapped_flatnonzero(keep))

    def __len__(self) -> int:
        return len(self.used)

    def restrict(self, columns: Collection[str]) -> Examples:
        """These rows as seen through some of the columns; rows that have none of them are not among the used.

        The cells and features are shared with this object, not copied.
        """
        view = copy.copy(self)
        view.columns = {name: column for name, column in self.columns.items() if name in columns}
        parts = [self.used[piece] for piece in pieces(len(self.used))]
        seen = [np.any([column.codes[part] >= 0 for column in view.columns.values()], axis=0) for part in parts]
        view.used = mapped_concatenate(
            (part[there] for part, there in zip(parts, seen, strict=True)), sum(map(np.count_nonzero, seen))
        )
        return view

    def given(
        self,
        *,
        features: Mapping[str, Tokens] | None = None,
        trunks: Mapping[str, Callable[[np.ndarray], dict[str, Tensor]]] | None = None,
        views: Mapping[str, Sequence[Column]] | None = None,
        augmentation: Augmentation | None = None,
        mix: float | None = None,
        always: bool | None = None,
    ) -> Examples:
        """Return these rows with what else a batch of them is made from; what is None stays as it is.

        Args:
            features: per column, its encoder's output, computed before, (cells, tokens, dim); the others' cells go
                through their encoders, augmented ones without views.
            trunks: per column, what makes its encoder's input where the first layers ran before.
            views: per augmented column, its views; they are added to those that there are.
            augmentation: how cells are changed in training.
            mix: see `UpdateSampler`.
            always: see the attributes.
        """
        view = copy.copy(self)
        if features is not None:
            view.views = {}
            view.columns = {name: column.given(features=features.get(name)) for name, column in self.columns.items()}
        if trunks:
            started = {name: self.columns[name].given(trunk=trunk) for name, trunk in trunks.items()}
            view.columns = {**view.columns, **started}
        if views:
            view.views = {**view.views, **views}
        view.augmentation = self.augmentation if augmentation is None else augmentation
        view.mix = self.mix if mix is None else mix
        view.always = self.always if always is None else always
        return view

    def labelled(self, task: str) -> np.ndarray:
        """Return which of the used rows have the task's target: their places in the table."""
        labelled = mapped_take(self._missing[task], self.used)
        return mapped_take(self.used, mapped_flatnonzero(np.logical_not(labelled, out=labelled)))

    def truth(self, task: str, rows: np.ndarray) -> np.ndarray:
        """Return the targets of labelled rows as the task's metrics want them, by their places in the table."""
        parts = [rows[start : start + PIECE] for start in range(0, max(len(rows), 1), PIECE)]
        return mapped_concatenate((self.tasks[task].truth(self.targets[task].take(part)) for part in parts), len(rows))

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Return where among the used rows these are, by their places in the table."""
        return np.searchsorted(self.used, rows)

    def sizes(self, indices: np.ndarray) -> np.ndarray:
        """Return what each row costs to encode, over all its columns."""
        total = mapped_zeros((len(indices),), np.int64)
        for piece in pieces(len(indices)):
            for column in self.columns.values():
                total[piece] += column.costs(column.codes[indices[piece]])
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
            if epoch is not None and name in self.augmentation.augmenters and column.features is None and present.any():
                row_cells[present] = np.arange(int(present.sum()))
                inputs[name] = self._augmented(name, places[present], epoch)
            else:
                inputs[name] = column.tensors(distinct) if len(distinct) else {}
            cells[name] = torch.from_numpy(row_cells)
        targets = {name: task.encode(self.targets[name].take(places)) for name, task in self.tasks.items()}
        return Batch(
            inputs=inputs,
            cells=cells,
            weights=torch.from_numpy(self.weights[places]),
            rows=_wide(self.rows[places]),
            targets=targets,
            codes={name: _wide(column.codes[places]) for name, column in self.columns.items()},
            groups=_wide(self.groups[places]),
            ngrams=self._ngrams(places),
        )

    def _ngrams(self, places: np.ndarray) -> dict[str, dict[str, Tensor]]:
        """Return what `Batch.ngrams` holds; an augmented cell's are those of the cell as it is."""
        found = {}
        for name, column in self.columns.items():
            if (vocabulary := column.modality.ngrams) is None:
                continue
            codes = column.codes[places]
            distinct, inverse = np.unique(codes[codes >= 0], return_inverse=True)
            vectors = [vocabulary.vector(text) for text in column.examples(distinct)]
            most = max([1, *(len(ids) for ids, _ in vectors)])
            ids, values = np.zeros((len(codes), most), np.int64), np.zeros((len(codes), most), np.float32)
            for place, number in zip(np.flatnonzero(codes >= 0), inverse, strict=True):
                own = vectors[number]
                ids[place, : len(own[0])], values[place, : len(own[1])] = own
            found[name] = {"ids": torch.from_numpy(ids), "values": torch.from_numpy(values)}
        return found

    def learn_ngrams(self) -> None:
        """Let text columns learn their n-grams from these rows: call it on train rows only, after `fit`."""
        for column in self.columns.values():
            if isinstance(column.modality, TextModality):
                codes = mapped_take(column.codes, self.used)
                column.modality.learn_ngrams(column.rows_of(mapped_take(codes, mapped_flatnonzero(codes >= 0))))


def _wide(numbers: np.ndarray) -> Tensor:
    return torch.from_numpy(numbers.astype(np.int64))


def _draws(seed: int, epoch: int, row: int, column: str) -> np.random.Generator:
    """Return what one row's cell is augmented with in an epoch."""
    return np.random.default_rng((seed, epoch, row, zlib.crc32(column.encode())))
