"""A fit without a target: what it finds, saves, predicts and measures, and what it refuses."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fusetune import api
from fusetune.cli.main import app
from fusetune.errors import ConfigError, TableError, UserError

COLOURS = {
    "red": (220, 30, 20), "green": (20, 200, 40), "blue": (20, 40, 230), "white": (240, 240, 240),
    "black": (10, 10, 10), "yellow": (230, 220, 20),
}  # fmt: skip
WORDS = {name: f"w{place}" for place, name in enumerate(COLOURS)}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, write_csv):
    """Tables of pictures of one colour, notes that name it, and tags, which some rows lack."""
    folder, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(5)
    rows = []
    for place in range(90):
        name = list(COLOURS)[int(rng.integers(0, len(COLOURS)))]
        noise = rng.integers(0, 25, (40, 40, 3)) + np.asarray(COLOURS[name])
        Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder / f"{place}.png")
        rest = " ".join(f"w{number}" for number in rng.integers(10, 40, 3))
        tag = f"{WORDS[name]} w{int(rng.integers(10, 40))} w{int(rng.integers(10, 40))}"
        rows.append({"photo": f"{place}.png", "note": f"{WORDS[name]} {rest}", "tags": tag if place % 4 else ""})
    parts = {"train": rows[:50], "val": rows[50:70], "test": rows[70:]}
    return {name: write_csv(folder / f"{name}.csv", part) for name, part in parts.items()}


@pytest.fixture(scope="module")
def settings(tiny):
    return {
        "text": tiny("bert"),
        "image": tiny("vit"),
        "fusion": {"dim": 8},
        "objectives": "contrastive",
        "columns": {"note": "text", "tags": "text"},
        "trainer": {"epochs": 1, "head_epochs": 2, "trackers": []},
        "report": {"bootstrap": 50, "errors": 3},
    }


def tune(pairs, settings, out=None, **more):
    tables = {name: str(pairs[name]) for name in ("val", "test")}
    return api.fit(str(pairs["train"]), **tables, out=out, config=settings | more, progress=False)


@pytest.fixture(scope="module")
def aligned(pairs, settings, tmp_path_factory):
    return tune(pairs, settings, tmp_path_factory.mktemp("aligned") / "model")


def test_both_directions_are_compared_with_chance_and_the_closed_form(aligned):
    tasks = aligned.results.tasks
    assert sorted(task.target for task in tasks) == ["image → text", "text → image"]
    for task in tasks:
        assert [system.kind for system in task.systems] == ["baseline", "before", "after"]
        chance, _, after = (task.main(system).value for system in task.systems)
        assert after > 1.5 * chance
        assert {"mrr", "recall@1", "recall@5", "recall@10", "median_rank"} <= set(task.systems[-1].metrics)
        assert 0 < len(task.errors) <= 3 and task.errors[0].cells
    stages = [point.stage for point in aligned.results.curve.points]
    assert stages[0] == "head" and "tune" in stages
    best = max(point.val_metric for point in aligned.results.curve.points)
    assert best >= aligned.results.curve.points[0].val_metric


def test_the_folder_holds_it_and_predicts_vectors(aligned, pairs):
    loaded = api.load(aligned.folder)
    found, again = (model.predict(str(pairs["test"])) for model in (aligned, loaded))
    assert found.table.column_names == ["row", "photo_vector", "note_vector", "tags_vector", "error"]
    assert len(found) == 20 and found.num_errors == 0
    for column in ("photo_vector", "note_vector"):
        mine = np.asarray(found[column])
        assert mine.shape == (20, 8)
        assert np.allclose(np.linalg.norm(mine, axis=1), 1, atol=1e-5)
        assert np.allclose(mine, np.asarray(again[column]), atol=1e-6)
    lacking = [place for place, vector in enumerate(found["tags_vector"]) if vector is None]
    assert lacking == [place for place in range(20) if (70 + place) % 4 == 0]
    assert "Aligns photo, note, tags" in (aligned.folder / "README.md").read_text()
    assert "photo" in (aligned.folder / "report.html").read_text()


def test_evaluating_again_gives_the_reports_figures(aligned, pairs):
    measured = api.evaluate(aligned.folder, str(pairs["test"])).metrics()
    for task in aligned.results.tasks:
        assert measured[task.target]["mrr"] == pytest.approx(task.main(task.systems[-1]).value, abs=1e-6)


def test_a_folder_that_names_no_task_is_measured_in_every_direction(aligned, pairs, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(aligned.folder, old)
    content = json.loads((old / "bundle.json").read_text())
    assert sorted(content["tasks"]) == ["image → text", "text → image"]
    (old / "bundle.json").write_text(json.dumps({**content, "tasks": {}}))  # as version 0.1.0 wrote it
    loaded = api.load(old)
    assert loaded.bundle.tasks.keys() == content["tasks"].keys()
    assert loaded.evaluate(str(pairs["test"])).metrics() == aligned.evaluate(str(pairs["test"])).metrics()


def test_a_folder_whose_task_reads_another_column_is_refused(aligned, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(aligned.folder, broken)
    content = json.loads((broken / "bundle.json").read_text())
    content["tasks"]["image → text"]["state"]["query"]["columns"] = ["sound"]
    (broken / "bundle.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="'sound'"):
        api.load(broken)


def test_another_metric_slices_and_weights(pairs, settings, tmp_path, write_csv):
    more = {
        "trainer": {"epochs": 0, "head_epochs": 1, "trackers": [], "metric": {"image → text": "median_rank"}},
        "report": {"bootstrap": 0, "errors": 0, "slices": ["note"]},
    }
    found = tune(pairs, settings, tmp_path / "model", **more)
    there = next(task for task in found.results.tasks if task.target == "image → text")
    assert (there.metric, there.greater_is_better) == ("median_rank", False) and there.slices
    with pytest.raises(ConfigError, match="recall@x"):
        tune(pairs, settings, tmp_path / "m", trainer={"metric": "recall@x"})


def test_rows_that_cannot_be_searched_are_not_measured(aligned, pairs, write_csv):
    lone = write_csv(pairs["test"].parent / "alone.csv", [{"photo": "1.png", "note": "", "tags": ""}] * 3)
    with pytest.raises(TableError, match="no two rows"):
        aligned.evaluate(str(lone))


def test_no_column_is_a_target_of_retrieval(pairs, settings, tmp_path):
    with pytest.raises(ConfigError, match="predicts no column"):
        tune(pairs, settings, tmp_path / "m", target=["note"], tasks={"note": "retrieval"})


def test_it_is_where_another_fit_can_start(aligned, shop_tables, quick):
    encoders = {"text": str(aligned.folder), "image": str(aligned.folder), "columns": {"voice": {"role": "ignore"}}}
    started = api.fit(
        str(shop_tables["train"]),
        target="label",
        val=str(shop_tables["val"]),
        test=str(shop_tables["test"]),
        config=quick | encoders,
        progress=False,
    )
    assert {one.source for one in started.results.backbones} == {str(aligned.folder)}


def test_an_anchor_and_columns_leave_the_rest_out(pairs, settings, tmp_path):
    chosen = {"contrastive": {"anchor": "photo", "columns": ["note"]}}
    trainer = {"epochs": 0, "head_epochs": 1, "trackers": []}
    found = tune(pairs, settings, tmp_path / "model", objectives=chosen, trainer=trainer)
    assert sorted(found.bundle.modalities) == ["note", "photo"]


def test_encoders_from_scratch_start_without_a_closed_form(pairs, settings, tmp_path):
    more = {"image": {}, "trainer": {"epochs": 0, "head_epochs": 1, "trackers": []}}
    found = tune(
        pairs, settings, tmp_path / "model", **more, objectives={"contrastive": {"columns": ["photo", "note"]}}
    )
    assert [system.kind for system in found.results.tasks[0].systems] == ["baseline", "after"]


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        ({"objectives": {"contrastive": {"columns": ["photo", "nota"]}}}, ConfigError, "'nota' is no input column"),
        ({"objectives": {"contrastive": {"columns": ["photo"]}}}, ConfigError, "nothing to align"),
        ({"objectives": {}}, TableError, "no target column"),
        ({"objectives": "contrastiv"}, ConfigError, "did you mean 'contrastive'"),
    ],
)
def test_what_cannot_be_aligned_is_said(pairs, settings, tmp_path, more, error, said):
    with pytest.raises(error, match=said):
        tune(pairs, settings, tmp_path / "model", **more)


def test_rows_without_two_of_the_columns_are_said(pairs, settings, tmp_path, write_csv):
    lone = write_csv(pairs["test"].parent / "lone.csv", [{"photo": "1.png", "note": "", "tags": ""}] * 3)
    with pytest.raises(TableError, match="no two test rows"):
        tune(pairs | {"test": lone}, settings, tmp_path / "model")


def test_on_the_command_line(pairs, tiny, tmp_path):
    runner = CliRunner()
    more = [f"text={tiny('bert')}", f"image={tiny('vit')}", "columns.note.kind=text", "columns.tags.role=ignore"]
    more += ["trainer.epochs=0", "trainer.head_epochs=1", "report.bootstrap=0"]
    tables = ["--val", str(pairs["val"]), "--test", str(pairs["test"])]
    arguments = ["fit", str(pairs["train"]), *more, "--objective", "contrastive", *tables, "--out", str(tmp_path / "m")]
    done = runner.invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    assert {task["target"] for task in json.loads(done.stdout)["tasks"]} == {"image → text", "text → image"}
    assert (
        runner.invoke(
            app, ["predict", str(tmp_path / "m"), str(pairs["test"]), "-o", str(tmp_path / "v.csv")]
        ).exit_code
        == 0
    )
    assert "photo_vector" in (tmp_path / "v.csv").read_text().splitlines()[0]
