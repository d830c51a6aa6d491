"""`SearchIndex`: a catalogue's rows, found by the vectors of a tuned model."""

from __future__ import annotations

import mimetypes
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from fusetune.data.column import Progress
from fusetune.data.examples import Examples
from fusetune.data.joins import flat_names
from fusetune.data.output_names import ERROR, ROW
from fusetune.data.table import Table
from fusetune.deploy.bundle import Bundle
from fusetune.deploy.predictions import Predictions
from fusetune.deploy.rows import Rows, needed_columns, read_rows
from fusetune.deploy.search.filters import rows_where
from fusetune.deploy.search.rerank import Reranker
from fusetune.deploy.search.vectors import DType, VectorIndex
from fusetune.errors import ConfigError, TableError
from fusetune.inference.predict import row_vectors
from fusetune.models.match import Match
from fusetune.objectives.total import trained_dims
from fusetune.tasks.abilities import Writes

PART_ROWS = 8192
"""Rows that are decoded and encoded together."""
MEDIA = ("image", "audio")


class SearchIndex:
    """The vectors of a catalogue's rows, and the rows themselves to show and to filter by.

    Made by `FineTuned.index`; see there. Rows are numbered from 0 in the order in which they were added.

    Attributes:
        bundle: the tuned model.
        find: what is found: a side, such as `document`, or a column of a model without sides.
        vectors: of the rows that have one.
        rows: the catalogue's scalar columns, one row each, also of rows without a vector.
        owners: (vectors,) int64, each vector's row.
        refused: what is wrong with rows that cannot be found, by row.
        reranker: reads the nearest documents together with the query; or None.
    """

    def __init__(self, bundle: Bundle, find: str, vectors: VectorIndex) -> None:
        self.bundle, self.find, self.vectors = bundle, find, vectors
        self.rows = pa.table({})
        self.owners = np.zeros(0, dtype=np.int64)
        self.refused: dict[int, str] = {}
        self.reranker: Reranker | None = None

    def __len__(self) -> int:
        """Number of rows that can be found."""
        return len(self.vectors)

    def __repr__(self) -> str:
        return f"SearchIndex({len(self)} rows to find by {self.find}, {self.vectors.dtype})"

    @classmethod
    def build(
        cls,
        bundle: Bundle,
        catalogue: Rows,
        *,
        find: str | None = None,
        dtype: DType = "float32",
        dim: int | None = None,
        graph: bool | None = None,
        progress: Progress | None = None,
    ) -> SearchIndex:
        """See `FineTuned.index`."""
        side, width = found_side(bundle, find), cut_to(bundle, dim) or bundle.model.dim
        index = cls(bundle, side, VectorIndex(width, dtype=dtype, graph=graph))
        index.add(catalogue, progress=progress)
        if not len(index):
            names = ", ".join(map(repr, bundle.model.compared[index.find]))
            raise TableError("no row of the catalogue can be found", expected=f"a readable cell of {names} in some row")
        return index

    def add(self, catalogue: Rows, *, progress: Progress | None = None) -> int:
        """Add rows; return how many of them can be found.

        Raises:
            TableError: the catalogue cannot be read or lacks a column.
        """
        columns, before = self.bundle.model.compared[self.find], len(self.vectors)
        table = _read(self.bundle, catalogue, columns)
        first = self.rows.num_rows
        for positions, vectors, errors in _encoded(self, table, (self.find,), columns, progress):
            real = np.linalg.norm(vectors, axis=1) > 0
            self.vectors.add(vectors[real])
            self.owners = np.concatenate([self.owners, first + positions[real]])
            lacking = dict.fromkeys(positions[~real].tolist(), "it has no cell to find it by") | errors
            self.refused |= {first + row: why for row, why in lacking.items() if row not in set(positions[real])}
        self.vectors.settle()
        shown = _scalars(table)
        self.rows = _joined(self.rows, shown) if first else shown
        return len(self.vectors) - before

    def remove(self, where: str) -> int:
        """Remove the rows that a filter keeps, see `search`; return how many. The numbers of the others stay."""
        gone = self._where(where)[self.owners] & self.vectors.alive
        self.vectors.remove(np.flatnonzero(gone))
        return int(gone.sum())

    def search(self, queries: Any, *, k: int = 10, where: str | None = None, rerank: bool | None = None) -> Predictions:
        """Find the nearest rows of the catalogue for each query.

        Args:
            queries: a text, or the path of a picture or sound, as a string; a row as a dictionary; a list of either;
                a table, or its file as a `Path`.
            k: how many rows a query.
            where: a filter on the catalogue's columns, `price < 50 and colour in ["red", "blue"]`.
            rerank: whether the re-ranker reads the nearest documents together with the query and sorts them anew. None:
                if there is one, and validation rows preferred its order.

        Returns:
            Up to k rows a query, the nearest first: `row`, the query's number; `rank` from 1; `score`, the cosine
            similarity; `relevance`, if they are sorted anew, the probability that the document is right; FIND_row, the
            catalogue's row; the catalogue's columns; `error`. A query that cannot be read has one row with the reason
            in `error`.

        Raises:
            ConfigError: k is less than 1, the filter cannot be read, or there is no re-ranker of what is found.
            TableError: the queries lack a column.
        """
        reranker = self._reranker(rerank)
        if k < 1:
            raise ConfigError("a search gives at least one row", expected="k of 1 or more", came=f"k={k}")
        allowed = None if where is None else self._where(where)[self.owners]
        names = [name for name in self.bundle.model.compared if name != self.find]
        columns = [column for name in names for column in self.bundle.model.compared[name]]
        table = _read(self.bundle, self._as_rows(queries, columns), columns)
        total, hits = len(table) + len(table.rejected), []
        errors: dict[int, str] = {}
        for positions, vectors, wrong in _encoded(self, table, names, columns, None):
            errors |= wrong
            real = np.linalg.norm(vectors, axis=1) > 0
            errors |= dict.fromkeys(positions[~real].tolist(), "it has no cell to search by")
            num = min(k if reranker is None else max(k, reranker.depth), len(self.vectors))
            near, scores = self.vectors.search(vectors[real], num, allowed=allowed)
            if reranker is None:
                hits.append((positions[real], near, scores, np.full(near.shape, np.nan)))
                continue
            cells = table.cells(reranker.query, np.searchsorted(table.rows, positions[real]))
            hits.append((positions[real], *self._sorted_anew(reranker, cells, near, scores, k)))
        return self._answers(total, hits, errors, relevance=reranker is not None)

    def _reranker(self, asked: bool | None) -> Reranker | None:
        """Return the re-ranker that a search takes, or None; ConfigError if it is asked for and cannot be taken."""
        known = self.reranker
        fits = known is not None and (known.document,) == self.bundle.model.compared[self.find]
        fits = fits and known is not None and known.document in self.rows.column_names
        if asked and not fits:
            raise ConfigError(
                "there is no re-ranker of what is found",
                expected="a model of pairs of a text each that was fitted with rerank=true, and find=document",
                came=f"find={self.find}",
                do="leave rerank out",
            )
        return known if fits and known is not None and asked is not False and (asked or known.preferred) else None

    def _sorted_anew(
        self, reranker: Reranker, queries: Sequence[Any], near: np.ndarray, scores: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the best k of the nearest vectors, their similarities and probabilities, (queries, k) each."""
        column = self.rows.column(reranker.document)
        owners = np.where(near >= 0, self.owners[near], 0)
        cells = column.take(pa.array(owners.reshape(-1))).to_pylist()
        documents = [
            [cell if real else None for cell, real in zip(row, there, strict=True)]
            for row, there in zip(_rows_of(cells, near.shape), near >= 0, strict=True)
        ]
        order, relevance = reranker.order(queries, documents)
        taken = [np.take_along_axis(values, order, 1)[:, :k] for values in (near, scores)]
        return taken[0], taken[1], relevance[:, :k]

    def _answers(
        self, total: int, hits: Sequence[tuple[np.ndarray, ...]], errors: Mapping[int, str], *, relevance: bool
    ) -> Predictions:
        """Return the table of answers, in the order of the queries.

        Args:
            total: number of queries.
            hits: their numbers, and (queries, k) the positions, similarities and probabilities of vectors.
            errors: by number, why a query has no answer.
            relevance: whether there are probabilities.
        """
        by_query = {int(q): best for queries, *both in hits for q, *best in zip(queries, *both, strict=True)}
        query: list[int] = []
        rank: list[int | None] = []
        score: list[float | None] = []
        probability: list[float | None] = []
        owner: list[int | None] = []
        error: list[str | None] = []
        for number in range(total):
            near, scores, own = by_query.get(number, (np.zeros(0, int), np.zeros(0), np.zeros(0)))
            real = int((near >= 0).sum())
            rows = max(real, 1)
            query += [number] * rows
            rank += list(range(1, real + 1)) or [None]
            score += scores[:real].tolist() or [None]
            probability += [None if np.isnan(value) else float(value) for value in own[:real]] or [None]
            owner += self.owners[near[:real]].tolist() or [None]
            error += [errors.get(number, None if real else "no row of the catalogue passes the filter")] * rows
        columns: dict[str, Any] = {
            ROW: pa.array(query, pa.int64()),
            "rank": pa.array(rank, pa.int64()),
            "score": pa.array(score, pa.float32()),
            **({"relevance": pa.array(probability, pa.float32())} if relevance else {}),
            f"{self.find}_row": (rows := pa.array(owner, pa.int64())),
        }
        for name in self.rows.column_names:
            label = name
            while label in columns or label == ERROR:
                label += "_"
            columns[label] = self.rows.column(name).take(rows)
        return Predictions(pa.table(columns | {ERROR: pa.array(error, pa.string())}))

    def _where(self, expression: str) -> np.ndarray:
        names = self.rows.column_names
        return rows_where(expression, lambda name: list(self.rows.column(name).to_pylist()), names, self.rows.num_rows)

    def _as_rows(self, queries: Any, columns: Sequence[str]) -> Any:
        """Return queries as rows: strings are put into the column that they are for."""
        if isinstance(queries, str):
            return [self._row_of(queries, columns)]
        if isinstance(queries, Mapping):
            return [queries]
        if isinstance(queries, list | tuple):
            return [self._row_of(query, columns) if isinstance(query, str) else query for query in queries]
        return queries

    def _row_of(self, text: str, columns: Sequence[str]) -> dict[str, str]:
        """Return a query row from a path of media, or a text: of several columns of texts it is for the first."""
        raw = raw_columns(self.bundle, columns)
        kind = (mimetypes.guess_type(text)[0] or "").split("/")[0]
        kinds = {name: self.bundle.modalities[name].kind if name in self.bundle.modalities else "text" for name in raw}
        is_media = kind in MEDIA and kind in kinds.values()
        fitting = [name for name in raw if (kinds[name] == kind if is_media else kinds[name] not in MEDIA)]
        if len(raw) == 1:
            fitting = raw
        texts = [name for name in fitting if kinds[name] == "text"]
        chosen = texts[:1] if len(fitting) > 1 and texts else fitting
        if len(chosen) != 1:
            raise ConfigError(
                f"it is not clear which column {text[:60]!r} is for",
                expected=f"a row with {', '.join(map(repr, raw))}",
                do=f'name the column: {{"{raw[0]}": …}}, on the command line --set {raw[0]}=…',
            )
        return {chosen[0]: text}


def _rows_of(cells: Sequence[Any], shape: tuple[int, ...]) -> list[Sequence[Any]]:
    """Return a flat sequence as rows of `shape[1]` cells each."""
    return [cells[start : start + shape[1]] for start in range(0, shape[0] * shape[1], shape[1])]


def cut_to(bundle: Bundle, dim: int | None) -> int | None:
    """Return how many of a vector's first numbers are taken; None takes all. A model not tuned for it is warned about.

    Raises:
        ConfigError: the model has no vectors to compare, or they have fewer numbers.
    """
    if dim is None:
        return None
    if not isinstance(bundle.model, Match):
        raise ConfigError(
            "only vectors that are compared with each other can be cut",
            expected="a model tuned with --query and --document, or without a target",
            came=f"a model that predicts {', '.join(bundle.tasks)}, and dim={dim}",
            do="leave dim out",
        )
    if not 1 <= dim <= bundle.model.dim:
        raise ConfigError("dim is out of range", expected=f"1 to {bundle.model.dim}", came=str(dim))
    if dim < bundle.model.dim and dim not in (known := trained_dims(bundle.config.objectives)):
        tuned = f"for {', '.join(map(str, known))}" if known else "with the dims of an objective"
        warnings.warn(f"the vectors are cut to {dim} numbers, and the model was not tuned {tuned}", stacklevel=3)
    return dim


def check_searches(bundle: Bundle) -> None:
    """Refuse a model without vectors that are compared.

    Raises:
        ConfigError: it is such.
    """
    if isinstance(bundle.model, Match):
        return
    writes = any(isinstance(task, Writes) for task in bundle.tasks.values())
    raise ConfigError(
        "only a model of pairs can search",
        expected="a model tuned with --query and --document, or without a target",
        came=f"a model that {'writes' if writes else 'predicts'} {', '.join(bundle.tasks)}",
        do="have it write: fusetune generate RUN, or predict" if writes else None,
    )


def found_side(bundle: Bundle, find: str | None) -> str:
    """Return what a model's index finds: `find`, or the document side, or the second of two columns.

    Raises:
        ConfigError: the model has no vectors to compare, there is no such side, or it must be named.
    """
    check_searches(bundle)
    assert isinstance(bundle.model, Match)
    names = list(bundle.model.compared)
    if find is None and "document" in names:
        return "document"
    if find not in names:
        what = "it must be named what is found" if find is None else f"the model has no {find!r} to find"
        raise ConfigError(what, expected=f"find={' or '.join(map(repr, names))}")
    return find


def raw_columns(bundle: Bundle, columns: Sequence[str]) -> list[str]:
    """Return the table's columns that these inputs are read from."""
    joins = bundle.schema.joins()
    return list(
        dict.fromkeys(raw for name in columns for raw in (flat_names(joins[name]) if name in joins else [name]))
    )


def _read(bundle: Bundle, source: Rows, columns: Sequence[str]) -> Table:
    """Read a table that needs some of the model's columns; single queries may lack some of these, too."""
    own = raw_columns(bundle, columns)
    others = [name for name in needed_columns(bundle) if name not in own]
    if isinstance(source, list) and source and all(isinstance(row, Mapping) for row in source):
        others += [name for name in own if not any(name in row for row in source)][: len(own) - 1]
    return read_rows(bundle, source, missing=others)


def _encoded(
    index: SearchIndex, table: Table, names: Sequence[str], columns: Sequence[str], progress: Progress | None
) -> Iterator[tuple[np.ndarray, np.ndarray, dict[int, str]]]:
    """Yield a part's rows, their vectors, and what is wrong with the other rows.

    Yields:
        (rows,) int64 numbers in the source; (rows, dim) float32, of unit length: the normalised mean of what `names`
        names, zeros for a row without it; and by row the reason why it has none.
    """
    bundle, dim = index.bundle, index.vectors.dim
    modalities = {column: bundle.modalities[column] for column in columns}
    wrong = {item.row: item.why for item in table.rejected}
    for start in range(0, max(len(table), 1), PART_ROWS):
        part = table.select(np.arange(start, min(start + PART_ROWS, len(table))))
        examples = Examples(part, modalities)
        examples.prepare(on_bad_cell="mask", memory=bundle.config.data.memory, progress=progress)
        wrong |= {item.row: item.note for item in [*examples.masked, *examples.rejected]}
        vectors = np.zeros((0, dim), dtype=np.float32)
        if len(examples.used):
            by_name = row_vectors(bundle.model, examples, examples.used, dim=dim)
            total = np.sum([by_name[name].numpy() for name in names], axis=0)
            vectors = total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
        yield part.rows[examples.used], vectors.astype(np.float32), wrong
        wrong = {}


def _scalars(table: Table) -> pa.Table:
    """Return the columns of texts and numbers, one row for every row of the source."""
    names = [name for name in table.column_names if table.is_scalar(name)]
    total = len(table) + len(table.rejected)
    places = np.full(total, -1, dtype=np.int64)
    places[table.rows] = np.arange(len(table))
    take = pa.array(places, mask=places < 0)
    return table.arrow.select(names).take(take)


def _joined(first: pa.Table, second: pa.Table) -> pa.Table:
    """Join the rows of two tables; a column of different types becomes one of texts."""
    for name in set(first.column_names) & set(second.column_names):
        if first.schema.field(name).type != second.schema.field(name).type:
            first, second = (_as_text(table, name) for table in (first, second))
    return pa.concat_tables([first, second], promote_options="default")


def _as_text(table: pa.Table, name: str) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, table.column(name).cast(pa.string()))
