"""Rows without a target train the objectives that need none, and nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.torch import load_file

import fusetune
from fusetune.data.examples import Examples
from fusetune.errors import ConfigError
from fusetune.registry import OBJECTIVES
from fusetune.training import loop

NUM, LABELLED = 100, 40
"""Train rows, and those of them with a target."""


@pytest.fixture(scope="module")
def tables(shop, write_csv, tmp_path_factory):
    """A train table most of whose rows have no target, the same without these, and test rows."""
    home, columns = tmp_path_factory.mktemp("unlabelled"), ["note", "price", "label"]
    rows = [{name: row[name] for name in columns} for row in shop[1]]
    train = [row if place % 5 < 2 else row | {"label": ""} for place, row in enumerate(rows[:NUM])]
    return {
        "partly": str(write_csv(home / "partly.csv", train)),
        "labelled": str(write_csv(home / "labelled.csv", [row for row in train if row["label"]])),
        "held": str(write_csv(home / "held.csv", rows[NUM:])),
    }


@pytest.fixture
def fit(tables, quick, tiny, tmp_path):
    def run(train, *overrides, out="m", tables=tables, **options):
        text = {"name": tiny("bert"), "freeze": "all"}
        trainer = quick["trainer"] | {"batch_size": 8, "checkpoint_minutes": 0, "patience": None}
        settings = quick | {"text": text, "columns": {"price": {"role": "ignore"}}, "trainer": trainer}
        return fusetune.fit(
            tables[train],
            target="label",
            val=tables["held"],
            test=tables["held"],
            config=settings,
            overrides=list(overrides),
            out=tmp_path / out,
            progress=False,
            **options,
        )

    return run


def same(first, second):
    """Whether two trainings went alike, bit by bit: every measurement, and the weights that were kept."""
    one, two = (load_file(tuned.folder / "model.safetensors") for tuned in (first, second))
    curves = [[(p.step, p.train_loss, p.val_loss) for p in t.results.curve.points[1:]] for t in (first, second)]
    return curves[0] == curves[1] and all(np.array_equal(one[name], two[name]) for name in one)


def systems(tuned):
    return {part.name: {k: v.value for k, v in part.metrics.items()} for part in tuned.results.tasks[0].systems}


RDROP = "objectives={rdrop: {weight: 1.0}}"


NEED_NO_TARGET = [name for name in OBJECTIVES if not OBJECTIVES.get(name).needs_target]


@pytest.mark.parametrize("objective", [name for name in NEED_NO_TARGET if name != "distill"])  # it needs a teacher
def test_they_train_an_objective_that_needs_no_target_and_nothing_else(fit, objective):
    columns = ["columns={price: number}"] if objective in ("contrastive", "sampled_softmax") else []
    tuned = fit("partly", f"objectives={{{objective}: {{}}}}", *columns)
    fewer = fit("labelled", f"objectives={{{objective}: {{}}}}", *columns, out="fewer")
    train, without = tuned.results.tables[0], fewer.results.tables[0]
    assert (train.rows_in, train.rows_used, train.rows_unlabelled) == (NUM, NUM, NUM - LABELLED)
    assert (without.rows_in, without.rows_unlabelled) == (LABELLED, 0)
    assert any(f"{NUM - LABELLED} train rows without a target train {objective}" in w for w in tuned.results.warnings)
    assert not same(tuned, fewer), "the rows without a target changed nothing"
    assert tuned.results.tasks[0].balance == fewer.results.tasks[0].balance
    if not columns:  # a number's scale is learned from all train rows
        for name in ("constant guess", "frozen probe"):
            assert systems(tuned)[name] == systems(fewer)[name]
    steps = [max(point.step for point in found.results.curve.points) for found in (tuned, fewer)]
    assert steps == [2 * LABELLED // 8, LABELLED // 8], "an epoch takes as many rows without a target as with one"


def test_without_such_an_objective_they_are_left_out_and_that_is_said(fit):
    plain, fewer = fit("partly"), fit("labelled", out="fewer")
    assert same(plain, fewer)
    (said,) = [warning for warning in plain.results.warnings if "without a target" in warning]
    assert f"{NUM - LABELLED} train rows" in said and "rdrop" in said and "unimodal" not in said
    train = plain.results.tables[0]
    assert (train.rows_in, train.rows_used, train.rows_unlabelled) == (NUM, NUM, NUM - LABELLED)


def test_a_table_of_their_own_needs_no_target_column(fit, tables, write_csv, tmp_path, shop):
    pool = write_csv(tmp_path / "pool.csv", [{"note": row["note"], "price": row["price"]} for row in shop[1][:NUM]])
    tables = tables | {"both": [tables["labelled"], str(pool)]}
    tuned = fit("both", "objectives={semi: {}}", tables=tables)
    train, *others = tuned.results.tables
    assert (train.rows_in, train.rows_used, train.rows_unlabelled) == (LABELLED + NUM, LABELLED + NUM, NUM)
    assert all(table.rows_unlabelled == 0 for table in others)


def test_they_can_be_left_out(fit):
    off, fewer = fit("partly", RDROP, "data.unlabelled=0"), fit("labelled", RDROP, out="fewer")
    assert same(off, fewer) and any("data.unlabelled=0" in warning for warning in off.results.warnings)
    with pytest.raises(ConfigError, match="unlabelled"):
        fit("partly", "data.unlabelled=-1", out="no")


@pytest.mark.parametrize("objective", [RDROP, "objectives={semi: {}}", "objectives={semi: {method: mean_teacher}}"])
def test_a_training_that_is_stopped_goes_on_with_them(fit, monkeypatch, objective):
    class Killed(BaseException):
        pass

    real, number = loop.update, [0]

    def update(*args, **kwargs):
        number[0] += 1
        if number[0] == 7:
            raise Killed
        return real(*args, **kwargs)

    settings = objective, "trainer.head_epochs=3", "data.unlabelled=0.5"
    through = fit("partly", *settings, out="through")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(loop, "update", update)
        fit("partly", *settings, out="parts")
    assert same(fit("partly", *settings, out="parts", resume=True), through)


def test_models_of_one_modality_and_rows_of_other_splits_do_without_them(shop, quick, tiny, write_csv, tmp_path):
    """Their training has no such objective; groups and cells of the split column keep rows out of train."""
    rows = [{name: row[name] for name in ("note", "price", "label")} for row in shop[1]]
    for place, row in enumerate(rows):
        row["split"] = ("train", "train", "train", "val", "test")[place % 5]
        row["label"] = "" if place % 3 == 0 else row["label"]
    seen = []
    table = write_csv(tmp_path / "t.csv", rows)
    settings = quick | {
        "text": {"name": tiny("bert")},
        "columns": {"split": {"role": "split"}, "price": "number"},
        "objectives": {"rdrop": {}},
        "report": quick["report"] | {"alone": "tuned"},
    }
    real = Examples.sampler

    def sampler(self, **options):
        seen.append(self.unlabelled().sum())
        return real(self, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Examples, "sampler", sampler)
        tuned = fusetune.fit(table, target="label", config=settings, out=tmp_path / "m", progress=False)
    unlabelled = [row for row in rows if not row["label"]]
    train = [row for row in unlabelled if row["split"] == "train"]
    assert seen == [len(train), 0, 0]
    used = {part.split: part for part in tuned.results.tables}
    assert used["train"].rows_unlabelled == len(unlabelled) and sum(p.rows_in for p in used.values()) == len(rows)
    report = json.loads((tmp_path / "m" / "report.json").read_text())
    assert any(
        f"{len(unlabelled) - len(train)} train rows without a target are left out" in w for w in report["warnings"]
    )
