"""Exports to ONNX: checked on rows, whole or not at all, and refused by name before anything is computed."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fusetune.backbones.load import load_backbone
from fusetune.deploy.export import onnx
from fusetune.deploy.export.check import require_equal
from fusetune.deploy.export.description import check_exportable, pixel_steps
from fusetune.errors import ConfigError, ExportError
from fusetune.modalities.text import TextModality
from fusetune.runtime.files import EXPORT, RUNTIME
from fusetune.tasks.abilities import Exported


def test_what_was_checked_stands_in_the_folder(exported):
    folder, _, table, report = exported
    assert report == json.loads((folder / EXPORT).read_text())
    assert report["rows"] == 13 and report["source"] == str(table)
    float32, int8 = report["variants"]["float32"], report["variants"]["int8"]
    assert max(float32["largest_difference"].values()) < 1e-4 and set(float32["agreement"].values()) == {1.0}
    assert float32["largest_difference"].keys() == {"label", "rating", "stars", "tags"} == float32["metrics"].keys()
    assert float32["metrics"] == pytest.approx(report["eager"]["metrics"], abs=1e-3)
    assert max(int8["largest_difference"].values()) < 0.2
    assert float32["rows_per_second"] > 0 and float32["latency_p95_ms"] >= float32["latency_p50_ms"] > 0


def test_inputs_are_named_by_column_with_dynamic_axes(exported):
    import onnx as library

    folder, *_ = exported
    graph = library.load(str(folder / "model.onnx")).graph
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in graph.input
    }
    assert shapes == {given["name"]: given["shape"] for given in json.loads((folder / RUNTIME).read_text())["inputs"]}
    assert shapes["photo.pixel_values"] == ["rows", "photo.parts", 3, 32, 32]
    assert shapes["note.input_ids"] == ["rows", "note.tokens"]
    assert [value.name for value in graph.output] == ["label", "rating", "stars", "tags"]


def test_only_layers_of_encoders_that_do_not_narrow_are_quantised(exported):
    import onnx as library

    folder, *_ = exported
    counts = {}
    for name in ("model.onnx", "model.int8.onnx"):
        kinds = [node.op_type for node in library.load(str(folder / name)).graph.node]
        counts[name] = {kind: kinds.count(kind) for kind in ("MatMulInteger", "Conv")}
    before, after = counts.values()
    assert before["MatMulInteger"] == 0
    assert after["MatMulInteger"] == 10  # two layers of six products, but for those that narrow
    assert before["Conv"] == after["Conv"]


def test_a_difference_fails_and_leaves_no_folder(exported, tmp_path, monkeypatch):
    _, tuned, table, _ = exported
    out = tmp_path / "export"
    out.mkdir()
    (out / "before").touch()

    def fails(*args):
        raise ExportError("it differs")

    monkeypatch.setattr(onnx, "trace", fails)
    with pytest.raises(ExportError):
        tuned.save_onnx(out, check=table)
    assert [path.name for path in tmp_path.iterdir()] == ["export"] and (out / "before").exists()
    require_equal({"largest_difference": {"a": 9e-5}}, "float32")
    for wrong in (2e-4, float("nan")):
        with pytest.raises(ExportError, match="'b'"):
            require_equal({"largest_difference": {"a": 0.0, "b": wrong}}, "float32")


def test_what_cannot_be_exported_is_named_before_anything_is_computed(exported, tiny, tmp_path):
    _, tuned, table, _ = exported
    bundle = tuned.bundle
    chat = TextModality("note", backbone=bundle.modalities["note"].backbone, chat=True)
    with pytest.raises(ConfigError, match="'note'"):
        check_exportable(replace(bundle, modalities={**bundle.modalities, "note": chat}))
    with pytest.raises(ConfigError, match="trees"):
        check_exportable(replace(bundle, stack=object()))
    with pytest.raises(ConfigError, match="float16"):
        tuned.save_onnx(tmp_path / "out", variants=["float61"], check=table)
    with pytest.raises(ConfigError, match="--check"):
        tuned.save_onnx(tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["vit", "dinov2", "resnet", "mobilenet", "clip", "siglip"])
def test_pixels_equal_those_of_the_image_processor(tiny, name):
    inputs = load_backbone(tiny(name), "image").inputs
    steps = pixel_steps(inputs)
    assert steps is not None and steps == type(steps).from_dict(json.loads(json.dumps(steps.to_dict())))
    rng = np.random.default_rng(1)
    for width, height in ((7, 200), (90, 41), (32, 32), (500, 333)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        ours, theirs = steps.prepare(image), inputs.prepare(image)
        np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(steps.collate([ours]), inputs.collate([theirs])["pixel_values"].numpy())


def test_an_image_processor_with_other_steps_has_no_pixel_steps(tiny):
    inputs = load_backbone(tiny("vit"), "image").inputs
    inputs.processor.size = {"longest_edge": 32}
    assert pixel_steps(inputs) is None


def test_answers_of_the_exported_tasks_become_the_same_columns(exported):
    from fusetune.tasks.output_columns import columns_of

    _, tuned, *_ = exported
    rng = np.random.default_rng(0)
    for task in tuned.bundle.targets.values():
        assert isinstance(task, Exported)
        answers = rng.uniform(size=(5, len(task.labels))) if task.labels else rng.normal(size=5)
        assert columns_of(json.loads(json.dumps(task.output_form())), answers) == task.columns(answers)
