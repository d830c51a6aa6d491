"""A tuned model's folder as a backbone: its weights, its key, and what cannot be taken over."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from fusetune.backbones.load import load_backbone
from fusetune.errors import BackboneError, FolderError
from fusetune.security.model_folder import file_hash


@pytest.mark.parametrize("kind", ["text", "image", "audio"])
def test_the_encoder_comes_with_its_tuned_weights(fitted, kind):
    (encoder,) = (one for one in fitted.bundle.model.encoders.values() if getattr(one, "kind", "") == kind)
    loaded = load_backbone(str(fitted.folder), kind)
    assert loaded.pretrained and not loaded.training and loaded.pool == encoder.pool and loaded.dim == encoder.dim
    assert loaded.key != encoder.key and loaded.key.isidentifier()
    tuned = encoder.state_dict()
    assert all(torch.equal(value, tuned[name].cpu()) for name, value in loaded.state_dict().items())
    assert len(loaded.state_dict()) == len(tuned)


def test_tuning_changed_what_is_taken_over(fitted, tiny):
    loaded, start = load_backbone(str(fitted.folder), "text"), load_backbone(tiny("bert"), "text")
    assert any(not torch.equal(value, start.state_dict()[name]) for name, value in loaded.state_dict().items())


def listed_anew(folder):
    """Make the list of files that of the files that are there."""
    content = json.loads((folder / "bundle.json").read_text())
    there = sorted(path for path in (folder / "backbones").rglob("*") if path.is_file())
    paths = [folder / name for name in ("model.safetensors", "config.yaml", "schema.yaml")] + there
    content["files"] = {path.relative_to(folder).as_posix(): file_hash(path) for path in paths}
    (folder / "bundle.json").write_text(json.dumps(content))


def copied(fitted, tmp_path):
    return shutil.copytree(fitted.folder, tmp_path / "model")


def test_a_kind_that_the_model_lacks_is_refused(fitted, tmp_path):
    folder = copied(fitted, tmp_path)
    (text,) = (path for path in (folder / "backbones").iterdir() if path.name.startswith("text"))
    shutil.rmtree(text)
    listed_anew(folder)
    with pytest.raises(BackboneError, match="no encoder for columns of kind text"):
        load_backbone(str(folder), "text")


def test_two_encoders_of_a_kind_are_refused(fitted, tmp_path):
    folder = copied(fitted, tmp_path)
    (text,) = (path for path in (folder / "backbones").iterdir() if path.name.startswith("text"))
    shutil.copytree(text, text.with_name("text_other"))
    with pytest.raises(FolderError, match="no file of a model folder"):
        load_backbone(str(folder), "text")
    listed_anew(folder)
    with pytest.raises(BackboneError, match="several encoders"):
        load_backbone(str(folder), "text")


def test_another_pooling_is_refused(fitted):
    with pytest.raises(BackboneError, match="another pooling"):
        load_backbone(str(fitted.folder), "text", pool="last")


def test_weights_that_are_missing_or_broken_are_refused(fitted, tmp_path):
    folder = copied(fitted, tmp_path)
    (image,) = (path for path in (folder / "backbones").iterdir() if path.name.startswith("image"))
    described = json.loads((image / "backbone.json").read_text())
    image.rename(image.with_name("image_elsewhere"))
    assert described["kind"] == "image"
    listed_anew(folder)
    with pytest.raises(BackboneError, match="does not hold its whole encoder"):
        load_backbone(str(folder), "image")
    (folder / "model.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(FolderError, match="not the file that was saved"):
        load_backbone(str(folder), "audio")
    listed_anew(folder)
    with pytest.raises(BackboneError, match="cannot be loaded safely"):
        load_backbone(str(folder), "audio")
