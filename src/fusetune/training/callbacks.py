"""What watches a training run: the best step, early stopping, the learning curve, trackers, progress."""

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
"""Gives (loss, score, metrics by task) on the validation rows."""


@dataclass
class Check:
    """One evaluation on validation rows.

    Attributes:
        stage: the stage it was made in.
        step: updates so far, over all stages.
        epoch: epochs so far in this stage.
        train_loss: mean loss of the updates since the last check; None before the first.
        val_loss: on the validation rows.
        score: the mean over tasks of the main metric, turned so that more is better.
        metrics: per task, its metrics, the main one first.
        lr: the largest learning rate now.
        task_losses: per task, where there are several: the mean of its loss, divided by that of the constant guess,
            over the updates since the last check.
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
    """Hooks of the loop; every one may be left out."""

    def on_stage(self, name: str, num_updates: int, done: int) -> None:
        """A stage begins, or is gone on with after some updates."""

    def on_update(self, step: int, losses: dict[str, float], lr: float, figures: dict[str, float]) -> None:
        """An update was made; `figures` are logged besides the losses."""

    def on_check(self, check: Check) -> None:
        """The model was evaluated on validation rows."""

    def on_end(self) -> None:
        """The run is over, well or not."""

    def state(self) -> Any:
        """What it knows, as a checkpoint keeps it; None for nothing."""
        return None

    def load(self, state: Any) -> None:
        """Know this again."""


class BestStep(Callback):
    """Keep the weights of the best check, on the CPU; see `better`.

    Attributes:
        module: what is trained.
        error: the score's standard error, which gives the margin.
        check: the best one so far.
    """

    def __init__(self, module: nn.Module, *, error: ScoreError | None = None) -> None:
        self.module, self.error = module, error or ScoreError()
        self.check: Check | None = None
        self._weights: dict[str, Tensor] = {}

    def cover(self) -> None:
        """Add what has become trainable since, at its present value: it had that value at the best step too."""
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
        """Put the best step's weights back."""
        state = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        for name, value in self._weights.items():
            state[name].copy_(value)

    def state(self) -> dict[str, Any]:
        """Return the best check, its weights and the score's standard error."""
        check = None if self.check is None else asdict(self.check)
        return {"check": check, "weights": self._weights, "error": self.error.value}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take these up again; a checkpoint without the error leaves it to the next check."""
        self.check = None if state["check"] is None else Check(**state["check"])
        self._weights = dict(state["weights"])
        self.error.value = state.get("error")


def better(new: Check, old: Check, margin: float = 0.0) -> bool:
    """Return whether a check beats an earlier one.

    A higher score does if it gained more than `margin`, or if the validation loss is not higher; equal scores go by the
    loss. A lower score never does, and an undefined one beats nothing. The best check so far is therefore at most
    `margin` below the highest score.

    Args:
        new: the later check.
        old: the one to beat.
        margin: in the score's unit, 0 or more; see `ScoreError.margin`.
    """
    if math.isnan(new.score) or math.isnan(old.score):
        return math.isnan(old.score) and (not math.isnan(new.score) or new.val_loss < old.val_loss)
    gain = new.score - old.score
    return gain > margin or (gain >= 0 and (new.val_loss <= old.val_loss if gain else new.val_loss < old.val_loss))


class EarlyStopping(Callback):
    """Say stop after `patience` checks of a stage without a better one.

    Any higher score counts as better, however small the gain: a stage goes on while the score rises.
    """

    def __init__(self, patience: int | None) -> None:
        self.patience = patience
        self.best: Check | None = None
        self.waited = 0

    def on_check(self, check: Check) -> None:
        """Count the check."""
        if self.best is None or better(check, self.best):
            self.best, self.waited = check, 0
        else:
            self.waited += 1

    @property
    def stop(self) -> bool:
        """Whether to stop now."""
        return self.patience is not None and self.waited >= self.patience

    def state(self) -> dict[str, Any]:
        """The stage's best check and the checks since."""
        return {"best": None if self.best is None else asdict(self.best), "waited": self.waited}

    def load(self, state: Mapping[str, Any]) -> None:
        """Know these again."""
        self.best = None if state["best"] is None else Check(**state["best"])
        self.waited = state["waited"]


@dataclass
class Curve(Callback):
    """Every check, in order."""

    checks: list[Check] = field(default_factory=list)

    def on_check(self, check: Check) -> None:
        """Keep it."""
        self.checks.append(check)

    def state(self) -> list[dict[str, Any]]:
        """The checks."""
        return [asdict(check) for check in self.checks]

    def load(self, state: list[dict[str, Any]]) -> None:
        """Know these again."""
        self.checks = [Check(**check) for check in state]


class Trackers(Callback):
    """TensorBoard, Weights & Biases and whatever else accelerate knows by name."""

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
    """Shows the stage, the updates made, the loss and the validation score on standard error.

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
        """Take the display away."""
        self.display.end()
