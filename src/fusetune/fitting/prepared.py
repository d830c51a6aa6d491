"""What a fit starts from: settings, tables, decoded rows, and processors that are fitted on train rows."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed

from fusetune.backbones.changed_weights import ChangedWeights
from fusetune.config.backbone import BackboneConfig
from fusetune.config.config import Config
from fusetune.data.augmentation import Augmentation
from fusetune.data.column import Progress
from fusetune.data.examples import Examples
from fusetune.data.negatives import common_keys
from fusetune.data.quarantine import write_rejected
from fusetune.data.schema import Schema
from fusetune.data.storage.feature_cache import FeatureCache
from fusetune.errors import ConfigError, UserError
from fusetune.evaluation.decisions import FusionChoice, PretrainingUsed, ReadingChoice
from fusetune.evaluation.results import Phase
from fusetune.fitting.announce import announcement
from fusetune.fitting.codes import read_codes
from fusetune.fitting.negatives import num_mined
from fusetune.fitting.own_metrics import choose_metrics
from fusetune.fitting.recommendations import Recommendations
from fusetune.fitting.run_folder import RunFolder
from fusetune.fitting.tables import SPLITS, Tables, check_rows, users_of_unlabelled
from fusetune.fitting.tasks import make_tasks
from fusetune.modalities.base import Modality
from fusetune.modalities.identifier import IdentifierModality
from fusetune.models.build import Backbones, build_modalities, give_tokenizers
from fusetune.objectives.total import aligned_columns
from fusetune.tasks.abilities import Probed
from fusetune.tasks.base import TargetTask, Task, target_tasks
from fusetune.tasks.main_metric import Metric
from fusetune.tasks.pairs import PairTask
from fusetune.tasks.recommendation import recommendation_tasks
from fusetune.tasks.retrieval import alignment_tasks, pair_tasks
from fusetune.training.callbacks import Callback
from fusetune.training.deadline import Deadline
from fusetune.training.hardware.devices import processes
from fusetune.training.hardware.kernels import limit_kernel_cache
from fusetune.training.probes.probe import SplitRows, StartingPoint
from fusetune.training.progress import print_line, track
from fusetune.types import Tokens

ON_VALIDATION = (
    "There are no test rows. The report measures the validation rows, which chose the best step, so its figures are "
    "optimistic; measure on rows of your own with evaluate."
)
"""The note of a fit without test rows."""


@dataclass(frozen=True)
class RunSettings:
    """The arguments of a fit.

    Attributes:
        config: the settings.
        sources: the tables under "train", "val" and "test"; a list for several, None if there is none.
        run: the folder for the model, checkpoints and logs.
        progress: whether to show progress bars.
        deadline: the time that the whole fit may take.
        functions: the user's own metrics, by the name that `trainer.metric` has for them.
        callbacks: the user's own, which watch the tuning.
    """

    config: Config
    sources: Mapping[str, Any]
    run: RunFolder
    progress: bool
    deadline: Deadline = field(default_factory=Deadline)
    functions: Mapping[str, Metric] = field(default_factory=dict)
    callbacks: Sequence[Callback] = ()


@dataclass(frozen=True)
class Prepared:
    """What a fit starts from. Steps that add to it return a new object (`dataclasses.replace`).

    Attributes:
        config: the settings; with `fusion: auto`, the chosen fusion replaces `auto`.
        run: the folder for the model, checkpoints and logs.
        tables: the tables as they were read.
        tasks: fitted, by name; all of one family.
        modalities: fitted, by column.
        examples: prepared rows, by split.
        cache: the cache of frozen encoders' outputs, or None.
        phases: duration and peak memory of each step so far.
        show: whether this process shows progress bars.
        features: by split and column, the outputs of frozen encoders, (cells, tokens, dim).
        fingerprints: by split, the SHA-256 of the cells that are used.
        rows: by task and split, the labelled rows.
        probes: by task, the linear model on the features.
        rng_state: torch's RNG state from which the weights of every model are drawn.
        choice: how the fusion was chosen, or None.
        reading: how it was chosen whether two texts are read together, or None.
        plain: with `pretrain`, the same rows with the features and probes of the encoders as loaded; or None.
        pretraining: the record of the self-supervised tuning, or None.
        changed: by a backbone's key, the weights that it changed.
        apart: with `text.join`, the same rows with the joined texts read one by one, and their probes; or None.
        deadline: the time that the whole fit may take.
        left_out: what the report lacks because the time was up; steps append to it.
        callbacks: the user's own, which watch the tuning.
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
    probes: Mapping[str, StartingPoint] = field(default_factory=dict)
    rng_state: torch.Tensor = field(default_factory=torch.get_rng_state)
    choice: FusionChoice | None = None
    reading: ReadingChoice | None = None
    plain: Prepared | None = None
    pretraining: PretrainingUsed | None = None
    changed: Mapping[str, ChangedWeights] = field(default_factory=dict)
    apart: Prepared | None = None
    deadline: Deadline = field(default_factory=Deadline)
    left_out: list[str] = field(default_factory=list)
    callbacks: Sequence[Callback] = ()

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
        """The folder that the model is written to."""
        return self.run.folder

    @property
    def progress(self) -> Progress | None:
        """A function that wraps iterators in progress bars, or None if none are shown."""
        return track if self.show else None

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Return a context that times a step for the report, and prints its name if progress is shown."""
        return timed(self.phases, name, show=self.show)

    def backbones(self) -> Backbones:
        """Return a new loader of pretrained backbones, with the weights that self-supervised tuning gave them."""
        return backbones_of(self.config, self.changed)


@contextmanager
def timed(phases: list[Phase], name: str, *, show: bool) -> Iterator[None]:
    """Time the context's body for the report, and print its name if progress is shown."""
    start = time.perf_counter()
    if show:
        print_line(name)
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
    phases.append(Phase(name, time.perf_counter() - start, peak))


def prepare(run_settings: RunSettings) -> Prepared:
    """Read the tables and their cells, and fit processors and tasks on the train rows.

    Raises:
        UserError: something in the tables or settings is invalid.
    """
    config, show = run_settings.config, run_settings.progress and processes().is_main_process
    phases: list[Phase] = []
    with timed(phases, "read tables", show=show):
        tables = Tables(config, run_settings.sources)
        config = tables.config
        targets = make_tasks(config, tables.schema, tables.splits["train"])
        tables.read_together(targets)
        config = tables.config
        tables.schema, codes = read_codes(tables.splits["train"], tables.schema, targets, config)
    with timed(phases, "read cells", show=show):
        set_seed(config.seed)
        modalities = _modalities(config, tables.schema)
        if isinstance(tables.documents, Recommendations):
            tables.documents.know(modalities)
        tasks = targets or _match_tasks(config, modalities)
        give_tokenizers(tasks, modalities)
        examples = {
            split: _read(tables, split, modalities, targets, track if show else None) for split in tables.splits
        }
        if tables.documents is not None:
            examples = {split: rows.given(keys=tables.documents.keys(split)) for split, rows in examples.items()}
        _check_rejected(tables, examples, run_settings.run.folder)
        try:
            examples["train"].fit()
            if config.trainer.probe == "auto" and any(isinstance(task, Probed) for task in targets.values()):
                examples["train"].with_target().learn_ngrams()
        except UserError as error:
            raise error.in_file(tables.splits["train"].source) from None
        for rows in examples.values():
            rows.check_targets()
        _check_rejected(tables, examples, run_settings.run.folder)
        _check_splits(tables, examples, targets)
        truths = {name: _some_truth(task, examples["train"], name) for name, task in tasks.items()}
        choose_metrics(config.trainer.metric, tasks, truths, run_settings.functions)
        examples["test"].table.require(config.report.slices)
        if num := int(np.count_nonzero(examples["train"].unlabelled())):
            names = ", ".join(users_of_unlabelled(config))
            tables.notes.append(f"{num:,} train rows without a target train {names}, and nothing else.")
        augmentation = _augmentation(config, modalities, examples["train"], track if show else None)
        if show:
            for line in announcement(tables.schema, tasks, modalities, examples, codes):
                print_line(line)
            if tables.documents is not None:
                print_line(tables.documents.announcement)
        examples["train"] = _trained_on(config, examples["train"], augmentation)
    cache = FeatureCache.of(config.data.cache, config.data.cache_gib)
    return Prepared(
        config,
        run_settings.run,
        tables,
        tasks,
        modalities,
        examples,
        cache,
        phases,
        show,
        deadline=run_settings.deadline,
        callbacks=run_settings.callbacks,
    )


def _trained_on(config: Config, train: Examples, augmentation: Augmentation) -> Examples:
    """Return the train rows as updates draw them: augmented, mixed, with keys of the cells that are compared."""
    compared = [*config.document, *config.negative] if config.negative else []
    return train.given(
        keys=common_keys(train, compared) if compared else None,
        augmentation=augmentation,
        mix=config.data.mix,
        ratio=config.data.unlabelled,
    )


def _modalities(config: Config, schema: Schema) -> dict[str, Modality]:
    """Build the input columns' modalities, with few kernels in memory where that costs nothing."""
    inputs = input_columns(config, schema)
    limit_kernel_cache(kind for kind, _ in inputs.values())
    return build_modalities(inputs, backbones_of(config))


def backbones_of(config: Config, changed: Mapping[str, ChangedWeights] | None = None) -> Backbones:
    """Return a new loader of the pretrained backbones that the settings name; see `Backbones` for the arguments."""
    settings: dict[str, BackboneConfig] = {"text": config.text, "image": config.image, "audio": config.audio}
    return Backbones(settings, changed)


def _match_tasks(config: Config, modalities: Mapping[str, Modality]) -> Mapping[str, Task]:
    """Return the tasks of a fit without a target: retrieval between the sides of pairs, or between all columns."""
    if config.user is not None:
        return recommendation_tasks(config.query, config.document)
    if config.query:
        return pair_tasks(config.query, config.document, config.negative, mined=num_mined(config))
    return alignment_tasks({name: modality.part_of for name, modality in modalities.items()})


def input_columns(config: Config, schema: Schema) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Return each input column's kind and options."""
    names = schema.names("input")
    if not names:
        left_out = [f"{name} ({spec.reason})" for name, spec in schema.columns.items() if spec.role in ("ignore", "id")]
        raise ConfigError(
            "there is no input column",
            expected="at least one column of text, images, audio, numbers, categories or dates besides the target",
            came=f"only columns that are left out: {'; '.join(left_out)}" if left_out else "no other column",
            do="insist on one with columns.NAME.role=input",
        )
    if config.query:
        names = [*config.query, *config.document, *config.negative]
    elif not schema.names("target"):
        names = aligned_columns(config.objectives, names)
    return {name: (schema.columns[name].kind, schema.columns[name].options) for name in names}


def _read(
    tables: Tables,
    split: str,
    modalities: Mapping[str, Modality],
    targets: Mapping[str, TargetTask],
    progress: Progress | None,
) -> Examples:
    """Return a split's rows with their cells decoded.

    With the default settings a train row with an unreadable cell is rejected. Such a cell of a validation or test row
    counts as missing, as in prediction. A pair with a target that lacks a side is rejected.
    """
    config, schema, train = tables.config, tables.schema, split == "train"
    examples = Examples(tables.splits[split], modalities, targets, weight=schema.weight, group=schema.group)
    examples.prepare(
        on_bad_cell=config.data.on_bad_cell if train else "mask",
        memory=config.data.memory if train else config.data.memory / len(SPLITS),
        progress=progress,
    )
    for task in targets.values():
        if isinstance(task, PairTask):
            examples.require(task.sides)
    return examples


def _augmentation(
    config: Config, modalities: Mapping[str, Modality], train: Examples, progress: Progress | None
) -> Augmentation:
    """Build the augmentation of the train rows' cells.

    Raises:
        ConfigError: the settings augment a kind that no column has.
    """
    kinds = {modality.kind for modality in modalities.values()}
    if lost := [kind for kind in config.augment if kind not in kinds]:
        raise ConfigError(
            f"augment.{lost[0]} finds no column of this kind", expected=", ".join(sorted(kinds)), do="leave it out"
        )
    augmenters = {}
    for name, modality in modalities.items():
        own = config.columns[name].augment if name in config.columns else None
        options = config.augment.get(modality.kind, {}) if own is None else own
        if any(value not in (None, False) for value in options.values()) or isinstance(modality, IdentifierModality):
            augmenters[name], column = modality.augmenter(**options), train.columns[name]
            codes = column.codes[train.used]
            augmenters[name].prepare(column.cells, codes, column.example, progress=progress)
    return Augmentation(augmenters, config.seed, config.data.views)


def _check_rejected(tables: Tables, examples: Mapping[str, Examples], folder: Path) -> None:
    if processes().is_main_process:  # before the check, which may stop the run and refers to this file
        write_rejected(tables.all_rejected(examples), folder / "rejected.jsonl")
    tables.check_rejected(examples)


def _check_splits(tables: Tables, examples: dict[str, Examples], targets: Mapping[str, TargetTask]) -> None:
    """Stop the run if a split has no usable row; without test rows, targets are measured on the validation rows.

    Raises:
        TableError: a split has no usable row.
    """
    if not tables.has_test and targets and tables.documents is None and "val" in examples:
        examples["test"] = examples["val"]
        tables.notes.append(ON_VALIDATION)
    check_rows(examples, list(targets))


def _some_truth(task: Task, train: Examples, name: str) -> np.ndarray:
    """Return the truth of the first train rows that have one; row ids for a task without a target."""
    if not isinstance(task, TargetTask):
        return np.asarray(train.rows[train.used[:1000]])
    return task.truth(train.targets[name].take(train.labelled(name)[:1000]))
