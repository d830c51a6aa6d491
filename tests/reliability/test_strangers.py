"""Folders from strangers: whatever is hidden in them is refused in our words, and nothing of it is run."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import fusetune
from fusetune.backbones.load import load_backbone
from fusetune.data.storage.feature_cache import FeatureCache
from fusetune.errors import BackboneError
from fusetune.security.untrusted import pickle_like, read_json, walk
from fusetune.training.checkpoints.checkpoint import Checkpoints

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("attacks", HERE / "attacks.py")
assert spec is not None and spec.loader is not None
attacks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(attacks)

os.environ.setdefault("CANARY", str(Path(tempfile.mkdtemp()) / "canary"))
attacks.make_attacks()
NAMES = list(attacks.ATTACKS)


@pytest.fixture(scope="module")
def home(fitted, tiny, shop_tables, quick, tmp_path_factory):
    """Sound folders to attack: a model's, backbones', and that of a run that was stopped."""
    home = tmp_path_factory.mktemp("strangers")
    shutil.copytree(fitted.folder, home / "model")
    for name in ("bert", "vit", "wav2vec2"):
        shutil.copytree(tiny(name), home / name)
    settings = {**quick, "trainer": {"epochs": 0, "head_epochs": 2, "trackers": [], "checkpoint_minutes": 0}}
    settings["columns"] = {name: {"role": "ignore"} for name in ("note", "photo", "voice")}
    save, saved = Checkpoints.save, []

    def stop(self, state):
        saved.append(save(self, state))
        if len(saved) == 3:
            raise KeyboardInterrupt
        return saved[-1]

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, "save", stop)
        fusetune.fit(shop_tables["train"], target="label", out=home / "run", config=settings, progress=False)
    return home


@pytest.fixture(scope="module")
def optimised(home):
    """What became of every attack in a Python without assertions."""
    done = subprocess.run(
        [sys.executable, "-O", str(HERE / "attacks.py"), str(home)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(["src", *filter(None, [os.environ.get("PYTHONPATH")])])},
        cwd=HERE.parents[1],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_all_were_tried_without_assertions_and_without_much_memory(optimised):
    assert optimised["debug"] is False and list(optimised["found"]) == NAMES
    assert optimised["mib"] < 1500


@pytest.mark.parametrize("name", NAMES)
def test_it_is_refused(optimised, name):
    assert optimised["found"][name] is None


TEMPLATE = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.system('touch CANARY') }}"


def test_a_template_is_carried_and_never_run(home, tmp_path):
    """A language model's chat template is no code of ours: nothing renders it."""
    canary = tmp_path / "canary"
    template = TEMPLATE.replace("CANARY", str(canary))
    folder = shutil.copytree(home / "model", tmp_path / "model")
    (encoder,) = (folder / "backbones").glob("text*")
    (encoder / "chat_template.jinja").write_text(template)
    attacks.edit(encoder / "tokenizer_config.json", lambda content: content.update(chat_template=template))
    attacks.listed(folder, f"backbones/{encoder.name}/chat_template.jinja")
    tuned = fusetune.load(folder)
    assert len(tuned.predict(tuned_rows(tmp_path))) == 1
    tuned.save(tmp_path / "again")
    fusetune.load(tmp_path / "again")
    assert not canary.exists()


def tuned_rows(folder: Path) -> Path:
    path = folder / "rows.csv"
    path.write_text("note,photo,voice,price,plan\nw1 {{ 7 * 7 }},,,3,pro\n")
    return path


def test_what_a_run_and_a_user_leave_in_a_folder_is_taken(home, tmp_path):
    folder = shutil.copytree(home / "model", tmp_path / "model")
    shutil.copytree(home / "run" / "checkpoints", folder / "checkpoints")
    wandb = folder / "logs" / "wandb" / "offline-run-1"
    wandb.mkdir(parents=True)
    (wandb / "run-1.wandb").write_bytes(b":W&B")
    (folder / "logs" / "wandb" / "latest-run").symlink_to("offline-run-1")
    (wandb / "debug-core.log").symlink_to("/root/.cache/wandb/logs/core-debug.log")  # as wandb does
    (folder / ".model.safetensors.4711").write_bytes(b"cut short")
    (folder / ".report.html.x7_abc").write_text("cut short")
    (folder / "out.csv").write_text("row,label\n")
    assert fusetune.load(folder).bundle.tasks


def test_a_folder_behind_a_link_is_taken(home, tmp_path):
    (tmp_path / "latest").symlink_to(home / "model")
    assert fusetune.load(tmp_path / "latest").bundle.tasks


def test_the_hub_s_cache_has_links_into_its_own_store_and_no_others(home, tmp_path):
    cache = tmp_path / "models--me--tiny"
    snapshot, blobs = cache / "snapshots" / "abc", cache / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    for number, path in enumerate(sorted((home / "bert").iterdir())):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    (snapshot / "pytorch_model.bin").write_bytes(attacks.a_pickle())  # the hub has both; it is never opened
    assert load_backbone(str(snapshot), "text").dim == 16
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(home / "bert" / "config.json")
    with pytest.raises(BackboneError, match="is a link"):
        load_backbone(str(snapshot), "text")


@pytest.mark.parametrize("part", ["model", "run"])
def test_nothing_that_is_written_is_a_pickle(home, part):
    """Optimiser and generators among it: safetensors, JSON, YAML and text."""
    names = walk(home / part)
    assert {Path(name).suffix for name in names if not name.startswith("logs/") and not name.endswith(".lock")} <= {
        *(".safetensors", ".json", ".jsonl", ".yaml", ".html", ".md")
    }
    assert not [name for name in names if pickle_like(home / part / name)]
    if part == "run":
        (state,) = {json.dumps(sorted(read_json(path))) for path in (home / "run").rglob("state.json")}
        assert "optimizer" in state and "processes" in state


CUT = {"digests": torch.zeros(1, 16, dtype=torch.uint8), "counts": torch.tensor([1]), "values": torch.zeros(1, 2)}


@pytest.mark.parametrize(
    "how",
    [
        {"digests": torch.zeros(1, 16)},
        {"digests": torch.zeros(16, dtype=torch.uint8)},
        {"counts": torch.tensor([-1])},
        {"counts": torch.tensor([2])},
        {"counts": torch.tensor(1)},
        {"counts": torch.tensor([1.0])},
        {"values": torch.zeros(1, 2, dtype=torch.float64)},
        {"values": torch.zeros(1, 3)},
        {"values": torch.zeros(2)},
        *attacks.HEADERS.values(),
        "pickle",
        "pipe",
        "link",
    ],
    ids=str,
)
def test_a_stranger_s_segment_in_the_cache_is_passed_over(tmp_path, how):
    cache = FeatureCache(tmp_path, 1)
    store = cache.store({"weights": "a"}, torch.float32)
    store.add(b"1" * 16, torch.ones(1, 2))
    store.flush()
    path = store.folder / "zzz.safetensors"
    if isinstance(how, dict):
        save_file({**CUT, **how}, path, metadata={"key": store.key})
    elif how == "pipe":
        attacks.pipe(path)
    elif how == "link":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(attacks.a_pickle() if how == "pickle" else how[0])
    again = cache.store({"weights": "a"}, torch.float32)
    assert len(again) == 1 and len(again.broken) == 1 and torch.equal(again.rows(b"1" * 16), torch.ones(1, 2))
