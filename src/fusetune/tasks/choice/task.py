"""Multiple choice: which of a row's own choices is right."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fusetune.data.schema import Schema
from fusetune.data.table import Table
from fusetune.errors import ConfigError, TableError, nearest
from fusetune.modalities.base import Detection
from fusetune.tasks.abilities import Choosing, DetectedInTable, Divergent, Guess
from fusetune.tasks.base import Metric
from fusetune.tasks.choice.cells import (
    FORMS,
    Answered,
    Form,
    Right,
    answered,
    check_answer,
    find_form,
    has_equal,
    letter,
    position_of,
    real_choices,
)
from fusetune.tasks.choice.columns import find_choices, find_context
from fusetune.tasks.choice.detect import detect_choices
from fusetune.tasks.choice.scores import MEANINGS, Scores, measure, metrics_of, row_probabilities
from fusetune.tasks.divergence import positions_divergence
from fusetune.tasks.panels.choices import calibration, choices_section, errors_section, positions_panel, worst_choices
from fusetune.tasks.panels.kinds import Evidence, Panel, Section, WorstRows
from fusetune.tasks.reading import Reading
from fusetune.tasks.state import restored, state_of
from fusetune.tasks.token_task import TokenTask
from fusetune.types import Target, TextTokens

PADDING = -1
"""The target of a choice that is none."""
OPTIONS = ("choices", "context", "form")
FITTED = ("form_used", "why", "choice_columns", "num_before", "counts", "doubled")


class MultipleChoiceTask(TokenTask, Divergent, DetectedInTable, Choosing):
    """Choose the right one of a row's own choices. Main metric: accuracy.

    The choices are several columns, or one column of lists with any number a row; blank choices are none. Each is read
    together with the context, as one sequence, and gets a score; the softmax over a row's choices are their
    probabilities. All other columns are fused into every choice.

    Args:
        target: the target column's name. Its cells name the right choice: by its index, letter or text, or by the
            name of its column.
        choices: the columns of the choices, or a column of lists. None: a series such as answerA, answerB, or a column
            called choices, options, endings or the like.
        context: the columns that are read with every choice; the last of several is read beside it, as a question. []
            for none. None: those called context, passage and the like and question, query and the like, else the only
            other text.
        form: how the answers name a choice: "letter", "index0" (counted from 0), "index1", "text" or "column". None:
            the form that fits the most train rows.

    Raises:
        ConfigError: an option has a value that it does not take.

    Loss: cross-entropy over a row's choices.

    Answers: per row `Scores`, the probabilities of its choices and their texts.

    Requires: two choices or more in every labelled row, of different texts.

    Relations: `multiclass` chooses among labels that all rows share; `answer` finds a part of a text.

    Example:
        >>> task = MultipleChoiceTask("correct")
        >>> rows = [task.resolve(value, [["a cat", "a dog"]], row=0) for value in ("A", "B")]
        >>> task.fit(rows)
        >>> task.form_used, task.truth(rows)[1].position
        ('letter', 1)

    Reference: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", section 3.3; Zellers
    et al. 2018 (arXiv 1808.05326).
    """

    name = "choice"
    main = Metric("accuracy")
    constant_is = "the position that is right in the most train rows"

    def __init__(
        self,
        target: str,
        *,
        choices: str | list[str] | None = None,
        context: str | list[str] | None = None,
        form: Literal["text", "letter", "index0", "index1", "column"] | None = None,
    ) -> None:
        super().__init__(target)
        if form is not None and form not in FORMS:
            raise ConfigError("form is how answers name a choice", expected=", ".join(FORMS), came=str(form))
        self.choices = [choices] if isinstance(choices, str) else choices
        self.context = [context] if isinstance(context, str) else context
        self.form = form
        self.form_used: Form = form or "index0"
        self.why = ""
        self.choice_columns: list[str] = []
        self.num_before = 0
        self.counts: list[int] = []
        self.doubled = 0

    @classmethod
    def detect(cls, values: Sequence[Any]) -> Detection:
        """Rate the cells: nothing to see in them alone; see `detect_in`."""
        return Detection(0.0, "choices are in other columns")

    @classmethod
    def detect_in(cls, table: Table, target: str) -> Detection:
        """Sure where columns have the names of choices, and nearly all answers name one of their row's choices."""
        return detect_choices(table, target)

    def reading(self, schema: Schema) -> Reading:
        """Return the context and the choices, each choice read as one sequence with the context.

        Raises:
            ConfigError: there are no such columns, or it is not clear which they are.
        """
        free = [name for name, spec in schema.columns.items() if spec.role in ("input", "id", "ignore")]
        choices, why = self._named(schema, "choices", self.choices), "as tasks say"
        if choices is None:
            found = find_choices(free)
            if found is None:
                raise ConfigError(
                    f"the task {self.name} of {self.target!r} finds no columns of choices by their names",
                    expected="columns such as answerA, answerB, or one of lists such as choices",
                    came=", ".join(free) or "no other column",
                    do=f"name them: tasks.{self.target}.choices=[COLUMN, COLUMN]",
                )
            choices, why = list(found.names), found.reason
        context = self._named(schema, "context", self.context)
        if context is None:
            rest = {name: schema.columns[name].kind for name in schema.names("input") if name not in choices}
            usual = find_context(rest)
            if usual is None:
                raise ConfigError(
                    f"the task {self.name} of {self.target!r} does not find which texts are read with the choices",
                    came=", ".join(name for name, kind in rest.items() if kind == "text"),
                    do=f"name them: tasks.{self.target}.context=[COLUMN, COLUMN]; [] for none",
                )
            context = list(usual)
        if twice := [name for name in context if name in choices]:
            raise ConfigError(
                f"tasks.{self.target}: {twice[0]!r} is among the choices and the context", do="name it once"
            )
        self.choice_columns, self.num_before = choices, len(context)
        return Reading(tuple(context), "choices", choices=tuple(choices), reason=why)

    def _named(self, schema: Schema, option: str, names: list[str] | None) -> list[str] | None:
        """Return the columns that an option names, None if it names none.

        Raises:
            ConfigError: there is no such column, or it is a target.
        """
        for name in names or ():
            role = schema.columns[name].role if name in schema.columns else "no column"
            if role not in ("input", "id", "ignore"):
                raise ConfigError(
                    f"tasks.{self.target}.{option} names {name!r}: {role}",
                    expected=", ".join(column for column in schema.columns if column != self.target),
                    do=nearest(name, schema.columns),
                )
        if option == "choices" and names is not None and not names:
            raise ConfigError(f"tasks.{self.target}.choices names no column", do="name the columns of the choices")
        return names

    def resolve(self, value: Any, cell: Any, *, row: int) -> Answered:
        """Return the answer with its row's choices.

        Raises:
            BadCell: the row has no choices.
        """
        return answered(value, cell, num_before=self.num_before, row=row, column=self.target)

    def fit(self, values: Sequence[Any]) -> None:
        """Learn how answers name a choice, and how often each position is right.

        Raises:
            TableError: the answers are none of the choices, or it is not clear how they name one.
        """
        known = [value for value in values if value is not None]
        if not known:
            do = "name another target column, or fill this one"
            raise TableError("no train row has an answer and choices", column=self.target, do=do)
        if self.form is None:
            found = find_form(known, self.choice_columns, target=self.target)
            self.form_used, self.why = found.form, found.reason
        places = Counter(place for value in known if (place := self._position(value)) is not None)
        self.counts = [places[position] for position in range(max(places, default=-1) + 1)]
        self.doubled = sum(has_equal(value.choices) for value in known)

    def _position(self, value: Answered) -> int | None:
        return position_of(value.value, value.choices, self.form_used, self.choice_columns)

    def check(self, value: Any, *, row: int) -> None:
        """Refuse an answer that names no choice of its row, or one of two equal choices, and a row with one choice.

        Raises:
            BadCell: with the choices that there are.
        """
        check_answer(value, self.form_used, self.choice_columns, row=row, column=self.target)

    def encode(self, values: Sequence[Any], tokens: TextTokens | None = None) -> Target:
        """Encode as marks, (rows, choices) int64: 1 for the right choice, 0 for others, -1 at padding; no blanks."""
        assert tokens is not None, "choices are texts"
        marks = np.zeros(tokens.real.shape, dtype=np.int64)
        for row, value in enumerate(values):
            if value is not None:
                marks[row] = tokens.spans[row, :, 0] == self._position(value)
        marks[~tokens.real] = PADDING
        labelled = np.array([value is not None for value in values], dtype=bool) & (marks == 1).any(1)
        return Target(torch.from_numpy(marks), torch.from_numpy(labelled))

    def build_head(self, dim: int) -> nn.Module:
        """Build (batch, choices, dim) to (batch, choices, 1)."""
        return nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, 1))

    def terms(self, logits: Tensor, target: Target) -> Tensor:
        """Return each row's cross-entropy over its choices, (batch,).

        Args:
            logits: (batch, choices, 1).
            target: marks, (batch, choices) int64.
        """
        lowest = torch.finfo(logits.dtype).min / 2
        real = logits.squeeze(2).masked_fill(target.values == PADDING, lowest)
        right = logits.squeeze(2).masked_fill(target.values != 1, lowest)
        return (real.logsumexp(1) - right.logsumexp(1)).masked_fill(~target.labelled, 0)

    def divergence(self, logits: Tensor, other: Tensor, real: Tensor | None = None) -> Tensor:
        """Return the Kullback-Leibler divergence over a row's choices in nats, (batch,)."""
        assert real is not None, "choices have places"
        return positions_divergence(logits, other, real)

    def answers(self, logits: Tensor, tokens: TextTokens | None = None) -> np.ndarray:
        """Return an array of `Scores`; a row without choices has none."""
        assert tokens is not None, "choices are texts"
        rows = []
        for own, spans, real, texts in zip(
            logits.detach().double().cpu().squeeze(2), tokens.spans, tokens.real, tokens.texts, strict=True
        ):
            choices = tuple(texts[self.num_before :])
            probabilities = np.full(len(choices), np.nan)
            if real.any():
                probabilities[spans[real, 0]] = own[torch.from_numpy(real)].softmax(0).numpy()
            rows.append(Scores(probabilities, choices))
        return _array(rows)

    def example_answers(self, logits: Tensor) -> np.ndarray:
        """See `TargetTask.example_answers`."""
        columns = max(2, len(self.choice_columns))
        return _array([Scores(np.full(columns, 1 / columns), ("a",) * columns)])

    def truth(self, values: Sequence[Any]) -> np.ndarray:
        """Return an array of `Right`."""
        rows = []
        for value in values:
            position = self._position(value)
            assert position is not None, "an answer was not checked"
            rows.append(Right(position, value.choices))
        return _array(rows)

    def measured(self, answers: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """See `fusetune.tasks.choice_scores.measure`, (rows, 4)."""
        return measure(answers, truth)

    def metrics(self, measured: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
        """Return accuracy, adjusted_accuracy, log_loss and brier; see `fusetune.tasks.choice_scores.metrics_of`."""
        return metrics_of(measured, weights)

    @property
    def meanings(self) -> Mapping[str, str]:
        """See `Task.meanings`."""
        return {**super().meanings, **MEANINGS}

    def constant(self, truth: np.ndarray, rows: int) -> np.ndarray:
        """Return how often each position is right in `truth`, for every row."""
        counts = np.bincount([right.position for right in truth], minlength=2).astype(float)
        rates = Scores(counts / counts.sum() if counts.any() else np.full(2, 0.5), ())
        return _array([rates] * rows)

    def perfect(self, truth: np.ndarray) -> np.ndarray:
        """Return probability 1 of the right choice."""
        return _array([Scores(np.eye(len(right.choices))[right.position], right.choices) for right in truth])

    def example(self, values: Sequence[Any]) -> str:
        """Fit on these rows, and return the first with a right choice: its choices, the right one, and the form."""
        self.fit(values)
        for value in values:
            if (right := self._position(value)) is not None:
                texts = " | ".join(f"{letter(place)}: {value.choices[place]}" for place in real_choices(value.choices))
                return f"{texts}; right is {letter(right)}" + (f" ({self.why})" if self.why else "")
        return "no answer names a choice"

    def guesses(self, train: np.ndarray, truth: np.ndarray) -> list[Guess]:
        """Return the longest choice of each row."""
        rate = float(np.mean([right.longest == right.position for right in train])) if len(train) else math.nan
        what = f"the choice with the most characters, right in {100 * rate:.0f}% of the train rows"
        rows = []
        for right in truth:
            others = max(len(right.real) - 1, 1)
            share = np.clip(rate, 1.001 / (others + 1), 1 - 1e-6)  # above the others, so that it is the answer
            scores = np.full(len(right.choices), (1 - share) / others)
            scores[right.longest] = share
            rows.append(Scores(scores, right.choices))
        return [Guess("longest choice", what, _array(rows))]

    def texts(self, tokens: TextTokens) -> list[tuple[str, list[str]]]:
        """Return each row's context as one text, and its choices, "" for blank ones."""
        num = self.num_before
        return [(" ".join(text for text in row[:num] if text), list(row[num:])) for row in tokens.texts]

    def from_scores(self, scores: Sequence[np.ndarray], tokens: TextTokens) -> np.ndarray:
        """Return the answers whose logits are these; NaN for blank choices."""
        rows = [
            Scores(row_probabilities(own), tuple(texts[self.num_before :]))
            for own, texts in zip(scores, tokens.texts, strict=True)
        ]
        return _array(rows)

    def columns(self, answers: np.ndarray) -> dict[str, list[Any]]:
        """Return the chosen one in the form of the target, its text and probability, and all probabilities."""
        chosen = [answer.chosen for answer in answers]
        pairs = list(zip(answers, chosen, strict=True))
        return {
            self.target: [self._named_as(answer) for answer in answers],
            f"{self.target}_text": [answer.text for answer in answers],
            f"{self.target}_probability": [
                None if place is None else float(answer.probabilities[place]) for answer, place in pairs
            ],
            f"{self.target}_scores": [
                [None if math.isnan(value) else float(value) for value in answer.probabilities] for answer in answers
            ],
        }

    def _named_as(self, answer: Scores) -> int | str | None:
        """Return the chosen one in the form in which the target's cells name it."""
        position = answer.chosen
        if position is None or self.form_used == "text":
            return answer.text
        if self.form_used in ("index0", "index1"):
            return position + (self.form_used == "index1")
        if self.form_used == "column" and position < len(self.choice_columns):
            return self.choice_columns[position]
        return letter(position)

    def target_panels(self, truths: Mapping[str, np.ndarray]) -> list[Panel]:
        """Return how often each position is right, by split."""
        return [positions_panel(truths, self.why)]

    def panels(self, evidence: Evidence) -> list[Section]:
        """Return the accuracy by position and number of choices, errors with all choices, and calibration."""
        return [choices_section(evidence), *errors_section(evidence, self.num_before), calibration(evidence)]

    def warnings(self, answers: np.ndarray, truth: np.ndarray) -> list[str]:
        """Return a warning of train rows with equal choices."""
        if not self.doubled:
            return []
        rows = "1 train row has" if self.doubled == 1 else f"{self.doubled:,} train rows have"
        return [f"{rows} choices with the same text beside {self.target!r}"]

    def worst(self, answers: np.ndarray, truth: np.ndarray, num: int) -> WorstRows:
        """Return the wrong rows with the highest log loss, in turn from the positions of the right choice."""
        return worst_choices(answers, truth, num)

    def state(self) -> dict[str, Any]:
        """Return options, the form of the answers, the columns and counts."""
        return state_of(self, OPTIONS, FITTED)

    @classmethod
    def from_state(cls, target: str, state: dict[str, Any]) -> MultipleChoiceTask:
        """Restore a task from its `state()`."""
        return restored(cls(target, **state["options"]), FITTED, state)


def _array(rows: Sequence[Any]) -> np.ndarray:
    """Return (rows,) of dtype object."""
    made = np.empty(len(rows), dtype=object)
    for row, value in enumerate(rows):
        made[row] = value
    return made
