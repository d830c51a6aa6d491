"""Evaluate a tuned model on labelled rows: metrics with intervals, also by slice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import sparse

from fusetune.config.prompt import GenerationConfig
from fusetune.data.column import Progress
from fusetune.data.examples import Examples
from fusetune.data.quarantine import Rejected, group_rejected
from fusetune.errors import TableError
from fusetune.evaluation.measure.judge import Candidate, EvaluatedRows, judge
from fusetune.evaluation.measure.unknown import unknown_labels
from fusetune.evaluation.report.notebook import tasks_html
from fusetune.evaluation.results import TaskResult, plain
from fusetune.inference.retrieval import searches, used_vectors
from fusetune.inference.scores import predict_scores
from fusetune.inference.write import decoding_of, write
from fusetune.models.family import Family
from fusetune.models.generate import Generate
from fusetune.models.match import Match
from fusetune.models.understand import Understand
from fusetune.tasks.abilities import Writes
from fusetune.tasks.base import Task, target_tasks
from fusetune.trees.stack import Stack

Answered = tuple[Task, np.ndarray, np.ndarray, np.ndarray]
"""A task, the positions of its evaluated rows in the table, and the model's answers and the truth for them."""


@dataclass
class Evaluation:
    """The result of an evaluation.

    Attributes:
        tasks: the results per target, with the tuned model as the only system.
        rows_in: the number of rows in the table.
        rows_rejected: the number of rows that, or whose targets, could not be read.
        cells_masked: the number of unreadable cells that were treated as missing.
        problems: descriptions of the first rejected rows and masked cells.
        notes: what else is to be known about the figures.
    """

    tasks: list[TaskResult]
    rows_in: int
    rows_rejected: int
    cells_masked: int
    problems: list[str]
    notes: list[str] = field(default_factory=list)

    def metrics(self) -> dict[str, dict[str, float]]:
        """Return each metric's value, per target."""
        return {
            task.target: {name: interval.value for name, interval in task.systems[0].metrics.items()}
            for task in self.tasks
        }

    def to_json(self) -> dict[str, Any]:
        """Return the evaluation as plain data; nan becomes None."""
        content: dict[str, Any] = plain(self)
        return content

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        counts = f"{self.rows_in} rows in, {self.rows_rejected} rejected, {self.cells_masked} cells not readable"
        warnings = [warning for task in self.tasks for warning in task.warnings]
        return str(tasks_html(self.tasks, [counts, *self.problems, *self.notes, *warnings]))

    def __str__(self) -> str:
        lines = [f"{self.rows_in} rows in, {self.rows_rejected} rejected, {self.cells_masked} cells not readable"]
        lines += [f"  {problem}" for problem in self.problems] + self.notes
        for task in self.tasks:
            lines.append(f"{task.target} ({task.name}, {task.rows} labelled rows)")
            for name, interval in task.systems[0].metrics.items():
                span = f"  [{interval.low:.4f}, {interval.high:.4f}]" if interval.known else ""
                lines.append(f"  {name:<20}{interval.value:>9.4f}{span}")
            for part in task.slices:
                span = f"  [{part.metric.low:.4f}, {part.metric.high:.4f}]" if part.metric.known else ""
                label = f"{part.column} = {part.value} ({part.rows} rows)"
                lines.append(f"  {label:<40} {task.metric} {part.metric.value:.4f}{span}")
            lines += [f"  note: {warning}" for warning in task.warnings]
        return "\n".join(lines)


@dataclass(frozen=True)
class Judged:
    """Query rows that are searched among more documents than their own: a table of them, or named negatives.

    Attributes:
        related, seen: (rows, rows) of the evaluated table; see `MatchTask.search`.
        rows_in: the number of query rows.
        rejected: those that cannot be used.
        notes: sentences for the user.
    """

    related: sparse.csr_array | None
    rows_in: int
    rejected: Sequence[Rejected]
    notes: Sequence[str]
    seen: sparse.csr_array | None = None


@dataclass(frozen=True)
class _How:
    """How answers are computed and searched; see the arguments of `measure`."""

    stack: Stack | None
    progress: Progress | None
    judged: Judged | None
    generation: GenerationConfig


def measure(
    model: Family,
    tasks: Mapping[str, Task],
    examples: Examples,
    *,
    judged: Judged | None = None,
    slices: Sequence[str] = (),
    group: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    stack: Stack | None = None,
    generation: GenerationConfig | None = None,
) -> Evaluation:
    """Measure metrics with bootstrap intervals on the labelled rows, and the main metric by slice.

    Args:
        model: the tuned model.
        tasks: the fitted tasks by name.
        examples: prepared rows with their targets checked.
        judged: the right answers and the counts, of queries that are searched in a catalogue.
        slices: the table's columns to slice by.
        group: a column of the table; the bootstrap draws rows with equal cells together.
        seed: the seed of the bootstrap.
        progress: wraps iterators to show progress.
        stack: the boosted trees beside the model, if any.
        generation: how answers are written, by a model that writes; None for the defaults.

    Raises:
        TableError: a column of `slices` is not in the table, or no row has what is
            measured.
    """
    table = examples.table
    table.require(slices)
    results = []
    how = _How(stack, progress, judged, generation or GenerationConfig())
    for task, rows, answers, truth in ANSWERED[model.name](model, tasks, examples, how):
        tuned = Candidate("tuned", "after", "the tuned model", answers)
        evaluated = EvaluatedRows(
            truth,
            table.rows[rows],
            weights=examples.weights[rows],
            groups=table.cells(group, rows) if group is not None and group in table else None,
            slices={column: table.cells(column, rows) for column in slices},
        )
        results.append(judge(task, [tuned], evaluated, num_errors=0, seed=seed))
    rejected = [*table.rejected, *examples.rejected] if judged is None else list(judged.rejected)
    problems = [f"row {item.row}, {_described(item)}" for item in [*rejected, *examples.masked]]
    shown = problems[:10] + ([f"and {len(problems) - 10} more"] if len(problems) > 10 else [])
    return Evaluation(
        results,
        rows_in=len(table) + len(table.rejected) if judged is None else judged.rows_in,
        rows_rejected=len({item.row for item in rejected}),
        cells_masked=len(examples.masked),
        problems=shown,
        notes=[*unknown_labels(examples), *(() if judged is None else judged.notes)]
        + [
            f"{task.target} was tuned by {task.tuned_by.name}, a function that no folder holds; it is measured by "
            f"{task.main.name}. In Python load(FOLDER, metric={task.tuned_by.name}) measures by the function."
            for task in tasks.values()
            if task.tuned_by is not None and task.main.function is None
        ],
    )


def _described(item: Rejected) -> str:
    """Return why a row or cell could not be read, with the cell."""
    cell = f", came {item.cell}" if item.column is not None and item.value is not None else ""
    return f"column {item.column!r}: {item.why}{cell}"


def _predictions(model: Family, tasks: Mapping[str, Task], examples: Examples, how: _How) -> Iterator[Answered]:
    """Yield the predictions of each target's labelled rows."""
    targets = target_tasks(tasks)
    if not any(len(examples.labelled(name)) for name in targets):
        raise _no_targets(targets.values(), examples)
    predicted = predict_scores(model, targets, examples, stack=how.stack, progress=how.progress)
    for name, task in targets.items():
        if len(rows := examples.labelled(name)):
            yield task, rows, predicted[name][examples.positions(rows)], examples.truth(name, rows)


def _no_targets(tasks: Iterable[Task], examples: Examples) -> TableError:
    """Return the error that no row can be measured."""
    names = [task.target for task in tasks]
    groups = group_rejected(item for item in examples.rejected if item.column in names)
    return TableError(
        "no row has a target that the model can be measured on",
        expected=f"values in {', '.join(names)}",
        came="; ".join(f"{group.text} ({group.count} rows)" for group in groups) or None,
        file=examples.table.source,
    )


def _rankings(model: Family, tasks: Mapping[str, Task], examples: Examples, how: _How) -> Iterator[Answered]:
    """Yield the ranks of each direction of retrieval, among the evaluated rows' distinct answers."""
    judged = how.judged
    related, seen = (None, None) if judged is None else (judged.related, judged.seen)
    searched = searches(tasks, examples, related, seen)
    if not searched:
        raise TableError(
            "no two rows have a query and its answer",
            expected=f"values in {', '.join(model.columns)}",
            file=examples.table.source,
        )
    vectors = used_vectors(model, examples)
    for task, search in searched.values():
        yield task, examples.used[search.rows], task.answers(vectors, search), task.truth(search)


def _matched(model: Family, tasks: Mapping[str, Task], examples: Examples, how: _How) -> Iterator[Answered]:
    """Yield the answers of the pairs' target, or of each direction of retrieval."""
    answered = _predictions if target_tasks(tasks) else _rankings
    return answered(model, tasks, examples, how)


def _written(model: Family, tasks: Mapping[str, Task], examples: Examples, how: _How) -> Iterator[Answered]:
    """Yield the answers that a language model writes for each target's labelled rows."""
    assert isinstance(model, Generate)
    if not any(len(examples.labelled(name)) for name in tasks):
        raise _no_targets(tasks.values(), examples)
    for name, task in tasks.items():
        if isinstance(task, Writes) and len(rows := examples.labelled(name)):
            decoding = decoding_of(how.generation, task)
            written = write(model, name, task, examples, rows, decoding, progress=how.progress)
            yield task, rows, written.texts, examples.truth(name, rows)


ANSWERED: dict[str, Callable[..., Iterator[Answered]]] = {
    Understand.name: _predictions,
    Match.name: _matched,
    Generate.name: _written,
}
"""The function that yields a model's answers per task, by the family's name."""
