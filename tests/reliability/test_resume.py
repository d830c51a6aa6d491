"""A run that ends at any update and is gone on with comes to the weights of the run that never ended, bit by bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from stopping import CASES, settings, weights

from fusetune import api
from fusetune.errors import ConfigError, FolderError, StorageError, TableError
from fusetune.fitting.run_folder import FOLDER, RUN
from fusetune.training import loop
from fusetune.training.checkpoints import checkpoint
from fusetune.training.checkpoints import checkpoint_manager as manager
from fusetune.training.checkpoints.checkpoint import Checkpoints

FAST = ("augmented",)


class Killed(BaseException):
    """The process ends here, for all that its code can do."""


def ends_at(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Let the process end in the `number`-th update; the list grows by one for each."""
    begun: list[int] = []
    real = loop.update

    def update(*args, **kwargs):
        begun.append(len(begun))
        if len(begun) == number:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "update", update)
    return begun


def killed(monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], out: Path, number: int) -> None:
    with monkeypatch.context() as patched, pytest.raises(Killed):
        ends_at(patched, number)
        api.fit(config=config, out=out, resume=True, progress=False)


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c in FAST else pytest.mark.slow) for c in CASES])
def test_the_same_weights_wherever_it_ends(base, tmp_path, monkeypatch, case):
    config = settings(base, case, tmp_path)
    with monkeypatch.context() as patched:
        begun = ends_at(patched, 0)
        whole = api.fit(config=config, out=tmp_path / "whole", progress=False)
    total = len(begun)
    if case == "each alone":  # the model itself, without those that see one column
        total = whole.results.curve.points[-1].step
    assert 8 <= total <= len(begun)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    late = (total - 4, 2)  # candidates for the fusion are begun anew
    for number in late if case == "fusion of their choice" else (total // 3, total // 2):  # from where it went on
        killed(monkeypatch, config, tmp_path / "parts", number)
    parts = api.fit(config=config, out=tmp_path / "parts", resume=True, progress=False)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole") != {}
    assert not (tmp_path / "parts" / FOLDER).exists()
    first, second = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "parts"))
    assert second["curve"] == first["curve"]
    assert any("and went on from" in warning for warning in parts.results.warnings)
    assert not any("and went on from" in warning for warning in whole.results.warnings)


@pytest.fixture(scope="module")
def small(tiny, shop_tables):
    """Settings without pictures and sounds."""
    return {
        **{name: str(path) for name, path in shop_tables.items()},
        "target": ["label"],
        "columns": {"photo": {"role": "ignore"}, "voice": {"role": "ignore"}},
        "text": {"name": tiny("bert")},
        "fusion": {"name": "concat", "dim": 16},
        "trainer": {"epochs": 1, "head_epochs": 1, "batch_size": 20, "trackers": [], "checkpoint_minutes": 0},
        "report": {"bootstrap": 0, "alone": "none"},
        "data": {"cache": "none"},
    }


@pytest.fixture(scope="module")
def ended(small, tmp_path_factory):
    """The folder of a run that ended in its fourth update."""
    folder = tmp_path_factory.mktemp("ended") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        killed(monkeypatch, small, folder, 4)
    return folder


@pytest.fixture
def stopped(small, ended, tmp_path):
    """Settings, and a folder of such a run for the test alone."""
    return small, Path(shutil.copytree(ended, tmp_path / "run"))


@pytest.mark.parametrize("part", manager.STATE_PARTS)
def test_a_checkpoint_that_lacks_a_part_is_refused_by_its_name(stopped, part):
    kept = Checkpoints(stopped[1] / FOLDER / "tune")
    state = kept.newest()
    del state[part]
    kept.save(state)
    with pytest.raises(
        FolderError, match=rf"(?s)tune: the checkpoint lacks the {manager.STATE_PARTS[part]}.*--no-resume"
    ):
        manager.CheckpointManager(kept.folder, 5.0)


def test_a_watcher_whose_state_is_missing_is_named(stopped):
    config, folder = stopped
    kept = Checkpoints(folder / FOLDER / "tune")
    state = kept.newest()
    del state["watchers"]["BestStep"]
    kept.save(state)
    with pytest.raises(FolderError, match="lacks the state of BestStep"):
        api.fit(config=config, out=folder, resume=True, progress=False)


def test_what_of_a_stopped_run_has_to_be_said(stopped):
    config, folder = stopped
    with pytest.raises(ConfigError, match=r"(?s)has a run that was stopped.*--resume goes on.*--no-resume deletes"):
        api.fit(config=config, out=folder, progress=False)
    api.fit(config=config, out=folder, resume=False, progress=False)
    assert not (folder / FOLDER).exists()


def test_the_folder_is_enough_to_go_on(stopped, monkeypatch):
    _, folder = stopped
    monkeypatch.chdir(folder)
    done = api.resume(folder, progress=False)
    assert done.folder == folder and any("went on" in said for said in done.results.warnings)
    assert api.resume(folder, progress=False).bundle.fingerprint == done.bundle.fingerprint  # it is finished: loaded


def test_there_must_be_something_to_go_on_with(tmp_path):
    with pytest.raises(ConfigError, match="has no run to go on with"):
        api.resume(tmp_path, progress=False)


def test_other_settings_are_named_and_some_may_change(stopped):
    config, folder = stopped
    other = {**config, "trainer": {**config["trainer"], "lr": 0.01, "clip": 3}}
    with pytest.raises(
        ConfigError, match=r"(?s)begun with other settings: trainer.clip, trainer.lr.*Expected: trainer"
    ):
        api.fit(config=other, out=folder, resume=True, progress=False)
    free = {**config, "trainer": {**config["trainer"], "checkpoint_minutes": 5, "workers": 1}}
    api.fit(config=free, out=folder, resume=True, progress=False)


def test_another_table_is_refused(stopped, tmp_path):
    config, folder = stopped
    shop = Path(config["train"])
    before = shop.read_text()
    try:
        shop.write_text(before.replace("w1 ", "w2 ", 1))
        with pytest.raises(TableError, match=r"(?s)the train rows are not what the run .* was begun with"):
            api.fit(config=config, out=folder, resume=True, progress=False)
    finally:
        shop.write_text(before)


def test_another_encoder_is_refused(stopped):
    config, folder = stopped
    path = Path(config["text"]["name"]) / "model.safetensors"
    before = path.read_bytes()
    try:
        checkpoint.save_file({name: value + 1 for name, value in load_file(path).items()}, path)
        with pytest.raises(TableError, match=r"(?s)the backbone text_.* is not what the run .* was begun with"):
            api.fit(config=config, out=folder, resume=True, progress=False)
    finally:
        path.write_bytes(before)


def test_a_damaged_newest_checkpoint_costs_a_step_and_is_told(stopped):
    config, folder = stopped
    newest = sorted((folder / FOLDER / "tune").glob("[0-9]*-*"))[-1]
    (newest / "tensors.safetensors").write_bytes(b"x")
    done = api.fit(config=config, out=folder, resume=True, progress=False)
    assert any("damaged and was passed over" in said for said in done.results.warnings)


def test_another_number_of_threads_is_told(stopped):
    config, folder = stopped
    path = folder / FOLDER / RUN
    known = json.loads(path.read_text())
    known["facts"]["others"]["threads"] += 1
    path.write_text(json.dumps(known))
    done = api.fit(config=config, out=folder, resume=True, progress=False)
    assert any("The run began with threads" in said and "was resumed with" in said for said in done.results.warnings)


def test_a_folder_has_one_run_at_a_time(small, tmp_path, monkeypatch):
    met = []
    real = loop.update

    def update(*args, **kwargs):
        if not met:
            with pytest.raises(ConfigError, match=r"(?s)another run is writing to .*Do: wait for it") as caught:
                api.fit(config=small, out=tmp_path / "run", progress=False)
            met.append(caught)
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "update", update)
    api.fit(config=small, out=tmp_path / "run", progress=False)
    assert met


def test_a_full_disk_ends_the_run_and_leaves_what_was_kept(small, tmp_path, monkeypatch):
    whole = api.fit(config=small, out=tmp_path / "whole", progress=False)
    saved = []
    real = checkpoint.save_file

    def save(tensors, path):
        saved.append(path)
        if len(saved) > 4:
            raise OSError(28, "No space left on device")
        real(tensors, path)

    with (
        monkeypatch.context() as patched,
        pytest.raises(StorageError, match=r"(?s)[\d,]+ bytes cannot be written to .*tune"),
    ):
        patched.setattr(checkpoint, "save_file", save)
        api.fit(config=small, out=tmp_path / "run", progress=False)
    api.fit(config=small, out=tmp_path / "run", resume=True, progress=False)
    assert weights(whole.folder) == weights(tmp_path / "run")


def test_without_checkpoints_nothing_is_kept(small, tmp_path, monkeypatch):
    killed(monkeypatch, {**small, "trainer": {**small["trainer"], "checkpoint_minutes": None}}, tmp_path / "run", 5)
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_half_a_first_checkpoint_is_no_run_to_go_on_with(small, tmp_path):
    (tmp_path / "run" / FOLDER / "tune" / ".partial-4711").mkdir(parents=True)
    config = {**small, "trainer": {**small["trainer"], "epochs": 0, "checkpoint_minutes": None}}
    api.fit(config=config, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / FOLDER).exists()
