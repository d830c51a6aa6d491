"""A fit's tables: read them, detect the schema, split the rows, and account for every row."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fusetune.config.config import Config
from fusetune.data.examples import Examples
from fusetune.data.joins import flat_names
from fusetune.data.negatives import with_negatives, without_right_answers
from fusetune.data.quarantine import Rejected, check_rate
from fusetune.data.reading.joined import concat
from fusetune.data.resolved import unlabelled_rows
from fusetune.data.schema import ColumnSpec, Schema
from fusetune.data.splits import may_train, split_rows
from fusetune.data.table import Table
from fusetune.errors import TableError
from fusetune.evaluation.results import TableUsed
from fusetune.fitting.documents import CATALOGUE, Documents
from fusetune.fitting.negatives import as_documents
from fusetune.fitting.prompting import is_speech, with_hearing, with_prompts
from fusetune.fitting.reading import join_columns, read_for_tasks, text_pair
from fusetune.fitting.recommendations import Recommendations
from fusetune.fitting.tasks import passages, settled_tasks
from fusetune.objectives.total import learning_without_target, standalone_objective
from fusetune.registry import OBJECTIVES
from fusetune.tasks.abilities import Writes
from fusetune.tasks.base import TargetTask

SPLITS = ("train", "val", "test")


def users_of_unlabelled(config: Config) -> list[str]:
    """Return what learns from train rows without a target: the self-supervised tuning, and objectives by name."""
    before = [] if config.pretrain is None else [f"pretrain ({config.pretrain.name})"]
    return before + learning_without_target(config.objectives)


class Tables:
    """The rows of each split.

    Args:
        config: the settings.
        sources: the tables under "train" (one or a list), "val" and "test" (None if there is none).

    Raises:
        TableError, SchemaError: a table cannot be read, or lacks a column.

    Attributes:
        schema: detected on the train table.
        splits: the rows with at least one target, under "train", "val" and "test"; the train rows without any too, if
            an objective learns from them.
        files: by split with a table of its own, (file, number of rows in it).
        unlabelled: by split, the number of rows without any target that are left out.
        rejected: by split, the rows that could not be read.
        notes: sentences for the user on how the tables were read.
        pair: two text columns that are read one by one and may be read together; None without such.
        apart: the specs of the columns that `text.join` reads together, as if each were read by itself.
        tried: the columns that are read together only because it was tried, not because the settings say so.
        documents: the catalogue that the rows name documents of; None if each row has its document itself.
        reserved: by split whose negatives are among its documents, the number of row ids of its file: rows with a later
            id hold these negatives.
    """

    def __init__(self, config: Config, sources: Mapping[str, Any]) -> None:
        self.config = config
        self.files: dict[str, tuple[str, int]] = {}
        self.unlabelled = dict.fromkeys(SPLITS, 0)
        self.rejected: dict[str, list[Rejected]] = {split: [] for split in SPLITS}
        self.notes: list[str] = []
        self.pair: tuple[str, str] | None = None
        self.apart: dict[str, ColumnSpec] = {}
        self.tried: tuple[str, ...] = ()
        self.documents: Documents | None = None
        self.reserved: dict[str, int] = {}
        self.splits = self._read(sources)

    def _read(self, sources: Mapping[str, Any]) -> dict[str, Table]:
        read = self.config.data.read
        tables = {
            split: concat([Table.read(part, read=read) for part in (source if isinstance(source, list) else [source])])
            for split in SPLITS
            if (source := sources.get(split)) is not None
        }
        given, overrides = tables, self.config.schema_overrides()
        source = sources.get(CATALOGUE)
        if self.config.user is not None or source is not None:
            recommends = self.config.user is not None
            self.documents = (
                Recommendations(self.config, sources, tables) if recommends else Documents(self.config, source, tables)
            )
            self.config, given = self.documents.config, self.documents.pairs_of(tables)
            overrides = self.documents.overrides(overrides)
            self.notes += self.documents.notes
        train, targets = given["train"], self.config.target
        if self.documents is not None:
            self.schema = self.documents.detect(train, overrides, read)
        else:
            self.schema = Schema.detect(train, targets=targets, overrides=overrides, read=read)
        self.schema = as_documents(self.schema, self.config)
        self.notes += self.schema.notes
        given = {split: table.read_as(self.schema.forms()) for split, table in given.items()}
        train = given["train"]
        if not self.schema.names("target") and standalone_objective(self.config.objectives) is None:
            raise TableError(
                "there is no target column",
                do="name it: --target COLUMN",
                expected="a column to predict",
                file=train.source,
            )
        for split, table in tables.items():
            self.files[split] = (table.source, len(table) + len(table.rejected))
            self.rejected[split] += table.rejected
            self.notes += table.notes if len(table.files) > 1 else [f"{table.source}: {note}" for note in table.notes]
            self.schema.validate(given[split], targets=split == "train")
            given[split].require(self.schema.targets)
        if self.documents is not None:
            splits = self.documents.splits(given, self)
            self.config = self.documents.config
            return splits
        labelled = {split: self._labelled(split, table) for split, table in given.items()}
        splits = self._split({split: given[split].select(has) for split, has in labelled.items()})
        if self.schema.names("target"):
            splits["train"] = self._with_unlabelled(given["train"], labelled["train"], splits)
            self._note_unlabelled()
        return self._with_negatives(splits) if self.config.negative else splits

    def _with_negatives(self, splits: dict[str, Table]) -> dict[str, Table]:
        """Return train rows without negatives that are right answers, and other splits with theirs as documents."""
        query, (document,), negative = self.config.query, self.config.document, self.config.negative
        train, count = without_right_answers(splits["train"], query, document, negative, self.schema.group)
        if count:
            self.notes.append(f"{count:,} negatives of train rows equal a right answer of their query: not used.")
        for split in (split for split in splits if split != "train"):
            _, self.reserved[split] = self.files.get(split, self.files["train"])
            splits[split] = with_negatives(splits[split], document, negative, reserved=self.reserved[split])
        splits["train"] = train
        return {split: table.read_as(self.schema.forms()) for split, table in splits.items()}

    def _labelled(self, split: str, table: Table) -> np.ndarray:
        """Return which rows have at least one target, (rows,) bool; all rows if the table has no target columns."""
        if not self.schema.names("target"):
            return np.ones(len(table), dtype=bool)
        known = settled_tasks(self.config, self.schema)
        missing = [
            unlabelled_rows(table, known[target]) if target in known else table.missing(target)
            for target in self.schema.names("target")
        ]
        is_labelled = ~np.all(missing, axis=0)
        self.unlabelled[split] = int((~is_labelled).sum())
        if not is_labelled.any():
            raise TableError(
                "no row has a target", file=table.source, expected=f"values in {self.schema.names('target')}"
            )
        return np.asarray(is_labelled)

    def _with_unlabelled(self, given: Table, is_labelled: np.ndarray, splits: Mapping[str, Table]) -> Table:
        """Return the train rows with the rows without a target that may train, if an objective learns from them."""
        if not (self.config.data.unlabelled and users_of_unlabelled(self.config)):
            return splits["train"]
        if not len(positions := np.flatnonzero(~is_labelled)):
            return splits["train"]
        held_out = [table for split, table in splits.items() if split != "train"]
        positions = positions[may_train(given.select(positions), self.schema, held_out)]
        self.unlabelled["train"] -= len(positions)
        rows = np.isin(given.rows, splits["train"].rows)
        rows[positions] = True
        return given.select(rows)

    def _note_unlabelled(self) -> None:
        if not (num := self.unlabelled["train"]):
            return
        able = [name for name in OBJECTIVES if not OBJECTIVES.get(name).needs_target]
        used = users_of_unlabelled(self.config)
        if not used:
            why = f"no objective learns from them ({', '.join(able)} would, and pretrain)"
        elif not self.config.data.unlabelled:
            why = "data.unlabelled=0"
        else:
            why = "they belong to another split, or to a group of which another split has rows"
        self.notes.append(f"{num:,} train rows without a target are left out: {why}.")

    def _split(self, given: dict[str, Table]) -> dict[str, Table]:
        """Return the rows of every split; splits without a table of their own are split off from train."""
        tables, sides = dict(given), [self.config.query, self.config.document]
        if any(split not in given for split in SPLITS):
            sides += [[name] for name in passages(self.config, self.schema, given["train"])]
        for split, indices in self.split_positions(given, sides).items():
            tables[split] = given["train"].select(indices)
        return {split: tables[split] for split in SPLITS if split in tables}

    def split_positions(self, given: Mapping[str, Table], sides: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
        """Return the positions in the train table of every split that has no table of its own, and of train.

        Args:
            given: the tables, by split.
            sides: columns whose equal cells stay in one split; see `split_rows`.
        """
        wanted = [split for split in SPLITS if split not in given]
        if not wanted:
            return {}
        settings, sides = self.config.data, [side for side in sides if side]
        rows = split_rows(
            given["train"], self.schema, wanted=wanted, fractions=settings.split, sides=sides, seed=self.config.seed
        )
        return {split: indices for split, indices in rows.items() if len(indices)}

    @property
    def has_test(self) -> bool:
        """Whether there are test rows; without them the report measures the validation rows."""
        return "test" in self.splits

    def read_together(self, tasks: Mapping[str, TargetTask]) -> None:
        """Have texts read as the tasks and the settings want it: token by token, or several together.

        Raises:
            ConfigError: a task or a setting finds no such columns.
        """
        text = self.config.text
        if any(isinstance(task, Writes) for task in tasks.values()) and is_speech(self.config):
            self.config = with_hearing(self.config)
        schema = with_prompts(read_for_tasks(self.schema, tasks), tasks, self.config)
        self.pair = text_pair(schema, tasks, text)
        joins = text.join if isinstance(text.join, list) else []
        self.schema = schema if self.pair is not None else join_columns(schema, joins, text.cut)
        self.apart = {name: schema.columns[name] for columns in joins for name in columns}
        self.splits = {split: table.with_joined(self.schema.joins()) for split, table in self.splits.items()}

    def together(self) -> Tables:
        """Return these tables with the two columns of `pair` read as one text."""
        assert self.pair is not None
        tables = copy.copy(self)
        tables.schema = join_columns(self.schema, [list(self.pair)], self.config.text.cut)
        tables.apart, tables.tried = {name: self.schema.columns[name] for name in self.pair}, self.pair
        tables.splits = {split: table.with_joined(tables.schema.joins()) for split, table in self.splits.items()}
        return tables

    def read_apart(self) -> Tables:
        """Return these tables with the columns that `text.join` reads together read one by one."""
        tables = copy.copy(self)
        joined = {name for name, parts in self.schema.joins().items() if set(flat_names(parts)) <= self.apart.keys()}
        columns = {**self.schema.columns, **self.apart}
        columns = {name: spec for name, spec in columns.items() if name not in joined}
        tables.schema, tables.apart = replace(self.schema, columns=columns), {}
        return tables

    def all_rejected(self, examples: Mapping[str, Examples]) -> list[Rejected]:
        """Return every rejected row, with its file and its row number there."""
        if self.documents is not None:
            return self.documents.all_rejected(self.rejected, examples)
        rejected_rows = []
        for split, rows in examples.items():
            for item in [*self.rejected[split], *self._rejected(split, examples)]:
                file, row = rows.table.file_and_row(item.row)
                rejected_rows.append(replace(item, file=file, row=row))
        return rejected_rows

    def check_rejected(self, examples: Mapping[str, Examples]) -> None:
        """Stop the run if too large a share of a table's rows is rejected.

        Raises:
            TooManyRejected: the share is above `data.max_rejected`.
        """
        for split, (file, rows_in) in self.files.items():
            parts = [split, *(other for other in examples if split == "train" and other not in self.files)]
            rejected = [*self.rejected[split], *(item for part in parts for item in self._rejected(part, examples))]
            check_rate(rejected, rows_in, limit=self.config.data.max_rejected, source=file)

    def _rejected(self, split: str, examples: Mapping[str, Examples]) -> list[Rejected]:
        """Return a split's rows that were rejected after reading."""
        if self.documents is not None:
            return self.documents.rejected_queries(split, examples[split])
        return [item for item in examples[split].rejected if item.row < self.reserved.get(split, item.row + 1)]

    def used(self, examples: Mapping[str, Examples]) -> list[TableUsed]:
        """Return each split's counts: rows in = rows used (unlabelled ones included) + rows rejected."""
        if self.documents is not None:
            return self.documents.used(self.files, self.rejected, examples)
        used = []
        for split in self.splits:
            rows = examples[split]
            rejected = {item.row for item in [*self.rejected[split], *self._rejected(split, examples)]}
            file, _ = self.files.get(split, (f"{self.files['train'][0]} (split off)", 0))
            own = rows.rows[rows.rows < self.reserved.get(split, np.inf)]
            rows_in = len(own) + len({item.row for item in self.rejected[split]}) + self.unlabelled[split]
            unlabelled = self.unlabelled[split] + int(np.count_nonzero(rows.unlabelled()))
            used.append(TableUsed(split, file, rows_in, rows_in - len(rejected), len(rejected), unlabelled))
        return used


def check_rows(examples: Mapping[str, Examples], targets: Sequence[str]) -> None:
    """Stop the run if a split has no usable row: a labelled one, if there are targets.

    Raises:
        TableError: a split has no usable row.
    """
    for split, rows in examples.items():
        if not (any(len(rows.labelled(target)) for target in targets) if targets else len(rows)):
            raise TableError(
                f"no {split} row is left to use",
                came=f"{len(rows.rows)} rows, all rejected",
                file=rows.table.source,
                do="look at rejected rows, or give more rows",
            )
    if len(examples.get("test", ())) < 1:
        raise TableError("there are no test rows", do="give --test, or a data.split whose last share is above 0")
