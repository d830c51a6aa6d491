"""Dropout with quick draws: the same distribution as torch's, from the same generator."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fusetune.training.dropout import QuickDropout, quick_dropout

SIZE = 200_003  # no multiple of four


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_elements_are_dropped_at_the_rate_and_the_mean_stays(rate, dtype):
    torch.manual_seed(0)
    out = QuickDropout(rate)(torch.ones(SIZE, dtype=dtype))
    assert out.dtype == dtype
    kept = out[out != 0]
    error = 5 * (rate * (1 - rate) / SIZE) ** 0.5
    assert abs(1 - len(kept) / SIZE - rate) < error
    assert len(kept.unique()) == 1
    assert float(kept[0]) == pytest.approx(1 / (1 - rate), rel=4e-3 if dtype == torch.bfloat16 else 1e-4)


def test_draws_are_independent_of_their_places_and_of_one_another():
    torch.manual_seed(1)
    first, second = (QuickDropout(0.5)(torch.ones(SIZE)) > 0 for _ in range(2))
    for one, other in [(first[:-lag], first[lag:]) for lag in (1, 2, 3, 4, 8, 384)] + [(first, second)]:
        assert abs((one == other).double().mean() - 0.5) < 5 * 0.5 / SIZE**0.5


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (5, 7, 3)])
def test_any_shape_is_drawn_anew_and_again_from_a_seed(shape):
    module, value = QuickDropout(0.5), torch.randn(shape)
    found = []
    for seed in (0, 0):
        torch.manual_seed(seed)
        found.append([module(value) for _ in range(20)])
    for one, other in zip(*found, strict=True):
        assert one.shape == value.shape and torch.equal(one, other)
    assert value.numel() == 0 or any(not torch.equal(one, found[0][0]) for one in found[0])


def test_gradients_are_those_of_what_was_kept_also_where_a_pass_is_computed_again():
    module, value = QuickDropout(0.3), torch.randn(40, 50, requires_grad=True)
    for again in (False, True):
        value.grad = None
        out = checkpoint(module, value, use_reentrant=False) if again else module(value)
        out.sum().backward()
        torch.testing.assert_close(out, value * value.grad)
        assert len(value.grad.unique()) == 2


def test_out_of_training_and_at_rates_of_nought_and_one_it_is_torchs():
    value = torch.randn(3, 4)
    assert QuickDropout(0.5).eval()(value) is value
    torch.testing.assert_close(QuickDropout(0.0)(value), value)
    assert not QuickDropout(1.0)(value).any()
    meta = QuickDropout(0.5)(torch.empty(3, 4, device="meta"))  # as on any device but a processor
    assert meta.device.type == "meta" and meta.shape == (3, 4)


def test_compiled_it_is_torchs_which_the_compiler_fuses():
    value, found = torch.randn(30, 40), []
    for module in (nn.Dropout(0.5), torch.compile(QuickDropout(0.5), backend="eager", fullgraph=True)):
        torch.manual_seed(0)
        found.append(module(value))
    assert torch.equal(*found)


def test_a_models_own_dropout_is_quick_inside_only():
    class Special(nn.Dropout):
        """Somebody's own."""

    model = nn.ModuleList(
        [nn.Dropout(0.1), nn.Sequential(nn.Dropout(0.2)), Special(0.1), nn.Dropout(0.1, inplace=True)]
    )
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(RuntimeError, match="in between"), quick_dropout(model):
        quick = [type(module) for module in model.modules() if isinstance(module, nn.Dropout)]
        assert quick == [QuickDropout, QuickDropout, Special, nn.Dropout]
        raise RuntimeError("in between")
    assert [type(module) for module in model.modules()] == kinds
