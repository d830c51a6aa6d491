"""Extractive question answering: the part of a context that answers a question, or none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fusetune.data.schema import Schema
from fusetune.errors import ConfigError, TableError, nearest
from fusetune.modalities.base import Detection
from fusetune.modalities.words import words_text
from fusetune.tasks.abilities import Divergent, Thresholded
from fusetune.tasks.answers.cells import Gold, gold, is_answer_dict, parsed
from fusetune.tasks.answers.squad import MEANINGS, best_spans, best_threshold, check_language, scores
from fusetune.tasks.base import Metric
from fusetune.tasks.divergence import positions_divergence
from fusetune.tasks.panels.answers import answers_section, margin_section, rows_panel, worst_answers
from fusetune.tasks.panels.kinds import Evidence, Panel, Section, WorstRows
from fusetune.tasks.reading import Reading
from fusetune.tasks.state import restored, state_of
from fusetune.tasks.token_task import TokenTask
from fusetune.types import Target, TextTokens

QUESTIONS = ("question", "query")
CONTEXTS = ("context", "passage", "paragraph", "document")
"""Names of columns that are taken for the question and for the context."""
PADDING = -1
"""The target of a token that is none."""
OPTIONS = ("question", "context", "start", "empty", "threshold", "max_length", "num_best", "language")
FITTED = ("second", "threshold_used", "longest", "answerable", "unanswerable", "repeated")


class AnswerTask(TokenTask, Divergent, Thresholded):
    """Find the part of a context that answers a question, or that there is none. Main metric: f1.

    A cell is the answer's text, `{"text": ["in Rome"], "answer_start": [12]}` as in SQuAD, the same with one value
    each, or a list of several right answers; also as JSON. Starts count characters of the context. A text without its
    start is found in the context, at its first occurrence. No answer is an empty list, or an empty cell with the start
    -1. The question and the context are read as one sequence, long contexts in overlapping windows.

    Args:
        target: the target column's name.
        question: the question's column. None: the one called question or query, else the only other text.
        context: the context's column. None: the one called context, passage, paragraph or document, else the only
            other text.
        start: the column of the answer's first character, counted from 0, -1 for no answer. None: the one called
            TARGET_start, answer_start or start, if there is one.
        empty: what an empty cell means where no column of starts says it: "unlabelled" or "no_answer".
        threshold: a row has no answer if log(p(no answer) / p(best span)) is above it. "tuned": the value with the
            best main metric on validation rows.
        max_length: the most characters of an answer, 1 or more. None: those of the longest train answer.
        num_best: the number of best spans in the output table, 1 or more.
        language: whose articles are left out when answers are compared: "en", "de", "es", or "none".

    Raises:
        ConfigError: an option has a value that it does not take.

    Loss: the mean of two cross-entropies over the context's tokens and one that stands for no answer: of the answer's
    first token and of its last. With several right answers, of the probability of any of them.

    Answers: per row `{"text", "start", "end", "score", "no_answer", "margin", "best"}` of the best span: `score` is
    p(start) · p(end), `no_answer` the same of the token for no answer, `margin` the logarithm of their ratio,
    `best` the best spans. A row has no answer if its margin is above a threshold, chosen on validation rows.

    Requires: two text columns, the question and the context.

    Relations: `multiclass` chooses among answers that all rows share; `entities` finds any number of parts of a text.

    Example:
        >>> task = AnswerTask("answer")
        >>> task.resolve("Rome", ["Where was Ada?", "Ada was in Rome."], row=0)
        Gold(texts=('Rome',), spans=((11, 15),), repeated=False)

    Reference: Devlin et al. 2019 (arXiv 1810.04805), section 4.3; Rajpurkar et al. 2018 (arXiv 1806.03822); Clark and
    Gardner 2018 (arXiv 1710.10723) for one softmax over all of a row's windows.
    """

    name = "answer"
    main = Metric("f1")
    constant_is = "no answer"

    def __init__(
        self,
        target: str,
        *,
        question: str | None = None,
        context: str | None = None,
        start: str | None = None,
        empty: Literal["unlabelled", "no_answer"] = "unlabelled",
        threshold: float | Literal["tuned"] = "tuned",
        max_length: int | None = None,
        num_best: int = 3,
        language: str = "en",
    ) -> None:
        super().__init__(target)
        if empty not in ("unlabelled", "no_answer"):
            raise ConfigError("empty says what an empty cell means", expected="unlabelled or no_answer", came=empty)
        if threshold != "tuned" and not (isinstance(threshold, int | float) and math.isfinite(threshold)):
            raise ConfigError("threshold is a logarithm", expected="tuned or a number", came=str(threshold))
        for name, value in (("max_length", 1 if max_length is None else max_length), ("num_best", num_best)):
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is a whole number", expected="1 or more", came=str(value))
        self.question, self.context, self.start, self.empty = question, context, start, empty
        self.threshold, self.max_length, self.num_best = threshold, max_length, num_best
        self.language = check_language(language)
        self.empty_is_value = empty == "no_answer"
        self.threshold_used = 0.0 if threshold == "tuned" else float(threshold)
        self.longest = max_length or 0
        self.answerable = self.unanswerable = self.repeated = 0

    @classmethod
    def detect(cls, values: Sequence[Any]) -> Detection:
        """Sure of answers with starts, as SQuAD has them."""
        cells = [parsed(value) for value in values]
        entries = [entry for cell in cells for entry in (cell if isinstance(cell, list) else [cell])]
        if entries and all(map(is_answer_dict, entries)):
            return Detection(0.99, f"answers with their starts, in {len(values)} cells")
        return Detection(0.0, "the cells are no answers with starts")

    def reading(self, schema: Schema) -> Reading:
        """Return the question and the context, read as one sequence, and the column of the starts, if any."""
        question = self._column(schema, "question", self.question, QUESTIONS)
        context = self._column(schema, "context", self.context, CONTEXTS)
        texts = [name for name, spec in schema.columns.items() if spec.role == "input" and spec.kind == "text"]
        question = question or _only(texts, context)
        context = context or _only(texts, question)
        if question is None or context is None or question == context:
            raise ConfigError(
                f"the task {self.name} of {self.target!r} reads a question and a context",
                came=f"the text columns {', '.join(texts)}" if texts else "no text column",
                do=f"name them: tasks.{self.target}.question=COLUMN and tasks.{self.target}.context=COLUMN",
            )
        self.second = self._column(schema, "start", self.start, (f"{self.target}_start", "answer_start", "start"))
        return Reading((question, context), "answer", also=(self.second,) if self.second else ())

    def _column(self, schema: Schema, option: str, name: str | None, usual: Sequence[str]) -> str | None:
        """Return the column that an option names, or the first with a usual name; None without one."""
        if name is not None and name not in schema.columns:
            raise ConfigError(
                f"tasks.{self.target}.{option}={name} names no column",
                expected=", ".join(column for column in schema.columns if column != self.target),
                do=nearest(name, schema.columns),
            )
        known = {column.casefold(): column for column, spec in schema.columns.items() if spec.role != "target"}
        return name or next((known[usual_name] for usual_name in usual if usual_name in known), None)

    def resolve(self, value: Any, cell: Any, *, row: int) -> Gold:
        """Return the right answers.

        Args:
            value: the answer's cell, or the pair of it and the start's cell, if there is a column of starts.
            cell: the question and the context; None for a row without both.
            row: for errors.

        Raises:
            BadCell: the answer is not in the context, or not at its start.
        """
        value, start = value if self.second is not None else (value, None)
        context = words_text(cell[1], row=row, column=self.target) if cell else ""
        return gold(value, start, context, row=row, column=self.target)

    def fit(self, values: Sequence[Any]) -> None:
        """Learn the longest answer, and whether there are rows without one.

        Raises:
            TableError: no row has an answer.
        """
        known = [value for value in values if value is not None]
        self.answerable = sum(bool(value.texts) for value in known)
        self.unanswerable = len(known) - self.answerable
        self.repeated = sum(value.repeated for value in known)
        if not self.answerable:
            do = "give rows with an answer that is a part of the context"
            raise TableError("no train row has an answer", column=self.target, do=do)
        lengths = [end - start for value in known for start, end in value.spans]
        self.longest = self.max_length or max(lengths)

    def check(self, value: Any, *, row: int) -> None:
        """Accept every answer that `resolve` returns."""

    def encode(self, values: Sequence[Any], tokens: TextTokens | None = None) -> Target:
        """Encode as marks, (rows, tokens, 2) int64: 1 at an answer's first and last token, else 0; -1 at padding.

        The first token is marked in a row without an answer. A row is unlabelled if its answer has no token.
        """
        assert tokens is not None, "answers are found in a text"
        marks = np.zeros((*tokens.real.shape, 2), dtype=np.int64)
        for row, value in enumerate(values):
            if value is not None and not value.texts:
                marks[row, 0] = 1
            for begin, end in () if value is None else value.spans:
                own = tokens.spans[row]
                inside = np.flatnonzero((own[:, 0] >= 0) & (own[:, 1] < end) & (own[:, 2] > begin))
                if len(inside):
                    marks[row, inside[0], 0] = marks[row, inside[-1], 1] = 1
        marks[~tokens.real] = PADDING
        labelled = torch.tensor([value is not None for value in values], dtype=torch.bool)
        return Target(torch.from_numpy(marks), labelled & torch.from_numpy((marks == 1).any((1, 2))))

    def build_head(self, dim: int) -> nn.Module:
        """Build (batch, tokens, dim) to (batch, tokens, 2): start and end."""
        return nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, 2))

    def terms(self, logits: Tensor, target: Target) -> Tensor:
        """Return the mean of the start's and the end's cross-entropy, (batch,).

        Args:
            logits: (batch, tokens, 2).
            target: marks, (batch, tokens, 2) int64.
        """
        lowest = torch.finfo(logits.dtype).min / 2
        real = logits.masked_fill(target.values == PADDING, lowest)
        right = logits.masked_fill(target.values != 1, lowest)
        return (real.logsumexp(1) - right.logsumexp(1)).mean(1).masked_fill(~target.labelled, 0)

    def divergence(self, logits: Tensor, other: Tensor, real: Tensor | None = None) -> Tensor:
        """Return the mean of the start's and the end's Kullback-Leibler divergence over tokens in nats, (batch,)."""
        assert real is not None, "answers are found among tokens"
        return positions_divergence(logits, other, real)

    def answers(self, logits: Tensor, tokens: TextTokens | None = None) -> np.ndarray:
        """Return the rows' best spans, an array of dicts; see the class."""
        assert tokens is not None, "answers are found in a text"
        real = torch.from_numpy(tokens.real).unsqueeze(2)
        logs = logits.detach().double().cpu().masked_fill(~real, -1e9).log_softmax(1).numpy()
        found = np.empty(len(logs), dtype=object)
        for row, (own, spans) in enumerate(zip(logs, tokens.spans, strict=True)):
            places = np.flatnonzero(spans[:, 0] >= 0)
            text = tokens.texts[row][-1] if len(places) and len(tokens.texts[row]) else ""
            best = best_spans(own[places], spans[places, 1:], longest=self.longest or len(text), num=self.num_best)
            found[row] = _answer(float(own[0].sum()), best, text)
        return found

    def example_answers(self, logits: Tensor) -> np.ndarray:
        """See `TargetTask.example_answers`."""
        return _array([_answer(-1.0, [(-1.0, 0, 1)], "a")])

    def truth(self, values: Sequence[Any]) -> np.ndarray:
        """Return an array of `Gold`."""
        return _array(list(values))

    def decide(self, answers: np.ndarray) -> np.ndarray:
        """Return the answers as text, "" for no answer, an array of dtype object."""
        return _array(["" if self._silent(answer) else answer["text"] for answer in answers])

    def _silent(self, answer: dict[str, Any]) -> bool:
        return answer["start"] < 0 or (self.has_unanswerable and answer["margin"] > self.threshold_used)

    @property
    def has_unanswerable(self) -> bool:
        """Whether train rows without an answer were seen; else every row with a context is answered."""
        return self.unanswerable > 0

    def tune(self, answers: np.ndarray, truth: np.ndarray) -> None:
        """Choose the threshold with the best main metric on these validation rows, unless the settings fix it."""
        rows = [row for row, answer in enumerate(answers) if answer["start"] >= 0]
        if self.threshold != "tuned" or not self.has_unanswerable or not rows:
            return
        which = 0 if self.main.name.startswith("exact_match") else 1
        self.threshold_used = best_threshold(
            np.array([answers[row]["margin"] for row in rows]),
            np.array([scores(answers[row]["text"], truth[row].texts, self.language)[which] for row in rows]),
            np.array([float(not truth[row].texts) for row in rows]),
        )

    def measured(self, answers: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Return exact match, F1, and whether the row has an answer, (rows, 3)."""
        pairs = zip(self.decide(answers), truth, strict=True)
        rows = [(*scores(text, right.texts, self.language), float(bool(right.texts))) for text, right in pairs]
        return np.array(rows, dtype=float).reshape(len(rows), 3)

    def metrics(self, measured: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
        """Return SQuAD's F1 and exact match; with unanswerable train rows, also apart by whether there is an answer."""
        weights = np.ones(len(measured)) if weights is None else weights
        exact, f1, has = measured.T
        found = {"f1": _mean(f1, weights), "exact_match": _mean(exact, weights)}
        if self.has_unanswerable:
            found["f1_answerable"] = _mean(f1, weights * has)
            found["exact_match_answerable"] = _mean(exact, weights * has)
            found["f1_unanswerable"] = _mean(f1, weights * (1 - has))
        return found

    @property
    def meanings(self) -> Mapping[str, str]:
        """See `Task.meanings`."""
        return {**super().meanings, **MEANINGS}

    def constant(self, truth: np.ndarray, rows: int) -> np.ndarray:
        """Return no answer for every row."""
        return _array([_answer(0.0, [], "") for _ in range(rows)])

    def perfect(self, truth: np.ndarray) -> np.ndarray:
        """Return the first right answer of each row."""
        rows = []
        for right in truth:
            rows.append(_answer(-1e9 if right.texts else 0.0, [(0.0, *span) for span in right.spans[:1]], ""))
            rows[-1]["text"] = right.texts[0] if right.texts else ""
        return _array(rows)

    def columns(self, answers: np.ndarray) -> dict[str, list[Any]]:
        """Return the answer's text, "" for none, its place, its probability, that of no answer, and the best spans."""
        silent = [self._silent(answer) for answer in answers]
        pairs = list(zip(answers, silent, strict=True))
        return {
            self.target: list(self.decide(answers)),
            f"{self.target}_start": [-1 if none else answer["start"] for answer, none in pairs],
            f"{self.target}_end": [-1 if none else answer["end"] for answer, none in pairs],
            f"{self.target}_score": [answer["no_answer" if none else "score"] for answer, none in pairs],
            f"{self.target}_no_answer": [answer["no_answer"] for answer in answers],
            f"{self.target}_best": [answer["best"] for answer in answers],
        }

    def target_panels(self, truths: Mapping[str, np.ndarray]) -> list[Panel]:
        """Return a table of the rows with and without an answer, by split."""
        return [rows_panel(truths)]

    def panels(self, evidence: Evidence) -> list[Section]:
        """Return a table of some answers, and histograms of the margin of no answer."""
        given, measured = self.decide(evidence.answers), self.measured(evidence.answers, evidence.truth)
        sections = [answers_section(evidence, given, measured[:, 1])]
        if self.has_unanswerable:
            sections.append(margin_section(evidence.answers, measured[:, 2] > 0, self.threshold_used))
        return sections

    def warnings(self, answers: np.ndarray, truth: np.ndarray) -> list[str]:
        """Return a warning of train answers that occur several times."""
        if not self.repeated:
            return []
        return [
            f"{self.repeated:,} of {self.answerable:,} train answers of {self.target!r} occur several times in their "
            "context and have no start; the first occurrence was learned"
        ]

    def worst(self, answers: np.ndarray, truth: np.ndarray, num: int) -> WorstRows:
        """Return the wrong rows with the surest answers, in turn from the kinds of error."""
        sure = np.array([answer["no_answer" if self._silent(answer) else "score"] for answer in answers], dtype=float)
        return worst_answers(self.decide(answers), truth, sure, self.measured(answers, truth)[:, 1], num)

    def state(self) -> dict[str, Any]:
        """Return options, the threshold, the longest answer and counts."""
        return state_of(self, OPTIONS, FITTED)

    @classmethod
    def from_state(cls, target: str, state: dict[str, Any]) -> AnswerTask:
        """Restore a task from its `state()`."""
        return restored(cls(target, **state["options"]), FITTED, state)


def _only(texts: Sequence[str], other: str | None) -> str | None:
    """Return the only text column besides another; None if there are several, or there is no other."""
    rest = [name for name in texts if name != other]
    return rest[0] if other is not None and len(rest) == 1 else None


def _answer(none: float, spans: Sequence[tuple[float, int, int]], text: str) -> dict[str, Any]:
    """Return a row's answer.

    Args:
        none: the logarithm of the probability of no answer.
        spans: as `best_spans` returns them.
        text: the context.
    """
    best = [
        {"text": text[start:end], "start": start, "end": end, "score": math.exp(score)} for score, start, end in spans
    ]
    margin = none - spans[0][0] if spans else 0.0
    first = best[0] if best else {"text": "", "start": -1, "end": -1, "score": 0.0}
    return {**first, "no_answer": math.exp(none), "margin": margin, "best": best}


def _array(rows: Sequence[Any]) -> np.ndarray:
    """Return (rows,) of dtype object."""
    found = np.empty(len(rows), dtype=object)
    for row, value in enumerate(rows):
        found[row] = value
    return found


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    return float((values * weights).sum() / weights.sum()) if weights.sum() else math.nan
