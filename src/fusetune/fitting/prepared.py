"""What a fit starts from: settings, tables, rows that are read, processors that are fitted on train rows."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed

from fusetune.config.backbone import BackboneConfig
from fusetune.config.config import Config
from fusetune.data.column import Progress
from fusetune.data.detect.columns import evenly_spaced
from fusetune.data.distinct import Cells
from fusetune.data.examples import Augmentation, Examples
from fusetune.data.quarantine import write_rejected
from fusetune.data.schema import Schema
from fusetune.data.storage.feature_cache import FeatureCache
from fusetune.data.table import Table
from fusetune.errors import ConfigError, TableError, UserError
from fusetune.evaluation.decisions import FusionChoice
from fusetune.evaluation.results import Phase
from fusetune.fitting.announce import announcement
from fusetune.fitting.codes import read_codes
from fusetune.fitting.own_metrics import choose_metrics
from fusetune.fitting.run_folder import RunFolder
from fusetune.fitting.tables import SPLITS, Tables, check_rows
from fusetune.modalities.base import Modality
from fusetune.models.build import Backbones, build_modalities, build_task
from fusetune.objectives.total import aligned_columns, learning_without_target
from fusetune.tasks.abilities import Probed
from fusetune.tasks.base import TargetTask, Task, target_tasks
from fusetune.tasks.infer import infer_task
from fusetune.tasks.main_metric import Metric
from fusetune.tasks.retrieval import alignment_tasks, pair_tasks
from fusetune.training.deadline import Deadline
from fusetune.training.hardware.devices import processes
from fusetune.training.probe import Probe, SplitRows
from fusetune.training.progress import print_line, track
from fusetune.types import Tokens

TASK_SAMPLE = 200_000
"""Cells of a target that its task is inferred from."""


@dataclass(frozen=True)
class RunSettings:
    """Where a fit runs and what it was asked for.

    Attributes:
        config: the settings.
        sources: the tables under "train", "val" and "test": one of each; several as a list, or none as None.
        run: where the model, checkpoints and logs are written.
        progress: whether to show progress bars.
        deadline: the time that the whole fit may take.
        functions: the user's own metrics, by the name that `trainer.metric` has for them.
    """

    config: Config
    sources: Mapping[str, Any]
    run: RunFolder
    progress: bool
    deadline: Deadline = field(default_factory=Deadline)
    functions: Mapping[str, Metric] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """What a fit starts from. Steps that find out more return a new one (`dataclasses.replace`).

    Attributes:
        config: the settings; `fusion` is the one chosen, once it is.
        run: where the model, checkpoints and logs are written.
        tables: the tables as they were read.
        tasks: fitted, by name; all of one family.
        modalities: fitted, by column.
        examples: prepared rows, by split.
        cache: of frozen encoders' outputs, or None.
        phases: how long each step took.
        show: whether this process shows progress bars.
        features: by split and column, the outputs of frozen encoders, (cells, tokens, dim).
        fingerprints: by split, SHA-256 over the cells that are used.
        rows: by task and split, the labelled rows.
        probes: by task, the linear model on the features.
        rng_state: of torch, from which every model's weights are drawn.
        choice: how the fusion was chosen, where it was.
        deadline: the time that the whole fit may take.
        left_out: what the report lacks because that time was up; steps add to it.
    """

    config: Config
    run: RunFolder
    tables: Tables
    tasks: Mapping[str, Task]
    modalities: Mapping[str, Modality]
    examples: Mapping[str, Examples]
    cache: FeatureCache | None
    phases: list[Phase]
    show: bool
    features: Mapping[str, Mapping[str, Tokens]] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, Mapping[str, SplitRows]] = field(default_factory=dict)
    probes: Mapping[str, Probe] = field(default_factory=dict)
    rng_state: torch.Tensor = field(default_factory=torch.get_rng_state)
    choice: FusionChoice | None = None
    deadline: Deadline = field(default_factory=Deadline)
    left_out: list[str] = field(default_factory=list)

    @property
    def schema(self) -> Schema:
        """The columns' kinds and roles."""
        return self.tables.schema

    @property
    def targets(self) -> dict[str, TargetTask]:
        """The tasks that predict a target column."""
        return target_tasks(self.tasks)

    @property
    def folder(self) -> Path:
        """Where the model is written."""
        return self.run.folder

    @property
    def progress(self) -> Progress | None:
        """Wraps iterators in progress bars, where they are shown."""
        return track if self.show else None

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Time a step, for the report; tell its name where progress is shown."""
        return timed(self.phases, name, show=self.show)

    def backbones(self) -> Backbones:
        """Return a new loader of pretrained backbones."""
        return backbones_of(self.config)


@contextmanager
def timed(phases: list[Phase], name: str, *, show: bool) -> Iterator[None]:
    """Time what is done inside, for the report; tell its name where progress is shown."""
    start = time.perf_counter()
    if show:
        print_line(name)
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
    phases.append(Phase(name, time.perf_counter() - start, peak))


def prepare(asked: RunSettings) -> Prepared:
    """Read the tables and their cells, and fit processors and tasks on the train rows.

    Raises:
        UserError: something in the tables or settings has to be put right.
    """
    config, show = asked.config, asked.progress and processes().is_main_process
    phases: list[Phase] = []
    with timed(phases, "read tables", show=show):
        tables = Tables(config, asked.sources)
        targets = _make_tasks(config, tables.schema, tables.splits["train"])
        tables.schema, codes = read_codes(tables.splits["train"], tables.schema, targets, config)
    with timed(phases, "read cells", show=show):
        set_seed(config.seed)
        modalities = build_modalities(_columns(config, tables.schema), backbones_of(config))
        tasks = targets or _match_tasks(config, modalities)
        examples = {}
        for split, table in tables.splits.items():
            examples[split] = Examples(
                table, modalities, targets, weight=tables.schema.weight, group=tables.schema.group
            )
            _read(config, split, examples[split], track if show else None)
        _check_rejected(tables, examples, asked.run.folder)
        try:
            examples["train"].fit()
            if config.trainer.probe == "auto" and any(isinstance(task, Probed) for task in targets.values()):
                examples["train"].with_target().learn_ngrams()
        except UserError as error:
            raise error.in_file(tables.splits["train"].source) from None
        for rows in examples.values():
            rows.check_targets()
        _check_rejected(tables, examples, asked.run.folder)
        check_rows(examples, list(targets))
        truths = {name: _some_truth(task, examples["train"], name) for name, task in tasks.items()}
        choose_metrics(config.trainer.metric, tasks, truths, asked.functions)
        examples["test"].table.require(config.report.slices)
        if num := int(np.count_nonzero(examples["train"].unlabelled())):
            names = ", ".join(learning_without_target(config.objectives))
            tables.notes.append(f"{num:,} train rows without a target train {names}, and nothing else.")
        augmentation = _augmentation(config, modalities, examples["train"], track if show else None)
        if show:
            for line in announcement(tables.schema, tasks, modalities, examples, codes):
                print_line(line)
        examples["train"] = examples["train"].given(
            augmentation=augmentation, mix=config.data.mix, ratio=config.data.unlabelled
        )
    cache = FeatureCache.of(config.data.cache, config.data.cache_gib)
    return Prepared(
        config, asked.run, tables, tasks, modalities, examples, cache, phases, show, deadline=asked.deadline
    )


def backbones_of(config: Config) -> Backbones:
    """Return a new loader of the pretrained backbones that the settings name."""
    settings: dict[str, BackboneConfig] = {"text": config.text, "image": config.image, "audio": config.audio}
    return Backbones(settings)


def _make_tasks(config: Config, schema: Schema, train: Table) -> dict[str, TargetTask]:
    tasks = {}
    for target in schema.names("target"):
        settings = config.tasks.get(target)
        name, options = (settings.name, settings.options) if settings else (None, {})
        try:
            tasks[target] = build_task(target, name or infer_task(_sample(train, target), target)[0], options)
        except TableError as error:
            raise error.in_file(train.source) from None
    return tasks


def _match_tasks(config: Config, modalities: Mapping[str, Modality]) -> Mapping[str, Task]:
    """Return the tasks of a fit without a target: retrieval between the sides of pairs, or between all columns."""
    if config.query:
        return pair_tasks(config.query, config.document)
    return alignment_tasks({name: modality.part_of for name, modality in modalities.items()})


def _columns(config: Config, schema: Schema) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Per input column its kind and options."""
    names = schema.names("input")
    if not names:
        left_out = [f"{name} ({spec.reason})" for name, spec in schema.columns.items() if spec.role in ("ignore", "id")]
        raise ConfigError(
            "there is no input column",
            expected="at least one column of text, images, audio, numbers, categories or dates besides the target",
            came=f"only columns that are left out: {'; '.join(left_out)}" if left_out else "no other column",
            do="insist on one with columns.NAME.role=input",
        )
    if not schema.names("target"):
        names = [*config.query, *config.document] or aligned_columns(config.objectives, names)
    return {name: (schema.columns[name].kind, schema.columns[name].options) for name in names}


def _read(config: Config, split: str, examples: Examples, progress: Progress | None) -> None:
    """Decode a split's cells: rows to learn from are rejected where a cell is bad, rows to be measured on are predicted
    as users' rows are."""
    train = split == "train"
    examples.prepare(
        on_bad_cell=config.data.on_bad_cell if train else "mask",
        memory=config.data.memory if train else config.data.memory / len(SPLITS),
        progress=progress,
    )


def _augmentation(
    config: Config, modalities: Mapping[str, Modality], train: Examples, progress: Progress | None
) -> Augmentation:
    """How the train rows' cells are changed in training."""
    kinds = {modality.kind for modality in modalities.values()}
    if lost := [kind for kind in config.augment if kind not in kinds]:
        raise ConfigError(
            f"augment.{lost[0]} finds no column of this kind", expected=", ".join(sorted(kinds)), do="leave it out"
        )
    augmenters = {}
    for name, modality in modalities.items():
        own = config.columns[name].augment if name in config.columns else None
        options = config.augment.get(modality.kind, {}) if own is None else own
        if any(value not in (None, False) for value in options.values()):
            augmenters[name], column = modality.augmenter(**options), train.columns[name]
            codes = column.codes[train.used]
            augmenters[name].prepare(column.cells, codes, column.example, progress=progress)
    return Augmentation(augmenters, config.seed, config.data.views)


def _check_rejected(tables: Tables, examples: Mapping[str, Examples], folder: Path) -> None:
    if processes().is_main_process:  # before the check, so that all rows are there to look at if it stops the run
        write_rejected(tables.all_rejected(examples), folder / "rejected.jsonl")
    tables.check_rejected(examples)


def _some_truth(task: Task, train: Examples, name: str) -> np.ndarray:
    """Return the truth of the first train rows that have one; row ids for a task without a target."""
    if not isinstance(task, TargetTask):
        return np.asarray(train.rows[train.used[:1000]])
    return task.truth(train.targets[name].take(train.labelled(name)[:1000]))


def _sample(table: Table, target: str) -> Cells:
    """The target's cells, or `TASK_SAMPLE` evenly spaced ones that are not missing, to infer its task from."""
    places = np.flatnonzero(~table.missing(target))
    return table.lazy(target, places[evenly_spaced(len(places), TASK_SAMPLE)])
