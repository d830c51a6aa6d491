"""Weights averaged over training: a moving average, a greedy soup of the best steps, and the way back to the start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.backbones.structure import BATCH_NORMS
from fusetune.config.trainer import TrainerConfig
from fusetune.training.callbacks import BestStep, Callback, Check, Validate, better
from fusetune.training.hardware.dtensor import whole

Weights = dict[str, Tensor]

STEPS = tuple(step / 10 for step in range(1, 10))
"""Shares of the tuned weights that interpolation tries besides 0 and 1."""


def trained_weights(module: nn.Module) -> dict[str, Tensor]:
    """What training moves: trainable parameters, and running statistics of batch norms that have some; by name."""
    found: dict[str, Tensor] = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    for path, part in module.named_modules():
        if isinstance(part, BATCH_NORMS) and any(p.requires_grad for p in part.parameters()):
            found |= {f"{path}.{name}": value for name, value in part.named_buffers() if value.is_floating_point()}
    return found


def not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """The names of those that hold NaN or infinity."""
    return [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]


def copied(weights: Mapping[str, Tensor]) -> Weights:
    """The same on the CPU, apart from what comes."""
    return {name: whole(value.detach()).to("cpu", copy=True) for name, value in weights.items()}


@torch.no_grad()
def put(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a module's tensors these values."""
    state = dict(module.named_parameters()) | dict(module.named_buffers())
    for name, value in weights.items():
        if value.shape != state[name].shape:
            raise ValueError(f"{name} has the shape {tuple(value.shape)}, not {tuple(state[name].shape)}")
        state[name].copy_(value)


class Average(Callback):
    """The exponential moving average of the weights, which is evaluated and kept in their place.

    v ← d v + (1 − d) w after every update, d = min(decay, (1 + t)/(10 + t)) after t updates, so that the start is
    forgotten soon. Polyak and Juditsky 1992; the warm-up is TensorFlow's `ExponentialMovingAverage(num_updates)`.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        """
        Args:
            module: what is trained.
            decay: d, in (0, 1).
        """
        self.module, self.decay, self.updates = module, decay, 0
        self.values = {name: value.clone() for name, value in trained_weights(module).items()}

    @torch.no_grad()
    def on_update(self, step: int, losses: dict[str, float], lr: float, figures: dict[str, float]) -> None:
        """Take in the weights after an update."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in trained_weights(self.module).items():
            self.values[name].lerp_(value, 1 - decay)

    def state(self) -> dict[str, Any]:
        """The averages and the number of updates in them."""
        return {"values": self.values, "updates": self.updates}

    def load(self, state: Mapping[str, Any]) -> None:
        """Know these again."""
        for name, value in self.values.items():
            value.copy_(state["values"][name])
        self.updates = state["updates"]

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The module has the average's weights inside, and its own again after; both exactly."""
        own = {name: value.clone() for name, value in trained_weights(self.module).items()}
        put(self.module, self.values)
        try:
            yield
        finally:
            put(self.module, own)


@dataclass
class Kept(Callback):
    """The weights of the best few checks of a stage, on the CPU.

    Attributes:
        module: what is trained.
        stage: whose checks are kept.
        most: how many.
        margin: see `better`.
    """

    module: nn.Module
    stage: str
    most: int
    margin: float = 0.0
    checks: list[tuple[Check, Weights]] = field(default_factory=list)

    def on_check(self, check: Check) -> None:
        """Keep the weights if they are among the best."""
        if check.stage != self.stage:
            return
        place = next((i for i, (old, _) in enumerate(self.checks) if better(check, old, self.margin)), len(self.checks))
        if place < self.most:
            self.checks.insert(place, (check, copied(trained_weights(self.module))))
            del self.checks[self.most :]

    def state(self) -> list[dict[str, Any]]:
        """The checks with their weights."""
        return [{"check": asdict(check), "weights": weights} for check, weights in self.checks]

    def load(self, state: list[dict[str, Any]]) -> None:
        """Know these again."""
        self.checks = [(Check(**one["check"]), dict(one["weights"])) for one in state]


def soup(
    module: nn.Module, best: Check, start: Weights, others: Sequence[tuple[Check, Weights]], validate: Validate
) -> list[int]:
    """Greedy soup: the mean of the best steps' weights, each joining only if the validation score rises with it.

    Wortsman et al. 2022, "Model soups", arXiv 2203.05482, algorithm 1, over the steps of one run where the paper has
    runs; a score that stays equal counts as a rise where the validation loss falls.

    Args:
        module: has the best step's weights, and is left with the soup's.
        best: the best step's check.
        start: its weights.
        others: more steps, the best first.
        validate: evaluates the module.

    Returns:
        The steps in the soup, the best one first.
    """
    members, mean, score = [best.step], start, (best.score, -best.val_loss)
    for check, weights in others:
        if check.step in members or weights.keys() != mean.keys():
            continue
        tried = {name: value.lerp(weights[name], 1 / (len(members) + 1)) for name, value in mean.items()}
        put(module, tried)
        loss, found, _ = validate()
        if (found, -loss) > score:
            members, mean, score = [*members, check.step], tried, (found, -loss)
    put(module, mean)
    return members


def interpolate(module: nn.Module, start: Weights, best: tuple[float, float], validate: Validate) -> float:
    """The share of the tuned weights, between the weights at the start (0) and the tuned ones (1), that validates best.

    WiSE-FT: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", arXiv 2109.01903:
    w = (1 − α) w_start + α w_tuned. A share below 1 is taken only if it scores higher, or the same at a lower loss.

    Args:
        module: has the tuned weights, and is left with the best ones.
        start: the weights before tuning.
        best: the tuned weights' validation score and loss.
        validate: evaluates the module.

    Returns:
        α.
    """
    tuned = copied({name: value for name, value in trained_weights(module).items() if name in start})
    chosen, score = 1.0, (best[0], -best[1])
    for share in (*reversed(STEPS), 0.0):
        put(module, {name: start[name].lerp(value, share) for name, value in tuned.items()})
        loss, found, _ = validate()
        if (found, -loss) > score:
            chosen, score = share, (found, -loss)
    put(module, {name: start[name].lerp(value, chosen) if chosen < 1 else value for name, value in tuned.items()})
    return chosen


def averaged(
    learner: nn.Module,
    settings: TrainerConfig,
    start: dict[str, Tensor],
    kept: Kept | None,
    best: BestStep,
    validate: Validate,
) -> list[str]:
    """Average the best step's weights with others, as the settings say; gives what was done, in sentences."""
    said: list[str] = []
    assert best.check is not None
    loss, score = best.check.val_loss, best.check.score
    if kept is not None:
        steps = soup(learner, best.check, copied(trained_weights(learner)), kept.checks, validate)
        loss, score, _ = validate()
        if len(steps) > 1:
            listed = ", ".join(map(str, steps))
            said.append(f"The weights are the mean of those at steps {listed} (soup): {score:.4f} on validation rows.")
        else:
            said.append("No other step's weights raised the validation score, so the soup is the best step alone.")
    if settings.interpolate:
        share = interpolate(learner, start, (score, loss), validate)
        said.append(
            f"Of the way from the weights before tuning to the tuned ones, {share:.0%} is kept, as validation rows say."
        )
    return said
