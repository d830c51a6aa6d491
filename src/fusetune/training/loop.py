"""The training loop: one stage from top to bottom.

A run is one or more stages, each with its own trainable parameters, learning rates and length; what watches them
(`callbacks`) is shared, so that the best step is the best of all stages.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from accelerate.utils import AutocastKwargs, set_seed
from transformers import get_scheduler

from fusetune.data.examples import Examples
from fusetune.data.sampler import UpdateSampler
from fusetune.training.averaging import Average
from fusetune.training.callbacks import Callback, Check, EarlyStopping
from fusetune.training.feed import AHEAD, Feed
from fusetune.training.learner import Learner
from fusetune.training.optim import build_optimizer
from fusetune.training.update import Gradients, plain, update

Validate = Callable[[], tuple[float, float, dict[str, dict[str, float]]]]
"""Gives (loss, score, metrics by task) on the validation rows."""


@dataclass
class Stage:
    """What one stage does.

    Attributes:
        name: shown and logged.
        epochs: passes over the train rows; may be a fraction.
        groups: the optimiser's parameter groups with their peak `lr` and their `weight_decay`.
        evals_per_epoch: checks on validation rows an epoch.
        patience: checks without a better one before the stage stops; None for never.
        margin: what a score must gain to be better although the validation loss is higher.
        gradients: how an update's gradients are computed.
        autocast: whether the accelerator's lower precision is used.
        seconds: set by the run: what the updates took, checks not counted.
        waited: set by the run: what of it went by in waiting for batches.
        ema: the decay of the weights' moving average, which is then evaluated and kept in their place.
    """

    name: str
    epochs: float
    groups: list[dict[str, Any]]
    optimizer: str = "adamw"
    schedule: str = "cosine"
    warmup: float = 0.1
    clip: float | None = 1.0
    batch_size: int = 32
    accumulate: int = 1
    evals_per_epoch: int = 1
    patience: int | None = None
    margin: float = 0.0
    workers: int = 0
    seed: int = 0
    gradients: Gradients = plain
    ema: float | None = None
    autocast: bool = True
    seconds: float = 0.0
    waited: float = 0.0


def run_stage(
    learner: Learner,
    stage: Stage,
    train: Examples,
    validate: Validate,
    accelerator: Accelerator,
    callbacks: Sequence[Callback],
    *,
    first_step: int = 0,
) -> int:
    """Train for one stage.

    Args:
        learner: on the accelerator's device.
        stage: what to do.
        train: prepared rows; those in `used` are trained on.
        validate: evaluates the learner's model.
        accelerator: devices, precision, gradient synchronisation, trackers.
        callbacks: called at every update and check.
        first_step: updates made in earlier stages.

    Returns:
        Updates made so far, this stage's included.

    Raises:
        NonFiniteLoss: the loss or the gradient became NaN or infinite; that update is not made.
    """
    set_seed(stage.seed, device_specific=True)
    sampler = _sampler(stage, train, accelerator)
    num_updates = max(1, round(stage.epochs * sampler.num_updates))
    eval_every = max(1, sampler.num_updates // stage.evals_per_epoch)
    optimizer = build_optimizer(stage.optimizer, stage.groups, lr=stage.groups[0]["lr"])
    warmup = round(stage.warmup * num_updates)
    scheduler = get_scheduler(stage.schedule, optimizer, num_warmup_steps=warmup, num_training_steps=num_updates)
    accelerator.autocast_handler = AutocastKwargs(enabled=stage.autocast)
    wrapped, optimizer = accelerator.prepare(learner, optimizer)
    stopping = EarlyStopping(stage.patience, margin=stage.margin)
    average = Average(learner, stage.ema) if stage.ema is not None else None
    watchers = [*callbacks, stopping, *([average] if average is not None else [])]
    for watcher in watchers:
        watcher.on_stage(stage.name, num_updates)

    trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    wrapped.train()
    start, loss_sum, loss_count = time.perf_counter(), 0.0, 0
    ahead = 0 if accelerator.device.type == "cpu" else AHEAD
    with Feed(train, sampler, num_updates, workers=stage.workers, ahead=ahead) as feed:
        for done, micro_batches in enumerate(feed, start=1):
            step = first_step + done
            where = f"update {step} of stage {stage.name!r}"
            losses = update(
                wrapped, micro_batches, optimizer, accelerator, stage.gradients, trained, clip=stage.clip, where=where
            )
            lr = max(group["lr"] for group in optimizer.param_groups)
            scheduler.step()
            loss_sum, loss_count = loss_sum + sum(losses.values()), loss_count + 1
            for watcher in watchers:
                watcher.on_update(step, losses, lr, learner.figures())
            balance = learner.objective.balance
            if balance is not None and done % sampler.num_updates == 0:
                balance.end_epoch()
            if done % eval_every == 0 or done == num_updates:
                paused = time.perf_counter()
                with average.swapped() if average is not None else nullcontext():
                    epoch = done / sampler.num_updates
                    check = Check(stage.name, step, epoch, loss_sum / loss_count, *validate(), lr)
                    check.task_losses = balance.take() if balance is not None else {}
                    for watcher in watchers:
                        watcher.on_check(check)
                wrapped.train()
                start, loss_sum, loss_count = start + time.perf_counter() - paused, 0.0, 0
                if stopping.stop:
                    break
        stage.seconds, stage.waited = time.perf_counter() - start, feed.waited
    accelerator.free_memory()
    for name in ("forward", "_original_forward"):  # which mixed precision put there
        learner.__dict__.pop(name, None)
    return step


def _sampler(stage: Stage, train: Examples, accelerator: Accelerator) -> UpdateSampler:
    """What draws the rows of this process."""
    return UpdateSampler(
        train.used,
        train.sizes(train.used),
        batch_size=stage.batch_size,
        accumulate=stage.accumulate,
        seed=stage.seed,
        process=accelerator.process_index,
        num_processes=accelerator.num_processes,
        tables=train.table.parts()[train.used],
        mix=train.mix,
    )
