"""`Examples`: a table's rows, decoded once a distinct cell and collated into batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fusetune.data.augmentation import Augmentation, cell_rng
from fusetune.data.batch_ngrams import ngram_tensors
from fusetune.data.column import Column, Progress
from fusetune.data.quarantine import Rejected
from fusetune.data.resolved import raw_targets, target_cells, unlabelled_rows
from fusetune.data.sampler import UpdateSampler
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
from fusetune.data.weights import row_weights
from fusetune.errors import BadCell
from fusetune.modalities.base import Modality
from fusetune.modalities.passages import text_tokens
from fusetune.modalities.text import TextModality
from fusetune.types import Batch, Target, TextTokens, Tokens

if TYPE_CHECKING:
    from fusetune.tasks.base import TargetTask

PIECE = 4096
"""Rows whose targets are processed together."""


class Examples:
    """Rows of a table that are collated into batches.

    `prepare` decodes every distinct cell once. After it, each row is either used or in `rejected`. A row without any
    input cell is always rejected, as there is nothing to predict from.

    The contents of a batch are decided here and by the views that `restrict` and `given` return; no attribute is set
    from outside.

    Attributes:
        targets: by task, a lazy sequence of the target column's cells.
        used: (used,) int64, positions in the table of the rows that are used, ascending.
        rejected: rows that cannot be used, with the reason.
        masked: cells that were replaced by missing ones, with the reason.
        augmentation: of train rows.
        views: by augmented column, its precomputed views (`fusetune.data.views`).
        always: whether a batch whose rows all lack a column holds some cell of it, so that its encoder runs on every
            process.
        mix: exponent of temperature sampling over joined tables, see `UpdateSampler`.
        ratio: of train rows without a target to those with one, see `UpdateSampler`.
        references: by task, `Target.reference` of all rows, (rows, answers) float32.
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
        self.targets = {name: target_cells(table, task) for name, task in self.tasks.items()}
        self._missing = {name: unlabelled_rows(table, task) for name, task in self.tasks.items()}
        self.weights: np.ndarray = np.broadcast_to(np.float32(1), len(table))  # of all rows, without their memory
        self._weight = weight
        self.groups = table.distinct(group)[0] if group is not None else np.broadcast_to(np.int64(-1), len(table))
        self.rejected: list[Rejected] = []
        self.masked: list[Rejected] = []
        self.used = mapped_arange(len(table))
        self.augmentation = Augmentation()
        self.views: Mapping[str, Sequence[Column]] = {}
        self.mix, self.ratio = 1.0, 1.0
        self.references: Mapping[str, Tensor] = {}
        self.always = False

    def prepare(self, *, on_bad_cell: str, memory: float = 4.0, progress: Progress | None = None) -> None:
        """Decode every distinct cell, and reject the rows that cannot be used.

        Args:
            on_bad_cell: "reject" rejects every row with a cell that cannot be decoded; "mask" replaces such a cell by a
                missing one and adds it to `masked`.
            memory: GiB of decoded cells to keep in memory, over all columns.
            progress: `progress(iterator, description, total)` wraps an iterator.
        """
        budget = int(memory * 2**30)
        keep = mapped_full(len(self.rows), True, bool)
        for name, column in self.columns.items():
            budget -= column.decode_all(budget, progress)
            noted = self.rejected if on_bad_cell == "reject" else self.masked
            for index in column.unread():
                error = column.bad[int(column.codes[index])]
                noted.append(Rejected(int(self.rows[index]), name, error.value, error.why, do=error.do))
                keep[index] &= on_bad_cell != "reject"
                column.codes[index] = -1
        if self._weight is not None:
            self.weights, bad = row_weights(self.table, self._weight)
            self.rejected += [error for index, error in bad.items() if keep[index]]
            keep[list(bad)] = False
        for piece in pieces(len(keep)):
            absent = np.all([column.codes[piece] < 0 for column in self.columns.values()], axis=0)
            for index in np.flatnonzero(absent & keep[piece]) + piece.start:
                self.rejected.append(Rejected(int(self.rows[index]), None, None, "no input column has a value"))
            keep[piece] &= ~absent
        self.used = mapped_flatnonzero(keep)

    def require(self, sides: Mapping[str, Sequence[str]]) -> None:
        """Reject the used rows that have no cell in any column of a side, by its name."""
        for name, columns in sides.items():
            has = np.any([self.columns[column].codes[self.used] >= 0 for column in columns], axis=0)
            why = f"no column of the {name} has a value"
            self.rejected += [Rejected(int(self.rows[index]), None, None, why) for index in self.used[~has]]
            self.used = mapped_take(self.used, mapped_flatnonzero(has))

    def _augmented(self, name: str, indices: np.ndarray, epoch: int) -> dict[str, Tensor]:
        """Return the encoder's input for the augmented cells of some rows, none of which is missing."""
        if views := self.views.get(name):
            view = views[epoch % len(views)]
            return view.tensors(view.codes[indices])
        return self.columns[name].modality.collate(self.augmented(name, indices, epoch))

    def augmented(self, name: str, indices: np.ndarray, epoch: int) -> list[Any]:
        """Return the augmented examples of some rows in an epoch; every one of these rows has the column's cell."""
        column, augmenter = self.columns[name], self.augmentation.augmenters[name]
        codes, examples = column.codes[indices], []
        for index, cell, example in zip(indices, column.local(codes), column.examples(codes), strict=True):
            draws = cell_rng(self.augmentation.seed, epoch, int(self.rows[index]), name)
            examples.append(augmenter(cell, example, draws, column.base_dir))
        return examples

    def fit(self) -> None:
        """Fit the modalities and the tasks on the used rows; call it on train rows only."""
        for column in self.columns.values():
            column.learn(mapped_take(column.codes, self.used))
        for name, task in self.tasks.items():
            task.fit(self.targets[name].of(self.used))

    def check_targets(self) -> None:
        """Reject the used rows whose target cannot be encoded; call it after the tasks are fitted."""
        keep = mapped_full(len(self.used), True, bool)
        for start in range(0, len(self.used), PIECE):
            some = self.used[start : start + PIECE]
            cells = [raw_targets(self.table, task, some) for task in self.tasks.values()]
            about = [self.table.cells(task.reads, some) if task.reads else None for task in self.tasks.values()]
            for at, index in enumerate(some):
                row = int(self.rows[index])
                try:
                    for column, task, read in zip(cells, self.tasks.values(), about, strict=True):
                        value = column[at]
                        if value is not None:
                            task.check(value if read is None else task.resolve(value, read[at], row=row), row=row)
                except BadCell as error:
                    self.rejected.append(Rejected.from_error(error))
                    keep[start + at] = False
        self.used = mapped_take(self.used, mapped_flatnonzero(keep))

    def __len__(self) -> int:
        return len(self.used)

    def restrict(self, columns: Collection[str]) -> Examples:
        """Return a view with only these columns, whose used rows have at least one of them.

        Cells and features are shared with this object, not copied.
        """
        return self.reading(self.table, {name: column for name, column in self.columns.items() if name in columns})

    def reading(self, table: Table, columns: Mapping[str, Column]) -> Examples:
        """Return a view with other columns, whose used rows have at least one of them.

        Args:
            table: the same rows, with these columns.
            columns: decoded, and, if they need it, fitted on train rows.
        """
        view = copy.copy(self)
        view.table, view.columns = table, dict(columns)
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
        ratio: float | None = None,
        always: bool | None = None,
        keys: Mapping[str, np.ndarray] | None = None,
        references: Mapping[str, Tensor] | None = None,
    ) -> Examples:
        """Return a view whose batches use other features, views or augmentation; None leaves an aspect unchanged.

        Args:
            features: by column, the precomputed encoder output, (cells, tokens, dim). All other columns run through
                their encoders, and views are dropped.
            trunks: by column, `trunk(cells)` returns the encoder's input where its first layers ran before.
            views: by augmented column, its views, which are added to the present ones.
            augmentation: of train rows.
            mix, ratio: see `UpdateSampler`.
            always: see the attributes.
            keys: by column, its `Column.keys`.
            references: see the attributes.
        """
        view = copy.copy(self)
        if features is not None:
            view.views = {}
            view.columns = {name: column.given(features=features.get(name)) for name, column in self.columns.items()}
        if trunks:
            started = {name: self.columns[name].given(trunk=trunk) for name, trunk in trunks.items()}
            view.columns = {**view.columns, **started}
        if keys:
            view.columns = {**view.columns, **{name: view.columns[name].keyed(own) for name, own in keys.items()}}
        if views:
            view.views = {**view.views, **views}
        view.augmentation = self.augmentation if augmentation is None else augmentation
        view.mix = self.mix if mix is None else mix
        view.ratio = self.ratio if ratio is None else ratio
        view.always = self.always if always is None else always
        view.references = self.references if references is None else references
        return view

    def unlabelled(self) -> np.ndarray:
        """Return which of the used rows have no target at all, (used,) bool; none where nothing is predicted."""
        found = mapped_full(len(self.used), bool(self.tasks), bool)
        for missing in self._missing.values():
            np.logical_and(found, mapped_take(missing, self.used), out=found)
        return found

    def with_target(self) -> Examples:
        """Return these rows without those that have no target at all."""
        unlabelled = self.unlabelled()
        if not unlabelled.any():
            return self
        return self.of(mapped_flatnonzero(np.logical_not(unlabelled, out=unlabelled)))

    def without_targets(self) -> Examples:
        """Return a view whose batches have no targets; every used row counts as a row with a target does."""
        view = copy.copy(self)
        view.tasks, view.targets, view._missing = {}, {}, {}
        return view

    def of(self, indices: np.ndarray) -> Examples:
        """Return a view with some of the used rows, given by their ascending indices in `used`."""
        view = copy.copy(self)
        view.used = mapped_take(self.used, indices)
        return view

    def sampler(
        self,
        *,
        batch_size: int,
        accumulate: int = 1,
        seed: int = 0,
        process: int = 0,
        num_processes: int = 1,
        by_cost: bool = True,
    ) -> UpdateSampler:
        """Return the sampler of these rows; see `UpdateSampler`."""
        unlabelled = self.unlabelled()
        return UpdateSampler(
            self.used,
            self.sizes(self.used),
            batch_size=batch_size,
            accumulate=accumulate,
            seed=seed,
            process=process,
            num_processes=num_processes,
            tables=self.table.parts()[self.used] if self.mix != 1 else None,
            mix=self.mix,
            unlabelled=unlabelled if unlabelled.any() else None,
            ratio=self.ratio,
            by_cost=by_cost,
        )

    @property
    def num_drawn(self) -> int:
        """The number of rows that an epoch of training draws."""
        num = int(np.count_nonzero(self.unlabelled()))
        return len(self.used) - num + min(num, round(self.ratio * (len(self.used) - num)))

    def labelled(self, task: str) -> np.ndarray:
        """Return the positions in the table of the used rows that have the task's target, ascending."""
        missing = mapped_take(self._missing[task], self.used)
        return mapped_take(self.used, mapped_flatnonzero(np.logical_not(missing, out=missing)))

    def truth(self, task: str, rows: np.ndarray) -> np.ndarray:
        """Return `Task.truth` of labelled rows.

        Args:
            task: its name.
            rows: positions in the table.
        """
        parts = [rows[start : start + PIECE] for start in range(0, max(len(rows), 1), PIECE)]
        return mapped_concatenate((self.tasks[task].truth(self.targets[task].take(part)) for part in parts), len(rows))

    def tokens(self, column: str, rows: np.ndarray) -> TextTokens:
        """Return what a text column's tokens stand for in some rows, by their positions in the table.

        A row has no real token if it lacks the column, or if the column is hidden from these rows.
        """
        if column not in self.columns:
            return text_tokens([None] * len(rows), [()] * len(rows))
        return self.columns[column].text_tokens(rows)

    def encode(self, name: str, rows: np.ndarray) -> Target:
        """Return a task's encoded targets of some rows, by their positions in the table."""
        task, values = self.tasks[name], self.targets[name].take(rows)
        target = task.encode(values, *([] if task.reads is None else [self.tokens(task.reads, rows)]))
        target.reference = self.references[name][rows] if name in self.references else None
        return target

    def codes(self, columns: Sequence[str]) -> list[Tensor]:
        """Return by column the codes of the used rows' cells, as in `Batch.codes`: (used,) int64, -1 where missing."""
        return [_to_int64(self.columns[name].row_keys[self.used]) for name in columns]

    def positions(self, rows: np.ndarray) -> np.ndarray:
        """Return the indices in `used` of rows, given by their positions in the table."""
        return np.searchsorted(self.used, rows)

    def sizes(self, indices: np.ndarray) -> np.ndarray:
        """Return the cost of encoding each row, the sum over its columns, (rows,) int64."""
        total = mapped_zeros((len(indices),), np.int64)
        for piece in pieces(len(indices)):
            for column in self.columns.values():
                total[piece] += column.costs(column.codes[indices[piece]])
        return total

    def batch(self, indices: Sequence[int] | np.ndarray, *, epoch: int | None = None) -> Batch:
        """Collate some rows.

        Args:
            indices: positions in the table.
            epoch: of training, in which cells are augmented row by row with draws that depend on (seed, epoch, row,
                column) alone. None: without augmentation.
        """
        positions = np.asarray(indices, dtype=np.int64)
        inputs: dict[str, dict[str, Tensor]] = {}
        cells: dict[str, Tensor] = {}
        for name, column in self.columns.items():
            codes = column.codes[positions]
            present = codes >= 0
            distinct, inverse = np.unique(codes[present], return_inverse=True)
            if self.always and not len(distinct):
                distinct = column.some_cell()
            row_cells = np.full(len(positions), -1, dtype=np.int64)
            row_cells[present] = inverse
            if epoch is not None and name in self.augmentation.augmenters and column.features is None and present.any():
                row_cells[present] = np.arange(int(present.sum()))
                inputs[name] = self._augmented(name, positions[present], epoch)
            else:
                inputs[name] = column.tensors(distinct) if len(distinct) else {}
            cells[name] = torch.from_numpy(row_cells)
        targets = {name: self.encode(name, positions) for name in self.tasks}
        return Batch(
            inputs=inputs,
            cells=cells,
            weights=torch.from_numpy(self.weights[positions]),
            rows=_to_int64(self.rows[positions]),
            targets=targets,
            codes={name: _to_int64(column.row_keys[positions]) for name, column in self.columns.items()},
            groups=_to_int64(self.groups[positions]),
            ngrams=ngram_tensors(self.columns, positions),
        )

    def learn_ngrams(self) -> None:
        """Fit the n-gram vocabularies of text columns on the used rows; call it on train rows only, after `fit`."""
        for column in self.columns.values():
            if isinstance(column.modality, TextModality):
                codes = mapped_take(column.codes, self.used)
                column.modality.learn_ngrams(column.rows_of(mapped_take(codes, mapped_flatnonzero(codes >= 0))))


def _to_int64(numbers: np.ndarray) -> Tensor:
    return torch.from_numpy(numbers.astype(np.int64))
