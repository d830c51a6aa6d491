"""The formats of annotation files, and which of them a file is in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusetune.config.read import ReadConfig
from fusetune.data.reading.annotations import conll, doccano, label_studio, semeval, spacy, squad
from fusetune.data.reading.annotations.sample import JSON_ENDINGS, Sample
from fusetune.data.reading.json_files import read_json_objects
from fusetune.data.reading.text_files import Parsed, encoding_of
from fusetune.errors import TableError

TABS = (".tsv", ".tab")


@dataclass(frozen=True)
class AnnotationFormat:
    """A format of annotation files.

    Attributes:
        title: for messages.
        endings: of files that may have it.
        detect: returns why a file has it, None if it has not.
        read: reads a file that has it.
    """

    title: str
    endings: Sequence[str]
    detect: Callable[[Sample], str | None]
    read: Callable[[Sample, ReadConfig], Parsed]


FORMATS: dict[str, AnnotationFormat] = {
    "label_studio": AnnotationFormat(
        "Label Studio's export", JSON_ENDINGS, label_studio.detect, label_studio.read_label_studio
    ),
    "squad": AnnotationFormat("SQuAD", (".json",), squad.detect, squad.read_squad),
    "doccano": AnnotationFormat("doccano's export", JSON_ENDINGS, doccano.detect, doccano.read_doccano),
    "spacy": AnnotationFormat("spaCy's training tuples", JSON_ENDINGS, spacy.detect, spacy.read_spacy),
    "semeval2010": AnnotationFormat("SemEval-2010 task 8", (".txt", *TABS), semeval.detect, semeval.read_semeval),
    "conll": AnnotationFormat("CoNLL columns", (*conll.ENDINGS, ".txt", *TABS), conll.detect, conll.read_conll),
}
"""By the name that `data.read.format` takes, in the order in which they are looked for."""

ENDINGS = tuple(dict.fromkeys(ending for known in FORMATS.values() for ending in known.endings))


def read_annotations(path: Path, read: ReadConfig, table: Callable[[], Parsed] | None) -> Parsed:
    """Read a file that may be an annotation file.

    Args:
        path: the file; its ending is one of `ENDINGS`.
        read: the settings; a format that files of this ending do not have is not asked of it.
        table: reads the file as a table; None where its ending is none of a table.

    Raises:
        TableError: it has none of the formats and is no table.
    """
    ending = path.suffix.lower()
    known = {name: form for name, form in FORMATS.items() if ending in form.endings}
    if read.format == "table" and table is not None:
        return table()
    sample = Sample(path, encoding_of(path, read.encoding))
    if read.format in known:
        return _read(known[read.format], sample, read, "as data.read.format says")
    for form in known.values():
        if (reason := form.detect(sample)) is not None:
            return _read(form, sample, read, reason)
    if table is not None:
        return table()
    if ending == ".json" and sample.layout != "object" and isinstance(next(iter(sample.items), None), dict):
        return read_json_objects(path, sample.encoding, sample.layout)
    what = "a JSON array of objects, or annotations" if ending == ".json" else "annotations"
    raise TableError(
        f"nothing in this {ending} file says how to read it",
        expected=f"{what} as of {', '.join(f'{form.title} ({name})' for name, form in known.items())}",
        came=repr(sample.lines[0][:80]) if sample.lines else None,
        do=f"name the format, as data.read.format={next(iter(known))}, or write a table: .csv, .tsv, .jsonl",
        file=str(path),
    )


def _read(form: AnnotationFormat, sample: Sample, read: ReadConfig, reason: str) -> Parsed:
    parsed = form.read(sample, read)
    parsed.notes.insert(0, f"{sample.path.name}: read as {form.title}: {reason}")
    return parsed
