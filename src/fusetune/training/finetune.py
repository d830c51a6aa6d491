"""Tune a model in stages: a linear probe, then the new parts on frozen features, then everything.

The large gradients of randomly initialised heads distort pretrained features, so the heads are trained first (Kumar et
al. 2022, "Fine-tuning can distort pretrained features", arXiv 2202.10054). This is cheap, as the frozen backbones run
once. The model with the best score on validation rows is kept. The linear probe is the first candidate, so a tuned
model is at least as good as the probe on these rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from fusetune.config.trainer import TrainerConfig
from fusetune.data.examples import Examples
from fusetune.errors import NonFiniteLoss
from fusetune.inference.answers import answers_of, loss_of
from fusetune.inference.predict import model_device, predict_logits
from fusetune.models.family import Family
from fusetune.objectives.balance import build_balance
from fusetune.objectives.total import Total, build_objectives
from fusetune.tasks.base import TargetTask, Task
from fusetune.training.alignment import Identity
from fusetune.training.averaging import load_weights, nonfinite_names, trained_weights
from fusetune.training.callbacks import Bar, BestStep, Callback, Curve, Trackers
from fusetune.training.checkpoints.checkpoint_manager import END, CheckpointManager, trainable_state
from fusetune.training.hardware.devices import make_accelerator, processes
from fusetune.training.hardware.precision import choose_precision
from fusetune.training.hardware.shard import check_shard
from fusetune.training.history import TrainingHistory
from fusetune.training.learner import Learner
from fusetune.training.plan import Goal, RunContext, Start, TrainingRows
from fusetune.training.probes.probe import column_scales, install_probes
from fusetune.training.recipe import BackboneRule, Recipe
from fusetune.training.score_error import ScoreError
from fusetune.training.stages import StageRunner


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
    objectives = [*build_objectives(model, goal.tasks, goal.objectives), *goal.also]
    rows = rows.for_objectives(objectives)
    for objective in objectives:
        objective.fit(rows.train)
    balance = build_balance(settings.balance, model, goal.tasks, rows.train)
    augmented, linear = rows.train.augmentation.augmenters, bool(start.probes)
    options: dict[str, Any] = {"balance": balance, "augmented": augmented, "deadline": context.deadline}
    options["starts_pretrained"] = isinstance(start.alignment, Identity)
    recipe = Recipe(model, objectives, settings, rules or {}, context.seed, starts_linear=linear, **options)
    _check(recipe, manager)
    learner = Learner(model, Total(goal.tasks, objectives, balance))
    _install(model, column_scales(rows.train.with_target(), rows.train_features), start)
    if (ended := manager.pop(END)) is not None:
        return _finished_history(learner, ended, manager)
    saved = manager.saved
    precision = precision_of(recipe, learner, rows) if saved is None else saved["precision"]
    accelerator = make_accelerator(settings, context.log_dir, precision)
    learner.to(accelerator.device)
    best, curve = BestStep(learner, error=error), Curve()
    watching = [curve, *_trackers(accelerator, context), *context.callbacks]
    if goal.evaluator is not None:
        evaluate = goal.evaluator(objectives, error)
    else:
        scales = None if balance is None else balance.scales()
        evaluate = partial(evaluate_loss, model, goal.tasks, scales=scales, error=error)
    try:
        moved = StageRunner(recipe, learner, rows, evaluate, accelerator, best, watching, context).run()
    finally:
        for callback in watching:
            callback.on_end()
    history = _history(recipe, learner, best, curve, moved, str(accelerator.mixed_precision))
    manager.save_end({"weights": trainable_state(learner), "history": history.to_state()}, accelerator)
    return history


def _trackers(accelerator: Accelerator, context: RunContext) -> list[Callback]:
    """Return the callbacks that log the training and show its progress, with their trackers started."""
    callbacks: list[Callback] = []
    if accelerator.log_with:
        # Without this setting wandb writes into the current folder.
        options = {"wandb": {"dir": str(context.log_dir)}}
        accelerator.init_trackers("fusetune", config={"seed": context.seed}, init_kwargs=options)
        callbacks.append(Trackers(accelerator))
    if context.bar and accelerator.is_main_process:
        callbacks.append(Bar())
    return callbacks


def _history(
    recipe: Recipe, learner: Learner, best: BestStep, curve: Curve, moved: set[str], precision: str
) -> TrainingHistory:
    """Return the training history.

    Raises:
        NonFiniteLoss: a weight of the best step is not finite.
    """
    assert best.check is not None, "a stage ends with a check"
    if bad := nonfinite_names(trained_weights(learner)):
        raise NonFiniteLoss(
            f"{', '.join(bad[:3])} are NaN or infinite at the best step, so the model is not saved\n"
            "  Do: lower trainer.lr and trainer.backbone_lr, set trainer.clip"
        )
    history = TrainingHistory(curve.checks, best.check, _trained(recipe.model), moved, recipe.warnings(), precision)
    history.error, history.num_frozen = best.error.value or 0.0, recipe.num_frozen or {}
    history.seconds = seconds = sum(stage.seconds for stage in recipe.stages)
    history.out_of_time = recipe.out_of_time or any(stage.out_of_time for stage in recipe.stages)
    history.waited = sum(stage.waited for stage in recipe.stages) / seconds if seconds else 0.0
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
    train = rows.tuned
    stage = recipe.tune_stage() if recipe.tunes() else recipe.head_stage(rows.train.num_drawn)
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


def _finished_history(learner: Learner, state: Mapping[str, Any], manager: CheckpointManager) -> TrainingHistory:
    """Load the weights of a training that had ended into the learner, and return its history."""
    with manager.reading():
        load_weights(learner.to(processes().device), state["weights"])
        history = TrainingHistory.from_state(state["history"])
    history.warnings.append("The run was stopped after this training, and went on from there.")
    return history


def _trained(model: Family) -> dict[str, int]:
    counts = {
        key: sum(p.numel() for p in encoder.parameters() if p.requires_grad) for key, encoder in model.encoders.items()
    }
    counts[""] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return counts
