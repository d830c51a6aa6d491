"""Reader of doccano's JSONL: `label: [[start, end, label]]`, or lists of entities and of relations."""

from __future__ import annotations

from typing import Any

from fusetune.config.read import ReadConfig
from fusetune.data.reading.annotations.sample import Sample
from fusetune.data.reading.annotations.spans import RawSpan, SpanFault
from fusetune.data.reading.annotations.texts import (
    RELATIONS,
    AnnotatedText,
    RawRelation,
    is_span_list,
    read_texts,
    text_of,
    triple,
)
from fusetune.data.reading.text_files import Parsed

TEXTS = ("text", "data")
LABELS = ("label", "labels")
ENTITIES = "entities"


def detect(sample: Sample) -> str | None:
    """Return why a file is doccano's, None if it is not."""
    rows = [row for row in sample.items if isinstance(row, dict) and any(key in row for key in TEXTS)]
    for row in rows:
        entities = row.get(ENTITIES)
        if isinstance(entities, list) and any(isinstance(e, dict) and "start_offset" in e for e in entities):
            return "objects with a text and entities with start_offset"
        if key := next((key for key in LABELS if is_span_list(row.get(key))), None):
            return f"objects with a text and {key}: [[start, end, label], ...]"
    return None


def read_doccano(sample: Sample, read: ReadConfig) -> Parsed:
    """Read doccano's export. Spans keep their column: `entities`, `label` or `labels`."""
    return read_texts(sample, read, _row, expected="objects with a text and spans, as doccano exports them")


def _row(value: Any) -> AnnotatedText:
    if not isinstance(value, dict):
        raise SpanFault("not a JSON object")
    key = next((key for key in TEXTS if key in value), None)
    if key is None:
        raise SpanFault("it has no text")
    text = text_of(value[key])
    row = AnnotatedText(text, {name: cell for name, cell in value.items() if name != "Comments"})
    ids: dict[Any, RawSpan] = {}
    for column in (ENTITIES, *LABELS):
        if column in value:
            row.spans[column] = _spans(value[column], column, ids)
    if RELATIONS in value:
        row.relations = _relations(value[RELATIONS], ids)
    return row


def _spans(entries: Any, column: str, ids: dict[Any, RawSpan]) -> list[RawSpan] | None:
    if entries is None:
        return None
    if not isinstance(entries, list):
        raise SpanFault(f"{column} is of type {type(entries).__name__}, no list of spans")
    spans = []
    for entry in entries:
        span = _entity(entry) if isinstance(entry, dict) else triple(entry)
        if isinstance(entry, dict) and isinstance(entry.get("id"), int | str):
            ids[entry["id"]] = span
        spans.append(span)
    return spans


def _entity(entry: dict[str, Any]) -> RawSpan:
    start, end = (entry.get(f"{name}_offset", entry.get(name)) for name in ("start", "end"))
    return RawSpan(start, end, entry.get("label"))


def _relations(entries: Any, ids: dict[Any, RawSpan]) -> list[RawRelation]:
    if not isinstance(entries, list):
        raise SpanFault(f"{RELATIONS} is of type {type(entries).__name__}, no list")
    relations = []
    for entry in entries:
        ends = [entry.get(name) for name in ("from_id", "to_id")] if isinstance(entry, dict) else []
        if len(ends) != 2 or not all(isinstance(end, int | str) and end in ids for end in ends):
            raise SpanFault(f"the relation {entry!r:.80} is not between two of the entities")
        relations.append(RawRelation(ids[ends[0]], ids[ends[1]], entry.get("type", entry.get("label"))))
    return relations
