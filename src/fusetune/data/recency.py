"""How fast popularity fades: the half-life of rows by which the popular items are those of the validation rows."""

from __future__ import annotations

import numpy as np

from fusetune.data.interactions import Interactions

DAY = 86_400.0
HALF_LIVES = (None, 1000.0, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0)
"""Half-lives that are tried, in days; None weighs all rows alike."""
MAX_USERS = 2000
TOP = 10
"""Items of a ranking that count."""


def decay(times: np.ndarray, half_life: float | None) -> np.ndarray:
    """Return each row's weight, (rows,) in (0, 1]: halved for every half-life before the last row.

    Args:
        times: (rows,) in seconds.
        half_life: in days; None: 1 for every row.
    """
    if half_life is None:
        return np.ones(len(times))
    return np.asarray(0.5 ** ((times.max(initial=-np.inf) - times) / DAY / half_life))


def best_half_life(
    interactions: Interactions, items: np.ndarray, times: np.ndarray, held_out: tuple[np.ndarray, np.ndarray]
) -> tuple[float | None, dict[float | None, float]]:
    """Return the half-life whose popularity ranks held-out items best, and the nDCG@10 of each that was tried.

    The popularity of an item is the weight of its train rows. Each user's known items are left out of the ranking.

    Args:
        interactions: of the train rows.
        items, times: (rows,) of the train rows.
        held_out: (rows,) users and items of validation rows; -1 for a user without train rows.
    """
    order = np.argsort(held_out[0], kind="stable")
    users, right = held_out[0][order], held_out[1][order]
    starts = np.flatnonzero(np.r_[True, np.diff(users) > 0][: len(users)])
    wanted_by = np.split(right, starts[1:]) if len(starts) else []
    chosen = np.unique(np.linspace(0, len(starts) - 1, min(len(starts), MAX_USERS)).astype(np.int64))
    discounts = 1 / np.log2(2 + np.arange(TOP))
    scores: dict[float | None, float] = {}
    for half_life in HALF_LIVES:
        weights = np.bincount(items, decay(times, half_life), len(interactions.items))
        ranked = np.argsort(-weights, kind="stable")
        total = 0.0
        for number in chosen:
            wanted = wanted_by[number]
            top = _first_unknown(ranked, interactions, int(users[starts[number]]))
            best = discounts[: min(TOP, len(set(wanted.tolist())))].sum()
            total += float(discounts[: len(top)][np.isin(top, wanted)].sum() / best)
        scores[half_life] = total / max(len(chosen), 1)
    return max(scores, key=lambda tried: scores[tried]), scores


def _first_unknown(ranked: np.ndarray, interactions: Interactions, user: int) -> np.ndarray:
    """Return the first items of a ranking that a user does not know."""
    if user < 0:
        return ranked[:TOP]
    part = slice(*interactions.matrix.indptr[user : user + 2])
    known = interactions.matrix.indices[part]
    some = ranked[: TOP + len(known)]
    return np.asarray(some[~np.isin(some, known)][:TOP])
