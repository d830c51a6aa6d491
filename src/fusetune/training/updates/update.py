"""One update of the weights: how the gradients are computed, then clip, check, step.

How the gradients come about is a `Gradients`: `plain` here; adversarial ascent, sharpness-aware, cached contrastive
gradients and gradient surgery are others. Whatever it is, an update that is not finite is not made.
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
from fusetune.training.hardware.dtensor import clip as scale_down
from fusetune.training.hardware.dtensor import gradient_norm, is_spread
from fusetune.training.hardware.shard import forget_absent
from fusetune.types import Batch, as_numbers

Shares = Mapping[str, "float | Tensor"]
NORM = "gradient/norm"


class Buffers:
    """A module's buffers as they were before an update, to be had again if it is not made."""

    def __init__(self, module: nn.Module) -> None:
        by_kind: dict[Any, list[Tensor]] = {}
        for buffer in module.buffers():
            by_kind.setdefault((buffer.device, buffer.dtype), []).append(buffer)
        self._pairs = [(buffers, [buffer.clone() for buffer in buffers]) for buffers in by_kind.values()]

    @torch.no_grad()
    def note(self) -> None:
        """They are now what they should be."""
        for buffers, kept in self._pairs:
            _private.copy_all(kept, buffers)

    @torch.no_grad()
    def restore(self) -> None:
        """They are again what they were at the last `note`."""
        for buffers, kept in self._pairs:
            _private.copy_all(buffers, kept)


class Gradients(Protocol):
    """Computes the gradients of an update."""

    def __call__(
        self, learner: nn.Module, micro_batches: Sequence[Batch], accelerator: Accelerator
    ) -> dict[str, Tensor]:
        """Add the gradients of the update's loss to the parameters' `.grad`, which are empty.

        Args:
            learner: a `Learner`, perhaps wrapped for data parallelism: call it, do not reach around it.
            micro_batches: the update's rows, on any device.
            accelerator: autocast, gradient scaling, synchronisation.

        Returns:
            The update's losses by name, detached scalars.
        """
        ...


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was short, on a GPU or in this process."""
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and ("not enough memory" in said or "can't allocate memory" in said)
    )


def loss_shares(micro_batches: Sequence[Batch], accelerator: Accelerator) -> list[Shares]:
    """What each micro-batch's mean losses count in the update's, so that they sum to the mean over all its rows.

    With several processes, each of which has other rows of the update, the mean over processes is the mean over all
    rows, as gradients are averaged over processes. The shares are then scalars on the device, which nobody waits for.

    Returns:
        Per micro-batch, each task's share of its loss's denominator (`Target.counts`) by the task's name, and under ""
        the share of the rows' weights, for losses that are no task's.
    """
    sizes = [
        {name: float(target.counts(batch.weights).sum()) for name, target in batch.targets.items()}
        | {"": float(batch.weights.sum())}
        for batch in micro_batches
    ]
    totals = {name: sum(size[name] for size in sizes) for name in sizes[0]}
    if accelerator.num_processes > 1:
        own = torch.tensor([list(totals.values()), *(list(size.values()) for size in sizes)], dtype=torch.float64)
        own = own.to(accelerator.device, non_blocking=True)
        mean = accelerator.reduce(own[0].clone(), "mean")
        shares = torch.where(mean != 0, own[1:] / mean, 0.0)
        return [dict(zip(totals, row, strict=True)) for row in shares]
    return [{name: value / totals[name] if totals[name] else 0.0 for name, value in size.items()} for size in sizes]


def scaled(parts: dict[str, Tensor], shares: Shares) -> dict[str, Tensor]:
    """A micro-batch's losses times what they count in the update's: see `loss_shares`."""
    return {name: part * shares.get(name, shares[""]) for name, part in parts.items()}


def add_up(totals: dict[str, Tensor], parts: dict[str, Tensor]) -> None:
    """Add losses to those of earlier micro-batches, detached."""
    for name, part in parts.items():
        totals[name] = totals[name] + part.detach() if name in totals else part.detach()


def plain(learner: nn.Module, micro_batches: Sequence[Batch], accelerator: Accelerator) -> dict[str, Tensor]:
    """One forward and backward pass a micro-batch; see `Gradients`."""
    totals: dict[str, Tensor] = {}
    counts = loss_shares(micro_batches, accelerator)
    for position, (batch, shares) in enumerate(zip(micro_batches, counts, strict=True)):
        last = position == len(micro_batches) - 1
        with nullcontext() if last else accelerator.no_sync(learner), accelerator.autocast():
            batch = batch.to(accelerator.device)
            _, parts, _ = learner(batch)
            parts = scaled(parts, shares)
            accelerator.backward(sum(parts.values(), batch.zero))
        add_up(totals, parts)
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
        learner: as `Gradients` takes it.
        micro_batches: the update's rows.
        optimizer: prepared by the accelerator.
        accelerator: see `Gradients`.
        gradients: how they are computed.
        trained: the parameters that have gradients.
        clip: largest norm of the gradient; None leaves it as it is.
        where: names the update in an error: "update 7 of stage 'tune'".

    Returns:
        The losses by name.

    Raises:
        NonFiniteLoss: the loss or the gradient became NaN or infinite; the update is not made.
    """
    totals = gradients(learner, micro_batches, accelerator)
    if any(is_spread(parameter) for parameter in trained):
        forget_absent(accelerator.unwrap_model(learner), micro_batches, accelerator)
    accelerator.unscale_gradients()
    norm = gradient_norm(trained)
    if accelerator.num_processes > 1:
        means = accelerator.reduce(torch.stack([totals[name].float() for name in sorted(totals)]), "mean")
        totals = dict(zip(sorted(totals), means, strict=True))
    # All that decides about the update comes from the device at once: it is the one time that an update waits for it.
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
    if (look_back := getattr(gradients, "look_back", None)) is not None:  # those of a Sharpness see every loss twice
        look_back(learner, micro_batches, accelerator)
    return losses
