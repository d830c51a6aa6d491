"""A fit with a teacher, and rows on which only the linear probe and the heads learn."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score

import fusetune as ft
from fusetune.config.config import read_yaml
from fusetune.errors import ConfigError, FolderError, TableError
from fusetune.training import loop

SETTINGS = ["trainer.epochs=1", "trainer.head_epochs=10", "trainer.trackers=[]", "report.bootstrap=0"]


def rows(seed, num):
    """Rows with a label by the quadrant of u and v, and a number."""
    u, v = np.random.default_rng(seed).normal(size=(2, num))
    label = np.where(u > 0, np.where(v > 0, "a", "b"), np.where(v > 0, "c", "d"))
    return pd.DataFrame({"u": u, "v": v, "label": label, "y": 3 * u - v})


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return ft.fit(
        rows(0, 600), ["label", "y"], out=tmp_path_factory.mktemp("teacher") / "run", overrides=SETTINGS, progress=False
    )


def taught(teacher, frame, *overrides, target="label", **options):
    distill = f"objectives={{distill: {{teacher: {teacher.folder}, weight: 3}}}}"
    return ft.fit(
        frame,
        target,
        val=rows(2, 40),
        test=rows(3, 40),
        overrides=[*SETTINGS, distill, *overrides],
        progress=False,
        **options,
    )


def test_rows_without_a_target_are_learned_from_the_teacher(teacher):
    """Eight labelled rows are too few; four hundred that the teacher labels are not."""
    few, pool, held = (rows(seed, num).drop(columns="y") for seed, num in ((1, 8), (4, 400), (5, 500)))
    alone = ft.fit(few, "label", val=rows(2, 40), test=rows(3, 40), overrides=SETTINGS, progress=False)
    student = taught(teacher, pd.concat([few, pool.drop(columns="label")]), "data.unlabelled=50")
    accuracy = {
        name: accuracy_score(held["label"], tuned.predict(held[["u", "v"]])["label"])
        for name, tuned in (("alone", alone), ("student", student), ("teacher", teacher))
    }
    assert accuracy["teacher"] > 0.9
    assert accuracy["student"] > accuracy["alone"] + 0.1 and accuracy["student"] > 0.85
    assert any("400 train rows without a target train distill" in note for note in student.results.warnings)


def test_the_teacher_is_followed_where_labels_say_otherwise(teacher):
    """Half of the labels are wrong: with a heavy teacher, the student predicts as the teacher does."""
    frame, held = rows(6, 200), rows(7, 300)
    frame.loc[::2, "label"] = np.roll(frame["label"][::2], 7)
    light, heavy = (
        taught(teacher, frame, f"objectives.distill.weight={weight}", "trainer.head_epochs=30").predict(held)["label"]
        for weight in (0.001, 30)
    )
    wanted = teacher.predict(held)["label"]
    assert accuracy_score(wanted, heavy) > max(0.9, accuracy_score(wanted, light))


def test_numbers_are_taught_on_the_students_scale(teacher):
    few, pool, held = rows(1, 8), rows(4, 300), rows(5, 300)
    student = taught(teacher, pd.concat([few, pool.drop(columns="y")]), "data.unlabelled=40", target="y")
    error = np.abs(np.asarray(student.predict(held)["y"], dtype=float) - held["y"]).mean()
    assert error < 0.75 * np.abs(held["y"] - held["y"].mean()).mean()


def test_a_target_that_the_teacher_does_not_predict_is_said(teacher):
    frame = rows(1, 80).assign(other=lambda part: np.where(part["u"] + part["v"] > 0, "x", "z"))
    held = {"val": frame[:30], "test": frame[30:]}
    distill = f"objectives={{distill: {{teacher: {teacher.folder}}}}}"
    tuned = ft.fit(frame, ["label", "other"], **held, overrides=[*SETTINGS, distill], progress=False)
    assert any("does not teach 'other'" in note for note in tuned.results.warnings)
    with pytest.raises(ConfigError, match="predicts none of the targets"):
        ft.fit(frame, "other", **held, overrides=[*SETTINGS, distill], progress=False)


def test_a_run_with_a_teacher_goes_on_where_it_was_killed(teacher, monkeypatch, tmp_path):
    class Killed(BaseException):
        pass

    real, number = loop.update, [0]

    def update(*args, **kwargs):
        number[0] += 1
        if number[0] == 7:
            raise Killed
        return real(*args, **kwargs)

    frame, more = rows(8, 100), ("trainer.checkpoint_minutes=0", "trainer.batch_size=16")
    through = taught(teacher, frame, *more)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(loop, "update", update)
        taught(teacher, frame, *more, out=tmp_path / "m")
    on = taught(teacher, frame, *more, out=tmp_path / "m", resume=True)
    held = rows(9, 50)
    assert np.array_equal(on.predict_proba(held), through.predict_proba(held))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ("{}", ConfigError, "has no teacher"),
        ("{teacher: nowhere}", FolderError, "nowhere"),
        ("{teacher: TEACHER, temperature: -1}", ConfigError, "temperature"),
        ("{teacher: TEACHER, heat: 2}", ConfigError, "heat"),
    ],
)
def test_mistakes(teacher, options, error, words):
    asked = options.replace("TEACHER", str(teacher.folder))
    with pytest.raises(error, match=words):
        ft.fit(rows(1, 60), "label", overrides=[*SETTINGS, f"objectives={{distill: {asked}}}"], progress=False)


def test_a_teacher_that_reads_a_column_that_is_not_there(teacher):
    frame = rows(1, 60).drop(columns="v").assign(w=1.5)
    distill = f"objectives={{distill: {{teacher: {teacher.folder}}}}}"
    with pytest.raises(TableError, match="'v'"):
        ft.fit(frame, "label", overrides=[*SETTINGS, distill, "columns={y: {role: ignore}}"], progress=False)


def test_pairs_have_no_teacher(teacher):
    frame = rows(1, 60).assign(label=["yes", "no"] * 30)
    distill = f"objectives={{distill: {{teacher: {teacher.folder}}}}}"
    settings = {"query": ["u"], "document": ["v"], "columns": {"y": {"role": "ignore"}}}
    with pytest.raises(ConfigError, match="models that predict targets"):
        ft.fit(frame, "label", config=settings, overrides=[*SETTINGS, distill], progress=False)


def test_a_relative_teacher_starts_at_the_settings_file(tmp_path):
    (tmp_path / "fit.yaml").write_text("target: label\nobjectives: {distill: {teacher: runs/large}}\n")
    read = read_yaml(tmp_path / "fit.yaml")
    assert read["objectives"]["distill"]["teacher"] == str(tmp_path / "runs/large")
