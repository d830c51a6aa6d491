"""Searching a catalogue with a tuned model: the saved index, the command line, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from fusetune import api
from fusetune.cli.main import app
from fusetune.errors import ConfigError, EmptyTable, FolderError, TableError

WORDS = ["lamp", "chair", "table", "shelf", "sofa", "desk"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny, write_csv):
    """A model of pairs of a title and the length in another unit, and the folder of its tables."""
    folder, rng = tmp_path_factory.mktemp("search"), np.random.default_rng(0)
    rows = []
    for place in range(60):
        word, size = WORDS[place % 6], int(rng.integers(1, 100))
        rows.append({"title": f"w{place % 6}", "metre": size, "foot": size * 3.28, "maker": word})
    items = [{"foot": row["foot"], "maker": row["maker"], "price": place} for place, row in enumerate(rows)]
    items[7]["foot"] = items[7]["maker"] = ""
    items[8]["foot"] = "far"
    write_csv(folder / "items.csv", items)
    train = write_csv(folder / "train.csv", rows)
    settings = {
        "query": ["title", "metre"],
        "document": ["foot", "maker"],
        "text": tiny("bert"),
        "fusion": {"name": "concat", "dim": 8},
        "columns": {"title": "text", "metre": "number", "foot": "number", "maker": "category"},
        "trainer": {"epochs": 1, "head_epochs": 2, "trackers": []},
        "report": {"bootstrap": 20, "errors": 0},
    }
    api.fit(str(train), out=folder / "model", config=settings, progress=False)
    return folder


@pytest.fixture(scope="module")
def tuned(run):
    return api.load(run / "model")


def vectors_of(tuned, rows, side):
    table = tuned.embed(rows).table
    return np.array(table.column(f"{side}_vector").to_pylist(), dtype=np.float32)


def test_answers_are_the_nearest_by_the_models_own_vectors(run, tuned):
    items = pd.read_csv(run / "items.csv")
    index = tuned.index(run / "items.csv")
    assert len(index) == 59 and list(index.refused) == [7]
    queries = [{"title": "w1", "metre": 30}, {"title": "w4", "metre": 77.5}]
    found = index.search(queries, k=5).to_pandas()
    frame = pd.read_csv(run / "items.csv").assign(title="w0", metre=1)
    frame.loc[[7, 8], "foot"] = None
    keep = frame[~(frame.index == 7)]
    documents = vectors_of(tuned, keep, "document")
    wanted = vectors_of(tuned, [q | {"foot": 1, "maker": "desk"} for q in queries], "query") @ documents.T
    for number in range(2):
        mine = found[found["row"] == number]
        assert mine["rank"].tolist() == [1, 2, 3, 4, 5]
        best = keep.index[np.argsort(-wanted[number], kind="stable")[:5]]
        np.testing.assert_allclose(mine["score"], np.sort(wanted[number])[::-1][:5], atol=1e-5)
        assert set(mine["document_row"]) == set(best)
        assert mine["maker"].tolist() == items["maker"][mine["document_row"]].tolist()
        assert mine["price"].astype(int).tolist() == mine["document_row"].tolist()


def test_filters_directions_and_single_cells(run, tuned):
    index = tuned.index(run / "items.csv")
    assert index.search("w2", k=3)["rank"] == [1, 2, 3]  # a text goes into the only column of texts
    cheap = index.search({"metre": 5}, k=100, where="price < 10 and maker != 'lamp'")
    assert set(map(int, cheap["price"])) <= set(range(10)) and "lamp" not in cheap["maker"]
    none = index.search(["w2"], where="price > 1000")
    assert none["rank"] == [None] and "filter" in none["error"][0]
    back = tuned.index(run / "train.csv", find="query").search({"foot": 100, "maker": "sofa"}, k=1)
    assert back.table.column_names[3] == "query_row" and back["rank"] == [1]
    with pytest.raises(ConfigError, match="not clear which column"):
        tuned.index(run / "train.csv", find="query").search("sofa")


def test_every_query_has_an_answer_or_a_reason(tuned, run):
    frame = pd.DataFrame({"title": ["w1", None, "w3"], "metre": ["4", None, "a lot"]})
    found = tuned.index(run / "items.csv").search(frame, k=2)
    assert found["row"] == [0, 0, 1, 2, 2] and found["rank"] == [1, 2, None, 1, 2]
    assert found["error"][2] and "metre" in found["error"][3]


def test_rows_are_added_and_removed_without_a_rebuild(run, tuned):
    index = tuned.index(run / "items.csv")
    more = pd.DataFrame({"foot": [3.28], "maker": ["desk"], "price": [999], "shade": ["dim"]})
    assert index.add(more) == 1 and len(index) == 60
    found = index.search({"metre": 1}, k=60, where="price == 999")
    assert found["document_row"] == [60] and found["shade"] == ["dim"]
    assert index.remove("price < 30") == 29 and len(index) == 31
    assert min(map(int, index.search("w1", k=60)["price"])) == 30


def test_the_saved_index_answers_alike_and_is_refused_when_changed(run, tuned, tmp_path):
    model = tuned.save(tmp_path / "model")
    again = api.load(model)
    with pytest.raises(FolderError, match="there is no index"):
        again.index()
    index = again.index(run / "items.csv", dtype="float16")
    index.remove("price == 3")
    folder = again.save_index(index)
    loaded = api.load(model).index()
    query = [{"title": "w5", "metre": 12}]
    assert loaded.search(query).table.equals(index.search(query).table)
    assert loaded.refused == index.refused and len(loaded) == 58
    weights = load_file(folder / "vectors.safetensors")
    save_file(weights | {"owners": weights["owners"] + 1}, folder / "vectors.safetensors")
    with pytest.raises(FolderError, match="changed or is damaged"):
        api.load(model).index()
    again.save_index(index)
    content = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(content | {"model": "0" * 64}))
    with pytest.raises(FolderError, match="other weights"):
        api.load(model).index()


def test_what_cannot_be_searched_says_why(run, tuned, tmp_path, write_csv):
    index = tuned.index(run / "items.csv")
    with pytest.raises(ConfigError, match="k=0"):
        index.search("w1", k=0)
    assert len(index.search("w1", k=500)) == 59
    with pytest.raises(TableError, match="no column 'foot'"):
        tuned.index(pd.DataFrame({"maker": ["desk"]}))
    with pytest.raises(TableError, match="no row of the catalogue"):
        tuned.index(pd.DataFrame({"maker": [None], "foot": [None]}))
    with pytest.raises(EmptyTable):
        tuned.index(write_csv(tmp_path / "empty.csv", [{"foot": 1, "maker": "x"}][:0] or [], ["foot", "maker"]))
    with pytest.raises(ConfigError, match="no 'photo' to find"):
        tuned.index(run / "items.csv", find="photo")


def test_the_command_line_indexes_searches_and_embeds(run, tuned, tmp_path):
    model, runner = str(tuned.save(tmp_path / "model")), CliRunner()

    def call(*arguments):
        done = runner.invoke(app, [*map(str, arguments)])
        assert done.exit_code == 0, done.output
        return done.stdout

    assert "59 rows to find by document" in call("index", model, run / "items.csv")
    assert "row 7 cannot be found" in call("index", model, run / "items.csv")
    lines = [json.loads(line) for line in call("search", model, "-q", "w1", "-k", 3, "--json").splitlines()]
    assert [line["rank"] for line in lines] == [1, 2, 3]
    shown = call("search", model, "--set", "title=w1", "--set", "metre=20", "--filter", "price < 5", "-k", 2)
    assert "maker" in shown and "query 0" in shown
    assert "29 rows removed" in call("index", model, "--remove", "price < 30")
    out = tmp_path / "found.csv"
    call("search", model, "--queries", run / "train.csv", "--out", out, "-k", 1)
    assert len(pd.read_csv(out)) == 60 and pd.read_csv(out)["price"].min() >= 30
    vectors = tmp_path / "vectors.parquet"
    call("embed", model, run / "train.csv", "--out", vectors)
    assert pd.read_parquet(vectors)["query_vector"].map(len).tolist() == [8] * 60
    for wrong in (["search", model], ["search", model, "-q", "x", "--set", "title=y"], ["index", model]):
        assert runner.invoke(app, wrong).exit_code == 2


def test_a_model_with_targets_embeds_but_does_not_search(make_tuned_understand):
    tuned, rows = make_tuned_understand
    table = tuned.embed(rows).table
    vectors = np.array(table.column("vector").to_pylist())
    assert vectors.shape == (len(rows), tuned.bundle.model.dim) and vectors.std() > 0
    with pytest.raises(ConfigError, match="only a model of pairs"):
        tuned.index(rows)


@pytest.fixture
def make_tuned_understand():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=60), "b": rng.normal(size=60)})
    frame["y"] = np.where(frame["a"] + frame["b"] > 0, "yes", "no")
    settings = {"fusion": {"name": "concat", "dim": 8}, "trainer": {"epochs": 1, "head_epochs": 1, "trackers": []}}
    return api.fit(frame, "y", config=settings | {"report": {"bootstrap": 20, "errors": 0}}, progress=False), frame
