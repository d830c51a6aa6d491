"""Text that a language model writes: translations, summaries, answers, captions, dialogue."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusetune.data.table import is_missing
from fusetune.errors import BadCell, ConfigError, TableError
from fusetune.modalities.base import Detection
from fusetune.modalities.messages import is_chat, last_turn, parse_messages
from fusetune.modalities.profile import plain, profile_cells
from fusetune.modalities.words import check_text, is_blank
from fusetune.tasks.abilities import ShowsChange, Summed, Writes
from fusetune.tasks.base import Metric
from fusetune.tasks.metrics import LOWER_IS_BETTER
from fusetune.tasks.panels.kinds import ChangedRows, Evidence, Panel, Section, WorstRows
from fusetune.tasks.panels.written import changed_rows, most_frequent, sizes_panel, worst_written, written_sections
from fusetune.tasks.state import restored, state_of
from fusetune.tasks.text.metrics.choose import in_order, main_metric
from fusetune.tasks.text.metrics.table import metrics_of, row_counts
from fusetune.types import Target, TextTokens

MIN_WORDS = 4
"""Words of each text, on average, by which lists of texts are told from lists of labels."""
LEARNED = ("prompt", "max_tokens", "choice", "chats")
CHATS = 0.9
"""Least confidence that cells are chats."""


class GenerateTask(Writes, ShowsChange, Summed):
    """Text that a language model writes.

    A cell is a text, or a list of texts that are equally right, the first of which is learned; or a chat, whose last
    turn, the assistant's, is learned.

    Args:
        template: of the prompt, as `Translate to German: {en}`; None for that of the settings.
        label_smoothing: ε in [0, 1): share of each token's probability that is spread over the vocabulary.

    Loss: −Σ log p(token | prompt, tokens before) over an answer's tokens and its end; the mean over rows is that of
    tokens. With label smoothing a token's loss is (1 − ε) · (−log p) + ε · mean −log p over the vocabulary.

    Answers: (rows,) texts, of dtype object; a truth is a text or a list of texts.

    Requires: a language model that writes (`text=FOLDER`), and columns for its prompt, or chats.

    Relations: `answer` finds spans of a text and `choice` chooses among texts, both with an encoder; `multiclass` is
    for labels that repeat.

    Example:
        >>> task = GenerateTask("de")
        >>> truth = task.truth(["ein Hund", ["eine Katze", "die Katze"]])
        >>> task.evaluate(np.array(["ein Hund", "die Katze"], dtype=object), truth)["exact_match"]
        1.0

    Reference: Sutskever et al. 2014 (arXiv 1409.3215), sequences from sequences; Szegedy et al. 2016 (arXiv
    1512.00567), label smoothing.
    """

    name = "generate"
    family = "generate"
    constant_is = "the most frequent answer"

    def __init__(self, target: str, *, template: str | None = None, label_smoothing: float = 0.0) -> None:
        """
        Args:
            target: the column's name.

        For the other arguments see the class.

        Raises:
            ConfigError: an option is out of range.
        """
        super().__init__(target)
        if not 0 <= label_smoothing < 1:
            what = f"tasks.{target}.label_smoothing is a share"
            raise ConfigError(what, expected="from 0 to below 1", came=str(label_smoothing))
        self.template, self.label_smoothing = template, label_smoothing
        self.prompt, self.max_tokens, self.choice = "", 0, ""
        self.main = Metric("chrf", True)
        self._encode: Callable[[str], list[int]] | None = None
        self._most, self._fixed = 0, False
        self._earlier: Callable[[Any], list[int]] | None = None

    @classmethod
    def detect(cls, values: Sequence[Any]) -> Detection:
        """Rate the cells: texts of several words, most of which differ, or lists of such texts."""
        if (chats := is_chat(values)).confidence >= CHATS:
            return chats
        texts = [text for value in values for text in references(value)[:1]]
        if len(texts) < len(values):
            return Detection(0.0, "the cells are no texts")
        profile = profile_cells(texts)
        why = f"{profile.num_distinct} distinct texts in {profile.num} cells, {profile.words:.1f} words each"
        if not any(isinstance(value, str) for value in values):  # several texts a row, which labels would repeat
            return Detection(0.98 if profile.words >= MIN_WORDS and profile.distinct >= 0.9 else 0.1, why)
        if profile.numbers >= 0.5 or profile.words < 1.5 or profile.distinct < 0.5:
            return Detection(0.05, why)
        return Detection(0.6, why)

    def look(self, values: Sequence[Any]) -> None:
        """See `Writes.look`."""
        self.chats = is_chat(values).confidence >= CHATS

    def _texts(self, value: Any, *, row: int = 0) -> list[str]:
        """Return the right answers of a cell; none if it has no text.

        Raises:
            BadCell: it is a chat that does not end with an answer.
        """
        if not self.chats or is_missing(value):
            return references(value)
        messages = parse_messages(value, row=row, column=self.target)
        return references(last_turn(messages, row=row, column=self.target)[1])

    def _readable(self, value: Any) -> list[str]:
        """Return the right answers of a cell; none if it cannot be read."""
        try:
            return self._texts(value)
        except BadCell:
            return []

    def write_with(self, encode: Callable[[str], list[int]], most: int, *, fixed: bool = False) -> None:
        """See `Writes.write_with`."""
        self._encode, self._most, self._fixed = encode, most, fixed

    def learn_turns(self, earlier: Callable[[Any], list[int]] | None) -> None:
        """See `Writes.learn_turns`."""
        self._earlier = earlier

    def fit(self, values: Sequence[Any]) -> None:
        """Find the main metric and the longest answer.

        Raises:
            TableError: no cell has a text.
        """
        known = [texts for value in values if (texts := self._readable(value))]
        texts = [answers[0] for answers in known]
        if not texts:
            raise TableError("the target has no texts", do="name another target column", column=self.target)
        name, why = main_metric(known)
        self.main = Metric(name, name not in LOWER_IS_BETTER)
        self.choice = f"measured by {name}: {why}"
        lengths = np.array([len(self._tokens(text)) for text in texts])
        self.max_tokens = self._most if self._fixed else min(int(lengths.max()), self._most)
        if num := int((lengths > self.max_tokens).sum()):
            self.choice += (
                f"; {num:,} answers have more than {self.max_tokens} tokens and are cut (prompt.max_answer_tokens)"
            )

    def check(self, value: Any, *, row: int) -> None:
        """See `TargetTask.check`: refuse cells without a text."""
        texts = self._texts(value, row=row)
        if not texts:
            why = "it is no text that can be written"
            raise BadCell(row=row, column=self.target, value=value, why=why, do="give a text, or empty the cell")
        for text in texts:
            check_text(text, row=row, column=self.target)

    def encode(self, values: Sequence[Any], tokens: TextTokens | None = None) -> Target:
        """See `TargetTask.encode`: values are token ids, (rows, answer tokens) int64, −1 behind an answer.

        With `learn_turns`, they begin with a chat's earlier answers and what stands between: −2 − id for its tokens.
        """
        texts = [(self._readable(value) or [""])[0] for value in values]
        ids = [self._tokens(text)[: self.max_tokens] if text else [] for text in texts]
        if self._earlier is not None:
            ids = [[*self._earlier(value), *own] if own else [] for value, own in zip(values, ids, strict=True)]
        return padded(ids)

    def candidates(self, texts: Sequence[str]) -> Target:
        """See `Writes.candidates`; texts are not cut."""
        return padded([self._tokens(text) for text in texts])

    def _tokens(self, text: str) -> list[int]:
        assert self._encode is not None, "the language model's tokenizer is set"
        return self._encode(text)

    def build_head(self, dim: int) -> nn.Module:
        """Return nothing to learn: the language model has its head."""
        return nn.Identity()

    def terms(self, logits: Tensor, target: Target) -> Tensor:
        """See `TargetTask.terms`.

        Args:
            logits: (batch, answer tokens, 2) of `Generate.forward`: 0 behind an answer.
            target: of the same rows.
        """
        share = self.label_smoothing
        losses: Tensor = -((1 - share) * logits[..., 0] + share * logits[..., 1])
        return losses.sum(1)

    def answers(self, logits: Tensor, tokens: TextTokens | None = None) -> np.ndarray:
        """Refuse: answers are written, see `fusetune.inference.write`."""
        raise NotImplementedError("answers are written by the language model")

    def truth(self, values: Sequence[Any]) -> np.ndarray:
        """Return each cell's text, or list of texts, (rows,) of dtype object."""
        result = np.empty(len(values), dtype=object)
        for row, value in enumerate(values):
            texts = self._readable(value)
            result[row] = texts if len(texts) != 1 else texts[0]
        return result

    def measured(self, answers: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """See `Task.measured`: counts of the texts' matches."""
        return row_counts(["" if answer is None else str(answer) for answer in answers], list(truth))

    def metrics(self, measured: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
        """Return BLEU, chrF, ROUGE, exact match and others; see `fusetune.tasks.text.metrics`."""
        return in_order(metrics_of(measured, weights), self.main.name)

    def constant(self, truth: np.ndarray, rows: int) -> np.ndarray:
        """Return the most frequent text of `truth`, `rows` times."""
        return most_frequent(truth, rows)

    def perfect(self, truth: np.ndarray) -> np.ndarray:
        """Return the first text of each truth."""
        result = np.empty(len(truth), dtype=object)
        result[:] = [value if isinstance(value, str) else value[0] for value in truth]
        return result

    def target_panels(self, truths: Mapping[str, np.ndarray]) -> list[Panel]:
        """Return a table of the texts' lengths by split."""
        return [sizes_panel(truths)]

    def panels(self, evidence: Evidence) -> list[Section]:
        """Return what can be said of the answers' form."""
        return written_sections(evidence)

    def worst(self, answers: np.ndarray, truth: np.ndarray, num: int) -> WorstRows:
        """Return the rows with the worst answers."""
        return worst_written(answers, truth, self.measured(answers, truth), self.main, num)

    def changed(
        self, before: tuple[np.ndarray, np.ndarray], after: tuple[np.ndarray, np.ndarray], truth: np.ndarray, num: int
    ) -> ChangedRows:
        """See `ShowsChange.changed`."""
        return changed_rows(before, after, truth, self.main, num)

    def columns(self, answers: np.ndarray) -> dict[str, list[Any]]:
        """Return the texts under the target's name."""
        return {self.target: list(answers)}

    def state(self) -> dict[str, Any]:
        """See `Task.state`."""
        return state_of(self, ("template", "label_smoothing"), LEARNED)

    @classmethod
    def from_state(cls, target: str, state: dict[str, Any]) -> GenerateTask:
        """Restore a task from its `state()`."""
        return restored(cls(target, **state["options"]), LEARNED, {"chats": False, **state})


def padded(ids: Sequence[Sequence[int]]) -> Target:
    """Return rows' ids as a target; rows without any of 0 or more are unlabelled."""
    longest = max([1, *map(len, ids)])
    padded = torch.full((len(ids), longest), -1, dtype=torch.int64)
    for row, own in enumerate(ids):
        padded[row, : len(own)] = torch.tensor(own, dtype=torch.int64)
    sizes = (padded >= 0).sum(1).float()
    return Target(padded, sizes > 0, sizes)


def references(cell: Any) -> list[str]:
    """Return the texts of a cell, each equally right; none if it has no text."""
    cell = plain(cell)
    if isinstance(cell, str) and cell.lstrip()[:1] == "[":
        try:
            listed = json.loads(cell)
        except ValueError:
            listed = None
        if isinstance(listed, list) and listed and all(isinstance(text, str) for text in listed):
            cell = listed
    if isinstance(cell, list | tuple) and all(isinstance(text, str) for text in cell):
        return [text.strip() for text in cell if not is_blank(text)]
    if isinstance(cell, Mapping | list | tuple) or cell is None:
        return []
    if isinstance(cell, bool):
        return ["yes" if cell else "no"]
    if isinstance(cell, float | Decimal) and cell != cell:
        return []
    if isinstance(cell, float) and math.isfinite(cell) and cell == int(cell):
        return [str(int(cell))]
    text = str(cell).strip()
    return [text] if text else []
