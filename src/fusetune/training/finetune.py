"""The recipe of a fit: a linear probe, then the new parts on frozen features, then everything; the best step is kept.

Heads that start at random would drag good pretrained features along with their first, wild gradients; learning them
first keeps the features (Kumar et al. 2022, "Fine-tuning can distort pretrained features", arXiv 2202.10054). It is
cheap, as the frozen backbones run once. The probe's predictions are the first candidate for the best step, so a tuned
model is at least as good on the validation rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from torch import Tensor, nn

from fusetune._optional import optional_import
from fusetune.backbones.freeze import freeze, lr_scales
from fusetune.backbones.load import Backbone
from fusetune.config import TrainerConfig
from fusetune.data.examples import Examples, Progress
from fusetune.errors import ConfigError, nearest
from fusetune.models.understand import Understand
from fusetune.objectives.tasks import TaskLosses
from fusetune.tasks.base import Task
from fusetune.training.callbacks import Bar, BestStep, Callback, Check, Curve, Trackers
from fusetune.training.inference import encode_cells, predict_logits
from fusetune.training.learner import Learner
from fusetune.training.loop import Stage, Validate, run_stage
from fusetune.training.optim import no_decay, param_groups
from fusetune.training.probe import Probe, column_scales

HEAD_EPOCHS, HEAD_EPOCHS_SCRATCH = 60, 12
HEAD_PATIENCE = 8
HEAD_UPDATES = 40
"""The head stage makes at most about so many updates an epoch, by batches of up to `HEAD_BATCH` of its cheap rows."""
HEAD_BATCH = 512


@dataclass
class Course:
    """How a fit went: every check, and the best one, whose weights the model has now.

    Attributes:
        trained: how many parameters were trained, per encoder key and in all under "".
        moved: the keys of the pretrained encoders that were trained.
    """

    checks: list[Check]
    best: Check
    trained: dict[str, int]
    moved: set[str]


@dataclass(frozen=True)
class BackboneRule:
    """How one encoder is tuned: which blocks are frozen, and its last block's learning rate (None: the default)."""

    freeze: str = "none"
    lr: float | None = None


def make_accelerator(settings: TrainerConfig, log_dir: Path | None) -> Accelerator:
    """Devices, precision and trackers as the settings say.

    Raises:
        ConfigError: accelerate knows no tracker of a name.
        MissingExtra: a tracker that was asked for is not installed; without tensorboard, the default tracks nothing.
    """
    precision = settings.precision
    if precision == "auto":
        precision = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    trackers = list(settings.trackers) if log_dir else []
    if trackers == TrainerConfig().trackers and find_spec("tensorboard") is None:
        trackers = []
    for tracker in trackers:
        if tracker not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            do = nearest(tracker, LOGGER_TYPE_TO_CLASS) or "trainer.trackers=[] tracks nothing"
            raise ConfigError(f"there is no tracker called {tracker!r}", expected=known, do=do)
        if tracker in ("tensorboard", "wandb"):
            optional_import(tracker, f"to track the run with trainer.trackers: [{tracker}]")
    AcceleratorState._reset_state()  # a process may run several fits, each with its own precision
    return Accelerator(
        mixed_precision=precision,
        log_with=trackers or None,
        project_dir=log_dir,
    )


def fill_features(model: Understand, examples: Examples, *, progress: Progress | None = None) -> dict[str, Tensor]:
    """Encoder outputs of every distinct cell, per column whose encoder is of use before any training.

    Args:
        model: with its encoders as they are now.
        examples: prepared rows.
        progress: wraps iterators.
    """
    return {
        column: encode_cells(model, examples, column, progress=progress)
        for column, key in model.routes.items()
        if model.encoders[key].pretrained and column in examples.columns
    }


def set_features(examples: Examples, features: Mapping[str, Tensor]) -> None:
    """Give columns their encoder outputs; the others go through their encoders."""
    for name, column in examples.columns.items():
        column.features = features.get(name)


@contextmanager
def encoded(
    model: Understand,
    examples: Examples,
    known: Mapping[str, Tensor] | None = None,
    *,
    progress: Progress | None = None,
) -> Iterator[None]:
    """Every cell goes through the model's encoders once, however often its rows are predicted inside.

    Args:
        model: as it is now.
        examples: prepared rows.
        known: encoder outputs of some columns that are right for this model already.
    """
    known = known or {}
    set_features(examples, {})
    others = {
        column: encode_cells(model, examples, column)
        for column in model.routes
        if column in examples.columns and column not in known
    }
    set_features(examples, {**known, **others})
    try:
        yield
    finally:
        set_features(examples, {})


def evaluate_loss(
    model: Understand, tasks: Mapping[str, Task], examples: Examples, *, batch_size: int = 64
) -> tuple[float, float, dict[str, dict[str, float]]]:
    """Loss, score (mean main metric, more is better) and metrics by task on the labelled rows; nan without any."""
    if not len(examples):
        return math.nan, math.nan, {}
    logits = predict_logits(model, examples, examples.used, batch_size=batch_size)
    place = {int(index): position for position, index in enumerate(examples.used)}
    total, scores, metrics = 0.0, [], {}
    for name, task in tasks.items():
        rows = examples.labelled(name)
        if not len(rows):
            continue
        chosen = logits[name][[place[int(row)] for row in rows]]
        values = [examples.targets[name][row] for row in rows]
        weights = torch.from_numpy(examples.weights[rows])
        total += float(task.loss(chosen, task.encode(values), weights))
        metrics[name] = task.metrics(task.scores(chosen), task.truth(values), examples.weights[rows])
        main = metrics[name][task.main.name]
        scores.append(main if task.main.greater_is_better else -main)
    return total, float(np.mean(scores)) if scores else math.nan, metrics


class _Recipe:
    """One fit's parts, so that its stages read plainly."""

    def __init__(
        self,
        model: Understand,
        tasks: Mapping[str, Task],
        settings: TrainerConfig,
        rules: Mapping[str, BackboneRule],
        seed: int,
        *,
        starts_linear: bool,
        margin: float,
    ) -> None:
        self.model, self.tasks, self.settings, self.rules, self.seed = model, tasks, settings, rules, seed
        self.starts_linear, self.margin = starts_linear, margin
        self.pretrained = {key for key, encoder in model.encoders.items() if encoder.pretrained}
        self.scratch = {
            key for key, encoder in model.encoders.items() if isinstance(encoder, Backbone) and not encoder.pretrained
        }
        self.undecayed = no_decay(model)
        for key in self.scratch:
            if key in rules and rules[key].freeze != "none":
                raise ConfigError(
                    f"the encoder {key!r} is trained from scratch and cannot be frozen",
                    came=f"freeze: {rules[key].freeze}",
                    do="name a pretrained backbone, or leave freeze out",
                )

    def new_parameters(self) -> list[nn.Parameter]:
        """What has no pretrained weights: fusion, projections, heads, linear part, and encoders from scratch."""
        old = {id(p) for key in self.pretrained for p in self.model.encoders[key].parameters()}
        return [p for p in self.model.parameters() if id(p) not in old]

    def head_stage(self, num_rows: int) -> Stage:
        """Pretrained encoders frozen, everything new at `lr`."""
        epochs = self.settings.head_epochs
        if epochs is None:
            epochs = HEAD_EPOCHS_SCRATCH if self.scratch else HEAD_EPOCHS
        for key in self.pretrained:
            self.model.encoders[key].requires_grad_(False)
        if self.model.linear is not None and self.starts_linear:
            self.model.linear.requires_grad_(False)  # it is the best linear model of these features already
        patience = None if self.settings.patience is None else max(HEAD_PATIENCE, self.settings.patience)
        stage = self._stage("head", epochs, [(self.settings.lr, self.new_parameters())], 1, patience)
        if not self.scratch:
            stage.batch_size = max(stage.batch_size, min(num_rows // HEAD_UPDATES, HEAD_BATCH))
        return stage

    def tune_stage(self) -> Stage:
        """Everything that no rule freezes, each pretrained block at its own rate."""
        if self.model.linear is not None:
            self.model.linear.requires_grad_(True)
        head_lr = self.settings.head_lr if self.settings.head_epochs != 0 else self.settings.lr
        sets: list[tuple[float, Sequence[Tensor]]] = [(head_lr, self.new_parameters())]
        for key in sorted(self.pretrained):
            rule = self.rules.get(key, BackboneRule())
            encoder = self.model.encoders[key]
            if not isinstance(encoder, Backbone):
                continue
            encoder.requires_grad_(True)
            freeze(encoder, rule.freeze)
            if self.settings.gradient_checkpointing:
                encoder.enable_checkpointing()
            for scale, named in lr_scales(encoder, self.settings.layer_decay):
                sets.append(((rule.lr or self.settings.backbone_lr) * scale, [p for _, p in named]))
        return self._stage("tune", self.settings.epochs, sets, self.settings.evals_per_epoch, self.settings.patience)

    def _stage(
        self,
        name: str,
        epochs: float,
        sets: Sequence[tuple[float, Iterable[Tensor]]],
        evals_per_epoch: int,
        patience: int | None,
    ) -> Stage:
        settings = self.settings
        return Stage(
            name=name,
            epochs=epochs,
            groups=param_groups(sets, weight_decay=settings.weight_decay, undecayed=self.undecayed),
            optimizer=settings.optimizer,
            schedule=settings.schedule,
            warmup=settings.warmup,
            clip=settings.clip,
            batch_size=settings.batch_size,
            accumulate=settings.accumulate,
            evals_per_epoch=evals_per_epoch,
            patience=patience,
            margin=self.margin,
            workers=settings.workers,
            seed=self.seed,
        )

    def moving(self) -> set[str]:
        """Pretrained encoders that have something to train now."""
        return {k for k in self.pretrained if any(p.requires_grad for p in self.model.encoders[k].parameters())}


def finetune(
    model: Understand,
    tasks: Mapping[str, Task],
    train: Examples,
    val: Examples,
    settings: TrainerConfig,
    *,
    rules: Mapping[str, BackboneRule] | None = None,
    features: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    probes: Mapping[str, Probe] | None = None,
    seed: int = 0,
    log_dir: Path | None = None,
    bar: bool = False,
) -> Course:
    """Tune a model in place and leave it at its best step on the validation rows.

    Args:
        model: with pretrained encoders and everything else at random.
        tasks: fitted.
        train: prepared rows to learn from.
        val: prepared rows that choose the best step.
        settings: the recipe.
        rules: per encoder key.
        features: `fill_features` of train and of val.
        probes: per task, the linear model on these features to start from; without one, the heads start as the
            tasks made them.
        seed: of shuffling and dropout.
        log_dir: where trackers write; None for no trackers.
        bar: whether to show progress.
    """
    margin = 0.5 / math.sqrt(max(len(val), 1))  # about the standard error of an accuracy
    recipe = _Recipe(model, tasks, settings, rules or {}, seed, starts_linear=bool(probes), margin=margin)
    accelerator = make_accelerator(settings, log_dir)
    learner = Learner(model, TaskLosses(tasks)).to(accelerator.device)
    for name, (shift, scale) in column_scales(train, features[0]).items():
        model.set_scale(name, shift, scale)
    for name, probe in (probes or {}).items():
        probe.install(model, name)
    best, curve = BestStep(learner, margin=margin), Curve()
    callbacks: list[Callback] = [curve]
    if accelerator.log_with:
        # wandb writes into the current folder where it is not told otherwise.
        accelerator.init_trackers("fusetune", config={"seed": seed}, init_kwargs={"wandb": {"dir": str(log_dir)}})
        callbacks.append(Trackers(accelerator))
    if bar and accelerator.is_main_process:
        callbacks.append(Bar())

    def validate() -> tuple[float, float, dict[str, dict[str, float]]]:
        return evaluate_loss(model, tasks, val)

    try:
        moved = _stages(recipe, learner, (train, val), features, validate, accelerator, best, callbacks)
    finally:
        for callback in callbacks:
            callback.on_end()
        set_features(train, {})
        set_features(val, {})
    assert best.check is not None, "a stage ends with a check"
    return Course(curve.checks, best.check, _trained(model), moved)


def _stages(
    recipe: _Recipe,
    learner: Learner,
    rows: tuple[Examples, Examples],
    features: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    validate: Validate,
    accelerator: Accelerator,
    best: BestStep,
    others: Sequence[Callback],
) -> set[str]:
    """The head stage, then the tune stage, each left at the best step so far; gives the encoders that were trained."""
    settings, model, (train, val) = recipe.settings, recipe.model, rows
    callbacks = [best, *others]
    step = 0
    if settings.head_epochs != 0:
        set_features(train, features[0])
        set_features(val, features[1])
        head = recipe.head_stage(len(train))
        first_check(head.name, validate, callbacks)
        step = run_stage(learner, head, train, validate, accelerator, callbacks)
        best.restore()
    tune = recipe.tune_stage()
    moving = recipe.moving()
    still = [column for column, key in model.routes.items() if key not in moving]
    set_features(train, {name: values for name, values in features[0].items() if name in still})
    set_features(val, {name: values for name, values in features[1].items() if name in still})
    if best.check is None:
        first_check(tune.name, validate, callbacks)
    if settings.epochs and (moving or settings.head_epochs == 0):
        best.cover()
        run_stage(learner, tune, train, validate, accelerator, callbacks, first_step=step)
        best.restore()
    return moving


def first_check(stage: str, validate: Validate, callbacks: Sequence[Callback]) -> None:
    """Evaluate before the first update, so that what the model starts from is a candidate for the best step."""
    loss, score, metrics = validate()
    for callback in callbacks:
        callback.on_check(Check(stage, 0, 0.0, None, loss, score, metrics, 0.0))


def _trained(model: Understand) -> dict[str, int]:
    counts = {
        key: sum(p.numel() for p in encoder.parameters() if p.requires_grad) for key, encoder in model.encoders.items()
    }
    counts[""] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return counts
