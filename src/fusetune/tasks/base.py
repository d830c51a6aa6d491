"""The contract of tasks: answers, truth and metrics; for target columns also encoding, head and loss."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fusetune.errors import ConfigError, nearest
from fusetune.modalities.base import Detection
from fusetune.tasks.linear_path import LinearModel as LinearModel
from fusetune.tasks.linear_path import LinearPath as LinearPath
from fusetune.tasks.main_metric import Metric as Metric
from fusetune.tasks.metrics import LOWER_IS_BETTER, MEANINGS
from fusetune.tasks.panels.kinds import Evidence, Panel, Section, WorstRows
from fusetune.tasks.reading import Reading as Reading
from fusetune.types import Target, TextTokens

if TYPE_CHECKING:
    from fusetune.data.schema import Schema


class Task(abc.ABC):
    """A task defines how a model is measured: answers, metrics, report panels and constant guess.

    Answers are numpy arrays whose first axis is the rows. Everything after the model works on answers, so that every
    system is measured in the same way. A task that predicts a column is a `TargetTask`.

    Attributes:
        target: the name that results are reported under; the column, in a `TargetTask`.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    """The family of models that has the task's answers."""
    main: Metric
    """The main metric: it selects the best step and is in the report's headline. `measure_by` changes it."""
    tuned_by: Metric | None = None
    """The metric by which a loaded model was chosen, if that was a function, which folders cannot hold."""

    def __init__(self, target: str) -> None:
        self.target = target

    def measured(self, answers: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Return each row's input to the metrics, (rows, k): a score, or counts that are summed over rows.

        Expensive comparisons of an answer with the truth belong here: they run once per row, and the bootstrap draws
        from the result. The default returns the answers, which must be numeric.

        Args:
            answers: (rows, ...).
            truth: (rows, ...) of the same rows.
        """
        return answers[:, None] if answers.ndim == 1 else answers

    @abc.abstractmethod
    def metrics(self, measured: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
        """Return the metrics under their usual names; an undefined metric is nan.

        Args:
            measured: (rows, k) as `measured` returns it, for any selection of rows.
            truth: (rows, ...) of the same rows.
            weights: (rows,) or None.
        """

    @abc.abstractmethod
    def constant(self, truth: np.ndarray, rows: int) -> np.ndarray:
        """Return the best constant guess (majority, rates or mean of `truth`) as answers for `rows` rows."""

    def measure_by(self, metric: str | Metric, truth: np.ndarray) -> None:
        """Make another metric the main one. Call it after `fit`.

        Args:
            metric: the name of one of the task's metrics, or a metric with a function.
            truth: (rows, ...) of some rows; a function is tried on them.

        Raises:
            ConfigError: the task has no such metric, or the function fails or contradicts its direction.
        """
        names = list(self.metrics(self.measured(self.constant(truth, len(truth)), truth), truth))
        if isinstance(metric, Metric) and metric.function is not None:
            self.main = self._tried(metric, names, truth)
            return
        name = metric.name if isinstance(metric, Metric) else metric
        if name not in names:
            raise ConfigError(
                f"trainer.metric: {self.name} has no metric called {name!r}",
                expected=f"{', '.join(names)}; in Python also a function",
                do=nearest(name, names) or f"trainer.metric.{self.target}=NAME chooses one for this target alone",
                column=self.target,
            )
        self.main = Metric(name, name not in LOWER_IS_BETTER)

    def _tried(self, metric: Metric, names: Sequence[str], truth: np.ndarray) -> Metric:
        """Return a metric with a function after trying it on the true answers and on the constant guess.

        Raises:
            ConfigError: it cannot be used.
        """
        if metric.name in names:
            raise ConfigError(
                f"trainer.metric: {self.name} has a metric called {metric.name!r} already",
                do=f"trainer.metric={metric.name} takes it; else name yours: Metric('my_{metric.name}', function=...)",
                column=self.target,
            )
        answers = self.perfect(truth), self.constant(truth, len(truth))
        best, guess = (
            metric.value(*self.compared(metric, self.measured(given, truth), truth), None, strict=number == 0)
            for number, given in enumerate(answers)
        )
        if (best < guess) if metric.greater_is_better else (best > guess):
            other = not metric.greater_is_better
            raise ConfigError(
                f"trainer.metric: {metric.name} is worse for the true answers than for a constant guess",
                expected=f"{'more' if metric.greater_is_better else 'less'} than {guess:.4g} for the true answers",
                came=f"{best:.4g}",
                do=f"say which values are better: Metric({metric.name!r}, greater_is_better={other}, function=...)",
                column=self.target,
            )
        return metric

    def compared(self, metric: Metric, measured: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return `y_true` and `y_pred` as a metric's function takes them, (rows, ...) each.

        Raises:
            ConfigError: the task's metrics are not computed from such arrays.
        """
        raise ConfigError(
            f"trainer.metric: the task {self.name} cannot be measured by a function",
            expected="the name of one of its metrics",
            column=self.target,
        )

    def perfect(self, truth: np.ndarray) -> np.ndarray:
        """Return the answers that are sure of the truth, (rows, ...)."""
        return truth.astype(float)

    def all_metrics(
        self, measured: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None
    ) -> dict[str, float]:
        """Return the task's metrics, and the main one first where it is a function; the arguments are `metrics`'."""
        metrics = self.metrics(measured, truth, weights)
        if self.main.function is None:
            return metrics
        own = self.main.value(*self.compared(self.main, measured, truth), weights)
        return {self.main.name: math.nan} | metrics | {self.main.name: own}

    def main_value(self, measured: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> float:
        """Return the main metric only. Override it if this is much faster than `metrics`."""
        if self.main.function is not None:
            return self.main.value(*self.compared(self.main, measured, truth), weights)
        return self.metrics(measured, truth, weights)[self.main.name]

    def evaluate(self, answers: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
        """Return the metrics of answers: `measured`, then `all_metrics`."""
        return self.all_metrics(self.measured(answers, truth), truth, weights)

    @property
    def meanings(self) -> Mapping[str, str]:
        """Explanations of metrics in plain words, by name."""
        return MEANINGS if self.main.function is None else {**MEANINGS, self.main.name: self.main.meaning}

    def panels(self, evidence: Evidence) -> list[Section]:
        """Return the report's sections about a model's answers, beside its metrics; none by default."""
        return []

    def warnings(self, answers: np.ndarray, truth: np.ndarray) -> list[str]:
        """Return warnings about a model's answers for the user, one sentence each; none by default.

        Args:
            answers: (rows, ...), at least one row.
            truth: (rows, ...) of the same rows.
        """
        return []

    def worst(self, answers: np.ndarray, truth: np.ndarray, num: int) -> WorstRows:
        """Return at most `num` of the worst errors; none by default."""
        return WorstRows("", [])

    @property
    def labels(self) -> list[str]:
        """The class names in the order of the answers' columns; empty for numbers."""
        return []

    @abc.abstractmethod
    def state(self) -> dict[str, Any]:
        """Return the fitted state as JSON data."""

    @classmethod
    @abc.abstractmethod
    def from_state(cls, target: str, state: dict[str, Any]) -> Task:
        """Restore a task from its `state()`."""


class TargetTask(Task):
    """A task that predicts one target column: its encoding, head and loss terms, and the output table's columns.

    Abilities that only some of these tasks have are in `fusetune.tasks.abilities`.
    """

    family = "understand"
    reads: str | None = None
    """The text column that is answered token by token, once `reading` has chosen it; None for one answer a row."""
    answers_spans: ClassVar[bool] = False
    """Whether answers are lists of `{"start", "end", "label", "score"}` in the text `reads`."""
    second: str | None = None
    """A second column of the target. `resolve` is given the pair of cells; a row that lacks both is unlabelled."""
    constant_is: ClassVar[str] = ""
    """What `constant` answers, for the report, such as "no entity"; "" for the mean or the most frequent answer."""
    num_shared: int = 0
    """Rows of the logits before those of the tokens, of a task with `reads`; see `fusetune.tasks.token_head`."""
    choice: str = ""
    """What the task chose from the train rows and why, for the user; "" for nothing."""
    learned_by: ClassVar[str | None] = None
    """The objective that is minimised in place of `loss`; None if `loss` is."""
    empty_is_value: bool = False
    """Whether an empty cell of the target is a value, such as "no answer", rather than an unlabelled row."""

    def reading(self, schema: Schema) -> Reading | None:
        """Return which columns the task needs to be read in another way than as one vector each; None by default.

        Args:
            schema: of the table; the columns that the model reads have the role "input".

        Raises:
            ConfigError: the table lacks such columns, or it is not clear which they are.
        """
        return None

    def resolve(self, value: Any, cell: Any, *, row: int) -> Any:
        """See `fusetune.tasks.token_task.TokenTask.resolve`."""
        return value

    @classmethod
    @abc.abstractmethod
    def detect(cls, values: Sequence[Any]) -> Detection:
        """Return how well a sample of the target's cells (none missing) fits this task."""

    @abc.abstractmethod
    def fit(self, values: Sequence[Any]) -> None:
        """Learn labels, scale and similar state from the train rows' cells, skipping missing ones.

        Raises:
            TableError: the cells are not usable, for example because they have one class only.
        """

    @abc.abstractmethod
    def check(self, value: Any, *, row: int) -> None:
        """Refuse a cell that `encode` does not accept. Call it after `fit`.

        Raises:
            BadCell: the cell is not a value of this target, for example a label that no train row has.
        """

    @abc.abstractmethod
    def encode(self, values: Sequence[Any], tokens: TextTokens | None = None) -> Target:
        """Encode cells as tensors; missing cells give unlabelled rows.

        Args:
            values: cells, as `resolve` returns them.
            tokens: the rows' tokens, for a task with `reads`; None for others.

        Returns:
            The targets; for a task with `reads`, their values are (rows, tokens, ...).
        """

    @abc.abstractmethod
    def build_head(self, dim: int) -> nn.Module:
        """Build a module from (batch, dim) to the task's logits, with all parameters that the loss needs.

        For a task with `reads`, from (batch, tokens, dim) to (batch, tokens, logits).
        """

    @abc.abstractmethod
    def terms(self, logits: Tensor, target: Target) -> Tensor:
        """Return each row's loss, (batch,), finite for unlabelled rows too.

        A row's loss is a sum (class weight x cross-entropy, or the sum over its tokens). Its denominator is in
        `target.sizes`, which is known before the forward pass, so that all micro-batches and processes of an update
        share one denominator.

        Args:
            logits: (batch, ...), the head's output, in float32 or wider.
            target: the encoded targets of the same rows.
        """

    def loss(self, logits: Tensor, target: Target, weights: Tensor) -> Tensor:
        """Return the mean loss of the labelled rows, a scalar: sum of weight x loss / sum of weight x size.

        It is 0, with a gradient, if no row is labelled.

        Args:
            logits: (batch, ...).
            target: the encoded targets of the same rows.
            weights: (batch,) row weights, 0 or more.
        """
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        losses, weights = self.terms(logits, target), weights.to(logits.dtype)
        total = target.counts(weights).sum()
        return (losses * weights * target.labelled).sum() / total.clamp(min=torch.finfo(total.dtype).tiny)

    @abc.abstractmethod
    def answers(self, logits: Tensor, tokens: TextTokens | None = None) -> np.ndarray:
        """Convert logits to answers, one per row.

        Args:
            logits: (rows, ...); for a task with `reads`, (rows, tokens, logits), 0 where a token is not real.
            tokens: the rows' tokens, for a task with `reads`; None for others.

        Returns:
            Probabilities, (rows, classes); numbers in the target's unit, (rows,); or, for a task that answers with a
            list or a text per row, an array of dtype object, (rows,).
        """

    @abc.abstractmethod
    def truth(self, values: Sequence[Any]) -> np.ndarray:
        """Convert cells (none missing) to the form that answers are compared with, one per row.

        The truth is class indices, a 0/1 matrix, numbers, or an array of dtype object with lists or texts.
        """

    def unknown(self, values: Sequence[Any]) -> dict[str, int]:
        """Return labels in checked cells (none missing) that no train row has, with the rows of each; none by default.

        Only a task whose cells may hold such labels beside known ones has them: in others `check` refuses the cell.
        """
        return {}

    def target_panels(self, truths: Mapping[str, np.ndarray]) -> list[Panel]:
        """Return the report's panels about the target, such as its class balance; none by default.

        Args:
            truths: the truth per split, as `truth` returns it.
        """
        return []

    def example_answers(self, logits: Tensor) -> np.ndarray:
        """Return the answers of one row, from which the types of the output table's columns are taken.

        Args:
            logits: (1, ...), or (1, 1, logits) for a task with `reads`.
        """
        return self.answers(logits)

    @abc.abstractmethod
    def columns(self, answers: np.ndarray) -> dict[str, list[Any]]:
        """Return the output table's columns: the prediction under the target's name, then details."""

    def decide(self, answers: np.ndarray) -> np.ndarray:
        """Return the decisions, in the form of `truth`: class indices, a 0/1 matrix, or numbers."""
        return answers

    def compared(self, metric: Metric, measured: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return truth and decisions as cells have them, or truth and probabilities.

        Raises:
            ConfigError: the task has no probabilities, or its metrics are computed from something else than answers.
        """
        if type(self).measured is not Task.measured:
            return super().compared(metric, measured, truth)
        answers = measured[:, 0] if truth.ndim == 1 and measured.shape[1:] == (1,) else measured
        if metric.response_method == "predict":
            return self.as_cells(truth), self.as_cells(self.decide(answers))
        if not self.labels:
            raise ConfigError(
                f"trainer.metric: {metric.name} takes probabilities, which the task {self.name} does not have",
                do="leave response_method out",
                column=self.target,
            )
        return self.as_cells(truth), self.probabilities(answers)

    def as_cells(self, values: np.ndarray) -> np.ndarray:
        """Return truth or decisions in the form that a metric's function takes: labels for class indices."""
        return values

    def probabilities(self, answers: np.ndarray) -> np.ndarray:
        """Return answers as the probabilities that a metric's function takes, (rows,) or (rows, labels)."""
        return answers

    @classmethod
    @abc.abstractmethod
    def from_state(cls, target: str, state: dict[str, Any]) -> TargetTask:
        """Restore a task from its `state()`."""


def family_of(tasks: Mapping[str, Task]) -> str:
    """Return the family of models that has the answers of all these tasks; at least one."""
    families = {task.family for task in tasks.values()}
    assert len(families) == 1, f"tasks of one family, not of {sorted(families)}"
    return families.pop()


def target_tasks(tasks: Mapping[str, Task]) -> dict[str, TargetTask]:
    """Return those of the tasks that predict a target column."""
    return {name: task for name, task in tasks.items() if isinstance(task, TargetTask)}
