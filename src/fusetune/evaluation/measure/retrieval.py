"""Retrieval: rank all cells by cosine similarity to a query, and measure the rank of the right one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusetune.evaluation.measure.compare import draw_all
from fusetune.evaluation.results import Mistake, Shown, SystemResult, TaskResult
from fusetune.tasks.metrics import MEANINGS

METRIC = "mrr"
CUTOFFS = (10, 1, 5)
CHUNK = 1024


@dataclass(frozen=True)
class Side:
    """The columns of a query or an answer. The vectors of several columns are averaged.

    Attributes:
        name: the name shown in the report: "image", "text".
        columns: the columns' names.
    """

    name: str
    columns: tuple[str, ...]


@dataclass
class Search:
    """One direction of retrieval. Every row that has both sides is a query for its own answer.

    Attributes:
        query, answer: the two sides.
        rows: (queries,) the queries' positions among the rows.
        owner: (queries,) the index, in `answer_rows`, of the answer in the query's own row.
        right: (queries, answers) bool, the right answers: those of every row with an equal query or in the query's
            group.
        answer_rows: (answers,) for each distinct answer, the position of the first row that has it.
    """

    query: Side
    answer: Side
    rows: np.ndarray
    owner: np.ndarray
    right: np.ndarray
    answer_rows: np.ndarray

    @property
    def name(self) -> str:
        """The name shown in the report: "text → image"."""
        return f"{self.query.name} → {self.answer.name}"


def sides(parts: Mapping[str, Sequence[str]]) -> list[Side]:
    """Return the sides of retrieval: one per modality, or one per column if there is one modality only.

    Args:
        parts: the columns per modality.
    """
    if len(parts) > 1:
        return [Side(name, tuple(columns)) for name, columns in parts.items()]
    return [Side(column, (column,)) for columns in parts.values() for column in columns]


def searches(chosen: Sequence[Side], codes: Mapping[str, np.ndarray], groups: np.ndarray | None = None) -> list[Search]:
    """Return every direction between two sides that two or more rows have both.

    Args:
        chosen: the sides.
        codes: (rows,) per column, the id of each row's cell, -1 for a missing cell.
        groups: (rows,) int; rows of one group are right answers to each other; -1 for no group.
    """
    result = []
    for query in chosen:
        for answer in chosen:
            if query is answer:
                continue
            queries, answers = (np.stack([codes[name] for name in side.columns], 1) for side in (query, answer))
            rows = np.flatnonzero((queries >= 0).any(1) & (answers >= 0).any(1))
            if len(rows) < 2:
                continue
            _, first, owner = np.unique(answers[rows], axis=0, return_index=True, return_inverse=True)
            owner = owner.reshape(-1)
            _, same = np.unique(queries[rows], axis=0, return_inverse=True)
            right = _right(same.reshape(-1), owner, len(first))
            if groups is not None:
                grouped = np.flatnonzero(groups[rows] >= 0)
                if len(grouped):
                    _, together = np.unique(groups[rows][grouped], return_inverse=True)
                    right[grouped] |= _right(together.reshape(-1), owner[grouped], len(first))
            result.append(Search(query, answer, rows, owner, right, rows[first]))
    return result


def _right(query_ids: np.ndarray, owner: np.ndarray, num_answers: int) -> np.ndarray:
    """Return the answers of all queries with the same id, (queries, answers) bool."""
    by_id = np.zeros((int(query_ids.max()) + 1, num_answers), dtype=bool)
    by_id[query_ids, owner] = True
    return np.asarray(by_id[query_ids])


def side_vectors(side: Side, vectors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return a side's vectors, (rows, dim): the normalised mean of its columns' vectors, zeros where it is absent.

    Args:
        side: the side.
        vectors: (rows, dim) per column, of unit length, zeros where the column is absent.
    """
    total = sum((vectors[name] for name in side.columns), np.zeros_like(vectors[side.columns[0]]))
    return np.asarray(total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12))


def ranks(search: Search, vectors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the rank, from 1, of each query's nearest right answer among the distinct answers, (queries,).

    Ranks are by cosine similarity. Other right answers do not lower the rank. A wrong answer of equal similarity
    counts one half, so that a model with equal vectors for all cells ranks in the middle, not first.

    Args:
        search: the direction.
        vectors: see `side_vectors`.
    """
    queries = side_vectors(search.query, vectors)[search.rows]
    answers = side_vectors(search.answer, vectors)[search.answer_rows]
    result = np.empty(len(queries))
    for start in range(0, len(queries), CHUNK):
        part = slice(start, start + CHUNK)
        similarity = queries[part] @ answers.T  # (chunk, answers)
        right = search.right[part]
        best = np.where(right, similarity, -np.inf).max(1, keepdims=True)
        wrong = np.where(right, -np.inf, similarity)
        tied = np.isclose(wrong, best, rtol=0, atol=1e-6)
        result[part] = 1 + ((wrong > best) & ~tied).sum(1) + tied.sum(1) / 2
    return result


def metrics(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
    """Return recall@k (the share of queries with a right answer among the first k), mean reciprocal rank, median rank.

    Args:
        scores: (queries,) ranks from 1.
        truth: ignored; the ranks contain everything.
        weights: (queries,) or None.
    """
    if not len(scores):
        return dict.fromkeys((METRIC, *(f"recall@{k}" for k in CUTOFFS), "median_rank"), float("nan"))
    result = {METRIC: float(np.average(1 / scores, weights=weights))}
    result |= {f"recall@{k}": float(np.average(scores <= k, weights=weights)) for k in CUTOFFS}
    return result | {"median_rank": float(np.median(scores))}


def judge_search(
    search: Search,
    systems: Sequence[tuple[SystemResult, np.ndarray]],
    rows: np.ndarray,
    *,
    split: str = "test",
    groups: Sequence[Any] | None = None,
    worst: Sequence[tuple[int, int, list[Shown]]] = (),
    num: int = 1000,
    seed: int = 0,
) -> TaskResult:
    """Compare systems on one direction of retrieval.

    Args:
        search: the direction.
        systems: each system with its ranks, (queries,); the last is the tuned model.
        rows: (queries,) row ids.
        split: the rows' split.
        groups: (queries,) the bootstrap draws queries with equal values together.
        worst: the queries to show: position, position of the top-ranked answer, cells.
        num, seed: the number of bootstrap draws, and their seed.
    """
    no_truth = np.zeros(len(search.rows))
    by_index = {str(index): ranking for index, (_, ranking) in enumerate(systems)}
    draws = draw_all(metrics, by_index, no_truth, num=num, seed=seed, groups=groups)
    after = draws[str(len(systems) - 1)]
    for index, (system, _) in enumerate(systems):
        system.metrics = draws[str(index)].intervals(0.95)
        system.difference = {} if index == len(systems) - 1 else after.minus(draws[str(index)], 0.95)
    tuned, what = systems[-1][1], search.answer.name
    return TaskResult(
        name="retrieval",
        target=search.name,
        metric=METRIC,
        greater_is_better=True,
        rows=len(search.rows),
        systems=[system for system, _ in systems],
        split=split,
        meanings={METRIC: MEANINGS[METRIC]},
        errors_are="queries whose right answer ranked lowest",
        errors=[
            Mistake(
                int(rows[at]),
                f"{what} of row {int(rows[at])}",
                f"ranked {tuned[at]:g} of {len(search.answer_rows)}; the top answer is the {what} of row {first}",
                float("nan"),
                float(tuned[at]),
                cells,
            )
            for at, first, cells in worst
        ],
    )


def first_answers(search: Search, vectors: Mapping[str, np.ndarray], at: np.ndarray) -> np.ndarray:
    """Return the position of the row with the top-ranked answer, for the queries `at`."""
    queries = side_vectors(search.query, vectors)[search.rows[at]]
    answers = side_vectors(search.answer, vectors)[search.answer_rows]
    return np.asarray(search.answer_rows[(queries @ answers.T).argmax(1)])


Score = Callable[[Mapping[str, np.ndarray]], float]


def mean_score(directions: Sequence[Search]) -> Score:
    """Return a function from vectors to the main metric, averaged over directions."""

    def score(vectors: Mapping[str, np.ndarray]) -> float:
        values = [metrics(ranks(search, vectors), np.empty(0))[METRIC] for search in directions]
        return float(np.mean(values)) if values else float("nan")

    return score
