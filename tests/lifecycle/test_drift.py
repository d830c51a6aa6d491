"""Drift of new rows against a run's held-out rows: alarms, columns, estimates, rows that differ, and mistakes."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import fusetune as ft
from fusetune.cli.main import app
from fusetune.errors import ConfigError, TableError


def rows(seed: int, num: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"size": rng.normal(size=num), "plan": rng.choice(list("abc"), num), "id": range(num)})
    odds = 1 / (1 + np.exp(-3 * frame["size"]))
    return frame.assign(churn=np.where(rng.random(num) < odds, "yes", "no"))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drift")
    rows(0, 400).to_csv(folder / "train.csv", index=False)
    settings = ["trainer.epochs=1", "report.bootstrap=20", "trainer.trackers=[]", "data.split=[0.5,0.1,0.4]"]
    settings += ["trainer.head_epochs=3"]
    return ft.fit(folder / "train.csv", "churn", out=folder / "run", overrides=settings, progress=False)


@pytest.fixture(scope="module")
def moved() -> pd.DataFrame:
    frame = rows(1, 150).drop(columns="churn")
    return frame.assign(size=frame["size"] + 1.5, plan=["d", *frame["plan"][1:]])


@pytest.fixture(scope="module")
def report(tuned, moved):
    return ft.drift(tuned, moved)


def test_the_same_distribution_raises_no_alarm(tuned):
    report = ft.drift(tuned.folder, rows(2, 150))
    assert not report.alarm and report.drifted == [] and report.p > report.alpha
    assert (report.num_reference, report.num_new) == (200, 150)  # validation and test rows
    assert "No drift was found" in report.headline and 0.5 < report.detectable < 0.8


def test_a_shift_is_found_where_it_is(report):
    assert report.alarm and report.drifted == ["size"]
    found = {test.name: test for test in report.columns}
    assert found["size"].effect > 0.4 and found["size"].adjusted < 1e-6
    assert found["plan"].adjusted > 0.05
    assert "as d" in found["plan: unknown categories"].detail
    assert all(test.adjusted <= 0.01 for test in report.tests if test.name == "rows")
    (auc,) = [test for test in report.tests if "classifier" in test.test]
    assert 0.5 < auc.low < auc.effect < auc.high


def test_predictions_drift_too(report):
    (test,) = [test for test in report.tests if test.name == "predictions of churn"]
    assert test.adjusted <= 0.01 and "→" in test.detail


def test_the_rows_that_differ_most_are_named(report, moved):
    sizes = moved["size"].to_numpy()
    assert np.mean([sizes[row.row] for row in report.unusual]) > sizes.mean() + 0.5
    assert {cell.column for cell in report.unusual[0].cells} == {"size", "plan"}


def test_the_accuracy_is_estimated_and_checked_where_there_are_labels(tuned, report):
    (estimate,) = report.estimates
    assert estimate.low <= estimate.value <= estimate.high and math.isnan(estimate.measured)
    (estimate,) = ft.drift(tuned, rows(3, 400)).estimates
    assert abs(estimate.value - estimate.measured) < 0.1 and estimate.error < 0.15
    assert estimate.held_out == pytest.approx(estimate.measured, abs=0.1)


def test_missing_cells_are_found(tuned):
    frame = rows(4, 150)
    frame.loc[::3, "size"] = None
    report = ft.drift(tuned, frame)
    assert report.alarm and report.drifted == ["size: missing cells"]


def test_rejected_rows_and_cells_are_noted(tuned, tmp_path):
    frame = rows(5, 100).astype({"size": object})
    frame.loc[0, "size"] = "many"
    assert any("1 cells of new rows could not be read" in note for note in ft.drift(tuned, frame).notes)


def test_the_page_and_the_json(report, tmp_path):
    report.save(tmp_path / "a" / "b")
    content = json.loads((tmp_path / "a" / "b" / "drift.json").read_text())
    assert content["alarm"] is True and content["drifted"] == ["size"] and content["columns"][0]["name"] == "size"
    page = (tmp_path / "a" / "b" / "drift.html").read_text()
    assert report.headline in page and "<script" not in page and "Kolmogorov-Smirnov" in page


def test_the_verb_exits_with_3_where_rows_differ(tuned, moved, tmp_path):
    moved.to_csv(tmp_path / "new.csv", index=False)
    rows(6, 150).to_csv(tmp_path / "same.csv", index=False)
    run = CliRunner().invoke
    done = run(app, ["drift", str(tuned.folder), str(tmp_path / "new.csv"), "--out", str(tmp_path / "out")])
    assert done.exit_code == 3 and "size" in done.stdout and (tmp_path / "out" / "drift.html").is_file()
    done = run(app, ["drift", str(tuned.folder), str(tmp_path / "same.csv"), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["alarm"] is False


def test_mistakes(tuned, moved, tmp_path):
    with pytest.raises(TableError, match="too few rows"):
        ft.drift(tuned, moved[:10])
    with pytest.raises(TableError, match="no column 'size'") as error:
        ft.drift(tuned, moved.drop(columns="size"))
    assert "--missing-columns" not in str(error.value)  # which drift does not take
    with pytest.raises(ConfigError, match="out of range"):
        ft.drift(tuned, moved, alpha=0)


def test_tables_that_have_changed_or_gone_are_refused(tmp_path):
    table = tmp_path / "train.csv"
    rows(7, 80).to_csv(table, index=False)
    settings = ["trainer.epochs=1", "report.bootstrap=20", "trainer.trackers=[]", "trainer.head_epochs=1"]
    tuned = ft.fit(table, "churn", out=tmp_path / "run", overrides=settings, progress=False)
    rows(7, 90).to_csv(table, index=False)
    with pytest.raises(ConfigError, match="changed since the fit"):
        ft.drift(tuned, rows(8, 50))
    table.unlink()
    with pytest.raises(ConfigError, match="cannot be read again"):
        ft.drift(tuned, rows(8, 50))
    assert not ft.drift(tuned, rows(8, 50), reference=rows(9, 50)).alarm


def test_texts_pictures_and_sounds(fitted, shop_tables):
    report = ft.drift(fitted, str(shop_tables["test"]), reference=str(shop_tables["val"]))
    assert {test.name for test in report.columns if "mean discrepancy" in test.test} == {"note", "photo", "voice"}


@pytest.mark.parametrize("changed", [False, True])
def test_a_model_that_writes_is_watched_by_its_words(tiny, tmp_path, changed):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"source": [" ".join(rng.choice(list("abcdefgh"), 6)) for _ in range(120)]})
    frame["out"] = [" ".join(text.split()[:3]) for text in frame["source"]]
    settings = ["tasks.out=generate", f"text={tiny('llama_writer')}", "trainer.epochs=0.1", "trainer.trackers=[]"]
    settings += ["report.bootstrap=0", "report.zero_shot=false", "generation.val_rows=1", "generation.max_tokens=2"]
    tuned = ft.fit(frame[:60], "out", out=tmp_path / "run", overrides=settings, progress=False)
    new = frame[90:].reset_index(drop=True)
    new = new.assign(source=[f"zzz {text}" for text in new["source"]]) if changed else new
    report = ft.drift(tuned, new, reference=frame[60:90].reset_index(drop=True))
    assert report.alarm is changed
    assert any("by the words" in note for note in report.notes)


def test_rows_with_labels_that_the_model_does_not_know_are_compared(tuned, moved):
    frame = moved.assign(churn=["perhaps", *["yes"] * (len(moved) - 1)])
    plain, labelled = ft.drift(tuned, moved), ft.drift(tuned, frame)
    assert labelled.num_new == len(frame)
    assert [test.p for test in labelled.tests + labelled.columns] == [test.p for test in plain.tests + plain.columns]
    (estimate,) = labelled.estimates
    decided = np.asarray(tuned.predict(moved)["churn"])
    assert estimate.measured == pytest.approx(np.mean(decided == frame["churn"]))


def test_the_alarm_level_holds_for_all_tests_together(tuned, moved):
    report = ft.drift(tuned, moved)
    groups = len(report.tests) + 1  # every test of rows and predictions, and the columns together
    assert groups == 4
    assert [test.adjusted for test in report.tests] == [min(test.p * groups, 1.0) for test in report.tests]
    assert report.p == min(groups * min(test.adjusted for test in report.columns), *(t.adjusted for t in report.tests))
