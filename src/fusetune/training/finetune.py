"""Tune a model in stages: a linear probe, then the new parts on frozen features, then everything.

The large gradients of randomly initialised heads distort pretrained features, so the heads are trained first (Kumar et
al. 2022, "Fine-tuning can distort pretrained features", arXiv 2202.10054). This is cheap, as the frozen backbones run
once. The model with the best score on validation rows is kept. The linear probe is the first candidate, so a tuned
model is at least as good as the probe on these rows.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from fusetune.backbones.passes.compiled import compiling
from fusetune.config.trainer import TrainerConfig
from fusetune.data.examples import Examples
from fusetune.errors import NonFiniteLoss
from fusetune.inference.answers import answers_of, loss_of
from fusetune.inference.features import augmented_views
from fusetune.inference.predict import model_device, predict_logits
from fusetune.models.family import Family
from fusetune.objectives.balance import build_balance
from fusetune.objectives.total import Total, build_objectives
from fusetune.tasks.base import TargetTask, Task
from fusetune.training.averaging import (
    BestSteps,
    average_weights,
    copy_to_cpu,
    load_weights,
    nonfinite_names,
    trained_weights,
)
from fusetune.training.callbacks import Bar, BestStep, Callback, Check, Curve, Trackers, Validate
from fusetune.training.checkpoint_manager import END, CheckpointManager, load_callback_states, trainable_state
from fusetune.training.hardware.devices import make_accelerator, processes
from fusetune.training.hardware.precision import choose_precision
from fusetune.training.hardware.replay import graphs
from fusetune.training.hardware.shard import check_shard, sharded
from fusetune.training.history import TrainingHistory
from fusetune.training.learner import Learner
from fusetune.training.loop import run_stage
from fusetune.training.optim import no_decay
from fusetune.training.plan import Evaluate, Goal, RunContext, Start, TrainingRows
from fusetune.training.probe import column_scales, install_probes
from fusetune.training.progress import track
from fusetune.training.recipe import BackboneRule, Recipe
from fusetune.training.score_error import ScoreError
from fusetune.training.stage import Stage
from fusetune.training.trunk import attach_trunks


def evaluate_loss(
    model: Family,
    tasks: Mapping[str, TargetTask],
    examples: Examples,
    *,
    scales: Mapping[str, float] | None = None,
    batch_size: int | None = None,
    error: ScoreError | None = None,
) -> tuple[float, float, dict[str, dict[str, float]]]:
    """Return loss, score and metrics by task on the labelled rows; NaN without any.

    The score is the mean main metric over tasks; higher is better.

    Args:
        model: in any mode.
        tasks: fitted, by target.
        examples: prepared rows.
        scales: by task, the factor of its loss in the sum; 1 if None.
        batch_size: rows per batch. None: 64 on a CPU; on a GPU chosen for speed.
        error: the score's standard error, which is measured here if it is not known yet.
    """
    if not len(examples):
        return math.nan, math.nan, {}
    batch_size = 64 if batch_size is None and model_device(model).type == "cpu" else batch_size
    logits = predict_logits(model, examples, examples.used, batch_size=batch_size)
    total, scores, metrics = 0.0, [], {}
    for name, task in tasks.items():
        rows = examples.labelled(name)
        if not len(rows):
            continue
        chosen = logits[name][torch.from_numpy(examples.positions(rows))]
        row_weights, truth = examples.weights[rows], examples.truth(name, rows)
        total += loss_of(examples, name, chosen, rows) * (scales[name] if scales else 1)
        measured = task.measured(answers_of(examples, task, chosen, rows), truth)
        task_metrics = task.all_metrics(measured, truth, row_weights)
        main = task_metrics[task.main.name]
        metrics[name] = {task.main.name: main, **task_metrics}
        scores.append(main if task.main.greater_is_better else -main)
        if error is not None and not error.known:
            error.add(task.main.name, main, partial(main_of, task, measured, truth, row_weights), row_weights)
    if error is not None and not error.known:
        error.close()
    return total, float(np.mean(scores)) if scores else math.nan, metrics


def main_of(task: Task, measured: np.ndarray, truth: np.ndarray, weights: np.ndarray, rows: np.ndarray) -> float:
    """Return the main metric on some of the rows.

    Args:
        task: fitted.
        measured, truth, weights: (all rows, ...) as `Task.metrics` takes them.
        rows: (rows,) indices, possibly repeated.
    """
    return task.main_value(measured[rows], truth[rows], weights[rows])


def finetune(
    model: Family,
    rows: TrainingRows,
    goal: Goal,
    settings: TrainerConfig,
    *,
    rules: Mapping[str, BackboneRule] | None = None,
    start: Start | None = None,
    context: RunContext | None = None,
) -> TrainingHistory:
    """Tune a model in place and leave it at its best step on the validation rows.

    Args:
        model: with pretrained encoders; everything else is randomly initialised.
        rows: train rows, and validation rows that choose the best step.
        goal: what is minimised and measured.
        settings: the section `trainer`.
        rules: how encoders are tuned, by their key.
        start: what the model is initialised from.
        context: seed, cache, checkpoints, trackers.

    Raises:
        Interrupted: a signal was received.
        RunError: the training failed; see `run_stage`.
    """
    start, context = start or Start(), context or RunContext()
    manager, error = context.manager, ScoreError(context.seed)
    objectives = build_objectives(model, goal.tasks, goal.objectives)
    rows = rows.for_objectives(objectives)
    train = rows.train
    balance = build_balance(settings.balance, model, goal.tasks, train)
    recipe = Recipe(
        model,
        objectives,
        settings,
        rules or {},
        context.seed,
        starts_linear=bool(start.probes),
        balance=balance,
        augmented=train.augmentation.augmenters,
        deadline=context.deadline,
    )
    _check(recipe, manager)
    learner = Learner(model, Total(goal.tasks, objectives, balance))
    _install(model, column_scales(train.with_target(), rows.train_features), start)
    if (ended := manager.pop(END)) is not None:
        return _finished_history(learner, ended, manager)
    saved = manager.saved
    precision = precision_of(recipe, learner, rows) if saved is None else saved["precision"]
    accelerator = make_accelerator(settings, context.log_dir, precision)
    learner.to(accelerator.device)
    best, curve = BestStep(learner, error=error), Curve()
    callbacks: list[Callback] = [curve]
    if accelerator.log_with:
        # Without this setting wandb writes into the current folder.
        options = {"wandb": {"dir": str(context.log_dir)}}
        accelerator.init_trackers("fusetune", config={"seed": context.seed}, init_kwargs=options)
        callbacks.append(Trackers(accelerator))
    if context.bar and accelerator.is_main_process:
        callbacks.append(Bar())

    if goal.evaluator is not None:
        evaluate = goal.evaluator(objectives, error)
    else:
        scales = None if balance is None else balance.scales()
        evaluate = partial(evaluate_loss, model, goal.tasks, scales=scales, error=error)
    try:
        moved = _run_stages(recipe, learner, rows, evaluate, accelerator, best, callbacks, context)
    finally:
        for callback in callbacks:
            callback.on_end()
    assert best.check is not None, "a stage ends with a check"
    if bad := nonfinite_names(trained_weights(learner)):
        raise NonFiniteLoss(
            f"{', '.join(bad[:3])} are NaN or infinite at the best step, so the model is not saved\n"
            "  Do: lower trainer.lr and trainer.backbone_lr, set trainer.clip"
        )
    mixed = accelerator.mixed_precision
    history = TrainingHistory(curve.checks, best.check, _trained(model), moved, recipe.warnings(), mixed)
    history.error = error.value or 0.0
    seconds = sum(stage.seconds for stage in recipe.stages)
    history.out_of_time = recipe.out_of_time or any(stage.out_of_time for stage in recipe.stages)
    history.waited = sum(stage.waited for stage in recipe.stages) / seconds if seconds else 0.0
    manager.save_end({"weights": trainable_state(learner), "history": history.to_state()}, accelerator)
    return history


def _check(recipe: Recipe, manager: CheckpointManager) -> None:
    """Refuse settings that are incompatible.

    Raises:
        ConfigError: they are incompatible.
    """
    recipe.check_compile()
    if recipe.settings.shard:
        unchanged, encoders = recipe.reads_cells_as_they_are(), list(recipe.model.encoders.values())
        check_shard(encoders, reads_cells_as_they_are=unchanged, checkpoints=manager.checkpoints is not None)


def _install(model: Family, scales: Mapping[str, tuple[Tensor, Tensor]], start: Start) -> None:
    """Initialise the model from the features' scales, the probes and the alignment."""
    for name, scale in scales.items():
        model.set_scale(name, *scale)
    install_probes(model, start.probes)
    if start.alignment is not None:
        start.alignment.install(model)


def precision_of(recipe: Recipe, learner: Learner, rows: TrainingRows) -> str:
    """Return the precision of the last stage, as the main process chose it."""
    train = rows.train
    stage = recipe.tune_stage() if recipe.tunes() else recipe.head_stage(train.num_drawn)
    trained = [parameter for group in stage.groups for parameter in group["params"]]
    unchanged = {column for column, key in recipe.model.routes.items() if key not in recipe.moving()}
    updates = round(stage.epochs * train.num_drawn / stage.batch_size)
    tried, _ = rows.given(unchanged, augmented=bool(train.augmentation.num_views))
    choice = [
        choose_precision(
            recipe.settings.precision,
            learner,
            lambda: tried.batch(tried.used[: max(1, stage.batch_size // stage.accumulate)]),
            trained,
            updates,
        )
    ]
    return str(broadcast_object_list(choice)[0]) if processes().num_processes > 1 else choice[0]


def _run_stages(
    recipe: Recipe,
    learner: Learner,
    rows: TrainingRows,
    evaluate: Evaluate,
    accelerator: Accelerator,
    best: BestStep,
    others: Sequence[Callback],
    context: RunContext,
) -> set[str]:
    """Run the head and the tune stage, restoring the best step after each; return the keys of the trained encoders."""
    settings, model, manager, num_rows = recipe.settings, recipe.model, context.manager, rows.train.num_drawn
    last = "tune" if recipe.tunes() else "head"
    candidates = BestSteps(learner, last, settings.soup, best.error) if settings.soup is not None else None
    callbacks = [best, *others, *([candidates] if candidates is not None else [])]
    start, step = _resume_state(manager, recipe, callbacks)
    manager.outer_state = lambda: {
        "start": start,
        "step": step,
        "stages": [[stage.seconds, stage.waited] for stage in recipe.stages],
        "said": recipe.notes,
    }
    if settings.head_epochs != 0:
        cheap = [name for name in recipe.augmented if not recipe.read_anew(name)]  # these are encoded in each batch
        train = rows.train.given(features={k: v for k, v in rows.train_features.items() if k not in cheap})
        validate = partial(evaluate, rows.val.given(features=rows.val_features))
        head = recipe.head_stage(num_rows)
        if manager.is_past(head.name):
            head.seconds, head.waited = manager.saved["outer"]["stages"][0] if manager.saved else (0.0, 0.0)
        else:
            if manager.saved is None:
                start = copy_to_cpu(trained_weights(learner))
                check_start(head.name, validate, callbacks)
            with graphs(head, recipe, accelerator, num_rows):
                step = run_stage(learner, head, train, validate, accelerator, callbacks, manager=manager)
            recipe.notes += head.notes
            best.restore()
        recipe.stages.append(head)
    with sharded(learner, recipe.movable() if settings.shard else []) as spread:
        recipe.undecayed |= {parameter for part in spread for parameter in no_decay(part)}
        tune, moving = _last_stage(recipe, resumed=manager.saved is not None)
        train, val = rows.given([name for name, key in model.routes.items() if key not in moving], augmented=False)
        train, validate = train.given(always=bool(spread)), partial(evaluate, val)
        if best.check is None:
            check_start(last, validate, callbacks)
        if tune is not None:
            if manager.saved is None:
                best.cover()
                start = copy_to_cpu(trained_weights(learner))
            with accelerator.main_process_first():
                bar = any(isinstance(callback, Bar) for callback in others)
                low = accelerator.mixed_precision == "bf16"
                train, val = _precompute_frozen(recipe, (train, val), moving, context, low=low, bar=bar)
                validate = partial(evaluate, val)
            encoders = {key: model.encoders[key] for key in sorted(moving)} if settings.compile else {}
            with compiling(encoders) as notes, graphs(tune, recipe, accelerator, num_rows):
                recipe.notes += notes
                run_stage(learner, tune, train, validate, accelerator, callbacks, first_step=step, manager=manager)
    if tune is not None:
        recipe.notes += tune.notes
        recipe.stages.append(tune)
        best.restore()
    if not recipe.out_of_time:
        recipe.notes += average_weights(learner, settings, start, candidates, best, validate)
    return moving


def _finished_history(learner: Learner, state: Mapping[str, Any], manager: CheckpointManager) -> TrainingHistory:
    """Load the weights of a training that had ended into the learner, and return its history."""
    with manager.reading():
        load_weights(learner.to(processes().device), state["weights"])
        history = TrainingHistory.from_state(state["history"])
    history.warnings.append("The run was stopped after this training, and went on from there.")
    return history


def _precompute_frozen(
    recipe: Recipe,
    rows: tuple[Examples, Examples],
    moving: Collection[str],
    context: RunContext,
    *,
    low: bool,
    bar: bool,
) -> tuple[Examples, Examples]:
    """Return the rows with precomputed features of augmented views, and with the outputs of frozen lower layers."""
    (train, val), shown, groups = rows, track if bar else None, context.manager.step_cells
    if train.augmentation.num_views:
        unchanged = [name for name, key in recipe.model.routes.items() if key not in moving]
        augmented = [name for name in unchanged if recipe.read_anew(name)]
        options: dict[str, Any] = {"cache": context.cache, "groups": groups, "progress": shown}
        train = train.given(views=augmented_views(recipe.model, train, augmented, **options))
    if recipe.reads_cells_as_they_are() and not recipe.settings.shard:
        prepared = attach_trunks(recipe.model, (train, val), context.cache, low=low, groups=groups, progress=shown)
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


def _resume_state(
    manager: CheckpointManager, recipe: Recipe, callbacks: Sequence[Callback]
) -> tuple[dict[str, Tensor], int]:
    """Return the weights and the number of updates from before the present stage; restore the callbacks' states."""
    if (saved := manager.saved) is None:
        return {}, 0
    with manager.reading():
        outer, step = saved["outer"], int(saved["outer"]["step"])
        outer["stages"] = [(float(seconds), float(waited)) for seconds, waited in outer["stages"]]
        load_callback_states(callbacks, saved["watchers"])
        recipe.notes += [*outer["said"], f"The run was stopped, and went on from update {step + int(saved['done'])}."]
        return dict(outer["start"]), step


def check_start(stage: str, validate: Validate, callbacks: Sequence[Callback]) -> None:
    """Evaluate before the first update, so that the initial model is a candidate for the best step."""
    loss, score, metrics = validate()
    for callback in callbacks:
        callback.on_check(Check(stage, 0, 0.0, None, loss, score, metrics, 0.0))


def _trained(model: Family) -> dict[str, int]:
    counts = {
        key: sum(p.numel() for p in encoder.parameters() if p.requires_grad) for key, encoder in model.encoders.items()
    }
    counts[""] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return counts
