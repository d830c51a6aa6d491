"""Watching new tables: drift, tuning again, once a table, after kills, and mistakes."""

import json
import os

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from typer.testing import CliRunner

import fusetune as ft
from fusetune.cli.main import app
from fusetune.config.watch import DriftSettings, RetuneSettings, WatchConfig
from fusetune.deploy.versions import current_version
from fusetune.errors import ConfigError, FolderError
from fusetune.lifecycle import watch as watching
from fusetune.lifecycle.retune import open_store
from fusetune.lifecycle.watch import watch

SETTINGS = ["trainer.epochs=1", "trainer.head_epochs=3", "trainer.trackers=[]", "report.bootstrap=20"]


def rows(seed: int, num: int, *, moved: bool = False) -> pd.DataFrame:
    """Rows whose label is the sign of `u`; moved ones have a larger `v`, and the label c where it is above 2."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"u": rng.normal(size=num), "v": rng.normal(size=num) + 2 * moved})
    label = np.where(frame["u"] > 0, "a", "b")
    return frame.assign(label=np.where(moved & (frame["v"] > 2), "c", label))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watched")
    rows(0, 400).to_csv(folder / "old.csv", index=False)
    ft.fit(folder / "old.csv", "label", out=folder / "run", overrides=SETTINGS, progress=False)
    (folder / "incoming").mkdir()
    for age, (name, frame) in enumerate(
        {
            "same.csv": rows(1, 150),
            "moved.csv": rows(2, 300, moved=True),
            "unlabelled.csv": rows(3, 100, moved=True).assign(u=5.0).drop(columns="label"),
            "broken.csv": pd.DataFrame({"w": [1]}),
        }.items()
    ):
        path = folder / "incoming" / name
        frame.to_csv(path, index=False)
        os.utime(path, (1e9 + age, 1e9 + age))
    text = "model: run\ntables: incoming/*.csv\nretune: {settings: [trainer.epochs=1]}\n"
    (folder / "watch.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def tables(run):
    config = WatchConfig.from_yaml(run / "watch.yaml")
    return {table.file.rpartition("/")[2]: table for table in watch(config, once=True)}


def test_tables_are_taken_in_the_order_of_their_times(tables):
    assert list(tables) == ["same.csv", "moved.csv", "unlabelled.csv", "broken.csv"]


def test_a_table_without_drift_is_not_tuned_on(tables):
    table = tables["same.csv"]
    assert table.alarm is False and table.tuned is None and "no drift" in table.why


def test_a_labelled_table_that_drifted_is_tuned_on(tables, run):
    table = tables["moved.csv"]
    assert table.alarm and "v" in table.drifted and table.version == "1"
    assert table.tuned == "2" and table.promoted and "c" in ft.load(run / "run-versions").labels["label"]
    assert current_version(run / "run-versions") == "2"


def test_the_version_in_use_is_what_the_next_table_is_compared_with(tables):
    table = tables["unlabelled.csv"]
    assert table.version == "2" and table.alarm and "u" in table.drifted
    assert table.tuned is None and "no labels" in table.why


def test_a_table_that_cannot_be_read_is_recorded(tables):
    table = tables["broken.csv"]
    assert table.alarm is None and "u" in table.headline and table.tuned is None


def test_the_record_and_its_page(tables, run):
    folder = run / "run-versions" / "watch"
    record = json.loads((folder / "watch.json").read_text())["tables"]
    assert [table["file"].rpartition("/")[2] for table in record] == list(tables)
    page = (folder / "watch.html").read_text()
    for table in tables.values():
        assert not table.page or (run / "run-versions" / table.page).is_file()
        assert f"../{table.page}" in page
    assert "../2/retune.html" in page and "<script" not in page


def test_a_table_is_worked_on_once_whatever_its_name(tables, run):
    copy = run / "incoming" / "copy.csv"
    copy.write_bytes((run / "incoming" / "moved.csv").read_bytes())
    os.utime(copy, (1e9, 1e9))
    try:
        assert list(watch(WatchConfig.from_yaml(run / "watch.yaml"), once=True)) == []
    finally:
        copy.unlink()


def test_a_file_that_may_still_be_written_waits(tables, run):
    young = run / "incoming" / "young.csv"
    young.write_text("u,v\n1,2\n")
    config = WatchConfig.from_yaml(run / "watch.yaml")
    try:
        assert list(watch(config, once=True)) == []
        config.settle = 0
        assert [young.name in path.name for path in watching._settled(config)].count(True) == 1
    finally:
        young.unlink()


def test_a_version_that_was_tuned_before_a_kill_is_recorded_not_tuned_again(tables, run, monkeypatch):
    record = run / "run-versions" / "watch" / "watch.json"
    before = record.read_text()
    content = json.loads(before)
    content["tables"] = [table for table in content["tables"] if not table["file"].endswith("moved.csv")]
    record.write_text(json.dumps(content))
    monkeypatch.setattr(watching, "retune", lambda *args, **options: pytest.fail("tuned twice"))
    try:
        (table,) = watch(WatchConfig.from_yaml(run / "watch.yaml"), once=True)
        assert table.tuned == "2" and table.promoted
    finally:
        record.write_text(before)


def test_the_settings_reach_what_they_are_of(run, monkeypatch):
    """Every setting of the sections `drift` and `retune` is handed on."""
    config = WatchConfig.from_yaml(run / "watch.yaml")
    config.seed = 7
    config.drift = DriftSettings(alpha=0.02, rows=99, reference="r.csv")
    config.retune = RetuneSettings(replay=0.3, margin=0.07, confidence=0.6, settings=["trainer.epochs=2"])
    calls = {}

    def record(name):
        def call(*args, **options):
            calls[name] = options
            raise ConfigError("not done here")

        return call

    for name in ("drift", "retune"):
        monkeypatch.setattr(watching, name, record(name))
    monkeypatch.setattr(watching, "_not_tuned", lambda *args: "")
    store = open_store(config.model)
    watching._process(store, run / "incoming" / "same.csv", "0" * 64, config, False)
    assert calls["drift"] == {"reference": "r.csv", "alpha": 0.02, "rows": 99, "seed": 7, "progress": False}
    expected = {"replay": 0.3, "margin": 0.07, "confidence": 0.6, "seed": 7, "progress": False}
    assert calls["retune"] == expected | {"overrides": ["trainer.epochs=2"]}


def test_the_verb(tables, run, tmp_path):
    done = CliRunner().invoke(app, ["watch", str(run / "watch.yaml"), "--once"])
    assert done.exit_code == 0 and done.stdout == ""
    new = run / "incoming" / "new.csv"
    rows(9, 100).assign(v=9.0).drop(columns="label").to_csv(new, index=False)
    os.utime(new, (1e9, 1e9))
    try:
        done = CliRunner().invoke(app, ["watch", str(run / "watch.yaml"), "--once", "--json"])
    finally:
        new.unlink()
    assert done.exit_code == 3 and json.loads(done.stdout)["drifted"] == ["v"]


def test_two_processes_do_not_watch_one_model(tables, run):
    config = WatchConfig.from_yaml(run / "watch.yaml")
    with (
        FileLock(run / "run-versions" / "watch" / ".lock"),
        pytest.raises(ConfigError, match="another process watches"),
    ):
        list(watch(config, once=True))


def test_a_broken_record_is_refused(tmp_path):
    (tmp_path / "watch.json").write_text('{"tables": [{"file": 1}]}')
    with pytest.raises(FolderError, match="record of the tables"):
        watching._read(tmp_path / "watch.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tables: a.csv", "model: Field required"),
        ("model: a\ntables: b\nevry: 3", "every"),
        ("model: a\ntables: b\nretune: {when: sometimes}", "retune.when"),
        ("model: a\ntables: b\nretune: {replai: 1}", "replay"),
        ("model: a\ntables: b\nretune: {settings: [trainer.epoch=1]}", "epochs"),
        ("model: a\ntables: b\ndrift: {alpha: 1}", "drift.alpha"),
        ("- a", "not a mapping"),
    ],
)
def test_wrong_settings_are_named(text, words, tmp_path):
    (tmp_path / "watch.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        WatchConfig.from_yaml(tmp_path / "watch.yaml")
