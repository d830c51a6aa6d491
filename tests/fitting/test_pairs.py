"""A fit of pairs: what it finds, saves, predicts and measures, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fusetune import api
from fusetune.cli.main import app
from fusetune.data.schema import Schema
from fusetune.data.splits import split_rows
from fusetune.data.table import Table
from fusetune.errors import ConfigError, UserError

COLOURS = {"red": (220, 30, 20), "green": (20, 200, 40), "blue": (20, 40, 230), "white": (240, 240, 240)}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, write_csv):
    """Pictures of one colour and shade; only title and tags together tell both. Some tags and titles are missing."""
    folder, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(5)
    rows = []
    for place in range(110):
        name, dark = list(COLOURS)[int(rng.integers(0, 4))], bool(rng.integers(0, 2))
        pixels = np.asarray(COLOURS[name]) * (0.4 if dark else 1.0) + rng.integers(0, 25, (40, 40, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{place}.png")
        noise = " ".join(f"w{number}" for number in rng.integers(10, 40, 3))
        title, tags = f"w{list(COLOURS).index(name)} {noise}", f"w{5 + dark} w{int(rng.integers(10, 40))} {place}"
        rows.append({"title": title, "tags": tags if place % 4 else "", "photo": f"{place}.png", "price": place % 7})
    rows[105]["title"] = rows[105]["tags"] = ""  # a document that nobody asks for
    parts = {"train": rows[:70], "val": rows[70:90], "test": rows[90:]}
    return {name: write_csv(folder / f"{name}.csv", part) for name, part in parts.items()}


@pytest.fixture(scope="module")
def settings(tiny):
    return {
        "query": ["title", "tags"],
        "document": "photo",
        "text": tiny("bert"),
        "image": tiny("vit"),
        "fusion": {"name": "concat", "dim": 8},
        "columns": {"title": "text", "tags": "text"},
        "trainer": {"epochs": 1, "head_epochs": 2, "trackers": []},
        "report": {"bootstrap": 50, "errors": 3},
    }


def tune(pairs, settings, out=None, **more):
    tables = {name: str(pairs[name]) for name in ("val", "test")}
    return api.fit(str(pairs["train"]), **tables, out=out, config=settings | more, progress=False)


@pytest.fixture(scope="module")
def tuned(pairs, settings, tmp_path_factory):
    return tune(pairs, settings, tmp_path_factory.mktemp("matched") / "model")


def test_both_directions_are_compared_with_chance_and_the_closed_form(tuned):
    tasks = tuned.results.tasks
    assert [task.target for task in tasks] == ["query → document", "document → query"]
    for task in tasks:
        assert [system.kind for system in task.systems] == ["baseline", "before", "after"]
        chance, _, after = (task.main(system).value for system in task.systems)
        assert after > 1.5 * chance
        assert {"mrr", "recall@1", "recall@5", "recall@10", "median_rank"} <= set(task.systems[-1].metrics)
    assert sorted(tuned.bundle.modalities) == ["photo", "tags", "title"]  # price is on no side
    assert "contrastive" in tuned.bundle.config.objectives


def test_the_catalogue_holds_documents_that_no_row_asks_for(tuned):
    there, back = tuned.results.tasks
    assert (there.rows, back.rows) == (19, 19)
    assert "among 20" in there.sections[0].panels[0].title and "among 19" in back.sections[0].panels[0].title


def test_the_folder_predicts_and_measures_the_same(tuned, pairs):
    loaded = api.load(tuned.folder)
    found, again = (model.predict(str(pairs["test"])) for model in (tuned, loaded))
    assert found.table.column_names == ["row", "query_vector", "document_vector", "error"]
    assert [row for row, vector in enumerate(found["query_vector"]) if vector is None] == [15]
    for column in ("query_vector", "document_vector"):
        mine, theirs = ([vector or [0.0] * 8 for vector in model[column]] for model in (found, again))
        assert np.allclose(mine, theirs, atol=1e-6)
    measured = loaded.evaluate(str(pairs["test"])).metrics()
    for task in tuned.results.tasks:
        assert measured[task.target]["mrr"] == pytest.approx(task.main(task.systems[-1]).value, abs=1e-6)
    assert "Matches title, tags with photo" in (tuned.folder / "README.md").read_text()


def test_texts_on_both_sides_share_their_encoder(pairs, settings, tmp_path):
    more = {"query": "title", "document": "tags", "trainer": {"epochs": 0, "head_epochs": 1, "trackers": []}}
    found = tune(pairs, settings, tmp_path / "model", **more)
    model = found.bundle.model
    assert list(model.encoders) and len(model.encoders) == 1
    assert model.projection("title") is not model.projection("tags")


def test_test_rows_with_a_side_of_the_train_rows_are_told(pairs, settings, tmp_path, write_csv):
    both = {"trainer": {"epochs": 0, "head_epochs": 1, "trackers": []}, "report": {"bootstrap": 0}}
    found = tune(pairs | {"test": pairs["train"]}, settings, tmp_path / "model", **both)
    assert any("document that train rows have" in warning for warning in found.results.warnings)


def test_rows_that_share_a_side_stay_in_one_split():
    rng = np.random.default_rng(0)
    records = [{"q": f"question {n} about {rng.integers(1e6)}", "d": f"answer {n // 5}"} for n in range(100)]
    table = Table.from_records(records)
    schema = Schema.detect(table, overrides={"q": {"kind": "text"}, "d": {"kind": "text"}})
    parts = split_rows(table, schema, sides=[["q"], ["d"]], seed=0)
    answers = {name: {int(row) // 5 for row in rows} for name, rows in parts.items()}
    assert not answers["train"] & answers["test"] and not answers["train"] & answers["val"]
    assert len(parts["test"]) == len(parts["val"]) == 10
    all_one = Table.from_records([{**record, "d": "the same"} for record in records])
    assert len(split_rows(all_one, schema, sides=[["q"], ["d"]], seed=0)["test"]) == 10


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"document": []}, "document is not given"),
        ({"query": []}, "query is not given"),
        ({"document": ["photo", "title"]}, "'title' is named twice"),
        ({"document": "foto"}, "foto(.|\n)*photo"),
        ({"fusion": "auto"}, "fusion=auto is not for pairs"),
        ({"fusion": "stack"}, "fusion=stack is not for pairs"),
        ({"objectives": {"contrastive": {"columns": ["title", "photo"]}}}, "'title'(.|\n)*query, document"),
    ],
)
def test_what_cannot_be_matched_is_said(pairs, settings, tmp_path, more, said):
    with pytest.raises(UserError, match=said):
        tune(pairs, settings, tmp_path / "model", **more)
    assert issubclass(ConfigError, UserError)


def test_on_the_command_line(pairs, tiny, tmp_path):
    runner, out = CliRunner(), tmp_path / "m"
    more = [f"text={tiny('bert')}", f"image={tiny('vit')}", "columns.title.kind=text", "columns.tags.kind=text"]
    more += ["trainer.epochs=0", "trainer.head_epochs=1", "report.bootstrap=0", "fusion.dim=8"]
    arguments = ["fit", str(pairs["train"]), *more, "--query", "title, tags", "--document", "photo"]
    tables = ["--val", str(pairs["val"]), "--test", str(pairs["test"])]
    done = runner.invoke(app, [*arguments, *tables, "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    assert [task["target"] for task in json.loads(done.stdout)["tasks"]] == ["query → document", "document → query"]
    again = runner.invoke(app, ["fit", str(out / "config.yaml"), "--out", str(tmp_path / "n"), "--json"])
    assert again.exit_code == 0, again.output
    lost = runner.invoke(app, ["fit", str(pairs["train"]), "--query", "title"])
    assert lost.exit_code == 2 and "--document COLUMN" in lost.output
