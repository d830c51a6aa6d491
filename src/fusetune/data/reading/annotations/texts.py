"""Annotated texts: what the readers of Label Studio, doccano and spaCy files have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fusetune.config.read import ReadConfig
from fusetune.data.reading.annotations.sample import Sample
from fusetune.data.reading.annotations.spans import RawSpan, SpanFault, SpanReader
from fusetune.data.reading.json_items import Item, items_of
from fusetune.data.reading.records import parse_records
from fusetune.data.reading.text_files import Parsed

RELATIONS = "relations"
"""The column of relations: a list of `{"head", "tail", "label"}`, head and tail as spans."""


@dataclass(frozen=True)
class RawRelation:
    """A relation between two of a text's spans, as the file has it."""

    head: RawSpan
    tail: RawSpan
    label: Any


@dataclass
class AnnotatedText:
    """A row of an annotation file.

    Attributes:
        text: what the spans lie in.
        spans: by column; None for a row that nobody has annotated.
        relations: between spans; None where the file has none at all.
        cells: the other columns, the text's own among them.
    """

    text: str
    cells: dict[str, Any]
    spans: dict[str, list[RawSpan] | None] = field(default_factory=dict)
    relations: list[RawRelation] | None = None


def read_texts(sample: Sample, read: ReadConfig, parse: Callable[[Any], AnnotatedText], *, expected: str) -> Parsed:
    """Read a JSON file of annotated texts. A text with a span or a relation that cannot be used is rejected.

    Args:
        sample: the file.
        read: the settings.
        parse: turns a JSON value into a row, or raises `SpanFault`.
        expected: what the file should hold, for errors.
    """
    path, spans = sample.path, SpanReader(read.offsets)

    def rows() -> Iterator[tuple[Item, AnnotatedText | SpanFault]]:
        for item in items_of(path, sample.encoding, sample.layout, sample.key):
            try:
                if item.fault is not None:
                    raise SpanFault(item.fault)
                yield item, parse(item.value)
            except SpanFault as fault:
                yield item, fault

    for _, row in rows():
        if isinstance(row, AnnotatedText):
            spans.survey(row.text, [span for group in row.spans.values() for span in group or ()])

    def records(parsed: Parsed) -> Iterator[dict[str, Any]]:
        for item, row in rows():
            try:
                if isinstance(row, SpanFault):
                    raise row
                record = _record(row, spans)
            except SpanFault as fault:
                parsed.reject(item.text, f"{item.where}: {fault}", path)
                continue
            parsed.rows_in += 1
            yield record

    parsed = parse_records(path, records, expected=expected)
    parsed.notes += [f"{path.name}: {note}" for note in spans.notes()]
    return parsed


def _record(row: AnnotatedText, spans: SpanReader) -> dict[str, Any]:
    raw = [span for group in row.spans.values() for span in group or ()]
    checked = {id(span): entry for span, entry in zip(raw, spans.read(row.text, raw), strict=True)}
    record = dict(row.cells)
    for column, group in row.spans.items():
        entries = [checked[id(span)] for span in group or ()]
        distinct = {tuple(entry.values()): entry for entry in entries}
        record[column] = None if group is None else list(distinct.values())
    if row.relations is not None:
        record[RELATIONS] = [
            {"head": checked[id(relation.head)], "tail": checked[id(relation.tail)], "label": _label(relation)}
            for relation in row.relations
        ]
    return record


def _label(relation: RawRelation) -> str:
    if not isinstance(relation.label, str) or not relation.label.strip():
        raise SpanFault(f"the relation of {relation.head.name} with {relation.tail.name} has no label")
    return relation.label.strip()


def free_name(name: str, taken: dict[str, Any]) -> str:
    """Return the name, with underscores appended until no column has it."""
    while name in taken:
        name += "_"
    return name


def is_span_list(value: Any) -> bool:
    """Return whether a value is a list of `[start, end, label]`, at least one."""
    return isinstance(value, list) and bool(value) and all(isinstance(e, list) and len(e) == 3 for e in value)


def triple(entry: Any) -> RawSpan:
    """Return a `[start, end, label]` as a span.

    Raises:
        SpanFault: it has another form.
    """
    if not isinstance(entry, list | tuple) or len(entry) < 3:
        raise SpanFault(f"{entry!r:.60} is no [start, end, label]")
    return RawSpan(*entry[:3])


def text_of(value: Any) -> str:
    """Return a text.

    Raises:
        SpanFault: it is none.
    """
    if not isinstance(value, str):
        raise SpanFault(f"the text is of type {type(value).__name__}")
    return value
