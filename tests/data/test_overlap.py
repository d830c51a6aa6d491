"""Rows that splits share, and columns that all but give the target away."""

from __future__ import annotations

import numpy as np
import pytest

from fusetune.data.detect.leakage import find_leak, suspected_leak
from fusetune.data.examples import Examples
from fusetune.data.overlap import overlapping
from fusetune.data.table import Table
from fusetune.modalities.category import CategoryModality
from fusetune.modalities.number import NumberModality


def prepared(records):
    examples = Examples(Table.from_records(records), {"x": NumberModality("x"), "c": CategoryModality("c")}, {})
    examples.prepare(on_bad_cell="mask")
    examples.fit()
    return examples


def test_rows_are_shared_where_all_columns_are_equal_however_they_are_written():
    train = prepared([{"x": 1.0, "c": "a"}, {"x": 2.5, "c": "b"}, {"x": None, "c": "c"}])
    other = prepared(
        [
            {"x": "1", "c": " A "},  # the first
            {"x": "1", "c": "b"},  # a cell of each of two rows
            {"x": "", "c": "c"},  # the third: missing in both
            {"x": "2.5", "c": None},
            {"x": 2.5, "c": "b"},
        ]
    )
    assert overlapping(train, other).tolist() == [True, False, True, False, True]
    assert overlapping(train, train).all()


def columns(rows=400, noise=0.01, seed=0):
    rng = np.random.default_rng(seed)
    target = rng.choice(["no", "yes"], rows, p=[0.6, 0.4])
    flipped = rng.permutation(rows) < noise * rows
    code = np.where((target == "yes") ^ flipped, "closed", "open")
    number = np.where((target == "yes") ^ flipped, rng.normal(10, 1, rows), rng.normal(0, 1, rows))
    return list(map(str, target)), list(map(str, code)), [f"{value:.4f}" for value in number]


@pytest.mark.parametrize("noise", [0.0, 0.015])
def test_a_column_that_decides_all_but_a_few_rows_is_suspicious(noise):
    target, code, number = columns(noise=noise)
    assert suspected_leak(code, target, "category") == pytest.approx(1 - noise, abs=0.01)
    assert suspected_leak(number, target, "number") == pytest.approx(1 - noise, abs=0.02)
    if noise:
        assert find_leak(number, target, "number") is None, "the exact check does not see it"


def test_honest_columns_are_not_suspected():
    target, code, number = columns(noise=0.15)
    assert suspected_leak(code, target, "category") is None
    assert suspected_leak(number, target, "number") is None
    unique = [f"id{place}" for place in range(400)]
    assert suspected_leak(unique, target, "category") is None, "a value of its own a row tells nothing of others"
    rare = ["yes" if place % 50 == 0 else "no" for place in range(400)]
    assert suspected_leak(["a"] * 400, rare, "category") is None, "98% by the most frequent label alone"
    assert suspected_leak(code[:30], target[:30], "category") is None, "too few rows"
    assert suspected_leak(target, target, "text") is None, "text is there to be read"
