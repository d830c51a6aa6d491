"""Count the parameters that training changed, by comparing the final weights with the initial ones."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

import torch
from torch import Tensor, nn


def digests(model: nn.Module) -> dict[str, bytes]:
    """Return a digest of each parameter's values, by the parameter's name."""
    return {name: _digest(parameter) for name, parameter in model.named_parameters()}


def changed_parameters(before: Mapping[str, bytes], model: nn.Module, encoders: nn.ModuleDict) -> dict[str, int]:
    """Return the number of parameters in tensors whose values changed, by encoder key; the total under "".

    Args:
        before: the result of `digests` before training.
        model: the model after training.
        encoders: the model's encoders, by key.
    """
    owner = {id(parameter): key for key, encoder in encoders.items() for parameter in encoder.parameters()}
    counts = dict.fromkeys(["", *encoders], 0)
    for name, parameter in model.named_parameters():
        if before.get(name) != _digest(parameter):
            counts[""] += parameter.numel()
            if id(parameter) in owner:
                counts[owner[id(parameter)]] += parameter.numel()
    return counts


@torch.no_grad()
def _digest(parameter: Tensor) -> bytes:
    values = parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return blake2b(values.tobytes(), digest_size=16).digest()
