"""Weight averaging: an exponential moving average, a greedy soup of the best steps, interpolation with the start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.backbones.inspection.structure import BATCH_NORMS
from fusetune.config.trainer import TrainerConfig
from fusetune.objectives.base import Objective
from fusetune.training.callbacks import BestStep, Callback, Check, Validate, better
from fusetune.training.hardware.dtensor import full_tensor
from fusetune.training.score_error import ScoreError

Weights = dict[str, Tensor]

SHARES = tuple(step / 10 for step in range(1, 10))
"""Shares of the tuned weights that `interpolate` tries besides 0 and 1."""


def trained_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return the trainable parameters, and the running statistics of batch norms that are trained, by name."""
    weights: dict[str, Tensor] = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    for path, part in module.named_modules():
        if isinstance(part, BATCH_NORMS) and any(p.requires_grad for p in part.parameters()):
            weights |= {f"{path}.{name}": value for name, value in part.named_buffers() if value.is_floating_point()}
    return weights


def nonfinite_names(weights: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that hold NaN or infinity."""
    return [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]


def copy_to_cpu(weights: Mapping[str, Tensor]) -> Weights:
    """Copy the tensors to the CPU; sharded ones in full, so every process must call it."""
    return {name: full_tensor(value.detach()).to("cpu", copy=True) for name, value in weights.items()}


@torch.no_grad()
def load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy values into a module's parameters and buffers of the same names.

    Raises:
        ValueError: a shape differs.
    """
    state = dict(module.named_parameters()) | dict(module.named_buffers())
    for name, value in weights.items():
        if value.shape != state[name].shape:
            raise ValueError(f"{name} has the shape {tuple(value.shape)}, not {tuple(state[name].shape)}")
        state[name].copy_(value)


class Average(Callback):
    """Exponential moving average of the weights, which is evaluated and saved instead of them.

    v ← d v + (1 − d) w after every update, d = min(decay, (1 + t)/(10 + t)) after t updates, so that the initial
    weights lose their influence soon. Polyak and Juditsky 1992; the warm-up is that of TensorFlow's
    `ExponentialMovingAverage(num_updates)`.

    Args:
        module: the trained module.
        decay: d, in (0, 1).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay, self.updates = module, decay, 0
        self.values = {name: value.clone() for name, value in trained_weights(module).items()}

    @torch.no_grad()
    def on_update(self, step: int, losses: dict[str, float], lr: float, figures: dict[str, float]) -> None:
        """Update the average with the present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in trained_weights(self.module).items():
            self.values[name].lerp_(value, 1 - decay)

    def state(self) -> dict[str, Any]:
        """Return the averages and the number of updates in them."""
        return {"values": self.values, "updates": self.updates}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore `state`'s result."""
        for name, value in self.values.items():
            value.copy_(state["values"][name])
        self.updates = state["updates"]

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Give the module the averaged weights within the context, and restore its own exactly after it."""
        own = {name: value.clone() for name, value in trained_weights(self.module).items()}
        load_weights(self.module, self.values)
        try:
            yield
        finally:
            load_weights(self.module, own)


class Teacher(Average):
    """The moving average of the model's weights that teaches in an objective (mean teacher).

    Args:
        model: the trained model.
        objective: gets the averages as its `teacher`.
        decay: see `Average`.
    """

    def __init__(self, model: nn.Module, objective: Objective, decay: float) -> None:
        super().__init__(model, decay)
        objective.teacher = self.values


def teachers_of(model: nn.Module, objectives: Iterable[nn.Module]) -> list[Teacher]:
    """Return a teacher for each objective that is taught by averaged weights."""
    parts = [part for part in objectives if isinstance(part, Objective)]
    return [Teacher(model, part, part.teacher_decay) for part in parts if part.teacher_decay is not None]


@dataclass
class BestSteps(Callback):
    """Keeps the weights of a stage's best checks, on the CPU.

    Attributes:
        module: the trained module.
        stage: name of the stage whose checks count.
        most: number of checks to keep.
        error: the score's standard error; see `better`.
        checks: the checks with their weights, the best first.
    """

    module: nn.Module
    stage: str
    most: int
    error: ScoreError = field(default_factory=ScoreError)
    checks: list[tuple[Check, Weights]] = field(default_factory=list)

    def on_check(self, check: Check) -> None:
        """Keep the weights if the check is among the best."""
        if check.stage != self.stage:
            return
        beaten = (i for i, (old, _) in enumerate(self.checks) if better(check, old, self.error.margin))
        rank = next(beaten, len(self.checks))
        if rank < self.most:
            self.checks.insert(rank, (check, copy_to_cpu(trained_weights(self.module))))
            del self.checks[self.most :]

    def state(self) -> list[dict[str, Any]]:
        """Return the checks with their weights."""
        return [{"check": asdict(check), "weights": weights} for check, weights in self.checks]

    def load(self, state: list[dict[str, Any]]) -> None:
        """Restore `state`'s result."""
        self.checks = [(Check(**entry["check"]), dict(entry["weights"])) for entry in state]


def soup(
    module: nn.Module, best: Check, start: Weights, others: Sequence[tuple[Check, Weights]], validate: Validate
) -> list[int]:
    """Average the best steps' weights greedily: a step joins only if the validation score rises with it.

    Wortsman et al. 2022, "Model soups", arXiv 2203.05482, algorithm 1, over the steps of one run instead of several
    runs. An equal score with a lower validation loss counts as a rise.

    Args:
        module: has the best step's weights, and gets the soup's.
        best: the best step's check.
        start: the best step's weights.
        others: further steps, the best first.
        validate: evaluates the module.

    Returns:
        The steps in the soup, the best one first.
    """
    members, mean, score = [best.step], start, (best.score, -best.val_loss)
    for check, weights in others:
        if check.step in members or weights.keys() != mean.keys():
            continue
        candidate = {name: value.lerp(weights[name], 1 / (len(members) + 1)) for name, value in mean.items()}
        load_weights(module, candidate)
        loss, new_score, _ = validate()
        if (new_score, -loss) > score:
            members, mean, score = [*members, check.step], candidate, (new_score, -loss)
    load_weights(module, mean)
    return members


def interpolate(module: nn.Module, start: Weights, best: tuple[float, float], validate: Validate) -> float:
    """Interpolate between the initial and the tuned weights at the share α of the tuned ones that validates best.

    WiSE-FT: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", arXiv 2109.01903:
    w = (1 − α) w_start + α w_tuned. A share below 1 is chosen only if it scores higher, or equally at a lower loss.

    Args:
        module: has the tuned weights, and gets the interpolated ones.
        start: the weights before tuning.
        best: the tuned weights' validation score and loss.
        validate: evaluates the module.

    Returns:
        α.
    """
    tuned = copy_to_cpu({name: value for name, value in trained_weights(module).items() if name in start})
    chosen, score = 1.0, (best[0], -best[1])
    for share in (*reversed(SHARES), 0.0):
        load_weights(module, {name: start[name].lerp(value, share) for name, value in tuned.items()})
        loss, new_score, _ = validate()
        if (new_score, -loss) > score:
            chosen, score = share, (new_score, -loss)
    load_weights(
        module, {name: start[name].lerp(value, chosen) if chosen < 1 else value for name, value in tuned.items()}
    )
    return chosen


def average_weights(
    learner: nn.Module,
    settings: TrainerConfig,
    start: dict[str, Tensor],
    candidates: BestSteps | None,
    best: BestStep,
    validate: Validate,
) -> list[str]:
    """Average the best step's weights with others, as the settings say.

    Args:
        learner: has the best step's weights, and gets the averaged ones.
        settings: `interpolate` decides about the interpolation.
        start: the weights before tuning.
        candidates: the steps for a soup; None makes none.
        best: holds the best step's check.
        validate: evaluates the learner's model.

    Returns:
        Sentences on what was done.
    """
    notes: list[str] = []
    assert best.check is not None
    loss, score = best.check.val_loss, best.check.score
    if candidates is not None:
        steps = soup(learner, best.check, copy_to_cpu(trained_weights(learner)), candidates.checks, validate)
        loss, score, _ = validate()
        if len(steps) > 1:
            listed = ", ".join(map(str, steps))
            notes.append(f"The weights are the mean of those at steps {listed} (soup): {score:.4f} on validation rows.")
        else:
            notes.append("No other step's weights raised the validation score, so the soup is the best step alone.")
    if settings.interpolate:
        share = interpolate(learner, start, (score, loss), validate)
        notes.append(
            f"The weights are interpolated: {share:.0%} tuned, {1 - share:.0%} as before tuning, the share that "
            "validates best."
        )
    return notes
