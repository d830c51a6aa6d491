"""Gather the rows of all processes, with gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed

COUNTS = "counts"
"""Key of the (rows,) float factors of each row's own loss. Absent if all factors are 1."""


class _AllGather(torch.autograd.Function):
    """Concatenate the rows of all processes by rank; a row's gradient is summed over all processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        """Gather (own rows, features) of every process into (all rows, features).

        Args:
            ctx: of the autograd function.
            rows: this process's rows.
            sizes: the number of rows of each process.
        """
        rank = distributed.get_rank()
        ctx.start, ctx.stop = sum(sizes[:rank]), sum(sizes[: rank + 1])
        padded = rows.new_zeros(max(sizes), rows.shape[1])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return this process's rows of the summed gradient."""
        total = gradients[0].contiguous().clone()
        distributed.all_reduce(total)
        return total[ctx.start : ctx.stop], None


def gather_rows(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the rows of all processes, ordered by rank, and under `COUNTS` the factor of each row's own loss.

    The factor is the number of processes for this process's rows and 0 for the others. So each process computes the
    losses of its own rows, compared with all rows and divided by the number of all rows. The mean of these losses over
    processes, and of their gradients as data parallelism averages them, equals that of one process with all rows.

    Without distributed training the vectors are returned unchanged. Every process must call this function equally
    often, in forward and backward passes, with any number of rows, including none.

    Args:
        vectors: by name, tensors whose first dimension is this process's rows. Floating-point ones share a dtype.
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
    # One tensor of all floats: a single collective in the backward pass, which every process takes part in.
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
