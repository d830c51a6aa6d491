"""Gradients of several tasks: surgery on those of the parameters that tasks share, and FAMO's look back.

With g_k the gradient of task k's divided loss (see `fusetune.objectives.balance`) at the parameters that two or more
tasks reach, the update's gradient there is

    pcgrad  Σ g_k', g_k' being g_k less its part along each g_j that it points against, in random order of j
            Yu et al. 2020, arXiv 2001.06782, algorithm 1
    upgrad  Σ π(g_k), π projecting onto the directions that point against no g_j
            Quinton and Rey 2024, arXiv 2406.16232, equation 5, summed where the paper takes the mean

and Σ g_k where no two of them point against each other: the learning rate keeps its meaning. Both are weighted sums
Σ w_k g_k; TorchJD finds w from the products of the gradients. Parameters that one task alone reaches, as its head, get
that task's gradient, and the gradients of other objectives are added as they are.
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
from fusetune.training.updates.update import Gradients, add_up, loss_shares, plain, scaled
from fusetune.types import Batch

METHODS = {"pcgrad": "PCGradWeighting", "upgrad": "UPGradWeighting"}
WHOLE = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_NPU", "MULTI_XPU")
"""Ways of distributing in which every process holds all parameters."""
Row = list[Tensor | None]


def check_balance(name: str) -> None:
    """Refuse a balance that cannot be computed here.

    Raises:
        MissingExtra: gradient surgery was asked for and TorchJD is not installed.
    """
    if name in METHODS:
        optional_import("torchjd.aggregation", f"for trainer.balance={name}")


def balanced(name: str, balance: Balance | None, seed: int) -> Gradients | None:
    """How a balance of this name has gradients computed; None where its losses alone make the difference.

    Raises:
        MissingExtra: gradient surgery was asked for and TorchJD is not installed.
    """
    if isinstance(balance, Famo):
        return FamoGradients(balance)
    return Surgery(name, balance, seed=seed) if balance is not None and name in METHODS else None


class Surgery:
    """PCGrad or UPGrad; a `Gradients`, see `fusetune.training.updates.update`.

    Each task's gradient is taken apart, one backward pass a task and micro-batch, and held until the update is made:
    memory grows by the trained parameters times the number of tasks.
    """

    def __init__(self, method: str, balance: Balance, *, seed: int) -> None:
        """
        Args:
            method: pcgrad or upgrad.
            balance: of the learner's tasks; its figures get the weights w.
            seed: of pcgrad's order.

        Raises:
            MissingExtra: TorchJD is not installed.
        """
        aggregation: Any = optional_import("torchjd.aggregation", f"for trainer.balance={method}")
        options = {"pref_vector": torch.ones(len(balance.names), dtype=torch.float64), "projector": dual_cone}
        self._weighting: Callable[[Tensor], Tensor] = getattr(aggregation, METHODS[method])(
            **(options if method == "upgrad" else {})
        )
        self.method, self.balance, self.seed = method, balance, seed

    def __call__(
        self, learner: nn.Module, micro_batches: Sequence[Batch], accelerator: Accelerator
    ) -> dict[str, Tensor]:
        """Add the gradients to the parameters'; gives the losses under their names.

        Raises:
            ConfigError: the parameters are spread over processes.
        """
        if accelerator.distributed_type.name not in WHOLE:
            raise ConfigError(
                f"trainer.balance={self.method} needs all parameters in each process",
                came=accelerator.distributed_type.name,
                do="launch with data parallelism (DDP), or take trainer.balance=uncertainty",
            )
        parameters = [parameter for parameter in learner.parameters() if parameter.requires_grad]
        rows: list[Row] = [[None] * len(parameters) for _ in range(len(self.balance.names) + 1)]
        totals: dict[str, Tensor] = {}
        for batch, shares in zip(micro_batches, loss_shares(micro_batches, accelerator), strict=True):
            with accelerator.no_sync(learner), accelerator.autocast():
                _, parts, _ = learner(batch.to(accelerator.device))
            parts = scaled(parts, shares)
            add_up(totals, parts)
            losses = [[parts.pop(name)] for name in self.balance.names] + [list(parts.values())]
            for place, summands in enumerate(losses):
                ends = place == len(losses) - 1
                if summands:
                    _add_gradients(rows[place], summands, parameters, accelerator, retain=not ends)
        shared = self._together(rows, parameters, accelerator)
        ids = torch.stack([batch.rows.sum() for batch in micro_batches]).sum().to(accelerator.device)
        products = gramian([[row[at] for at in shared] for row in rows[:-1]])
        weights = self.weigh(products, number=int(accelerator.reduce(ids, "sum")))
        self.balance.figures = dict(zip(self.balance.names, weights, strict=True))
        for at, parameter in enumerate(parameters):
            factors = [*weights.tolist(), 1.0] if at in shared else [1.0] * len(rows)
            for row, factor in zip(rows, factors, strict=True):
                if (gradient := row[at]) is not None:
                    row[at] = None  # so that memory falls as the gradients are added up
                    gradient = gradient * factor
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return totals

    def weigh(self, products: Tensor, *, number: int = 0) -> Tensor:
        """(tasks,) what each task's gradient counts: 1 where they are not finite, and the update is refused later.

        Args:
            products: (tasks, tasks) of the gradients.
            number: pcgrad's order follows from it and from the seed.
        """
        inner = products.detach().double().cpu()
        if not inner.isfinite().all():
            return torch.ones(len(inner))
        order = torch.default_generator
        state = order.get_state()
        order.manual_seed(zlib.crc32(f"{self.seed} {number}".encode()))  # and dropout's draws stay what they were
        weights = self._weighting(inner)
        order.set_state(state)
        return weights.float()

    def _together(self, rows: list[Row], parameters: list[nn.Parameter], accelerator: Accelerator) -> set[int]:
        """Make each gradient the mean over processes; gives the places of the parameters that tasks share."""
        reached = torch.tensor([[gradient is not None for gradient in row] for row in rows], device=accelerator.device)
        if accelerator.num_processes > 1:
            reached = accelerator.reduce(reached.float(), "sum") > 0
            for row, there in zip(rows, reached.tolist(), strict=True):
                places = [at for at, flag in enumerate(there) if flag]
                if not places:
                    continue
                sizes = [parameters[at].numel() for at in places]
                flat = torch.cat([_or_zeros(row[at], parameters[at]).flatten() for at in places])
                for at, part in zip(places, accelerator.reduce(flat, "mean").split(sizes), strict=True):
                    row[at] = part.view_as(parameters[at])
        return set(torch.nonzero(reached[:-1].sum(0) > 1).flatten().tolist())


def _add_gradients(
    row: Row, losses: list[Tensor], parameters: list[nn.Parameter], accelerator: Accelerator, *, retain: bool
) -> None:
    """Add the gradients of the losses' sum to a row, None staying where a parameter is not reached."""
    loss = sum(losses[1:], losses[0])
    if accelerator.scaler is not None:
        loss = accelerator.scaler.scale(loss)
    for at, found in enumerate(torch.autograd.grad(loss, parameters, retain_graph=retain, allow_unused=True)):
        if found is not None:
            before = row[at]
            row[at] = found if before is None else before + found


def _or_zeros(gradient: Tensor | None, parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if gradient is None else gradient


def gramian(rows: list[Row]) -> Tensor:
    """(tasks, tasks): the products of the tasks' gradients over all parameters; None is a gradient of zeros."""
    products = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for gradients in zip(*rows, strict=True):
        known = next((gradient for gradient in gradients if gradient is not None), None)
        if known is not None:
            matrix = torch.stack([torch.zeros_like(known) if one is None else one for one in gradients]).flatten(1)
            products += (matrix.float() @ matrix.float().T).double().cpu()
    return (products + products.T) / 2


def dual_cone(vectors: Tensor, products: Tensor) -> Tensor:
    """TorchJD's `DualConeProjector` by non-negative least squares, which scipy has: v ≥ u with the least v'Gv, per u.

    Args:
        vectors: (rows, tasks), each row a u.
        products: (tasks, tasks) G, positive semi-definite.

    Returns:
        (rows, tasks), each row its v: the weights of the projected gradient.
    """
    values, directions = np.linalg.eigh(products.numpy())
    # G = A'A; a little more than G on the diagonal makes v unique where gradients are multiples of each other.
    root = np.sqrt(values.clip(0) + 1e-9 * max(float(values[-1]), 1e-30))[:, None] * directions.T
    found = [vector + nnls(root, -root @ vector)[0] for vector in vectors.numpy()]
    return torch.from_numpy(np.stack(found))


class FamoGradients:
    """Plain gradients of FAMO's weighted losses; its logits learn from the update before. A `Gradients`.

    As in the paper's own code, an update's rows are looked at again once it is made: one forward pass more, with the
    same draws of dropout, and nothing of it stays but what the logits learn.
    """

    def __init__(self, balance: Famo) -> None:
        self.balance = balance
        self._rng_state: RngState | None = None

    def __call__(
        self, learner: nn.Module, micro_batches: Sequence[Batch], accelerator: Accelerator
    ) -> dict[str, Tensor]:
        """See `Gradients`."""
        self._rng_state = RngState(accelerator.device)
        self.balance.begin()
        return plain(learner, micro_batches, accelerator)

    @torch.no_grad()
    def look_back(self, wrapped: nn.Module, micro_batches: Sequence[Batch], accelerator: Accelerator) -> None:
        """Let the logits learn from these rows' losses before the update of the weights and now."""
        learner, before = accelerator.unwrap_model(wrapped), self.balance.noted
        assert self._rng_state is not None, "gradients were taken of these rows"
        kept = {name: buffer.clone() for name, buffer in learner.model.named_buffers()}  # as batch norm's means
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
            buffer.copy_(kept[name])
        (then, count), (now, _) = accelerator.reduce(before, "sum"), accelerator.reduce(after, "sum")
        self.balance.learn(then / count, now / count, count > 0)
