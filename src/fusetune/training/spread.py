"""Tensors of which a process holds a part (DTensor): whole again, and clipped together with those that are whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm


def is_spread(tensor: Tensor) -> bool:
    """Whether this process holds a part of it alone."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Any) -> Tensor:
    """All of a tensor; where it is spread, every process must ask for it."""
    found: Tensor = tensor.full_tensor() if is_spread(tensor) else tensor
    return found


def clip(parameters: Sequence[Tensor], most: float) -> Tensor:
    """Scale gradients so that their norm over all parameters, whole and spread, is at most so much; gives the norm."""
    kinds = [[p for p in parameters if p.grad is not None and is_spread(p) == spread] for spread in (False, True)]
    kinds = [kind for kind in kinds if kind]
    norms = [whole(get_total_norm([p.grad for p in kind if p.grad is not None])) for kind in kinds]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    for kind in kinds:
        clip_grads_with_norm_(kind, most, norm)
    return norm
