"""The recipe of a fit: a linear probe, then the new parts on frozen features, then everything; the best step is kept.

Heads that start at random would drag good pretrained features along with their first, wild gradients; learning them
first keeps the features (Kumar et al. 2022, "Fine-tuning can distort pretrained features", arXiv 2202.10054). It is
cheap, as the frozen backbones run once. The probe's predictions are the first candidate for the best step, so a tuned
model is at least as good on the validation rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from fusetune.backbones.compiled import compiling
from fusetune.config.trainer import TrainerConfig
from fusetune.data.examples import Examples
from fusetune.data.storage.feature_cache import FeatureCache
from fusetune.errors import NonFiniteLoss
from fusetune.inference.features import fill_views, set_features
from fusetune.inference.predict import model_device, predict_logits
from fusetune.models.family import Family
from fusetune.objectives.balance import build_balance
from fusetune.objectives.base import Objective
from fusetune.objectives.total import Total, build_objectives
from fusetune.tasks.base import Task
from fusetune.training.alignment import Alignment
from fusetune.training.averaging import Kept, averaged, copied, not_finite, put, trained_weights
from fusetune.training.callbacks import Bar, BestStep, Callback, Check, Curve, Trackers
from fusetune.training.checkpoint_manager import END, CheckpointManager, moving, watch_on
from fusetune.training.hardware.devices import make_accelerator, processes
from fusetune.training.hardware.precision import chosen
from fusetune.training.hardware.replay import graphs
from fusetune.training.hardware.shard import check_shard, sharded
from fusetune.training.history import TrainingHistory
from fusetune.training.learner import Learner
from fusetune.training.loop import Stage, Validate, run_stage
from fusetune.training.optim import no_decay
from fusetune.training.probe import Probe, column_scales
from fusetune.training.progress import track
from fusetune.training.recipe import BackboneRule, Recipe
from fusetune.training.trunk import start_later
from fusetune.types import Tokens


def evaluate_loss(
    model: Family,
    tasks: Mapping[str, Task],
    examples: Examples,
    *,
    scales: Mapping[str, float] | None = None,
    batch_size: int | None = None,
) -> tuple[float, float, dict[str, dict[str, float]]]:
    """Loss, score (mean main metric, more is better) and metrics by task on the labelled rows; nan without any.

    Args:
        model: in any mode.
        tasks: fitted.
        examples: prepared rows.
        scales: per task, what its loss is multiplied by before losses are added up; 1 where None.
        batch_size: rows at a time; None: 64 on a processor, on a GPU as many as it is fastest with.
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
        chosen = logits[name][torch.from_numpy(examples.places(rows))]
        values = examples.targets[name].take(rows)
        weights = torch.from_numpy(examples.weights[rows])
        total += float(task.loss(chosen, task.encode(values), weights)) * (scales[name] if scales else 1)
        measured = task.evaluate(task.answers(chosen), task.truth(values), examples.weights[rows])
        main = measured[task.main.name]
        metrics[name] = {task.main.name: main, **measured}
        scores.append(main if task.main.greater_is_better else -main)
    return total, float(np.mean(scores)) if scores else math.nan, metrics


def finetune(
    model: Family,
    tasks: Mapping[str, Task],
    train: Examples,
    val: Examples,
    settings: TrainerConfig,
    *,
    rules: Mapping[str, BackboneRule] | None = None,
    objectives: Mapping[str, Mapping[str, Any]] | None = None,
    features: tuple[Mapping[str, Tokens], Mapping[str, Tokens]],
    probes: Mapping[str, Probe] | None = None,
    alignment: Alignment | None = None,
    validator: Callable[[Sequence[Objective]], Validate] | None = None,
    seed: int = 0,
    cache: FeatureCache | None = None,
    manager: CheckpointManager | None = None,
    log_dir: Path | None = None,
    bar: bool = False,
) -> TrainingHistory:
    """Tune a model in place and leave it at its best step on the validation rows.

    Args:
        model: with pretrained encoders and everything else at random.
        tasks: fitted.
        train: prepared rows to learn from.
        val: prepared rows that choose the best step.
        settings: the recipe.
        rules: per encoder key.
        objectives: what is minimised besides the task losses: per name, its options.
        features: `fill_features` of train and of val.
        probes: per task, the linear model on these features to start from; without one, the heads start as the
            tasks made them.
        alignment: the linear maps to start the projections from, where there is no task.
        validator: from the objectives to what evaluates the model; by default, the tasks' losses and metrics on `val`.
        seed: of shuffling and dropout.
        cache: keeps what the first trained layer of a partly frozen encoder reads; None: frozen layers run every time.
        manager: keeps checkpoints, and may have one to go on with.
        log_dir: where trackers write; None for no trackers.
        bar: whether to show progress.

    Raises:
        Interrupted: a signal came.
        RunError: the training failed; see `run_stage`.
    """
    manager = manager or CheckpointManager()
    margin = 0.5 / math.sqrt(max(len(val), 1))  # about the standard error of an accuracy
    extra = build_objectives(model, tasks, objectives or {})
    balance = build_balance(settings.balance, model, tasks, train)
    recipe = Recipe(
        model,
        extra,
        settings,
        rules or {},
        seed,
        starts_linear=bool(probes),
        margin=margin,
        balance=balance,
        augmented=train.augment,
    )
    _check(recipe, manager)
    learner = Learner(model, Total(tasks, extra, balance))
    _install(model, column_scales(train, features[0]), probes or {}, alignment)
    if (ended := manager.take(END)) is not None:
        return _ended(learner, ended, manager)
    saved = manager.saved
    precision = _precision(recipe, learner, train, features[0]) if saved is None else saved["precision"]
    accelerator = make_accelerator(settings, log_dir, precision)
    learner.to(accelerator.device)
    best, curve = BestStep(learner, margin=margin), Curve()
    callbacks: list[Callback] = [curve]
    if accelerator.log_with:
        # wandb writes into the current folder where it is not told otherwise.
        accelerator.init_trackers("fusetune", config={"seed": seed}, init_kwargs={"wandb": {"dir": str(log_dir)}})
        callbacks.append(Trackers(accelerator))
    if bar and accelerator.is_main_process:
        callbacks.append(Bar())

    scales = balance.scales() if balance is not None else None
    validate = validator(extra) if validator else lambda: evaluate_loss(model, tasks, val, scales=scales)
    try:
        moved = _stages(recipe, learner, (train, val), features, validate, accelerator, best, callbacks, cache, manager)
    finally:
        for callback in callbacks:
            callback.on_end()
        set_features(train, {})
        set_features(val, {})
    assert best.check is not None, "a stage ends with a check"
    if bad := not_finite(trained_weights(learner)):
        raise NonFiniteLoss(
            f"{', '.join(bad[:3])} are NaN or infinite at the best step, so the model is not saved\n"
            "  Do: lower trainer.lr and trainer.backbone_lr, set trainer.clip"
        )
    history = TrainingHistory(
        curve.checks, best.check, _trained(model), moved, recipe.warnings(), accelerator.mixed_precision
    )
    seconds = sum(stage.seconds for stage in recipe.stages)
    history.waited = sum(stage.waited for stage in recipe.stages) / seconds if seconds else 0.0
    manager.end({"weights": moving(learner), "history": history.to_state()}, accelerator)
    return history


def _check(recipe: Recipe, manager: CheckpointManager) -> None:
    """Refuse settings that do not go together.

    Raises:
        ConfigError: so it is.
    """
    recipe.check_compile()
    if recipe.settings.shard:
        unchanged, encoders = recipe.reads_cells_as_they_are(), list(recipe.model.encoders.values())
        check_shard(encoders, reads_cells_as_they_are=unchanged, checkpoints=manager.checkpoints is not None)


def _install(
    model: Family,
    scales: Mapping[str, tuple[Tensor, Tensor]],
    probes: Mapping[str, Probe],
    alignment: Alignment | None,
) -> None:
    """Have the model start where the frozen features say."""
    for name, scale in scales.items():
        model.set_scale(name, *scale)
    for name, probe in probes.items():
        probe.install(model, name)
    if alignment is not None:
        alignment.install(model)


def _precision(recipe: Recipe, learner: Learner, train: Examples, features: Mapping[str, Tokens]) -> str:
    """The arithmetic of the stage that has the last word; all processes take the first one's."""
    stage = recipe.tune_stage() if recipe.tunes() else recipe.head_stage(len(train))
    trained = [parameter for group in stage.groups for parameter in group["params"]]
    still = {column for column, key in recipe.model.routes.items() if key not in recipe.moving()}
    updates = round(stage.epochs * len(train) / stage.batch_size)
    anew = set() if train.num_views else set(train.augment)
    set_features(train, {name: values for name, values in features.items() if name in still - anew})
    found = [
        chosen(
            recipe.settings.precision,
            learner,
            lambda: train.batch(train.used[: max(1, stage.batch_size // stage.accumulate)]),
            trained,
            updates,
        )
    ]
    return str(broadcast_object_list(found)[0]) if processes().num_processes > 1 else found[0]


def _stages(
    recipe: Recipe,
    learner: Learner,
    rows: tuple[Examples, Examples],
    features: tuple[Mapping[str, Tokens], Mapping[str, Tokens]],
    validate: Validate,
    accelerator: Accelerator,
    best: BestStep,
    others: Sequence[Callback],
    cache: FeatureCache | None,
    manager: CheckpointManager,
) -> set[str]:
    """The head stage, then the tune stage, each left at the best step so far; gives the encoders that were trained."""
    settings, model, (train, val) = recipe.settings, recipe.model, rows
    last = "tune" if recipe.tunes() else "head"
    kept = Kept(learner, last, settings.soup, recipe.margin) if settings.soup is not None else None
    callbacks = [best, *others, *([kept] if kept is not None else [])]
    start, step = _went_on(manager, recipe, callbacks)
    manager.outer = lambda: {
        "start": start,
        "step": step,
        "stages": [[stage.seconds, stage.waited] for stage in recipe.stages],
        "said": recipe.said,
    }
    if settings.head_epochs != 0:
        cheap = [name for name in train.augment if not recipe.read_anew(name)]  # these are encoded in each batch
        set_features(train, {name: values for name, values in features[0].items() if name not in cheap})
        set_features(val, features[1])
        head = recipe.head_stage(len(train))
        if manager.is_past(head.name):
            head.seconds, head.waited = manager.saved["outer"]["stages"][0] if manager.saved else (0.0, 0.0)
        else:
            if manager.saved is None:
                start = copied(trained_weights(learner))
                first_check(head.name, validate, callbacks)
            with graphs(head, recipe, accelerator, len(train)):
                step = run_stage(learner, head, train, validate, accelerator, callbacks, manager=manager)
            recipe.said += head.said
            best.restore()
        recipe.stages.append(head)
    with sharded(learner, recipe.movable() if settings.shard else []) as spread:
        recipe.undecayed |= {parameter for part in spread for parameter in no_decay(part)}
        train.always = bool(spread)
        tune, moving = _last_stage(recipe, rows, features)
        if best.check is None:
            first_check(last, validate, callbacks)
        if tune is not None:
            if manager.saved is None:
                best.cover()
                start = copied(trained_weights(learner))
            with accelerator.main_process_first():
                low, bar = accelerator.mixed_precision == "bf16", any(isinstance(one, Bar) for one in others)
                _run_frozen(recipe, rows, moving, cache, manager, low=low, bar=bar)
            encoders = {key: model.encoders[key] for key in sorted(moving)} if settings.compile else {}
            with compiling(encoders) as said, graphs(tune, recipe, accelerator, len(train)):
                recipe.said += said
                run_stage(learner, tune, train, validate, accelerator, callbacks, first_step=step, manager=manager)
    train.always = False
    if tune is not None:
        recipe.said += tune.said
        recipe.stages.append(tune)
        best.restore()
    recipe.said += averaged(learner, settings, start, kept, best, validate)
    return moving


def _ended(learner: Learner, state: Mapping[str, Any], manager: CheckpointManager) -> TrainingHistory:
    """The course of a training that had come to its end, and its weights."""
    with manager.reading():
        put(learner.to(processes().device), state["weights"])
        history = TrainingHistory.from_state(state["history"])
    history.warnings.append("The run was stopped after this training, and went on from there.")
    return history


def _run_frozen(
    recipe: Recipe,
    rows: tuple[Examples, Examples],
    moving: Collection[str],
    cache: FeatureCache | None,
    manager: CheckpointManager,
    *,
    low: bool,
    bar: bool,
) -> None:
    """What frozen encoders make of augmented views, and what the first trained layers read: computed before a stage."""
    train, shown = rows[0], track if bar else None
    if train.num_views:
        still = [name for name, key in recipe.model.routes.items() if key not in moving]
        seen = [name for name in still if name in train.augment and recipe.read_anew(name)]
        fill_views(recipe.model, train, seen, cache=cache, groups=manager.places, progress=shown)
    if recipe.reads_cells_as_they_are() and not recipe.settings.shard:
        recipe.said += start_later(recipe.model, rows, cache, low=low, manager=manager, progress=shown)


def _last_stage(
    recipe: Recipe, rows: tuple[Examples, Examples], features: tuple[Mapping[str, Tokens], Mapping[str, Tokens]]
) -> tuple[Stage | None, set[str]]:
    """The tune stage, if there is one, and the encoders that it trains; the others' columns have their features."""
    model, (train, val) = recipe.model, rows
    tune = recipe.tune_stage() if recipe.tunes() else None
    moving: set[str] = recipe.moving() if tune is not None else set()
    if tune is None:
        for key in recipe.pretrained:
            model.encoders[key].requires_grad_(False)
    still = [column for column, key in model.routes.items() if key not in moving]
    fixed = [name for name in still if name not in train.augment]
    set_features(train, {name: values for name, values in features[0].items() if name in fixed})
    set_features(val, {name: values for name, values in features[1].items() if name in still})
    return tune, moving


def _went_on(
    manager: CheckpointManager, recipe: Recipe, callbacks: Sequence[Callback]
) -> tuple[dict[str, Tensor], int]:
    """The weights before the stage under way and the updates before it; what is known from before is known again."""
    if (saved := manager.saved) is None:
        return {}, 0
    with manager.reading():
        outer, step = saved["outer"], int(saved["outer"]["step"])
        outer["stages"] = [(float(seconds), float(waited)) for seconds, waited in outer["stages"]]
        watch_on(callbacks, saved["watchers"])
        recipe.said += [*outer["said"], f"The run was stopped, and went on from update {step + int(saved['done'])}."]
        return dict(outer["start"]), step


def first_check(stage: str, validate: Validate, callbacks: Sequence[Callback]) -> None:
    """Evaluate before the first update, so that what the model starts from is a candidate for the best step."""
    loss, score, metrics = validate()
    for callback in callbacks:
        callback.on_check(Check(stage, 0, 0.0, None, loss, score, metrics, 0.0))


def _trained(model: Family) -> dict[str, int]:
    counts = {
        key: sum(p.numel() for p in encoder.parameters() if p.requires_grad) for key, encoder in model.encoders.items()
    }
    counts[""] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return counts
