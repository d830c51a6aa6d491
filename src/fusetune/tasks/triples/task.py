"""Triples: entities of a text and the relations between them, from the unmarked text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from fusetune.data.schema import Schema
from fusetune.errors import ConfigError, TableError, nearest, shown
from fusetune.modalities.base import Detection
from fusetune.modalities.words import words_text
from fusetune.tasks.abilities import Divergent
from fusetune.tasks.answers.cells import parsed
from fusetune.tasks.base import Metric
from fusetune.tasks.entities.task import LONG, MOST, SPLIT_WORDS
from fusetune.tasks.entities.words import UNITS, Unit
from fusetune.tasks.metrics import f1_precision_recall
from fusetune.tasks.panels.kinds import Evidence, Panel, Section
from fusetune.tasks.panels.triples import relations_panel, triple_of, triple_sections
from fusetune.tasks.reading import Reading, text_column
from fusetune.tasks.state import restored, state_of
from fusetune.tasks.token_task import TokenTask
from fusetune.tasks.triples.cells import Triples, is_triples, read_triples
from fusetune.tasks.triples.scorer import Pairing, PairScorer
from fusetune.types import Target, TextTokens

OPTIONS = ("text", "entities", "window")
FITTED = (
    *("classes", "counts", "relations", "relation_counts", "unit", "window_used"),
    *("most", "several", "weight", "far", "left_out", "choice"),
)
MAX_PAIRS = 1000
"""If a train text has more ordered pairs of entities, only pairs as near as train relations are scored."""
USUAL = ("entities", "spans", "ner")
"""Usual names of a column of entities beside one of relations."""


class TriplesTask(TokenTask, Divergent):
    """Find the entities in a text and the relations between them: (entity, relation, entity).

    A cell is `{"entities": [{"start": 0, "end": 3, "label": "person"}, ...], "relations": [{"head": 0, "label": "in",
    "tail": 1}, ...]}` with characters of the text, `end` exclusive, and heads and tails by the entities' numbers from
    0, or by their `id`; or a list of relations whose heads and tails are such entities; also as JSON. The entities may
    also be in a column of their own. Entities do not overlap; one without a label is an "entity". An empty list is a
    text without triples; an empty cell is unlabelled.

    Args:
        text: the text column's name; needed if there are several.
        entities: the column of the entities, if it is not the target's own cells that have them. None: one called
            entities, spans or ner, if there is one.
        window: the most words from the beginning of one entity to that of the other for a pair to be scored, 1 or more.
            None: any number; if a train text has more than 1,000 pairs, the distance of the farthest train relation,
            after 0.5% farther ones.

    Raises:
        ConfigError: the window is not 1 or more.

    Loss: the cross-entropy of the words' tags (BIO), plus that of the relations of all ordered pairs of true entities,
    each pair weighted so that train rows' pairs weigh as much as their words, divided by the number of words. A pair's
    loss compares its relations with none, and none with the other relations (Zhou et al. 2021).

    Answers: per row `{"entities", "triples"}`: the entities that `entities` would find, and a relation of two of them
    where one is more probable than none. A triple's score is the product of its entities' scores and the relation's
    probability against none.

    Requires: a text column; `text` names it where there are several.

    Relations: `entities` finds the entities alone; `relation` classifies one pair whose entities are marked.

    Example:
        >>> task = TriplesTask("triples")
        >>> person, town = {"start": 0, "end": 3, "label": "person"}, {"start": 13, "end": 17, "label": "town"}
        >>> cell = [{"head": person, "label": "lives in", "tail": town}]
        >>> task.resolve(cell, "Ada lives in Rome", row=0).triples
        {((0, 3, 'person'), 'lives in', (13, 17, 'town'))}

    Reference: Zhong and Chen 2021 (arXiv 2010.12812); Eberts and Ulges 2020 (arXiv 1909.07755), SpERT; Zhou et al. 2021
    (arXiv 2010.11304), section 3.2.
    """

    name = "triples"
    main = Metric("triple_f1")
    constant_is = "no triple"

    def __init__(
        self, target: str, *, text: str | None = None, entities: str | None = None, window: int | None = None
    ) -> None:
        super().__init__(target)
        if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
            raise ConfigError("window is a whole number of words", expected="1 or more", came=str(window))
        self.text, self.entities, self.window = text, entities, window
        self.classes: list[str] = []
        self.counts: list[int] = []
        self.relations: list[str] = []
        self.relation_counts: list[int] = []
        self.unit: Unit = "token"
        self.window_used, self.most, self.several, self.weight = window, 1, False, 1.0
        self.far = self.left_out = 0

    @classmethod
    def detect(cls, values: Sequence[Any]) -> Detection:
        """Sure of cells with entities and relations, and of lists of triples; a few others are rejected later."""
        cells = [cell for cell in map(parsed, values) if is_triples(cell)]
        if len(cells) < MOST * len(values):
            return Detection(0.0, "the cells are no entities and relations")
        relations = sum(len((cell["relations"] if isinstance(cell, Mapping) else cell) or ()) for cell in cells)
        if not relations:
            return Detection(0.0, "the cells have no relation")
        return Detection(0.99, f"relations between entities, {relations} in {len(cells)} of {len(values)} cells")

    def reading(self, schema: Schema) -> Reading:
        """Return the text column, read token by token, and the column of the entities, if there is one.

        Raises:
            ConfigError: there is no such column, or it is not clear which is the text.
        """
        if self.entities is not None and self.entities not in schema.columns:
            raise ConfigError(
                f"tasks.{self.target}.entities={self.entities} names no column",
                expected=", ".join(column for column in schema.columns if column != self.target),
                do=nearest(self.entities, schema.columns),
            )
        known = {name.casefold(): name for name, spec in schema.columns.items() if spec.role in ("input", "ignore")}
        usual = (known[name] for name in USUAL if name in known and known[name] not in (self.text, self.target))
        self.second = self.entities or next(usual, None)
        column = text_column(schema, self.text, task=self.name, target=self.target)
        return Reading((column,), "tokens", also=(self.second,) if self.second else ())

    def resolve(self, value: Any, cell: Any, *, row: int) -> Triples:
        """Return a cell's entities and relations.

        Args:
            value: the target's cell, or the pair of it and the entities' cell, if these have a column.
            cell: the text.
            row: for errors.

        Raises:
            BadCell: see `read_triples`.
        """
        value, listed = value if self.second is not None else (value, None)
        text = words_text(cell, row=row, column=self.target)
        return read_triples(value, listed, text, row=row, column=self.target)

    def fit(self, values: Sequence[Any]) -> None:
        """Learn the labels and their counts, how far apart related entities are, and whether entities split words.

        Raises:
            TableError: no row has a relation.
        """
        known: list[Triples] = [value for value in values if value is not None]
        entities = Counter(label for value in known for *_, label in value.entities)
        relations = Counter(label for value in known for *_, label in value.relations)
        if not relations:
            do = "give rows with relations between entities; for entities alone there is the task entities"
            raise TableError("no train row has a relation", column=self.target, do=do)
        self.classes, self.relations = sorted(entities), sorted(relations)
        self.counts = [entities[label] for label in self.classes]
        self.relation_counts = [relations[label] for label in self.relations]
        split = {unit: sum(value.split.get(unit, 0) for value in known) for unit in UNITS}
        self.unit = next((unit for unit in UNITS if split[unit] <= SPLIT_WORDS * entities.total()), "token")
        self.most = max(max(Counter(head for head, *_ in value.relations).values(), default=1) for value in known)
        pairs = [Counter((head, tail) for head, tail, _ in value.relations) for value in known]
        self.several = any(number > 1 for own in pairs for number in own.values())
        self._learn_window(known)

    def _learn_window(self, known: Sequence[Triples]) -> None:
        """Learn which pairs are scored, and the weight of a pair in the loss."""
        distances = np.array(
            [abs(v.positions[head] - v.positions[tail]) for v in known for head, tail, _ in v.relations]
        )
        possible = [len(value.entities) * (len(value.entities) - 1) for value in known]
        self.window_used, self.choice = self.window, ""
        if self.window is None and max(possible) > MAX_PAIRS:
            self.window_used = max(int(np.quantile(distances, LONG, method="inverted_cdf")), 1)
            self.choice = (
                f"window {self.window_used} words, as a train text has {max(possible):,} pairs of entities, more than "
                f"{MAX_PAIRS:,}"
            )
        scored = sum(possible)
        if self.window_used is not None:
            gaps = (np.subtract.outer(value.positions, value.positions) for value in known if len(value.entities) > 1)
            scored = sum(int((np.abs(gap) <= self.window_used).sum()) - len(gap) for gap in gaps)
            self.far = int((distances > self.window_used).sum())
        self.left_out = sum(possible) - scored
        self.weight = sum(value.num_words for value in known) / max(scored, 1)
        self.num_shared = self._scorer.num_shared

    def check(self, value: Any, *, row: int) -> None:
        """Accept what `resolve` returns; labels that no train row has count as missed."""

    @property
    def _scorer(self) -> PairScorer:
        pairing = Pairing(self.window_used, self.most, self.several, self.weight)
        return PairScorer(self.classes, self.relations, unit=self.unit, pairing=pairing)

    def encode(self, values: Sequence[Any], tokens: TextTokens | None = None) -> Target:
        """Encode as tags and relations of tokens; see `PairScorer.encode`."""
        assert tokens is not None, "triples are found in a text"
        return self._scorer.encode(values, tokens)

    def build_head(self, dim: int) -> nn.Module:
        """Build (batch, tokens, dim) to (batch, tokens, channels); see `PairScorer`."""
        return self._scorer.build(dim)

    def terms(self, logits: Tensor, target: Target) -> Tensor:
        """Return the sum of a row's cross-entropies of tags and relations, (batch,); see `PairScorer.terms`."""
        return self._scorer.terms(logits, target)

    def divergence(self, logits: Tensor, other: Tensor, real: Tensor | None = None) -> Tensor:
        """Return the divergence of a row's tags and of its likely pairs, (batch,); see `PairScorer.divergence`."""
        assert real is not None, "triples are found in a text"
        return self._scorer.divergence(logits, other, real)

    def answers(self, logits: Tensor, tokens: TextTokens | None = None) -> np.ndarray:
        """Return the rows' entities and triples, an array of dictionaries; see the class."""
        assert tokens is not None, "triples are found in a text"
        found = self._scorer.found(logits, tokens)
        result = np.empty(len(found), dtype=object)
        for row, (spans, relations) in enumerate(found):
            text = tokens.texts[row][0] if spans else ""
            entities = [
                {"start": start, "end": end, "label": label, "score": score, "text": text[start:end]}
                for start, end, label, score in spans
            ]
            result[row] = {
                "entities": entities,
                "triples": [
                    _triple(entities[head], label, entities[tail], spans[head][3] * spans[tail][3] * score)
                    for head, tail, label, score in relations
                ],
            }
        return result

    def example_answers(self, logits: Tensor) -> np.ndarray:
        """See `TargetTask.example_answers`."""
        answers = np.empty(1, dtype=object)
        entity = {"start": 0, "end": 1, "label": "", "score": 0.0, "text": ""}
        answers[0] = {"entities": [entity], "triples": [_triple(entity, "", entity, 0.0)]}
        return answers

    def truth(self, values: Sequence[Any]) -> np.ndarray:
        """Return an array of `Triples`."""
        result = np.empty(len(values), dtype=object)
        result[:] = list(values)
        return result

    def measured(self, answers: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Return counts, (rows, 3 · (relations + 2)): true positives, false positives and false negatives.

        They are of each relation's triples, of all relations that no train row has, and of entities.
        """
        counts = np.zeros((len(truth), len(self.relations) + 2, 3))
        index_of = {label: number for number, label in enumerate(self.relations)}
        for row, (answer, true) in enumerate(zip(answers, truth, strict=True)):
            guessed, real = set(map(triple_of, answer["triples"])), true.triples
            for kind, triples in enumerate((guessed & real, guessed - real, real - guessed)):
                for _, label, _ in triples:
                    counts[row, index_of.get(label, -2), kind] += 1
            spans, true_spans = {(e["start"], e["end"], e["label"]) for e in answer["entities"]}, set(true.entities)
            counts[row, -1] = len(spans & true_spans), len(spans - true_spans), len(true_spans - spans)
        return counts.reshape(len(truth), counts.shape[1] * 3)

    def metrics(self, measured: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
        """Return micro-averaged F1, precision and recall of exact triples, F1 of exact entities, and F1 by relation.

        A triple is right if both entities' characters and labels, the relation and its direction are.
        """
        weights = np.ones(len(measured)) if weights is None else weights
        counts = (measured * weights[:, None]).sum(0).reshape(-1, 3)
        names = ("triple_f1", "precision", "recall")
        result = dict(zip(names, f1_precision_recall(counts[:-1].sum(0)), strict=True))
        result["entity_f1"] = f1_precision_recall(counts[-1])[0]
        order = np.argsort([-count for count in self.relation_counts], kind="stable")  # the most frequent first
        return result | {f"f1_{self.relations[index]}": f1_precision_recall(counts[index])[0] for index in order}

    def target_panels(self, truths: Mapping[str, np.ndarray]) -> list[Panel]:
        """Return a table of each relation's triples by split."""
        return [relations_panel(truths, self.relations)]

    def panels(self, evidence: Evidence) -> list[Section]:
        """Return figures and errors by relation, and texts with true and predicted entities and triples."""
        return triple_sections(evidence, self.relations)

    def constant(self, truth: np.ndarray, rows: int) -> np.ndarray:
        """Return no entity and no triple for every row."""
        result = np.empty(rows, dtype=object)
        result[:] = [{"entities": [], "triples": []} for _ in range(rows)]
        return result

    def warnings(self, answers: np.ndarray, truth: np.ndarray) -> list[str]:
        """Return sentences about the window, and about relations that no train row has."""
        notes = [f"{self.target}: {self.choice}."] if self.choice else []
        if self.far:
            notes.append(
                f"{self.far:,} of {sum(self.relation_counts):,} train relations of {self.target!r} are between "
                f"entities more than {self.window_used} words apart: such pairs, {self.left_out:,} in train texts, are "
                f"not scored (tasks.{self.target}.window)"
            )
        unknown = Counter(label for true in truth for *_, label in true.relations if label not in self.relations)
        if not unknown:
            return notes
        return [
            *notes,
            f"{unknown.total()} triples have a relation that no train row has and count as missed: "
            + ", ".join(f"{shown(label)} ({count})" for label, count in unknown.most_common(10)),
        ]

    def perfect(self, truth: np.ndarray) -> np.ndarray:
        """Return the true entities and triples as answers, without their texts."""
        result = np.empty(len(truth), dtype=object)
        for row, true in enumerate(truth):
            entities = [
                {"start": s, "end": e, "label": label, "score": 1.0, "text": ""} for s, e, label in true.entities
            ]
            triples = [_triple(entities[head], label, entities[tail], 1.0) for head, tail, label in true.relations]
            result[row] = {"entities": entities, "triples": triples}
        return result

    def columns(self, answers: np.ndarray) -> dict[str, list[Any]]:
        """Return the triples under the target's name, and all entities."""
        return {
            self.target: [answer["triples"] for answer in answers],
            f"{self.target}_entities": [answer["entities"] for answer in answers],
        }

    def state(self) -> dict[str, Any]:
        """Return options, labels, counts and the window."""
        return state_of(self, OPTIONS, FITTED)

    @classmethod
    def from_state(cls, target: str, state: dict[str, Any]) -> TriplesTask:
        """Restore a task from its `state()`."""
        task = restored(cls(target, **state["options"]), FITTED, state)
        task.num_shared = task._scorer.num_shared
        return task


def _triple(head: Mapping[str, Any], label: str, tail: Mapping[str, Any], score: float) -> dict[str, Any]:
    """Return a triple as answers have it, with copies of the entities without their scores."""
    ends = ({key: end[key] for key in ("start", "end", "label", "text")} for end in (head, tail))
    return {"head": next(ends), "label": label, "tail": next(ends), "score": score}
