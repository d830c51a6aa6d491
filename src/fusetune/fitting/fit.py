"""The steps of one fit, from table to tuned model."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed

from fusetune.backbones.compiled import check_compiler
from fusetune.config.config import Config
from fusetune.config.fusion import AutoConfig, StackConfig, neural, with_neural
from fusetune.config.sections import BackboneConfig, NamedConfig
from fusetune.data.column import Progress
from fusetune.data.detect.columns import evenly
from fusetune.data.distinct import Cells
from fusetune.data.examples import Examples
from fusetune.data.quarantine import write_rejected
from fusetune.data.storage.feature_cache import FeatureCache
from fusetune.data.table import Table
from fusetune.deploy.bundle import Bundle
from fusetune.errors import ConfigError, TableError, UserError
from fusetune.evaluation.decisions import FusionChoice, StackUsed
from fusetune.evaluation.measure import systems
from fusetune.evaluation.report import describe
from fusetune.evaluation.results import Phase, RunResults, plain
from fusetune.fitting.align import Aligning, aligned_columns
from fusetune.fitting.announce import announcement
from fusetune.fitting.choose import choose_fusion, start_fusion
from fusetune.fitting.findings import Findings
from fusetune.fitting.run_folder import RunFolder
from fusetune.fitting.saved import Trained, load_trained, reporting, save_trained
from fusetune.fitting.stack import Growing, as_they_are, check_stack
from fusetune.fitting.tables import SPLITS, Tables, check_rows
from fusetune.inference.features import fill_features
from fusetune.modalities.base import Modality
from fusetune.models.build import Backbones, build_modalities, build_model, build_task
from fusetune.models.family import Family
from fusetune.models.perturb import attacked_columns
from fusetune.registry import MODALITIES
from fusetune.tasks.abilities import Probed
from fusetune.tasks.base import Task
from fusetune.tasks.infer import infer_task
from fusetune.training.changes import changed_parameters, digests
from fusetune.training.finetune import finetune
from fusetune.training.hardware.devices import processes
from fusetune.training.history import TrainingHistory
from fusetune.training.probe import Probe, SplitRows
from fusetune.training.progress import print_line, track
from fusetune.training.recipe import BackboneRule
from fusetune.training.updates.surgery import check_balance
from fusetune.trees.stack import Stack
from fusetune.types import Tokens

TASK_SAMPLE = 200_000
"""Cells of a target that its task is told by."""


class Fit:
    """The steps of a run and what they pass on."""

    def __init__(self, config: Config, sources: Mapping[str, Any], place: RunFolder, *, progress: bool) -> None:
        """
        Args:
            config: the settings.
            sources: the tables under "train", "val" and "test": one of each; several as a list, or none as None.
            place: where the model and logs will be.
            progress: whether to show progress.
        """
        self.config, self.sources, self.place, self.folder = config, sources, place, place.folder
        self.is_main = processes().is_main_process
        self.show = progress and self.is_main
        self.phases: list[Phase] = []
        self.cache = FeatureCache.of(config.data.cache, config.data.cache_gib)
        self.fingerprints: dict[str, str] = {}
        self.choice: FusionChoice | None = None
        self.stack: Stack | None = None
        self.stacked: dict[str, StackUsed] = {}

    def run(self) -> tuple[Bundle, RunResults]:
        """Everything, from the tables to the results.

        Raises:
            UserError, RunError: see `api.fit`.
        """
        bundle, results = self._run()
        for task in results.tasks:
            after = task.first("after")
            assert after is not None
            bundle.metrics[task.target] = {name: plain(one.value) for name, one in after.metrics.items()}
        return bundle, results

    def _run(self) -> tuple[Bundle, RunResults]:
        check_stack(self)
        if self.config.trainer.compile:
            check_compiler()
        with self.phase("read tables"):
            self.tables = Tables(self.config, self.sources)
            self.schema, tables = self.tables.schema, self.tables.splits
            self.tasks = self._make_tasks(tables["train"])
        with self.phase("read cells"):
            set_seed(self.config.seed)
            self.modalities = build_modalities(self._columns(), self._backbones())
            self.examples = {split: self._examples(split, table) for split, table in tables.items()}
            self._check_rejected()
            try:
                self.examples["train"].fit()
            except UserError as error:
                raise error.in_file(tables["train"].source) from None
            for examples in self.examples.values():
                examples.check_targets()
            self._check_rejected()
            check_rows(self.examples, list(self.tasks))
            self.examples["test"].table.require(self.config.report.slices)
            self._augment()
        if self.show:
            for line in announcement(self.schema, self.tasks, self.modalities, self.examples):
                print_line(line)
        if not self.tasks:
            return Aligning(self).run()
        with self.phase("encode with frozen backbones"):
            self.chance = torch.get_rng_state()
            model = self.build(start_fusion(self))
            check_balance(self.config.trainer.balance)
            for asked, where in (
                (self.config.trainer.adversarial, "trainer.adversarial"),
                (self.config.report.attack, "report.attack"),
            ):
                attacked_columns(model, asked.columns if asked else [], where=where)
            self.features = self.encode(model)
        with self.phase("fit linear probes"):
            rows = self._rows()
            self.probes = self._probes(rows)
        if isinstance(neural(self.config.fusion), AutoConfig):
            with self.phase("choose the fusion"):
                self.choice, fusion = choose_fusion(self)
            self.config = self.config.model_copy(update={"fusion": with_neural(self.config.fusion, fusion)})
            model = self.build(fusion)
        trained = load_trained(self.place) or self._train(model, rows)
        self.stack, self.stacked, self.phases = trained.bundle.stack, trained.stacked, list(trained.phases)
        model = trained.bundle.model
        with reporting(self.folder), self.phase("compare and measure"):
            findings = Findings(self, model, trained.history, trained.val_scores)
            results = findings.results(rows, self._alone_models(rows), self._single_models())
        return self.bundle(model), results

    def _train(self, model: Family, rows: Mapping[str, Mapping[str, SplitRows]]) -> Trained:
        """Tune the model, grow its trees, choose its decisions on validation rows, and save it."""
        before = as_they_are(self, model)
        with self.phase("tune"):
            history = self.finetune(model, self.modalities, probes=self.probes)
        if isinstance(self.config.fusion, StackConfig):
            with self.phase("grow trees"):
                self.stack, self.stacked = Growing(self, model, history, rows, before).run()
        with self.phase("save"):
            scores = Findings(self, model, history).decide(rows)
            trained = Trained(self.bundle(model), history, self.stacked, self.phases, scores)
            save_trained(self.place, trained)
        return trained

    def build(self, fusion: NamedConfig) -> Family:
        """The model with this fusion, its weights drawn as if no other had been built before."""
        torch.set_rng_state(self.chance)
        return build_model(self.modalities, self.tasks, fusion)

    def encode(self, model: Family) -> dict[str, dict[str, Tokens]]:
        """What the frozen encoders make of every cell, by split and column."""
        self.fingerprints = {split: describe.fingerprint(examples) for split, examples in self.examples.items()}
        self.place.check(self.fingerprints, describe.weights_used(model))
        return {
            split: fill_features(
                model,
                examples,
                cache=self.cache,
                groups=self.place.manager(f"encode-{split}").places,
                progress=self.progress,
            )
            for split, examples in self.examples.items()
        }

    def bundle(self, model: Family) -> Bundle:
        """The tuned model with all that it needs to read a table."""
        return Bundle(
            model,
            self.modalities,
            self.tasks,
            self.schema,
            self.config,
            fingerprint=self.fingerprints["train"],
            stack=self.stack,
        )

    @property
    def progress(self) -> Progress | None:
        """Wraps iterators in progress bars, where they are shown."""
        return track if self.show else None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times what is done inside, for the report."""
        start = time.perf_counter()
        if self.show:
            print_line(name)
        yield
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
        self.phases.append(Phase(name, time.perf_counter() - start, peak))

    def _make_tasks(self, train: Table) -> dict[str, Task]:
        tasks = {}
        for target in self.schema.names("target"):
            settings = self.config.tasks.get(target)
            name, options = (settings.name, settings.options) if settings else (None, {})
            try:
                tasks[target] = build_task(target, name or infer_task(_sample(train, target), target)[0], options)
            except TableError as error:
                raise error.in_file(train.source) from None
        return tasks

    def _backbones(self) -> Backbones:
        settings: dict[str, BackboneConfig] = {
            "text": self.config.text,
            "image": self.config.image,
            "audio": self.config.audio,
        }
        return Backbones(settings)

    def _columns(self) -> dict[str, tuple[str, Mapping[str, Any]]]:
        names = self.schema.names("input")
        if not self.tasks:
            names = aligned_columns(self.config, names)
        return {name: (self.schema.columns[name].kind, self.schema.columns[name].options) for name in names}

    def _examples(self, split: str, table: Table) -> Examples:
        examples = Examples(table, self.modalities, self.tasks, weight=self.schema.weight, group=self.schema.group)
        # Rows to learn from are refused where a cell is bad; rows to be measured on are predicted as users' rows are.
        on_bad_cell = self.config.data.on_bad_cell if split == "train" else "mask"
        examples.prepare(
            on_bad_cell=on_bad_cell,
            memory=self.config.data.memory / len(SPLITS) if split != "train" else self.config.data.memory,
            progress=self.progress,
        )
        return examples

    def _augment(self) -> None:
        """Say how train rows are drawn, and how their cells are changed in training."""
        train, kinds = self.examples["train"], {modality.kind for modality in self.modalities.values()}
        if lost := [kind for kind in self.config.augment if kind not in kinds]:
            raise ConfigError(
                f"augment.{lost[0]} finds no column of this kind", expected=", ".join(sorted(kinds)), do="leave it out"
            )
        data = self.config.data
        train.seed, train.mix, train.num_views = self.config.seed, data.mix, data.views
        for name, modality in self.modalities.items():
            own = self.config.columns[name].augment if name in self.config.columns else None
            options = self.config.augment.get(modality.kind, {}) if own is None else own
            if any(value not in (None, False) for value in options.values()):
                augmenter, column = modality.augmenter(**options), train.columns[name]
                codes = column.codes[train.used]
                augmenter.prepare(column.cells, codes, column.example, progress=self.progress)
                train.augment[name] = augmenter

    def _rows(self) -> dict[str, dict[str, SplitRows]]:
        """Per task and split, the labelled rows with their frozen features."""
        return {
            name: {split: SplitRows.of(name, self.examples[split], self.features[split]) for split in SPLITS}
            for name in self.tasks
        }

    def _check_rejected(self) -> None:
        if self.is_main:  # before the check, so that all rows are there to look at if it stops the run
            write_rejected(self.tables.all_rejected(self.examples), self.folder / "rejected.jsonl")
        self.tables.check_rejected(self.examples)

    # Model

    def rules(self, modalities: Mapping[str, Modality]) -> dict[str, BackboneRule]:
        """How each encoder is tuned, by its key."""
        by_kind = {"text": self.config.text, "image": self.config.image, "audio": self.config.audio}
        return {
            modality.encoder_key: BackboneRule(by_kind[modality.kind].freeze, by_kind[modality.kind].lr)
            for modality in modalities.values()
            if modality.kind in by_kind
        }

    def finetune(
        self,
        model: Family,
        modalities: Mapping[str, Modality],
        *,
        columns: list[str] | None = None,
        tasks: Mapping[str, Task] | None = None,
        **start: Any,
    ) -> TrainingHistory:
        """Tune a model on the train rows.

        Args:
            model: as built.
            modalities: its columns.
            columns: tune on these columns alone, by the task losses alone and without a log.
            tasks: tune for these tasks alone, without a log.
            start: what the model starts from and is evaluated by, as `fusetune.training.finetune.finetune` takes it.
        """
        train, val, trainer = self.examples["train"], self.examples["val"], self.config.trainer
        if columns is not None:
            trainer = trainer.model_copy(update={"adversarial": None})
            train, val = train.restrict(columns), val.restrict(columns)
        tasks = self.tasks if tasks is None else tasks
        whole = columns is None and len(tasks) == len(self.tasks)
        objectives = {
            name: options
            for name, options in self.config.objectives.items()
            if columns is None and options.get("target", next(iter(tasks), None)) in {*tasks, None}
        }
        kind, names = ("alone", list(modalities)) if columns is not None else ("single", list(tasks))
        start_digests = digests(model) if whole else {}
        history = finetune(
            model,
            tasks,
            train,
            val,
            trainer,
            rules=self.rules(modalities),
            objectives=objectives,
            features=(
                {name: value for name, value in self.features["train"].items() if name in modalities},
                {name: value for name, value in self.features["val"].items() if name in modalities},
            ),
            seed=self.config.seed,
            cache=self.cache,
            manager=self.place.manager("tune") if whole else self.place.manager(kind, names),
            log_dir=self.folder / "logs" if self.is_main and whole else None,
            bar=self.show,
            **start,
        )
        if whole:
            history.changed = changed_parameters(start_digests, model, model.encoders)
            history.warnings += self.place.said
        return history

    def _probes(self, rows: Mapping[str, Mapping[str, SplitRows]], part: list[str] | None = None) -> dict[str, Probe]:
        """Per task, the best linear model on the columns (those of a part) that have features before any training."""
        probes = {}
        for name, splits in rows.items():
            task = self.tasks[name]
            columns = systems.probe_columns(splits["train"], part if part is not None else list(self.modalities))
            if columns and isinstance(task, Probed):
                probes[name] = Probe.fit(task, splits["train"], splits["val"], columns)
        return probes

    def fresh_model(
        self, columns: Sequence[str], tasks: Mapping[str, Task] | None = None
    ) -> tuple[dict[str, Modality], Family]:
        """A model on some of the columns, for all tasks or some, as it was before tuning; and its modalities."""
        set_seed(self.config.seed)
        backbones = self._backbones()
        fresh = {}
        for name in columns:
            kind, options = self.schema.columns[name].kind, self.schema.columns[name].options
            backbone = backbones.get(kind, options.get("backbone")) if MODALITIES.get(kind).needs_backbone else None
            fresh[name] = MODALITIES.get(kind).from_state(name, self.modalities[name].state(), backbone)
        # An option that names a column left out, as film's `by` may, goes back to its default.
        hidden = [name for name in self.modalities if name not in fresh]
        fusion = neural(self.config.fusion)
        chosen = {key: value for key, value in fusion.options.items() if value not in hidden}
        return fresh, build_model(
            fresh, self.tasks if tasks is None else tasks, NamedConfig(name=fusion.name, **chosen)
        )

    def _alone_models(self, rows: Mapping[str, Mapping[str, SplitRows]]) -> dict[str, Family]:
        """A model trained on each modality alone, where the report needs one."""
        splits = next(iter(rows.values()))["train"]
        grouped = systems.parts(splits.examples)
        if self.config.report.alone == "none" or len(grouped) < 2:
            return {}
        models = {}
        for part in systems.trained_alone(self.config.report.alone, splits, self.tasks.values()):
            fresh, models[part] = self.fresh_model(grouped[part])
            probes = self._probes(rows, grouped[part])
            self.finetune(models[part], fresh, probes=probes, columns=grouped[part])
        return models

    def _single_models(self) -> dict[str, Family]:
        """A model trained for each task alone, where the report needs one."""
        models: dict[str, Family] = {}
        for name, task in self.tasks.items() if self.config.report.single and len(self.tasks) > 1 else ():
            fresh, models[name] = self.fresh_model(list(self.modalities), {name: task})
            probes = {name: self.probes[name]} if name in self.probes else {}
            self.finetune(models[name], fresh, probes=probes, tasks={name: task})
        return models


def _sample(table: Table, target: str) -> Cells:
    """The target's cells, or `TASK_SAMPLE` evenly spaced ones that are not missing, to tell its task by."""
    places = np.flatnonzero(~table.missing(target))
    return table.lazy(target, places[evenly(len(places), TASK_SAMPLE)])
