"""Choices by given probabilities, and how well the best ranking does on them."""

from __future__ import annotations

import numpy as np

CUTOFF = 10


def choose(
    items: np.ndarray,
    users: np.ndarray,
    rows: range,
    *,
    weights: np.ndarray,
    noise: float,
    rng: np.random.Generator,
) -> None:
    """Write the items that are chosen in some rows, one after the other, by the Gumbel-max trick.

    Args:
        items: (rows,) written in place; the rows before are read: no user chooses an item twice.
        users: (rows,).
        rows: those to choose for.
        weights: (users, items), 0 for an item that cannot be chosen.
        noise: probability of a choice at random among those that can be.
        rng: draws the choices.
    """
    with np.errstate(divide="ignore"):
        logs = np.log(weights)
    open_to = np.isfinite(logs)
    open_to[users[: rows.start], items[: rows.start]] = False
    for row in rows:
        user = users[row]
        scores = (0.0 if rng.random() < noise else logs[user]) + rng.gumbel(size=weights.shape[1])
        items[row] = np.where(open_to[user], scores, -np.inf).argmax()
        open_to[user, items[row]] = False


def mean_figures(scores: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Return ndcg@10 and mean_recall@10, the mean over the queries that have a right answer.

    Args:
        scores: (queries, items), minus infinity for items that are left out; equal ones are in random order.
        right: (queries, items) 1 where an item is right, or the probability that it is.
    """
    queries, num = scores.shape
    ranks = np.arange(num)
    order = np.argsort(-scores, axis=1, kind="stable")
    ordered = np.take_along_axis(scores, order, 1)
    starts = np.ones(scores.shape, bool)
    with np.errstate(invalid="ignore"):
        starts[:, 1:] = ~np.isclose(ordered[:, 1:], ordered[:, :-1], rtol=1e-9, atol=0)
    tied = np.cumsum(starts.reshape(-1)) - 1
    hits = np.bincount(tied, np.take_along_axis(right, order, 1).reshape(-1))
    sizes = np.bincount(tied)
    counts = np.rint(right.sum(1)).astype(np.int64)
    result = {}
    discounts = np.where(ranks < CUTOFF, 1 / np.log2(2 + ranks), 0.0)
    best = np.cumsum(discounts)[np.maximum(counts, 1) - 1]
    for name, values, most in (
        ("ndcg@10", discounts, best),
        ("mean_recall@10", (ranks < CUTOFF).astype(float), np.maximum(counts, 1)),
    ):
        gained = np.bincount(tied, np.tile(values, queries)) * hits / sizes
        query_of = np.flatnonzero(starts.reshape(-1)) // num
        figures = np.bincount(query_of, gained, queries) / most
        result[name] = float(figures[counts > 0].mean()) if (counts > 0).any() else float("nan")
    return result
