"""Query strategies of pool-based active learning: from vectors and predictions to the rows to label next.

| strategy | needs predictions | chooses |
| --- | --- | --- |
| `entropy` | yes | the rows whose predicted distribution has the largest entropy |
| `margin` | yes | the rows whose two most probable labels are nearest to each other |
| `badge` | yes | rows with large and different gradients of the last layer (Ash et al. 2020) |
| `diverse-margin` | yes | of the rows with small margins, those nearest to k centres (Zhdanov 2019) |
| `coreset` | no | rows that leave no row far from a labelled one (Sener & Savarese 2018) |
| `typical` | no | a typical row of each of the largest clusters without a label (Hacohen et al. 2022) |
| `random` | no | rows drawn at random |

Legend: rows = all rows, open = the rows that may be chosen, labels = the labels so far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans

PREFILTER = 10
"""`diverse-margin` clusters so many times as many rows as it chooses."""
MAX_CLUSTERS = 500
"""The most clusters of `typical`."""
SMALL_CLUSTER = 5
"""A cluster of so many rows or fewer has no typical row."""
NEIGHBOURS = 20
"""The most neighbours by which a row is typical."""
EXACT_CLUSTERS = 50
"""Up to so many clusters are found by k-means on all rows, more by k-means on mini-batches."""


@dataclass(frozen=True)
class Candidates:
    """What a strategy chooses from.

    Attributes:
        vectors: (rows, dim) float32 of unit length, by which rows are near each other.
        open: (open,) positions of the rows that may be chosen.
        labelled: (labelled,) positions of the rows that have a label.
        probabilities: (rows, labels) of a model of the labelled rows; None before there is one.
        features: (rows, features), what that model reads.
    """

    vectors: np.ndarray
    open: np.ndarray
    labelled: np.ndarray
    probabilities: np.ndarray | None = None
    features: np.ndarray | None = None


Strategy = Callable[[Candidates, int, np.random.Generator], np.ndarray]


def margins(probabilities: np.ndarray) -> np.ndarray:
    """Return the difference between the two largest probabilities of each row, (rows,), in [0, 1]."""
    top = np.partition(probabilities, -2, axis=1)[:, -2:]
    return np.asarray(top[:, 1] - top[:, 0])


def entropies(probabilities: np.ndarray) -> np.ndarray:
    """Return the entropy of each row's distribution in nats, (rows,)."""
    return np.asarray(-(probabilities * np.log(np.maximum(probabilities, 1e-12))).sum(1))


def by_margin(candidates: Candidates, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return the open rows with the smallest margins; ties are drawn."""
    assert candidates.probabilities is not None
    return _lowest(candidates.open, margins(candidates.probabilities[candidates.open]), count, rng)


def by_entropy(candidates: Candidates, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return the open rows with the largest entropies; ties are drawn."""
    assert candidates.probabilities is not None
    return _lowest(candidates.open, -entropies(candidates.probabilities[candidates.open]), count, rng)


def by_gradient(candidates: Candidates, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return rows by k-means++ seeding on the gradients of the last layer, taken at the most probable label.

    The gradient of the cross-entropy is the outer product of (probabilities − one-hot label) and the features with a
    constant, so that a distance needs two products of (open,) vectors and the gradients are never written out. The
    first row is the one with the largest gradient.
    """
    assert candidates.probabilities is not None and candidates.features is not None
    some = candidates.open
    errors = candidates.probabilities[some].astype(np.float64)
    errors[np.arange(len(some)), errors.argmax(1)] -= 1
    features = candidates.features[some].astype(np.float64)
    size = (errors**2).sum(1) * ((features**2).sum(1) + 1)

    def distances(index: int) -> np.ndarray:
        inner = (errors @ errors[index]) * (features @ features[index] + 1)
        return np.asarray(np.maximum(size + size[index] - 2 * inner, 0))

    chosen = [int(size.argmax())]
    nearest = distances(chosen[0])
    while len(chosen) < min(count, len(some)):
        nearest[chosen] = 0
        if (total := nearest.sum()) > 0:
            chosen.append(int(rng.choice(len(some), p=nearest / total)))
        else:  # all that are left have the gradient of a chosen row
            chosen.append(int(rng.choice(np.setdiff1d(np.arange(len(some)), chosen))))
        nearest = np.minimum(nearest, distances(chosen[-1]))
    return np.asarray(some[chosen])


def by_cover(candidates: Candidates, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return rows by the greedy k-centre algorithm, each the farthest from all labelled and chosen rows."""
    some = candidates.open
    vectors = candidates.vectors[some]
    chosen: list[int] = []
    nearest = np.full(len(some), np.inf)
    for centre in candidates.labelled:
        nearest = np.minimum(nearest, _squared_to(vectors, candidates.vectors[centre]))
    while len(chosen) < min(count, len(some)):
        chosen.append(int(nearest.argmax()) if np.isfinite(nearest[0]) else int(rng.integers(len(some))))
        nearest = np.minimum(nearest, _squared_to(vectors, vectors[chosen[-1]]))
        nearest[chosen] = -1
    return np.asarray(some[chosen])


def by_diverse_margin(candidates: Candidates, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return, of the rows with the smallest margins, the nearest to each centre of a k-means weighted by 1 − margin."""
    assert candidates.probabilities is not None
    some = by_margin(candidates, min(PREFILTER * count, len(candidates.open)), rng)
    if len(some) <= count:
        return some
    weights = 1 - margins(candidates.probabilities[some]) + 1e-6
    vectors = candidates.vectors[some]
    means = KMeans(count, n_init=1, random_state=_seed(rng)).fit(vectors, sample_weight=weights)
    away = means.transform(vectors)  # (some, clusters)
    chosen: list[int] = []
    for cluster in np.argsort(-np.bincount(means.labels_, weights, minlength=count), kind="stable"):
        order = np.argsort(away[:, cluster], kind="stable")
        chosen.append(int(next(index for index in order if index not in chosen)))
    return np.asarray(some[chosen])


def by_typicality(candidates: Candidates, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return typical rows of clusters, one a cluster, first of those with the fewest labels, then of the largest.

    There are as many clusters as there will be labelled rows, at most `MAX_CLUSTERS`. A row is typical if the mean
    distance to its nearest neighbours in the cluster is small.
    """
    clusters = _clusters(candidates.vectors, min(len(candidates.labelled) + count, MAX_CLUSTERS), _seed(rng))
    num = int(clusters.max()) + 1
    sizes = np.bincount(clusters, minlength=num)
    labels = np.bincount(clusters[candidates.labelled], minlength=num)
    left = np.bincount(clusters[candidates.open], minlength=num)
    is_open = np.zeros(len(clusters), dtype=bool)
    is_open[candidates.open] = True
    order: dict[int, list[int]] = {}
    chosen: list[int] = []
    while len(chosen) < min(count, len(candidates.open)):
        usable = left > 0
        if (usable & (sizes > SMALL_CLUSTER)).any():
            usable &= sizes > SMALL_CLUSTER
        ranked = np.lexsort((-sizes, labels, ~usable))
        cluster = int(ranked[0])
        if cluster not in order:
            members = np.flatnonzero(clusters == cluster)
            order[cluster] = [int(row) for row in members[_typical_first(candidates.vectors[members])] if is_open[row]]
        chosen.append(order[cluster].pop(0))
        left[cluster] -= 1
        labels[cluster] += 1
    return np.asarray(chosen, dtype=np.int64)


def at_random(candidates: Candidates, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return open rows drawn at random."""
    return np.asarray(rng.permutation(candidates.open)[:count])


STRATEGIES: dict[str, Strategy] = {
    "entropy": by_entropy,
    "margin": by_margin,
    "badge": by_gradient,
    "diverse-margin": by_diverse_margin,
    "coreset": by_cover,
    "typical": by_typicality,
    "random": at_random,
}
NEEDS_MODEL = ("entropy", "margin", "badge", "diverse-margin")
COLD = "typical"
"""The strategy before there is a model."""


def choose(strategy: str, candidates: Candidates, count: int, *, seed: int) -> np.ndarray:
    """Return positions of open rows, at most `count`, in the order in which they were chosen.

    Args:
        strategy: a name in `STRATEGIES`; one that needs predictions becomes `COLD` where there are none.
        candidates: what is chosen from.
        count: 1 or more.
        seed: of all draws.
    """
    if strategy in NEEDS_MODEL and candidates.probabilities is None:
        strategy = COLD
    if not len(candidates.open):
        return np.zeros(0, dtype=np.int64)
    return STRATEGIES[strategy](candidates, count, np.random.default_rng(seed))


def _lowest(open_rows: np.ndarray, values: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    mixed = rng.permutation(len(open_rows))
    return np.asarray(open_rows[mixed[np.argsort(values[mixed], kind="stable")[:count]]])


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def _squared_to(vectors: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Return the squared distance of each vector to a point, (rows,)."""
    return np.asarray(((vectors - point) ** 2).sum(1))


def _clusters(vectors: np.ndarray, num: int, seed: int) -> np.ndarray:
    """Return each row's cluster by k-means, (rows,)."""
    num = min(num, len(vectors))
    if num <= EXACT_CLUSTERS:
        return np.asarray(KMeans(num, n_init=1, random_state=seed).fit_predict(vectors), dtype=np.int64)
    means = MiniBatchKMeans(num, batch_size=5000, n_init=1, random_state=seed)
    return np.asarray(means.fit_predict(vectors), dtype=np.int64)


def _typical_first(vectors: np.ndarray) -> np.ndarray:
    """Return the rows of a cluster from the most to the least typical, as positions."""
    num = min(NEIGHBOURS, max(len(vectors) // 2, 1))
    squares = (vectors**2).sum(1)
    away = np.empty(len(vectors))
    for start in range(0, len(vectors), 1024):
        part = vectors[start : start + 1024]
        squared = squares[start : start + 1024, None] + squares - 2 * part @ vectors.T
        distances = np.sqrt(np.maximum(squared, 0))
        distances[np.arange(len(part)), start + np.arange(len(part))] = np.inf  # not itself
        nearest = np.partition(distances, min(num, len(vectors)) - 1, axis=1)[:, :num]
        away[start : start + 1024] = np.where(np.isfinite(nearest), nearest, 0).mean(1)
    return np.argsort(away, kind="stable")
