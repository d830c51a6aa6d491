"""Integers that behave as codes become categories; numbers with an order stay numbers."""

from __future__ import annotations

import numpy as np
import pytest

from fusetune import api
from fusetune.config.config import Config
from fusetune.data.schema import Schema
from fusetune.data.table import Table
from fusetune.fitting.codes import compare, read_codes
from fusetune.tasks.classes.classification import MulticlassTask
from fusetune.tasks.classes.multilabel import MultilabelTask
from fusetune.tasks.regression import RegressionTask


def columns(seed: int, rows: int = 500) -> dict[str, np.ndarray]:
    """An unordered area, a year whose trend is linear, useless integers, and a price."""
    rng = np.random.default_rng(seed)
    areas = rng.choice(np.arange(10_000, 99_999), 40, replace=False)
    place, year = rng.integers(0, 40, rows), rng.integers(1950, 2000, rows)
    effect, trend = rng.normal(0, 40, 40)[place], 1.5 * (year - 1950)
    price = (100 + effect + trend + rng.normal(0, 10, rows)).round(2)
    return {"area": areas[place], "year": year, "spins": rng.integers(0, 60, rows), "price": price}


def records(seed: int, rows: int = 500) -> list[dict[str, object]]:
    made = columns(seed, rows)
    return [{name: values[row].item() for name, values in made.items()} for row in range(rows)]


def judged(rows, task, seed=0, **settings):
    """The names of the columns that become categories, and the schema."""
    config = Config.build({"target": task.target, "seed": seed, **settings})
    table = Table.from_records(rows)
    schema = Schema.detect(table, targets=[task.target], overrides=config.schema_overrides())
    found, names = read_codes(table, schema, {task.target: task}, config)
    assert [name for name in schema.columns if found.columns[name] != schema.columns[name]] == names
    return names, found


@pytest.mark.parametrize("seed", range(5))
def test_an_unordered_area_is_codes_and_a_year_or_useless_integers_are_not(seed):
    names, schema = judged(records(seed), RegressionTask("price"), seed)
    assert names == ["area"]
    assert schema.columns["area"].kind == "category" and "R²" in schema.columns["area"].reason
    assert schema.columns["year"].kind == schema.columns["spins"].kind == "number"


def test_classes_labels_missing_cells_and_bad_targets_are_judged_too():
    rows = records(0, 800)
    for place, row in enumerate(rows):
        price = float(row.pop("price"))
        row["tier"] = ["low", "middle", "high"][int(np.searchsorted([100, 150], price))]
        row["area"] = None if place % 9 == 0 else row["area"]
    rows[3]["tier"] = None
    assert judged(rows, MulticlassTask("tier"))[0] == ["area"]
    tagged = [
        dict(row, tier=f"{row['tier'] or 'low'};{'odd' if place % 2 else 'even'}") for place, row in enumerate(rows)
    ]
    assert judged(tagged, MultilabelTask("tier"))[0] == ["area"]
    broken = [dict(row, tier="n/a" if place == 5 else place % 7 + (row["area"] or 0)) for place, row in enumerate(rows)]
    judged(broken, RegressionTask("tier"))  # the fit says which row is wrong


@pytest.mark.parametrize("said", [{"kind": "number"}, {"bins": 8}, {"augment": {"noise": 0.1}}])
def test_what_the_user_says_of_a_column_stands(said):
    names, schema = judged(records(0), RegressionTask("price"), columns={"area": said})
    assert names == [] and schema.columns["area"].kind == "number"


def test_rows_of_a_group_do_not_tell_of_each_other():
    rng, rows = np.random.default_rng(0), []
    for patient in range(40):
        level = rng.normal(0, 10)
        rows += [{"ward": 700 + 13 * patient, "who": f"p{patient}", "y": level + rng.normal()} for _ in range(10)]
    task = RegressionTask("y")
    assert judged(rows, task, columns={"who": {"role": "ignore"}})[0] == ["ward"]
    assert judged(rows, task, columns={"who": {"role": "group"}})[0] == []


def test_few_rows_or_no_target_decide_nothing():
    assert judged(records(0, 90), RegressionTask("price"))[0] == []
    table = Table.from_records(records(0))
    schema = Schema.detect(table)
    assert read_codes(table, schema, {}, Config.build({})) == (schema, [])


SHAPES = {
    "linear": lambda x: x,
    "square": lambda x: (x - 0.5) ** 2,
    "exponential": lambda x: np.exp(4 * x),
    "wave": lambda x: np.sin(4 * np.pi * x),
    "threshold": lambda x: (x > 0.7).astype(float),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("noise", [0.0, 0.3, 3.0])
def test_an_order_stays_a_number_whatever_its_shape_and_noise(shape, noise):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        num, distinct = (300, 1200)[seed % 2], (20, 40, 60)[seed % 3]
        x = rng.integers(0, distinct, num)
        y = SHAPES[shape](x / distinct)
        y = y / y.std() + noise * rng.normal(size=num)
        assert not compare(x.astype(float), y[:, None], rng.permutation(num) % 5, 0).favours_codes, (seed, distinct)


def test_noise_is_taken_for_codes_no_oftener_than_two_standard_errors_allow():
    wrong = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x = rng.integers(0, 50, 300).astype(float)
        y = rng.lognormal(0, 2, 300) if seed % 2 else rng.normal(size=300)
        wrong += compare(x, y[:, None], rng.permutation(300) % 5, 0).favours_codes
    assert wrong <= 2


def test_a_fit_saves_the_kind_and_predicts_unseen_codes(write_csv, quick, tmp_path, capsys):
    rows = records(1, 400)
    config = Config.build(quick)
    source = str(write_csv(tmp_path / "t.csv", rows))
    tuned = api.fit(source, target="price", out=tmp_path / "m", config=config, progress=True)
    assert "codes    area: whole numbers that predict" in capsys.readouterr().err
    used = {column.column: column for column in tuned.results.columns}
    assert used["area"].kind == "category" and "R²" in used["area"].reason and used["year"].kind == "number"
    saved = Schema.load(tmp_path / "m" / "schema.yaml")
    assert saved.columns["area"] == tuned.bundle.schema.columns["area"]
    new = [{"area": 7, "year": 1970, "spins": 3}, {"area": None, "year": 1970, "spins": 3}, rows[0]]
    answers = api.load(tmp_path / "m").predict(Table.from_records(new))
    assert all(np.isfinite(value) for value in answers["price"])
    kept = api.fit(
        source,
        target="price",
        out=tmp_path / "n",
        config=config.with_overrides({"columns": {"area": {"kind": "number"}}}),
    )
    assert kept.bundle.schema.columns["area"].kind == "number"
