"""What recommendation is compared with, and what is shown of every system: exposure, known and new users and items."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from fusetune.evaluation.measure.compare import bootstrap
from fusetune.evaluation.measure.exposure import MEANINGS, exposure, top_items
from fusetune.evaluation.measure.interactions import ItemKnn, popularity
from fusetune.evaluation.measure.judge import Candidate
from fusetune.evaluation.report.comparison import with_interval
from fusetune.evaluation.results import Interval
from fusetune.tasks import ranking
from fusetune.tasks.match import RankingTask, Search
from fusetune.tasks.panels.kinds import Cell, Head, Section, TablePanel

K = 10
"""Recommended items of each user in the figures below."""
FIGURES = (f"ndcg@{K}", f"mean_recall@{K}")
GROUPS = ("known users", "new users", "known items", "new items")
NEIGHBOURS, SHRINKAGES = (10, 50, 200), (0.0, 20.0)
"""The settings of item-kNN among which validation rows choose."""
MAX_PAIRS = 2 * 10**8
"""Item-kNN is left out if train users have more pairs of items than this."""
AT_ONCE = 2**23
"""Scores that are in memory at once, at most; a query's are always together."""
GROUP_DRAWS = 200

Scorer = Callable[[slice], np.ndarray]
"""Returns the scores of all answers for some queries, (queries, answers)."""
System = tuple[Candidate, Scorer]


@dataclass(frozen=True)
class Chosen:
    """What train users chose, beside a search.

    Attributes:
        train: (users, answers) sparse, 1 where a train user chose an answer of the search.
        history: (queries, answers) sparse, 1 where the query's user did.
        recent: (answers,) the train rows of each answer, weighed by their age; None if all rows weigh alike.
    """

    train: sparse.csr_array
    history: sparse.csr_array
    recent: np.ndarray | None = None

    @property
    def counts(self) -> np.ndarray:
        """The train users who chose each answer, (answers,)."""
        return popularity(self.train)

    @property
    def known_users(self) -> np.ndarray:
        """Whether each query's user has train interactions, (queries,) bool."""
        return np.asarray(np.diff(self.history.indptr) > 0)


def baselines(
    task: RankingTask, search: Search, chosen: Chosen, validation: tuple[Search, Chosen] | None
) -> list[System]:
    """Return recommendation without content: popular items, in all and lately, and item-kNN, each with its scorer.

    Args:
        task: recommendation.
        search: of the test rows.
        chosen: beside it.
        validation: the same of the validation rows, which choose the settings of item-kNN; None: the first ones.
    """
    counts = chosen.counts
    systems: list[tuple[str, str, Scorer]] = [
        ("most popular", "the items that most train users chose", lambda part: _repeated(counts, search.rows[part]))
    ]
    if (recent := chosen.recent) is not None:
        what = "the items of most train rows, weighed by age as in training"
        systems.append(("popular lately", what, lambda part: _repeated(recent, search.rows[part])))
    sizes = np.diff(chosen.train.indptr).astype(np.float64)
    if chosen.train.nnz and (sizes**2).sum() <= MAX_PAIRS:
        neighbours, shrinkage = _choose_knn(task, validation)
        knn = ItemKnn(chosen.train, neighbours=neighbours, shrinkage=shrinkage)
        what = f"items that the same train users chose: cosine, {neighbours} neighbours, shrinkage {shrinkage:g}"
        what += ", chosen on validation rows; then the most popular" if validation is not None else ""
        systems.append(("item-kNN", what, lambda part: knn.scores(chosen.history[part])))
    return [
        (Candidate(name, "baseline", what, task.by_similarity(scorer, search)), scorer)
        for name, what, scorer in systems
    ]


def _repeated(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.broadcast_to(values, (len(rows), len(values)))


def _choose_knn(task: RankingTask, validation: tuple[Search, Chosen] | None) -> tuple[int, float]:
    """Return the neighbours and the shrinkage with the best main metric on validation rows."""
    if validation is None:
        return NEIGHBOURS[0], SHRINKAGES[0]
    search, chosen = validation
    best: dict[tuple[int, float], float] = {}
    for neighbours, shrinkage in itertools.product(NEIGHBOURS, SHRINKAGES):
        knn = ItemKnn(chosen.train, neighbours=neighbours, shrinkage=shrinkage)
        answers = task.by_similarity(lambda part, knn=knn: knn.scores(chosen.history[part]), search)  # type: ignore[misc]
        value = task.evaluate(answers, task.truth(search))[task.main.name]
        best[neighbours, shrinkage] = value if task.main.greater_is_better else -value
    return max(best, key=lambda settings: best[settings])


def by_vectors(task: RankingTask, search: Search, vectors: Mapping[str, np.ndarray]) -> Scorer:
    """Return the scorer of a model's vectors; see `RankingTask.answers`."""
    queries = task.query.vectors(vectors)[search.rows]
    catalogue = task.answer.vectors(vectors)[search.answer_rows]
    return lambda part: queries[part] @ catalogue.T


def sections(
    search: Search,
    chosen: Chosen,
    systems: Sequence[System],
    *,
    weights: np.ndarray | None = None,
    num: int = GROUP_DRAWS,
    seed: int = 0,
) -> list[Section]:
    """Return, for each system: figures of known and new users and items, and of what is recommended.

    Args:
        search: of the test rows.
        chosen: beside it.
        systems: with `FIGURES` among their answers.
        weights: (queries,) in the metrics.
        num: of bootstrap draws, at most `GROUP_DRAWS`.
        seed: of the draws.
    """
    groups, shown = {}, {}
    for candidate, scorer in systems:
        top, by_items = _ranked(search, chosen, scorer)
        by_users = {
            name: {figure: np.where(mask, candidate.answers[figure], np.nan) for figure in FIGURES}
            for name, mask in zip(GROUPS[:2], (chosen.known_users, ~chosen.known_users), strict=True)
        }
        groups[candidate.name] = {
            name: _intervals(figures, weights, num=min(num, GROUP_DRAWS), seed=seed)
            for name, figures in {**by_users, **by_items}.items()
        }
        shown[candidate.name] = exposure(top, chosen.counts, chosen.train.shape[0])
    sizes = dict(zip(GROUPS, _sizes(search, chosen), strict=True))
    return [_groups_section(groups, sizes), _exposure_section(shown)]


def _ranked(search: Search, chosen: Chosen, scorer: Scorer) -> tuple[np.ndarray, dict[str, dict[str, np.ndarray]]]:
    """Return a system's top items, (queries, K), and each query's figures of known and of new right items.

    The figures are nan for a query without right items of the kind. Right items of the other kind are left out of the
    ranking: they count neither as right nor as wrong.
    """
    num_queries, num_answers = search.right.shape
    known = chosen.counts > 0
    figures = {name: {figure: np.full(num_queries, np.nan) for figure in FIGURES} for name in GROUPS[2:]}
    top = np.full((num_queries, min(K, num_answers)), -1)
    for part in _parts(num_queries, num_answers):
        scores = search.without_seen(np.asarray(scorer(part), dtype=np.float64), part)
        top[part] = top_items(scores, K)
        gains = search.gains[part]
        for name, kind in zip(GROUPS[2:], (known, ~known), strict=True):
            right, others = (sparse.csr_array(gains.multiply(mask.astype(float))) for mask in (kind, ~kind))
            right.eliminate_zeros()
            asked = np.flatnonzero(np.diff(right.indptr))
            if not len(asked):
                continue
            own = scores[asked]
            own[others[asked].nonzero()] = -np.inf
            hits = ranking.rank_hits(own, right[asked])
            for figure, values in hits.figures(FIGURES).items():
                figures[name][figure][part.start + asked] = values
    return top, figures


def _parts(num_queries: int, num_answers: int) -> Iterator[slice]:
    step = max(1, AT_ONCE // max(num_answers, 1))
    return (slice(start, min(start + step, num_queries)) for start in range(0, num_queries, step))


def _intervals(
    figures: Mapping[str, np.ndarray], weights: np.ndarray | None, *, num: int, seed: int
) -> dict[str, Interval]:
    """Return the mean of each figure over the queries that have it, with its interval; nan if none has."""
    values = np.stack(list(figures.values()), 1)
    have = ~np.isnan(values[:, 0])
    if not have.any():
        return {name: Interval(float("nan")) for name in figures}

    def means(measured: np.ndarray, truth: np.ndarray, weights: np.ndarray | None) -> dict[str, float]:
        return dict(zip(figures, np.average(measured, 0, weights).tolist(), strict=True))

    part = None if weights is None else weights[have]
    return bootstrap(means, values[have], np.zeros(int(have.sum())), num=num, seed=seed, weights=part)


def _sizes(search: Search, chosen: Chosen) -> list[int]:
    """Return the number of queries in each of `GROUPS`."""
    known, right = chosen.counts > 0, search.right.astype(np.int64)
    users = int(chosen.known_users.sum())
    items = [int((np.asarray(right @ mask.astype(np.int64)) > 0).sum()) for mask in (known, ~known)]
    return [users, len(search.rows) - users, *items]


def _groups_section(groups: Mapping[str, Mapping[str, Mapping[str, Interval]]], sizes: Mapping[str, int]) -> Section:
    heads = [Head("system"), *(Head(f"{name} ({size:,})") for name, size in sizes.items())]
    panels: list[TablePanel] = []
    figures: dict[str, float] = {}
    for figure in FIGURES:
        rows: list[list[Cell]] = []
        for system, by_group in groups.items():
            rows.append([system, *(with_interval(by_group[name][figure]) if sizes[name] else None for name in GROUPS)])
            figures |= {f"{system}, {name}, {figure}": by_group[name][figure].value for name in GROUPS}
        panels.append(TablePanel(heads, rows, caption=f"{figure}, with 95% intervals; in brackets, the users measured"))
    notes = [
        "Known users and items are those of train rows; new ones are in none.",
        "Of known and of new items: the right answers of one kind, ranked among the whole catalogue. Right answers of"
        " the other kind are left out.",
    ]
    return Section("known_and_new", "Known and new users and items", [*panels], notes, figures)


def _exposure_section(shown: Mapping[str, Mapping[str, float]]) -> Section:
    heads = [Head("system"), Head("coverage", "share"), *(Head(name, "number") for name in list(MEANINGS)[1:])]
    rows: list[list[Cell]] = [[system, *(figures[name] for name in MEANINGS)] for system, figures in shown.items()]
    notes = [f"{name}: {meaning}." for name, meaning in MEANINGS.items()]
    panel = TablePanel(heads, rows, caption=f"Of the first {K} recommended items")
    values = {f"{system}, {name}": value for system, figures in shown.items() for name, value in figures.items()}
    return Section("exposure", "What is recommended", [panel], notes, values)
