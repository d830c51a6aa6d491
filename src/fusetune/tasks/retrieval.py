"""Retrieval: find the cells of one side by those of another, ranked by cosine similarity in a common space."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import sparse

from fusetune.tasks import metrics, ranking
from fusetune.tasks.base import Metric
from fusetune.tasks.match import RankingTask, Search, Side
from fusetune.tasks.panels.kinds import Evidence, HistogramPanel, Section, WorstRows, WrongRow
from fusetune.tasks.ranking import Hits

ANSWER = [("rank", np.float64), ("top", np.int64), ("catalogue", np.int64)]
"""The first fields of an answer to a query: the rank of its nearest right answer, from 1; the row id of the top answer;
the number of distinct answers. The figures follow, see `Hits.figures`."""
FIGURES = ("ndcg@10", "map@10", "mrr@10", "precision@10", "mean_recall@10")

FIRST = ("mrr", "recall@10", "recall@1", "ndcg@10", "median_rank")
"""The metrics that are shown first."""

CHUNK = 1024
"""Queries that are compared with the whole catalogue at once, at most."""
AT_ONCE = 2**24
"""Similarities that are in memory at once, at most; a query's are always together."""

MAX_BINS = 20


class RetrievalTask(RankingTask):
    """Find a row's answer by its query, among the distinct answers of all evaluated rows.

    Args:
        query, answer: the two sides.

    Loss: none of its own; an objective such as `contrastive` trains the vectors.

    Answers: (queries,) of `dtype`: the rank of the first right answer, the answer on top, and the figures of the query.

    Requires: two or more rows that have both sides.

    Metrics: mrr; recall@1, 5 and 10, the share of queries with a right answer among the first k; median_rank; those
    of `FIGURES`, and any other one with a cutoff that `measure_by` asks for, such as "ndcg@20".

    Relations: the two directions between two sides are two tasks, see `alignment_tasks`.

    Example:
        >>> task = RetrievalTask(Side("image", ("photo",)), Side("text", ("note",)))
        >>> search = task.search({"photo": np.arange(2), "note": np.arange(2)}, ids=np.arange(2))
        >>> answers = task.answers({"photo": np.eye(2), "note": np.eye(2)}, search)
        >>> task.evaluate(answers, task.truth(search))["recall@1"]
        1.0

    Reference: Manning, Raghavan and Schütze 2008, "Introduction to Information Retrieval", ch. 8.
    """

    name, main = "retrieval", Metric("mrr")
    first: tuple[str, ...] = FIRST
    """The metrics that are shown first."""
    asked: tuple[str, ...]
    """Metrics with a cutoff that were asked for and are not among the usual ones."""

    def __init__(self, query: Side, answer: Side) -> None:
        super().__init__(f"{query.name} → {answer.name}")
        self.query, self.answer = query, answer
        self.asked: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of both sides."""
        return (*self.query.columns, *self.answer.columns)

    @property
    def sides(self) -> dict[str, tuple[str, ...]]:
        """See `MatchTask.sides`."""
        return {side.name: side.columns for side in (self.query, self.answer) if side.fused}

    def search(
        self,
        codes: Mapping[str, np.ndarray],
        *,
        ids: np.ndarray,
        groups: np.ndarray | None = None,
        related: sparse.csr_array | None = None,
        seen: sparse.csr_array | None = None,
    ) -> Search | None:
        """See `MatchTask.search`. None if there are fewer than two queries.

        Without `related` the catalogue is the distinct answers of the queries; if the answer's side is fused, also
        those of rows without a query.
        """
        queries, answers = (np.stack([codes[name] for name in side.columns], 1) for side in (self.query, self.answer))
        if related is not None:
            search = _search_related(queries, answers, ids, related)
            if search is None or seen is None:
                return search
            return replace(search, seen=sparse.csr_array(seen[search.rows][:, search.answer_rows]))
        answered = (answers >= 0).any(1)
        rows = np.flatnonzero((queries >= 0).any(1) & answered)
        if len(rows) < 2:
            return None
        listed = np.flatnonzero(answered) if self.answer.fused else rows
        _, first, owner = np.unique(answers[listed], axis=0, return_index=True, return_inverse=True)
        owner = owner.reshape(-1)[np.searchsorted(listed, rows)]
        _, same = np.unique(queries[rows], axis=0, return_inverse=True)
        right = _right(same.reshape(-1), owner, np.arange(len(rows)), len(first))
        if groups is not None and len(grouped := np.flatnonzero(groups[rows] >= 0)):
            _, together = np.unique(groups[rows], return_inverse=True)
            right = right + _right(together, owner, grouped, len(first))
        return Search(rows, ids[rows], listed[first], ids[listed[first]], sparse.csr_array(right > 0))

    @property
    def figures(self) -> tuple[str, ...]:
        """The metrics that are the mean of a figure of each query; see `Hits.figures`."""
        return FIGURES + tuple(name for name in self.asked if ranking.parse(name)[0] != ranking.RECALL)

    @property
    def dtype(self) -> np.dtype:
        """The type of answers: `ANSWER`, then the figures."""
        return np.dtype([*ANSWER, *((name, np.float64) for name in self.figures)])

    def answers(self, vectors: Mapping[str, np.ndarray], search: Search) -> np.ndarray:
        """Return an answer per query, (queries,) of `dtype`.

        Ranks are by cosine similarity among the distinct answers. Other right answers do not lower the rank. A wrong
        answer of equal similarity counts one half, so that a model with equal vectors for all cells ranks in the
        middle, not first.

        Args:
            vectors: see `Side.vectors`.
            search: of the same rows.
        """
        queries = self.query.vectors(vectors)[search.rows]
        catalogue = self.answer.vectors(vectors)[search.answer_rows]
        return self.by_similarity(lambda part: queries[part] @ catalogue.T, search)

    def by_similarity(self, similarity: Callable[[slice], np.ndarray], search: Search) -> np.ndarray:
        """See `RankingTask.by_similarity`."""
        result = np.empty(len(search.rows), self.dtype)
        result["catalogue"] = num = len(search.answer_rows)
        step = min(CHUNK, max(1, AT_ONCE // num))
        for start in range(0, len(result), step):
            part = slice(start, start + step)
            similar = search.without_seen(similarity(part), part)  # (chunk, answers)
            hits = ranking.rank_hits(similar, search.gains[part])
            result["rank"][part] = hits.first
            result["top"][part] = search.answer_ids[similar.argmax(1)]
            for name, values in hits.figures(self.figures).items():
                result[name][part] = values
        return result

    def top(
        self, vectors: Mapping[str, np.ndarray], search: Search, queries: np.ndarray, num: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `RankingTask.top`."""
        catalogue = self.answer.vectors(vectors)[search.answer_rows]
        similarity = search.without_seen(self.query.vectors(vectors)[search.rows[queries]] @ catalogue.T, queries)
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :num]
        return nearest, np.take_along_axis(similarity, nearest, 1)

    def truth(self, search: Search) -> np.ndarray:
        """Return the id of each query's own row, (queries,)."""
        return search.ids

    def measured(self, answers: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Return each query's rank and its figures, (queries, 1 + figures)."""
        return np.stack([answers["rank"], *(answers[name] for name in self.figures)], 1)

    def metrics(self, measured: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
        """Return mrr, recall@k, median_rank and the mean of each figure; see `metrics.retrieval`."""
        asked = [ranking.parse(name) for name in self.asked]
        cutoffs = [k for kind, k in asked if kind == ranking.RECALL]
        result = metrics.retrieval(measured[:, 0], weights, more=cutoffs)
        known = len(measured) > 0 and (weights is None or weights.sum() > 0)
        means = np.average(measured[:, 1:], 0, weights) if known else np.full(len(self.figures), np.nan)
        figures = dict(zip(self.figures, map(float, means), strict=True))
        first = dict.fromkeys(self.first, 0.0)
        return first | result | figures

    def measure_by(self, metric: str | Metric, truth: np.ndarray) -> None:
        """See `Task.measure_by`. Any cutoff can be asked for: "recall@20", "ndcg@5"."""
        name = metric.name if isinstance(metric, Metric) else metric
        if ranking.is_at_k(name) and name not in self.metrics(np.empty((0, 1 + len(self.figures))), truth[:0]):
            self.asked = (*self.asked, name)
        super().measure_by(metric, truth)

    @property
    def meanings(self) -> Mapping[str, str]:
        """See `Task.meanings`."""
        return {**super().meanings, **{name: ranking.meaning(name) for name in (*FIGURES, *self.asked)}}

    def warnings(self, answers: np.ndarray, truth: np.ndarray) -> list[str]:
        """Return a warning if the catalogue has no more answers than a metric's cutoff."""
        num = int(answers["catalogue"].max())
        names = [
            name for name in self.evaluate(answers[:1], truth[:1]) if "@" in name and ranking.parse(name)[1] >= num
        ]
        if not names:
            return []
        return [f"The catalogue has {num} answers: {', '.join(names)} look at all of them."]

    def constant(self, truth: np.ndarray, rows: int) -> np.ndarray:
        """Return the answers of a model whose vectors are all equal: every rank is in the middle."""
        num = len(truth)
        return self._ranked((num + 1) / 2, num, rows)

    def perfect(self, truth: np.ndarray) -> np.ndarray:
        """Return the answers of a model that has every right answer on top, if every query has one."""
        return self._ranked(1.0, len(truth), len(truth))

    def _ranked(self, rank: float, num_answers: int, rows: int) -> np.ndarray:
        """Return `rows` equal answers: the only right answer has this rank among `num_answers`."""
        figures = Hits(np.zeros(1, np.int64), np.array([rank]), np.ones(1), 1).figures(self.figures)
        values = (rank, -1, num_answers, *(float(figures[name][0]) for name in self.figures))
        return np.full(rows, np.array(values, self.dtype))

    def panels(self, evidence: Evidence) -> list[Section]:
        """Return a histogram of the ranks."""
        ranks, num = evidence.answers["rank"], int(evidence.answers["catalogue"].max())
        counts, edges = np.histogram(ranks, bins=min(num, MAX_BINS), range=(0.5, num + 0.5))
        title = f"Ranks of the right {self.answer.name} among {num:,}"
        return [Section("ranks", "Ranks", [HistogramPanel(title, "rank", edges.tolist(), counts.tolist(), "queries")])]

    def worst(self, answers: np.ndarray, truth: np.ndarray, num: int) -> WorstRows:
        """Return the queries with the highest ranks, without those whose right answer is on top."""
        what, shown = self.answer.name, ["rank", "top", "catalogue"]
        lowest = np.argsort(-answers["rank"], kind="stable")[:num]
        return WorstRows(
            "queries whose right answer ranked lowest",
            [
                WrongRow(
                    int(at),
                    f"{what} of row {int(truth[at])}",
                    f"ranked {rank:g} of {catalogue}; the top answer is the {what} of row {top}",
                    float("nan"),
                    float(rank),
                )
                for at, (rank, top, catalogue) in zip(lowest, answers[shown][lowest].tolist(), strict=True)
                if rank > 1
            ],
        )

    def state(self) -> dict[str, Any]:
        """Return the sides, and the metrics that were asked for."""
        sides = {
            key: {"name": side.name, "columns": list(side.columns), "fused": side.fused}
            for key, side in (("query", self.query), ("answer", self.answer))
        }
        return {**sides, **({"asked": list(self.asked)} if self.asked else {})}

    @classmethod
    def from_state(cls, target: str, state: dict[str, Any]) -> RetrievalTask:
        """Restore a task from its `state()`."""
        query, answer = (
            Side(str(state[key]["name"]), tuple(map(str, state[key]["columns"])), bool(state[key].get("fused", False)))
            for key in ("query", "answer")
        )
        task = cls(query, answer)
        task.asked = tuple(name for name in map(str, state.get("asked", ())) if ranking.is_at_k(name))
        return task


def alignment_tasks(parts: Mapping[str, str]) -> dict[str, RetrievalTask]:
    """Return retrieval in every direction between modalities, or between columns if there is one modality only.

    Args:
        parts: the modality of each column: "text", "image", "audio" or "tabular".
    """
    grouped: dict[str, list[str]] = {}
    for column, part in parts.items():
        grouped.setdefault(part, []).append(column)
    if len(grouped) > 1:
        sides = [Side(part, tuple(columns)) for part, columns in grouped.items()]
    else:
        sides = [Side(column, (column,)) for column in parts]
    tasks = [RetrievalTask(query, answer) for query in sides for answer in sides if query is not answer]
    return {task.target: task for task in tasks}


def pair_tasks(
    query: Sequence[str], document: Sequence[str], negative: Sequence[str] = (), *, mined: int = 0
) -> dict[str, RetrievalTask]:
    """Return retrieval of documents by queries, and of queries by documents, each side fused to one vector.

    Args:
        query, document: the columns of each side.
        negative: columns of documents that the row's query should not find; the document is then one column.
        mined: how many further ones are found for each row in training.
    """
    sides = Side("query", tuple(query), fused=True), Side("document", tuple(document), fused=True)
    tasks = RetrievalTask(*sides), RetrievalTask(*reversed(sides))
    tasks[0].negatives, tasks[0].mined = dict.fromkeys(negative, sides[1].name), mined
    return {task.target: task for task in tasks}


def _search_related(
    queries: np.ndarray, answers: np.ndarray, ids: np.ndarray, related: sparse.csr_array
) -> Search | None:
    """Return the search of rows whose right answers are given; None if fewer than two queries have one.

    Args:
        queries, answers: (rows, columns) the codes of each side's cells, -1 for a missing one.
        ids, related: see `MatchTask.search`.
    """
    has_query, has_answer = np.any(queries >= 0, axis=1), np.any(answers >= 0, axis=1)
    query_rows, query_of = _distinct(queries, has_query, has_answer)
    answer_rows, answer_of = _distinct(answers, has_answer, has_query)
    given = sparse.coo_array(related)
    first, second = given.coords
    real = (given.data > 0) & has_query[first] & has_answer[second]
    cell, grade = query_of[first[real]] * len(answer_rows) + answer_of[second[real]], given.data[real]
    order = np.lexsort((grade, cell))
    last = order[np.r_[np.diff(cell[order]) > 0, True][: len(order)]]  # equal rows: the highest grade
    entries = cell[last] // max(len(answer_rows), 1), cell[last] % max(len(answer_rows), 1)
    grades = sparse.csr_array((grade[last], entries), shape=(len(query_rows), len(answer_rows)))
    asked = np.flatnonzero(np.diff(grades.indptr))
    if len(asked) < 2:
        return None
    grades, rows = sparse.csr_array(grades[asked]), query_rows[asked]
    return Search(rows, ids[rows], answer_rows, ids[answer_rows], sparse.csr_array(grades > 0), grades)


def _distinct(codes: np.ndarray, present: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a row of each distinct side, ascending, and by row the index of its side among them, -1 without it.

    A row that has this side alone comes before those that have the other one too.

    Args:
        codes: (rows, columns) the codes of the side's cells.
        present, other: (rows,) bool, the rows that have the side, and the other one.
    """
    rows = np.concatenate([np.flatnonzero(present & ~other), np.flatnonzero(present & other)])
    _, first, number = np.unique(codes[rows], axis=0, return_index=True, return_inverse=True)
    order = np.argsort(rows[first])
    place = np.empty(len(first), np.int64)
    place[order] = np.arange(len(first))
    owner = np.full(len(codes), -1)
    owner[rows] = place[number.reshape(-1)]
    return rows[first][order], owner


def _right(ids: np.ndarray, owner: np.ndarray, rows: np.ndarray, num_answers: int) -> sparse.csr_array:
    """Return how often rows with equal ids have each answer, (queries, answers); zeros for queries not in `rows`.

    Args:
        ids: (queries,) from 0.
        owner: (queries,) the index of each query's own answer.
        rows: the queries to relate.
        num_answers: the size of the catalogue.
    """
    shape, ones = (len(ids), int(ids.max()) + 1), np.ones(len(rows), np.int64)
    members = sparse.csr_array((ones, (rows, ids[rows])), shape=shape)
    owned = sparse.csr_array((ones, (ids[rows], owner[rows])), shape=(shape[1], num_answers))
    return members @ owned
