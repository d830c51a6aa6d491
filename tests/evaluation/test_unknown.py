"""Labels of evaluated rows that no train row has are named, with the nearest known ones."""

from __future__ import annotations

import numpy as np
import pytest

import fusetune as ft
from fusetune.data.table import Table
from fusetune.errors import TableError, TooManyRejected

QUICK = {
    "trainer": {"epochs": 0, "head_epochs": 1, "trackers": []},
    "report": {"bootstrap": 0, "alone": "none", "errors": 0},
    "data": {"cache": "none"},
}


def table(labels, rows=80):
    rng = np.random.default_rng(0)
    return Table.from_records([{"x": float(rng.random()), "y": labels[row % len(labels)]} for row in range(rows)])


@pytest.fixture(scope="module")
def several():
    labels = [["a", "b"], ["b", "c"], ["a"]]
    return ft.fit(table(labels), "y", test=table([*labels, ["A", "z"]], 40), config=QUICK, progress=False)


def test_of_several_labels_a_row(several):
    (told,) = (warning for warning in several.results.warnings if "no train row has" in warning)
    assert told.startswith("test rows") and "'A' (did you mean 'a'?)" in told and "'z'" in told
    evaluation = several.evaluate(table([["B"], ["a"]], 20))
    assert "'B' (did you mean 'b'?)" in str(evaluation) and evaluation.rows_rejected == 0
    assert several.evaluate(table([["a"], []], 20)).notes == []


def test_of_one_label_a_row():
    train = table(["cat", "dog", "cow"])
    tuned = ft.fit(train, "y", test=table(["cat", "dog", "cow"] * 9 + ["dgo"], 56), config=QUICK, progress=False)
    (reason,) = tuned.results.rejected_by
    assert "'dgo' (did you mean 'dog'?)" in reason
    with pytest.raises(TooManyRejected, match=r"'Dog' \(did you mean 'dog'\?\), 'horse'"):
        ft.fit(train, "y", test=table(["Dog", "horse", "cat"]), config=QUICK, progress=False)
    with pytest.raises(TableError, match=r"(?s)no row has a target.*'DOG' \(did you mean 'dog'\?\)"):
        tuned.evaluate(table(["DOG", "horse"]))
    assert "'horse'" in tuned.evaluate(table(["horse", "cat"], 20)).problems[0]


def test_of_levels():
    levels = {"tasks": {"y": {"name": "ordinal", "order": ["low", "midle", "high"]}}}
    with pytest.raises(TooManyRejected, match=r"the order does not name.*'middle' \(did you mean 'midle'\?\)"):
        ft.fit(table(["low", "middle", "high"]), "y", config={**QUICK, **levels}, progress=False)
