"""Run the stages of a training: the head stage on frozen features, then the tune stage; keep the best step."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from fusetune.backbones.passes.compiled import compiling
from fusetune.data.examples import Examples
from fusetune.inference.features import augmented_views
from fusetune.training.averaging import BestSteps, average_weights, copy_to_cpu, trained_weights
from fusetune.training.callbacks import Bar, BestStep, Callback, Check, Validate
from fusetune.training.checkpoints.checkpoint_manager import load_callback_states
from fusetune.training.frozen_blocks import choose_frozen_blocks
from fusetune.training.hardware.frozen import frozen_in_bf16
from fusetune.training.hardware.replay import graphs
from fusetune.training.hardware.shard import sharded
from fusetune.training.learner import Learner
from fusetune.training.loop import run_stage
from fusetune.training.optim import no_decay
from fusetune.training.plan import Evaluate, RunContext, TrainingRows
from fusetune.training.progress import track
from fusetune.training.recipe import Recipe
from fusetune.training.stage import Stage
from fusetune.training.trunk import attach_trunks


@dataclass
class StageRunner:
    """Runs the head stage, then the tune stage; each is left at the best step so far.

    Attributes:
        recipe: what the stages train, and how.
        learner: the model and its objective, on the accelerator's device.
        rows: train and validation rows with their frozen features.
        evaluate: measures the model on validation rows.
        accelerator: device, precision, processes.
        best: keeps the best step.
        others: callbacks that log and show progress.
        context: cache, checkpoints.
        start: the trained weights before the stage under way.
        step: the number of updates before it.
        callbacks: all of them, the best step first.
    """

    recipe: Recipe
    learner: Learner
    rows: TrainingRows
    evaluate: Evaluate
    accelerator: Accelerator
    best: BestStep
    others: Sequence[Callback]
    context: RunContext
    start: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    callbacks: list[Callback] = field(init=False, default_factory=list)

    def run(self) -> set[str]:
        """Run the stages, then average weights if the settings ask for it; return the keys of the tuned encoders."""
        recipe, settings, learner = self.recipe, self.recipe.settings, self.learner
        last = "tune" if recipe.tunes() else "head"
        kept = BestSteps(learner, last, settings.soup, self.best.error) if settings.soup is not None else None
        self.callbacks = [self.best, *self.others, *([kept] if kept is not None else [])]
        self._resume()
        if settings.head_epochs != 0:
            self._run_head()
        if recipe.tunes() and not recipe.deadline.passed():
            choose_frozen_blocks(recipe, learner, self.rows)
        with sharded(learner, recipe.movable() if settings.shard else []) as spread:
            recipe.undecayed |= {parameter for part in spread for parameter in no_decay(part)}
            tune, moving, validate = self._run_tune(last, always=bool(spread))
        if tune is not None:
            recipe.notes += tune.notes
            recipe.stages.append(tune)
            self.best.restore()
        if not recipe.out_of_time:
            recipe.notes += average_weights(learner, settings, self.start, kept, self.best, validate)
        return moving

    def _resume(self) -> None:
        """Load what a checkpoint holds of the stages before, and have the next checkpoints hold it too."""
        manager, recipe = self.context.manager, self.recipe
        if (saved := manager.saved) is not None:
            with manager.reading():
                outer, self.step = saved["outer"], int(saved["outer"]["step"])
                # A tune stage that was begun without a trial goes on without one.
                recipe.num_frozen = outer.get("num_frozen", {} if saved["stage"] == "tune" else None)
                outer["stages"] = [(float(seconds), float(waited)) for seconds, waited in outer["stages"]]
                load_callback_states(self.callbacks, saved["watchers"])
                updates = self.step + int(saved["done"])
                recipe.notes += [*outer["said"], f"The run was stopped, and went on from update {updates}."]
                self.start = dict(outer["start"])
        manager.outer_state = lambda: {
            "start": self.start,
            "step": self.step,
            "stages": [[stage.seconds, stage.waited] for stage in recipe.stages],
            "said": recipe.notes,
            "num_frozen": recipe.num_frozen,
        }

    def _run_head(self) -> None:
        """Run the head stage, unless a checkpoint lies beyond it."""
        recipe, manager, rows = self.recipe, self.context.manager, self.rows
        cheap = [name for name in recipe.augmented if not recipe.read_anew(name)]  # these are encoded in each batch
        train = rows.train.given(features={k: v for k, v in rows.train_features.items() if k not in cheap})
        validate = partial(self.evaluate, rows.val.given(features=rows.val_features))
        head = recipe.head_stage(rows.train.num_drawn)
        if manager.is_past(head.name):
            head.seconds, head.waited = manager.saved["outer"]["stages"][0] if manager.saved else (0.0, 0.0)
        else:
            if manager.saved is None:
                self.start = copy_to_cpu(trained_weights(self.learner))
                check_start(head.name, validate, self.callbacks)
            low = head.autocast and self.accelerator.mixed_precision == "bf16"
            with (
                graphs(head, recipe, self.accelerator, rows.train.num_drawn),
                frozen_in_bf16(recipe.model, enabled=low),
            ):
                given = (self.learner, head, train, validate, self.accelerator, self.callbacks)
                self.step = run_stage(*given, manager=manager)
            recipe.notes += head.notes
            self.best.restore()
        recipe.stages.append(head)

    def _run_tune(self, last: str, *, always: bool) -> tuple[Stage | None, set[str], Validate]:
        """Run the tune stage, if there is one; return it, the tuned encoders' keys, and what validates the model.

        Args:
            last: the name of the training's last stage.
            always: see `Examples`.
        """
        recipe, manager, rows = self.recipe, self.context.manager, self.rows
        tune, moving = _last_stage(recipe, resumed=manager.saved is not None)
        still = [name for name, key in recipe.model.routes.items() if key not in moving]
        train, val = rows.given(still, augmented=False)
        train, validate = train.given(always=always), partial(self.evaluate, val)
        if self.best.check is None:
            check_start(last, validate, self.callbacks)
        if tune is None:
            return None, moving, validate
        if manager.saved is None:
            self.best.cover()
            self.start = copy_to_cpu(trained_weights(self.learner))
        with self.accelerator.main_process_first():
            train, val = self._run_frozen(train, val, moving)
            validate = partial(self.evaluate, val)
        encoders = {key: recipe.model.encoders[key] for key in sorted(moving)} if recipe.settings.compile else {}
        low = tune.autocast and self.accelerator.mixed_precision == "bf16" and not recipe.settings.shard
        replays = graphs(tune, recipe, self.accelerator, rows.tuned.num_drawn)
        with compiling(encoders) as notes, replays, frozen_in_bf16(recipe.model, enabled=low):
            recipe.notes += notes
            given = (self.learner, tune, train, validate, self.accelerator, self.callbacks)
            run_stage(*given, first_step=self.step, manager=manager)
        return tune, moving, validate

    def _run_frozen(self, train: Examples, val: Examples, moving: Collection[str]) -> tuple[Examples, Examples]:
        """Run frozen encoders on augmented views, and the layers below the first trained one; return rows with both."""
        recipe, context = self.recipe, self.context
        shown = track if any(isinstance(callback, Bar) for callback in self.others) else None
        options: dict[str, Any] = {"groups": context.manager.step_cells, "progress": shown}
        if train.augmentation.num_views:
            still = [name for name, key in recipe.model.routes.items() if key not in moving]
            seen = [name for name in still if recipe.read_anew(name)]
            train = train.given(views=augmented_views(recipe.model, train, seen, cache=context.cache, **options))
        if recipe.reads_cells_as_they_are() and not recipe.settings.shard:
            low = self.accelerator.mixed_precision == "bf16"
            prepared = attach_trunks(recipe.model, (train, val), context.cache, low=low, **options)
            recipe.notes += prepared.notes
            train, val = prepared.rows
        return train, val


def _last_stage(recipe: Recipe, *, resumed: bool) -> tuple[Stage | None, set[str]]:
    """Return the tune stage, if there is one and there is time for it, and the encoders that it trains.

    Args:
        recipe: the fit's recipe; gets a note if the time is up.
        resumed: whether the run was stopped within this stage.
    """
    if recipe.tunes() and (resumed or not recipe.deadline.passed()):
        tune = recipe.tune_stage()
        return tune, recipe.moving()
    if recipe.tunes():
        recipe.out_of_time = True
        recipe.notes.append("The tune stage was left out, as the time for training was up (trainer.minutes).")
    for key in recipe.pretrained:
        recipe.model.encoders[key].requires_grad_(False)
    return None, set()


def check_start(stage: str, validate: Validate, callbacks: Sequence[Callback]) -> None:
    """Evaluate before the first update, so that the initial model is a candidate for the best step."""
    loss, score, metrics = validate()
    for callback in callbacks:
        callback.on_check(Check(stage, 0, 0.0, None, loss, score, metrics, 0.0))
