"""Reader of spaCy's training tuples as JSON: `["text", {"entities": [[start, end, label]]}]`."""

from __future__ import annotations

from typing import Any

from fusetune.config.read import ReadConfig
from fusetune.data.reading.annotations.sample import Sample
from fusetune.data.reading.annotations.spans import SpanFault
from fusetune.data.reading.annotations.texts import AnnotatedText, read_texts, text_of, triple
from fusetune.data.reading.text_files import Parsed

ENTITIES = "entities"


def detect(sample: Sample) -> str | None:
    """Return why a file has spaCy's tuples, None if it has not."""
    if any(_is_tuple(value) for value in sample.items):
        return 'lists ["text", {"entities": [[start, end, label], ...]}]'
    return None


def _is_tuple(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], dict)
        and ENTITIES in value[1]
    )


def read_spacy(sample: Sample, read: ReadConfig) -> Parsed:
    """Read spaCy's tuples: columns `text` and `entities`."""
    return read_texts(sample, read, _row, expected='lists ["text", {"entities": [[0, 3, "person"]]}]')


def _row(value: Any) -> AnnotatedText:
    if not isinstance(value, list) or len(value) != 2:
        raise SpanFault('not a list ["text", {"entities": [...]}]')
    text, annotations = text_of(value[0]), value[1]
    if not isinstance(annotations, dict):
        raise SpanFault(f"the annotations are of type {type(annotations).__name__}, no object")
    entities = annotations.get(ENTITIES)
    if entities is not None and not isinstance(entities, list):
        raise SpanFault(f"{ENTITIES} is of type {type(entities).__name__}, no list")
    return AnnotatedText(text, {"text": text}, {ENTITIES: None if entities is None else [*map(triple, entities)]})
