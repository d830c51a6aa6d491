"""Panels about triples: figures and errors by relation, and texts with true and predicted entities and triples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusetune.tasks.panels.entities import ERRORS as ENTITY_ERRORS
from fusetune.tasks.panels.entities import MAX_TYPES, compare, figures_by_label, labels_panel
from fusetune.tasks.panels.kinds import Evidence, Head, MarkedLine, MarkedSpan, Section, TablePanel
from fusetune.tasks.panels.texts import Compared, cut, text_of, texts_section

Triple = tuple[tuple[int, int, str], str, tuple[int, int, str]]
"""Head, relation, tail; the entities as (start, end, label)."""
ENTITY, RELATION, DIRECTION, MISSED, INVENTED = (
    *("wrong entity", "wrong relation", "wrong direction", "missed", "invented"),
)
ERRORS = (RELATION, DIRECTION, MISSED, INVENTED, ENTITY)
MEANINGS = (
    "Wrong entity: one of the two is not predicted, or not a true one, with these characters and this type. Wrong "
    "relation: both entities are right. Wrong direction: head and tail are the other way round. Missed: no relation is "
    "predicted between both entities. Invented: there is none."
)


def triple_of(answer: Mapping[str, Any]) -> Triple:
    """Return an answer's triple with the entities as (start, end, label)."""
    head, tail = ((answer[side]["start"], answer[side]["end"], answer[side]["label"]) for side in ("head", "tail"))
    return head, answer["label"], tail


def outcomes_of(
    triples: set[Triple], others: set[Triple], other_entities: set[tuple[int, int, str]], alone: str
) -> dict[Triple, str]:
    """Return the outcome of each triple of one side, true or predicted, "right" or one of `ERRORS`.

    Args:
        triples: of this side.
        others: of the other side.
        other_entities: of the other side.
        alone: the outcome where the other side has both entities and no relation between them.
    """
    pairs = {(head, tail) for head, _, tail in others}
    outcomes = {}
    for head, label, tail in sorted(triples):
        if (head, label, tail) in others:
            outcome = "right"
        elif not {head, tail} <= other_entities:
            outcome = ENTITY
        elif (tail, label, head) in others and (head, tail) not in pairs:
            outcome = DIRECTION
        else:
            outcome = RELATION if (head, tail) in pairs else alone
        outcomes[head, label, tail] = outcome
    return outcomes


def triple_sections(evidence: Evidence, relations: Sequence[str]) -> list[Section]:
    """Return figures by relation, errors by relation, and texts with true and predicted entities and triples.

    Args:
        evidence: answers, dictionaries of entities and triples, and truth, `Triples`.
        relations: the labels; true triples may have others, which no train row has.
    """
    counts: dict[str, Counter[str]] = {label: Counter() for label in relations}
    compared: list[_Row] = []
    for true, answer in zip(evidence.truth, evidence.answers, strict=True):
        guessed = set(map(triple_of, answer["triples"]))
        entities = [(entity["start"], entity["end"], entity["label"]) for entity in answer["entities"]]
        right = outcomes_of(true.triples, guessed, set(entities), MISSED)
        found = outcomes_of(guessed, true.triples, set(true.entities), INVENTED)
        for (_, label, _), outcome in right.items():
            counts.setdefault(label, Counter()).update(["true", outcome])
        for (_, label, _), outcome in found.items():
            counts[label].update(["predicted", *([INVENTED] if outcome == INVENTED else [])])
        compared.append(_Row(compare(true.entities, entities), (right, found)))
    order = sorted(counts, key=lambda label: -counts[label]["true"])
    note = "A triple is right if both entities' characters and types, the relation and its direction are."
    figures = figures_by_label(counts, order, evidence.intervals, "relation")
    sections = [Section("relations", "By relation", [*figures], [note]), _errors(counts, order)]
    if evidence.texts is not None:
        outcomes = [row.outcomes() for row in compared]
        kinds = (*ERRORS, *ENTITY_ERRORS)
        shown = texts_section(outcomes, lambda at: compared[at].drawn(evidence, at), evidence, kinds, "entities")
        sections.append(shown)
    return sections


@dataclass(frozen=True)
class _Row:
    """A row's true and predicted entities, and its true and predicted triples by their outcomes."""

    entities: tuple[list[MarkedSpan], list[MarkedSpan]]
    triples: tuple[dict[Triple, str], dict[Triple, str]]

    def outcomes(self) -> set[str]:
        """Return the outcomes of all entities and triples."""
        spans = {span.outcome for side in self.entities for span in side}
        return spans.union(*(side.values() for side in self.triples))

    def drawn(self, evidence: Evidence, at: int) -> Compared:
        """Return the row, at a position of the evidence, as it is drawn."""
        text = text_of(evidence, at)
        right, found = ([_line(triple, outcome, text) for triple, outcome in side.items()] for side in self.triples)
        return Compared(*self.entities, right, found)


def _line(triple: Triple, outcome: str, text: str) -> MarkedLine:
    head, label, tail = triple
    one, two = (cut(text[start:end]) for start, end, _ in (head, tail))
    return MarkedLine(f"{one} — {label} → {two}", outcome)


def _errors(counts: Mapping[str, Counter[str]], order: Sequence[str]) -> Section:
    kinds = ("right", *ERRORS)
    rows: list[list[Any]] = [[label, *(counts[label][kind] for kind in kinds)] for label in order]
    shown = [row for row in rows if any(row[1:])][:MAX_TYPES]
    total = [sum(row[place] for row in rows) for place in range(1, len(kinds) + 1)]
    heads = [Head("relation"), *(Head(name, "count") for name in kinds)]
    figures = {kind.replace(" ", "_"): float(number) for kind, number in zip(ERRORS, total[1:], strict=True)}
    panels = [TablePanel(heads, [*shown, ["all", *total]])]
    return Section(
        "errors", "Errors by relation", [*panels], [f"Of true triples, but for invented ones. {MEANINGS}"], figures
    )


def relations_panel(truths: Mapping[str, np.ndarray], relations: Sequence[str]) -> TablePanel:
    """Return a table of each relation's triples by split, and of the rows without any.

    Args:
        truths: by split, (rows,) of `Triples`.
        relations: the labels; true triples may have others, which no train row has.
    """
    labels = {split: [[label for *_, label in true.relations] for true in truth] for split, truth in truths.items()}
    return labels_panel(labels, relations, "relation", "triples")
