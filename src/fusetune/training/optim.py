"""Optimisers by name, and parameter groups by learning rate and weight decay."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn

from fusetune.errors import ConfigError, nearest
from fusetune.training.hardware.dtensor import is_sharded

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, fused=True),
    "adam": partial(torch.optim.Adam, fused=True),
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "sgd": lambda groups, lr, weight_decay: torch.optim.SGD(groups, lr, momentum=0.9, weight_decay=weight_decay),
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "adafactor": torch.optim.Adafactor,
    "lion": lambda groups, lr, weight_decay: Lion(groups, lr, weight_decay=weight_decay),
}


class Lion(torch.optim.Optimizer):
    """Lion: steps along the sign of an interpolated momentum (Chen et al. 2023, arXiv 2302.06675, algorithm 2).

    Every element of an update has the size of the learning rate, so use a tenth to a third of AdamW's rate and three
    to ten times its weight decay.

    Args:
        params: parameters or groups.
        lr: above 0.
        betas: momentum's share in the update, and its decay; each in [0, 1).
        weight_decay: decoupled, 0 or more.
    """

    def __init__(
        self, params: Any, lr: float = 1e-4, *, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the parameters from their gradients; return the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                momentum = self.state[parameter].setdefault("exp_avg", torch.zeros_like(parameter))
                update = momentum.mul(beta1).add_(parameter.grad, alpha=1 - beta1).sign_()
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])
                momentum.mul_(beta2).add_(parameter.grad, alpha=1 - beta2)
        return loss


def build_optimizer(name: str, groups: list[dict[str, Any]], *, lr: float) -> torch.optim.Optimizer:
    """Build an optimiser.

    Args:
        name: a key of `OPTIMIZERS`, in any case.
        groups: parameter groups, each with its own `lr` and `weight_decay`.
        lr: for groups without one.

    Raises:
        ConfigError: there is no optimiser of this name.
    """
    if name.lower() not in OPTIMIZERS:
        raise ConfigError(
            f"there is no optimizer called {name!r}",
            expected=", ".join(OPTIMIZERS),
            do=nearest(name.lower(), OPTIMIZERS),
        )
    return OPTIMIZERS[name.lower()](groups, lr=lr, weight_decay=0.0)


def unwrapped(optimizer: Any, accelerator: Accelerator) -> Any:
    """Return the optimiser inside the accelerator's wrapper, which looks for installed packages at every step.

    The wrapper is returned where it is needed: for gradient scaling and for sharding libraries.
    """
    plain = accelerator.distributed_type in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    return optimizer.optimizer if plain and accelerator.scaler is None else optimizer


def no_decay(module: nn.Module) -> set[Tensor]:
    """Return the parameters without weight decay: biases, those of norm layers, and other vectors and scalars."""
    norms = {
        parameter
        for part in module.modules()
        if "norm" in type(part).__name__.lower()
        for parameter in part.parameters(recurse=False)
    }
    return norms | {parameter for parameter in module.parameters() if parameter.ndim < 2}


def param_groups(
    sets: Iterable[tuple[float, Iterable[Tensor]]], *, weight_decay: float, undecayed: set[Tensor]
) -> list[dict[str, Any]]:
    """Group the trainable parameters by learning rate and weight decay.

    Args:
        sets: (learning rate, parameters).
        weight_decay: for parameters that are not in `undecayed`.
        undecayed: parameters without weight decay; see `no_decay`.
    """
    groups: list[dict[str, Any]] = []
    for lr, parameters in sets:
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        for decay, members in (
            (weight_decay, [p for p in trainable if p not in undecayed]),
            (0.0, [p for p in trainable if p in undecayed]),
        ):
            # A fused optimiser takes plain tensors together, and DTensors together, but no mixture.
            for same_kind in ([p for p in members if not is_sharded(p)], [p for p in members if is_sharded(p)]):
                if same_kind:
                    groups.append({"params": same_kind, "lr": lr, "weight_decay": decay})
    return groups
