"""Freezing rules and learning rates by depth."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fusetune.backbones.freeze import freeze, lr_scales
from fusetune.backbones.load import Backbone, load_backbone
from fusetune.errors import ConfigError
from fusetune.testing import tiny_models


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(tiny_models.make("bert", tmp_path_factory.mktemp("bert"))), "text")


@pytest.fixture
def model(bert: Backbone) -> nn.Module:
    return nn.ModuleDict({"text": bert, "image": load_backbone(None, "image"), "head": nn.Linear(4, 2)})


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_rules(model: nn.Module) -> None:
    everything = {name for name, _ in model.named_parameters()}
    assert freeze(model, "none").trainable == sum(p.numel() for p in model.parameters())
    assert trained(model) == everything
    freeze(model, "all")
    assert trained(model) == {"head.weight", "head.bias"}
    freeze(model, "only:heads")
    assert trained(model) == {name for name in everything if not name.startswith("text.")}
    freeze(model, "bottom:2")
    gone = ("text.model.embeddings.", "text.model.encoder.layer.0.")
    assert trained(model) == {name for name in everything if not name.startswith(gone)}
    freeze(model, r"regex:layer\.1\..*bias$")
    assert everything - trained(model)
    assert all("layer.1." in name and name.endswith("bias") for name in everything - trained(model))
    assert "(100.0 %)" in str(freeze(model, "bottom:0"))


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("bottom:9", "0 to 3: embeddings, encoder.layer.0"),
        ("bottom:-1", "whole number"),
        ("bottom", "unknown rule"),
        ("botom:3", "did you mean 'bottom:3'"),
        ("regex:(", "not a regular expression"),
        ("regex:layre", "no parameter's name matches"),
        ("regex:embeddings.wrong", "embeddings"),
        ("regex:", "unknown rule"),
    ],
)
def test_wrong_rules(model: nn.Module, rule: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        freeze(model, rule)


def test_frozen_blocks_have_no_dropout(bert: Backbone) -> None:
    freeze(bert, "bottom:1")
    bert.train()
    embeddings, layer = bert.model.get_submodule("embeddings"), bert.model.get_submodule("encoder.layer.0")
    assert not any(module.training for module in embeddings.modules())
    assert all(module.training for module in layer.modules())
    inputs = bert.collate_text([bert.tokenize("w1 w2")])
    assert not torch.equal(bert(**inputs).values, bert(**inputs).values), "dropout above the frozen block"
    freeze(bert, "all")
    bert.train()
    assert torch.equal(bert(**inputs).values, bert(**inputs).values)
    freeze(bert, "none")


def test_batch_norm_statistics_stay(tmp_path: Path) -> None:
    folder = str(tiny_models.make("mobilenet", tmp_path))
    pixels = torch.randn(3, 3, 32, 32) * 5
    for norm_eval in (True, False):
        backbone = load_backbone(folder, "image", norm_eval=norm_eval).train()
        before = {name: value.clone() for name, value in backbone.named_buffers()}
        backbone(pixel_values=pixels)
        same = all(torch.equal(before[name], value) for name, value in backbone.named_buffers())
        assert same is norm_eval


def test_learning_rates_by_depth(bert: Backbone) -> None:
    freeze(bert, "none")
    factors = [scale for scale, _ in lr_scales(bert, 0.5)]
    assert factors == [0.25, 0.5, 1.0]
    freeze(bert, "bottom:1")
    scales = lr_scales(bert, 0.5)
    assert [scale for scale, _ in scales] == [0.5, 1.0]
    assert not any("embeddings" in name for _, group in scales for name, _ in group)
    freeze(bert, "none")
    for wrong in (0.0, 1.5):
        with pytest.raises(ConfigError, match="layer_decay"):
            lr_scales(bert, wrong)


def test_checkpointing_gives_the_same_gradients(bert: Backbone, tmp_path: Path) -> None:
    plain = load_backbone(str(tiny_models.make("llama", tmp_path)), "text")
    other = load_backbone(str(tmp_path), "text")
    assert other.enable_checkpointing()
    inputs = plain.collate_text([plain.tokenize("w1 w2 w3"), plain.tokenize("w4")])
    for each in (plain, other):
        each.train()
        each(**inputs).values.square().sum().backward()
    for (name, one), two in zip(plain.named_parameters(), other.parameters(), strict=True):
        assert one.grad is not None and two.grad is not None
        torch.testing.assert_close(one.grad, two.grad, msg=name)
    assert not load_backbone(None, "image").enable_checkpointing()


@pytest.mark.parametrize("model", ["bert", "vit", "mobilenet"])
def test_only_biases_or_only_norms(tiny, model):
    kind = "text" if model == "bert" else "image"
    for rule in ("only:bias", "only:norm"):
        backbone = load_backbone(tiny(model), kind)
        found = freeze(backbone, rule)
        trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
        if rule == "only:bias":
            wanted = {name for name, _ in backbone.named_parameters() if name.endswith("bias")}
        else:
            norms = [path for path, m in backbone.named_modules() if isinstance(m, nn.LayerNorm | nn.BatchNorm2d)]
            wanted = {f"{path}.{name}" for path in norms for name in ("weight", "bias")}
        assert trained == wanted and trained
        assert found.trainable == sum(p.numel() for n, p in backbone.named_parameters() if n in wanted) < found.total


def test_only_biases_of_a_model_without_any(tiny):
    backbone = load_backbone(tiny("bert"), "text")
    for module in backbone.modules():
        if getattr(module, "bias", None) is not None:
            module.bias = None
    with pytest.raises(ConfigError, match="has no biases"):
        freeze(backbone, "only:bias")


def test_what_is_not_pretrained_is_trained_under_these_rules():
    backbone = load_backbone(None, "image")
    for rule in ("only:bias", "only:norm", "only:heads"):
        assert freeze(backbone, rule).trainable == sum(p.numel() for p in backbone.parameters())
