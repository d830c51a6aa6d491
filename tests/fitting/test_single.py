"""Several targets at once against each of them by itself."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fusetune import api


@pytest.fixture(scope="module")
def table(tmp_path_factory, write_csv):
    """Two numbers and a category; `mark` and `size` follow from the first, each missing in a third of the rows."""
    rng, rows = np.random.default_rng(0), []
    for place in range(240):
        x, z = rng.normal(size=2)
        row = {
            "x": round(x, 1),
            "z": round(z, 3),
            "c": "pq"[place % 2],
            "mark": "hi" if x + 0.5 * rng.normal() > 0 else "lo",
            "size": round(3 * x + z + rng.normal(), 2),
        }
        rows.append(
            row | {"mark": "" if place % 3 == 0 else row["mark"], "size": "" if place % 3 == 1 else row["size"]}
        )
    return write_csv(tmp_path_factory.mktemp("single") / "train.csv", rows)


def fit(table, quick, tmp_path, *targets, **more):
    report = quick["report"] | {"bootstrap": 50, "single": True}
    return api.fit(
        str(table),
        target=list(targets),
        out=tmp_path / "model",
        config=quick | {"report": report, "trainer": {"epochs": 0, "head_epochs": 6, "trackers": []}} | more,
        progress=False,
    )


def test_each_target_by_itself_is_compared_and_its_curve_drawn(table, quick, tmp_path):
    tuned = fit(table, quick, tmp_path, "mark", "size")
    for task in tuned.results.tasks:
        single = task.first("single")
        assert single.name == "this target alone" and single.difference[task.metric].known
        assert task.main(single).value > task.main(task.first("baseline")).value
    points = tuned.results.curve.points
    assert all(set(point.task_metrics) == {"mark", "size"} for point in points)
    assert all(set(point.task_losses) == {"mark", "size"} for point in points[1:])
    page = (tmp_path / "model" / "report.html").read_text()
    assert (
        "Tuned for this alone" in page and "Validation metric of mark" in page and "Validation metric of size" in page
    )
    assert "Learning the targets together" in page
    saved = json.loads((tmp_path / "model" / "report.json").read_text())
    assert [one["kind"] for one in saved["tasks"][0]["systems"]].count("single") == 1


def test_the_model_by_itself_is_the_one_that_a_run_with_this_target_gives(table, quick, tmp_path):
    """Rows without the other target are left out of its run, so both are given all rows' targets here."""
    rows = table.read_text().splitlines()
    head = rows[0].split(",")
    full = [row for row in rows[1:] if all(row.split(",")[head.index(name)] for name in ("mark", "size"))]
    parts = {"train": full[:30], "val": full[30:40], "test": full[40:]}
    for name, part in parts.items():
        (tmp_path / f"{name}.csv").write_text("\n".join([rows[0], *part]))
    table, others = tmp_path / "train.csv", {name: str(tmp_path / f"{name}.csv") for name in ("val", "test")}
    both = fit(table, quick, tmp_path / "both", "mark", "size", **others)
    one = fit(table, quick, tmp_path / "one", "size", columns={"mark": {"role": "ignore"}}, **others)
    single = both.results.tasks[1].first("single")
    assert both.results.tasks[1].target == "size"
    assert both.results.tasks[1].main(single).value == pytest.approx(
        one.results.tasks[0].main(one.results.tasks[0].first("after")).value, abs=1e-6
    )


def test_objectives_of_another_target_are_left_out(table, quick, tmp_path):
    tuned = fit(table, quick, tmp_path, "mark", "size", objectives={"supcon": {"target": "mark"}})
    assert all(task.first("single") for task in tuned.results.tasks)


def test_one_target_is_not_compared_with_itself(table, quick, tmp_path):
    tuned = fit(table, quick, tmp_path, "size", columns={"mark": {"role": "ignore"}})
    assert tuned.results.tasks[0].first("single") is None
    assert not tuned.results.curve.points[0].task_metrics
