"""The steps of a fit: build a model, run its frozen encoders, fit probes, tune."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed

from fusetune.backbones.backbone import Backbone
from fusetune.config.fusion import neural
from fusetune.config.section import NamedConfig
from fusetune.deploy.bundle import Bundle
from fusetune.evaluation.measure import systems
from fusetune.evaluation.report import describe
from fusetune.fitting.prepared import Prepared
from fusetune.fitting.recommendations import Recommendations
from fusetune.fitting.tables import SPLITS
from fusetune.inference.features import fill_features
from fusetune.modalities.base import Modality
from fusetune.models.build import build_model
from fusetune.models.family import Family
from fusetune.objectives.base import Objective
from fusetune.registry import MODALITIES
from fusetune.tasks.base import TargetTask
from fusetune.training.changes import changed_parameters, digests
from fusetune.training.deadline import COMPARING, TRAINING
from fusetune.training.finetune import finetune
from fusetune.training.hardware.devices import processes
from fusetune.training.history import TrainingHistory
from fusetune.training.plan import Evaluate, Goal, RunContext, Start, TrainingRows
from fusetune.training.probes.extra_blocks import NgramBlock
from fusetune.training.probes.probe import SplitRows, StartingPoint
from fusetune.training.probes.token_probe import fit_probe
from fusetune.training.progress import print_line
from fusetune.training.recipe import BackboneRule
from fusetune.training.score_error import ScoreError
from fusetune.trees.stack import Stack


def build(fit: Prepared, fusion: NamedConfig) -> Family:
    """Build the model with this fusion; its initial weights do not depend on models built before."""
    torch.set_rng_state(fit.rng_state)
    return build_model(fit.modalities, fit.tasks, fusion)


def encode(fit: Prepared, model: Family) -> Prepared:
    """Run the frozen encoders on every distinct cell; return a `Prepared` with their features and the labelled rows."""
    fingerprints = {split: describe.fingerprint(examples) for split, examples in fit.examples.items()}
    fit.run.check(fingerprints, describe.weights_used(model))
    return with_features(replace(fit, fingerprints=fingerprints), model, "encode")


def with_features(fit: Prepared, model: Family, step: str) -> Prepared:
    """Return the fit with the outputs of the pretrained encoders for every distinct cell, and the labelled rows.

    Args:
        fit: with prepared rows.
        model: holds the encoders.
        step: the name under which the run stores the order of the cells.
    """
    features = {
        split: fill_features(
            model,
            examples,
            cache=fit.cache,
            groups=fit.run.manager(f"{step}-{split}").step_cells,
            progress=fit.progress,
        )
        for split, examples in fit.examples.items()
    }
    return labelled(replace(fit, features=features))


def labelled(fit: Prepared) -> Prepared:
    """Return the fit with its labelled rows, by task and split."""
    rows = {
        name: {split: SplitRows.of(name, fit.examples[split].with_target(), fit.features[split]) for split in SPLITS}
        for name in fit.targets
    }
    return replace(fit, rows=rows)


def fit_probes(fit: Prepared, part: Sequence[str] | None = None) -> dict[str, StartingPoint]:
    """Fit each task's best linear probe on the columns (of a part, or all) that have features before training."""
    probes: dict[str, StartingPoint] = {}
    for name, splits in fit.rows.items():
        task = fit.targets[name]
        columns = systems.probe_columns(splits["train"], part if part is not None else list(fit.modalities))
        select = fit.config.trainer.probe == "auto"
        if (probe := fit_probe(task, splits["train"], splits["val"], columns, select=select)) is not None:
            probes[name] = probe
    return probes


def drop_ngrams(fit: Prepared) -> None:
    """Drop the n-grams of columns that no probe reads, so that batches do not bring them."""
    fits = [some for some in (fit, fit.apart, fit.plain) if some is not None]
    extras = [extra for some in fits for probe in some.probes.values() for extra in probe.extras]
    read = {extra.source for extra in extras if isinstance(extra, NgramBlock)}
    for name, modality in fit.modalities.items():
        modality.ngrams = {part: ngrams for part, ngrams in modality.ngrams.items() if (name, part) in read}


def rules(fit: Prepared, modalities: Mapping[str, Modality]) -> dict[str, BackboneRule]:
    """Return how each encoder is tuned, by its key."""
    by_kind = {"text": fit.config.text, "prompt": fit.config.text, "image": fit.config.image, "audio": fit.config.audio}
    # A user's history is read by the frozen encoders' outputs, which tuned encoders would part from.
    frozen = {modality.encoder_key for modality in modalities.values() if _pretrained(modality)}
    still = frozen if fit.config.user is not None else set()
    return {
        modality.encoder_key: BackboneRule(
            "all"
            if modality.encoder_key in still and settings.freeze == "none"
            else _freeze(modality.kind, settings.freeze),
            settings.lr,
        )
        for modality in modalities.values()
        if (settings := by_kind.get(modality.kind)) is not None
    }


def _pretrained(modality: Modality) -> bool:
    backbone = getattr(modality, "backbone", None)
    return isinstance(backbone, Backbone) and backbone.pretrained


def _freeze(kind: str, rule: str) -> str:
    """Return a kind's rule: a trial is made for pictures alone, for which it was measured."""
    return "none" if rule == "auto" and kind != "image" else rule


def training_rows(fit: Prepared, columns: Sequence[str] | None = None) -> TrainingRows:
    """Return the train and validation rows with their features, restricted to some of the columns or with all."""
    train, val = fit.examples["train"], fit.examples["val"]
    train_features, val_features = fit.features["train"], fit.features["val"]
    numbers = fit.config.data.probe_only
    probe_only = np.isin(train.table.parts(), numbers) if numbers else None
    if columns is None:
        return TrainingRows(train, val, train_features, val_features, probe_only)
    return TrainingRows(
        train.restrict(columns),
        val.restrict(columns),
        {name: value for name, value in train_features.items() if name in columns},
        {name: value for name, value in val_features.items() if name in columns},
        probe_only,
    )


def tune(
    fit: Prepared,
    model: Family,
    *,
    start: Start,
    evaluator: Callable[[Sequence[Objective], ScoreError], Evaluate] | None = None,
) -> TrainingHistory:
    """Tune the fit's model on the train rows.

    Args:
        fit: with features.
        model: not tuned yet.
        start: the probes or the alignment that the model is initialised from.
        evaluator: see `Goal`.

    Raises:
        RunError, Interrupted: see `finetune`.
    """
    before = digests(model)
    history = finetune(
        model,
        training_rows(fit),
        Goal(fit.targets, fit.config.objectives, evaluator),
        fit.config.trainer,
        rules=rules(fit, fit.modalities),
        start=start,
        context=RunContext(
            seed=fit.config.seed,
            cache=fit.cache,
            manager=fit.run.manager("tune", fit.tables.tried),
            log_dir=fit.folder / "logs" if processes().is_main_process else None,
            bar=fit.show,
            deadline=fit.deadline.part(TRAINING),
            callbacks=fit.callbacks,
        ),
    )
    history.changed = changed_parameters(before, model, model.encoders)
    history.warnings += fit.run.notes
    history.warnings += [note for encoder in model.encoders.values() for note in getattr(encoder, "notes", ())]
    return history


def alone_models(fit: Prepared) -> dict[str, Family | None]:
    """Train a model on each modality alone, by the task losses, if the report needs it; return them by modality.

    The value is None for a modality whose model could not be trained in time.
    """
    splits = next(iter(fit.rows.values()))["train"]
    grouped = systems.parts(splits.examples)
    if fit.config.report.alone == "none" or len(grouped) < 2:
        return {}
    models: dict[str, Family | None] = {}
    for part in systems.trained_alone(fit.config.report.alone, splits, fit.targets.values()):
        columns = grouped[part]
        if fit.deadline.part(COMPARING).passed():
            models[part] = None
            fit.left_out.append(f"{part} alone")
            continue
        tasks = {name: task for name, task in fit.targets.items() if task.reads is None or task.reads in columns}
        if not tasks:
            continue
        _announce(fit, f"train on {part} alone, to compare")
        fresh, model = fresh_model(fit, columns, tasks)
        history = finetune(
            model,
            training_rows(fit, columns),
            Goal(tasks),
            fit.config.trainer.model_copy(update={"adversarial": None}),
            rules=rules(fit, fresh),
            start=Start(fit_probes(fit, columns)),
            context=_quiet(fit, "alone", columns),
        )
        models[part] = None if history.out_of_time else model  # trained for less time, it would be no fair comparison
        if history.out_of_time:
            fit.left_out.append(f"{part} alone")
    return models


def single_models(fit: Prepared) -> dict[str, Family]:
    """Train a model for each task alone, if the report needs it and time is left; return them by task."""
    models: dict[str, Family] = {}
    for name, task in fit.targets.items() if fit.config.report.single and len(fit.targets) > 1 else ():
        if fit.deadline.part(COMPARING).passed():
            fit.left_out.append(f"{name} by a model of its own")
            continue
        _announce(fit, f"train for {name} alone, to compare")
        fresh, model = fresh_model(fit, list(fit.modalities), {name: task})
        objectives = {
            objective: options
            for objective, options in fit.config.objectives.items()
            if options.get("target", name) in (name, None)
        }
        history = finetune(
            model,
            training_rows(fit),
            Goal({name: task}, objectives),
            fit.config.trainer,
            rules=rules(fit, fresh),
            start=Start({name: fit.probes[name]} if name in fit.probes else {}),
            context=_quiet(fit, "single", [name]),
        )
        if history.out_of_time:
            fit.left_out.append(f"{name} by a model of its own")
        else:
            models[name] = model
    return models


def _announce(fit: Prepared, what: str) -> None:
    """Print what the lines of progress that follow are about."""
    if fit.show:
        print_line(what)


def _quiet(fit: Prepared, kind: str, names: Sequence[str]) -> RunContext:
    """Return the context of a training for comparison: it has checkpoints, but no logs."""
    deadline = fit.deadline.part(COMPARING)
    return RunContext(fit.config.seed, fit.cache, fit.run.manager(kind, names), bar=fit.show, deadline=deadline)


def fresh_model(
    fit: Prepared, columns: Sequence[str], tasks: Mapping[str, TargetTask] | None = None
) -> tuple[dict[str, Modality], Family]:
    """Build a model with pretrained weights on some columns, for all tasks or some; return its modalities and it."""
    set_seed(fit.config.seed)
    fresh = fresh_modalities(fit, columns)
    # An option that names a missing column, as film's `by` may, returns to its default.
    hidden = [name for name in fit.modalities if name not in fresh]
    fusion = neural(fit.config.fusion)
    chosen = {key: value for key, value in fusion.options.items() if value not in hidden}
    return fresh, build_model(fresh, fit.tasks if tasks is None else tasks, NamedConfig(name=fusion.name, **chosen))


def fresh_modalities(fit: Prepared, columns: Sequence[str]) -> dict[str, Modality]:
    """Return some columns' fitted modalities again, with backbones as pretrained."""
    backbones = fit.backbones()
    fresh = {}
    for name in columns:
        kind, options = fit.schema.columns[name].kind, fit.schema.columns[name].options
        backbone = backbones.get(kind, options.get("backbone")) if MODALITIES.get(kind).needs_backbone else None
        fresh[name] = MODALITIES.get(kind).from_state(name, fit.modalities[name].state(), backbone)
    return fresh


def bundle(fit: Prepared, model: Family, stack: Stack | None = None) -> Bundle:
    """Return the tuned model with all that it needs to read a table."""
    fingerprint = fit.fingerprints["train"]
    modalities = {name: part for name, part in fit.modalities.items() if name not in fit.config.negative}
    tasks, config, schema = dict(fit.tasks), fit.config, fit.schema
    if fit.tables.documents is not None:
        config, schema = fit.tables.documents.saved(config, schema)
    documents = fit.tables.documents
    interactions = documents.interactions if isinstance(documents, Recommendations) else None
    state: dict[str, Any] = {"fingerprint": fingerprint, "stack": stack, "interactions": interactions}
    return Bundle(model, modalities, tasks, schema, config, **state)
