"""One update of the weights: compute the gradients, check them, clip them, step.

A `Gradients` computes the gradients: `plain` is here; adversarial ascent, SAM, cached contrastive gradients and
gradient surgery are in the other modules. An update with a non-finite loss or gradient is never made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fusetune import _private
from fusetune.errors import NonFiniteLoss
from fusetune.objectives.base import Objective
from fusetune.training.hardware.dtensor import clip as scale_down
from fusetune.training.hardware.dtensor import gradient_norm, is_sharded
from fusetune.training.hardware.shard import clear_absent_gradients
from fusetune.types import Batch, as_numbers

Shares = Mapping[str, "float | Tensor"]
NORM = "gradient/norm"
REPLICATED = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_NPU", "MULTI_XPU")
"""Types of distribution in which every process holds all parameters."""


class Buffers:
    """A copy of a module's buffers from before an update, to restore if the update is not made."""

    def __init__(self, module: nn.Module) -> None:
        by_kind: dict[Any, list[Tensor]] = {}
        for buffer in module.buffers():
            by_kind.setdefault((buffer.device, buffer.dtype), []).append(buffer)
        self._pairs = [(buffers, [buffer.clone() for buffer in buffers]) for buffers in by_kind.values()]

    @torch.no_grad()
    def save(self) -> None:
        """Copy the buffers' present values."""
        for buffers, saved in self._pairs:
            _private.copy_all(saved, buffers)

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the values of the last `save`."""
        for buffers, saved in self._pairs:
            _private.copy_all(buffers, saved)


class Gradients(Protocol):
    """Computes the gradients of an update."""

    def __call__(
        self, learner: nn.Module, micro_batches: Sequence[Batch], accelerator: Accelerator
    ) -> dict[str, Tensor]:
        """Add the gradients of the update's loss to the parameters' `.grad`, which are None before.

        Args:
            learner: a `Learner`, possibly wrapped for data parallelism: call it, never the module inside.
            micro_batches: the update's rows, on any device.
            accelerator: autocast, gradient scaling, synchronisation.

        Returns:
            The update's losses by name, detached scalars.
        """
        ...


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that a GPU or this process ran out of memory."""
    message = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and ("not enough memory" in message or "can't allocate memory" in message)
    )


def loss_shares(learner: nn.Module, micro_batches: Sequence[Batch], accelerator: Accelerator) -> list[Shares]:
    """Return the factors by which micro-batches' mean losses sum to the mean loss over all rows of the update.

    Several processes have different rows of the update, and gradients are averaged over them: a share is relative to
    the mean of the processes' totals. It is then a scalar tensor on the device, so that the host need not wait for it.

    Args:
        learner: whose objectives' losses are scaled too; possibly wrapped.
        micro_batches: the update's rows.
        accelerator: knows the other processes.

    Returns:
        Per micro-batch, by a task's name: its share of the loss's denominator (`Target.counts`) in the update. By
        "objective/NAME": its share of an objective's (`Objective.counts`). Under "": its share of the rows' weights.
    """
    objective = getattr(accelerator.unwrap_model(learner), "objective", None)
    objectives = [part for part in getattr(objective, "objectives", ()) if isinstance(part, Objective)]
    sizes = [
        {name: float(target.counts(batch.weights).sum()) for name, target in batch.targets.items()}
        | {f"objective/{part.name}": float(part.counts(batch).sum()) for part in objectives}
        | {"": float(batch.weights.sum())}
        for batch in micro_batches
    ]
    totals = {name: sum(size[name] for size in sizes) for name in sizes[0]}
    if accelerator.num_processes > 1:
        local = torch.tensor([list(totals.values()), *(list(size.values()) for size in sizes)], dtype=torch.float64)
        local = local.to(accelerator.device, non_blocking=True)
        mean = accelerator.reduce(local[0].clone(), "mean")
        shares = torch.where(mean != 0, local[1:] / mean, 0.0)
        return [dict(zip(totals, row, strict=True)) for row in shares]
    return [{name: value / totals[name] if totals[name] else 0.0 for name, value in size.items()} for size in sizes]


def scale_losses(parts: dict[str, Tensor], shares: Shares) -> dict[str, Tensor]:
    """Multiply a micro-batch's losses by their shares; see `loss_shares`."""

    def share(name: str) -> float | Tensor:
        objective = "/".join(name.split("/")[:2])  # an objective's losses are called objective/NAME or .../NAME/PART
        return shares[name] if name in shares else shares.get(objective, shares[""])

    return {name: part * share(name) for name, part in parts.items()}


def accumulate_losses(totals: dict[str, Tensor], parts: dict[str, Tensor]) -> None:
    """Add detached losses to the totals of earlier micro-batches, in place."""
    for name, part in parts.items():
        totals[name] = totals[name] + part.detach() if name in totals else part.detach()


def plain(learner: nn.Module, micro_batches: Sequence[Batch], accelerator: Accelerator) -> dict[str, Tensor]:
    """Run one forward and backward pass a micro-batch; a `Gradients`."""
    totals: dict[str, Tensor] = {}
    counts = loss_shares(learner, micro_batches, accelerator)
    for position, (batch, shares) in enumerate(zip(micro_batches, counts, strict=True)):
        last = position == len(micro_batches) - 1
        with nullcontext() if last else accelerator.no_sync(learner), accelerator.autocast():
            batch = batch.to(accelerator.device)
            _, parts, _ = learner(batch)
            parts = scale_losses(parts, shares)
            accelerator.backward(sum(parts.values(), batch.zero))
        accumulate_losses(totals, parts)
    return totals


def update(
    learner: nn.Module,
    micro_batches: Sequence[Batch],
    optimizer: Any,
    accelerator: Accelerator,
    gradients: Gradients,
    trained: Sequence[Tensor],
    *,
    clip: float | None,
    where: str,
) -> dict[str, float]:
    """Update the weights once.

    Args:
        learner: see `Gradients`.
        micro_batches: the update's rows.
        optimizer: prepared by the accelerator.
        accelerator: see `Gradients`.
        gradients: computes the gradients.
        trained: the parameters that get gradients.
        clip: largest norm of the gradient; None does not clip.
        where: the update's name in an error: "update 7 of stage 'tune'".

    Returns:
        The losses by name.

    Raises:
        NonFiniteLoss: the loss or the gradient became NaN or infinite; the weights are not updated.
    """
    totals = gradients(learner, micro_batches, accelerator)
    if any(is_sharded(parameter) for parameter in trained):
        clear_absent_gradients(accelerator.unwrap_model(learner), micro_batches, accelerator)
    accelerator.unscale_gradients()
    norm = gradient_norm(trained)
    if accelerator.num_processes > 1:
        means = accelerator.reduce(torch.stack([totals[name].float() for name in sorted(totals)]), "mean")
        totals = dict(zip(sorted(totals), means, strict=True))
    # Everything that decides about the update is copied from the device at once: its only synchronisation.
    losses = as_numbers({**totals, NORM: norm})
    size = losses.pop(NORM)
    finite = all(math.isfinite(value) for value in losses.values())
    if not finite or (not math.isfinite(size) and accelerator.scaler is None):
        ids = [int(row) for batch in micro_batches for row in batch.rows]
        optimizer.zero_grad()
        raise NonFiniteLoss(
            f"the {'gradient' if finite else 'loss'} became NaN or infinite at {where}; losses {losses}; "
            f"rows {ids[:64]}\n  Do: lower trainer.lr and trainer.backbone_lr, set trainer.clip, or look at these "
            "rows. No update was made from them."
        )
    if clip is not None:
        scale_down(trained, clip, norm, size)
    optimizer.step()
    optimizer.zero_grad()
    if (
        after_step := getattr(gradients, "after_step", None)
    ) is not None:  # not on a `Sharpness`, which computes every loss twice
        after_step(learner, micro_batches, accelerator)
    return losses
