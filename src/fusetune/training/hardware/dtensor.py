"""Tensors sharded over processes (DTensor): gather them, and clip their gradients together with plain ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

EPSILON = 1e-6
"""What `clip_grads_with_norm_` adds to the norm."""


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor, of which this process holds a shard."""
    return hasattr(tensor, "whole")


def full_tensor(tensor: Any) -> Tensor:
    """Return the full tensor; if it is sharded, every process must call this."""
    full: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
    return full


def _kinds(parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    """Group the parameters that have gradients into plain and sharded ones, without empty groups."""
    kinds = [[p for p in parameters if p.grad is not None and is_sharded(p) == sharded] for sharded in (False, True)]
    return [kind for kind in kinds if kind]


def gradient_norm(parameters: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm of all gradients, a scalar; if some are sharded, every process must call this."""
    norms = [
        full_tensor(get_total_norm([p.grad for p in kind if p.grad is not None])) for kind in _kinds(parameters)
    ] or [torch.zeros(())]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def clip(parameters: Sequence[Tensor], most: float, norm: Tensor, size: float) -> None:
    """Scale gradients in place so that their norm is at most `most`.

    Args:
        parameters: the parameters with the gradients.
        most: largest norm, above 0.
        norm: the present norm; see `gradient_norm`.
        size: the present norm as a number, which decides whether anything is scaled.
    """
    if size + EPSILON > most:
        for kind in _kinds(parameters):
            clip_grads_with_norm_(kind, most, norm)
