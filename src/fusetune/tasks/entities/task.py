"""Named entities and slots: spans of a text, each with a label."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor, nn

from fusetune.data.schema import Schema
from fusetune.errors import BadCell, ConfigError, TableError, nearest, shown
from fusetune.modalities.base import Detection
from fusetune.modalities.words import words_text
from fusetune.tasks.abilities import Divergent
from fusetune.tasks.base import Metric
from fusetune.tasks.entities.span_scorer import SpanScorer, overlaps_in
from fusetune.tasks.entities.taggers import TAGGERS, Tagger
from fusetune.tasks.entities.tagging import Span, spans_of_tags
from fusetune.tasks.entities.words import UNITS, Unit, splits_by_unit
from fusetune.tasks.metrics import f1_precision_recall
from fusetune.tasks.panels.entities import entity_sections, types_panel
from fusetune.tasks.panels.kinds import Evidence, Panel, Section
from fusetune.tasks.reading import Reading, text_column
from fusetune.tasks.state import state_of
from fusetune.tasks.token_task import TokenTask
from fusetune.types import Target, TextTokens

Head = Literal["auto", "softmax", "crf", "span"]
"""How entities are found: each token tagged by itself, a text's tokens as a random field, or every span scored."""
OPTIONS = ("text", "head", "max_length")
FITTED = ("classes", "counts", "unit", "head_used", "overlaps", "overlapping", "longest", "too_long", "choice")
OVERLAPPING = 0.01
"""If more of the train entities overlap others, spans are scored; else rows with such entities are rejected."""
LONG = 0.995
"""The share of the train entities that are no longer than the longest span that is scored."""
SPLIT_WORDS = 0.01
"""If more of the train entities begin or end within a word, predicted ones may too; so with what spaces separate."""
MOST = 0.9
"""The share of the cells, and of their entries, by which a target is recognised; the others are rejected."""


class EntitiesTask(TokenTask, Divergent):
    """Find the entities in a text: spans of characters with a label each.

    A cell is a list of tags, one for each word of a list of words (BIO, BIOES or plain labels), or a list of spans,
    `{"start": 4, "end": 9, "label": "person"}` or `[4, 9, "person"]` in characters of the text, `end` exclusive; also
    as JSON. An empty list is a text without entities; an empty cell is unlabelled.

    Args:
        target: the target column's name.
        text: the text column's name; needed if there are several.
        head: "softmax": each token's tag by itself. "crf": the tags of a text as a linear-chain conditional random
            field, which learns what tag follows which. "span": every span up to a length is scored, so that entities
            may overlap. "auto": span if more than 1% of the train entities overlap others, else softmax.
        max_length: the most characters of a span that is scored, 1 or more. None: that of the longest train entity,
            after 0.5% longer ones.

    Raises:
        ConfigError: there is no such head, or the length is not 1 or more.

    Loss: cross-entropy over the tokens' tags (BIO), or the negative log-likelihood of a text's tags, or the binary
    cross-entropy of the spans' labels, divided by the number of all words, or of all tokens for spans.

    Answers: per row a list of `{"start", "end", "label", "score", "text"}`; the most likely tags among those that the
    scheme allows, or the spans with a probability above one half, which overlap only as train entities do. If train
    entities begin and end where words do, predicted ones do.

    Requires: a text column; `text` names it where there are several.

    Relations: `multilabel` gives the whole text labels; entities say where they are.

    Example:
        >>> task = EntitiesTask("tags")
        >>> task.resolve(["B-PER", "O"], ["Ada", "wrote"], row=0)
        [(0, 3, 'PER')]

    Reference: Devlin et al. 2019 (arXiv 1810.04805), section 5.3; Ramshaw and Marcus 1995 (arXiv cmp-lg/9505040);
    Lafferty et al. 2001 for the conditional random field; Su et al. 2022 (arXiv 2208.03054) for the scores of spans.
    """

    name = "entities"
    answers_spans = True
    main = Metric("f1")
    constant_is = "no entity"

    def __init__(
        self, target: str, *, text: str | None = None, head: Head = "auto", max_length: int | None = None
    ) -> None:
        super().__init__(target)
        if head not in get_args(Head):
            raise ConfigError(
                "head says how entities are found",
                expected=", ".join(get_args(Head)),
                came=str(head),
                do=nearest(str(head), get_args(Head)),
            )
        if max_length is not None and (not isinstance(max_length, int) or max_length < 1):
            raise ConfigError("max_length is a whole number", expected="1 or more", came=str(max_length))
        self.text, self.head, self.max_length = text, head, max_length
        self.classes: list[str] = []
        self.counts: list[int] = []
        self.unit: Unit = "token"
        self.head_used = "softmax" if head == "auto" else head
        self.overlaps: list[str] = []
        self.overlapping = self.longest = self.too_long = 0

    @classmethod
    def detect(cls, values: Sequence[Any]) -> Detection:
        """Sure of lists of tags and of lists of spans."""
        lists = [value for value in map(_parsed, values) if isinstance(value, list)]
        if len(lists) < MOST * len(values):
            return Detection(0.0, "the cells are no lists")
        entries = [entry for value in lists for entry in value]
        if _most(isinstance(entry, dict) and {"start", "end"} <= entry.keys() for entry in entries):
            return Detection(0.99, f"lists of spans, {len(entries)} in {len(values)} cells")
        if _most(_is_triple(entry) for entry in entries):
            return Detection(0.99, f"lists of [start, end, label], {len(entries)} in {len(values)} cells")
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
        return Spans(sorted(set(spans)), splits_by_unit(text, spans))

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
            start, end, label = _start_end_label(entry)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            why = f"{shown(entry)} is no span: {error if not isinstance(error, KeyError) else f'it has no {error}'}"
            do = 'give {"start": 0, "end": 3, "label": "person"}'
            raise BadCell(row=row, column=self.target, value=entry, why=why, do=do) from None
        if not 0 <= start < end <= len(text):
            why = f"the span {start} to {end} does not lie in the text of {len(text)} characters"
            raise BadCell(
                row=row, column=self.target, value=entry, why=why, do="count characters from 0, end exclusive"
            )
        return start, end, label

    def fit(self, values: Sequence[Any]) -> None:
        """Learn the labels and their counts, how entities overlap, how long they are, and whether they split words.

        Raises:
            TableError: no row has an entity.
        """
        counts = Counter(label for spans in values if spans for *_, label in spans)
        if not counts:
            raise TableError("no train row has an entity", column=self.target, do="give rows with labelled spans")
        self.classes = sorted(counts)
        self.counts = [counts[label] for label in self.classes]
        split = {unit: sum(spans.split.get(unit, 0) for spans in values if isinstance(spans, Spans)) for unit in UNITS}
        self.unit = next((unit for unit in UNITS if split[unit] <= SPLIT_WORDS * counts.total()), "token")
        found = [overlaps_in(spans) for spans in values if spans]
        self.overlapping = sum(number for _, number in found)
        many = self.overlapping > OVERLAPPING * counts.total()
        self.head_used = ("span" if many else "softmax") if self.head == "auto" else self.head
        share = self.overlapping / counts.total()
        auto = self.head == "auto" and many
        self.choice = f"head span, as {share:.1%} of the train entities overlap others" if auto else ""
        self.overlaps = sorted(set[str]().union(*(kinds for kinds, _ in found)))
        lengths = np.array([end - start for spans in values if spans for start, end, _ in spans])
        self.longest = self.max_length or int(np.quantile(lengths, LONG, method="inverted_cdf"))
        self.too_long = int((lengths > self.longest).sum())
        self.num_shared = self._scheme.num_shared

    def check(self, value: Any, *, row: int) -> None:
        """Refuse entities that overlap, unless spans are scored.

        Entities of a label that no train row has count as missed.
        """
        if self.head_used == "span":
            return
        for before, after in pairwise(value):
            if after[0] < before[1]:
                why = f"the spans {before} and {after} overlap"
                do = f"keep one of them, or score spans: tasks.{self.target}.head=span"
                raise BadCell(row=row, column=self.target, value=value, why=why, do=do)

    @property
    def _scheme(self) -> Tagger | SpanScorer:
        """How the entities are encoded, scored and found."""
        if self.head_used == "span":
            return SpanScorer(self.classes, longest=self.longest, overlaps=self.overlaps, unit=self.unit)
        return TAGGERS[self.head_used](self.classes, unit=self.unit)

    def encode(self, values: Sequence[Any], tokens: TextTokens | None = None) -> Target:
        """Encode as tags, (rows, tokens), or as the labels of spans; see `Tagger.encode` and `SpanScorer.encode`."""
        assert tokens is not None, "entities are found in a text"
        return self._scheme.encode(values, tokens)

    def build_head(self, dim: int) -> nn.Module:
        """Build (batch, tokens, dim) to (batch, tokens, tags), or to the channels of `SpanScorer`."""
        return self._scheme.build(dim)

    def terms(self, logits: Tensor, target: Target) -> Tensor:
        """Return the sum over a row's tokens or spans of their cross-entropy, or its negative log-likelihood, (batch,).

        Args:
            logits: (batch, shared rows + tokens, logits).
            target: encoded, of the same rows.
        """
        return self._scheme.terms(logits, target)

    def divergence(self, logits: Tensor, other: Tensor, real: Tensor | None = None) -> Tensor:
        """Return the mean divergence of a row's tokens, or of the spans that begin there, (batch,)."""
        assert real is not None, "entities are found in a text"
        return self._scheme.divergence(logits, other, real)

    def answers(self, logits: Tensor, tokens: TextTokens | None = None) -> np.ndarray:
        """Return the rows' entities, an array of lists; see the class."""
        assert tokens is not None, "entities are found in a text"
        found = self._scheme.entities(logits, tokens)
        result = np.empty(len(found), dtype=object)
        for row, entities in enumerate(found):
            text = tokens.texts[row][0] if entities else ""
            result[row] = [
                {"start": start, "end": end, "label": label, "score": score, "text": text[start:end]}
                for start, end, label, score in entities
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
        result = dict(zip(("f1", "precision", "recall"), f1_precision_recall(total), strict=True))
        order = np.argsort([-count for count in self.counts], kind="stable")  # the most frequent labels first
        return result | {f"f1_{self.classes[index]}": f1_precision_recall(counts[index])[0] for index in order}

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
        """Return sentences about the head, about spans that are too long, and about labels that no train row has."""
        notes = [f"{self.target}: {self.choice}."] if self.choice else []
        if self.head_used == "span" and self.too_long:
            notes.append(
                f"{self.too_long:,} of {sum(self.counts):,} train entities of {self.target!r} are longer than "
                f"{self.longest} characters: such spans are not scored (tasks.{self.target}.max_length)"
            )
        unknown = Counter(label for spans in truth for *_, label in spans if label not in self.classes)
        if not unknown:
            return notes
        return [
            *notes,
            f"{unknown.total()} entities have a label that no train row has and count as missed: "
            + ", ".join(f"{shown(label)} ({count})" for label, count in unknown.most_common(10)),
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
        return state_of(self, OPTIONS, FITTED)

    @classmethod
    def from_state(cls, target: str, state: dict[str, Any]) -> EntitiesTask:
        """Restore a task from its `state()`, or from that of an earlier version, which has only some of the entries."""
        options = state.get("options", {"text": state.get("text"), "head": state.get("head", "softmax")})
        task = cls(target, text=options["text"])
        task.head, task.max_length = options["head"], options.get("max_length")
        task.head_used = "softmax" if task.head == "auto" else task.head
        for name in FITTED:
            setattr(task, name, state.get(name, getattr(task, name)))
        task.num_shared = task._scheme.num_shared
        return task


class Spans(list[Span]):
    """A text's entities, and by unit how many of them begin or end within one."""

    def __init__(self, spans: Iterable[Span], split: Mapping[Unit, int] | None = None) -> None:
        super().__init__(spans)
        self.split = dict(split or {})


def _most(fits: Iterable[bool]) -> bool:
    fits = list(fits)
    return bool(fits) and sum(fits) >= MOST * len(fits)


def _is_triple(entry: Any) -> bool:
    return isinstance(entry, list | tuple) and [type(part) for part in entry] == [int, int, str]


def _start_end_label(entry: Any) -> Span:
    """Return a span given as an object or as [start, end, label].

    Raises:
        KeyError, TypeError, ValueError, OverflowError: it is neither.
    """
    if isinstance(entry, list | tuple) and len(entry) == 3:
        start, end, label = entry
    else:
        start, end, label = entry["start"], entry["end"], entry["label"]
    if label is None or not str(label).strip():
        raise ValueError("it has no label")
    for offset in (start, end):
        if isinstance(offset, bool) or int(offset) != float(offset):
            raise ValueError(f"{shown(offset)} is no whole number")
    return int(start), int(end), str(label)


def _parsed(value: Any) -> Any:
    """Return a cell, parsed if it is a list as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
