"""How much train rows of users and items weigh by their age."""

from __future__ import annotations

import numpy as np

from fusetune.config.interactions import NONE
from fusetune.data.interactions import Interactions
from fusetune.data.recency import best_half_life, decay


def age_weights(
    half_life: float | str,
    interactions: Interactions,
    train: tuple[np.ndarray, np.ndarray | None],
    held_out: tuple[np.ndarray, np.ndarray],
) -> tuple[np.ndarray, str]:
    """Return the factors of the train rows' weights, (rows,) in (0, 1], and a sentence on how they were chosen, or "".

    Args:
        half_life: `interactions.half_life`.
        interactions: of the train rows.
        train: (rows,) their items and times, None if they have no time.
        held_out: (rows,) users and items of the validation rows; -1 for a user without train rows.
    """
    items, times = train
    if times is None or half_life == NONE:
        return np.ones(len(items)), ""
    if isinstance(half_life, float):
        return decay(times, half_life), ""
    users, right = held_out
    new = ~interactions.contains(users, right)
    best, scores = best_half_life(interactions, items, times, (users[new], right[new]))
    shown = ", ".join(f"{'none' if tried is None else f'{tried:g}'} {score:.3f}" for tried, score in scores.items())
    what = "all rows weigh alike" if best is None else f"rows weigh half after {best:g} days"
    note = f"By popularity on the validation rows, {what} (interactions.half_life; nDCG@10 by days: {shown})."
    return decay(times, best), note
