"""Contrast the rows of all micro-batches of an update in the memory of one micro-batch.

GradCache: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", arXiv 2101.06983.
A loss L that compares rows depends on micro-batch b only through its vectors v_b, so ∂L/∂θ = Σ_b (∂L/∂v_b)ᵀ ∂v_b/∂θ:

1. compute all v_b without the activations that backward passes need;
2. compute L of all of them, and its gradient at each;
3. for each micro-batch, compute v_b again with the same dropout masks, and backpropagate Σ v_b · ∂L/∂v_b.

The gradients are those of one large batch; each micro-batch is computed forward twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fusetune.models.perturb import RngState
from fusetune.objectives.base import BatchObjective
from fusetune.objectives.gather import gather_rows
from fusetune.objectives.total import own_parameters
from fusetune.training.learner import Learner
from fusetune.training.updates.update import accumulate_losses, loss_shares, plain, scale_losses
from fusetune.types import Batch

Vectors = dict[str, dict[str, Tensor]]


def cached(learner: nn.Module, micro_batches: Sequence[Batch], accelerator: Accelerator) -> dict[str, Tensor]:
    """Compute gradients as `plain` does, but let contrastive objectives see all micro-batches; a `Gradients`."""
    bare = learner if isinstance(learner, Learner) else accelerator.unwrap_model(learner)
    assert isinstance(bare, Learner)
    objectives = bare.objective.batch_objectives()
    if not objectives or len(micro_batches) == 1:
        return plain(learner, micro_batches, accelerator)
    rng_states, vectors = _vectors(bare, micro_batches, accelerator)
    totals: dict[str, Tensor] = {}
    at_vectors: list[Vectors] = [{} for _ in micro_batches]
    for objective in objectives:
        losses, gradients = _compare(objective, [by_objective[objective.name] for by_objective in vectors])
        totals |= losses
        for index, gradient in enumerate(gradients):
            at_vectors[index][objective.name] = gradient
    for index, (batch, shares) in enumerate(
        zip(micro_batches, loss_shares(learner, micro_batches, accelerator), strict=True)
    ):
        last = index == len(micro_batches) - 1
        rng_states[index].restore()
        with nullcontext() if last else accelerator.no_sync(learner), accelerator.autocast():
            batch = batch.to(accelerator.device)
            _, parts, _ = learner(batch, at_vectors[index])
            surrogates = [parts.pop(f"surrogate/{objective.name}") for objective in objectives]
            parts = scale_losses(parts, shares)
            accelerator.backward(sum([*parts.values(), *surrogates], batch.zero))
        accumulate_losses(totals, parts)
    return totals


@torch.no_grad()
def _vectors(
    learner: Learner, micro_batches: Sequence[Batch], accelerator: Accelerator
) -> tuple[list[RngState], list[Vectors]]:
    """Return, per micro-batch, the RNG state before it and each objective's vectors."""
    buffers = {name: buffer.clone() for name, buffer in learner.model.named_buffers()}  # such as batch norm's means
    rng_states, vectors = [], []
    for batch in micro_batches:
        rng_states.append(RngState(accelerator.device))
        batch = batch.to(accelerator.device)
        with accelerator.autocast():
            outputs = learner.model(batch)
            vectors.append({part.name: part.vectors(batch, outputs) for part in learner.objective.batch_objectives()})
    for name, buffer in learner.model.named_buffers():
        buffer.copy_(buffers[name])
    return rng_states, vectors


def _compare(
    objective: BatchObjective, vectors: Sequence[dict[str, Tensor]]
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Return the objective's weighted losses, and the gradients at each micro-batch's vectors.

    The last micro-batch also gets the gradients at the objective's own parameters, so that processes average them too.
    """
    sizes = [len(next(iter(part.values()))) for part in vectors]
    joined = {name: torch.cat([part[name] for part in vectors]) for name in vectors[0]}
    leaves = {name: value.requires_grad_() for name, value in joined.items() if value.is_floating_point()}
    with torch.enable_grad():
        losses = objective.of_vectors(gather_rows(joined))
        weighted = {f"objective/{name}": loss * objective.weight for name, loss in losses.items()}
        total = torch.stack(list(weighted.values())).sum()
    learned = {name: parameter for name, parameter in own_parameters(objective).items() if parameter.requires_grad}
    gradients = torch.autograd.grad(total, [*leaves.values(), *learned.values()], allow_unused=True)
    parts: list[dict[str, Tensor]] = [{} for _ in vectors]
    for name, gradient in zip(leaves, gradients, strict=False):
        if gradient is not None:
            for index, part in enumerate(torch.split(gradient, sizes)):
                parts[index][name] = part
    for name, gradient in zip(learned, gradients[len(leaves) :], strict=True):
        if gradient is not None:
            parts[-1][name] = gradient
    return {name: loss.detach() for name, loss in weighted.items()}, parts
