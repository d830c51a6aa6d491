"""Measure the tuned model and its baselines on the test rows."""

from __future__ import annotations

import resource
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import torch

from fusetune.data.overlap import overlapping
from fusetune.data.quarantine import group_rejected
from fusetune.deploy.bundle import versions
from fusetune.evaluation.measure import choices, systems
from fusetune.evaluation.measure.attack import Attack, attack_of, start_model
from fusetune.evaluation.measure.importance import hidden_columns, importance
from fusetune.evaluation.measure.judge import Candidate, EvaluatedRows, judge
from fusetune.evaluation.report import describe
from fusetune.evaluation.report.cells import show_cell
from fusetune.evaluation.results import AttackUsed, RunResults, Shown, TaskResult
from fusetune.fitting.own_metrics import weightless
from fusetune.fitting.prepared import Prepared
from fusetune.fitting.saved import Trained
from fusetune.fitting.steps import fresh_model, rules
from fusetune.inference.features import encoded
from fusetune.inference.predict import model_device
from fusetune.modalities.history import HistoryModality
from fusetune.models.family import Family
from fusetune.tasks.abilities import Choosing, ShowsText, Thresholded
from fusetune.tasks.base import TargetTask
from fusetune.training.probes.probe import SplitRows
from fusetune.types import Tokens

ALSO_TRAIN = "also a train row"
"""Name of the slice by whether a row's inputs are also those of a train row."""


class Findings:
    """Measures a fit's tuned model and the systems it is compared with.

    Args:
        fit: with its features, labelled rows and probes.
        trained: the tuned model and its training history.
    """

    def __init__(self, fit: Prepared, trained: Trained) -> None:
        self.fit, self.trained, self.model = fit, trained, trained.bundle.model
        self.history, self.val_scores = trained.history, dict(trained.val_scores)
        self._shared: dict[str, np.ndarray] = {}

    def decide(self) -> dict[str, np.ndarray]:
        """Tune each task's decision thresholds on the validation rows; return the scores by task."""
        rows = self.fit.rows
        examples = encoded(self.model, self.fit.examples["val"], self.unchanged_features("val"))
        for name, task in self.fit.targets.items():
            val, train = rows[name]["val"].seen(examples), rows[name]["train"]
            if name not in self.val_scores:
                self.val_scores[name] = systems.model_scores(
                    self.model, name, task, val, train, self.trained.bundle.stack
                )
            if isinstance(task, Thresholded):
                task.tune(self.val_scores[name], val.truth)
        return self.val_scores

    def unchanged_features(self, split: str) -> dict[str, Tokens]:
        """Return the frozen features of the columns whose encoders are as pretrained in the kept weights."""
        known, moved = self.fit.features[split], self.history.moved
        if self.history.encoders_unchanged and self.history.best.stage == "head":
            moved = set()
        return {name: known[name] for name, key in self.model.routes.items() if key not in moved and name in known}

    def results(self, alone_models: Mapping[str, Family | None], single_models: Mapping[str, Family]) -> RunResults:
        """Measure the tuned model and all systems that it is compared with.

        Args:
            alone_models: from `steps.alone_models`.
            single_models: from `steps.single_models`.
        """
        fit, model, rows = self.fit, self.model, self.fit.rows
        targets = fit.targets if fit.config.report.alone != "none" else {}
        select = self.fit.config.trainer.probe == "auto"
        others = {
            name: systems.alone(name, task, rows[name], alone_models, select=select) for name, task in targets.items()
        }
        for name, single in single_models.items():
            others.setdefault(name, []).append(systems.single(name, fit.targets[name], single, rows[name]))
        attack, attacked = self._attacked()
        self.decide()
        examples = encoded(model, fit.examples["test"], self.unchanged_features("test"))
        tasks = [
            self._judge(
                name,
                task,
                {**rows[name], "test": rows[name]["test"].seen(examples)},
                [*others.get(name, []), *attacked.get(name, [])],
            )
            for name, task in fit.targets.items()
        ]
        for task_result in tasks:
            task_result.attack = attack
            task_result.encoders_unchanged = self.history.encoders_unchanged
        for name, task_result in zip(fit.targets, tasks, strict=True):
            task_result.stack = self.trained.stacked.get(name)
        title = f"{', '.join(fit.targets)} from {', '.join(fit.modalities)}"
        return self.run_results(tasks, title)

    def _attacked(self) -> tuple[AttackUsed | None, dict[str, list[Candidate]]]:
        """The model before tuning and the tuned one under attack, per task, where the report has that."""
        fit, rows = self.fit, self.fit.rows
        settings = attack_of(fit.config.report, fit.config.trainer)
        if settings is None:
            return None, {}
        if fit.deadline.passed():
            fit.left_out.append("the attack")
            return None, {}
        origin = fit.plain or fit
        _, start = fresh_model(origin, list(fit.modalities))
        before = start_model(start, origin.probes).to(model_device(self.model))
        attack = Attack(before, fit.examples["train"], settings)
        candidates: dict[str, list[Candidate]] = {}
        for name, task in fit.targets.items():
            frozen = self._frozen(name, task)
            tuned = {"frozen probe": before} if frozen is not None and frozen[0] is origin else {}
            candidates[name] = [
                attack.candidate(of, model, name, task, rows[name]["test"], rows[name]["train"])
                for of, model in (tuned | {"tuned": self.model}).items()
            ]
            if tuned and isinstance(task, Thresholded):
                candidates[name][0].validation = origin.probes[name].scores(origin.rows[name]["val"])
        return attack.used(), candidates

    def _judge(
        self,
        name: str,
        task: TargetTask,
        rows: Mapping[str, SplitRows],
        others: Sequence[Candidate],
    ) -> TaskResult:
        fit, model = self.fit, self.model
        train, val, test = rows["train"], rows["val"], rows["test"]
        scores = systems.model_scores(model, name, task, test, train, self.trained.bundle.stack)
        own = val if isinstance(task, Thresholded) else None
        candidates = [systems.baseline(task, train, test, own)]
        if (frozen := self._frozen(name, task)) is not None:
            of, splits = frozen
            seen = splits["val"] if isinstance(task, Thresholded) else None
            candidates.append(systems.before(of.probes[name], splits["test"], seen))
        if fit.pretraining is not None and name in fit.probes:
            seen = val if isinstance(task, Thresholded) else None
            probe = systems.before(fit.probes[name], test, seen)
            what = f"{probe.description}, after they were pretrained on the train rows ({fit.pretraining.name})"
            candidates.append(replace(probe, name=f"frozen probe, {fit.pretraining.name}", description=what))
        candidates[1:1] = choices.guesses(task, train, test)
        candidates += self._similarity(task, val, test)
        candidates += others
        candidates += systems.without(model, name, task, train, test, self.trained.bundle.stack)
        described = f"tuned on {len(train.indices)} rows; best step chosen on {len(val.indices)} validation rows"
        if self.history.encoders_unchanged:
            described += "; it lies before the encoders were tuned, which are as pretrained"
        candidates.append(Candidate("tuned", "after", described, scores, list(fit.modalities)))
        evaluated, shared = self.evaluated(test), self.shared("test", test.indices)
        if 0 < shared.sum() < len(shared):
            evaluated.slices = {**evaluated.slices, ALSO_TRAIN: ["yes" if also else "no" for also in shared]}
        column = task.shows if isinstance(task, ShowsText) else task.reads
        if column is not None:
            evaluated.texts = lambda at: self.texts(column, int(test.indices[at]))
        result = judge(
            task,
            candidates,
            evaluated,
            validation=(self.val_scores[name], val.truth),
            show=lambda at: self.shown(int(test.indices[at])),
            num=fit.config.report.bootstrap,
            num_errors=fit.config.report.errors,
            seed=fit.config.seed,
        )
        hidden = hidden_columns(model, name, task, train, test, self.trained.bundle.stack)
        num, seed = fit.config.report.bootstrap, fit.config.seed
        result.importance = [*importance(task, scores, hidden, evaluated, num=num, seed=seed)]
        result.shared = int(shared.sum())
        result.balance = task.target_panels({split: part.truth for split, part in rows.items()})
        return result

    def evaluated(self, test: SplitRows) -> EvaluatedRows:
        """Return a task's labelled test rows, with their weights, groups and slices, for the comparison of systems."""
        table, group, slices = test.examples.table, self.fit.schema.group, self.fit.config.report.slices
        table.require(slices)
        return EvaluatedRows(
            test.truth,
            table.rows[test.indices],
            weights=test.examples.weights[test.indices],
            groups=table.cells(group, test.indices) if group and group in table else None,
            slices={column: table.cells(column, test.indices) for column in slices},
            split="test" if self.fit.tables.has_test else "validation",
        )

    def _similarity(self, task: TargetTask, val: SplitRows, test: SplitRows) -> list[Candidate]:
        """Return the system that chooses by cosines of frozen embeddings, for a task that chooses among texts."""
        if not isinstance(task, Choosing) or task.reads is None:
            return []
        backbone = (
            (self.fit.plain or self.fit)
            .backbones()
            .get("text", self.fit.schema.columns[task.reads].options.get("backbone"))
        )
        return choices.similarity(task, backbone, val, test, model_device(self.model))

    def _frozen(self, name: str, task: TargetTask) -> tuple[Prepared, Mapping[str, SplitRows]] | None:
        """Return the fit with a task's best frozen probe on validation rows, and its rows; None if it has no probe.

        The encoders are those that were loaded, without self-supervised tuning on the rows.
        Texts that are read together are as a rule read better apart by an encoder that is not tuned.
        """
        origin = self.fit.plain or self.fit
        fits = [fit for fit in (origin, origin.apart) if fit is not None and name in fit.probes]
        same = [
            fit for fit in fits if np.array_equal(fit.rows[name]["test"].indices, fits[0].rows[name]["test"].indices)
        ]
        if not same:
            return None
        sign = 1.0 if task.main.greater_is_better else -1.0
        values = []
        for fit in same if len(same) > 1 else ():
            val = fit.rows[name]["val"]
            values.append(sign * task.evaluate(fit.probes[name].scores(val), val.truth)[task.main.name])
        best = same[int(np.nanargmax(values))] if values and np.isfinite(values).any() else same[0]
        return best, best.rows[name]

    def shared(self, split: str, indices: np.ndarray) -> np.ndarray:
        """Return which rows have the same inputs as a train row, (rows,) bool.

        Args:
            split: the split's name.
            indices: (rows,) positions in its table.
        """
        if split not in self._shared:
            examples = self.fit.examples[split]
            also = np.zeros(len(examples.table), dtype=bool)
            also[examples.used[overlapping(self.fit.examples["train"].with_target(), examples)]] = True
            self._shared[split] = also
        return np.asarray(self._shared[split][indices])

    def _suspicions(self) -> list[str]:
        """Return warnings about rows that splits share, and about columns that may leak the target."""
        examples = self.fit.examples
        notes = []
        for split in ("val", "test"):
            if split in examples and (count := int(self.shared(split, examples[split].used).sum())):
                notes.append(
                    f"{count:,} of {len(examples[split].used):,} {split} rows have the same inputs as a train row:"
                    " what is measured on them says little about new rows."
                )
        return notes + describe.near_leaks(examples["train"], self.fit.schema)

    def _left_out(self) -> list[str]:
        """Return a warning that lists what the report lacks because the time was up."""
        fit = self.fit
        if not fit.left_out:
            return []
        minutes = f"trainer.minutes={fit.config.trainer.minutes:g}"
        return [f"The report lacks, as the time was up ({minutes}): {', '.join(fit.left_out)}."]

    def texts(self, column: str, index: int) -> Sequence[str]:
        """Return the texts that a column has in a test row."""
        return self.fit.examples["test"].tokens(column, np.array([index])).texts[0]

    def shown(self, index: int, columns: Collection[str] | None = None) -> list[Shown]:
        """Return a test row's cells in the form that the report shows, of some columns or of all."""
        fit = self.fit
        examples = fit.examples["test"]
        table, shown = examples.table, []
        for name, modality in fit.modalities.items():
            if (columns is not None and name not in columns) or isinstance(modality, HistoryModality):
                continue  # a history's cells are positions in the catalogue, which tell a reader nothing
            column = examples.columns[name]
            code = int(column.codes[index])
            cell = column.local([code])[0] if code >= 0 else table.cells(name, [index])[0]
            parts = getattr(modality, "join", ()) if isinstance(cell, list) else ()
            for part, value in zip(parts or [name], cell if parts else [cell], strict=False):
                if not isinstance(part, str):  # the columns of choices, or one column of lists of them
                    part, value = ", ".join(part), " | ".join("" if text is None else str(text) for text in value)
                shown.append(show_cell(part, modality.kind, value, base_dir=table.base_dir))
        return shown

    def run_results(self, tasks: list[TaskResult], title: str) -> RunResults:
        """Return the report's data from the measured tasks and the training history."""
        fit, model, history = self.fit, self.model, self.history
        rejected = fit.tables.all_rejected(fit.examples)
        return RunResults(
            title=title,
            version=versions()["fusetune"],
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            command=describe.command(),
            seed=fit.config.seed,
            device=describe.device(model, history.precision),
            threads=torch.get_num_threads(),
            tasks=tasks,
            settings=describe.flat(fit.config.model_dump(exclude_defaults=True, mode="json")),
            versions=dict(versions()),
            tables=fit.tables.used(fit.examples),
            columns=describe.columns_used(fit.schema, fit.examples, fit.tables.reserved),
            backbones=describe.encoders_used(model, fit.modalities, history, rules(fit, fit.modalities)),
            parameters=sum(p.numel() for p in model.parameters()),
            trained=history.changed.get("", history.trained[""]),
            updating=history.seconds,
            waited=history.waited,
            warnings=[
                *self._suspicions(),
                *fit.tables.notes,
                *describe.fetched(fit.examples),
                *describe.warnings(fit.schema, fit.examples),
                *history.warnings,
                *describe.kept_before_tuning(history),
                *self._left_out(),
                *weightless(fit.tasks, fit.schema.weight),
            ],
            num_rejected=len({(item.file, item.row) for item in rejected}),
            rejected_by={group.text: group.count for group in group_rejected(rejected)},
            rejected=describe.rejected_rows(rejected),
            curve=describe.curve(history, fit.tasks),
            phases=fit.phases,
            choice=fit.choice,
            reading=fit.reading,
            pretraining=fit.pretraining,
            folder=str(fit.folder),
            peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        )
