"""Gradient surgery for several tasks (PCGrad, UPGrad), and the gradients of FAMO.

Let g_k be the gradient of task k's normalised loss (see `fusetune.objectives.balance`) at the parameters that two or
more tasks share. The update's gradient there is

    pcgrad  Σ g_k', where g_k' is g_k less its component along each conflicting g_j, in random order of j
            Yu et al. 2020, arXiv 2001.06782, algorithm 1
    upgrad  Σ π(g_k), where π projects onto the cone of directions that conflict with no g_j
            Quinton and Rey 2024, arXiv 2406.16232, equation 5, with the sum instead of the mean

and Σ g_k if no two of them conflict (their product is negative), so learning rates need no change. Both are weighted
sums Σ w_k g_k; TorchJD computes w from the products of the gradients. Parameters of a single task, such as its head's,
get that task's gradient. The gradients of other objectives are added unchanged.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from scipy.optimize import nnls
from torch import Tensor, nn

from fusetune._optional import optional_import
from fusetune.errors import ConfigError
from fusetune.models.perturb import RngState
from fusetune.objectives.balance import Balance, Famo
from fusetune.training.updates.update import REPLICATED, Gradients, accumulate_losses, loss_shares, plain, scale_losses
from fusetune.types import Batch

METHODS = {"pcgrad": "PCGradWeighting", "upgrad": "UPGradWeighting"}
Row = list[Tensor | None]


def check_balance(name: str) -> None:
    """Check that what a balance needs is installed.

    Raises:
        MissingExtra: gradient surgery was asked for and TorchJD is not installed.
    """
    if name in METHODS:
        optional_import("torchjd.aggregation", f"for trainer.balance={name}")


def balanced(name: str, balance: Balance | None, seed: int) -> Gradients | None:
    """Return how gradients are computed for a balance, or None if it only weighs losses.

    Raises:
        MissingExtra: gradient surgery was asked for and TorchJD is not installed.
    """
    if isinstance(balance, Famo):
        return FamoGradients(balance)
    return Surgery(name, balance, seed=seed) if balance is not None and name in METHODS else None


class Surgery:
    """PCGrad or UPGrad; a `Gradients`, see `fusetune.training.updates.update`.

    Each task's gradient is computed by a backward pass of its own, for every micro-batch, and kept until the update is
    made: memory grows by the size of the trained parameters times the number of tasks.

    Args:
        method: pcgrad or upgrad.
        balance: of the learner's tasks; its logged figures get the weights w.
        seed: for pcgrad's random order.

    Raises:
        MissingExtra: TorchJD is not installed.
    """

    def __init__(self, method: str, balance: Balance, *, seed: int) -> None:
        aggregation: Any = optional_import("torchjd.aggregation", f"for trainer.balance={method}")
        options = {"pref_vector": torch.ones(len(balance.names), dtype=torch.float64), "projector": dual_cone}
        self._weighting: Callable[[Tensor], Tensor] = getattr(aggregation, METHODS[method])(
            **(options if method == "upgrad" else {})
        )
        self.method, self.balance, self.seed = method, balance, seed

    def __call__(
        self, learner: nn.Module, micro_batches: Sequence[Batch], accelerator: Accelerator
    ) -> dict[str, Tensor]:
        """Add the gradients to the parameters' `.grad`; return the losses by name.

        Raises:
            ConfigError: the parameters are sharded.
        """
        if accelerator.distributed_type.name not in REPLICATED:
            raise ConfigError(
                f"trainer.balance={self.method} needs all parameters in each process",
                came=accelerator.distributed_type.name,
                do="launch with data parallelism (DDP), or take trainer.balance=uncertainty",
            )
        parameters = [parameter for parameter in learner.parameters() if parameter.requires_grad]
        rows: list[Row] = [[None] * len(parameters) for _ in range(len(self.balance.names) + 1)]
        totals: dict[str, Tensor] = {}
        for batch, shares in zip(micro_batches, loss_shares(learner, micro_batches, accelerator), strict=True):
            with accelerator.no_sync(learner), accelerator.autocast():
                _, parts, _ = learner(batch.to(accelerator.device))
            parts = scale_losses(parts, shares)
            accumulate_losses(totals, parts)
            losses = [[parts.pop(name)] for name in self.balance.names] + [list(parts.values())]
            for task_index, summands in enumerate(losses):
                ends = task_index == len(losses) - 1
                if summands:
                    _add_gradients(rows[task_index], summands, parameters, accelerator, retain=not ends)
        shared = self._average_over_processes(rows, parameters, accelerator)
        ids = torch.stack([batch.rows.sum() for batch in micro_batches]).sum().to(accelerator.device)
        products = gramian([[row[index] for index in shared] for row in rows[:-1]])
        weights = self.weigh(products, number=int(accelerator.reduce(ids, "sum")))
        self.balance.figures = dict(zip(self.balance.names, weights, strict=True))
        for index, parameter in enumerate(parameters):
            factors = [*weights.tolist(), 1.0] if index in shared else [1.0] * len(rows)
            for row, factor in zip(rows, factors, strict=True):
                if (gradient := row[index]) is not None:
                    row[index] = None  # frees memory as the gradients are added up
                    gradient = gradient * factor
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return totals

    def weigh(self, products: Tensor, *, number: int = 0) -> Tensor:
        """Return each task's weight, (tasks,); all 1 if a product is not finite, as the update then fails.

        Args:
            products: (tasks, tasks), the inner products of the gradients.
            number: seeds pcgrad's order, together with the seed.
        """
        inner = products.detach().double().cpu()
        if not inner.isfinite().all():
            return torch.ones(len(inner))
        generator = torch.default_generator
        state = generator.get_state()
        generator.manual_seed(
            zlib.crc32(f"{self.seed} {number}".encode())
        )  # dropout's draws are unaffected: the state is restored
        weights = self._weighting(inner)
        generator.set_state(state)
        return weights.float()

    def _average_over_processes(
        self, rows: list[Row], parameters: list[nn.Parameter], accelerator: Accelerator
    ) -> set[int]:
        """Average each gradient over processes; return the indices of the parameters that tasks share."""
        reached = torch.tensor([[gradient is not None for gradient in row] for row in rows], device=accelerator.device)
        if accelerator.num_processes > 1:
            reached = accelerator.reduce(reached.float(), "sum") > 0
            for row, flags in zip(rows, reached.tolist(), strict=True):
                indices = [index for index, flag in enumerate(flags) if flag]
                if not indices:
                    continue
                sizes = [parameters[index].numel() for index in indices]
                flat = torch.cat([_or_zeros(row[index], parameters[index]).flatten() for index in indices])
                for index, part in zip(indices, accelerator.reduce(flat, "mean").split(sizes), strict=True):
                    row[index] = part.view_as(parameters[index])
        return set(torch.nonzero(reached[:-1].sum(0) > 1).flatten().tolist())


def _add_gradients(
    row: Row, losses: list[Tensor], parameters: list[nn.Parameter], accelerator: Accelerator, *, retain: bool
) -> None:
    """Add the gradients of the losses' sum to a row; parameters that the losses do not depend on stay None."""
    loss = sum(losses[1:], losses[0])
    if accelerator.scaler is not None:
        loss = accelerator.scaler.scale(loss)
    for index, gradient in enumerate(torch.autograd.grad(loss, parameters, retain_graph=retain, allow_unused=True)):
        if gradient is not None:
            before = row[index]
            row[index] = gradient if before is None else before + gradient


def _or_zeros(gradient: Tensor | None, parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if gradient is None else gradient


def gramian(rows: list[Row]) -> Tensor:
    """Return the inner products of the tasks' gradients, (tasks, tasks) float64; None counts as zeros."""
    products = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for gradients in zip(*rows, strict=True):
        like = next((gradient for gradient in gradients if gradient is not None), None)
        if like is not None:
            filled = [torch.zeros_like(like) if gradient is None else gradient for gradient in gradients]
            matrix = torch.stack(filled).flatten(1)
            products += (matrix.float() @ matrix.float().T).double().cpu()
    return (products + products.T) / 2


def dual_cone(vectors: Tensor, products: Tensor) -> Tensor:
    """Find the v ≥ u that minimises v'Gv, for each u, by scipy's non-negative least squares.

    Stands in for TorchJD's default `DualConeProjector`, which needs a quadratic-programming library.

    Args:
        vectors: (rows, tasks), each row a u.
        products: (tasks, tasks) G, positive semi-definite.

    Returns:
        (rows, tasks), the v of each row: the weights of the projected gradient.
    """
    values, directions = np.linalg.eigh(products.numpy())
    # G = A'A; a little more than G on the diagonal makes v unique where gradients are multiples of each other.
    root = np.sqrt(values.clip(0) + 1e-9 * max(float(values[-1]), 1e-30))[:, None] * directions.T
    solutions = [vector + nnls(root, -root @ vector)[0] for vector in vectors.numpy()]
    return torch.from_numpy(np.stack(solutions))


class FamoGradients:
    """Plain gradients of FAMO's weighted losses, and the update of its logits after each step. A `Gradients`.

    As in the paper's code, the losses of an update's rows are computed again after the step: one more forward pass,
    with the same dropout masks. It changes nothing but the logits.
    """

    def __init__(self, balance: Famo) -> None:
        self.balance = balance
        self._rng_state: RngState | None = None

    def __call__(
        self, learner: nn.Module, micro_batches: Sequence[Batch], accelerator: Accelerator
    ) -> dict[str, Tensor]:
        """See `Gradients`."""
        self._rng_state = RngState(accelerator.device)
        self.balance.reset()
        return plain(learner, micro_batches, accelerator)

    @torch.no_grad()
    def after_step(self, wrapped: nn.Module, micro_batches: Sequence[Batch], accelerator: Accelerator) -> None:
        """Update the logits from these rows' losses before the weights' update and after it."""
        learner, before = accelerator.unwrap_model(wrapped), self.balance.update_sums
        assert self._rng_state is not None, "the gradients of these rows were computed before"
        buffers = {name: buffer.clone() for name, buffer in learner.model.named_buffers()}  # such as batch norm's means
        present = RngState(accelerator.device)
        self._rng_state.restore()
        after = torch.zeros_like(before)
        for batch in micro_batches:
            batch = batch.to(accelerator.device)
            with accelerator.autocast():
                losses = learner.objective.tasks(learner.model, batch, learner.model(batch))
            after += torch.stack(self.balance.measure(losses, batch)[:2])
        present.restore()
        for name, buffer in learner.model.named_buffers():
            buffer.copy_(buffers[name])
        (then, count), (now, _) = accelerator.reduce(before, "sum"), accelerator.reduce(after, "sum")
        self.balance.update_logits(then / count, now / count, count > 0)
