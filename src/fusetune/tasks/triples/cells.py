"""Cells that hold the entities of a text and the relations between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NoReturn

from fusetune.data.distinct import is_missing
from fusetune.errors import BadCell, shown
from fusetune.tasks.answers.cells import parsed
from fusetune.tasks.entities.tagging import Span
from fusetune.tasks.entities.words import Unit, splits_by_unit, word_numbers, word_starts

Relation = tuple[int, int, str]
"""The head's number among a text's entities, the tail's, the label."""
Ends = tuple[int, int, str | None]
"""A span's first character, the one after its last, and its label, if it has one."""
UNNAMED = "entity"
"""The label of entities that have none."""
ENTITY_KEYS = ("start", "end", "label", "id", "text", "score")
RELATION_KEYS = ("head", "label", "tail", "score")
EXAMPLE = (
    '{"entities": [{"start": 0, "end": 3, "label": "person"}, ...], '
    '"relations": [{"head": 0, "label": "in", "tail": 1}]}'
)


@dataclass(frozen=True)
class Triples:
    """The entities of a text and the relations between them.

    Attributes:
        entities: (start, end, label) each, sorted; none overlaps another.
        relations: (head, tail, label) each, sorted; heads and tails are numbers of entities.
        split: by unit how many of the entities begin or end within one.
        positions: by entity, the number of the word at its beginning, from 0.
        num_words: of the text.
    """

    entities: tuple[Span, ...] = ()
    relations: tuple[Relation, ...] = ()
    split: Mapping[Unit, int] = field(default_factory=dict)
    positions: tuple[int, ...] = ()
    num_words: int = 0

    @property
    def triples(self) -> set[tuple[Span, str, Span]]:
        """The relations as (head, label, tail), with the entities as (start, end, label)."""
        return {(self.entities[head], label, self.entities[tail]) for head, tail, label in self.relations}


def is_triples(value: Any) -> bool:
    """Return whether a cell has entities and relations, or is a list of triples, empty or not."""
    value = parsed(value)
    if isinstance(value, Mapping):
        return "entities" in value and "relations" in value
    return isinstance(value, list) and all(
        isinstance(entry, Mapping) and {"head", "tail", "label"} <= entry.keys() for entry in value
    )


def read_triples(value: Any, listed: Any, text: str, *, row: int, column: str) -> Triples:
    """Return the entities and relations of a cell.

    Args:
        value: `{"entities": [...], "relations": [...]}`, or a list of relations, or either as JSON; missing for none.
        listed: the cell of a column of entities; missing without one.
        text: that the entities are in.
        row, column: for errors.

    Raises:
        BadCell: the cell has another form, an entity does not lie in the text or overlaps another, or a relation is not
            between two of them.
    """
    return _Reader(text, row, column).read(
        None if is_missing(value) else parsed(value), None if is_missing(listed) else parsed(listed)
    )


class _Reader:
    """Reads one cell; see `read_triples`.

    Attributes:
        labels: by the entities' (start, end), their labels.
        order: the listed entities, as (start, end).
        ids: by the listed entities' ids, the same.
    """

    def __init__(self, text: str, row: int, column: str) -> None:
        self.text, self.row, self.column = text, row, column
        self.labels: dict[tuple[int, int], str | None] = {}
        self.order: list[tuple[int, int]] = []
        self.ids: dict[int | str, tuple[int, int]] = {}

    def read(self, value: Any, listed: Any) -> Triples:
        """Return what a cell has, and the cell of the column of entities, if there is one."""
        relations = [] if value is None else value
        if isinstance(relations, Mapping):
            self._check_keys(relations, ("entities", "relations"), "cell")
            own, relations = relations.get("entities"), relations.get("relations")
            relations = [] if relations is None else relations
            if listed is not None and own is not None:
                self._refuse(value, "it has entities, and so has the column of entities", "give them once")
            listed = (own if own is not None else []) if listed is None else listed
        for entry in self._list(listed, "entities") if listed is not None else ():
            self._list_entity(entry)
        ends = []
        for entry in self._list(relations, "relations"):
            if not isinstance(entry, Mapping):
                self._refuse(entry, f"{shown(entry)} is no relation", f"give {EXAMPLE}")
            self._check_keys(entry, RELATION_KEYS, "relation")
            label = self._label(entry.get("label"), entry)
            head, tail = (self._end(entry, side, open_to_all=listed is None) for side in ("head", "tail"))
            if head == tail:
                self._refuse(entry, f"the relation {label!r} is of an entity with itself", "give two entities")
            ends.append((head, tail, label))
        return self._made(ends)

    def _made(self, ends: Sequence[tuple[tuple[int, int], tuple[int, int], str]]) -> Triples:
        entities = sorted((*span, label or UNNAMED) for span, label in self.labels.items())
        for before, after in pairwise(entities):
            if after[0] < before[1]:
                self._refuse(
                    [before, after],
                    f"the entities {before} and {after} overlap",
                    "keep one of them: entities of triples do not overlap",
                )
        number = {span[:2]: index for index, span in enumerate(entities)}
        relations = sorted({(number[head], number[tail], label) for head, tail, label in ends})
        starts = word_starts(self.text)
        positions = word_numbers(starts, [start for start, *_ in entities])
        split = splits_by_unit(self.text, entities)
        return Triples(tuple(entities), tuple(relations), split, tuple(positions), len(starts))

    def _list_entity(self, entry: Any) -> None:
        start, end, label = self._span(entry)
        self._name((start, end), label, entry)
        self.order.append((start, end))
        if not isinstance(entry, Mapping) or entry.get("id") is None:
            return
        key = entry["id"]
        if not isinstance(key, int | str):
            self._refuse(entry, f"the id {shown(key)} is no number and no text", "give each entity an id of its own")
        if self.ids.get(key, (start, end)) != (start, end):
            self._refuse(entry, f"two entities have the id {shown(key)}", "give each entity an id of its own")
        self.ids[key] = start, end

    def _end(self, relation: Mapping[str, Any], side: str, *, open_to_all: bool) -> tuple[int, int]:
        """Return the entity at a side of a relation, as (start, end).

        Args:
            relation: the entry.
            side: "head" or "tail".
            open_to_all: whether it may be an entity that is not listed.
        """
        value = relation.get(side)
        if isinstance(value, Mapping | list | tuple):
            start, end, label = self._span(value)
            if not open_to_all and (start, end) not in self.labels:
                why = f"its {side}, {start} to {end}, is not among the entities"
                self._refuse(relation, why, "list it among the entities")
            self._name((start, end), label, relation)
            return start, end
        if self.ids:
            if isinstance(value, int | str) and value in self.ids:
                return self.ids[value]
            why = f"its {side} is {shown(value)}, and no entity has this id"
            self._refuse(relation, why, "name the entity by its id")
        if isinstance(value, bool) or not isinstance(value, int):
            why = f"its {side} is {shown(value)}, no entity"
            self._refuse(relation, why, "give the entity's number from 0, its id, or its start and end")
        if not 0 <= value < len(self.order):
            why = f"its {side} is entity {value}, and there are {len(self.order)}, counted from 0"
            self._refuse(relation, why, "count the entities from 0")
        return self.order[value]

    def _span(self, entry: Any) -> Ends:
        if isinstance(entry, Mapping):
            self._check_keys(entry, ENTITY_KEYS, "entity")
            parts = [entry.get(key) for key in ("start", "end", "label")]
        elif isinstance(entry, list | tuple) and len(entry) in (2, 3):
            parts = [*entry, None][:3]
        else:
            self._refuse(entry, f"{shown(entry)} is no entity", 'give {"start": 0, "end": 3, "label": "person"}')
        offsets: list[int] = []
        for name, offset in zip(("start", "end"), parts[:2], strict=True):
            if isinstance(offset, bool) or not isinstance(offset, int | float) or offset != offset // 1:
                self._refuse(entry, f"its {name} is {shown(offset)}, no whole number", "count characters from 0")
            offsets.append(int(offset))
        start, end = offsets
        count = "count characters from 0, end exclusive"
        if not 0 <= start < end <= len(self.text):
            size = len(self.text)
            self._refuse(entry, f"the entity {start} to {end} does not lie in the text of {size} characters", count)
        words = entry.get("text") if isinstance(entry, Mapping) else None
        if words is not None and words != self.text[start:end]:
            there = shown(self.text[start:end], 40)
            self._refuse(entry, f"characters {start} to {end} of the text are {there}, not {shown(words, 40)}", count)
        return start, end, None if parts[2] is None else self._label(parts[2], entry)

    def _name(self, span: tuple[int, int], label: str | None, entry: Any) -> None:
        known = self.labels.get(span)
        if known is not None and label is not None and known != label:
            why = f"the entity {span[0]} to {span[1]} is {known!r} and {label!r}"
            self._refuse(entry, why, "give each entity one label")
        self.labels[span] = known if label is None else label

    def _label(self, label: Any, entry: Any) -> str:
        if not isinstance(label, str) or not label.strip():
            self._refuse(entry, f"its label is {shown(label)}, no text", "give every relation and entity a label")
        return label

    def _list(self, value: Any, name: str) -> list[Any]:
        if not isinstance(value, list | tuple):
            self._refuse(value, f"{name} are no list, but {shown(value)}", f"give {EXAMPLE}")
        return list(value)

    def _check_keys(self, entry: Mapping[str, Any], known: Sequence[str], what: str) -> None:
        # A table of records has every key in every record, None where there is no value.
        unknown = [key for key, value in entry.items() if key not in known and value is not None]
        if unknown:
            why = f"the {what} has the key {shown(unknown[0])}, which is unknown"
            self._refuse(entry, why, f"known are {', '.join(known)}")

    def _refuse(self, value: Any, why: str, do: str) -> NoReturn:
        raise BadCell(row=self.row, column=self.column, value=value, why=why, do=do)
