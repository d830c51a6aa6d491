"""Rows of all processes side by side, with gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed

COUNTS = "counts"
"""The key of (rows,) float: the factor of each row's own loss. Absent where all are 1."""


class _AllGather(torch.autograd.Function):
    """Gathers the rows of all processes in their order; a row's gradient is the sum over all processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        """(own rows, features) of each process, `sizes` of them, to (all rows, features)."""
        rank = distributed.get_rank()
        ctx.start, ctx.stop = sum(sizes[:rank]), sum(sizes[: rank + 1])
        padded = rows.new_zeros(max(sizes), rows.shape[1])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the own rows' part of the summed gradient."""
        total = gradients[0].contiguous().clone()
        distributed.all_reduce(total)
        return total[ctx.start : ctx.stop], None


def gathered(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the rows of all processes, those of process 0 first, and under `COUNTS` the factor of each row's own loss.

    Own rows count as many as there are processes, all others 0. So a process computes the loss of its own rows, against
    the rows of all, divided by the number of all rows; the mean of the processes' losses is the loss of one process
    that has all rows, and so is the mean of their gradients, which data parallelism makes.

    Every process must call this equally often, forward and backward. It may have any number of rows, none too.

    Args:
        vectors: tensors whose first dimension is this process's rows; those of floats share a dtype.
    """
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return dict(vectors)
    floats = [name for name, value in vectors.items() if value.is_floating_point()]
    others = [name for name in vectors if name not in floats]
    own = next(iter(vectors.values()))
    count = torch.tensor([len(own)], device=own.device)
    counts = [torch.empty_like(count) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, count)
    sizes = [int(count) for count in counts]
    # One tensor of all floats, so that there is one exchange in the backward pass, and none is left out anywhere.
    result = _gather_together({name: vectors[name] for name in floats}, sizes)
    result |= {
        name: value.to(vectors[name].dtype)
        for name, value in _gather_together({name: vectors[name].long() for name in others}, sizes).items()
    }
    rank = distributed.get_rank()
    share = torch.zeros(sum(sizes), device=own.device, dtype=vectors[floats[0]].dtype)
    share[sum(sizes[:rank]) : sum(sizes[: rank + 1])] = len(sizes)
    return result | {COUNTS: share}


def _gather_together(vectors: dict[str, Tensor], sizes: list[int]) -> dict[str, Tensor]:
    if not vectors:
        return {}
    flat = [value.flatten(1) if value.ndim > 1 else value.unsqueeze(1) for value in vectors.values()]
    together = _AllGather.apply(torch.cat(flat, 1), sizes)  # type: ignore[no-untyped-call]
    parts = together.split([value.shape[1] for value in flat], 1)
    return {
        name: part.reshape(len(part), *value.shape[1:])
        for (name, value), part in zip(vectors.items(), parts, strict=True)
    }
