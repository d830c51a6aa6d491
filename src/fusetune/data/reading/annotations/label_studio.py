"""Reader of Label Studio's exports: JSON (tasks with annotations) and JSON-MIN (one flat object an annotation)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from fusetune.config.read import ReadConfig
from fusetune.data.reading.annotations.sample import Sample
from fusetune.data.reading.annotations.spans import RawSpan, SpanFault, SpanReader
from fusetune.data.reading.annotations.texts import RELATIONS, AnnotatedText, RawRelation, free_name, read_texts
from fusetune.data.reading.text_files import Parsed

ANNOTATIONS = ("annotations", "completions")
"""The key of a task's annotations; versions before 1.0 call them completions."""
ABOUT = ("annotator", "annotation_id", "created_at", "updated_at", "lead_time")
"""What JSON-MIN says of the annotation; no part of the text, so it is left out."""
VALUES = {"choices": "choices", "rating": "rating", "number": "number", "textarea": "text", "taxonomy": "taxonomy"}
"""The types of results about the whole text, and where their value is."""


def detect(sample: Sample) -> str | None:
    """Return why a file is Label Studio's, None if it is not."""
    rows = [row for row in sample.items if isinstance(row, dict)]
    for row in rows:
        if isinstance(row.get("data"), dict) and any(isinstance(row.get(key), list) for key in ANNOTATIONS):
            return "tasks with data and annotations"
    if any(_is_minimal(row) for row in rows):
        return "objects as of JSON-MIN, with annotation_id or regions with labels"
    return None


def _is_minimal(row: Mapping[str, Any]) -> bool:
    regions = (entry for cell in row.values() if isinstance(cell, list) for entry in cell)
    return "annotation_id" in row or any(_is_region(entry) for entry in regions)


def _is_region(entry: Any) -> bool:
    return isinstance(entry, dict) and {"start", "end", "labels"} <= entry.keys()


def read_label_studio(sample: Sample, read: ReadConfig) -> Parsed:
    """Read an export: the task's data, and a column for each tag of the labelling interface, under the tag's name.

    Regions with labels become a list of spans, choices a label (or a list, where several are chosen), ratings and
    numbers a number. Of several annotations of a task the ground truth is read, else the first that was not cancelled.
    """
    reader = _Tasks(SpanReader(read.offsets))
    parsed = read_texts(sample, read, reader.row, expected="tasks as Label Studio exports them")
    name, annotated = sample.path.name, [*reader.spans, *reader.about_text]
    if annotated:
        parsed.notes.append(
            f"{name}: annotated: {', '.join(annotated)}. Those that are no targets are inputs; "
            "columns.NAME=ignore leaves out what new texts do not have"
        )
    if reader.several:
        parsed.notes.append(
            f"{name}: {len(reader.several)} tasks have several annotations: the ground truth is read, else the first"
        )
    if reader.others:
        kinds = ", ".join(f"{kind} ({count})" for kind, count in reader.others.most_common(5))
        parsed.notes.append(f"{name}: results that are not about text are left out: {kinds}")
    return parsed


class _Tasks:
    """Turns tasks into rows. Rows are read several times; what the first time showed of all tasks is used later."""

    def __init__(self, reader: SpanReader) -> None:
        self.reader = reader
        self.texts: Counter[str] = Counter()
        self.lengths: Counter[str] = Counter()
        self.spans: dict[str, None] = {}
        self.about_text: dict[str, None] = {}
        self.has_relations = False
        self.several: set[Any] = set()
        self.others: Counter[str] = Counter()

    def row(self, task: Any) -> AnnotatedText:
        if not isinstance(task, dict):
            raise SpanFault("not a JSON object")
        key = next((key for key in ANNOTATIONS if key in task), None)
        if key is None and not isinstance(task.get("data"), dict):
            return self._minimal(task)
        data = task.get("data")
        if not isinstance(data, dict):
            raise SpanFault("the task has no data")
        cells = {**({"id": task["id"]} if "id" in task and "id" not in data else {}), **data}
        results = self._results(task, key)
        regions: dict[str, list[RawSpan]] = {}
        ids: dict[Any, list[RawSpan]] = {}
        relations: list[RawRelation] = []
        for result in results or ():
            if result.get("type") != "relation":
                self._result(result, data, cells, regions, ids)
        for result in results or ():
            if result.get("type") == "relation":
                relations += _relation(result, ids)
        return self._finished(cells, data, regions, relations if results is not None else None)

    def _results(self, task: dict[str, Any], key: str | None) -> list[dict[str, Any]] | None:
        """Return the results of the annotation that is read, None if nobody has annotated the task."""
        annotations = task.get(key) if key is not None else []
        if not isinstance(annotations, list) or not all(isinstance(entry, dict) for entry in annotations):
            raise SpanFault(f"{key} is no list of objects")
        done = [entry for entry in annotations if not entry.get("was_cancelled") and not entry.get("skipped")]
        if len(done) > 1:
            self.several.add(str(task.get("id", len(self.several))))
        chosen = next((entry for entry in done if entry.get("ground_truth")), done[0] if done else None)
        if chosen is None:
            return None
        results = chosen.get("result", [])
        if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
            raise SpanFault("the annotation's result is no list of objects")
        return results

    def _result(
        self,
        result: dict[str, Any],
        data: dict[str, Any],
        cells: dict[str, Any],
        regions: dict[str, list[RawSpan]],
        ids: dict[Any, list[RawSpan]],
    ) -> None:
        """Add one result to the row."""
        kind, value, name = result.get("type"), result.get("value"), result.get("from_name")
        if not isinstance(value, dict) or not isinstance(name, str) or not name.strip():
            raise SpanFault(f"the result {str(result.get('id'))[:40]!r} has no value or no from_name")
        if isinstance(value.get("labels"), list) and {"start", "end"} <= value.keys():
            spans = _spans(value)
            regions.setdefault(name, []).extend(spans)
            if isinstance(result.get("id"), str):
                ids.setdefault(result["id"], []).extend(spans)
        elif kind in VALUES and value.get(VALUES[kind]) is not None and "start" not in value:
            column = free_name(name, data)
            cells[column] = _single(value[VALUES[kind]])
            self.about_text[column] = None
        else:
            self.others[str(kind)] += 1

    def _minimal(self, row: dict[str, Any]) -> AnnotatedText:
        cells, regions = {}, {}
        for name, cell in row.items():
            if isinstance(cell, list) and cell and all(map(_is_region, cell)):
                regions[name] = [span for entry in cell for span in _spans(entry)]
            elif isinstance(cell, dict) and cell.keys() == {"choices"}:
                cells[name] = cell["choices"]
            elif name not in ABOUT:
                cells[name] = cell
        for name in [name for name in self.spans if cells.get(name) == []]:
            del cells[name]
        return self._finished(cells, cells, regions, [])

    def _finished(
        self,
        cells: dict[str, Any],
        data: dict[str, Any],
        regions: dict[str, list[RawSpan]],
        relations: list[RawRelation] | None,
    ) -> AnnotatedText:
        self.spans.update(dict.fromkeys(regions))
        self.has_relations |= bool(relations)
        empty: list[RawSpan] | None = None if relations is None else []
        spans = {free_name(name, data): regions.get(name, empty) for name in self.spans}
        text = self._text(data, [span for group in regions.values() for span in group])
        row = AnnotatedText(text, cells, spans)
        if self.has_relations and relations is not None:
            row.relations = relations
        return row

    def _text(self, data: Mapping[str, Any], spans: list[RawSpan]) -> str:
        """Return the text that the spans lie in: that of the column which has most tasks' spans.

        Raises:
            SpanFault: there are spans and no text.
        """
        texts = {name: cell for name, cell in data.items() if isinstance(cell, str)}
        if spans and not texts:
            raise SpanFault("the task's data has no text")
        self.texts.update(name for name, text in texts.items() if spans and self.reader.holds(text, spans))
        self.lengths.update({name: len(text) for name, text in texts.items()})
        return texts[max(texts, key=lambda name: (self.texts[name], self.lengths[name]))] if texts else ""


def _spans(value: Mapping[str, Any]) -> list[RawSpan]:
    labels, text = value["labels"], value.get("text")
    if not isinstance(labels, list) or not labels:
        raise SpanFault(f"{RawSpan(value['start'], value['end'], None).name} has no label")
    offsets = value.get("globalOffsets")
    bounds = offsets if isinstance(offsets, dict) and isinstance(value["start"], str) else value
    told = text if isinstance(text, str) else None
    return [RawSpan(bounds.get("start"), bounds.get("end"), label, told) for label in labels]


def _relation(result: dict[str, Any], ids: dict[Any, list[RawSpan]]) -> Iterable[RawRelation]:
    ends = [result.get("from_id"), result.get("to_id")]
    if not all(isinstance(end, str) and end in ids for end in ends):
        raise SpanFault(f"the relation of {ends[0]!r:.40} with {ends[1]!r:.40} is not between two regions")
    head, tail = (ids[end][0] for end in ends)
    if result.get("direction") == "left":
        head, tail = tail, head
    labels = result.get("labels") or [RELATIONS.removesuffix("s")]
    if not isinstance(labels, list):
        raise SpanFault(f"the relation of {head.name} with {tail.name} has labels that are no list")
    return [RawRelation(head, tail, label) for label in labels]


def _single(value: Any) -> Any:
    """Return the only element of a list, other values unchanged."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value
