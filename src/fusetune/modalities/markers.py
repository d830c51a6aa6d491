"""Two marked entities in a text: by tags in the text, or by their characters or words in further cells."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Sequence
from typing import Any

from fusetune.errors import BadCell, shown

ENTITY = re.compile(r"<(/?)(e[12])(?: ([^<>]*))?>")
"""The tags of two entities in a text, as `<e1>x</e1>`, or with a type, as `<e1 person>x</e1>`."""
MARKERS = {"e1": "@", "e2": "#"}
"""What stands on both sides of an entity in the text that is read."""
TYPE_MARKERS = {"e1": "*", "e2": "^"}
"""What stands on both sides of its type."""
NAMES = tuple(MARKERS)
Span = tuple[int, int, str | None]
"""An entity's first character, the one after its last, and its type."""


def mark_entities(text: str) -> tuple[str, list[int]]:
    """Return a text with its entities' tags replaced by markers, and where the first marker of each entity is.

    The markers are punctuation that every tokenizer knows (Zhou and Chen 2022, arXiv 2102.01373, "entity marker
    (punct)"), so that no embedding has to be learned from nothing. A type stands before its entity ("typed entity
    marker (punct)").

    Raises:
        ValueError: the text has not exactly one `<e1>...</e1>` and one `<e2>...</e2>`.

    Example:
        >>> mark_entities("A <e1>ridge</e1> in the <e2>surge</e2>.")
        ('A @ ridge @ in the # surge #.', [2, 19])
        >>> mark_entities("<e1 person>Ann</e1> in <e2 city>Oslo</e2>")
        ('@ * person * Ann @ in # ^ city ^ Oslo #', [0, 22])
    """
    if not is_tagged(text):
        tags = [f"<{match.group(1)}{match.group(2)}>" for match in ENTITY.finditer(text)]
        raise ValueError(f"tags in the text: {', '.join(tags) or 'none'}")
    made, last, first = "", 0, dict[str, int]()
    for match in ENTITY.finditer(text):
        made += text[last : match.start()]
        name, kind = match.group(2), (match.group(3) or "").strip()
        if match.group(1):
            made += f" {MARKERS[name]}"
        else:
            first[name] = len(made)
            made += f"{MARKERS[name]} " + (f"{TYPE_MARKERS[name]} {kind} {TYPE_MARKERS[name]} " if kind else "")
        last = match.end()
    return made + text[last:], [first[name] for name in NAMES]


def without_tags(text: str) -> tuple[str, list[Span]]:
    """Return a text without the tags of its entities, and the entities that have both tags.

    Example:
        >>> without_tags("<e1 person>Ann</e1> in <e2>Oslo</e2>")
        ('Ann in Oslo', [(0, 3, 'person'), (7, 11, None)])
    """
    made, last, begun, spans = "", 0, dict[str, tuple[int, str | None]](), dict[str, Span]()
    for match in ENTITY.finditer(text):
        made, last = made + text[last : match.start()], match.end()
        name = match.group(2)
        if not match.group(1):
            begun[name] = len(made), (match.group(3) or "").strip() or None
        elif name in begun:
            start, kind = begun[name]
            spans[name] = start, len(made), kind
    return made + text[last:], [spans[name] for name in NAMES if name in spans]


def is_tagged(text: str) -> bool:
    """Return whether a text has exactly one `<e1>...</e1>` and one `<e2>...</e2>`."""
    tags = [match.group(1) + match.group(2) for match in ENTITY.finditer(text)]
    return sorted(tags) == ["/e1", "/e2", "e1", "e2"] and all(
        tags.index(f"/{name}") > tags.index(name) for name in NAMES
    )


def with_tags(text: str, entities: Sequence[Any], *, row: int, column: str) -> str:
    """Return a text with tags around two entities. A text that has both pairs of tags is returned unchanged.

    Args:
        text: without tags.
        entities: two cells, see `entity_span`.
        row, column: for errors.

    Raises:
        BadCell: an entity is missing, or not in the text, or the text has some of the tags.

    Example:
        >>> with_tags("Ann lives in Oslo", [{"start": 0, "end": 3, "label": "person"}, "Oslo"], row=0, column="text")
        '<e1 person>Ann</e1> lives in <e2>Oslo</e2>'
    """
    if is_tagged(text):
        return text
    if (match := ENTITY.search(text)) is not None:
        do = "tag both entities, or none and give them in columns"
        raise BadCell(row=row, column=column, value=text, why=f"it has the tag {match.group()}, but not all", do=do)
    spans = [entity_span(cell, text, name, row=row, column=column) for name, cell in zip(NAMES, entities, strict=True)]
    edges = []  # an entity within another is opened after it and closed before it
    for number, (name, (start, end, kind)) in enumerate(zip(NAMES, spans, strict=True)):
        edges.append((start, 1, -end, number, f"<{name}{f' {_clean(kind)}' if kind else ''}>"))
        edges.append((end, 0, -start, -number, f"</{name}>"))
    made, last = "", 0
    for place, *_, tag in sorted(edges):
        made, last = made + text[last:place] + tag, place
    return made + text[last:]


def _clean(kind: str) -> str:
    """Return a type without the signs of tags."""
    return kind.replace("<", "").replace(">", "").strip()


def entity_span(cell: Any, text: str, name: str, *, row: int, column: str) -> Span:
    """Return where an entity is in a text.

    Args:
        cell: its text, `{start, end}` with a `label` or `type`, `{text}`, or a list of start and end, or of text, with
            the type at its end; in place of an object or a list also its JSON.
        text: that has it.
        name: of the entity, for errors.
        row, column: for errors.

    Raises:
        BadCell: the cell is none of these, the entity is not in the text, or its words are there more than once.
    """

    def refuse(why: str, do: str) -> BadCell:
        return BadCell(row=row, column=column, value=cell, why=f"{name}: {why}", do=do)

    form = "give its words, or {start, end} in characters"
    words, start, end, kind = _parts(cell)
    if words is None and (start is None or end is None):
        why = "the entity is missing" if _is_missing(cell) else "the cell names no entity"
        raise refuse(why, form)
    if start is not None and end is not None:
        if not 0 <= start < end <= len(text):
            raise refuse(f"characters {start} to {end} are not in a text of {len(text)}", form)
        if words is not None and text[start:end] != words:
            why = f"characters {start} to {end} are {shown(text[start:end], 40)}, not {shown(words, 40)}"
            raise refuse(why, "count from 0, end excluded")
        return start, end, kind
    assert words is not None
    places = [match.start() for match in re.finditer(rf"(?<!\w){re.escape(words)}(?!\w)", text)]
    places = places or [match.start() for match in re.finditer(re.escape(words), text)]
    if start is not None and start in places:
        places = [start]
    if not places:
        raise refuse(f"{shown(words, 40)} is not in the text", form)
    if len(places) > 1:
        raise refuse(f"{shown(words, 40)} is {len(places)} times in the text", "give its {start, end} in characters")
    return places[0], places[0] + len(words), kind


def _parts(cell: Any) -> tuple[str | None, int | None, int | None, str | None]:
    """Return an entity's words, first character, the one after its last, and type; None for what is not given."""
    if isinstance(cell, str) and cell.lstrip()[:1] in ("{", "["):
        with contextlib.suppress(ValueError, RecursionError):  # words that begin with a bracket
            cell = json.loads(cell)
    if isinstance(cell, dict):
        start, end = _number(cell.get("start")), _number(cell.get("end"))
        kind = next((cell[key] for key in ("label", "type") if isinstance(cell.get(key), str)), None)
        words = cell.get("text")
        return (words if isinstance(words, str) and words else None), start, end, kind
    if isinstance(cell, list | tuple):
        numbers = [number for number in map(_number, cell[:2]) if number is not None]
        rest = [part for part in cell[len(numbers) :] if isinstance(part, str) and part]
        if len(numbers) == 2:
            return None, numbers[0], numbers[1], rest[0] if rest else None
        words, kind = [*rest, None, None][:2]
        return words, numbers[0] if numbers else None, None, kind
    return (cell if isinstance(cell, str) and cell.strip() else None), None, None, None


def _number(value: Any) -> int | None:
    """Return a whole number, also from its text; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"\s*\d+(\.0+)?\s*", value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(value) if value == int(value) else None


def _is_missing(cell: Any) -> bool:
    return cell is None or cell == "" or cell == [] or (isinstance(cell, float) and math.isnan(cell))
