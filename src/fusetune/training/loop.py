"""The training loop: one stage from top to bottom.

A run is one or more stages, each with its own trainable parameters, learning rates and length; they share callbacks.
"""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import get_scheduler

from fusetune import _private
from fusetune.data.examples import Examples
from fusetune.data.sampler import UpdateSampler
from fusetune.errors import Interrupted, NonFiniteLoss, RunError
from fusetune.inference.memory import kept_memory, settle
from fusetune.models.perturb import RngState
from fusetune.training.averaging import Average, not_finite, put, trained_weights
from fusetune.training.callbacks import Callback, Check, EarlyStopping, Validate
from fusetune.training.checkpoint_manager import (
    CheckpointManager,
    State,
    generators,
    moving,
    of_all_processes,
    set_generators,
    watch_on,
    watched,
)
from fusetune.training.dropout import quick_dropout
from fusetune.training.hardware.devices import release
from fusetune.training.hardware.memory import fit_micro_batches
from fusetune.training.hardware.precision import Autocast
from fusetune.training.learner import Learner
from fusetune.training.loader import AHEAD, BatchLoader
from fusetune.training.optim import build_optimizer, unwrapped
from fusetune.training.updates.update import Buffers, Gradients, is_out_of_memory, plain, update


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
        skip: how many updates whose loss or gradient is not finite are left out; None stops at the first.
        said: set by the run: what it did other than asked, in sentences.
        fits_memory: whether micro-batches may be smaller than `accumulate` makes them, to fit into memory.
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
    skip: int | None = None
    said: list[str] = field(default_factory=list)
    fits_memory: bool = False


def run_stage(
    learner: Learner,
    stage: Stage,
    train: Examples,
    validate: Validate,
    accelerator: Accelerator,
    callbacks: Sequence[Callback],
    *,
    first_step: int = 0,
    manager: CheckpointManager | None = None,
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
        manager: keeps the state, and may have one to go on with.

    Returns:
        Updates made so far, this stage's included.

    Raises:
        NonFiniteLoss: the loss or the gradient became NaN or infinite; that update is not made.
        RunError: memory is short for a single row.
        StorageError: a checkpoint cannot be written.
        Interrupted: a signal came; the state was kept.
    """
    running = _Running(
        learner, stage, train, validate, accelerator, callbacks, first_step, manager or CheckpointManager()
    )
    try:
        draws = quick_dropout(learner) if accelerator.device.type == "cpu" else nullcontext()
        with running.manager.listening(), kept_memory(), draws:
            running.begin()
            while not running.train_on():
                pass
    finally:
        release(accelerator)
        _private.unwrap_forward(learner)
    return first_step + running.done


class _Running:
    """A stage under way.

    Attributes:
        done: updates made, left-out ones included.
        checked: `done` at the last check.
    """

    def __init__(
        self,
        learner: Learner,
        stage: Stage,
        train: Examples,
        validate: Validate,
        accelerator: Accelerator,
        callbacks: Sequence[Callback],
        first_step: int,
        manager: CheckpointManager,
    ) -> None:
        self.learner, self.stage, self.train, self.validate = learner, stage, train, validate
        self.accelerator, self.first_step, self.manager = accelerator, first_step, manager
        set_seed(stage.seed, device_specific=True)
        self.sampler = _sampler(stage, train, accelerator)
        self.num_updates = max(1, round(stage.epochs * self.sampler.num_updates))
        self.eval_every = max(1, self.sampler.num_updates // stage.evals_per_epoch)
        optimizer = build_optimizer(stage.optimizer, stage.groups, lr=stage.groups[0]["lr"])
        warmup = round(stage.warmup * self.num_updates)
        self.scheduler = get_scheduler(
            stage.schedule, optimizer, num_warmup_steps=warmup, num_training_steps=self.num_updates
        )
        accelerator.autocast_handler = Autocast(enabled=stage.autocast)
        self.wrapped, prepared = accelerator.prepare(learner, optimizer)
        self.optimizer = unwrapped(prepared, accelerator)
        self.trained = [parameter for parameter in self.wrapped.parameters() if parameter.requires_grad]
        self.buffers = Buffers(learner)
        self.stopping = EarlyStopping(stage.patience, margin=stage.margin)
        self.average = Average(learner, stage.ema) if stage.ema is not None else None
        self.watchers = [*callbacks, self.stopping, *([self.average] if self.average is not None else [])]
        self.done, self.checked, self.loss_sum, self.loss_count, self.left_out = 0, 0, 0.0, 0, 0

    def begin(self) -> None:
        """From the start, or from a state that was kept."""
        saved = self.manager.take(self.stage.name)
        if saved is not None:
            with self.manager.reading():
                self._load(saved)
        for watcher in self.watchers:
            watcher.on_stage(self.stage.name, self.num_updates, self.done)
        self.wrapped.train()
        if saved is None and self.stage.fits_memory:
            self._say(fit_micro_batches(self.learner, self.train, self.sampler, self.accelerator, self.stage.gradients))

    def train_on(self) -> bool:
        """Make updates until the stage is over: True; or until memory is short and micro-batches are halved: False."""
        stage, accelerator = self.stage, self.accelerator
        on_gpu = accelerator.device.type == "cuda"
        ahead = 0 if accelerator.device.type == "cpu" else AHEAD
        if self._over():
            return True
        seconds, waited, paused = stage.seconds, stage.waited, 0.0
        start = time.perf_counter()
        options: dict[str, Any] = {"first": self.done, "workers": stage.workers, "ahead": ahead, "pin": on_gpu}
        with BatchLoader(self.train, self.sampler, self.num_updates, **options) as loader:
            for micro_batches in loader:
                losses = self._update(micro_batches)
                settle()
                if losses is None:
                    return False
                self.done += 1
                lr = max(group["lr"] for group in self.optimizer.param_groups)
                self.scheduler.step()
                if losses:
                    self.loss_sum, self.loss_count = self.loss_sum + sum(losses.values()), self.loss_count + 1
                    for watcher in self.watchers:
                        watcher.on_update(self.first_step + self.done, losses, lr, self.learner.figures())
                balance = self.learner.objective.balance
                if balance is not None and self.done % self.sampler.num_updates == 0:
                    balance.end_epoch()
                pause = time.perf_counter()
                stage.seconds, stage.waited = seconds + pause - start - paused, waited + loader.waited
                if self.manager.due(accelerator):
                    self._save()
                    self.manager.stop()
                over = self._over()
                paused += time.perf_counter() - pause
                if over:
                    return True
        return True

    def _over(self) -> bool:
        """Check if it is time to; whether there is nothing left to do."""
        ended = self.done == self.num_updates
        if self.done and self.checked != self.done and (ended or self.done % self.eval_every == 0):
            self._check()
            self.wrapped.train()
            self.manager.stop()
        return ended or self.stopping.stop

    def _check(self) -> None:
        lr = max(group["lr"] for group in self.optimizer.param_groups)
        balance = self.learner.objective.balance
        with self.average.swapped() if self.average is not None else nullcontext():
            try:
                with self.manager.may_stop(self.accelerator.num_processes):
                    found = self.validate()
            except Interrupted:
                stopped = True
            else:
                stopped = False
                epoch = self.done / self.sampler.num_updates
                mean = self.loss_sum / self.loss_count if self.loss_count else None
                check = Check(self.stage.name, self.first_step + self.done, epoch, mean, *found, lr)
                check.task_losses = balance.take() if balance is not None else {}
                for watcher in self.watchers:
                    watcher.on_check(check)
                self.loss_sum, self.loss_count, self.checked = 0.0, 0, self.done
        if stopped:
            self._save()
            self.manager.stop()

    def _update(self, micro_batches: Sequence[Any]) -> dict[str, float] | None:
        """The losses; none where the update was left out; None where memory was short and it is to be made again."""
        rng_state = RngState(self.accelerator.device)
        self.buffers.note()
        balance = self.learner.objective.balance
        own = balance.own() if balance is not None else None
        where = f"update {self.first_step + self.done + 1} of stage {self.stage.name!r}"
        given = (self.wrapped, micro_batches, self.optimizer, self.accelerator, self.stage.gradients, self.trained)
        try:
            return update(*given, clip=self.stage.clip, where=where)
        except NonFiniteLoss as error:
            self._leave_out(error)
            short = False
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._halve(where, str(error).splitlines()[0])
            short = True
        self.buffers.restore()
        if balance is not None:
            balance.set_own(own)
        if not short:
            return {}
        self.optimizer.zero_grad()
        rng_state.restore()
        gc.collect()
        if self.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _leave_out(self, error: NonFiniteLoss) -> None:
        """Go on without an update, if that was asked for.

        Raises:
            NonFiniteLoss: it was not, or there were too many.
        """
        self.left_out += 1
        if self.stage.skip is None:
            raise error
        if self.left_out > self.stage.skip:
            raise NonFiniteLoss(
                f"{error}\n  trainer.skip_nonfinite={self.stage.skip} such updates were left out before."
            )
        self._say(f"An update was left out: {str(error).splitlines()[0]}.")

    def _halve(self, where: str, why: str) -> None:
        """Have the same updates made of micro-batches of half the size.

        Raises:
            RunError: they have a single row each, or several processes would have to agree.
        """
        rows = -(-self.stage.batch_size // (self.sampler.accumulate * self.accelerator.num_processes))
        if rows <= 1 or self.accelerator.num_processes > 1:
            raise RunError(
                f"memory was short at {where}, with {rows} rows a micro-batch: {why}\n"
                "  Do: trainer.accumulate=N makes micro-batches smaller; freeze backbones, shorten texts "
                "(text.max_tokens), trainer.gradient_checkpointing=true"
            )
        self.sampler.accumulate *= 2
        self._say(
            f"Memory was short at {where}: from there on an update is made of {self.sampler.accumulate} micro-batches "
            f"(trainer.accumulate={self.sampler.accumulate}) of {-(-rows // 2)} rows, the batch size is the same."
        )

    def _say(self, text: str) -> None:
        if text:
            self.stage.said.append(text)
            warnings.warn(text, stacklevel=2)

    def _save(self) -> None:
        """Keep the state as it is after an update."""
        accelerator, balance = self.accelerator, self.learner.objective.balance
        own = {"generators": generators(accelerator.device), "balance": balance.own() if balance is not None else None}
        scaler = accelerator.scaler
        state: State = {
            "stage": self.stage.name,
            "precision": str(accelerator.mixed_precision),
            "done": self.done,
            "checked": self.checked,
            "accumulate": self.sampler.accumulate,
            "weights": moving(self.learner),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "processes": of_all_processes(own, accelerator),
            "watchers": watched(self.watchers),
            "outer": self.manager.outer(),
            "sums": [self.loss_sum, self.loss_count, self.left_out, self.stage.seconds, self.stage.waited],
            "said": self.stage.said,
        }
        means = [value for held in self.optimizer.state.values() for value in held.values() if torch.is_tensor(value)]
        named = trained_weights(self.learner) | {f"optimizer's {at}": value for at, value in enumerate(means)}
        if bad := not_finite(named):
            raise NonFiniteLoss(
                f"{', '.join(bad[:3])} became NaN or infinite by update {self.first_step + self.done}, so no "
                "checkpoint was written\n  Do: lower trainer.lr and trainer.backbone_lr, set trainer.clip"
            )
        self.manager.save(state, accelerator)

    def _load(self, saved: State) -> None:
        """Be where the state was kept."""
        put(self.learner, saved["weights"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scheduler.load_state_dict(saved["scheduler"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        watch_on(self.watchers, saved["watchers"])
        self.done, self.checked, self.sampler.accumulate = saved["done"], saved["checked"], saved["accumulate"]
        self.loss_sum, self.loss_count, self.left_out, self.stage.seconds, self.stage.waited = saved["sums"]
        self.stage.said = list(saved["said"])
        own = saved["processes"][self.accelerator.process_index]
        balance = self.learner.objective.balance
        if balance is not None:
            balance.set_own(own["balance"])
        set_generators(own["generators"], self.accelerator.device)


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
        tables=train.table.parts()[train.used] if train.mix != 1 else None,
        mix=train.mix,
    )
