"""Callbacks of the training loop: best step, early stopping, learning curve, trackers, progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fusetune.training.hardware.dtensor import full_tensor
from fusetune.training.progress import StageBar, StageLines, console, shows_bars
from fusetune.training.score_error import ScoreError

Validate = Callable[[], tuple[float, float, dict[str, dict[str, float]]]]
"""Returns (loss, score, metrics by task) on the validation rows."""


@dataclass
class Check:
    """An evaluation on the validation rows.

    Attributes:
        stage: name of the stage.
        step: number of updates so far, over all stages.
        epoch: number of epochs so far in this stage, a fraction.
        train_loss: mean loss of the updates since the last check; None before the first update.
        val_loss: loss on the validation rows.
        score: mean main metric over tasks, with the sign changed if lower is better; higher is better.
        metrics: by task, its metrics, the main one first.
        lr: the largest learning rate.
        task_losses: by task, if there are several: the mean of its normalised loss over the updates since the last
            check; see `fusetune.objectives.balance`.
    """

    stage: str
    step: int
    epoch: float
    train_loss: float | None
    val_loss: float
    score: float
    metrics: dict[str, dict[str, float]]
    lr: float
    task_losses: dict[str, float] = field(default_factory=dict)


class Callback:
    """Base class of callbacks; every hook is optional."""

    def on_stage(self, name: str, num_updates: int, done: int) -> None:
        """Called when a stage begins, or is resumed after `done` of its updates."""

    def on_update(self, step: int, losses: dict[str, float], lr: float, figures: dict[str, float]) -> None:
        """Called after every update.

        Args:
            step: number of updates so far, over all stages.
            losses: the update's losses by name.
            lr: the largest learning rate.
            figures: further values to log, by name.
        """

    def on_check(self, check: Check) -> None:
        """Called after every evaluation on the validation rows."""

    def on_end(self) -> None:
        """Called once when the run ends, also after an error."""

    def state(self) -> Any:
        """Return the state for a checkpoint; None if there is none."""
        return None

    def load(self, state: Any) -> None:
        """Restore the result of `state`."""


class BestStep(Callback):
    """Keep the weights of the best check, on the CPU; see `better`.

    Attributes:
        module: the trained module.
        error: the score's standard error, from which the margin follows.
        check: the best check so far.
    """

    def __init__(self, module: nn.Module, *, error: ScoreError | None = None) -> None:
        self.module, self.error = module, error or ScoreError()
        self.check: Check | None = None
        self._weights: dict[str, Tensor] = {}

    def cover(self) -> None:
        """Add tensors that have become trainable since the best step, whose values have not changed since then."""
        for name, tensor in self._trained().items():
            if name not in self._weights:
                self._weights[name] = full_tensor(tensor.detach()).to("cpu", copy=True)

    def _trained(self) -> dict[str, Tensor]:
        trained = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        return trained | dict(self.module.named_buffers())

    def on_check(self, check: Check) -> None:
        """Keep these weights if the check is the best so far."""
        if self.check is None or better(check, self.check, self.error.margin):
            self.check = check
            self._weights.update({k: full_tensor(v.detach()).to("cpu", copy=True) for k, v in self._trained().items()})

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the best step's weights."""
        state = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        for name, value in self._weights.items():
            state[name].copy_(value)

    def state(self) -> dict[str, Any]:
        """Return the best check, its weights and the score's standard error."""
        check = None if self.check is None else asdict(self.check)
        return {"check": check, "weights": self._weights, "error": self.error.value}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state`; without a standard error, the next check measures it."""
        self.check = None if state["check"] is None else Check(**state["check"])
        self._weights = dict(state["weights"])
        self.error.value = state.get("error")


def better(new: Check, old: Check, margin: float = 0.0) -> bool:
    """Return whether a check beats an earlier one.

    A higher score does if the gain is more than `margin`, or if the validation loss is not higher. With equal scores
    the lower loss decides. A lower or undefined score never does. So the best check is at most `margin` below the
    highest score.

    Args:
        new: the later check.
        old: the earlier check.
        margin: in the score's unit, 0 or more; see `ScoreError.margin`.
    """
    if math.isnan(new.score) or math.isnan(old.score):
        return math.isnan(old.score) and (not math.isnan(new.score) or new.val_loss < old.val_loss)
    gain = new.score - old.score
    return gain > margin or (gain >= 0 and (new.val_loss <= old.val_loss if gain else new.val_loss < old.val_loss))


class EarlyStopping(Callback):
    """Stop a stage after `patience` checks without a better one.

    Every higher score counts as better, however small the gain, so a stage continues while the score rises.

    Args:
        patience: number of checks; None never stops.
    """

    def __init__(self, patience: int | None) -> None:
        self.patience = patience
        self.best: Check | None = None
        self.waited = 0

    def on_check(self, check: Check) -> None:
        """Count checks without an improvement."""
        if self.best is None or better(check, self.best):
            self.best, self.waited = check, 0
        else:
            self.waited += 1

    @property
    def stop(self) -> bool:
        """Whether to stop the stage."""
        return self.patience is not None and self.waited >= self.patience

    def state(self) -> dict[str, Any]:
        """Return the stage's best check and the number of checks since."""
        return {"best": None if self.best is None else asdict(self.best), "waited": self.waited}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state`."""
        self.best = None if state["best"] is None else Check(**state["best"])
        self.waited = state["waited"]


@dataclass
class Curve(Callback):
    """Collect every check, in order."""

    checks: list[Check] = field(default_factory=list)

    def on_check(self, check: Check) -> None:
        """Append the check."""
        self.checks.append(check)

    def state(self) -> list[dict[str, Any]]:
        """Return the checks."""
        return [asdict(check) for check in self.checks]

    def load(self, state: list[dict[str, Any]]) -> None:
        """Restore the result of `state`."""
        self.checks = [Check(**check) for check in state]


class Trackers(Callback):
    """Log to accelerate's trackers, such as TensorBoard and Weights & Biases."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

    def on_update(self, step: int, losses: dict[str, float], lr: float, figures: dict[str, float]) -> None:
        """Log the losses, the figures and the learning rate."""
        values = {f"train/{name}": value for name, value in {**losses, **figures}.items()}
        self.accelerator.log({**values, "train/lr": lr}, step=step)

    def on_check(self, check: Check) -> None:
        """Log the validation loss and metrics."""
        values: dict[str, Any] = {"val/loss": check.val_loss}
        for task, metrics in check.metrics.items():
            values |= {f"val/{task}/{name}": value for name, value in metrics.items() if math.isfinite(value)}
        self.accelerator.log(values, step=check.step)

    def on_end(self) -> None:
        """Close the trackers."""
        self.accelerator.end_training()


class Bar(Callback):
    """Show the stage, the number of updates, the loss and the validation score on standard error.

    Attributes:
        display: a progress bar on a terminal, else plain lines.
    """

    def __init__(self) -> None:
        to = console()
        self.display: StageBar | StageLines = StageBar(to) if shows_bars(to) else StageLines()
        self.done, self.loss, self.score = 0, "", ""

    def on_stage(self, name: str, num_updates: int, done: int) -> None:
        """Show a new stage."""
        self.done = done
        self.display.begin(name, num_updates, done)

    def on_update(self, step: int, losses: dict[str, float], lr: float, figures: dict[str, float]) -> None:
        """Count an update."""
        self.done += 1
        self.loss = f"loss {sum(losses.values()):.4f}"
        self._show()

    def on_check(self, check: Check) -> None:
        """Show the main metric of each task."""
        mains = [(name, *next(iter(values.items()))) for name, values in check.metrics.items() if values]
        several = len(mains) > 1
        shown = [f"{task + ': ' if several else ''}{metric} {value:.4f}" for task, metric, value in mains]
        self.score = f"val {', '.join(shown) or f'{check.score:.4f}'}"
        self._show()

    def _show(self) -> None:
        self.display.show(self.done, "  ".join(part for part in (self.loss, self.score) if part))

    def on_end(self) -> None:
        """Close the display."""
        self.display.end()
