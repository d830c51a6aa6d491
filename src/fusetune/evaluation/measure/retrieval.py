"""Retrieval: how early the right cell comes when all are ranked by how near they are to a query."""

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
    """What a query or an answer is made of: one column, or several whose vectors are averaged.

    Attributes:
        name: as shown: "image", "text".
        columns: its columns.
    """

    name: str
    columns: tuple[str, ...]


@dataclass
class Search:
    """One direction of search on some rows: each row that has both sides asks for its own answer.

    Attributes:
        query, answer: the sides.
        rows: (queries,) the asking rows' positions among the rows that were given.
        owner: (queries,) which of the answers below is a query's own.
        right: (queries, answers) bool, the answers that are right: those of every row with an equal query, or of the
            query's group.
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
        """As shown: "text → image"."""
        return f"{self.query.name} → {self.answer.name}"


def sides(parts: Mapping[str, Sequence[str]]) -> list[Side]:
    """The sides of search: one a sort of signal; where there is one sort only, one a column.

    Args:
        parts: per sort of signal its columns.
    """
    if len(parts) > 1:
        return [Side(name, tuple(columns)) for name, columns in parts.items()]
    return [Side(column, (column,)) for columns in parts.values() for column in columns]


def searches(chosen: Sequence[Side], codes: Mapping[str, np.ndarray], groups: np.ndarray | None = None) -> list[Search]:
    """Every direction between two sides in which some row can ask.

    Args:
        chosen: the sides.
        codes: per column (rows,), which cell a row has, -1 for none.
        groups: (rows,) int, rows of one group are right answers of each other, -1 for none.
    """
    found = []
    for query in chosen:
        for answer in chosen:
            if query is answer:
                continue
            asked, given = (np.stack([codes[name] for name in side.columns], 1) for side in (query, answer))
            rows = np.flatnonzero((asked >= 0).any(1) & (given >= 0).any(1))
            if len(rows) < 2:
                continue
            _, first, owner = np.unique(given[rows], axis=0, return_index=True, return_inverse=True)
            owner = owner.reshape(-1)
            _, same = np.unique(asked[rows], axis=0, return_inverse=True)
            right = _right(same.reshape(-1), owner, len(first))
            if groups is not None:
                known = np.flatnonzero(groups[rows] >= 0)
                if len(known):
                    _, together = np.unique(groups[rows][known], return_inverse=True)
                    right[known] |= _right(together.reshape(-1), owner[known], len(first))
            found.append(Search(query, answer, rows, owner, right, rows[first]))
    return found


def _right(asks: np.ndarray, owner: np.ndarray, num_answers: int) -> np.ndarray:
    """(queries, answers) bool: the answers of all queries that ask the same."""
    by_asked = np.zeros((int(asks.max()) + 1, num_answers), dtype=bool)
    by_asked[asks, owner] = True
    return np.asarray(by_asked[asks])


def side_vectors(side: Side, vectors: Mapping[str, np.ndarray]) -> np.ndarray:
    """(rows, dim) of a side: the mean of its columns' unit vectors, of unit length; zeros where it is absent.

    Args:
        side: with the columns.
        vectors: per column (rows, dim) of unit length, zeros where the column is absent.
    """
    total = sum((vectors[name] for name in side.columns), np.zeros_like(vectors[side.columns[0]]))
    return np.asarray(total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12))


def ranks(search: Search, vectors: Mapping[str, np.ndarray]) -> np.ndarray:
    """(queries,) the rank of the nearest right answer among the distinct answers, from 1, by cosine similarity.

    Other right answers do not push it back. Wrong answers that are just as near count half, so that a model that
    makes all vectors equal ranks in the middle, not first.

    Args:
        search: the direction.
        vectors: as in `side_vectors`.
    """
    asked = side_vectors(search.query, vectors)[search.rows]
    answers = side_vectors(search.answer, vectors)[search.answer_rows]
    found = np.empty(len(asked))
    for start in range(0, len(asked), CHUNK):
        part = slice(start, start + CHUNK)
        near = asked[part] @ answers.T  # (chunk, answers)
        right = search.right[part]
        best = np.where(right, near, -np.inf).max(1, keepdims=True)
        wrong = np.where(right, -np.inf, near)
        tied = np.isclose(wrong, best, rtol=0, atol=1e-6)
        found[part] = 1 + ((wrong > best) & ~tied).sum(1) + tied.sum(1) / 2
    return found


def metrics(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
    """Recall@k (the share of queries whose right answer is among the first k), mean reciprocal rank, median rank.

    Args:
        scores: (queries,) ranks from 1.
        truth: not looked at; the ranks say all.
        weights: (queries,) or None.
    """
    if not len(scores):
        return dict.fromkeys((METRIC, *(f"recall@{k}" for k in CUTOFFS), "median_rank"), float("nan"))
    found = {METRIC: float(np.average(1 / scores, weights=weights))}
    found |= {f"recall@{k}": float(np.average(scores <= k, weights=weights)) for k in CUTOFFS}
    return found | {"median_rank": float(np.median(scores))}


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
    """Compare systems on one direction of search.

    Args:
        search: the direction.
        systems: name, kind and description of each with its ranks; the last is the tuned model.
        rows: (queries,) row ids.
        split: where the rows are from.
        groups: (queries,) queries of equal value are drawn together by the bootstrap.
        worst: the queries to show: position, position of the answer that came first, cells.
        num, seed: of the bootstrap.
    """
    nothing = np.zeros(len(search.rows))
    named = {str(place): found for place, (_, found) in enumerate(systems)}
    draws = draw_all(metrics, named, nothing, num=num, seed=seed, groups=groups)
    after = draws[str(len(systems) - 1)]
    for place, (system, _) in enumerate(systems):
        system.metrics = draws[str(place)].intervals(0.95)
        system.difference = {} if place == len(systems) - 1 else after.minus(draws[str(place)], 0.95)
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
        errors_are="queries whose answer came latest",
        errors=[
            Mistake(
                int(rows[at]),
                f"{what} of row {int(rows[at])}",
                f"ranked {tuned[at]:g} of {len(search.answer_rows)}; first came the {what} of row {first}",
                float("nan"),
                float(tuned[at]),
                cells,
            )
            for at, first, cells in worst
        ],
    )


def first_answers(search: Search, vectors: Mapping[str, np.ndarray], at: np.ndarray) -> np.ndarray:
    """For some queries, the position of the row whose answer comes first."""
    asked = side_vectors(search.query, vectors)[search.rows[at]]
    answers = side_vectors(search.answer, vectors)[search.answer_rows]
    return np.asarray(search.answer_rows[(asked @ answers.T).argmax(1)])


Score = Callable[[Mapping[str, np.ndarray]], float]


def mean_score(found: Sequence[Search]) -> Score:
    """A function from vectors to the mean over directions of the main metric."""

    def score(vectors: Mapping[str, np.ndarray]) -> float:
        values = [metrics(ranks(one, vectors), np.empty(0))[METRIC] for one in found]
        return float(np.mean(values)) if values else float("nan")

    return score
