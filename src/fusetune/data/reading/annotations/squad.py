"""Reader of SQuAD's JSON, versions 1.1 and 2.0: one row a question."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fusetune.config.read import ReadConfig
from fusetune.data.reading.annotations.sample import Sample
from fusetune.data.reading.annotations.spans import SpanFault, units_of
from fusetune.data.reading.json_items import items_of
from fusetune.data.reading.records import parse_records
from fusetune.data.reading.text_files import Parsed
from fusetune.errors import shown

GROUPS = 10
"""Files of fewer articles have no column of them, as they are too few to split by."""


def detect(sample: Sample) -> str | None:
    """Return why a file is SQuAD's, None if it is not."""
    if sample.key == "data" and any(isinstance(item, dict) and "paragraphs" in item for item in sample.items[:3]):
        return "an object with data, a list of articles with paragraphs"
    return None


def read_squad(sample: Sample, read: ReadConfig) -> Parsed:
    """Read questions: columns `id`, `document_id` (the article's title), `question`, `context` and `answer`.

    An answer is `{"text": [...], "answer_start": [...]}`, with empty lists for a question without one. A question whose
    answer is not at its start is rejected.
    """
    path = sample.path

    def articles() -> Iterator[Any]:
        return items_of(path, sample.encoding, "object", sample.key or "data")

    titles = {item.value.get("title") for item in articles() if isinstance(item.value, dict) and _plain(item.value)}
    with_titles = len(titles) >= GROUPS

    def records(parsed: Parsed) -> Iterator[dict[str, Any]]:
        for item in articles():
            if item.fault is not None:
                parsed.reject(item.text, f"{item.where}: {item.fault}", path)
                continue
            for where, question, context in _questions(item.value):
                try:
                    record = _row(question, context, read)
                except SpanFault as fault:
                    parsed.reject(shown(question, 200), f"{item.where}, {where}: {fault}", path)
                    continue
                parsed.rows_in += 1
                title = {"document_id": item.value["title"]} if with_titles and _plain(item.value) else {}
                yield title | record

    return parse_records(path, records, expected="questions as in SQuAD")


def _plain(article: dict[str, Any]) -> bool:
    return isinstance(article.get("title"), str)


def _questions(article: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield (position, question, context); None as the context of what is no list of questions."""
    paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
    if not isinstance(paragraphs, list):
        yield "the article", "no list of paragraphs", None
        return
    for number, paragraph in enumerate(paragraphs):
        questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
        if not isinstance(questions, list):
            yield f"paragraph {number}", "no list of questions (qas)", None
            continue
        for index, question in enumerate(questions):
            yield f"paragraph {number}, question {index}", question, paragraph.get("context")


def _row(question: Any, context: Any, read: ReadConfig) -> dict[str, Any]:
    if isinstance(question, str) and context is None:
        raise SpanFault(question)
    if not isinstance(question, dict) or not isinstance(question.get("question"), str):
        raise SpanFault("it has no question")
    if not isinstance(context, str):
        raise SpanFault("the paragraph has no context")
    number = question.get("id")
    key = {} if number is None else {"id": number if isinstance(number, str) else str(number)}
    answer = _answer(question, context, read)
    return key | {"question": question["question"], "context": context, "answer": answer}


def _answer(question: dict[str, Any], context: str, read: ReadConfig) -> dict[str, list[Any]] | None:
    impossible, answers = question.get("is_impossible"), question.get("answers")
    if impossible not in (None, True, False):
        raise SpanFault(f"is_impossible is {shown(impossible, 40)}, not true or false")
    if answers is None:
        return {"text": [], "answer_start": []} if impossible else None
    if not isinstance(answers, list):
        raise SpanFault(f"answers is of type {type(answers).__name__}, no list")
    if impossible is not None and bool(answers) == impossible:
        raise SpanFault(f"is_impossible is {str(impossible).lower()}, and there are {len(answers)} answers")
    pairs = [_place(answer, context, read) for answer in answers]
    return {"text": [text for text, _ in pairs], "answer_start": [start for _, start in pairs]}


def _place(answer: Any, context: str, read: ReadConfig) -> tuple[str, int]:
    """Return an answer's text and its first character."""
    text, start = (answer.get("text"), answer.get("answer_start")) if isinstance(answer, dict) else (None, None)
    if not isinstance(text, str) or not text.strip():
        raise SpanFault(f"the answer {shown(answer, 60)} has no text")
    if isinstance(start, bool) or not isinstance(start, int):
        raise SpanFault(f"the answer {shown(text, 40)} starts at {shown(start, 40)}, which is no whole number")
    for unit in units_of(read.offsets):
        positions = unit.positions(context)
        if 0 <= start < len(positions) and (first := positions[start]) >= 0 and context.startswith(text, first):
            return text, first
    there = context[start : start + len(text)] if start >= 0 else ""
    raise SpanFault(f"the answer {shown(text, 40)} starts at {start}, where the context has {shown(there, 40)}")
