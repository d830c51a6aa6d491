"""Self-supervised tuning of the encoders on the train rows, before the task is tuned.

Adapting an encoder to the texts of a task, unlabelled ones included, can raise what tuning reaches (Gururangan et al.
2020, "Don't stop pretraining", arXiv 2004.10964). It is a training as every other: with the fit's loop, precision and
checkpoints, and with the validation rows to choose the best step. Test rows take no part. The encoders alone are kept;
heads and projections that were needed are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed

from fusetune.backbones.backbone import Backbone
from fusetune.backbones.changed_weights import ChangedWeights
from fusetune.backbones.freeze import check_rule
from fusetune.config.pretrain import PretrainConfig
from fusetune.config.section import NamedConfig
from fusetune.config.trainer import TrainerConfig
from fusetune.data.augmentation import Augmentation
from fusetune.data.examples import Examples
from fusetune.errors import ConfigError, TableError
from fusetune.evaluation.decisions import PretrainingStep, PretrainingUsed
from fusetune.fitting.prepared import Prepared
from fusetune.fitting.steps import with_features
from fusetune.inference.predict import model_device
from fusetune.modalities.text import TextModality
from fusetune.models.build import NO_FUSION, build_model
from fusetune.models.encoders import Encoders
from fusetune.models.family import Family
from fusetune.models.generate import Generate
from fusetune.models.match import Match
from fusetune.models.perturb import RngState
from fusetune.objectives.base import BatchObjective, Objective
from fusetune.objectives.contrastive import ContrastiveObjective
from fusetune.objectives.masked import MaskedLanguageModelling
from fusetune.objectives.simcse import SimCSE
from fusetune.tasks.base import family_of
from fusetune.tasks.retrieval import alignment_tasks
from fusetune.training.alignment import Alignment, align
from fusetune.training.deadline import CHOOSING
from fusetune.training.finetune import finetune
from fusetune.training.hardware.devices import processes
from fusetune.training.history import TrainingHistory
from fusetune.training.plan import Evaluate, Goal, RunContext, Start, TrainingRows
from fusetune.training.probes.probe import column_scales
from fusetune.training.recipe import BackboneRule
from fusetune.training.score_error import ScoreError

MIN_TRAIN, MIN_VAL = 32, 4
"""Fewest train and validation rows to learn from, and to choose the best step by."""
HEAD_EPOCHS = {"mlm": 1.0, "contrastive": 10.0}
"""Epochs in which a new head, or projections, learn alone, before the encoders move."""
FIGURES = {
    "mlm": ("accuracy",),
    "simcse": ("alignment", "uniformity"),
    "contrastive": ("alignment", "uniformity", "gap"),
}
"""The objectives' figures that are reported."""


@dataclass(frozen=True)
class _Pretraining:
    """What is trained, and on what.

    Attributes:
        model: holds the fit's encoders.
        rows: train and validation rows.
        goal: the objective.
        start: of the projections.
        head_epochs: see `HEAD_EPOCHS`; 0 if there is nothing new to learn.
    """

    model: Family
    rows: TrainingRows
    goal: Goal
    start: Start = field(default_factory=Start)
    head_epochs: float = 0.0


def check_pretraining(fit: Prepared) -> None:
    """Refuse the section `pretrain` where the fit has no use for it.

    Raises:
        ConfigError: a language model writes, users are recommended items, or columns are aligned anyway.
    """
    settings, family = fit.config.pretrain, family_of(fit.tasks)
    if settings is None:
        return
    if family == Generate.name or fit.config.user is not None:
        raise ConfigError(
            f"pretrain does not go with this task ({', '.join(fit.tasks)})",
            expected="targets or pairs that are predicted from encoded columns",
            do="leave pretrain out",
        )
    if family == Match.name and settings.name == "contrastive":
        raise ConfigError(
            "pretrain.name=contrastive would do what a fit of pairs does anyway",
            expected="mlm or simcse, which learn from single texts",
            do="take one of these, or leave pretrain out",
        )


def pretrain(fit: Prepared, model: Family) -> Prepared:
    """Tune the encoders as the section `pretrain` says; return the fit with the features that they give then.

    Args:
        fit: with the features of the encoders as loaded.
        model: holds the encoders, which are changed in place.

    Returns:
        The fit as it is if there is no such section; else a fit whose `plain` is the given one.

    Raises:
        ConfigError, TableError: the settings or the rows do not go with it.
        RunError, Interrupted: see `finetune`.
    """
    settings = fit.config.pretrain
    if settings is None:
        return fit
    with fit.phase(f"pretrain on the train rows ({settings.name})"):
        columns = _columns(fit, settings)
        encoders = {model.routes[name]: model.encoders[model.routes[name]] for name in columns}
        before = {key: _copy(encoder) for key, encoder in encoders.items()}
        device = model_device(model)
        set_seed(fit.config.seed)
        plan = (
            _contrastive(fit, settings, columns) if settings.name == "contrastive" else _texts(fit, settings, columns)
        )
        history = _train(fit, settings, plan)
        changed = {}
        for key, encoder in encoders.items():
            assert isinstance(encoder, Backbone)
            encoder.to("cpu").eval()
            changed[key] = ChangedWeights.since(before[key], encoder)
            changed[key].install(encoder.to(device))
    used = _record(settings, columns, plan, history, sum(weights.num for weights in changed.values()), fit)
    with fit.phase("encode with pretrained encoders"):
        after = with_features(replace(fit, plain=fit, pretraining=used, changed=changed), model, "encode-pretrained")
    return after


def _copy(encoder: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in encoder.state_dict().items()}


def _columns(fit: Prepared, settings: PretrainConfig) -> list[str]:
    """Return the columns that are read.

    Raises:
        ConfigError: there are none, or a named one is not among those that the method reads.
    """
    check_rule(settings.freeze)
    if fit.config.trainer.shard:
        raise ConfigError("pretrain does not go with trainer.shard", do="leave one of them out")
    able = {
        name: modality
        for name, modality in fit.modalities.items()
        if isinstance(backbone := getattr(modality, "backbone", None), Backbone)
        and backbone.pretrained
        and name not in fit.config.negative
        and (settings.name == "contrastive" or isinstance(modality, TextModality))
    }
    what = "a pretrained encoder" if settings.name == "contrastive" else "text"
    if lost := [name for name in settings.columns if name not in able]:
        raise ConfigError(
            f"pretrain.columns names {lost[0]!r}, which {settings.name} does not read",
            expected=f"columns with {what}: {', '.join(able)}" if able else f"a column with {what}",
        )
    columns = settings.columns or list(able)
    if len(columns) < (2 if settings.name == "contrastive" else 1):
        kinds = ", ".join(f"{name} ({modality.kind})" for name, modality in fit.modalities.items())
        raise ConfigError(
            f"pretrain.name={settings.name} finds {'fewer than two columns' if columns else 'no column'} with {what}",
            came=kinds,
            do="leave pretrain out, or insist on a column's kind: columns.NAME=text",
        )
    return columns


def _rows(fit: Prepared, settings: PretrainConfig, columns: Sequence[str], least: int) -> dict[str, Examples]:
    """Return the train and validation rows that have at least `least` of the columns, as they are drawn.

    Raises:
        TableError: there are too few.
    """
    rows = {}
    for split, minimum in (("train", MIN_TRAIN), ("val", MIN_VAL)):
        view = fit.examples[split].restrict(columns).without_targets().given(augmentation=Augmentation(), mix=1.0)
        present = sum(column.codes[view.used] >= 0 for column in view.columns.values())
        rows[split] = view = view.of(np.flatnonzero(present >= least))
        if len(view) < minimum:
            raise TableError(
                f"pretrain.name={settings.name} has too few {split} rows with {', '.join(columns)}",
                expected=f"{minimum} or more",
                came=str(len(view)),
                file=view.table.source,
                do="give a table of more rows, which need no target, besides; or leave pretrain out",
            )
    return rows


def _texts(fit: Prepared, settings: PretrainConfig, columns: Sequence[str]) -> _Pretraining:
    """Return the training on texts by `mlm` or `simcse`, which runs the encoders in every update."""
    rows = _rows(fit, settings, columns, 1)
    keys = {name: fit.modalities[name].encoder_key for name in columns}
    encoders = {keys[name]: fit.modalities[name].backbone for name in columns}  # type: ignore[attr-defined]
    model = Encoders(encoders, keys, passes=2 if settings.name == "simcse" else 0)
    objective: Objective
    if settings.name == "simcse":
        objective = SimCSE(model, temperature=settings.temperature or 0.05)
        head_epochs = 0.0
    else:
        objective = MaskedLanguageModelling(model, columns, share=settings.mask)
        head_epochs = HEAD_EPOCHS["mlm"] if any(head.is_new for head in objective.heads) else 0.0
    evaluator = _evaluator(fit, settings, model)
    goal = Goal({}, evaluator=evaluator, also=[objective])
    return _Pretraining(model, TrainingRows(rows["train"], rows["val"], {}, {}), goal, head_epochs=head_epochs)


def _contrastive(fit: Prepared, settings: PretrainConfig, columns: Sequence[str]) -> _Pretraining:
    """Return the training that brings the columns of a row together, from a closed-form alignment."""
    rows = _rows(fit, settings, columns, 2)
    modalities = {name: fit.modalities[name] for name in columns}
    tasks = alignment_tasks({name: modality.part_of for name, modality in modalities.items()})
    model = build_model(modalities, tasks, NamedConfig(name=NO_FUSION))
    options = {} if settings.temperature is None else {"temperature": settings.temperature, "learn_temperature": False}
    features = {split: {name: fit.features[split][name] for name in columns} for split in rows}
    scales = column_scales(rows["train"], features["train"])
    for name, scale in scales.items():
        model.set_scale(name, *scale)
    objective = ContrastiveObjective(model, {}, **options)  # type: ignore[arg-type]
    val = rows["val"].given(features=features["val"])

    def score(start: Alignment) -> float:
        start.install(model)
        return -held_out(model, [objective], val, settings, seed=fit.config.seed)[0]

    start = align(rows["train"], features["train"], scales, model.dim, score, sides=model.compared)
    goal = Goal({}, {"contrastive": options}, _evaluator(fit, settings, model))
    given = TrainingRows(rows["train"], rows["val"], features["train"], features["val"])
    return _Pretraining(model, given, goal, Start(alignment=start), HEAD_EPOCHS["contrastive"])


def _evaluator(
    fit: Prepared, settings: PretrainConfig, model: Family
) -> Callable[[Sequence[Objective], ScoreError], Evaluate]:
    """Return the evaluator of `Goal`: the score of the validation rows is minus their loss."""

    def make(objectives: Sequence[Objective], error: ScoreError) -> Evaluate:
        error.value = 0.0

        def evaluate(val: Examples) -> tuple[float, float, dict[str, dict[str, float]]]:
            loss, figures = held_out(model, objectives, val, settings, seed=fit.config.seed)
            return loss, -loss, {"pretrain": {"loss": loss, **figures}}

        return evaluate

    return make


@torch.no_grad()
def held_out(
    model: Family, objectives: Sequence[Objective], val: Examples, settings: PretrainConfig, *, seed: int
) -> tuple[float, dict[str, float]]:
    """Return the objective's mean loss on rows in batches of the training's size, and its figures.

    Masks, dropout and batches are drawn from the seed alone, so that losses of different steps can be compared.

    Args:
        model: in any mode.
        objectives: one.
        val: prepared rows.
        settings: the section `pretrain`.
        seed: of the draws.
    """
    (objective,) = objectives
    device = model_device(model)
    rng_state, was_training = RngState(device), model.training
    model.train(getattr(objective, "needs_dropout", False))
    torch.manual_seed(seed)
    order = np.random.default_rng(seed).permutation(val.used)
    total, size, sums = 0.0, 0.0, dict.fromkeys(FIGURES[settings.name], 0.0)
    for rows in np.array_split(order, max(1, round(len(order) / settings.batch_size))):
        batch = val.batch(np.sort(rows)).to(device)
        outputs = model(batch)
        if isinstance(objective, BatchObjective):  # not gathered: every process has all of these rows
            losses = objective.of_vectors(objective.vectors(batch, outputs))
        else:
            losses = objective(model, batch, outputs)
        count = float(objective.counts(batch).sum())
        total, size = total + count * objective.weight * sum(map(float, losses.values())), size + count
        for name in sums:
            sums[name] += count * float(objective.figures.get(name, math.nan))
    model.train(was_training)
    rng_state.restore()
    loss = total / size if size else math.nan
    figures = {name: value / size for name, value in sums.items()} if size else {}
    return loss, ({"perplexity": math.exp(min(loss, 700.0))} if settings.name == "mlm" else {}) | figures


def _train(fit: Prepared, settings: PretrainConfig, plan: _Pretraining) -> TrainingHistory:
    """Train, and leave the encoders at the step with the lowest loss on the validation rows."""
    log_dir = fit.folder / "logs" / "pretrain" if processes().is_main_process else None
    return finetune(
        plan.model,
        plan.rows,
        plan.goal,
        _trainer(fit.config.trainer, settings, plan.head_epochs),
        rules={key: BackboneRule(settings.freeze) for key in plan.model.encoders},
        start=plan.start,
        context=RunContext(
            fit.config.seed,
            manager=fit.run.manager("pretrain"),
            log_dir=log_dir,
            bar=fit.show,
            deadline=fit.deadline.part(CHOOSING),
        ),
    )


def _trainer(trainer: TrainerConfig, settings: PretrainConfig, head_epochs: float) -> TrainerConfig:
    """Return the trainer's settings for this step: the task's special ways of training do not apply."""
    own: dict[str, Any] = {
        "epochs": settings.passes,
        "head_epochs": head_epochs,
        "batch_size": settings.batch_size,
        "backbone_lr": settings.lr or trainer.backbone_lr,
        "patience": settings.patience,
        "evals_per_epoch": 1,
    }
    usual = ("adversarial", "sam", "ema", "soup", "interpolate", "balance", "compile", "cuda_graphs", "metric")
    fields = TrainerConfig.model_fields
    return trainer.model_copy(update=own | {name: fields[name].default for name in usual})


def _record(
    settings: PretrainConfig,
    columns: list[str],
    plan: _Pretraining,
    history: TrainingHistory,
    changed: int,
    fit: Prepared,
) -> PretrainingUsed:
    """Return the record for the report."""
    steps = [
        PretrainingStep(
            check.stage,
            check.step,
            check.epoch,
            math.nan if check.train_loss is None else check.train_loss,
            check.val_loss,
            {name: value for name, value in check.metrics["pretrain"].items() if name != "loss"},
        )
        for check in history.checks
    ]
    start = [step for step in steps if step.stage == "head" or step.step == 0]
    before = min(start, key=lambda step: step.val_loss)
    after = next(step for step in steps if step.step == history.best.step and step.stage == history.best.stage)
    train, val = plan.rows.train, plan.rows.val
    unlabelled = int(np.count_nonzero(np.isin(train.used, _unlabelled(fit))))
    said = (
        f"The encoders of {', '.join(columns)} were pretrained on {len(train):,} train rows ({settings.name})"
        f"{f', {unlabelled:,} of them without a target' if unlabelled else ''}, before the task was tuned. Test rows"
        f" took no part. The loss on {len(val):,} validation rows went from {before.val_loss:.4g} to"
        f" {after.val_loss:.4g}."
    )
    if not changed:
        said += " No step was better than the encoders as loaded, so they stayed as they were."
    if history.out_of_time:
        said += " It was stopped early, as its part of the time was up (trainer.minutes)."
    return PretrainingUsed(
        settings.name, columns, len(train), unlabelled, len(val), before, after, steps, changed, history.seconds, said
    )


def _unlabelled(fit: Prepared) -> np.ndarray:
    train = fit.examples["train"]
    return train.used[np.flatnonzero(train.unlabelled())]
