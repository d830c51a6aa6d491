"""Times, splits and histories of interactions: nothing of the future is in a history."""

import numpy as np
import pandas as pd
import pytest

from fusetune.data.interactions import (
    RATING_WORDS,
    TIME_WORDS,
    Interactions,
    as_cells,
    find_column,
    histories,
    read_times,
    split_by_time,
    split_by_user,
)
from fusetune.data.table import Table
from fusetune.errors import TableError

RNG = np.random.default_rng(0)
USERS, ITEMS, TIMES = RNG.integers(0, 7, 200), RNG.integers(0, 30, 200), RNG.integers(0, 60, 200).astype(float)


def test_a_history_is_what_came_strictly_before():
    lists = histories(USERS, ITEMS, TIMES, length=200, seed=0)
    for row, items in enumerate(lists):
        before = np.flatnonzero((USERS[row] == USERS) & (TIMES[row] > TIMES))
        assert sorted(items) == sorted(ITEMS[before])


def test_the_latest_items_of_a_history_stay_in_their_order():
    lists = histories(np.zeros(5, int), np.arange(5), np.arange(5.0), length=2, seed=0)
    assert [items.tolist() for items in lists] == [[], [0], [0, 1], [1, 2], [2, 3]]


def test_without_times_a_history_is_the_users_other_items():
    lists = histories(USERS, ITEMS, None, length=200, seed=0)
    for row, items in enumerate(lists):
        own = ITEMS[USERS[row] == USERS]
        assert sorted(items) == sorted(own[own != ITEMS[row]])
    short = histories(USERS, ITEMS, None, length=3, seed=0)
    assert max(map(len, short)) == 3
    again = histories(USERS, ITEMS, None, length=3, seed=0)
    assert all((first == second).all() for first, second in zip(short, again, strict=True))


def test_a_split_by_time_keeps_moments_together():
    parts = split_by_time(TIMES, [0.8, 0.1, 0.1])
    assert np.sort(np.concatenate(parts)).tolist() == list(range(200))
    assert TIMES[parts[0]].max() < TIMES[parts[1]].min() <= TIMES[parts[1]].max() < TIMES[parts[2]].min()
    assert 140 <= len(parts[0]) <= 180


def test_a_random_split_leaves_every_user_a_train_row():
    users = np.repeat(np.arange(50), np.arange(1, 51))
    parts = split_by_user(users, [0.8, 0.1, 0.1], seed=1)
    assert np.sort(np.concatenate(parts)).tolist() == list(range(len(users)))
    assert set(users[parts[0]]) == set(range(50))
    for part in parts[1:]:
        assert len(part) / len(users) == pytest.approx(0.1, abs=0.02)


def test_interactions_know_what_users_have_seen():
    user, item = np.array([0, 0, 1, 0]), np.array([2, 1, 0, 2])
    found = Interactions.of(
        ["a", "b"], ["x", "y", "z"], (user, item), times=np.array([5.0, 1, 2, 9]), liked=np.array([1, 0, 1, 1], bool)
    )
    assert found.matrix.toarray().tolist() == [[0, 1, 1], [1, 0, 0]]
    assert found.history(0).tolist() == [2]  # item 1 is not liked
    assert found.history(0, before=9).tolist() == [] and found.history(-1).tolist() == []
    assert found.seen(np.array([1, -1, 0])).toarray().tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 1]]
    assert found.contains(np.array([0, 1, -1]), np.array([1, 1, 0])).tolist() == [True, False, False]


def test_empty_histories_are_missing_cells():
    cells = as_cells([np.array([1, 2]), np.zeros(0, int), np.array([0])])
    assert cells.to_pylist() == [[1, 2], None, [0]]


def test_time_and_rating_are_found_by_name_and_cells():
    rows = {
        "user": ["a", "b"],
        "rating": ["7", "8"],
        "when": ["2024-01-02", "2024-01-03 10:00"],
        "score_text": ["x", "y"],
    }
    table = Table.read(pd.DataFrame(rows))
    assert find_column(table, None, TIME_WORDS, ["user"])[0] == "when"
    assert find_column(table, None, RATING_WORDS, ["user"])[0] == "rating"
    assert find_column(table, "none", RATING_WORDS, [])[0] is None
    with pytest.raises(TableError, match="there is no column 'wen'"):
        find_column(table, "wen", TIME_WORDS, [])


def test_times_that_cannot_be_read_are_named():
    table = Table.read(pd.DataFrame({"time": ["2024-01-02", "soon", None]}))
    times, wrong = read_times(table, "time")
    assert times[0] == 1704153600.0 and sorted(wrong) == [1, 2]
