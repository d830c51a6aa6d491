"""Folded batch norms and channels-last tensors give the vectors and gradients of the plain encoder."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from fusetune.backbones.adapters import adapt, merge
from fusetune.backbones.backbone import Backbone
from fusetune.backbones.convolutions import (
    FoldedConvolution,
    fold_batch_norms,
    is_convolutional,
    unfold_batch_norms,
)
from fusetune.backbones.freeze import freeze
from fusetune.backbones.load import load_backbone, restore_backbone
from fusetune.config.adapter import AdapterConfig

FOLDED = ["mobilenet", "resnet"]


def loaded(tiny, name: str) -> tuple[Backbone, dict[str, torch.Tensor]]:
    """An encoder whose batch norms do something, and tensors of three pictures."""
    backbone = load_backbone(tiny(name), "image")
    rng = torch.Generator().manual_seed(0)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.5, generator=rng)
            module.running_var.uniform_(0.5, 2.0, generator=rng)
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5, generator=rng)
                module.bias.normal_(0, 0.5, generator=rng)
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 255, (3, *backbone.image_size)).astype(np.uint8) for _ in range(3)]
    return backbone, backbone.collate_images(pictures)


def num_folded(backbone: Backbone) -> int:
    return sum(isinstance(module.__dict__.get("forward"), FoldedConvolution) for module in backbone.modules())


def passed(backbone: Backbone, tensors: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    backbone.zero_grad()
    values = backbone(**tensors).values
    (values * torch.linspace(-1, 1, values.numel()).view_as(values)).sum().backward()
    grads = {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}
    return values.detach(), grads


def plain(backbone: Backbone) -> Backbone:
    other = copy.deepcopy(backbone)
    unfold_batch_norms(other)
    other.channels_last = False
    return other


@pytest.mark.parametrize("rule", ["none", "only:norm", "bottom:2"])
@pytest.mark.parametrize("name", FOLDED)
def test_vectors_and_gradients_are_those_of_the_plain_encoder(tiny, name, rule):
    backbone, tensors = loaded(tiny, name)
    assert num_folded(backbone) == sum(isinstance(module, nn.BatchNorm2d) for module in backbone.modules()) > 0
    assert backbone.channels_last
    other = plain(backbone)
    assert num_folded(other) == 0
    for each in (backbone, other):
        freeze(each, rule)
        each.train()
    (values, grads), (wanted, wanted_grads) = passed(backbone, tensors), passed(other, tensors)
    assert torch.allclose(values, wanted, atol=1e-5 * float(wanted.abs().max()))
    assert grads.keys() == wanted_grads.keys()
    for key, grad in grads.items():
        assert torch.allclose(grad, wanted_grads[key], atol=1e-4 * float(wanted_grads[key].abs().max())), key


def test_norms_that_learn_from_the_batch_are_not_folded(tiny):
    backbone, tensors = loaded(tiny, "mobilenet")
    backbone.norm_eval = False
    other = plain(backbone)
    backbone.train(), other.train()
    assert torch.allclose(backbone(**tensors).values, other(**tensors).values, atol=1e-4)
    for (name, buffer), (_, wanted) in zip(backbone.named_buffers(), other.named_buffers(), strict=True):
        assert torch.allclose(buffer.float(), wanted.float(), atol=1e-5), name
    backbone.eval(), other.eval()
    assert torch.allclose(backbone(**tensors).values, other(**tensors).values, atol=1e-4)


def test_a_copy_computes_with_its_own_weights(tiny):
    backbone, tensors = loaded(tiny, "mobilenet")
    before = backbone(**tensors).values
    other = copy.deepcopy(backbone)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    assert num_folded(other) == num_folded(backbone)
    assert torch.equal(backbone(**tensors).values, before)
    assert torch.allclose(other(**tensors).values, plain(other)(**tensors).values, atol=1e-4)


def test_a_saved_encoder_is_folded_when_it_is_restored(tiny, tmp_path):
    backbone, tensors = loaded(tiny, "mobilenet")
    backbone.save(tmp_path / "encoder")
    restored = restore_backbone(tmp_path / "encoder")
    restored.load_state_dict(backbone.state_dict())
    assert num_folded(restored) == num_folded(backbone)
    assert torch.equal(restored(**tensors).values, backbone(**tensors).values)


def test_an_adapter_on_convolutions_sees_what_it_saw(tiny):
    backbone, tensors = loaded(tiny, "mobilenet")
    before = backbone(**tensors).values
    adapt(backbone, AdapterConfig(name="lora", rank=2, targets="conv"))
    assert num_folded(backbone) == 0
    assert torch.allclose(backbone(**tensors).values, before, atol=1e-5)
    with torch.no_grad():
        for name, parameter in backbone.model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    wanted = backbone(**tensors).values
    merge(backbone)
    assert torch.allclose(backbone(**tensors).values, wanted, atol=1e-4)


class Odd(nn.Module):
    """Convolutions whose output is also read by others than the norm, is changed in place, or is computed twice."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.conv, self.norm = how, nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.again = nn.Conv2d(4, 4, 1)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        out = self.conv(values)
        if self.how == "read by others":
            return self.norm(out) + self.again(out)
        if self.how == "changed in place":
            return self.norm(out.relu_())
        if self.how == "norm used twice":
            return self.norm(out) + self.norm(self.again(out))
        return self.norm(out)


class Wrapped(nn.Module):
    """What `fold_batch_norms` needs of an encoder."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def hidden_states(self, *, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        return self.model(pixel_values), torch.ones(len(pixel_values), 1, dtype=torch.bool), None


@pytest.mark.parametrize(
    ("how", "folded"),
    [("plainly", 1), ("read by others", 0), ("changed in place", 0), ("norm used twice", 0)],
)
def test_only_what_the_norm_alone_reads_is_folded(how, folded):
    # The norm's statistics are those of a new one, with which vectors alone could not tell.
    encoder = Wrapped(Odd(how)).eval()
    pictures = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert fold_batch_norms(encoder, {"pixel_values": pictures}) == folded
    with torch.no_grad():
        encoder.model.norm.running_mean.fill_(0.3)
        encoder.model.norm.running_var.fill_(4.0)
        found = encoder.model(pictures)
        unfold_batch_norms(encoder)
        assert torch.allclose(found, encoder.model(pictures), atol=1e-5)


def test_transformers_over_patches_stay_as_they_are(tiny):
    assert not is_convolutional(load_backbone(tiny("vit"), "image").model)
    assert not load_backbone(tiny("vit"), "image").channels_last
    assert not load_backbone(tiny("bert"), "text").channels_last
