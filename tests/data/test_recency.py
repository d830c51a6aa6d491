"""The half-life that validation rows prefer."""

import numpy as np
import pytest

from fusetune.data.interactions import Interactions
from fusetune.data.recency import DAY, best_half_life, decay


def rows(recent: bool):
    """Train rows whose popular items change over a year, or do not; and users who turn to the last items, or to any."""
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 365, 3000)) * DAY
    items = (
        (times // (36.5 * DAY)).astype(int) * 10 + rng.integers(0, 10, 3000) if recent else rng.integers(0, 100, 3000)
    )
    users = rng.integers(0, 300, 3000)
    found = Interactions.of(
        [str(user) for user in range(300)],
        [str(item) for item in range(100)],
        (users, items),
        times=times,
        liked=np.ones(3000, bool),
    )
    asked = rng.integers(90, 100, 300) if recent else rng.integers(0, 100, 300)
    return found, items, times, (np.arange(300), asked)


def test_a_short_half_life_is_chosen_where_tastes_change():
    best, scores = best_half_life(*rows(recent=True))
    assert best is not None and best <= 100
    assert scores[best] > 1.5 * scores[None]


def test_of_equal_half_lives_the_longest_is_chosen():
    found, items, times, _ = rows(recent=False)
    best, scores = best_half_life(found, items, times, (np.zeros(0, int), np.zeros(0, int)))
    assert best is None and set(scores.values()) == {0.0}


def test_the_weight_halves_with_every_half_life():
    assert decay(np.array([0.0, 5.0, 10.0]) * DAY, 5.0) == pytest.approx([0.25, 0.5, 1.0])
