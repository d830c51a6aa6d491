"""A table of documents that query rows name by a key: pairs to train on, and tables to be searched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy import sparse

from fusetune.config.catalogue import CatalogueConfig
from fusetune.config.read import ReadConfig
from fusetune.data.distinct import cell_key
from fusetune.data.keys import Key, find_key, grades_of, key_of, keys_of
from fusetune.data.quarantine import Rejected
from fusetune.data.reading.joined import beside, concat, only, renamed, with_column
from fusetune.data.table import Source, Table
from fusetune.errors import TableError, shown

RELEVANCE = "relevance"
"""The column of grades, unless `catalogue.relevance` names another."""


@dataclass(frozen=True)
class Sides:
    """The columns of queries, in the query table, and of documents, in the catalogue."""

    query: tuple[str, ...]
    document: tuple[str, ...]


@dataclass(frozen=True)
class Pairs:
    """Queries beside their documents.

    Attributes:
        table: (pairs) rows with the columns of both; row ids are those of the query table, once for each document.
        columns: those of the catalogue.
        items: (pairs,) positions in the catalogue.
        grades: (pairs,) float64, 0 or more.
        rejected: rows of the query table that have no pairs, with the reason.
    """

    table: Table
    columns: Sequence[str]
    items: np.ndarray
    grades: np.ndarray
    rejected: Sequence[Rejected]


@dataclass(frozen=True)
class Searched:
    """Queries, and the whole catalogue that they are searched in, as one table.

    Attributes:
        table: a row for each distinct query, beside its document of the highest grade; then a row for each item.
        related: (rows, rows) sparse, symmetric: the grade of the document in one row for the query in the other.
        num_queries: how many queries there are.
        num_unanswered: queries that have no relevant document and are left out.
    """

    table: Table
    related: sparse.csr_array
    num_queries: int
    num_unanswered: int


class Catalogue:
    """A table of documents.

    Attributes:
        items: the documents, each once.
        key: the columns by which queries name them.
        relevance: the query table's column of grades, or None.
        rows_in: the number of rows in the catalogue's table.
        rejected: those that cannot be found, with the reason.
        notes: sentences for the user.
    """

    def __init__(self, table: Table, key: Key, sides: Sides, relevance: str | None) -> None:
        """
        Args:
            table: the catalogue as it was read.
            key, relevance: see the attributes.
            sides: the columns of queries and documents.

        Raises:
            TableError: two rows have one key and different documents, or no row has a document.
        """
        self.key, self.sides, self.relevance = key, sides, relevance
        self.rows_in = len(table) + len(table.rejected)
        self.rejected = list(table.rejected)
        self.notes = [f"{table.source}: {note}" for note in table.notes]
        if key.why:
            self.notes.append(f"The key of {table.source} is {key.item!r}: {key.why}.")
        empty = np.all([table.missing(name) for name in sides.document], axis=0)
        names = ", ".join(map(repr, sides.document))
        self._unusable: dict[str, str] = {}
        positions: dict[str, int] = {}
        keep, keyless, twice = ~empty, 0, 0
        for index, cell in enumerate(table.lazy(key.item)):
            own = key_of(cell)
            if empty[index]:
                row, why = int(table.rows[index]), f"no column of the document has a value ({names})"
                self.rejected.append(Rejected(row, None, None, why, file=table.source))
                self._unusable.setdefault(own or "", f"in its row {row} of {table.source} {why}")
            elif own is None:
                keyless += 1
            elif positions.setdefault(own, index) != index:
                self._check_same(table, own, positions[own], index)
                keep[index], twice = False, twice + 1
        if not keep.any():
            raise TableError("the catalogue has no document", expected=f"values in {names}", file=table.source)
        self.items = table.select(keep)
        moved = np.cumsum(keep) - 1
        self._positions = {own: int(moved[index]) for own, index in positions.items()}
        if twice:
            self.notes.append(f"{twice:,} rows of {table.source} repeat a key with the same document: taken once.")
        if keyless:
            self.notes.append(f"{keyless:,} rows of {table.source} have no {key.item!r}: no query can name them.")
        self._num_repeated = twice

    @classmethod
    def read(
        cls, source: Source, config: CatalogueConfig, queries: Table, sides: Sides, read: ReadConfig | None = None
    ) -> Catalogue:
        """Read a catalogue, and find the key by which a query table names its rows.

        Args:
            source: the table of documents.
            config: the key and the relevance.
            queries: a query table.
            sides: the columns of queries and documents.
            read: how files are read.

        Raises:
            TableError: it cannot be read, is empty, lacks a column, or its key is not clear; see `find_key`.
        """
        table = Table.read(source, read=read)
        table.require(sides.document)
        queries.require(sides.query)
        key = find_key(config.key, queries, table)
        relevance = config.relevance or (RELEVANCE if RELEVANCE in queries else None)
        if config.relevance is not None:
            queries.require([config.relevance])
        return cls(table, key, sides, relevance)

    @property
    def num_used(self) -> int:
        """The number of the table's rows that are used: of one key, all."""
        return len(self.items) + self._num_repeated

    def _check_same(self, table: Table, key: str, first: int, second: int) -> None:
        """Refuse two rows with one key and different documents."""
        for name in self.sides.document:
            cells = table.cells(name, [first, second])
            if cell_key(cells[0]) != cell_key(cells[1]):
                rows = [int(table.rows[index]) for index in (first, second)]
                raise TableError(
                    f"two rows have the key {key!r} and different documents",
                    expected=f"one row for each {self.key.item!r}",
                    came=f"rows {rows[0]} and {rows[1]}: {shown(cells[0], 60)} and {shown(cells[1], 60)}",
                    do="give each document a key of its own, or remove one of the rows",
                    file=table.source,
                    column=name,
                )

    def pairs(self, queries: Table) -> Pairs:
        """Return a query table's rows beside the documents that they name.

        A row is rejected if it has no query, if its key is missing or not in the catalogue, or if its relevance is no
        number of 0 or more.

        Raises:
            TableError: the table lacks a column, or no row can be used.
        """
        relevance = [self.relevance] if self.relevance is not None and self.relevance in queries else []
        queries.require([*self.sides.query, self.key.query])
        rows: list[int] = []
        items: list[int] = []
        grades: list[float] = []
        rejected = []
        absent = np.all([queries.missing(name) for name in self.sides.query], axis=0)
        judged = queries.lazy(relevance[0]) if relevance else [1.0] * len(queries)
        for index, (cell, grade) in enumerate(zip(queries.lazy(self.key.query), judged, strict=True)):
            column, value = self.key.query, cell
            try:
                if absent[index]:
                    column, value = self.sides.query[0], None
                    raise ValueError("the query has no cell")
                named = self._named(cell)
                if relevance:
                    column, value = relevance[0], grade
                own = grades_of(grade, len(named))
            except ValueError as error:
                rejected.append(Rejected(int(queries.rows[index]), column, value, str(error)))
                continue
            rows += [index] * len(named)
            items += named
            grades += own
        if not rows:
            raise TableError(
                "no row names a document of the catalogue",
                expected=f"values of {self.key.item!r} of {self.items.source}",
                came=rejected[0].why if rejected else None,
                file=queries.source,
                column=self.key.query,
            )
        graded = np.array(grades)
        columns = self._columns(queries)
        table = beside(queries, np.array(rows), self.items, np.array(items), columns)
        if relevance:
            table = with_column(table, relevance[0], pa.array(graded))
        return Pairs(table, columns, np.array(items), graded, rejected)

    def _columns(self, queries: Table) -> list[str]:
        """Return the catalogue's columns that pairs have: the document's, and others that the query table lacks."""
        others = [name for name in self.items.column_names if name not in queries]
        return list(dict.fromkeys([*self.sides.document, *others]))

    def _named(self, cell: object) -> list[int]:
        """Return the positions of the items that a cell names.

        Raises:
            ValueError: one of them is not in the catalogue.
        """
        keys = keys_of(cell, self._positions)
        if not keys:
            raise ValueError("the key is missing")
        for key in keys:
            if key not in self._positions:
                what = f"the key {key!r} is not in {self.items.source}"
                raise ValueError(f"the key {key!r} names nothing: {why}" if (why := self._unusable.get(key)) else what)
        return [self._positions[key] for key in keys]

    def positions(self, cells: Sequence[object]) -> np.ndarray:
        """Return the positions of the items that have some keys, (cells,) int64; -1 for an unknown key."""
        return np.array([self._positions.get(key_of(cell) or "", -1) for cell in cells], dtype=np.int64)

    def judged_wrong(self, pairs: Pairs, chosen: np.ndarray) -> np.ndarray:
        """Return for each of some pairs a document that is judged not relevant to its query, by its position; -1: none.

        The documents of relevance 0 are taken in turn; those that another row of the same query grades higher are not.

        Args:
            pairs: of a query table.
            chosen: (chosen,) which pairs; they and no others tell what is relevant.
        """
        query, wrong, relevant = self._queries(pairs, chosen), dict[int, list[int]](), set[tuple[int, int]]()
        named = list(zip(query.tolist(), pairs.items[chosen].tolist(), pairs.grades[chosen].tolist(), strict=True))
        relevant |= {(asked, item) for asked, item, grade in named if grade > 0}
        for asked, item, grade in named:
            if grade == 0 and (asked, item) not in relevant:
                wrong.setdefault(asked, []).append(item)
        turn, found = dict.fromkeys(wrong, 0), np.full(len(chosen), -1)
        for number, (asked, _, grade) in enumerate(named):
            if grade > 0 and asked in wrong:
                found[number] = wrong[asked][turn[asked] % len(wrong[asked])]
                turn[asked] += 1
        return found

    def with_wrong(self, table: Table, wrong: np.ndarray, name: str) -> Table:
        """Return pairs with a column of documents that are judged not relevant, missing where there is none.

        Args:
            table: the pairs.
            wrong: (pairs,) positions of the documents, -1 for none.
            name: the new column's name; the documents are one column.
        """
        (document,) = self.sides.document
        items = renamed(only(self.items, [document]), document, name)
        return beside(table, np.arange(len(table)), items, np.ma.masked_less(wrong, 0), [name])

    def _queries(self, pairs: Pairs, chosen: np.ndarray) -> np.ndarray:
        """Return the number of each pair's distinct query, (chosen,)."""
        codes = np.stack([pairs.table.distinct(name)[0][chosen] for name in self.sides.query], 1)
        return np.asarray(np.unique(codes, axis=0, return_inverse=True)[1]).reshape(-1)

    def searched(self, pairs: Pairs, chosen: np.ndarray, *, reserved: int) -> Searched:
        """Return the distinct queries of some pairs, and all items.

        Args:
            pairs: of a query table.
            chosen: (chosen,) which pairs.
            reserved: the number of row ids of the query table.
        """
        query, item, grade = self._queries(pairs, chosen), pairs.items[chosen], pairs.grades[chosen]
        order = np.lexsort((chosen, -grade, query))  # of a query, the highest grade first
        best = order[np.r_[True, np.diff(query[order]) > 0][: len(order)]]
        answered = best[grade[best] > 0]
        answered = answered[np.argsort(chosen[answered], kind="stable")]
        number = np.full(int(query.max(initial=-1)) + 1, -1)
        number[query[answered]] = np.arange(len(answered))
        front = pairs.table.select(chosen[answered])
        if self.relevance is not None and self.relevance in front:  # of a pair, not of a query
            front = with_column(front, self.relevance, pa.nulls(len(front), pa.float64()))
        table = concat([front, only(self.items, pairs.columns)], pairs.table.source, reserved=reserved)
        entries = np.flatnonzero((number[query] >= 0) & (grade > 0))
        cells = {}
        for at in entries[np.argsort(grade[entries], kind="stable")]:  # the highest grade of a pair stays
            cells[int(number[query[at]]), len(answered) + int(item[at])] = float(grade[at])
        ends = np.array(list(cells), dtype=np.int64).reshape(-1, 2).T
        values, size = np.array(list(cells.values())), (len(table), len(table))
        half = sparse.csr_array((values, (ends[0], ends[1])), shape=size)
        return Searched(table, sparse.csr_array(half + half.T), len(answered), len(best) - len(answered))

    def located(self, rejected: Rejected, pairs: Pairs, where: Callable[[int], tuple[str, int]]) -> Rejected:
        """Return the record of a pair that cannot be read; of a document's cell, with the catalogue's row.

        Args:
            rejected: by the row id of the query table.
            pairs: of that table.
            where: returns the file and the row of a row id.
        """
        file, row = where(rejected.row)
        if rejected.column not in self.sides.document:
            return Rejected(row, rejected.column, rejected.value, rejected.why, file=file, do=rejected.do)
        own = pairs.items[pairs.table.rows == rejected.row]
        if not len(own):  # the row names no document
            return Rejected(row, rejected.column, rejected.value, rejected.why, file=file, do=rejected.do)
        cells = self.items.cells(rejected.column, own)
        same = [item for item, cell in zip(own, cells, strict=True) if cell_key(cell) == cell_key(rejected.value)]
        at = int(self.items.rows[same[0] if same else own[0]])
        why = f"its document, row {at} of {self.items.source}, column {rejected.column!r}: {rejected.why}"
        return Rejected(row, rejected.column, rejected.value, why, file=file, do=rejected.do)


def first_rows(table: Table, columns: Sequence[str]) -> np.ndarray:
    """Return the position of the first row of each distinct combination of cells, ascending."""
    codes = np.stack([table.distinct(name)[0] for name in columns], 1)
    return np.sort(np.unique(codes, axis=0, return_index=True)[1])
