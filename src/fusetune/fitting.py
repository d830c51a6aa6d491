"""One fit from table to report: what `api.fit` runs."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import set_seed

from fusetune.config import Config
from fusetune.data.examples import Examples
from fusetune.data.quarantine import Rejected, check_rate, group_rejected, write_rejected
from fusetune.data.schema import Schema
from fusetune.data.splits import split_rows
from fusetune.data.table import Table
from fusetune.deploy.bundle import Bundle, versions
from fusetune.errors import ConfigError, StorageError, TableError, UserError
from fusetune.evaluation import describe, systems
from fusetune.evaluation import results as found
from fusetune.evaluation.judge import Candidate, judge
from fusetune.evaluation.mistakes import show_cell
from fusetune.modalities.base import Modality
from fusetune.models.build import Backbones, build_modalities, build_model, build_task
from fusetune.models.understand import Understand
from fusetune.registry import MODALITIES
from fusetune.sections import BackboneConfig
from fusetune.tasks.base import Task
from fusetune.tasks.infer import infer_task
from fusetune.training.callbacks import track
from fusetune.training.features import encoded, fill_features
from fusetune.training.finetune import Course, finetune
from fusetune.training.probe import Probe, SplitRows
from fusetune.training.recipe import BackboneRule

SPLITS = ("train", "val", "test")


class Fit:
    """The steps of a run and what they pass on."""

    def __init__(self, config: Config, sources: Mapping[str, Any], folder: Path, *, progress: bool) -> None:
        """
        Args:
            config: the settings.
            sources: the tables under "train", "val" and "test"; the latter two may be None.
            folder: where the model and logs will be.
            progress: whether to show progress bars.
        """
        self.config, self.sources, self.folder = config, sources, folder
        self.is_main = PartialState().is_main_process
        self.show = progress and self.is_main
        self.phases: list[found.Phase] = []
        self.files: dict[str, tuple[str, int]] = {}
        self.unlabelled = dict.fromkeys(SPLITS, 0)
        self.rejected: dict[str, list[Rejected]] = {split: [] for split in SPLITS}

    def run(self) -> tuple[Bundle, found.RunResults]:
        """Everything, from the tables to the results.

        Raises:
            UserError, RunError: see `api.fit`.
        """
        self._claim_folder()
        with self._phase("read tables"):
            tables = self._tables()
            self.tasks = self._make_tasks(tables["train"])
        with self._phase("read cells"):
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
            self._check_rows()
        with self._phase("encode with frozen backbones"):
            model = build_model(self.modalities, self.tasks, self.config.fusion)
            self.features = {
                split: fill_features(model, examples, progress=track if self.show else None)
                for split, examples in self.examples.items()
            }
        with self._phase("fit linear probes"):
            rows = {
                name: {split: SplitRows.of(name, self.examples[split], self.features[split]) for split in SPLITS}
                for name in self.tasks
            }
            self.probes = self._probes(rows)
        with self._phase("tune"):
            course = self._finetune(model, self.modalities, self.probes, log_dir=self.folder / "logs")
        bundle = Bundle(
            model, self.modalities, self.tasks, self.schema, self.config, describe.fingerprint(self.examples["train"])
        )
        with self._phase("compare and measure"):
            results = self._results(model, course, rows)
        for task in results.tasks:
            after = task.first("after")
            assert after is not None
            bundle.metrics[task.target] = {name: found.plain(one.value) for name, one in after.metrics.items()}
        return bundle, results

    def _claim_folder(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"{self.folder} is a file", expected="a folder for the model", do="give another as --out")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"the folder {self.folder} cannot be made: {error}") from error

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
        self.phases.append(found.Phase(name, time.perf_counter() - start, peak))

    # Tables

    def _tables(self) -> dict[str, Table]:
        given = {split: Table.read(source) for split, source in self.sources.items() if source is not None}
        train, targets = given["train"], self.config.target
        self.schema = Schema.detect(train, targets=targets, overrides=self.config.schema_overrides())
        if not self.schema.names("target"):
            raise TableError(
                "there is no target column",
                do="name it: --target COLUMN",
                expected="a column to predict",
                file=train.source,
            )
        for split, table in given.items():
            self.files[split] = (table.source, len(table) + len(table.rejected))
            self.rejected[split] += table.rejected
            self.schema.validate(table, targets=split == "train")
            table.require(self.schema.targets)
        labelled = {split: self._labelled(split, table) for split, table in given.items()}
        return self._split(labelled)

    def _labelled(self, split: str, table: Table) -> Table:
        """The rows that have at least one target."""
        has = ~np.all([table.missing(target) for target in self.schema.names("target")], axis=0)
        self.unlabelled[split] = int((~has).sum())
        if not has.any():
            raise TableError(
                "no row has a target", file=table.source, expected=f"values in {self.schema.names('target')}"
            )
        return table.select(has)

    def _split(self, given: dict[str, Table]) -> dict[str, Table]:
        """Train, validation and test rows: those given, the others split off from train."""
        wanted = [split for split in SPLITS if split not in given]
        tables = dict(given)
        if wanted:
            train = given["train"]
            rows = split_rows(
                train, self.schema, wanted=wanted, fractions=self.config.data.split, seed=self.config.seed
            )
            for split, indices in rows.items():
                if len(indices):
                    tables[split] = train.select(indices)
        return {split: tables[split] for split in SPLITS if split in tables}

    def _make_tasks(self, train: Table) -> dict[str, Task]:
        tasks = {}
        for target in self.schema.names("target"):
            settings = self.config.tasks.get(target)
            name, options = (settings.name, settings.options) if settings else (None, {})
            try:
                tasks[target] = build_task(target, name or infer_task(train.cells(target), target)[0], options)
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
        return {
            name: (self.schema.columns[name].kind, self.schema.columns[name].options)
            for name in self.schema.names("input")
        }

    def _examples(self, split: str, table: Table) -> Examples:
        examples = Examples(table, self.modalities, self.tasks, weight=self.schema.weight)
        # Rows to learn from are refused where a cell is bad; rows to be measured on are predicted as users' rows are.
        on_bad_cell = self.config.data.on_bad_cell if split == "train" else "mask"
        examples.prepare(
            on_bad_cell=on_bad_cell,
            memory=self.config.data.memory / len(SPLITS) if split != "train" else self.config.data.memory,
            progress=track if self.show else None,
        )
        return examples

    def _check_rejected(self) -> None:
        if self.is_main:  # before the check, so that all rows are there to look at if it stops the run
            write_rejected(self._all_rejected(), self.folder / "rejected.jsonl")
        for split, (file, rows_in) in self.files.items():
            rejected = [*self.rejected[split], *self.examples[split].rejected]
            if split == "train":
                split_off = [other for other in self.examples if other not in self.files]
                rejected += [item for other in split_off for item in self.examples[other].rejected]
            check_rate(rejected, rows_in, limit=self.config.data.max_rejected, source=file)

    def _check_rows(self) -> None:
        for split, examples in self.examples.items():
            if not any(len(examples.labelled(task)) for task in self.tasks):
                raise TableError(
                    f"no {split} row is left to use",
                    came=f"{len(examples.rows)} rows, all rejected",
                    file=examples.table.source,
                    do="look at rejected rows, or give more rows",
                )
        if len(self.examples.get("test", ())) < 1:
            raise TableError("there are no test rows", do="give --test, or a data.split whose last share is above 0")

    def _all_rejected(self) -> list[Rejected]:
        return [
            replace(item, file=examples.table.source)
            for split, examples in self.examples.items()
            for item in [*self.rejected[split], *examples.rejected]
        ]

    # Model

    def _rules(self, modalities: Mapping[str, Modality]) -> dict[str, BackboneRule]:
        by_kind = {"text": self.config.text, "image": self.config.image, "audio": self.config.audio}
        return {
            modality.encoder_key: BackboneRule(by_kind[modality.kind].freeze, by_kind[modality.kind].lr)
            for modality in modalities.values()
            if modality.kind in by_kind
        }

    def _finetune(
        self,
        model: Understand,
        modalities: Mapping[str, Modality],
        probes: Mapping[str, Probe],
        *,
        log_dir: Path | None,
        columns: list[str] | None = None,
    ) -> Course:
        train, val = self.examples["train"], self.examples["val"]
        if columns is not None:
            train, val = train.restrict(columns), val.restrict(columns)
        return finetune(
            model,
            self.tasks,
            train,
            val,
            self.config.trainer,
            rules=self._rules(modalities),
            objectives=self.config.objectives,
            features=(
                {name: value for name, value in self.features["train"].items() if name in modalities},
                {name: value for name, value in self.features["val"].items() if name in modalities},
            ),
            probes=probes,
            seed=self.config.seed,
            log_dir=log_dir if self.is_main else None,
            bar=self.show,
        )

    def _probes(self, rows: Mapping[str, Mapping[str, SplitRows]], part: list[str] | None = None) -> dict[str, Probe]:
        """Per task, the best linear model on the columns (those of a part) that have features before any training."""
        probes = {}
        for name, splits in rows.items():
            columns = systems.probe_columns(splits["train"], part if part is not None else list(self.modalities))
            if columns:
                probes[name] = Probe.fit(self.tasks[name], splits["train"], splits["val"], columns)
        return probes

    def _alone_models(self, rows: Mapping[str, Mapping[str, SplitRows]]) -> dict[str, Understand]:
        """A model trained on each modality alone, where the report needs one."""
        splits = next(iter(rows.values()))["train"]
        grouped = systems.parts(splits.examples)
        if self.config.report.alone == "none" or len(grouped) < 2:
            return {}
        models = {}
        for part in systems.trained_alone(self.config.report.alone, splits):
            set_seed(self.config.seed)
            backbones = self._backbones()
            fresh = {}
            for name in grouped[part]:
                kind, options = self.schema.columns[name].kind, self.schema.columns[name].options
                backbone = backbones.get(kind, options.get("backbone")) if MODALITIES.get(kind).needs_backbone else None
                fresh[name] = MODALITIES.get(kind).from_state(name, self.modalities[name].state(), backbone)
            models[part] = build_model(fresh, self.tasks, self.config.fusion)
            probes = self._probes(rows, grouped[part])
            self._finetune(models[part], fresh, probes, log_dir=None, columns=grouped[part])
        return models

    # Results

    def _results(
        self, model: Understand, course: Course, rows: Mapping[str, Mapping[str, SplitRows]]
    ) -> found.RunResults:
        models = self._alone_models(rows)
        still = [name for name, key in model.routes.items() if key not in course.moved]
        kept = {split: {name: known[name] for name in still if name in known} for split, known in self.features.items()}
        wanted = self.tasks if self.config.report.alone != "none" else {}
        alone = {name: systems.alone(name, task, rows[name], models) for name, task in wanted.items()}
        with encoded(model, self.examples["val"], kept["val"]), encoded(model, self.examples["test"], kept["test"]):
            tasks = [self._judge(model, name, task, rows[name], alone) for name, task in self.tasks.items()]
        return self._describe(model, course, tasks)

    def _judge(
        self,
        model: Understand,
        name: str,
        task: Task,
        rows: Mapping[str, SplitRows],
        alone: Mapping[str, list[Candidate]],
    ) -> found.TaskResult:
        train, val, test = rows["train"], rows["val"], rows["test"]
        val_scores = systems.model_scores(model, name, task, val, train)
        task.tune(val_scores, val.truth)
        scores = systems.model_scores(model, name, task, test, train)
        candidates = [systems.baseline(task, train, test)]
        if name in self.probes:
            candidates.append(systems.before(self.probes[name], test))
        candidates += alone.get(name, [])
        candidates += systems.without(model, name, task, train, test)
        described = f"tuned on {len(train.indices)} rows; best step chosen on {len(val.indices)} validation rows"
        candidates.append(Candidate("tuned", "after", described, scores, list(self.modalities)))
        table = test.examples.table
        table.require(self.config.report.slices)
        group = self.schema.group
        return judge(
            task,
            candidates,
            test.truth,
            table.rows[test.indices],
            weights=test.examples.weights[test.indices],
            groups=table.cells(group, test.indices) if group and group in table else None,
            slices={column: table.cells(column, test.indices) for column in self.config.report.slices},
            validation=(val_scores, val.truth),
            show=lambda at: self._shown(int(test.indices[at])),
            num=self.config.report.bootstrap,
            num_errors=self.config.report.errors,
            seed=self.config.seed,
        )

    def _shown(self, index: int) -> list[found.Shown]:
        table = self.examples["test"].table
        return [
            show_cell(name, modality.kind, table.cells(name, [index])[0], base_dir=table.base_dir)
            for name, modality in self.modalities.items()
        ]

    def _describe(self, model: Understand, course: Course, tasks: list[found.TaskResult]) -> found.RunResults:
        rejected = self._all_rejected()
        return found.RunResults(
            title=f"{', '.join(self.tasks)} from {', '.join(self.modalities)}",
            version=versions()["fusetune"],
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            command=describe.command(),
            seed=self.config.seed,
            device=describe.device(model),
            threads=torch.get_num_threads(),
            tasks=tasks,
            settings=describe.flat(self.config.model_dump(exclude_defaults=True, mode="json")),
            versions=versions(),
            tables=self._tables_used(),
            columns=describe.columns_used(self.schema, self.examples),
            backbones=describe.encoders_used(model, self.modalities, course, self._rules(self.modalities)),
            parameters=sum(p.numel() for p in model.parameters()),
            trained=course.trained[""],
            warnings=[*describe.warnings(self.schema, self.examples), *course.warnings],
            num_rejected=len({(item.file, item.row) for item in rejected}),
            rejected_by={f"{group.column or 'row'}: {group.why}": group.count for group in group_rejected(rejected)},
            rejected=describe.rejected_rows(rejected),
            curve=describe.curve(course, self.tasks),
            phases=self.phases,
            peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        )

    def _tables_used(self) -> list[found.TableUsed]:
        """Each split: its rows in are its rows used, rejected and unlabelled ones among them counted apart."""
        used = []
        for split, examples in self.examples.items():
            rejected = {item.row for item in [*self.rejected[split], *examples.rejected]}
            file, _ = self.files.get(split, (f"{self.files['train'][0]} (split off)", 0))
            rows_in = len(examples.rows) + len({item.row for item in self.rejected[split]}) + self.unlabelled[split]
            used.append(
                found.TableUsed(split, file, rows_in, rows_in - len(rejected), len(rejected), self.unlabelled[split])
            )
        return used
