"""Tuning again: new labels, replay, the gate, versions and roll-back, and mistakes."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from sklearn.metrics import accuracy_score
from typer.testing import CliRunner

import fusetune as ft
from fusetune.cli.main import app
from fusetune.deploy.versions import current_version, point_to
from fusetune.errors import ConfigError, TableError, UserError
from fusetune.lifecycle.gate import aligned, check_rows
from fusetune.lifecycle.lineage import read_lineage
from fusetune.lifecycle.replay import replayed
from fusetune.lifecycle.retune import roll_back

SETTINGS = ["trainer.epochs=1", "trainer.head_epochs=3", "trainer.trackers=[]", "report.bootstrap=20"]


def rows(seed: int, num: int, *, new: bool) -> pd.DataFrame:
    """Rows whose label is the sign of `u`; new ones have the label c where `v` is large, which old ones never have."""
    rng = np.random.default_rng(seed)
    u, v = rng.normal(size=(2, num))
    v = v if new else np.minimum(v, 0.5)
    label = np.where(u > 0, "a", "b")
    return pd.DataFrame({"u": u, "v": v, "label": np.where(new & (v > 0.5), "c", label)})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("retune")
    rows(0, 400, new=False).to_csv(folder / "old.csv", index=False)
    rows(1, 300, new=True).to_csv(folder / "march.csv", index=False)
    rows(2, 200, new=True).to_csv(folder / "april.csv", index=False)
    ft.fit(folder / "old.csv", "label", out=folder / "run", overrides=SETTINGS, progress=False)
    return folder / "run"


@pytest.fixture(scope="module")
def store(run):
    """A folder of versions: 1 from the run, 2 promoted with a new label, 3 without a gain."""
    ft.retune(run, run.parent / "march.csv", progress=False)
    store = run.parent / "run-versions"
    ft.retune(store, run.parent / "april.csv", replay=0.25, progress=False)
    return store


def record(store, version):
    return json.loads((store / version / "retune.json").read_text())


def test_a_gain_with_a_new_label_is_promoted(store):
    told = record(store, "2")
    assert told["promoted"] and told["labels"] == {"label": ["c"]} and told["parent"] == "1"
    checks = {check["rows"]: check for check in told["checks"]}
    assert checks["new rows"]["after"]["value"] > checks["new rows"]["before"]["value"] + 0.15
    assert checks["old rows"]["passed"] and checks["old rows"]["num_rows"] == 40
    assert told["rows"] == {"old": 320, "new": 240}


def test_without_a_gain_the_old_version_stays(store):
    told = record(store, "3")
    assert not told["promoted"] and "fewer than 90%" in told["why"]
    assert current_version(store) == "2"
    assert "Not promoted" in (store / "3" / "retune.html").read_text()
    assert "Promoted" in (store / "2" / "retune.html").read_text()


def forgets(folder):
    """Make a run that knows a and b, and a table, three times as long, in which all rows of b are called c."""
    rng = np.random.default_rng(5)
    frame = pd.DataFrame({"u": rng.normal(size=800), "v": rng.normal(size=800)})
    frame["label"] = np.where(frame["u"] > 0, "a", "b")
    frame[:200].to_csv(folder / "old.csv", index=False)
    frame[200:].replace({"label": {"b": "c"}}).to_csv(folder / "may.csv", index=False)
    return ft.fit(folder / "old.csv", "label", out=folder / "run", overrides=SETTINGS, progress=False)


def test_a_gain_that_forgets_a_class_is_not_promoted(tmp_path):
    forgets(tmp_path)
    result = ft.retune(tmp_path / "run", tmp_path / "may.csv", replay=0, progress=False)
    checks = {check.rows: check for check in result.checks}
    assert checks["new rows"].passed and checks["new rows"].difference.value > 0.3
    assert not checks["old rows"].passed and checks["old rows"].difference.value < -0.3
    assert not result.promoted and "old rows" in result.why
    store = tmp_path / "run-versions"
    assert current_version(store) == "1" and ft.load(store).folder == store / "1"


def test_a_folder_of_versions_stands_for_the_one_in_use(store):
    assert ft.load(store).folder == store / current_version(store)
    frame = rows(21, 150, new=True)
    report = ft.drift(store, frame)  # against the held-out rows of the first run and of the new table
    assert report.num_reference == 40 + 40 + 30 + 30 and report.num_new == 150
    frame.to_csv(store.parent / "shown.csv", index=False)
    done = CliRunner().invoke(app, ["evaluate", str(store), str(store.parent / "shown.csv"), "--json"])
    assert done.exit_code == 0, done.output


def test_label_errors_of_a_version_are_among_all_its_rows(store):
    found = ft.label_errors(store / "2", count=3)
    rows = read_lineage(store, "2", ft.load(store / "1"))
    assert found.num_rows == len(rows.train) + len(rows.val)


def test_the_version_in_use_knows_old_and_new_labels(store):
    tuned = ft.load(store / "2")
    for seed, new in ((7, False), (8, True)):
        frame = rows(seed, 200, new=new)
        assert accuracy_score(frame["label"], tuned.predict(frame)["label"]) > 0.93


def test_test_rows_are_learned_by_no_version(store):
    first = ft.load(store / "1")
    cells = {
        version: {
            name: set(map(tuple, zip(table.cells("u"), table.cells("v"), strict=True)))
            for name, table in (("train", own.train), ("val", own.val), ("test", own.test))
        }
        for version in ("1", "2", "3")
        if (own := read_lineage(store, version, first))
    }
    tests = cells["1"]["test"] | cells["3"]["test"]
    assert cells["1"]["test"] < cells["2"]["test"] < cells["3"]["test"]
    for own in cells.values():
        assert not tests & (own["train"] | own["val"])
    assert len(cells["2"]["train"]) == 320 + 240 and len(cells["3"]["train"]) == 320 + 240 + 160
    assert record(store, "3")["rows"] == {"old": 140, "new": 160}


def test_replay_takes_a_share_of_every_class_the_hard_ones_among_them(store):
    tuned = ft.load(store / "2")
    train = read_lineage(store, "2", ft.load(store / "1")).train
    chosen = replayed(tuned.bundle, train, 0.2, seed=0)
    labels = pd.Series(train.cells("label"))
    shares = labels[chosen].value_counts() / labels.value_counts()
    assert set(shares.index) == {"a", "b", "c"} and shares.between(0.18, 0.22).all()
    margins = np.abs(np.asarray(train.cells("u"), dtype=float))
    assert margins[chosen].mean() < margins.mean()  # rows near the border have the largest losses
    assert (chosen == replayed(tuned.bundle, train, 0.2, seed=0)).all()
    assert replayed(tuned.bundle, train, 1.0, seed=0) is None and len(replayed(tuned.bundle, train, 0.0, seed=0)) == 3


def test_replay_has_a_row_of_each_class_of_every_target(tmp_path):
    """A label that no train row has is not known: the second target's rare one is replayed too."""
    rng = np.random.default_rng(6)
    frame = pd.DataFrame({"u": rng.normal(size=300), "kind": np.repeat(["x", "y"], [285, 15])})
    frame["label"] = np.where(frame["u"] > 0, "a", "b")
    frame = frame.sample(frac=1, random_state=0)
    frame.to_csv(tmp_path / "t.csv", index=False)
    tuned = ft.fit(tmp_path / "t.csv", ["label", "kind"], out=tmp_path / "run", overrides=SETTINGS, progress=False)
    for seed in range(5):
        chosen = replayed(tuned.bundle, ft.Table.read(tmp_path / "t.csv"), 0.0, seed=seed)
        assert set(frame["kind"].iloc[chosen]) == {"x", "y"} and set(frame["label"].iloc[chosen]) == {"a", "b"}


def test_the_gate_sees_what_was_forgotten(store):
    knows, forgot = (ft.load(store / version).bundle for version in ("2", "1"))
    table = read_lineage(store, "2", ft.load(store / "1")).test
    (check,) = check_rows("old rows", table, knows, knows, least=-0.01, confidence=0.9, seed=0)
    assert check.passed and check.difference.value == 0 and check.probability == 1
    new = ft.Table.read(rows(9, 200, new=True))
    (check,) = check_rows("new rows", new, forgot, knows, least=0.0, confidence=0.9, seed=0)
    assert check.passed and check.difference.value > 0.15
    truth = rows(9, 200, new=True)["label"]
    known = ft.load(store / "1").predict(rows(9, 200, new=True))["label"]
    assert check.before.value == pytest.approx(accuracy_score(truth, known))


def test_scores_are_put_in_the_order_of_the_new_labels(store):
    before, after = (next(iter(ft.load(store / version).bundle.targets.values())) for version in ("1", "2"))
    scores = np.array([[0.3, 0.7]])
    assert aligned(before, after, scores).tolist() == [[0.3, 0.7, 0.0]]
    assert aligned(after, after, scores) is scores


def test_roll_back_and_forth(store):
    assert roll_back(store) == "1" and current_version(store) == "1"
    done = CliRunner().invoke(app, ["rollback", str(store), "--to", "2"])
    assert done.exit_code == 0 and current_version(store) == "2"
    point_to(store, "1")
    with pytest.raises(ConfigError, match="first one"):
        roll_back(store)
    with pytest.raises(UserError, match="no version"):
        roll_back(store, "../run")
    point_to(store, "2")


def test_the_same_table_is_tuned_on_once(store):
    with pytest.raises(ConfigError, match="version 2 was tuned on these rows"):
        ft.retune(store, store.parent / "march.csv", progress=False)


def test_two_processes_do_not_tune_at_once(store):
    with FileLock(store / ".lock"), pytest.raises(ConfigError, match="another process"):
        ft.retune(store, store.parent / "old.csv", progress=False)


def test_a_table_that_changed_is_refused(store, tmp_path):
    copy = shutil.copytree(store, tmp_path / "versions")
    told = record(copy, "2") | {"sha256": "0" * 64}
    (copy / "2" / "retune.json").write_text(json.dumps(told))
    new = tmp_path / "may.csv"
    rows(3, 100, new=True).to_csv(new, index=False)
    with pytest.raises(ConfigError, match="not as it was"):
        ft.retune(copy, new, progress=False)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"replay": 2}, ConfigError, "out of range"),
        ({"table": "nowhere.csv"}, ConfigError, "no file"),
        ({"folder": "."}, ConfigError, "neither the folder of a run"),
    ],
)
def test_mistakes(store, change, error, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        ft.retune(**{"folder": store, "table": store.parent / "april.csv", "progress": False} | change)


def test_too_few_new_rows(store, tmp_path):
    rows(4, 3, new=True).to_csv(tmp_path / "few.csv", index=False)
    with pytest.raises(TableError, match="too few labelled rows"):
        ft.retune(store, tmp_path / "few.csv", progress=False)


def test_a_share_of_the_old_rows_tunes_encoders_and_the_model_before_teaches(store, tmp_path):
    copy = shutil.copytree(store, tmp_path / "versions")
    rows(31, 100, new=True).to_csv(tmp_path / "may.csv", index=False)
    rows(32, 100, new=True).to_csv(tmp_path / "june.csv", index=False)
    point_to(copy, "2")
    ft.retune(copy, tmp_path / "may.csv", replay=0.5, distill=2.0, progress=False)
    config = ft.load(copy / "4").bundle.config
    assert config.objectives == {"distill": {"teacher": str(copy / "2"), "weight": 2.0}}
    # two tables, the first run's and march.csv: those that are tuned on again, the rest of both, then may.csv
    assert config.data.probe_only == [2, 3]
    assert record(copy, "4")["distill"] == 2.0 and record(copy, "4")["rows"] == {"old": 280, "new": 70}
    point_to(copy, "4")
    ft.retune(copy, tmp_path / "june.csv", progress=False)
    config = ft.load(copy / "5").bundle.config
    assert config.objectives == {} and config.data.probe_only == []
    assert len(read_lineage(copy, "5", ft.load(copy / "1")).train) == 320 + 240 + 70 + 70


def test_texts_start_from_the_tuned_encoder(fitted, shop, write_csv, tmp_path):
    folder, all_rows = shop
    new = write_csv(folder / "again.csv", all_rows[60:100], ["note", "photo", "voice", "price", "plan", "label"])
    result = ft.retune(
        fitted.folder, new, store=tmp_path / "versions", overrides=["trainer.head_epochs=1"], progress=False
    )
    config = ft.load(tmp_path / "versions" / "2").bundle.config
    assert config.text.name == config.image.name == config.audio.name == str(tmp_path / "versions" / "1")
    assert config.data.probe_only == [] and config.objectives == {}
    assert result.notes == [] and {check.rows for check in result.checks} == {"old rows", "new rows"}
