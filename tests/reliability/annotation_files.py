"""Annotated texts written in each format of annotation files, for tests of the readers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Span = tuple[int, int, str]


@dataclass(frozen=True)
class Sentence:
    """Words, and entities as (first word, the one after the last, label), none overlapping another."""

    words: tuple[str, ...]
    entities: tuple[Span, ...]

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @property
    def spans(self) -> list[Span]:
        """The entities in characters of the text."""
        starts = [sum(len(word) + 1 for word in self.words[:index]) for index in range(len(self.words))]
        return [(starts[a], starts[b - 1] + len(self.words[b - 1]), label) for a, b, label in self.entities]


GOOD = [
    Sentence(("Ada", "Lovelace", "met", "Bo", "in", "Rome", "."), ((0, 2, "PER"), (3, 4, "PER"), (5, 6, "LOC"))),
    Sentence(("Nobody", "came", "."), ()),
    Sentence(("👩", "Cleo", "saw", "Oslo", "and", "Lima"), ((1, 2, "PER"), (3, 4, "LOC"), (5, 6, "LOC"))),
    Sentence(("Élodie", "Doe", "Bo", "left"), ((0, 2, "PER"), (2, 3, "PER"))),
]


def utf16(text: str, index: int) -> int:
    """The offset of a character in UTF-16 code units, as JavaScript counts."""
    return len(text[:index].encode("utf-16-le")) // 2


def tags(sentence: Sentence, scheme: str) -> list[str]:
    """The words' tags in BIO, IOB1, BIOES, BILOU or BMEWO."""
    result = ["O"] * len(sentence.words)
    inside, last, single = {"BIOES": "IES", "BILOU": "ILU", "BMEWO": "MEW"}.get(scheme, "IIB")
    before: Span = (0, -1, "")
    for first, end, label in sentence.entities:
        begin = "I" if scheme == "IOB1" and not (before[1] == first and before[2] == label) else "B"
        for index in range(first, end):
            prefix = begin if index == first else last if index == end - 1 else inside
            result[index] = f"{single if end - first == 1 and scheme != 'IOB1' else prefix}-{label}"
        before = (first, end, label)
    return result


def conll(sentences: Sequence[Sentence], scheme: str = "BIO", separator: str = "\t", middle: Sequence[str] = ()) -> str:
    blocks = []
    for sentence in sentences:
        pairs = zip(sentence.words, tags(sentence, scheme), strict=True)
        blocks.append("".join(separator.join([word, *middle, tag]) + "\n" for word, tag in pairs))
    return "\n".join(blocks)


def doccano(sentences: Sequence[Sentence]) -> str:
    rows = [{"id": n, "text": one.text, "label": list(map(list, one.spans))} for n, one in enumerate(sentences)]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def doccano_entities(sentences: Sequence[Sentence]) -> str:
    rows = []
    for sentence in sentences:
        entities = [
            {"id": index, "label": label, "start_offset": start, "end_offset": end}
            for index, (start, end, label) in enumerate(sentence.spans)
        ]
        relations = [{"id": 0, "from_id": 0, "to_id": 1, "type": "near"}] if len(entities) > 1 else []
        rows.append({"text": sentence.text, "entities": entities, "relations": relations, "Comments": []})
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def spacy(sentences: Sequence[Sentence]) -> str:
    return json.dumps([[sentence.text, {"entities": sentence.spans}] for sentence in sentences])


def label_studio(sentences: Sequence[Sentence], offset: Callable[[str, int], int] = lambda text, index: index) -> str:
    tasks = []
    for number, sentence in enumerate(sentences):
        text = sentence.text
        results = [
            {
                "id": f"r{index}",
                "from_name": "label",
                "to_name": "text",
                "type": "labels",
                "value": {
                    "start": offset(text, start),
                    "end": offset(text, end),
                    "text": text[start:end],
                    "labels": [label],
                },
            }
            for index, (start, end, label) in enumerate(sentence.spans)
        ]
        choice = {"from_name": "mood", "to_name": "text", "type": "choices", "value": {"choices": ["calm"]}}
        if len(results) > 1:
            results.append(
                {"type": "relation", "from_id": "r0", "to_id": "r1", "direction": "right", "labels": ["near"]}
            )
        tasks.append({"id": number, "data": {"text": text}, "annotations": [{"result": [*results, choice]}]})
    return json.dumps(tasks)


def label_studio_min(sentences: Sequence[Sentence]) -> str:
    rows = []
    for number, sentence in enumerate(sentences):
        regions = [
            {"start": start, "end": end, "text": sentence.text[start:end], "labels": [label]}
            for start, end, label in sentence.spans
        ]
        about = {"annotator": 1, "annotation_id": number, "lead_time": 1.5}
        rows.append(
            {"text": sentence.text, "id": number, "mood": "calm", **about} | ({"label": regions} if regions else {})
        )
    return json.dumps(rows)


def squad(sentences: Sequence[Sentence]) -> str:
    paragraphs = []
    for number, sentence in enumerate(sentences):
        answers = [{"text": sentence.text[start:end], "answer_start": start} for start, end, _ in sentence.spans]
        question = {"id": str(number), "question": "Who or where?", "answers": answers, "is_impossible": not answers}
        paragraphs.append({"context": sentence.text, "qas": [question]})
    return json.dumps({"version": "v2.0", "data": [{"title": "All", "paragraphs": paragraphs}]})


def semeval(sentences: Sequence[Sentence]) -> str:
    blocks = []
    for number, sentence in enumerate((one for one in sentences if len(one.entities) > 1), start=1):
        (start, end, _), (begin, stop, _), *_ = sentence.spans
        text = sentence.text
        marked = f"{text[:start]}<e1>{text[start:end]}</e1>{text[end:begin]}<e2>{text[begin:stop]}</e2>{text[stop:]}"
        blocks.append(f'{number}\t"{marked}"\nNear(e1,e2)\nComment: none\n')
    return "\n".join(blocks)
