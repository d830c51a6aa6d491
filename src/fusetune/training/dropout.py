"""Dropout with cheaper random numbers on CPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

STEPS = 2**16
"""Rates are rounded to multiples of 1 / STEPS."""


class QuickDropout(nn.Dropout):
    """Dropout that draws 16 random bits per element.

    On CPUs torch draws a double per element, sequentially, which takes a tenth of an update of a small text encoder.
    The bits come from torch's generator too, so seeds, restored RNG states and recomputed passes work as usual; only
    the masks differ from torch's. The remaining elements are scaled by the rounded rate, so the expectation is exact.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Zero each element with probability `p`, and divide the others by 1 - p."""
        dropped = round(self.p * STEPS)
        if not self.training or not 0 < dropped < STEPS or not input.is_cpu or torch.compiler.is_compiling():
            return super().forward(input)
        size = input.numel()
        bits = torch.empty(-(-size // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:size]
        factors = torch.empty(input.shape, dtype=input.dtype)
        torch.ge(bits.view(input.shape), dropped - STEPS // 2, out=factors)
        return input * factors.mul_(STEPS / (STEPS - dropped))


@contextmanager
def quick_dropout(model: nn.Module) -> Iterator[None]:
    """Replace a model's `nn.Dropout` modules by `QuickDropout` within the context, and restore them afterwards.

    Subclasses of `nn.Dropout` and modules with `inplace=True` are not replaced.

    Args:
        model: the model, trained on a CPU.
    """
    quick: dict[nn.Module, QuickDropout] = {}
    replaced: list[tuple[nn.Module, str, nn.Module]] = []  # parent, name, child
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if path and type(module) is nn.Dropout and not module.inplace:
            parent, _, name = path.rpartition(".")
            replaced.append((model.get_submodule(parent), name, module))
            quick.setdefault(module, QuickDropout(module.p)).train(module.training)
    for parent, name, module in replaced:
        setattr(parent, name, quick[module])
    try:
        yield
    finally:
        for parent, name, module in replaced:
            setattr(parent, name, module.train(quick[module].training))
