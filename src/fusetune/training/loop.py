"""The training loop: one stage from top to bottom.

A run has stages, each with its own trainable parameters, learning rates and length; they share the callbacks.
"""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import get_scheduler

from fusetune import _private
from fusetune.data.examples import Examples
from fusetune.data.sampler import UpdateSampler
from fusetune.errors import Interrupted, NonFiniteLoss, RunError
from fusetune.inference.memory import retain_freed_memory, trim_memory
from fusetune.models.perturb import RngState
from fusetune.training.averaging import Average, load_weights, nonfinite_names, teachers_of, trained_weights
from fusetune.training.callbacks import Callback, Check, EarlyStopping, Validate
from fusetune.training.checkpoints.checkpoint_manager import (
    CheckpointManager,
    State,
    callback_states,
    gather_states,
    load_callback_states,
    rng_states,
    set_rng_states,
    trainable_state,
)
from fusetune.training.dropout import quick_dropout
from fusetune.training.hardware.devices import release
from fusetune.training.hardware.memory import fit_micro_batches
from fusetune.training.hardware.precision import Autocast
from fusetune.training.learner import Learner
from fusetune.training.loader import PREFETCH, BatchLoader
from fusetune.training.mining import Miner
from fusetune.training.optim import build_optimizer, unwrapped
from fusetune.training.stage import Stage
from fusetune.training.updates.update import Buffers, is_out_of_memory, update


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
        stage: its settings.
        train: prepared rows; those in `used` are trained on.
        validate: evaluates the learner's model on the validation rows.
        accelerator: devices, precision, gradient synchronisation, trackers.
        callbacks: called at every update and check.
        first_step: updates made in earlier stages.
        manager: saves checkpoints, and may hold one to resume from; None saves nothing.

    Returns:
        Number of updates so far, this stage's included.

    Raises:
        NonFiniteLoss: the loss or the gradient became NaN or infinite; the weights are not updated.
        RunError: memory is too short for a single row.
        StorageError: a checkpoint cannot be written.
        Interrupted: a signal was received; the state was saved.
    """
    running = _StageRun(
        learner, stage, train, validate, accelerator, callbacks, first_step, manager or CheckpointManager()
    )
    try:
        draws = quick_dropout(learner) if accelerator.device.type == "cpu" else nullcontext()
        with running.manager.handle_signals(), retain_freed_memory(), draws:
            running.start_or_resume()
            while not running.make_updates():
                pass
            if running.miner is not None:
                stage.notes.append(running.miner.summary(stage.name))
    finally:
        release(accelerator)
        _private.unwrap_forward(learner)
    return first_step + running.done


class _StageRun:
    """A stage while it runs: `done` updates, skipped ones included, and `checked` of them at the last check."""

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
        self.sampler = sampler_of(learner, stage, train, accelerator)
        self.num_updates = max(1, round(stage.epochs * self.sampler.num_updates))
        self.miner = Miner.of(learner, train, accelerator)
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
        self.stopping = EarlyStopping(stage.patience)
        self.average = Average(learner, stage.ema) if stage.ema is not None else None
        self.callbacks = [*callbacks, self.stopping, *([self.average] if self.average is not None else [])]
        self.callbacks += teachers_of(learner.model, learner.objective.objectives)
        self.done, self.checked, self.loss_sum, self.loss_count, self.skipped = 0, 0, 0.0, 0, 0

    def start_or_resume(self) -> None:
        """Load the checkpoint of this stage, if there is one, and tell the callbacks that the stage begins."""
        saved = self.manager.pop(self.stage.name)
        if saved is not None:
            with self.manager.reading():
                self._load(saved)
        for callback in self.callbacks:
            callback.on_stage(self.stage.name, self.num_updates, self.done)
        if saved is None:
            self._mine_if_due()
        self.wrapped.train()
        if saved is None and self.stage.fits_memory:
            self._warn(
                fit_micro_batches(self.learner, self.train, self.sampler, self.accelerator, self.stage.gradients)
            )

    def make_updates(self) -> bool:
        """Make updates; return whether the stage is over.

        It is not when micro-batches were halved for lack of memory, or when negatives are to be mined again.
        """
        stage, accelerator = self.stage, self.accelerator
        on_gpu = accelerator.device.type == "cuda"
        prefetch = 0 if accelerator.device.type == "cpu" else PREFETCH
        if self._evaluate_if_due():
            return True
        last = self._mine_if_due()
        seconds, waited, paused = stage.seconds, stage.waited, 0.0
        start = time.perf_counter()
        options: dict[str, Any] = {"first": self.done, "workers": stage.workers, "prefetch": prefetch, "pin": on_gpu}
        with BatchLoader(self.train, self.sampler, last, **options) as loader:
            for micro_batches in loader:
                losses = self._update(micro_batches)
                trim_memory()
                if losses is None:
                    return False
                self.done += 1
                lr = max(group["lr"] for group in self.optimizer.param_groups)
                self.scheduler.step()
                if losses:
                    self.loss_sum, self.loss_count = self.loss_sum + sum(losses.values()), self.loss_count + 1
                    for callback in self.callbacks:
                        callback.on_update(self.first_step + self.done, losses, lr, self.learner.figures())
                balance = self.learner.objective.balance
                if balance is not None and self.done % self.sampler.num_updates == 0:
                    balance.end_epoch()
                pause = time.perf_counter()
                stage.seconds, stage.waited = seconds + pause - start - paused, waited + loader.waited
                if self.manager.due(accelerator):
                    self._save()
                    self.manager.raise_if_signalled()
                over = self._evaluate_if_due()
                paused += time.perf_counter() - pause
                if over:
                    return True
        return False

    def _mine_if_due(self) -> int:
        """Mine hard negatives if an epoch begins that is to have new ones; return the last update that has them."""
        if self.miner is None:
            return self.num_updates
        if self.miner.next_time(self.done, self.sampler.num_updates) == self.done:
            self.train = self.miner.mine(self.done)
            self.wrapped.train()
        return min(self.num_updates, self.miner.next_time(self.done, self.sampler.num_updates))

    def _evaluate_if_due(self) -> bool:
        """Evaluate on the validation rows if a check is due; return whether the stage is over."""
        ended = self.done == self.num_updates
        late = not ended and self.stage.deadline.passed()
        if self.done and self.checked != self.done and (ended or late or self.done % self.eval_every == 0):
            self._check()
            self.wrapped.train()
            self.manager.raise_if_signalled()
        self.stage.out_of_time = late and not self.stopping.stop
        if self.stage.out_of_time:
            at = f"{self.done} of {self.num_updates} updates of stage {self.stage.name!r}"
            self._warn(f"The time for training was up after {at}: the best step so far is kept (trainer.minutes).")
        return ended or late or self.stopping.stop

    def _check(self) -> None:
        """Evaluate on the validation rows and tell the callbacks; save and stop if a signal interrupts it."""
        lr = max(group["lr"] for group in self.optimizer.param_groups)
        balance = self.learner.objective.balance
        with self.average.swapped() if self.average is not None else nullcontext():
            try:
                with self.manager.interruptible(self.accelerator.num_processes):
                    results = self.validate()
            except Interrupted:
                interrupted = True
            else:
                interrupted = False
                epoch = self.done / self.sampler.num_updates
                mean = self.loss_sum / self.loss_count if self.loss_count else None
                check = Check(self.stage.name, self.first_step + self.done, epoch, mean, *results, lr)
                check.task_losses = balance.pop_means() if balance is not None else {}
                for callback in self.callbacks:
                    callback.on_check(check)
                self.loss_sum, self.loss_count, self.checked = 0.0, 0, self.done
        if interrupted:
            self._save()
            self.manager.raise_if_signalled()

    def _update(self, micro_batches: Sequence[Any]) -> dict[str, float] | None:
        """Update once; return the losses, empty if it was skipped, None if memory ran out and it must be repeated."""
        rng_state = RngState(self.accelerator.device)
        self.buffers.save()
        self.learner.objective.start_update()
        balance = self.learner.objective.balance
        balance_state = balance.process_state() if balance is not None else None
        where = f"update {self.first_step + self.done + 1} of stage {self.stage.name!r}"
        given = (self.wrapped, micro_batches, self.optimizer, self.accelerator, self.stage.gradients, self.trained)
        try:
            losses = update(*given, clip=self.stage.clip, where=where)
            self.learner.objective.end_update()
            return losses
        except NonFiniteLoss as error:
            self._skip(error)
            out_of_memory = False
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._halve(where, str(error).splitlines()[0])
            out_of_memory = True
        self.buffers.restore()
        if balance is not None:
            balance.load_process_state(balance_state)
        if not out_of_memory:
            return {}
        self.optimizer.zero_grad()
        rng_state.restore()
        gc.collect()
        if self.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _skip(self, error: NonFiniteLoss) -> None:
        """Count a skipped update and warn, if the stage allows it.

        Raises:
            NonFiniteLoss: the stage may skip no more updates.
        """
        self.skipped += 1
        if self.stage.skip is None:
            raise error
        if self.skipped > self.stage.skip:
            raise NonFiniteLoss(
                f"{error}\n  trainer.skip_nonfinite={self.stage.skip} such updates were skipped before."
            )
        self._warn(f"An update was skipped: {str(error).splitlines()[0]}.")

    def _halve(self, where: str, why: str) -> None:
        """Double the number of micro-batches an update, which halves their size.

        Raises:
            RunError: a micro-batch has a single row, or several processes would have to agree.
        """
        rows = -(-self.stage.batch_size // (self.sampler.accumulate * self.accelerator.num_processes))
        if rows <= 1 or self.accelerator.num_processes > 1:
            raise RunError(
                f"memory ran out at {where}, with {rows} rows a micro-batch: {why}\n"
                "  Do: trainer.accumulate=N makes micro-batches smaller; freeze backbones, shorten texts "
                "(text.max_tokens), trainer.gradient_checkpointing=true"
            )
        self.sampler.accumulate *= 2
        self._warn(
            f"Memory ran out at {where}: from there on an update is made of {self.sampler.accumulate} micro-batches "
            f"(trainer.accumulate={self.sampler.accumulate}) of {-(-rows // 2)} rows; the batch size is unchanged."
        )

    def _warn(self, text: str) -> None:
        if text:
            self.stage.notes.append(text)
            warnings.warn(text, stacklevel=2)

    def _save(self) -> None:
        """Save a checkpoint of the state after the last update; NonFiniteLoss if a weight is not finite."""
        accelerator, balance = self.accelerator, self.learner.objective.balance
        balance_state = balance.process_state() if balance is not None else None
        process_state = {"generators": rng_states(accelerator.device), "balance": balance_state}
        scaler = accelerator.scaler
        state: State = {
            "stage": self.stage.name,
            "precision": str(accelerator.mixed_precision),
            "done": self.done,
            "checked": self.checked,
            "accumulate": self.sampler.accumulate,
            "weights": trainable_state(self.learner),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "processes": gather_states(process_state, accelerator),
            "watchers": callback_states(self.callbacks),
            "outer": self.manager.outer_state(),
            "sums": [self.loss_sum, self.loss_count, self.skipped, self.stage.seconds, self.stage.waited],
            "said": self.stage.notes,
            "mined": None if self.miner is None else self.miner.state(),
        }
        states = self.optimizer.state.values()
        moments = [value for state in states for value in state.values() if torch.is_tensor(value)]
        named = trained_weights(self.learner) | {f"optimizer's {index}": value for index, value in enumerate(moments)}
        if bad := nonfinite_names(named):
            raise NonFiniteLoss(
                f"{', '.join(bad[:3])} became NaN or infinite by update {self.first_step + self.done}, so no "
                "checkpoint was written\n  Do: lower trainer.lr and trainer.backbone_lr, set trainer.clip"
            )
        self.manager.save(state, accelerator)

    def _load(self, saved: State) -> None:
        """Load a checkpoint's state."""
        load_weights(self.learner, saved["weights"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scheduler.load_state_dict(saved["scheduler"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        load_callback_states(self.callbacks, saved["watchers"])
        self.done, self.checked, self.sampler.accumulate = saved["done"], saved["checked"], saved["accumulate"]
        self.loss_sum, self.loss_count, self.skipped, self.stage.seconds, self.stage.waited = saved["sums"]
        self.stage.notes = list(saved["said"])
        if self.miner is not None and saved.get("mined") is not None:
            self.train = self.miner.load(saved["mined"])
        process_state = saved["processes"][self.accelerator.process_index]
        balance = self.learner.objective.balance
        if balance is not None:
            balance.load_process_state(process_state["balance"])
        set_rng_states(process_state["generators"], self.accelerator.device)


def sampler_of(learner: Learner, stage: Stage, train: Examples, accelerator: Accelerator) -> UpdateSampler:
    """Return the sampler of this process's rows; they are not sorted by length if an objective compares them."""
    return train.sampler(
        batch_size=stage.batch_size,
        accumulate=stage.accumulate,
        seed=stage.seed,
        process=accelerator.process_index,
        num_processes=accelerator.num_processes,
        by_cost=not learner.objective.batch_objectives(),
    )
