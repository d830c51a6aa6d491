"""Tensors of which a process holds a part (DTensor): whole again, and clipped together with those that are whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

EPSILON = 1e-6
"""What `clip_grads_with_norm_` adds to the norm."""


def is_spread(tensor: Tensor) -> bool:
    """Whether this process holds a part of it alone."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Any) -> Tensor:
    """All of a tensor; where it is spread, every process must ask for it."""
    found: Tensor = tensor.full_tensor() if is_spread(tensor) else tensor
    return found


def _kinds(parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    """The parameters with gradients, those that are whole and those that are spread."""
    kinds = [[p for p in parameters if p.grad is not None and is_spread(p) == spread] for spread in (False, True)]
    return [kind for kind in kinds if kind]


def gradient_norm(parameters: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients, whole and spread; where some are spread, every process must ask for it."""
    norms = [whole(get_total_norm([p.grad for p in kind if p.grad is not None])) for kind in _kinds(parameters)] or [
        torch.zeros(())
    ]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def clip(parameters: Sequence[Tensor], most: float, norm: Tensor, size: float) -> None:
    """Scale gradients so that their norm is at most so much.

    Args:
        parameters: whose gradients.
        most: the largest norm.
        norm: what it is.
        size: the same as a number: gradients that are small enough are not touched.
    """
    if size + EPSILON > most:
        for kind in _kinds(parameters):
            clip_grads_with_norm_(kind, most, norm)
