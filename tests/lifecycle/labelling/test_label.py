"""Labelling in rounds: what a person fills in is never lost, wrong files are refused by name, and runs repeat."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import fusetune as ft
from fusetune.cli.main import app
from fusetune.errors import ConfigError, FolderError, TableError
from fusetune.lifecycle.labelling import label as module
from fusetune.lifecycle.labelling.folder import LabelFolder


def frame(rows: int = 160, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    kind = rng.integers(3, size=rows)
    size = kind + 0.35 * rng.normal(size=rows)
    return pd.DataFrame({"size": size, "weight": rng.normal(size=rows), "kind": np.array(["low", "mid", "top"])[kind]})


@pytest.fixture
def pool(tmp_path) -> Path:
    frame().drop(columns="kind").to_csv(tmp_path / "pool.csv", index=False)
    return tmp_path / "pool.csv"


@pytest.fixture
def home(tmp_path) -> Path:
    return tmp_path / "labelling"


def call(pool, home, **options):
    return ft.label(pool, out=home, target="kind", **{"count": 20, **options})


def fill(home: Path, number: int, answer=None, *, keep: int | None = None) -> pd.DataFrame:
    """Write labels into a round's file; `keep` of them where given."""
    truth = {f"{size:.10f}": kind for size, kind in frame()[["size", "kind"]].itertuples(index=False)}
    path = home / f"round-{number}.csv"
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    labels = [truth[f"{float(size):.10f}"] if answer is None else answer for size in rows["size"]]
    rows["kind"] = [label if keep is None or at < keep else "" for at, label in enumerate(labels)]
    rows.to_csv(path, index=False)
    return rows


def test_rounds_from_no_label_to_the_end(pool, home):
    state = call(pool, home)
    assert (state.round, state.missing, state.strategy, state.new) == (1, 20, "typical", True)
    assert not state.rounds and state.gain is None and not np.isfinite(state.accuracy.value)
    for number in range(1, 5):
        fill(home, number)
        state = call(pool, home)
        assert state.round == number + 1 and state.num_random == 4 * number
    assert state.strategy == "margin"
    assert [one.labels for one in state.rounds] == [16, 32, 48, 64]
    assert state.accuracy.value > 0.7 and state.accuracy.low < state.accuracy.value < state.accuracy.high
    asked = [row for number in range(1, 6) for row in pd.read_csv(home / f"round-{number}.csv")["row_id"]]
    assert len(asked) == len(set(asked)) == 100
    labelled = pd.read_csv(home / "labelled.csv")
    merged = labelled.round(9).merge(frame().round(9), on=["size", "weight"])
    assert len(labelled) == len(merged) == 80 and (merged["kind_x"] == merged["kind_y"]).all()
    content = json.loads((home / "label.json").read_text())
    assert content["missing"] == 20 and content["rounds"][0]["agreement"] is None
    page = (home / "label.html").read_text()
    assert "<script" not in page and "<svg" in page and state.asked[0].row in page


def test_a_call_without_new_labels_changes_no_file_of_a_person(pool, home):
    call(pool, home)
    rows = fill(home, 1, keep=7)
    before = (home / "round-1.csv").read_bytes(), (home / "rounds.json").read_bytes()
    for _ in range(2):
        state = call(pool, home)
        assert (state.round, state.missing, state.new) == (1, 13, False)
        assert [one.row for one in state.asked] == rows["row_id"][7:].tolist()
        assert ((home / "round-1.csv").read_bytes(), (home / "rounds.json").read_bytes()) == before
    assert len((home / "labels.jsonl").read_text().splitlines()) == 7
    state = call(pool, home, partial=True)
    assert (state.round, state.new) == (2, True)


def test_random_rows_teach_nothing_and_are_a_fixed_sample_of_the_pool(pool, home):
    call(pool, home)
    fill(home, 1)
    state = call(pool, home)
    folder = LabelFolder.read(home)
    assert folder.random == folder.reserved[:8]
    assert not {row for batch in folder.batches for row in batch.chosen} & set(folder.reserved)
    assert state.rounds[0].labels == 16
    wrong = home.parent / "wrong"
    call(pool, wrong)
    rows = fill(wrong, 1)
    random = rows["row_id"].isin(LabelFolder.read(wrong).random)
    rows.loc[random, "kind"] = "top"
    rows.to_csv(wrong / "round-1.csv", index=False)
    other = call(pool, wrong)
    assert [one.row for one in other.asked] == [one.row for one in state.asked]  # no probe saw their labels
    assert other.accuracy.value < state.accuracy.value


def test_labels_survive_the_loss_of_the_file_that_they_were_in(pool, home):
    call(pool, home)
    fill(home, 1)
    first = call(pool, home)
    (home / "round-1.csv").unlink()
    again = call(pool, home)
    assert again.labels == first.labels and [one.row for one in again.asked] == [one.row for one in first.asked]
    empty = pd.read_csv(home / "round-1.csv")  # written again, without labels, which say nothing
    assert empty["kind"].isna().all() and call(pool, home).labels == first.labels


def test_a_kill_between_the_record_and_the_files(pool, home, monkeypatch):
    call(pool, home)
    rows = fill(home, 1)
    whole = shutil.copytree(home, home.parent / "whole")
    expected = call(pool, whole)
    calls = []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return writes(*arguments)

    writes = module.write_files
    monkeypatch.setattr(module, "write_files", killed)
    with pytest.raises(KeyboardInterrupt):
        call(pool, home)
    monkeypatch.undo()
    assert not (home / "round-2.csv").exists()
    state = call(pool, home)
    assert (state.round, state.missing, state.new) == (2, 20, False)
    assert (home / "round-2.csv").read_bytes() == (whole / "round-2.csv").read_bytes()
    assert [one.row for one in state.asked] == [one.row for one in expected.asked]
    assert pd.read_csv(home / "round-1.csv")["kind"].tolist() == rows["kind"].tolist()


def test_a_torn_last_line_of_the_labels_is_read_again(pool, home):
    call(pool, home)
    fill(home, 1)
    first = call(pool, home)
    log = home / "labels.jsonl"
    log.write_bytes(log.read_bytes()[:-30])
    assert call(pool, home).labels == first.labels
    assert all(json.loads(line) for line in log.read_text().splitlines())
    log.write_bytes(log.read_bytes()[:-1])  # whole, but without its end
    rows = fill(home, 1)
    rows.loc[0, "kind"] = "mid" if rows.loc[0, "kind"] != "mid" else "low"
    rows.to_csv(home / "round-1.csv", index=False)
    call(pool, home)
    assert len([json.loads(line) for line in log.read_text().splitlines()]) == 21
    log.write_text("{\n" + log.read_text())
    with pytest.raises(FolderError, match=r"labels\.jsonl"):
        call(pool, home)


def test_a_corrected_label_counts_and_the_first_stays_in_the_record(pool, home):
    call(pool, home)
    rows = fill(home, 1)
    call(pool, home)
    first, rows.loc[3, "kind"] = rows.loc[3, "kind"], "other"
    rows.to_csv(home / "round-1.csv", index=False)
    state = call(pool, home)
    assert state.labels["other"] == 1 and any("changed" in note for note in state.notes)
    entries = [json.loads(line) for line in (home / "labels.jsonl").read_text().splitlines()]
    given = [entry["label"] for entry in entries if entry["row"] == rows.loc[3, "row_id"]]
    assert given == [first, "other"] and len(entries) == 21


def test_labels_in_another_form_and_near_misses(pool, home):
    call(pool, home, labels=["low", "mid", "top"])
    rows = fill(home, 1)
    rows.loc[0, "kind"], rows.loc[1, "kind"], rows.loc[2, "kind"] = " TOP ", "lwo", "?"
    rows.to_csv(home / "round-1.csv", index=False)
    with pytest.raises(TableError, match="1 label is not known") as error:
        call(pool, home, labels=["low", "mid", "top"])
    assert "did you mean 'low'" in str(error.value) and rows.loc[1, "row_id"] in str(error.value)
    entries = {one["row"]: one["label"] for one in map(json.loads, (home / "labels.jsonl").read_text().splitlines())}
    assert len(entries) == 19 and entries[rows.loc[0, "row_id"]] == "top" and entries[rows.loc[2, "row_id"]] is None
    state = call(pool, home, labels=["low", "mid", "top"], new_labels=True)
    assert state.round == 2 and state.labels["lwo"] == 1 and any("did you mean" in note for note in state.notes)


def test_the_first_labels_are_one_in_any_case(pool, home):
    call(pool, home)
    rows = fill(home, 1)
    rows["kind"] = ["Low", "low", "LOW", "1.0", "1"] * 4
    rows.to_csv(home / "round-1.csv", index=False)
    assert call(pool, home).labels == {"1.0": 8, "Low": 12}


def test_without_random_rows_nothing_is_reserved_or_measured(pool, home):
    state = call(pool, home, random_share=0)
    fill(home, 1)
    state = call(pool, home, random_share=0)
    assert LabelFolder.read(home).reserved == [] and state.num_random == 0 and not state.accuracy.known
    assert [one.labels for one in state.rounds] == [20] and "right on" not in state.headline


def test_rows_that_cannot_be_labelled_are_not_asked_for_again(pool, home):
    call(pool, home)
    fill(home, 1, answer="?")
    state = call(pool, home)
    assert (state.round, state.missing, state.labels) == (2, 20, {})
    assert not set(pd.read_csv(home / "round-2.csv")["row_id"]) & set(pd.read_csv(home / "round-1.csv")["row_id"])


def test_imports_of_label_studio(pool, home):
    call(pool, home)
    truth = fill(home, 1).set_index("row_id")["kind"]
    fill(home, 1, keep=0)
    tasks = json.loads((home / "round-1.tasks.json").read_text())
    assert all("predictions" not in task for task in tasks)
    for task in tasks:
        value = {"text": [truth[task["data"]["row_id"]]]}
        task["annotations"] = [{"result": [{"from_name": "label", "type": "textarea", "value": value}]}]
    (home.parent / "export.json").write_text(json.dumps(tasks))
    state = call(pool, home, imports=[home.parent / "export.json"])
    assert state.round == 2 and sum(state.labels.values()) == 20
    random = set(LabelFolder.read(home).random)
    for task in json.loads((home / "round-2.tasks.json").read_text()):
        assert ("predictions" in task) == (task["data"]["row_id"] not in random)
    with (home.parent / "export.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["annotation_id", "label", "row_id", "size"])
        writer.writerows([n, "mid", task["data"]["row_id"], "1"] for n, task in enumerate(tasks[:2]))
    changed = call(pool, home, imports=[home.parent / "export.csv"])
    assert sum(changed.labels.values()) == 20 and changed.labels != state.labels


def test_two_different_labels_of_a_row_in_one_file_are_no_label(pool, home):
    call(pool, home)
    rows = fill(home, 1)
    twice = pd.concat([rows, rows[:2]])
    twice.iloc[-1, -1] = "other"
    twice.to_csv(home / "round-1.csv", index=False)
    for _ in range(2):
        state = call(pool, home)
        assert (state.round, state.missing) == (1, 1) and state.asked[0].row == rows.loc[1, "row_id"]
        assert any("without a majority" in note for note in state.notes)
    assert len((home / "labels.jsonl").read_text().splitlines()) == 19


def test_pictures_as_paths_and_as_bytes(shop, home, tiny):
    folder, rows = shop
    table = pd.DataFrame(rows)[["photo", "price"]].dropna()[:60].astype({"price": float})
    table.to_csv(folder / "photos.csv", index=False)
    options = {"count": 10, "overrides": [f"image={tiny('vit')}"]}
    state = call(folder / "photos.csv", home, **options)
    task = json.loads((home / "round-1.tasks.json").read_text())[0]["data"]
    assert task["photo"].startswith("/data/local-files/?d=") and (folder / task["photo"][21:]).is_file()
    assert state.asked[0].cells[0].images
    filled = pd.read_csv(home / "round-1.csv").assign(kind=["red", "blue"] * 5)
    filled.to_csv(home / "round-1.csv", index=False)
    call(folder / "photos.csv", home, **options)
    assert all(Path(path).is_file() for path in pd.read_csv(home / "labelled.csv")["photo"])
    table["photo"] = [(folder / path).read_bytes() for path in table["photo"]]
    other = call(table, home.parent / "bytes", **options)
    assert list(pd.read_csv(other.files["rows"])) == ["row_id", "price", "why", "kind"]
    assert json.loads(Path(other.files["tasks"]).read_text())[0]["data"]["photo"].startswith("data:image/png;base64,")
    assert pd.read_parquet(other.files["labelled"]).columns.tolist() == ["photo", "price", "kind"]


def test_a_pool_with_more_rows_in_another_order_and_repeated_ones(pool, home):
    call(pool, home)
    fill(home, 1)
    more = frame(60, seed=9).drop(columns="kind")
    old = pd.read_csv(pool)
    pd.concat([more, old.sample(frac=1, random_state=0), old[:30]]).to_csv(pool, index=False)
    state = call(pool, home)
    assert state.round == 2 and sum(state.labels.values()) == 20
    assert any("30 rows of the pool repeat" in note for note in state.notes)
    assert any("60 more rows" in note for note in state.notes)
    old[80:].to_csv(pool, index=False)
    fewer = call(pool, home)
    assert any("not in the pool any more" in note for note in fewer.notes)
    assert sum(fewer.labels.values()) < 20
    old.to_csv(pool, index=False)
    assert sum(call(pool, home).labels.values()) == 20


def test_labels_in_the_pool_count_but_not_those_of_the_random_sample(pool, home):
    rows = frame()
    rows.loc[50:, "kind"] = None
    state = ft.label(rows, out=home, target="kind", count=20)
    assert state.strategy == "margin" and state.rounds[0].round == 0 and state.rounds[0].labels == 50
    folder = LabelFolder.read(home)
    everything = frame()
    state = ft.label(everything, out=home, target="kind", count=20)
    assert state.rounds[-1].labels == 160 - len(folder.reserved)
    assert state.num_random == len(folder.random)


def test_the_end_of_the_pool_and_of_the_rounds(pool, home):
    call(pool, home, rounds=1)
    fill(home, 1)
    state = call(pool, home, rounds=1)
    assert "limit of 1" in state.stop and state.round == 1 and not state.new
    for number in range(2, 30):
        state = call(pool, home, count=60, go_on=True)
        if not state.new:
            break
        fill(home, number)
    assert "every row" in state.stop and state.missing == 0
    assert len(pd.read_csv(home / "labelled.csv")) > 140


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    table = frame(120, seed=5).assign(price=1.5)
    table["price"] = np.random.default_rng(0).normal(size=120)
    table.to_csv(folder / "train.csv", index=False)
    settings = ["trainer.epochs=1", "report.bootstrap=20", "trainer.trackers=[]", "trainer.head_epochs=1"]
    settings += ["report.alone=none", "report.single=false", "columns.price.role=ignore"]
    return ft.fit(folder / "train.csv", "kind", out=folder / "run", overrides=settings, progress=False)


def test_a_model_brings_its_rows_and_labels(tuned, pool, home):
    state = ft.label(pool, tuned, out=home, count=20)
    assert state.target == "kind" and state.rounds[0].labels > 80 and state.strategy == "margin"
    fill(home, 1)
    assert ft.label(pool, tuned, out=home, count=20).accuracy.value > 0.7
    fill(home, 2, answer="huge")
    with pytest.raises(TableError, match="20 labels are not known"):
        ft.label(pool, tuned, out=home, count=20)


def test_a_model_whose_rows_are_gone_still_helps(tuned, pool, home, monkeypatch):
    monkeypatch.setattr(tuned.bundle.config, "train", ["gone.csv"])
    state = ft.label(pool, tuned, out=home, count=20)
    assert not state.rounds and any("cannot be read again" in note for note in state.notes)


def test_mistakes(tuned, pool, home):
    with pytest.raises(ConfigError, match="--target"):
        ft.label(pool, out=home)
    with pytest.raises(ConfigError, match="no strategy 'margn'"):
        call(pool, home, strategy="margn")
    with pytest.raises(ConfigError, match="out of range"):
        call(pool, home, count=2)
    with pytest.raises(TableError, match="too few"):
        call(frame()[:10], home)
    call(pool, home)
    with pytest.raises(ConfigError, match="another column"):
        ft.label(pool, out=home, target="sort", count=20)
    (home / "strange.csv").write_text("a,b\n1,2\n")
    with pytest.raises(TableError, match="no rows of this labelling"):
        call(pool, home, imports=[home / "strange.csv"])
    with pytest.raises(TableError, match=r"none\.json"):
        call(pool, home, imports=[home / "none.json"])
    (home / "rounds.json").write_text("{}")
    with pytest.raises(FolderError, match="rounds"):
        call(pool, home)


def test_two_processes_do_not_label_in_one_folder(pool, home):
    from filelock import FileLock

    call(pool, home)
    with FileLock(home / ".lock"), pytest.raises(ConfigError, match="another process"):
        call(pool, home)


def test_the_verb(tuned, pool, home):
    run = CliRunner().invoke
    done = run(app, ["label", str(tuned.folder), str(pool), "--out", str(home), "--count", "20", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["missing"] == 20
    done = run(app, ["label", str(tuned.folder), str(pool), "--out", str(home)])
    assert done.exit_code == 0 and "20 rows of round 1 have no label yet" in " ".join(done.stdout.split())
    done = run(app, ["label", str(pool), "-t", "kind", "columns.weight.role=ignore", "--out", str(home.parent / "b")])
    assert done.exit_code == 0 and (home.parent / "b" / "round-1.csv").is_file()
    for wrong in ([str(pool), str(tuned.folder)], [str(tuned.folder)], [str(pool), str(pool)], [str(pool)], ["a=b"]):
        assert run(app, ["label", *wrong, "--out", str(home.parent / "c")]).exit_code == 2
