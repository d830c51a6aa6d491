"""What retrieval is compared with, and the queries that a report shows with their answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fusetune.data.examples import Examples
from fusetune.data.overlap import row_keys
from fusetune.evaluation.measure.bm25 import Bm25
from fusetune.evaluation.measure.judge import Candidate
from fusetune.evaluation.shown import RankedAnswer, RankedQuery, Shown
from fusetune.modalities.text import TextModality
from fusetune.tasks.match import RankingTask, Search
from fusetune.tasks.panels.kinds import Head, Section, TablePanel

NUM_ANSWERS = 5
"""Answers that are shown of a query."""
NUM_QUERIES = 3
"""Queries that are shown of each kind: won, lost, and others."""

ShowSide = Callable[[int, Sequence[str]], list[Shown]]
"""Returns some columns of the row at a position among the used rows, for display."""


def baselines(task: RankingTask, search: Search, train: Examples, test: Examples) -> list[Candidate]:
    """Return rules that rank answers without a model: the most frequent answers first, and BM25 between texts.

    Args:
        task: a direction of retrieval.
        search: among the used test rows.
        train: the rows that the frequent answers are counted in.
        test: the test rows.
    """
    candidates = []
    counts = answer_counts(task, search, train, test)
    if counts.any():
        frequent = task.by_similarity(lambda part: np.tile(counts, (len(search.rows[part]), 1)), search)
        what = f"the {task.answer.name} that most train rows have, then the next"
        candidates.append(Candidate("most frequent answer", "baseline", what, frequent))
    queries = _texts(test, task.query.columns, search.rows)
    documents = _texts(test, task.answer.columns, search.answer_rows)
    if queries is not None and documents is not None:
        bm25 = Bm25(documents)
        ranked = task.by_similarity(lambda part: bm25.scores(queries[part]), search)
        what = "words that the texts of both sides share (k1 = 1.2, b = 0.75)"
        candidates.append(Candidate("BM25", "baseline", what, ranked))
    return candidates


def answer_counts(task: RankingTask, search: Search, train: Examples, test: Examples) -> np.ndarray:
    """Return how many of the used train rows have each answer, (answers,) float64."""
    columns = task.answer.columns
    parts = [_side_keys(examples, columns) for examples in (train, test)]
    known, counts = np.unique(parts[0], return_counts=True)
    own = parts[1][search.answer_rows]
    at = np.minimum(np.searchsorted(known, own), max(len(known) - 1, 0))
    return np.where(known[at] == own, counts[at], 0).astype(np.float64) if len(known) else np.zeros(len(own))


def _side_keys(examples: Examples, columns: Sequence[str]) -> np.ndarray:
    """Return a key of each used row's cells in some columns, (used,) void."""
    names = list(examples.columns)
    keys = np.ascontiguousarray(row_keys(examples)[:, [names.index(name) for name in columns]])
    return keys.view(np.dtype((np.void, keys.dtype.itemsize * keys.shape[1]))).reshape(-1)


def _texts(examples: Examples, columns: Sequence[str], rows: np.ndarray) -> list[str] | None:
    """Return the words of a side's columns of text in some used rows; None if the side has no such column."""
    named = [name for name in columns if isinstance(examples.columns[name].modality, TextModality)]
    if not named:
        return None
    texts: list[list[str]] = [[] for _ in rows]
    for name in named:
        column = examples.columns[name]
        modality = column.modality
        assert isinstance(modality, TextModality)
        codes = np.asarray(column.codes[examples.used[rows]])
        there = np.flatnonzero(codes >= 0)
        for at, cell in zip(there, column.cells.take(codes[there]), strict=True):
            texts[at] += modality.texts(cell, row=-1)
    return [" ".join(parts) for parts in texts]


def tuning_section(before: np.ndarray, after: np.ndarray) -> Section:
    """Return how many queries tuning won and lost.

    Args:
        before, after: (queries,) the rank of each query's first right answer.
    """
    moved = after - before
    counts = {"better": int((moved < 0).sum()), "equal": int((moved == 0).sum()), "worse": int((moved > 0).sum())}
    on_top = {
        "right answer came on top": int(((after <= 1) & (before > 1)).sum()),
        "right answer left the top": int(((after > 1) & (before <= 1)).sum()),
    }
    rows: list[list[str | int | float | None]] = [
        [f"the first right answer ranks {name} after tuning", count, count / len(after)]
        for name, count in counts.items()
    ]
    rows += [[f"the {name}", count, count / len(after)] for name, count in on_top.items()]
    heads = [Head(""), Head("queries", "count"), Head("share", "share")]
    figures = {name: float(count) for name, count in counts.items()}
    return Section("tuning", "What tuning changed", [TablePanel(heads, rows)], figures=figures)


def ranked_queries(
    task: RankingTask,
    search: Search,
    vectors: Mapping[str, np.ndarray],
    ranks: tuple[np.ndarray, np.ndarray | None],
    show: ShowSide,
) -> list[RankedQuery]:
    """Return queries with their top answers: those that tuning won and lost most, and some others.

    Args:
        task: a direction of retrieval.
        search: among the test rows.
        vectors: of the tuned model, see `RankingTask.answers`.
        ranks: (queries,) of the first right answer by the tuned model, and before tuning if that is known.
        show: displays a row's cells.
    """
    after, before = ranks
    gained = np.zeros(len(after)) if before is None else 1 / after - 1 / before
    order = np.argsort(-gained, kind="stable")
    chosen = {int(at): "won" for at in order[:NUM_QUERIES] if gained[at] > 0}
    chosen |= {int(at): "lost" for at in order[::-1][:NUM_QUERIES] if gained[at] < 0}
    spaced = np.unique(np.linspace(0, len(after) - 1, 2 * NUM_QUERIES + len(chosen)).astype(np.int64))
    others = [int(at) for at in spaced if int(at) not in chosen][: max(NUM_QUERIES, 3 * NUM_QUERIES - len(chosen))]
    chosen |= dict.fromkeys(others, "")
    places = np.array(list(chosen), dtype=np.int64)
    top, scores = task.top(vectors, search, places, NUM_ANSWERS)
    gains = search.gains[places].toarray()
    queries = []
    for number, (at, outcome) in enumerate(chosen.items()):
        answers = [
            RankedAnswer(
                int(search.answer_ids[answer]),
                float(score),
                float(gains[number, answer]),
                show(int(search.answer_rows[answer]), task.answer.columns),
            )
            for answer, score in zip(top[number], scores[number], strict=True)
        ]
        cells = show(int(search.rows[at]), task.query.columns)
        earlier = float("nan") if before is None else float(before[at])
        queries.append(RankedQuery(int(search.ids[at]), outcome, float(after[at]), earlier, cells, answers))
    return queries
