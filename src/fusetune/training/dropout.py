"""Dropout whose draws cost little on a processor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

STEPS = 2**16
"""A rate is rounded to one part in so many."""


class QuickDropout(nn.Dropout):
    """Dropout that draws 16 bits an element.

    torch draws a double for each on processors, one after another, which takes a tenth of an update of a small text
    encoder. Draws come from torch's generator here as there, so seeds, states that are kept and passes computed again
    hold; they are others than torch's. What stays is scaled by the rounded rate, so its expectation is exact.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The tensor with each element zeroed with probability `p`, the others divided by 1 - p."""
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
    """Replace a model's `nn.Dropout` modules by `QuickDropout` inside, and put them back after.

    Subclasses, and modules that work in place, stay.

    Args:
        model: to be trained on a processor.
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
