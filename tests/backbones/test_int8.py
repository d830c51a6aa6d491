"""Encoders in 8-bit integers: near float32, each token by itself, and nothing of the float model changed or copied."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fusetune.backbones import int8
from fusetune.backbones.int8 import Int8Linear, in_int8, num_linear, quantise
from fusetune.backbones.load import load_backbone

pytestmark = pytest.mark.skipif(not int8.has_int8(), reason="the processor has no AVX512-VNNI")


def layer(num_in: int, num_out: int, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(num_in, num_out, bias=bias).requires_grad_(False)


@pytest.mark.parametrize(("num_in", "num_out"), [(1, 1), (3, 5), (7, 200), (384, 96)])
@pytest.mark.parametrize("bias", [True, False])
def test_near_the_layer_it_stands_for(num_in: int, num_out: int, bias: bool) -> None:
    exact = layer(num_in, num_out, bias=bias)
    values = torch.randn(4, 9, num_in) * torch.logspace(-3, 3, 9).unsqueeze(1)  # tokens of very different size
    found, wanted = Int8Linear(exact)(values), exact(values)
    assert found.shape == wanted.shape
    # Either factor of a product is off by half a step of its scale at most.
    steps = values.abs().amax(-1, keepdim=True) * exact.weight.abs().amax(1) / 254
    assert ((found - wanted).abs() <= steps * 2.1 * num_in + 1e-6).all()
    assert ((found - wanted).norm(dim=-1) <= 0.03 * wanted.norm(dim=-1) + 1e-3).float().mean() > 0.9


@pytest.mark.parametrize(("num_in", "num_out"), [(1, 1), (40, 24), (64, 17), (384, 96), (1536, 384)])
def test_a_token_does_not_depend_on_the_others(monkeypatch: pytest.MonkeyPatch, num_in: int, num_out: int) -> None:
    monkeypatch.setattr(int8, "CHUNK", 4 * num_in)  # so that rows are quantise in several steps
    found, values = Int8Linear(layer(num_in, num_out)), torch.randn(35, num_in) * torch.arange(1, 36).unsqueeze(1)
    together = found(values)
    for size in (1, 2, 7, 16, 33):
        assert torch.equal(torch.cat([found(some) for some in values.split(size)]), together), size


def test_zeros_give_the_bias_and_what_is_not_finite_stays_so() -> None:
    exact = layer(8, 4)
    assert torch.equal(Int8Linear(exact)(torch.zeros(2, 8))[1], exact.bias)
    for value in (float("nan"), float("inf")):
        assert not Int8Linear(exact)(torch.tensor([[value] + [1.0] * 7])).isfinite().any()
    assert Int8Linear(exact)(torch.zeros(0, 8)).shape == (0, 4)


@pytest.mark.parametrize("name", ["bert", "roberta", "t5", "llama", "clip"])
def test_a_backbone_is_near_and_shares_its_tensors(tiny, name: str) -> None:
    backbone = load_backbone(tiny(name), "text").eval()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    low = in_int8(backbone)
    assert num_linear(backbone) > 0 and num_linear(low) == 0
    assert sum(isinstance(part, Int8Linear) for part in low.modules()) == num_linear(backbone)
    addresses = [parameter.data_ptr() for parameter in backbone.parameters()]
    assert [parameter.data_ptr() for parameter in low.parameters()] == addresses
    tensors = backbone.collate_text([backbone.tokenize(text) for text in ("w1 w2 w3", "w4", "w9 w8 w7 w6 w5")])
    with torch.inference_mode():
        exact, near = backbone(**tensors).values[:, 0], low(**tensors).values[:, 0]
        alone = low(**backbone.collate_text([backbone.tokenize("w4")])).values[:, 0]
    assert not torch.equal(exact, near)
    assert (torch.cosine_similarity(exact, near) > 0.995).all()
    torch.testing.assert_close(alone[0], near[1], atol=0.02, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))


def test_what_an_attention_reads_is_rounded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    exact, counted = Attention().requires_grad_(False), []
    monkeypatch.setattr(int8, "quantise", lambda values: counted.append(1) or quantise(values))
    low, values, other = in_int8(exact), torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    by_itself = {name: Int8Linear(layer) for name, layer in exact.named_children()}
    wanted = {name: layer(values) for name, layer in by_itself.items()}
    counted.clear()
    for _ in range(2):
        assert all(torch.equal(layer(values), wanted[name]) for name, layer in low.named_children())
    assert len(counted) == 2
    # Attention to something else; and a tensor that changed since the same layer last read it.
    assert torch.equal(low.query(values), wanted["query"])
    assert torch.equal(low.key(other), by_itself["key"](other))
    assert torch.equal(low.value(other), by_itself["value"](other))
    assert torch.equal(low.query(values), wanted["query"])
    values.mul_(2)
    assert torch.equal(low.query(values), by_itself["query"](values))


def test_a_layer_in_two_places_stays_one() -> None:
    one = layer(4, 4)
    low = in_int8(nn.Sequential(one, nn.ReLU(), one, nn.Sequential(one)))
    assert low[0] is low[2] is low[3][0] and isinstance(low[0], Int8Linear)
