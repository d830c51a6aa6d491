"""Relations: how two entities that are marked in a text are related."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fusetune.data.schema import Schema
from fusetune.errors import ConfigError, nearest
from fusetune.modalities.base import Detection
from fusetune.tasks import metrics as measures
from fusetune.tasks.abilities import ShowsText
from fusetune.tasks.base import Metric
from fusetune.tasks.classes.classification import ClassificationTask, ClassWeights
from fusetune.tasks.panels.kinds import Evidence, Section
from fusetune.tasks.panels.relations import relation_texts
from fusetune.tasks.reading import Reading, text_column

NONE_WORDS = frozenset({"other", "no_relation", "no relation", "norelation", "none", "na", "n/a", "nil"})
"""Labels that are taken for "no relation", ignoring case."""
USUAL = (
    ("e1", "e2"),
    ("entity1", "entity2"),
    ("entity_1", "entity_2"),
    ("head", "tail"),
    ("subject", "object"),
    ("subj", "obj"),
)
"""Usual names of the two entities' columns."""
DIRECTION = re.compile(r"\s*\(e[12],\s*e[12]\)$")
"""What the end of a label says of its direction, as in `Cause-Effect(e1,e2)`."""


class RelationTask(ClassificationTask, ShowsText):
    """Predict the relation of two entities of a text.

    They are marked in the text as `<e1>...</e1>` and `<e2>...</e2>`, or given in columns: their words, which are in the
    text once, `{start, end, label}` in characters, or columns of starts and ends, and of types. A row is one pair; a
    text with several pairs has a row for each.

    The entities are put between punctuation marks, their types, if given, before them, and the two vectors of their
    first marks are read side by side. A label may have a direction at its end, `Cause-Effect(e1,e2)`; one label may
    stand for no relation.

    Args:
        text: the text column; needed if there are several.
        head: the column of the first entity, or a list of its columns, as `[e1_start, e1_end]`,
            `[e1_start, e1_end, e1_type]` or `[e1, e1_type]`. None: columns with usual names, as e1 and e2, head and
            tail, or subject and object, with or without `_start`, `_end` and `_type`; without such, the text is tagged.
        tail: the column of the second entity, or a list of its columns.
        none: the label of no relation. None: the one that reads so (other, no_relation, none, na, nil), if any.
        label_smoothing: share in [0, 1) of each target that is spread evenly over all classes.
        class_weights: "balanced", or a positive weight per label; see `multiclass`.
        focal: γ of the focal loss, 0 or more; see `multiclass`.

    Loss: cross-entropy, as `multiclass`.

    Answers: (rows, classes) probabilities.

    Requires: a text column whose cells have both entities marked once, or columns of the two entities.

    Relations: `multiclass` reads the whole text as one vector and knows of no entities; `entities` finds them.

    Example:
        >>> task = RelationTask("relation")
        >>> task.fit(["Cause-Effect(e1,e2)", "Cause-Effect(e2,e1)", "Other"])
        >>> scores, truth = np.eye(3)[[1, 1, 2]], task.truth(["Cause-Effect(e1,e2)", "Cause-Effect(e2,e1)", "Other"])
        >>> task.evaluate(scores, truth)["relation_f1"]
        0.5

    Reference: Baldini Soares et al. 2019 (arXiv 1906.03158), entity start states; Zhou and Chen 2022 (arXiv
    2102.01373), punctuation as markers; Hendrickx et al. 2010, SemEval-2010 task 8, for `relation_f1`.
    """

    name = "relation"
    main = Metric("relation_f1")

    def __init__(
        self,
        target: str,
        *,
        text: str | None = None,
        head: str | list[str] | None = None,
        tail: str | list[str] | None = None,
        none: str | None = None,
        label_smoothing: float = 0.0,
        class_weights: ClassWeights = None,
        focal: float = 0.0,
    ) -> None:
        super().__init__(target, label_smoothing=label_smoothing, class_weights=class_weights, focal=focal)
        if (head is None) != (tail is None):
            missing = "head" if head is None else "tail"
            raise ConfigError(
                f"tasks.{target} names the column of one entity",
                expected="head and tail, or neither of them",
                do=f"add tasks.{target}.{missing}=COLUMN",
            )
        self.text, self.none, self.head, self.tail = text, none, head, tail

    @classmethod
    def detect(cls, values: Sequence[Any]) -> Detection:
        """Rate the cells: sure of labels that end in a direction, `(e1,e2)`."""
        directed = sum(isinstance(value, str) and DIRECTION.search(value) is not None for value in values)
        if directed >= 0.5 * len(values):
            return Detection(0.95, f"{directed} of {len(values)} labels end in a direction, as (e1,e2)")
        return Detection(0.0, "labels without a direction")

    def reading(self, schema: Schema) -> Reading:
        """Return the text column, read at the markers of its entities, and the columns of these, if any.

        Raises:
            ConfigError: there is no such column, or it is not clear which is the text.
        """
        entities = self._entities(schema)
        used = [name for columns in entities for name in columns]
        others = replace(schema, columns={name: spec for name, spec in schema.columns.items() if name not in used})
        column = text_column(others, self.text, task=self.name, target=self.target)
        reading = Reading((column,), "markers", entities=entities, by_token=False)
        self.shows = reading.name
        return reading

    def _entities(self, schema: Schema) -> tuple[tuple[str, ...], ...]:
        """Return the columns of each entity; none if the text is tagged."""
        if self.head is not None and self.tail is not None:
            sides = [[side] if isinstance(side, str) else list(side) for side in (self.head, self.tail)]
            for name in (name for side in sides for name in side):
                if name not in schema.columns or name == self.target:
                    raise ConfigError(
                        f"tasks.{self.target} names {name!r} as an entity's column, which is none",
                        expected=", ".join(column for column in schema.columns if column != self.target),
                        do=nearest(name, schema.columns),
                    )
            return tuple(map(tuple, sides))
        known = {
            name.casefold(): name
            for name, spec in schema.columns.items()
            if spec.role in ("input", "id", "ignore") and name not in (self.text, self.target)
        }
        for pair in USUAL:
            sides = [_columns_of(name, known) for name in pair]
            if all(sides) and len(sides[0]) == len(sides[1]):
                return tuple(map(tuple, sides))
        return ()

    def fit(self, values: Sequence[Any]) -> None:
        """Learn the labels; check the one of no relation.

        Raises:
            TableError: there are fewer than two labels.
            ConfigError: no train row has the label that `none` names.
        """
        super().fit(values)
        if self.none is not None and self.none not in self.classes:
            raise ConfigError(
                f"tasks.{self.target}.none names the label {self.none!r}, which no train row has",
                expected=", ".join(self.classes[:20]),
                do=nearest(self.none, self.classes),
            )

    @property
    def no_relation(self) -> str | None:
        """The label of no relation, if there is one."""
        if self.none is not None:
            return self.none
        return next((label for label in self.classes if label.strip().lower() in NONE_WORDS), None)

    def metrics(self, scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
        """Return `relation_f1` and what `multiclass` has.

        `relation_f1` is the mean of the relations' F1 without the label of no relation, the official score of
        SemEval-2010 task 8: both directions are one relation, and an answer with the wrong direction is wrong.
        """
        f1 = self._relation_f1(scores.argmax(1), truth, weights) if len(truth) else float("nan")
        return {"relation_f1": f1} | measures.classification(scores, truth, weights)

    def _relation_f1(self, guesses: np.ndarray, truth: np.ndarray, weights: np.ndarray | None) -> float:
        names = [DIRECTION.sub("", label) for label in self.classes]
        kinds = list(dict.fromkeys(names))
        kind = np.array([kinds.index(name) for name in names])
        counts = [np.bincount(kind[labels], weights, len(kinds)) for labels in (guesses, truth)]
        right = guesses == truth
        hits = np.bincount(kind[truth[right]], None if weights is None else weights[right], len(kinds))
        counted = [number for number, name in enumerate(kinds) if name != self.no_relation]
        total = (counts[0] + counts[1])[counted]
        f1 = np.divide(2 * hits[counted], total, out=np.zeros(len(counted)), where=total > 0)
        return float(f1.mean()) if len(counted) else float("nan")

    def main_value(self, scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> float:
        """Return the main metric alone."""
        if self.main.name == "relation_f1" and len(truth):
            return self._relation_f1(scores.argmax(1), truth, weights)
        return super().main_value(scores, truth, weights)

    def panels(self, evidence: Evidence) -> list[Section]:
        """Return what `multiclass` has, and texts with both entities and their true and predicted relation."""
        sections = super().panels(evidence)
        if evidence.texts is None:
            return sections
        return [*sections, relation_texts(evidence, self.classes, self.no_relation, lambda x: DIRECTION.sub("", x))]

    def state(self) -> dict[str, Any]:
        """Return options, labels and counts."""
        options = {name: getattr(self, name) for name in ("text", "head", "tail", "none")}
        return {**super().state(), **options}


def _columns_of(name: str, known: Mapping[str, str]) -> list[str]:
    """Return the columns of an entity with a usual name: of its start and end, or of it, and of its type."""
    spans = [known[f"{name}_{part}"] for part in ("start", "end") if f"{name}_{part}" in known]
    types = [known[f"{name}_{part}"] for part in ("type", "label") if f"{name}_{part}" in known][:1]
    columns = spans if len(spans) == 2 else [known[name]] if name in known else []
    return [*columns, *types] if columns else []
