"""A fit whose figures cannot be trusted says so."""

from __future__ import annotations

import numpy as np
import pytest

from fusetune import api
from fusetune.evaluation.report.verdict import verdict, warnings_of


@pytest.fixture(scope="module")
def rows():
    rng, made = np.random.default_rng(0), []
    for _ in range(160):
        x, z = rng.normal(size=2)
        answer = "hi" if x + z > 0 else "lo"
        flag = answer if rng.random() > 0.015 else "lo"
        made.append({"x": round(x, 3), "z": round(z, 3), "flag": f"was {flag}", "mark": answer})
    return made


def fit(write_csv, quick, tmp_path, train, test, **columns):
    trainer = {"epochs": 0, "head_epochs": 3, "trackers": []}
    return api.fit(
        str(write_csv(tmp_path / "train.csv", train)),
        target="mark",
        test=str(write_csv(tmp_path / "test.csv", test)),
        out=tmp_path / "model",
        config=quick | {"trainer": trainer, "report": quick["report"] | {"bootstrap": 100}, "columns": columns},
        progress=False,
    ).results


def test_train_rows_among_the_test_rows_are_counted(rows, write_csv, quick, tmp_path):
    results = fit(write_csv, quick, tmp_path, rows[:120], rows[100:], flag={"role": "ignore"})
    (task,) = results.tasks
    assert task.rows == 60 and 0 < task.shared <= 20  # the others of the 20 went to the validation rows
    assert f"{task.shared} of these rows" in verdict(task).headline
    slices = {part.value: part.rows for part in task.slices if part.column == "also a train row"}
    assert slices == {"yes": task.shared, "no": 60 - task.shared}
    assert any("test rows have the same inputs as a train row" in warning for warning in warnings_of(results))


def test_the_same_table_as_train_and_test_is_no_success(rows, write_csv, quick, tmp_path):
    results = fit(write_csv, quick, tmp_path, rows, rows, flag={"role": "ignore"})
    said = verdict(results.tasks[0])
    assert results.tasks[0].shared > 100 and said.tone != "good" and said.use.startswith("Do not rely")


def test_a_near_leak_is_a_suspicion_and_other_columns_are_not(rows, write_csv, quick, tmp_path):
    results = fit(write_csv, quick, tmp_path, rows[:120], rows[120:], flag={"role": "input", "kind": "category"})
    suspected = [warning for warning in results.warnings if "alone determines" in warning]
    assert len(suspected) == 1 and "“flag”" in suspected[0] and "columns.flag.role=ignore" in suspected[0]
    assert results.tasks[0].shared == 0


def test_a_column_counts_what_is_lost_without_it(rows, write_csv, quick, tmp_path):
    train, test = ([dict(row, idle=place % 7) for place, row in enumerate(part)] for part in (rows[:120], rows[120:]))
    results = fit(write_csv, quick, tmp_path, train, test, flag={"role": "ignore"}, idle={"kind": "number"})
    (task,) = results.tasks
    (panel,) = task.importance
    without = {row[0]: row[1] for row in panel.rows}
    assert set(without) == {"x", "z", "idle"} and panel.rows[-1][0] == "idle"
    tuned = task.main(task.first("after")).value
    assert without["x"] < tuned and without["z"] < tuned
    assert abs(without["idle"] - tuned) < tuned - max(without["x"], without["z"])


def test_a_step_before_the_encoders_are_tuned_is_not_called_tuned(shop_tables, quick, tiny, tmp_path, monkeypatch):
    """Tuning that only does harm: the kept weights are those of the head stage."""
    from fusetune.training import stages

    real = stages.run_stage

    def harmful(learner, stage, train, validate, *more, **rest):
        def worse():
            loss, score, metrics = validate()
            return loss + 9, score - 0.9, metrics

        return real(learner, stage, train, worse if stage.name == "tune" else validate, *more, **rest)

    monkeypatch.setattr(stages, "run_stage", harmful)
    ignored = {name: {"role": "ignore"} for name in ("photo", "voice")}
    config = quick | {"columns": ignored, "text": tiny("bert")}
    config["trainer"] = {"epochs": 1, "head_epochs": 1, "trackers": []}
    results = api.fit(
        str(shop_tables["train"]), target="label", config=config, out=tmp_path / "m", progress=False
    ).results
    (text,) = results.backbones
    assert text.pretrained and text.trained == 0 and "as pretrained" in text.how
    assert results.trained < results.parameters - text.parameters + 1
    assert results.tasks[0].encoders_unchanged and "Tuning" not in verdict(results.tasks[0]).headline
    assert any("before the encoders were tuned" in warning for warning in results.warnings)
