"""The beginning of a file, by which its format is found."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from fusetune.data.reading.json_items import JsonStream, Layout, items_of
from fusetune.data.reading.text_files import wrong_encoding

LINES = 5_000
CHARS = 2_000_000
ITEMS = 300
JSON_LINES = (".jsonl", ".ndjson")
JSON_ENDINGS = (".json", *JSON_LINES)
LISTS = ("data", "annotations")
"""Keys under which an object has the list of rows: SQuAD, and spaCy tuples as NER Annotator exports them."""


@dataclass
class Sample:
    """A file that is looked at.

    Attributes:
        path: the file.
        encoding: of its text.
    """

    path: Path
    encoding: str

    @property
    def is_json(self) -> bool:
        """Whether the file's ending says that it is JSON."""
        return self.path.suffix.lower() in JSON_ENDINGS

    @cached_property
    def lines(self) -> list[str]:
        """The first lines without their ends, at most `LINES` and about `CHARS` characters."""
        lines, chars = [], 0
        with self.path.open(encoding=self.encoding, errors="replace") as handle:
            for line in islice(handle, LINES):
                chars += len(line)
                if chars > CHARS:
                    break
                lines.append(line.rstrip("\r\n"))
        return lines

    @cached_property
    def _layout(self) -> tuple[Layout, str | None]:
        if self.path.suffix.lower() in JSON_LINES:
            return "lines", None
        try:
            with self.path.open(encoding=self.encoding, newline="\n") as handle:
                stream = JsonStream(handle, self.path)
                if stream.peek() == "[":
                    return "array", None
                for name in stream.object_keys():
                    if name in LISTS and stream.peek() == "[":
                        return "object", name
                    stream.value()
        except UnicodeDecodeError as error:
            raise wrong_encoding(self.path, self.encoding) from error
        return "lines", None

    @property
    def layout(self) -> Layout:
        """How a JSON file is laid out; see `items_of`."""
        return self._layout[0]

    @property
    def key(self) -> str | None:
        """The key of the list in a file that is one object."""
        return self._layout[1]

    @cached_property
    def items(self) -> list[Any]:
        """The first values of a JSON file, at most `ITEMS` and about `CHARS` characters; none of other files."""
        values: list[Any] = []
        if self.is_json:
            chars = 0
            for item in islice(items_of(self.path, self.encoding, self.layout, self.key), ITEMS):
                chars += len(item.text)
                if item.fault is None:
                    values.append(item.value)
                if chars > CHARS:
                    break
        return values
