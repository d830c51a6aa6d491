"""Estimate the time and memory of a fit from a few batches: `fusetune fit --dry-run`."""

from __future__ import annotations

import itertools
import math
import resource
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from fusetune.data.column import Column
from fusetune.data.examples import Examples
from fusetune.evaluation.measure import systems
from fusetune.evaluation.measure.judge import EvaluatedRows, judge
from fusetune.fitting.announce import announcement
from fusetune.fitting.choose import start_fusion
from fusetune.fitting.joining import why_apart
from fusetune.fitting.own_space import identity_start, keep_own_space, sides_of, tied
from fusetune.fitting.prepared import Prepared, RunSettings, prepare
from fusetune.fitting.steps import build, fit_probes, rules
from fusetune.fitting.tables import SPLITS
from fusetune.inference.memory import retain_freed_memory
from fusetune.inference.predict import evaluating, predict_logits
from fusetune.models.family import Family
from fusetune.objectives.balance import build_balance
from fusetune.objectives.total import Total, build_objectives
from fusetune.tasks.base import family_of
from fusetune.training.finetune import precision_of
from fusetune.training.frozen_blocks import choose_frozen_blocks
from fusetune.training.hardware.devices import make_accelerator
from fusetune.training.hardware.memory import fit_micro_batches
from fusetune.training.learner import Learner
from fusetune.training.loop import sampler_of
from fusetune.training.mining import Miner
from fusetune.training.optim import build_optimizer
from fusetune.training.plan import TrainingRows
from fusetune.training.probes.probe import SplitRows
from fusetune.training.recipe import Recipe
from fusetune.training.stage import Stage
from fusetune.training.updates.update import update
from fusetune.types import Tokens

CELLS = 32
"""Number of cells of a column to encode."""
ROWS = 64
"""Number of rows of a split to predict."""
UPDATES = 2
"""Number of updates to time, after one with the largest rows."""


@dataclass(frozen=True)
class StageEstimate:
    """The estimate of one step of a fit.

    Attributes:
        name: the step's name, as the fit prints it.
        seconds: duration at the machine's present speed, without early stopping.
        detail: how the duration is composed.
    """

    name: str
    seconds: float
    detail: str = ""


@dataclass(frozen=True)
class Estimate:
    """The estimate of a fit.

    Attributes:
        inferred: lines that describe tasks, columns, backbones and rows.
        stages: the steps in order.
        peak_mb: peak memory of this process in MB, including the largest micro-batch.
        notes: sentences on how micro-batches are chosen to fit into memory.
    """

    inferred: list[str]
    stages: list[StageEstimate]
    peak_mb: float
    notes: list[str]

    @property
    def seconds(self) -> float:
        """Seconds of all stages."""
        return sum(stage.seconds for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """Return the estimate as JSON data."""
        return {**asdict(self), "seconds": self.seconds}

    def lines(self) -> list[str]:
        """Return the estimate as lines of text."""
        rows = [f"{stage.name:<30}{stage.seconds:>9,.0f} s  {stage.detail}".rstrip() for stage in self.stages]
        memory = f"peak memory {self.peak_mb:,.0f} MB"
        total = f"{'in all, about':<30}{self.seconds:>9,.0f} s  {memory}"
        return [*self.inferred, *rows, total, *(f"note: {note}" for note in self.notes)]


def estimate_fit(asked: RunSettings) -> Estimate:
    """Prepare a fit, run a few batches of every stage, and extrapolate; nothing is trained.

    Raises:
        UserError: see `api.fit`.
    """
    fit = keep_own_space(prepare(asked))
    stages = [StageEstimate(phase.name, phase.seconds) for phase in fit.phases]
    model = build(fit, start_fusion(fit))
    own_space = identity_start(model, sides_of(fit.tasks)) is not None
    if own_space:
        fit = tied(fit)
        model = build(fit, start_fusion(fit))
    features, encoding = _encoding(fit, model)
    train, val = fit.examples["train"], fit.examples["val"]
    objectives = build_objectives(model, fit.targets, fit.config.objectives)
    rows = TrainingRows(train, val, features["train"], features["val"]).for_objectives(objectives)
    train = rows.train
    for objective in objectives:
        objective.fit(train)
    settings = fit.config.trainer
    balance = build_balance(settings.balance, model, fit.targets, train)
    own, augmented = rules(fit, fit.modalities), train.augmentation.augmenters
    options: dict[str, Any] = {"balance": balance, "augmented": augmented, "starts_pretrained": own_space}
    recipe = Recipe(model, objectives, settings, own, fit.config.seed, starts_linear=True, **options)
    learner = Learner(model, Total(fit.targets, objectives, balance))
    accelerator = make_accelerator(settings, None, precision_of(recipe, learner, rows))
    learner.to(accelerator.device)
    stages += [StageEstimate("encode with frozen backbones", encoding, "nothing of it where the cache has it")]
    fit, probing = _probing(fit, features)
    stages += [StageEstimate("fit linear probes", probing)] if fit.probes else []
    notes: list[str] = []
    if fit.tables.pair is not None and why_apart(fit) is None:
        pair = " and ".join(fit.tables.pair)
        notes.append(f"{pair} are tuned apart and together, so head and tune take up to twice as long (text.join)")
    if fit.config.rerank is not None:
        notes.append("the re-ranker that is tuned afterwards is not in this estimate (rerank)")
    if fit.config.pretrain is not None:
        notes.append("the self-supervised tuning beforehand is not in this estimate (pretrain)")
    if recipe.settings.head_epochs != 0:
        given = train.given(features=rows.train_features), val.given(features=rows.val_features)
        stages.append(_stage(recipe.head_stage(train.num_drawn), learner, *given, accelerator, notes))
    if recipe.tunes():
        choose_frozen_blocks(recipe, learner, rows)
        notes += recipe.notes
        tune = recipe.tune_stage()
        still = [name for name, key in model.routes.items() if key not in recipe.moving()]
        stages.append(_stage(tune, learner, *rows.given(still, augmented=False), accelerator, notes))
    training = sum(stage.seconds for stage in stages if stage.name in ("head", "tune"))
    stages.append(StageEstimate("save", _predicting(model, val), f"with the decisions on {len(val):,} validation rows"))
    stages.append(_comparing(fit, model, probing, training))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
    return Estimate(announcement(fit.schema, fit.tasks, fit.modalities, fit.examples), stages, peak, notes)


def _encoding(fit: Prepared, model: Family) -> tuple[Mapping[str, Mapping[str, Tokens]], float]:
    """Return features such as the frozen encoders compute, and the seconds to compute them all.

    They repeat those of a sample of cells, with noise, so that fitting a probe on them takes about as long as on all.
    """
    generator = torch.Generator().manual_seed(fit.config.seed)
    features: dict[str, dict[str, Tokens]] = {split: {} for split in fit.examples}
    seconds = 0.0
    for name, key in model.routes.items():
        if not model.encoders[key].pretrained:
            continue
        for split, examples in fit.examples.items():
            column = examples.columns[name]
            tokens, took = _encode(model, name, column)
            seconds += took
            repeated = tokens.values.float().cpu()[torch.arange(len(column.cells)) % len(tokens.values)]
            noise = torch.randn(repeated.shape, generator=generator)
            values = repeated + noise * repeated.std() if len(repeated) else repeated
            features[split][name] = Tokens(values, torch.ones(values.shape[:2], dtype=torch.bool))
    return features, seconds


def _encode(model: Family, name: str, column: Column) -> tuple[Tokens, float]:
    """Return the tokens of a sample of cells, and the extrapolated seconds for all cells."""
    good = column.good()
    sample = good[np.unique(np.linspace(0, len(good) - 1, min(CELLS, len(good))).astype(np.int64))]
    with evaluating(model), retain_freed_memory():
        model.encode(name, column.tensors(sample[:2]))
        start = time.perf_counter()
        tokens = model.encode(name, column.tensors(sample))
        return tokens, (time.perf_counter() - start) * len(good) / len(sample)


def _probing(fit: Prepared, features: Mapping[str, Mapping[str, Tokens]]) -> tuple[Prepared, float]:
    """Fit the linear probes on features; return the fit with rows and probes, and the seconds.

    A fit of another family has none.
    """
    if family_of(fit.tasks) != "understand":
        return replace(fit, features=features), 0.0
    rows = {
        name: {split: SplitRows.of(name, fit.examples[split].with_target(), features[split]) for split in SPLITS}
        for name in fit.targets
    }
    start = time.perf_counter()
    fit = replace(fit, features=features, rows=rows)
    fit = replace(fit, probes=fit_probes(fit))
    return fit, time.perf_counter() - start


def _comparing(fit: Prepared, model: Family, probing: float, training: float) -> StageEstimate:
    """Estimate the report: the test rows are predicted, other systems are fitted, and all are compared.

    Args:
        fit: with rows and probes.
        model: the model.
        probing: seconds to fit the probes; the probes of each modality alone take about as long together.
        training: seconds to train the model; one of a modality or a target alone takes its share.
    """
    test = fit.examples["test"]
    seconds, details = _predicting(model, test), [f"{len(test):,} test rows"]
    settings, grouped = fit.config.report, systems.parts(test)
    if not fit.rows:
        return StageEstimate("compare and measure", seconds, details[0])
    num_parts = len(grouped) if len(grouped) > 1 else 0
    if settings.alone != "none" and num_parts:
        split = next(iter(fit.rows.values()))["train"]
        trained = systems.trained_alone(settings.alone, split, fit.targets.values())
        seconds += probing + training * len(trained) / num_parts
        details.append(f"{num_parts} modalities alone")
    if settings.single and len(fit.targets) > 1:
        seconds += training
        details.append(f"{len(fit.targets)} targets alone")
    num_systems = 3 + (2 * num_parts if settings.alone != "none" else num_parts)
    num_hidden = len(fit.modalities) if len(fit.modalities) > 1 else 0
    for name in fit.targets:
        seconds += _judging(fit, name) * (num_systems + num_hidden) / 2
    details.append(f"{num_systems} systems")
    return StageEstimate("compare and measure", seconds, ", ".join(details))


def _judging(fit: Prepared, name: str) -> float:
    """Return the seconds to compare two systems on a task's test rows, with their intervals."""
    task, rows = fit.targets[name], fit.rows[name]
    train, val, test = rows["train"], rows["val"], rows["test"]
    constant = systems.baseline(task, train, test)
    evaluated = EvaluatedRows(
        test.truth, test.examples.table.rows[test.indices], weights=test.examples.weights[test.indices]
    )
    start = time.perf_counter()
    judge(
        task,
        [constant, replace(constant, name="tuned", kind="after")],
        evaluated,
        validation=(task.constant(train.truth, len(val.indices)), val.truth),
        num=fit.config.report.bootstrap,
        num_errors=0,
        seed=fit.config.seed,
    )
    return time.perf_counter() - start


def _predicting(model: Family, examples: Examples) -> float:
    """Return the extrapolated seconds to predict all rows."""
    sample = examples.used[:: max(1, len(examples) // ROWS)][:ROWS]
    start = time.perf_counter()
    predict_logits(model, examples, sample, batch_size=ROWS)
    return (time.perf_counter() - start) * len(examples) / len(sample)


def _stage(
    stage: Stage, learner: Learner, train: Examples, val: Examples, accelerator: Any, notes: list[str]
) -> StageEstimate:
    """Run an update with the largest rows, time some others and a validation pass, and extrapolate."""
    miner = Miner.of(learner, train, accelerator)
    mining = 0.0 if miner is None else math.ceil(stage.epochs / miner.mining.every) * _predicting(miner.model, train)
    train = train if miner is None else miner.stand_in()
    sizes = train.sizes(train.used)
    sampler = sampler_of(learner, stage, train, accelerator)
    learner.train()
    if stage.fits_memory and (text := fit_micro_batches(learner, train, sampler, accelerator, stage.gradients)):
        notes.append(text)
    optimizer = build_optimizer(stage.optimizer, stage.groups, lr=0.0)
    trained = [parameter for group in stage.groups for parameter in group["params"]]
    heaviest = train.used[np.argsort(-sizes, kind="stable")[: -(-stage.batch_size // sampler.accumulate)]]
    micro = list(itertools.islice(sampler, UPDATES * sampler.accumulate))
    parts = sampler.accumulate
    batches = [[list(map(int, heaviest))], *(micro[at : at + parts] for at in range(0, len(micro), parts))]
    took = []
    with retain_freed_memory():
        for micro_batches in batches:
            start = time.perf_counter()
            rows = [train.batch(part, epoch=0) for part in micro_batches]
            given = (learner, rows, optimizer, accelerator, stage.gradients, trained)
            update(*given, clip=stage.clip, where=f"an update of stage {stage.name!r}")
            took.append(time.perf_counter() - start)
    updates = max(1, round(stage.epochs * sampler.num_updates))
    checks = max(1, updates // max(1, sampler.num_updates // stage.evals_per_epoch))
    check = _predicting(learner.model, val) if isinstance(learner.model, Family) else 0.0
    seconds = updates * float(np.mean(took[1:])) + checks * check
    seconds, mined = seconds + mining, f", mining of negatives {mining:,.0f} s" if miner is not None else ""
    detail = f"up to {updates:,} updates of {np.mean(took[1:]):.2f} s and {checks} checks of {check:.1f} s{mined}"
    return StageEstimate(stage.name, seconds, detail)
