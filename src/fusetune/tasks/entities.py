"""Named entities and slots: spans of a text, each with a label."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusetune.data.schema import Schema
from fusetune.errors import BadCell, TableError, shown
from fusetune.modalities.base import Detection
from fusetune.modalities.passages import words_text
from fusetune.tasks.base import Metric
from fusetune.tasks.panels.entities import entity_sections, types_panel
from fusetune.tasks.panels.kinds import Evidence, Panel, Section
from fusetune.tasks.reading import Reading, text_column
from fusetune.tasks.tagging import IGNORED, Span, spans_of_tags, tag_tokens, tags_of, viterbi
from fusetune.tasks.token_task import TokenTask
from fusetune.types import Target, TextTokens


class EntitiesTask(TokenTask):
    """Find the entities in a text: spans of characters with a label each, none within another.

    A cell is a list of tags, one for each word of a list of words (BIO, BIOES or plain labels), or a list of spans,
    `{"start": 4, "end": 9, "label": "person"}` in characters of the text, `end` exclusive; also as JSON. An empty list
    is a text without entities; an empty cell is unlabelled.

    Args:
        target: the target column's name.
        text: the text column's name; needed if there are several.

    Loss: cross-entropy over the tokens' tags (BIO), averaged over all tokens.

    Answers: per row a list of `{"start", "end", "label", "score", "text"}`; the most likely tags among those that the
    scheme allows.

    Requires: a text column; `text` names it where there are several.

    Relations: `multilabel` gives the whole text labels; entities say where they are.

    Example:
        >>> task = EntitiesTask("tags")
        >>> task.resolve(["B-PER", "O"], ["Ada", "wrote"], row=0)
        [(0, 3, 'PER')]

    Reference: Devlin et al. 2019 (arXiv 1810.04805), section 5.3; Ramshaw and Marcus 1995 (arXiv cmp-lg/9505040).
    """

    name = "entities"
    main = Metric("f1")
    constant_is = "no entity"

    def __init__(self, target: str, *, text: str | None = None) -> None:
        super().__init__(target)
        self.text = text
        self.classes: list[str] = []
        self.counts: list[int] = []

    @classmethod
    def detect(cls, values: Sequence[Any]) -> Detection:
        """Sure of lists of tags and of lists of spans."""
        lists = [value for value in map(_parsed, values) if isinstance(value, list)]
        if len(lists) < len(values):
            return Detection(0.0, "the cells are no lists")
        entries = [entry for value in lists for entry in value]
        if entries and all(isinstance(entry, dict) and {"start", "end"} <= entry.keys() for entry in entries):
            return Detection(0.99, f"lists of spans, {len(entries)} in {len(values)} cells")
        if entries and all(isinstance(entry, str) for entry in entries):
            tags = Counter(entry[:2] for entry in entries if entry != "O")
            schemed = sum(tags[start] for start in ("B-", "I-", "E-", "S-", "L-", "U-"))
            if "O" in entries and schemed == sum(tags.values()):
                return Detection(0.99, f"lists of tags such as {next((e for e in entries if e != 'O'), 'O')}")
        return Detection(0.0, "the cells are no tags and no spans")

    def reading(self, schema: Schema) -> Reading:
        """Return the text column, read token by token."""
        return Reading((text_column(schema, self.text, task=self.name, target=self.target),), "tokens")

    def resolve(self, value: Any, cell: Any, *, row: int) -> list[Span]:
        """Return a cell's entities as (start, end, label), sorted.

        Raises:
            BadCell: the tags are more or fewer than the words, or a span does not lie in the text or is half of one.
        """
        value = _parsed(value)
        if not isinstance(value, list):
            why = f"it is of type {type(value).__name__}, no list"
            raise BadCell(row=row, column=self.target, value=value, why=why, do="give a list of tags or of spans")
        if value and all(isinstance(entry, str) for entry in value):
            return self._of_tags(value, cell, row=row)
        text = words_text(cell, row=row, column=self.target)
        spans = [self._span(entry, text, row=row) for entry in value]
        for before, after in zip(sorted(spans), sorted(spans)[1:], strict=False):
            if after[0] < before[1]:
                why = f"the spans {before} and {after} overlap"
                raise BadCell(row=row, column=self.target, value=value, why=why, do="keep one of them")
        return sorted(spans)

    def _of_tags(self, tags: list[str], cell: Any, *, row: int) -> list[Span]:
        starts = None
        if isinstance(cell, list):
            words = cell
        else:
            matches = list(re.finditer(r"\S+", words_text(cell, row=row, column=self.target)))
            words, starts = [match.group() for match in matches], [match.start() for match in matches]
        if len(tags) != len(words):
            why = f"there are {len(tags)} tags for {len(words)} words"
            raise BadCell(row=row, column=self.target, value=tags, why=why, do="give one tag a word")
        return spans_of_tags(tags, words, starts)

    def _span(self, entry: Any, text: str, *, row: int) -> Span:
        try:
            start, end, label = int(entry["start"]), int(entry["end"]), str(entry["label"])
        except (KeyError, TypeError, ValueError) as error:
            why = f"{shown(entry)} is no span: {error}"
            do = 'give {"start": 0, "end": 3, "label": "person"}'
            raise BadCell(row=row, column=self.target, value=entry, why=why, do=do) from None
        if not 0 <= start < end <= len(text):
            why = f"the span {start} to {end} does not lie in the text of {len(text)} characters"
            raise BadCell(
                row=row, column=self.target, value=entry, why=why, do="count characters from 0, end exclusive"
            )
        return start, end, label

    def fit(self, values: Sequence[Any]) -> None:
        """Learn the labels and how many entities have each.

        Raises:
            TableError: no row has an entity.
        """
        counts = Counter(label for spans in values if spans for *_, label in spans)
        if not counts:
            raise TableError("no train row has an entity", column=self.target, do="give rows with labelled spans")
        self.classes = sorted(counts)
        self.counts = [counts[label] for label in self.classes]

    def check(self, value: Any, *, row: int) -> None:
        """Accept every cell: entities of a label that no train row has count as missed."""

    def encode(self, values: Sequence[Any], tokens: TextTokens | None = None) -> Target:
        """Encode as tags, (rows, tokens) int64, `IGNORED` at padding and in entities of a label that no train row has.

        A row's size is the number of its other tokens.
        """
        assert tokens is not None, "entities are found in a text"
        real = tokens.spans[..., 0] >= 0
        tags = np.where(real, 0, IGNORED).astype(np.int64)
        for row, spans in enumerate(values):
            if spans:
                tag_tokens(tags[row], tokens.spans[row], spans, self.classes)
        labelled = torch.tensor([value is not None for value in values], dtype=torch.bool)
        sizes = torch.from_numpy((tags != IGNORED).sum(1).astype(np.float32))
        return Target(torch.from_numpy(tags), labelled & (sizes > 0), sizes)

    def build_head(self, dim: int) -> nn.Module:
        """Build (batch, tokens, dim) to (batch, tokens, tags)."""
        return nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, len(tags_of(self.classes))))

    def terms(self, logits: Tensor, target: Target) -> Tensor:
        """Return the sum over a row's tokens of their cross-entropy, (batch,).

        Args:
            logits: (batch, tokens, tags).
            target: tags, (batch, tokens) int64.
        """
        return F.cross_entropy(logits.transpose(1, 2), target.values, ignore_index=IGNORED, reduction="none").sum(1)

    def answers(self, logits: Tensor, tokens: TextTokens | None = None) -> np.ndarray:
        """Return the rows' entities, an array of lists; see the class."""
        assert tokens is not None, "entities are found in a text"
        logs = logits.detach().double().log_softmax(2).cpu().numpy()
        result = np.empty(len(logs), dtype=object)
        for row, scores in enumerate(logs):
            indices = np.flatnonzero(tokens.spans[row, :, 0] >= 0)
            spans = tokens.spans[row, indices, 1:]
            text = tokens.texts[row][0] if len(indices) and len(tokens.texts[row]) else ""
            result[row] = [
                {"start": start, "end": end, "label": label, "score": score, "text": text[start:end]}
                for start, end, label, score in viterbi(scores[indices], spans, self.classes)
            ]
        return result

    def example_answers(self, logits: Tensor) -> np.ndarray:
        """See `TargetTask.example_answers`."""
        answers = np.empty(1, dtype=object)
        answers[0] = [{"start": 0, "end": 1, "label": "", "score": 0.0, "text": ""}]
        return answers

    def truth(self, values: Sequence[Any]) -> np.ndarray:
        """Return an array of lists of (start, end, label)."""
        result = np.empty(len(values), dtype=object)
        result[:] = [list(spans) for spans in values]
        return result

    def measured(self, answers: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Return counts, (rows, 3 · (labels + 1)): per label true positives, false positives and false negatives.

        The last are of all labels that no train row has: false negatives.
        """
        counts = np.zeros((len(truth), len(self.classes) + 1, 3))
        index_of = {label: number for number, label in enumerate(self.classes)}
        for row, (entities, true) in enumerate(zip(answers, truth, strict=True)):
            guessed, real = {(e["start"], e["end"], e["label"]) for e in entities}, {tuple(span) for span in true}
            for kind, spans in enumerate((guessed & real, guessed - real, real - guessed)):
                for span in spans:
                    counts[row, index_of.get(span[2], -1), kind] += 1
        return counts.reshape(len(truth), counts.shape[1] * 3)

    def metrics(self, measured: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
        """Return micro-averaged F1, precision and recall of exact spans, and F1 by label."""
        weights = np.ones(len(measured)) if weights is None else weights
        counts = (measured * weights[:, None]).sum(0).reshape(-1, 3)
        total = counts.sum(0)
        result = dict(zip(("f1", "precision", "recall"), _scores(total), strict=True))
        order = np.argsort([-count for count in self.counts], kind="stable")  # the most frequent labels first
        return result | {f"f1_{self.classes[index]}": _scores(counts[index])[0] for index in order}

    def target_panels(self, truths: Mapping[str, np.ndarray]) -> list[Panel]:
        """Return a table of each label's entities by split."""
        return [types_panel(truths, self.classes)]

    def panels(self, evidence: Evidence) -> list[Section]:
        """Return figures and errors by label, and texts with true and predicted entities."""
        return entity_sections(evidence, self.classes)

    def constant(self, truth: np.ndarray, rows: int) -> np.ndarray:
        """Return no entity for every row."""
        result = np.empty(rows, dtype=object)
        result[:] = [[] for _ in range(rows)]
        return result

    def warnings(self, answers: np.ndarray, truth: np.ndarray) -> list[str]:
        """Return a sentence about entities of labels that no train row has."""
        unknown = Counter(label for spans in truth for *_, label in spans if label not in self.classes)
        if not unknown:
            return []
        return [
            f"{unknown.total()} entities have a label that no train row has and count as missed: "
            + ", ".join(f"{shown(label)} ({count})" for label, count in unknown.most_common(10))
        ]

    def perfect(self, truth: np.ndarray) -> np.ndarray:
        """Return the true entities as answers, without their texts."""
        result = np.empty(len(truth), dtype=object)
        result[:] = [
            [{"start": start, "end": end, "label": label, "score": 1.0, "text": ""} for start, end, label in spans]
            for spans in truth
        ]
        return result

    def columns(self, answers: np.ndarray) -> dict[str, list[Any]]:
        """Return the entities under the target's name."""
        return {self.target: list(answers)}

    def state(self) -> dict[str, Any]:
        """Options, labels and counts."""
        return {"text": self.text, "classes": self.classes, "counts": self.counts}

    @classmethod
    def from_state(cls, target: str, state: dict[str, Any]) -> EntitiesTask:
        """Restore a task from its `state()`."""
        task = cls(target, text=state["text"])
        task.classes, task.counts = list(state["classes"]), list(state["counts"])
        return task


def _scores(counts: np.ndarray) -> tuple[float, float, float]:
    """Return F1, precision and recall of counts (true positives, false positives, false negatives); nan for none."""
    right, wrong, missed = (float(count) for count in counts)
    if right + wrong + missed == 0:
        return float("nan"), float("nan"), float("nan")
    precision = right / (right + wrong) if right + wrong else 0.0
    recall = right / (right + missed) if right + missed else 0.0
    return 2 * right / (2 * right + wrong + missed), precision, recall


def _parsed(value: Any) -> Any:
    """Return a cell, parsed if it is a list as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
