"""A fit of queries whose documents are in a table of their own: pairs to train on, whole catalogues to be measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from scipy import sparse

from fusetune.config.config import Config
from fusetune.config.read import ReadConfig
from fusetune.data.catalogue import Catalogue, Pairs, Sides, first_rows
from fusetune.data.examples import Examples
from fusetune.data.quarantine import Rejected, check_rate
from fusetune.data.reading.joined import only
from fusetune.data.schema import Schema
from fusetune.data.table import Source, Table
from fusetune.errors import TableError
from fusetune.evaluation.results import TableUsed
from fusetune.objectives.contrastive_settings import TAKES_NEGATIVES
from fusetune.registry import MODALITIES

CATALOGUE = "catalogue"
"""The name under which a fit's sources have the table of documents."""


class Splitting(Protocol):
    """What `Documents` needs of `Tables`."""

    schema: Schema
    notes: list[str]
    rejected: dict[str, list[Rejected]]
    reserved: dict[str, int]

    def split_positions(self, given: Mapping[str, Table], sides: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
        """See `Tables.split_positions`."""
        ...


class Documents:
    """The documents of a fit, and the splits that follow from them.

    Train rows are pairs of a query and a document. Validation and test rows are the distinct queries and the whole
    catalogue.

    Attributes:
        config: the settings, with the key and the relevance that were found.
        catalogue: the documents.
        related, seen: by split other than train, (rows, rows) sparse; see `MatchTask.search`.
        notes: sentences for the user on how the catalogue was read.
        num_queries: by split other than train, the distinct queries that have a relevant document.
        negative: the train rows' column of documents that are judged not relevant; "" if there is none.
    """

    def __init__(self, config: Config, source: Source, tables: Mapping[str, Table]) -> None:
        """
        Args:
            config: the settings.
            source: the catalogue.
            tables: the query tables, by split.

        Raises:
            TableError: the catalogue cannot be read, or its key is not clear; see `Catalogue.read`.
            TooManyRejected: too large a share of its rows has no document.
        """
        sides = Sides(tuple(config.query), tuple(config.document))
        self._start(config, Catalogue.read(source, config.catalogue, tables["train"], sides, config.data.read))

    def _start(self, config: Config, catalogue: Catalogue) -> None:
        """Set the attributes of a fit with this catalogue.

        Raises:
            TooManyRejected: too large a share of its rows has no document.
        """
        self.catalogue = catalogue
        key, rejected = self.catalogue.key, self.catalogue.rejected
        named = key.query if key.query == key.item else {key.query: key.item}
        settings = {"key": named, "relevance": self.catalogue.relevance}
        self.config = config.with_overrides({CATALOGUE: {name: value for name, value in settings.items() if value}})
        limit, file = config.data.max_rejected, self.catalogue.items.source
        check_rate(rejected, self.catalogue.rows_in, limit=limit, source=file)
        self.notes = list(self.catalogue.notes)
        self.related: dict[str, sparse.csr_array] = {}
        self.seen: dict[str, sparse.csr_array] = {}
        self.num_queries: dict[str, int] = {}
        self.negative = ""
        self._pairs: dict[str, Pairs] = {}
        self._ends: dict[str, int] = {}
        self._source_of: dict[str, str] = {}
        self._ids: dict[str, np.ndarray] = {}

    @property
    def announcement(self) -> str:
        """A line on what the splits hold."""
        num = f"{len(self.catalogue.items):,} documents, by the key {self.catalogue.key.item}"
        return f"{CATALOGUE}  {num}; val and test rows are queries and all of these"

    def pairs_of(self, tables: Mapping[str, Table]) -> dict[str, Table]:
        """Return the query tables' rows beside their documents, a row a pair.

        Raises:
            TableError: see `Catalogue.pairs`.
        """
        self._pairs = {split: self.catalogue.pairs(table) for split, table in tables.items()}
        self._ends = {split: _num_ids(table) for split, table in tables.items()}
        return {split: pairs.table for split, pairs in self._pairs.items()}

    def overrides(self, overrides: dict[str, Any]) -> dict[str, Any]:
        """Return what the user says about columns, with the relevance as the pairs' weight."""
        relevance = self.catalogue.relevance
        if relevance is None or relevance in overrides:
            return overrides
        if any(isinstance(value, Mapping) and value.get("role") == "weight" for value in overrides.values()):
            self.notes.append(f"{relevance!r} counts in metrics only, as another column weighs the rows.")
            return overrides
        return overrides | {relevance: {"kind": "number", "role": "weight"}}

    def detect(self, pairs: Table, overrides: Mapping[str, Any], read: ReadConfig) -> Schema:
        """Return the schema of pairs. The kinds of both sides are detected on distinct queries and documents.

        Args:
            pairs: of the train rows.
            overrides: what the user says about columns.
            read: how cells are parsed.

        Raises:
            TableError, SchemaError: see `Schema.detect`.
        """
        schema, sides = Schema.detect(pairs, overrides=overrides, read=read), self.catalogue.sides
        queries = only(pairs.select(first_rows(pairs, sides.query)), sides.query)
        for table in (queries, only(self.catalogue.items, sides.document)):
            own = Schema.detect(
                table, overrides={name: overrides[name] for name in table.column_names if name in overrides}, read=read
            )
            schema.columns |= own.columns
            schema.warnings = list(dict.fromkeys([*schema.warnings, *own.warnings]))
            schema.notes = list(dict.fromkeys([*schema.notes, *own.notes]))
        return schema

    def splits(self, given: Mapping[str, Table], tables: Splitting) -> dict[str, Table]:
        """Return the rows of every split: pairs for train, queries and the catalogue for the others.

        Args:
            given: the pairs, by split, with their cells' forms.
            tables: gets the rejected rows and the notes.

        Raises:
            TableError: no query of a split has a relevant document.
        """
        for split, pairs in self._pairs.items():
            tables.rejected[split] += pairs.rejected
        self._pairs = {split: replace(pairs, table=given[split]) for split, pairs in self._pairs.items()}
        chosen = {split: np.arange(len(table)) for split, table in given.items()}
        carved = tables.split_positions(given, [self.catalogue.sides.query])
        self._source_of = {split: "train" if split in carved else split for split in {**chosen, **carved}}
        chosen |= carved
        splits = {}
        for split, positions in chosen.items():  # train comes first: it decides whether there are negatives
            pairs = self._pairs[self._source_of[split]]
            self._ids[split] = np.unique(pairs.table.rows[positions])
            if split == "train":
                splits[split] = self._train(pairs, positions, tables)
            else:
                splits[split] = self._searched(split, pairs, positions, tables)
        return splits

    def keys(self, split: str) -> dict[str, np.ndarray]:
        """Return `Column.keys` of a split's columns by which rows of all splits are compared; none but for users."""
        return {}

    def _train(self, pairs: Pairs, positions: np.ndarray, tables: Splitting) -> Table:
        is_relevant = pairs.grades[positions] > 0
        if not is_relevant.any():
            raise TableError("no train row names a relevant document", file=pairs.table.source)
        table = pairs.table.select(positions[is_relevant])
        if not (num := int((~is_relevant).sum())):
            return table
        wrong = self.catalogue.judged_wrong(pairs, positions)[is_relevant]
        why, note = (
            self._why_no_negatives(tables.schema),
            f"{num:,} train pairs of relevance 0 are not learned as pairs",
        )
        if why or not (wrong >= 0).any():
            tables.notes.append(f"{note}{f', nor as negatives, as {why}' if why else ''}.")
            return table
        count = int((wrong >= 0).sum())
        tables.notes.append(f"{note}, but as negatives: {count:,} of {len(wrong):,} pairs are told apart from one.")
        (document,) = self.catalogue.sides.document
        self.negative = f"not relevant {document}"
        while self.negative in table:
            self.negative += "_"
        spec = replace(tables.schema.columns[document], name=self.negative, reason="documents of relevance 0")
        tables.schema.columns[self.negative] = spec
        self.config = self.config.with_overrides({"negative": [self.negative]})
        return self.catalogue.with_wrong(table, wrong, self.negative).read_as(tables.schema.forms())

    def _why_no_negatives(self, schema: Schema) -> str:
        """Return why documents of relevance 0 are no negatives in training; "" if they are."""
        documents, objectives = self.catalogue.sides.document, self.config.objectives
        if len(documents) > 1:
            return "the document has several columns"
        if not MODALITIES.get(schema.columns[documents[0]].kind).needs_backbone:
            return "no encoder reads the document"
        if objectives.get("contrastive", {}).get("form", "decoupled") not in TAKES_NEGATIVES:
            return "the form of the contrastive loss takes none"
        return "" if "contrastive" in objectives else "there is no contrastive loss"

    def saved(self, config: Config, schema: Schema) -> tuple[Config, Schema]:
        """Return what is saved: the settings and the schema without the column of negatives that was made here."""
        if not self.negative:
            return config, schema
        columns = {name: spec for name, spec in schema.columns.items() if name != self.negative}
        return config.model_copy(update={"negative": []}), replace(schema, columns=columns)

    def _searched(self, split: str, pairs: Pairs, positions: np.ndarray, tables: Splitting) -> Table:
        tables.reserved[split] = self._ends[self._source_of[split]]
        searched = self.catalogue.searched(pairs, positions, reserved=tables.reserved[split])
        if searched.num_unanswered:
            tables.notes.append(
                f"{searched.num_unanswered:,} {split} queries have no document of a relevance above 0: not measured."
            )
        self.related[split] = searched.related
        self.num_queries[split] = searched.num_queries
        table = searched.table.with_missing([self.negative] if self.negative else [])
        return table.read_as(tables.schema.forms())

    def rejected_queries(self, split: str, examples: Examples) -> list[Rejected]:
        """Return a split's rejected rows without those of the catalogue."""
        end = self._ends[self._source_of[split]]
        return [item for item in examples.rejected if item.row < end]

    def all_rejected(
        self, rejected: Mapping[str, Sequence[Rejected]], examples: Mapping[str, Examples]
    ) -> list[Rejected]:
        """Return every rejected row of the query tables and of the catalogue, with its file and its row number there.

        Args:
            rejected: by split, rows that were not read.
            examples: by split, the prepared rows.
        """
        rows = list(self.catalogue.rejected)
        for split, part in examples.items():
            pairs, where = self._pairs[self._source_of[split]], part.table.file_and_row
            rows += [self.catalogue.located(item, pairs, where) for item in rejected[split]]
            rows += [self.catalogue.located(item, pairs, where) for item in self.rejected_queries(split, part)]
        return list({repr(item): item for item in rows}.values())

    def used(
        self,
        files: Mapping[str, tuple[str, int]],
        rejected: Mapping[str, Sequence[Rejected]],
        examples: Mapping[str, Examples],
    ) -> list[TableUsed]:
        """Return the counts of each split's query rows, and of the catalogue's rows.

        Args:
            files: by split with a table of its own, its name and its number of rows.
            rejected, examples: see `all_rejected`.
        """
        used = []
        for split, part in examples.items():
            own = {item.row for item in rejected[split]}
            known = self._ids[split]
            lost = own | {item.row for item in self.rejected_queries(split, part)}
            file, _ = files.get(split, (f"{files['train'][0]} (split off)", 0))
            rows_in = len(known) + len(own)
            used.append(TableUsed(split, file, rows_in, rows_in - len(lost), len(lost)))
        rows_in, num = self.catalogue.rows_in, self.catalogue.num_used
        used.append(TableUsed(CATALOGUE, self.catalogue.items.source, rows_in, num, rows_in - num))
        return used


def _num_ids(table: Table) -> int:
    """Return the number of a table's row ids, rejected rows included."""
    return 1 + max([int(table.rows.max(initial=-1)), *(item.row for item in table.rejected)])
