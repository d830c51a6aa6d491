"""A fit of queries whose documents are in a table of their own: splits, counts, the folder, and bad input."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from fusetune import api
from fusetune.cli.main import app
from fusetune.errors import ConfigError, TableError, TooManyRejected, UserError

NUM_ITEMS = 24


@pytest.fixture(scope="module")
def shop(tmp_path_factory, write_csv):
    """Items with words and a picture, and queries in another folder that name one or several of them."""
    home, rng = tmp_path_factory.mktemp("shop"), np.random.default_rng(0)
    for folder in ("items", "asked"):
        (home / folder).mkdir()
    items = []
    for number in range(NUM_ITEMS):
        colour = np.array([255 * (number % 2), 255 * (number // 2 % 2), 255 * (number // 4 % 2)])
        Image.fromarray(np.broadcast_to(colour, (40, 40, 3)).astype(np.uint8)).save(home / "items" / f"{number}.png")
        title = f"w{number} w{number + 1} {number}"
        items.append({"sku": f"k{number}", "title": title, "photo": f"{number}.png", "price": number % 5})
    asked = []
    for number in range(90):
        item = int(rng.integers(0, 20))  # nobody asks for the last items
        words = f"w{item} w{item + 1} w{int(rng.integers(30, 40))} {number}"
        asked.append({"ask": words, "sku": f"k{item}", "relevance": 2, "shop": "ab"[number % 2]})
        if number % 3 == 0:
            asked.append({"ask": words, "sku": f"k{(item + 1) % 20}|k{(item + 2) % 20}", "relevance": "1|0"})
    write_csv(home / "items" / "items.csv", items)
    write_csv(home / "asked" / "asked.csv", [*asked, {"ask": "w1 lost", "sku": "gone", "relevance": 1}])
    return home


@pytest.fixture(scope="module")
def settings(tiny):
    return {
        "query": "ask",
        "document": ["title", "photo"],
        "text": tiny("bert"),
        "image": tiny("vit"),
        "fusion": {"name": "concat", "dim": 8},
        "columns": {"title": "text", "ask": "text"},
        "trainer": {"epochs": 0, "head_epochs": 2, "trackers": []},
        "report": {"bootstrap": 50, "errors": 3, "slices": ["shop"]},
        "data": {"split": [0.6, 0.2, 0.2]},
    }


@pytest.fixture(scope="module")
def tuned(shop, settings, tmp_path_factory):
    settings = settings | {"catalogue": str(shop / "items" / "items.csv")}
    out = tmp_path_factory.mktemp("run") / "model"
    return api.fit(str(shop / "asked" / "asked.csv"), out=out, config=settings, progress=False)


def test_test_queries_are_searched_in_the_whole_catalogue(tuned):
    there, back = tuned.results.tasks
    assert [task.target for task in (there, back)] == ["query → document", "document → query"]
    assert there.rows == 18 and f"among {NUM_ITEMS}" in there.sections[0].panels[0].title
    assert f"among {there.rows}" in back.sections[0].panels[0].title
    chance, after = (there.main(system).value for system in (there.systems[0], there.systems[-1]))
    assert after > chance
    assert {"ndcg@10", "map@10", "precision@10", "mean_recall@10"} <= there.systems[-1].metrics.keys()
    assert {part.value for part in there.slices} == {"a", "b"}


def test_every_row_is_used_or_rejected(tuned):
    tables = {table.split: table for table in tuned.results.tables}
    assert list(tables) == ["train", "val", "test", "catalogue"]
    assert sum(tables[split].rows_in for split in ("train", "val", "test")) == 121
    assert sum(tables[split].rows_rejected for split in ("train", "val", "test")) == 1
    columns = {column.column: column.missing for column in tuned.results.columns}
    assert columns["ask"] == columns["title"] == {"train": 0, "val": 0, "test": 0}
    assert tables["catalogue"].rows_in == tables["catalogue"].rows_used == NUM_ITEMS
    (rejected,) = map(json.loads, (tuned.folder / "rejected.jsonl").read_text().splitlines())
    assert (rejected["row"], rejected["column"], rejected["value"]) == (120, "sku", "gone")
    assert rejected["file"].endswith("asked.csv")


def test_the_key_is_told_and_kept(tuned):
    notes = tuned.results.warnings
    assert any("key" in note and "'sku'" in note for note in notes)
    assert any("relevance 0" in note for note in notes)
    config = tuned.bundle.config
    assert config.catalogue.key == "sku" and config.catalogue.relevance == "relevance"
    assert tuned.bundle.schema.columns["title"].kind == "text"


def test_the_folder_measures_the_same_rows_alike(tuned, shop):
    loaded, table = api.load(tuned.folder), shop / "asked" / "asked.csv"
    found = loaded.evaluate(str(table))
    assert (found.rows_in, found.rows_rejected) == (121, 1) and "'gone'" in found.problems[0]
    given = loaded.evaluate(pd.read_csv(table), catalogue=pd.read_csv(shop / "items" / "items.csv").assign(photo=None))
    assert found.metrics().keys() == given.metrics().keys()
    with pytest.raises(TableError, match="'photo'"):
        loaded.evaluate(str(table), catalogue=pd.read_csv(shop / "items" / "items.csv").drop(columns="photo"))
    few = pd.read_csv(shop / "items" / "items.csv").drop(columns="photo")
    assert loaded.evaluate(str(table), catalogue=few, missing_columns=["photo"]).metrics() == given.metrics()
    again = loaded.evaluate(str(table), catalogue=str(shop / "items" / "items.csv"))
    assert again.metrics() == found.metrics()
    assert found.tasks[0].rows == 90


def test_rows_with_their_documents_are_measured_as_pairs(tuned, shop):
    rows = pd.DataFrame({"ask": ["w1 w2", "w3 w4"], "title": ["w1 w2 1", "w3 w4 3"]})
    rows["photo"] = [str(shop / "items" / f"{number}.png") for number in (1, 3)]
    assert tuned.evaluate(rows).tasks[0].rows == 2


def test_the_catalogue_is_indexed_as_any_table(tuned, shop):
    index = tuned.index(str(shop / "items" / "items.csv"))
    assert len(index) == NUM_ITEMS
    assert "sku" in index.search("w1 w2", k=2).to_pandas()


def test_unreadable_documents_reject_the_rows_that_name_them(shop, settings, tmp_path):
    items = pd.read_csv(shop / "items" / "items.csv")
    items["photo"] = [str(shop / "items" / name) for name in items["photo"]]
    items.loc[3, "photo"] = "nowhere.png"
    asked = pd.read_csv(shop / "asked" / "asked.csv")[:120]
    more = {"data": {"split": [0.6, 0.2, 0.2], "max_rejected": 0.5}, "report": {"bootstrap": 0}}
    more["trainer"] = {"epochs": 0, "head_epochs": 0, "trackers": []}
    found = api.fit(asked, catalogue=items, config=settings | more, out=tmp_path / "model", progress=False)
    rejected = [json.loads(line) for line in (tmp_path / "model" / "rejected.jsonl").read_text().splitlines()]
    assert rejected and all("row 3" in item["why"] and item["column"] == "photo" for item in rejected)
    tables = {table.split: table for table in found.results.tables}
    assert tables["train"].rows_rejected == len({item["row"] for item in rejected})
    assert not any("no readable" in warning for warning in found.results.warnings)  # their titles are
    loaded = api.load(tmp_path / "model")
    with pytest.raises(ConfigError, match="evaluate\\(\\.\\.\\., catalogue="):
        loaded.evaluate(asked)


def test_queries_whose_documents_cannot_be_read_are_counted(shop, settings, tmp_path):
    items = pd.read_csv(shop / "items" / "items.csv")
    items["photo"] = [str(shop / "items" / name) for name in items["photo"]]
    items.loc[3, "photo"] = "nowhere.png"
    asked = [{"ask": f"w{n} w{n + 1} {n}", "sku": f"k{n % 8}"} for n in range(40)]
    more = {"document": "photo", "report": {"bootstrap": 0}, "trainer": {"epochs": 0, "head_epochs": 0, "trackers": []}}
    tables = {"val": pd.DataFrame(asked[24:32]), "test": pd.DataFrame(asked[32:])}
    train = pd.DataFrame([row for row in asked[:24] if row["sku"] != "k3"])
    found = api.fit(train, **tables, catalogue=items, config=settings | more, out=tmp_path / "m", progress=False)
    assert found.results.tasks[0].rows == 7
    assert any("1 test queries have no readable" in warning for warning in found.results.warnings)


def test_documents_of_relevance_0_are_negatives_in_training(shop, settings, tmp_path, monkeypatch):
    from fusetune.objectives.contrastive import ContrastiveObjective

    named, terms = [], ContrastiveObjective._terms
    monkeypatch.setattr(ContrastiveObjective, "_terms", lambda *given: named.append(given[1].named) or terms(*given))
    more = {"document": "title", "catalogue": str(shop / "items" / "items.csv"), "report": {"bootstrap": 0}}
    table, out = str(shop / "asked" / "asked.csv"), tmp_path / "model"
    found = api.fit(table, config=settings | more, out=out, progress=False)
    assert any(len(values) for values in named)
    assert any("but as negatives" in note for note in found.results.warnings)
    assert found.bundle.config.negative == [] and list(found.bundle.modalities) == ["ask", "title"]
    loaded = api.load(out)
    assert set(loaded.bundle.schema.columns) <= {"ask", "sku", "relevance", "shop", "title", "photo", "price"}
    assert loaded.evaluate(table).tasks[0].rows == 90
    more["objectives"] = {"contrastive": {"form": "sigmoid"}}
    other = api.fit(table, config=settings | more, out=tmp_path / "sigmoid", progress=False)
    assert any("nor as negatives, as the form" in note for note in other.results.warnings)


def test_tables_of_their_own_and_equal_sides(shop, settings, tmp_path):
    items = pd.DataFrame({"id": range(30), "text": [f"w{n} w{n + 1} {n}" for n in range(30)]})
    asked = pd.DataFrame({"ask": [f"w{n} w{n + 1} {n}" for n in range(20)], "wanted": [str(n) for n in range(20)]})
    more = {"document": "text", "columns": {"ask": "text", "text": "text"}, "report": {"bootstrap": 0}}
    trainer = {"epochs": 0, "head_epochs": 1, "trackers": [], "metric": "ndcg@3"}
    more |= {"catalogue": {"key": {"wanted": "id"}}, "trainer": trainer}
    parts = {"val": asked[12:16], "test": asked[16:]}
    found = api.fit(asked[:12], **parts, catalogue=items, config=settings | more, out=tmp_path / "m", progress=False)
    there = found.results.tasks[0]
    assert there.rows == 4 and "among 30" in there.sections[0].panels[0].title
    assert there.metric == "ndcg@3" and found.results.curve.metric.startswith("mean")
    assert "ndcg@3" in api.load(tmp_path / "m").evaluate(asked, catalogue=items).metrics()["query → document"]
    assert any("12 of 12 train pairs have equal sides" in warning for warning in found.results.warnings)


@pytest.mark.parametrize(
    ("more", "kind", "said"),
    [
        ({"catalogue": {"key": "sko"}}, TableError, "did you mean 'sku'"),
        ({"catalogue": {"relevance": "grades"}}, TableError, "no column 'grades'"),
        ({"document": ["title", "pict"]}, TableError, "no column 'pict'"),
        ({"query": "asks"}, TableError, "did you mean 'ask'"),
        ({"query": [], "document": []}, ConfigError, "no pairs"),
        ({"catalogue": {"keys": "sku"}}, ConfigError, "did you mean 'key'"),
    ],
)
def test_what_cannot_be_done_is_said(shop, settings, tmp_path, more, kind, said):
    more = settings | {"catalogue": {"path": str(shop / "items" / "items.csv"), **more.pop("catalogue", {})}} | more
    with pytest.raises(kind, match=said):
        api.fit(str(shop / "asked" / "asked.csv"), config=more, out=tmp_path / "m", progress=False)


def test_many_unknown_keys_stop_the_fit(shop, settings, tmp_path):
    asked = pd.read_csv(shop / "asked" / "asked.csv")
    asked.loc[::10, "sku"] = "unknown"
    with pytest.raises(TooManyRejected, match="'unknown'"):
        api.fit(asked, catalogue=str(shop / "items" / "items.csv"), config=settings, out=tmp_path / "m", progress=False)
    assert len((tmp_path / "m" / "rejected.jsonl").read_text().splitlines()) == 13


def test_a_catalogue_without_its_table(shop, settings, tmp_path):
    with pytest.raises(UserError, match=r"catalogue\.path"):
        api.fit(str(shop / "asked" / "asked.csv"), config=settings | {"catalogue": {"key": "sku"}}, progress=False)


def test_on_the_command_line(tuned, shop):
    runner, table = CliRunner(), str(shop / "asked" / "asked.csv")
    named = runner.invoke(app, ["evaluate", str(tuned.folder), table, f"catalogue={shop / 'items' / 'items.csv'}"])
    assert named.exit_code == 0 and "ndcg@10" in named.output, named.output
    wrong = runner.invoke(app, ["evaluate", str(tuned.folder), table, "trainer.epochs=3"])
    assert wrong.exit_code == 2 and "catalogue=TABLE" in wrong.output
