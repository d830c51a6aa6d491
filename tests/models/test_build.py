"""From settings to modalities and models: one load a backbone, and options that are checked."""

from __future__ import annotations

import pytest

from fusetune.config.adapter import AdapterConfig
from fusetune.config.backbone import BackboneConfig
from fusetune.config.section import NamedConfig
from fusetune.errors import ConfigError
from fusetune.modalities.number import NumberModality
from fusetune.models.build import Backbones, build_modalities, build_model, build_task, options_of


@pytest.fixture
def backbones(tiny):
    return Backbones({"text": BackboneConfig(name=tiny("bert")), "image": BackboneConfig(name=tiny("clip"))})


def test_a_backbone_is_loaded_once_for_all_its_columns(backbones, tiny):
    columns = {"a": ("text", {}), "b": ("text", {}), "c": ("text", {"backbone": tiny("t5")}), "d": ("image", {})}
    made = build_modalities(columns, backbones)
    assert made["a"].backbone is made["b"].backbone is not made["c"].backbone
    tasks = {"t": build_task("t", "regression", {})}
    tasks["t"].fit([1.0, 2.0])
    model = build_model(made, tasks, NamedConfig(name="gated", dim=8))
    assert len(model.encoders) == 3 and model.routes["a"] == model.routes["b"]


def test_settings_of_the_kind_reach_the_backbone(tiny):
    setting = BackboneConfig(name=tiny("bert"), pool="cls", max_tokens=9)
    backbone = Backbones({"text": setting}).get("text", None)
    assert (backbone.pool, backbone.max_tokens) == ("cls", 9)


def test_fusion_dim_and_input_dropout_are_the_models(backbones):
    tasks = {"t": build_task("t", "regression", {})}
    tasks["t"].fit([1.0, 2.0])
    made = {"x": NumberModality("x")}
    model = build_model(made, tasks, NamedConfig(name="concat", dim=24, input_dropout=0.3))
    assert model.fusion.dim == 24 and model.projections[0].dropout.p == 0.3


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("number", {"bin": 4}, "did you mean 'bins'"),
        ("number", {"bins": -1}, "bins of 0 or more"),
        ("category", {"maxsize": 4}, "did you mean 'max_size'"),
    ],
)
def test_wrong_options_of_a_column(backbones, kind, options, said):
    with pytest.raises(ConfigError, match=said):
        build_modalities({"x": (kind, options)}, backbones)


@pytest.mark.parametrize(
    ("name", "options", "said"), [("regresion", {}, "'regression'"), ("regression", {"los": 1}, "'loss'")]
)
def test_wrong_tasks(name, options, said):
    with pytest.raises(ConfigError, match=f"did you mean {said}"):
        build_task("t", name, options)


def test_wrong_fusions():
    tasks = {"t": build_task("t", "regression", {})}
    tasks["t"].fit([1.0, 2.0])
    with pytest.raises(ConfigError, match="did you mean 'gated'"):
        build_model({"x": NumberModality("x")}, tasks, NamedConfig(name="gate"))
    with pytest.raises(ConfigError, match="no setting 'dimm'"):
        build_model({"x": NumberModality("x")}, tasks, NamedConfig(name="gated", dimm=3))


def test_options_are_a_constructors_keyword_settings():
    assert options_of(NumberModality) == ["bins"]
    assert options_of(NumberModality, "bins") == []


@pytest.mark.parametrize(("asked", "adapter"), [(None, "lora"), ("none", None), ("ia3", "ia3")])
def test_large_language_models_that_write_have_an_adapter_unless_asked_otherwise(tiny, monkeypatch, asked, adapter):
    def adapter_of(least: int) -> str | None:
        monkeypatch.setattr("fusetune.models.build.ADAPTED", least)
        chosen = None if asked is None else AdapterConfig(name=asked)
        setting = BackboneConfig(name=tiny("llama_writer"), adapter=chosen)
        built = Backbones({"text": setting}).get("prompt", None).adapter
        return built and built.name

    assert adapter_of(1) == adapter
    assert adapter_of(10**9) == (None if asked is None else adapter)
