"""What a newcomer brings to a fit of users and items that cannot be right: named errors, or counted rows."""

import numpy as np
import pandas as pd
import pytest

import fusetune as ft
from fusetune.data.interactions import read_times
from fusetune.data.table import Table
from fusetune.errors import ConfigError, TooManyRejected
from fusetune.fitting.described import as_ids


def ratings(**columns):
    rng = np.random.default_rng(0)
    rows = {"who": [f"u{k}" for k in rng.integers(10, size=120)], "film": [f"f{k}" for k in rng.integers(20, size=120)]}
    return pd.DataFrame({**rows, "time": np.arange(120) + 1000, **columns})


def films(num=20):
    return pd.DataFrame({"film": [f"f{k}" for k in range(num)], "price": np.arange(num) * 1.5})


def fit(train, catalogue, **config):
    settings = {"trainer": {"epochs": 0, "head_epochs": 1, "trackers": []}, "report": {"bootstrap": 0}, **config}
    return ft.fit(train, user="who", item="film", catalogue=catalogue, config=settings, progress=False)


@pytest.mark.parametrize(
    ("train", "catalogue", "what"),
    [
        (ratings(), films(15), "is not in"),
        (ratings(), films().assign(film=[None] * 4 + [f"f{k}" for k in range(4, 20)]), "is not in"),
        (ratings(film=[None if k < 30 else f"f{k % 20}" for k in range(120)]), films(), "missing"),
        (ratings(time=[f"2024-01-{k % 28 + 1:02d}" if k % 3 else 1000 + k for k in range(120)]), films(), "a number"),
    ],
)
def test_too_many_rows_that_cannot_be_used_are_told_with_their_column(train, catalogue, what):
    with pytest.raises(TooManyRejected, match=what) as told:
        fit(train, catalogue)
    assert "column 'film'" in str(told.value) or "column 'time'" in str(told.value)


@pytest.mark.parametrize("asked", [{"role": "ignore"}, {"kind": "category"}])
@pytest.mark.parametrize("column", ["who", "film"])
def test_a_column_of_ids_is_read_as_nothing_else(column, asked):
    with pytest.raises(ConfigError, match=f"{column}.*min_count"):
        fit(ratings(), films(), columns={column: asked})


def test_options_of_a_column_of_ids_are_its_own():
    fixed = {"kind": "identifier", "role": "input"}
    assert as_ids("who", "the users", None) == fixed
    assert as_ids("who", "the users", {"options": {"dim": 8}}) == {**fixed, "options": {"dim": 8}}
    with pytest.raises(ConfigError, match="kind=number"):
        as_ids("who", "the users", "number")


@pytest.mark.parametrize(
    ("cells", "wrong"),
    [
        (["2024-01-02", 5, "2024-01-03", "soon"], {1: "number", 3: "no date"}),
        ([1, 2.5, "2024-01-03", None], {2: "a date", 3: "missing"}),
        ([3, "4", 5], {}),
        (["2024-01-02", "2024-01-03T10:00"], {}),
        (["soon"], {0: "no date"}),
    ],
)
def test_times_are_dates_or_numbers_not_both(cells, wrong):
    _, told = read_times(Table.read(pd.DataFrame({"time": pd.Series(cells, dtype=object)})), "time")
    assert sorted(told) == sorted(wrong)
    assert all(wrong[position] in why for position, why in told.items())
