"""The model folder: whole or refused; nothing outside it is read; no pickle."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from fusetune import api
from fusetune.deploy.bundle import BUNDLE, FORMAT, WEIGHTS, file_hash, load_bundle, save_bundle
from fusetune.errors import FolderError, StorageError


@pytest.fixture
def folder(fitted, tmp_path):
    return shutil.copytree(fitted.folder, tmp_path / "model")


def edit(folder, change) -> None:
    content = json.loads((folder / BUNDLE).read_text())
    change(content)
    (folder / BUNDLE).write_text(json.dumps(content))


def test_everything_comes_back(fitted, folder):
    bundle = load_bundle(folder)
    for name, value in fitted.bundle.model.state_dict().items():
        assert torch.equal(bundle.model.state_dict()[name].cpu(), value.cpu()), name
    assert bundle.config == fitted.bundle.config
    assert bundle.schema.to_dict() == fitted.bundle.schema.to_dict()
    assert bundle.fingerprint == fitted.bundle.fingerprint and len(bundle.fingerprint) == 64
    assert bundle.metrics == fitted.bundle.metrics and bundle.metrics["label"]["accuracy"] > 0
    assert not bundle.model.training
    assert {n: m.state() for n, m in bundle.modalities.items()} == {
        n: m.state() for n, m in fitted.bundle.modalities.items()
    }


def test_it_lists_the_files_with_versions_and_labels(folder):
    content = json.loads((folder / BUNDLE).read_text())
    assert content["format"] == FORMAT and content["tasks"]["label"]["labels"] == ["no", "yes"]
    assert {"fusetune", "torch", "transformers", "python"} <= content["versions"].keys()
    assert {WEIGHTS, "config.yaml", "schema.yaml"} <= content["files"].keys()
    assert all(file_hash(folder / name) == digest for name, digest in content["files"].items())
    listed = {name for name in content["files"] if name.startswith("backbones/")}
    there = {p.relative_to(folder).as_posix() for p in (folder / "backbones").rglob("*") if p.is_file()}
    assert listed == there


def test_backbone_folders_hold_no_weights(folder):
    assert not [p for p in (folder / "backbones").rglob("*") if p.suffix in (".safetensors", ".bin", ".pt")]


@pytest.mark.parametrize("name", [WEIGHTS, "config.yaml", "schema.yaml", "backbones"])
def test_a_changed_file_is_refused(folder, name):
    path = folder / name if name != "backbones" else next((folder / name).rglob("config.json"))
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(FolderError, match=rf"(?s){path.name} is not the file that was saved.*SHA-256.*Do:"):
        load_bundle(folder)


@pytest.mark.parametrize("name", [WEIGHTS, "schema.yaml"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FolderError, match=f"{name} is missing"):
        load_bundle(folder)


@pytest.mark.parametrize("path", ["../secret.txt", "/etc/hostname", "backbones/../../secret.txt"])
def test_a_file_outside_is_not_read(folder, path):
    secret = folder.parent / "secret.txt"
    secret.write_text("secret")
    edit(folder, lambda content: content["files"].update({path: file_hash(secret)}))
    with pytest.raises(FolderError, match="outside itself"):
        load_bundle(folder)


def test_a_link_is_not_followed(folder):
    weights = folder.parent / "weights"
    (folder / WEIGHTS).rename(weights)
    (folder / WEIGHTS).symlink_to(weights)
    with pytest.raises(FolderError, match="outside itself"):
        load_bundle(folder)


def test_a_backbone_outside_is_not_read(folder):
    def change(content):
        content["columns"]["note"]["encoder"] = "../../elsewhere"

    edit(folder, change)
    with pytest.raises(FolderError, match="outside itself"):
        load_bundle(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("files"),
        lambda content: content.update(files=["a"]),
        lambda content: content.update(columns=None),
        lambda content: content.update(fusion={"name": ["x"]}),
        lambda content: content.update(fusion={"name": "nonsense"}),
        lambda content: content.update(fusion={"name": "attention", "dim": 32}),
        lambda content: content["tasks"]["label"].update(task="nonsense"),
        lambda content: content["tasks"]["label"].update(state={}),
        lambda content: content["columns"]["price"].update(kind="nonsense"),
        lambda content: content["columns"]["price"].update(state={"bins": "x"}),
        lambda content: content["columns"].pop("price"),
        lambda content: content["columns"]["note"].update(encoder="nowhere"),
        lambda content: content.pop("metrics"),
        lambda content: content.update(format="x"),
    ],
)
def test_nonsense_inside_is_a_folder_error(folder, change):
    edit(folder, change)
    with pytest.raises(FolderError):
        load_bundle(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_broken_list_of_files(folder, text):
    (folder / BUNDLE).write_text(text)
    with pytest.raises(FolderError, match="bundle"):
        load_bundle(folder)


def test_a_later_format_says_to_upgrade(folder):
    edit(folder, lambda content: content.update(format=FORMAT + 1))
    with pytest.raises(FolderError, match=r"(?s)later fusetune.*pip install"):
        load_bundle(folder)


@pytest.mark.parametrize("made", [True, False])
def test_no_model_folder(tmp_path, made):
    path = tmp_path / "x"
    if made:
        path.mkdir()
    with pytest.raises(FolderError, match=r"(?s)no model folder.*fusetune fit"):
        api.load(path)


def test_a_folder_that_cannot_be_written(fitted, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="file"):
        save_bundle(fitted.bundle, tmp_path / "file")
    with pytest.raises(StorageError, match="cannot be made or written"):
        api.fit("t.csv", target="a", out=tmp_path / "file" / "inside")


def test_a_save_that_was_cut_short_is_noticed(fitted, folder):
    other = {name: value + 1 for name, value in fitted.bundle.model.state_dict().items() if value.is_floating_point()}
    from safetensors.torch import save_file

    save_file(other, str(folder / WEIGHTS))  # the list of files still has the old hash
    with pytest.raises(FolderError, match="not the file that was saved"):
        load_bundle(folder)


def test_settings_do_not_change_by_loading(shop_tables, quick, tmp_path, monkeypatch):
    monkeypatch.chdir(shop_tables["train"].parent)
    columns = {name: {"role": "ignore"} for name in ("note", "photo", "voice")}
    config = {**quick, "columns": columns, "train": "train.csv", "target": "label"}
    api.fit(config=config, out=tmp_path / "a", progress=False)
    loaded = api.load(tmp_path / "a")
    assert loaded.bundle.config.train == [str(shop_tables["train"])]
    loaded.save(tmp_path / "b")
    assert (tmp_path / "a" / "config.yaml").read_bytes() == (tmp_path / "b" / "config.yaml").read_bytes()


def test_metrics_that_are_undefined_are_null(fitted, tmp_path):
    content = json.loads((fitted.folder / BUNDLE).read_text(), parse_constant=pytest.fail)
    assert all(value is None or np.isfinite(value) for value in content["metrics"]["label"].values())
