"""A tuned model on labelled rows: metrics, by slices, for people and machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusetune.data.column import Progress
from fusetune.data.examples import Examples
from fusetune.evaluation.measure.judge import Candidate, EvaluatedRows, judge
from fusetune.evaluation.measure.retrieval import judge_search, ranks, searches, sides
from fusetune.evaluation.measure.systems import parts
from fusetune.evaluation.results import SystemResult, TaskResult, plain
from fusetune.inference.predict import row_vectors
from fusetune.inference.scores import predict_scores
from fusetune.models.family import Family
from fusetune.tasks.base import Task
from fusetune.trees.stack import Stack


@dataclass
class Evaluation:
    """What was measured.

    Attributes:
        tasks: per target; the tuned model is the only system compared.
        rows_in: the table's rows.
        rows_rejected: those that could not be read at all, or whose target could not.
        cells_masked: cells that could not be read and were taken as missing.
        problems: the rejected rows and masked cells in words, the first of them.
    """

    tasks: list[TaskResult]
    rows_in: int
    rows_rejected: int
    cells_masked: int
    problems: list[str]

    def metrics(self) -> dict[str, dict[str, float]]:
        """Per target, each metric's value."""
        return {
            task.target: {name: interval.value for name, interval in task.systems[0].metrics.items()}
            for task in self.tasks
        }

    def to_json(self) -> dict[str, Any]:
        """The same as plain data: nan is None."""
        content: dict[str, Any] = plain(self)
        return content

    def __str__(self) -> str:
        lines = [f"{self.rows_in} rows in, {self.rows_rejected} rejected, {self.cells_masked} cells not readable"]
        lines += [f"  {problem}" for problem in self.problems]
        for task in self.tasks:
            lines.append(f"{task.target} ({task.name}, {task.rows} labelled rows)")
            for name, interval in task.systems[0].metrics.items():
                span = f"  [{interval.low:.4f}, {interval.high:.4f}]" if interval.known else ""
                lines.append(f"  {name:<20}{interval.value:>9.4f}{span}")
            for part in task.slices:
                span = f"  [{part.metric.low:.4f}, {part.metric.high:.4f}]" if part.metric.known else ""
                label = f"{part.column} = {part.value} ({part.rows} rows)"
                lines.append(f"  {label:<40} {task.metric} {part.metric.value:.4f}{span}")
        return "\n".join(lines)


def measure(
    model: Family,
    tasks: Mapping[str, Task],
    examples: Examples,
    *,
    slices: Sequence[str] = (),
    group: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    stack: Stack | None = None,
) -> Evaluation:
    """Metrics with bootstrap intervals on the labelled rows, and the main metric by slice.

    Args:
        model: tuned.
        tasks: by name.
        examples: prepared rows with their targets checked.
        slices: columns of the table.
        group: a column of the table whose equal cells are drawn together by the bootstrap.
        seed: of the bootstrap.
        progress: wraps iterators.
        stack: the trees beside the model, where there are any.

    Raises:
        TableError: a slice's column is not in the table.
    """
    table = examples.table
    table.require(slices)
    found = []
    if not tasks:
        found += measure_search(model, examples, seed=seed)
    predicted = predict_scores(model, tasks, examples, stack=stack, progress=progress) if tasks else {}
    for name, task in tasks.items():
        rows = examples.labelled(name)
        if not len(rows):
            continue
        scores = predicted[name][examples.places(rows)]
        truth = examples.truth(name, rows)
        tuned = Candidate("tuned", "after", "the tuned model", scores)
        values = {column: table.cells(column, rows) for column in slices}
        found.append(
            judge(
                task,
                [tuned],
                EvaluatedRows(
                    truth,
                    table.rows[rows],
                    weights=examples.weights[rows],
                    groups=table.cells(group, rows) if group is not None and group in table else None,
                    slices=values,
                ),
                num_errors=0,
                seed=seed,
            )
        )
    rejected = [*table.rejected, *examples.rejected]
    problems = [f"row {item.row}, column {item.column!r}: {item.why}" for item in [*rejected, *examples.masked]]
    shown = problems[:10] + ([f"and {len(problems) - 10} more"] if len(problems) > 10 else [])
    return Evaluation(
        found,
        rows_in=len(table) + len(table.rejected),
        rows_rejected=len({item.row for item in rejected}),
        cells_masked=len(examples.masked),
        problems=shown,
    )


def measure_search(model: Family, examples: Examples, *, seed: int = 0) -> list[TaskResult]:
    """Retrieval in every direction between the columns of a model that has no task; the tuned model alone.

    Args:
        model: tuned.
        examples: prepared rows.
        seed: of the bootstrap.
    """
    codes = {name: column.codes[examples.used] for name, column in examples.columns.items()}
    groups = examples.groups[examples.used]
    vectors = {name: values.numpy() for name, values in row_vectors(model, examples, examples.used).items()}
    found = []
    for search in searches(sides(parts(examples)), codes, groups):
        tuned = SystemResult("tuned", "after", "the tuned model", {})
        asking = groups[search.rows]
        found.append(
            judge_search(
                search,
                [(tuned, ranks(search, vectors))],
                examples.rows[examples.used[search.rows]],
                groups=asking.tolist() if (asking >= 0).all() else None,
                seed=seed,
            )
        )
    return found
