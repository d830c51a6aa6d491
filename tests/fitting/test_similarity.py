"""A fit of pairs with a target: where it starts, what it saves, predicts and measures, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fusetune import api
from fusetune.cli.main import app
from fusetune.errors import UserError
from fusetune.inference.predict import encode_cells
from fusetune.models.match import Match
from fusetune.tasks.pair_classification import PairClassificationTask
from fusetune.tasks.similarity import SimilarityTask

QUICK = {"trainer": {"epochs": 1, "trackers": []}, "report": {"bootstrap": 30, "errors": 3}}
SIDES = {"query": "a", "document": "b", "target": "score"}


def sentence(rng, words):
    return " ".join(f"w{number}" for number in rng.choice(words, 6))


@pytest.fixture(scope="module")
def scored(tmp_path_factory, write_csv):
    """Texts that share some of their words, and how many of six; row 5 lacks a side, row 6 the score."""
    folder, rng, rows = tmp_path_factory.mktemp("scored"), np.random.default_rng(3), []
    for place in range(110):
        words, shared = rng.permutation(np.arange(40)), int(rng.integers(0, 7))
        first, second = words[:6], np.concatenate([words[:shared], words[6 : 12 - shared]])
        a, b = (" ".join(f"w{number}" for number in rng.permutation(side)) for side in (first, second))
        rows.append({"a": a, "b": b, "score": shared, "same": "yes" if shared > 3 else "no", "note": f"{place % 5}"})
    rows[5]["b"], rows[6]["score"], rows[104]["a"] = "", "", ""
    parts = {"train": rows[:60], "val": rows[60:85], "test": rows[85:]}
    return {name: write_csv(folder / f"{name}.csv", part) for name, part in parts.items()}


def tune(tables, tiny, out, **more):
    given = {name: str(tables[name]) for name in ("val", "test")}
    settings = {**SIDES, "text": tiny("bert"), "columns": {"a": "text", "b": "text"}, **QUICK, **more}
    return api.fit(str(tables["train"]), **given, out=out, config=settings, progress=False)


@pytest.fixture(scope="module")
def tuned(scored, tiny, tmp_path_factory):
    return tune(scored, tiny, tmp_path_factory.mktemp("similar") / "model")


def test_the_frozen_and_the_tuned_model_are_compared_with_shared_words(tuned):
    (task,) = tuned.results.tasks
    assert (task.name, task.target, task.metric, task.rows) == ("similarity", "score", "spearman", 24)
    assert [system.kind for system in task.systems] == ["baseline", "baseline", "before", "after"]
    values = {system.name: task.main(system).value for system in task.systems}
    assert values["shared words"] > 0.9 and abs(values["random order"]) < 0.6
    assert tuned.bundle.config.objectives == {"similarity": {}}
    assert sorted(tuned.bundle.modalities) == ["a", "b"]


def test_rows_in_are_rows_used_and_rejected(tuned):
    used = {table.split: table for table in tuned.results.tables}
    assert (used["train"].rows_in, used["train"].rows_used, used["train"].rows_rejected) == (60, 59, 1)
    assert (used["test"].rows_in, used["test"].rows_used, used["test"].rows_rejected) == (25, 24, 1)
    rejected = map(json.loads, (tuned.folder / "rejected.jsonl").read_text().splitlines())
    assert {entry["row"]: entry["why"] for entry in rejected} == {
        5: "no column of the document has a value",
        19: "no column of the query has a value",
    }


def test_it_starts_from_the_encoders_own_space(scored, tiny, tmp_path):
    found = tune(scored, tiny, tmp_path / "m", trainer={"epochs": 0, "head_epochs": 0, "trackers": []})
    model, columns = found.bundle.model, found.bundle.modalities
    assert isinstance(model, Match) and model.dim == columns["a"].backbone.dim
    assert model.projection("a") is model.projection("b")
    given = api.load(found.folder).read(str(scored["test"]))
    from fusetune.data.examples import Examples

    examples = Examples(given, columns)
    examples.prepare(on_bad_cell="reject")
    first, second = (
        encode_cells(model, name, examples.columns[name]).mean()[examples.columns[name].codes] for name in "ab"
    )
    cosines = torch.nn.functional.cosine_similarity(first, second).tolist()
    predicted = found.predict(str(scored["test"]))["score"]
    both = [row for row, value in enumerate(predicted) if value is not None]
    assert len(both) == 24
    assert [predicted[row] for row in both] == pytest.approx([cosines[row] for row in both], abs=1e-6)
    (task,) = found.results.tasks
    before, after = (task.main(system).value for system in task.systems[-2:])
    assert before == after


def test_the_folder_predicts_and_measures_the_same(tuned, scored):
    loaded = api.load(tuned.folder)
    found, again = (model.predict(str(scored["test"])) for model in (tuned, loaded))
    assert found.table.column_names == ["row", "score", "query_vector", "document_vector", "error"]
    assert found["score"][19] is None and found["query_vector"][19] is None and found["document_vector"][19]
    both = [row for row in range(25) if row != 19]
    for row in both:
        dot = float(np.dot(found["query_vector"][row], found["document_vector"][row]))
        assert found["score"][row] == pytest.approx(dot, abs=1e-5) == pytest.approx(again["score"][row], abs=1e-5)
    (task,) = tuned.results.tasks
    measured = loaded.evaluate(str(scored["test"]))
    assert measured.rows_rejected == 1
    assert measured.metrics()["score"]["spearman"] == pytest.approx(task.main(task.systems[-1]).value, abs=1e-6)
    assert isinstance(loaded.bundle.tasks["score"], SimilarityTask)
    assert "by `score`" in (tuned.folder / "README.md").read_text()
    assert len(loaded.embed(str(scored["test"])).table.column_names) == 4
    assert loaded.index(str(scored["test"])).search("w1 w2", k=3).table.num_rows == 3


def test_labelled_pairs_of_other_kinds_start_in_closed_form(tmp_path, tiny, write_csv):
    rng, rows = np.random.default_rng(1), []
    for place in range(100):
        red, named = bool(rng.integers(0, 2)), bool(rng.integers(0, 2))
        pixels = np.asarray((220, 30, 20) if red else (20, 40, 230)) + rng.integers(0, 25, (40, 40, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / f"{place}.png")
        title = f"w{1 if named else 2} {sentence(rng, np.arange(10, 30))}"
        rows.append({"a": title, "tag": f"w{named + 5}", "photo": f"{place}.png", "same": int(red == named)})
    parts = {"train": rows[:60], "val": rows[60:80], "test": rows[80:]}
    tables = {name: write_csv(tmp_path / f"{name}.csv", part) for name, part in parts.items()}
    more = {"query": ["a", "tag"], "document": "photo", "target": "same", "image": tiny("vit")}
    more |= {"columns": {"a": "text", "tag": "text"}, "fusion": {"name": "concat", "dim": 8}}
    more |= {
        "trainer": {"epochs": 0, "head_epochs": 3, "trackers": []},
        "objectives": {"similarity": {"form": "margin"}},
    }
    found = tune(tables, tiny, tmp_path / "model", **more)
    (task,) = found.results.tasks
    assert (task.name, task.metric) == ("pair_classification", "average_precision")
    before = next(system for system in task.systems if system.kind == "before")
    assert "aligned in closed form" in before.description
    assert {"roc_auc", "f1", "accuracy"} < set(before.metrics)
    loaded = api.load(found.folder)
    tasks = [model.bundle.tasks["same"] for model in (found, loaded)]
    assert all(isinstance(one, PairClassificationTask) for one in tasks)
    assert tasks[0].threshold == tasks[1].threshold != 0.5  # chosen on validation rows, saved with the model
    predicted = loaded.predict(str(tables["test"]))
    cosines = np.asarray(predicted["same_similarity"])
    assert predicted["same"] == ["1" if value >= tasks[1].threshold else "0" for value in cosines]


def test_on_the_command_line(scored, tiny, tmp_path):
    runner, out = CliRunner(), tmp_path / "m"
    more = [f"text={tiny('bert')}", "columns.a.kind=text", "columns.b.kind=text", "trainer.epochs=0"]
    arguments = ["fit", str(scored["train"]), *more, "--query", "a", "--document", "b", "--target", "same"]
    arguments += ["report.bootstrap=0", "trainer.head_epochs=1", "objectives.similarity.temperature=0.1"]
    tables = ["--val", str(scored["val"]), "--test", str(scored["test"])]
    done = runner.invoke(app, [*arguments, *tables, "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    assert [task["name"] for task in json.loads(done.stdout)["tasks"]] == ["pair_classification"]
    estimated = runner.invoke(app, [*arguments, *tables, "--dry-run"])
    assert estimated.exit_code == 0, estimated.output
    shown = runner.invoke(app, ["schema", str(scored["train"]), "--target", "score"])
    assert shown.exit_code == 0, shown.output


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"target": ["score", "same"]}, "several targets"),
        ({"target": "a"}, "'a' is the target and a column of a side"),
        ({"target": "note", "tasks": {"note": "multiclass"}}, "is no task about pairs"),
        ({"target": "a", "query": "note"}, "no task fits the target column(.|\n)*how alike"),
        ({"target": [], "objectives": {"similarity": {}}}, "learns pairs with a target"),
        ({"query": [], "document": [], "tasks": {"score": "similarity"}}, "is about pairs"),
        ({"query": [], "document": [], "fusion": "none"}, "fusion=none is for the sides of pairs"),
        ({"query": [], "document": [], "fusion": {"name": "concat", "tied": True}}, "fusion.tied is for pairs"),
        ({"objectives": {"similarity": {"form": "margin"}}}, "learns which pairs are related"),
        ({"objectives": "supcon", "tasks": {"score": "pair_classification"}}, "7 distinct values"),
    ],
)
def test_what_cannot_be_learned_is_said(scored, tiny, tmp_path, more, said):
    with pytest.raises(UserError, match=said):
        tune(scored, tiny, tmp_path / "model", **more)
