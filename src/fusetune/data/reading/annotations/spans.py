"""Spans of characters in annotation files: checked against their text, in the unit that the tool counted in.

JavaScript counts UTF-16 code units, in which an emoji has two, and a browser counts a line break of two characters
(CRLF) as one. Older versions of Label Studio and doccano export such offsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from fusetune.config.read import Offsets
from fusetune.errors import shown


class SpanFault(ValueError):
    """A span that cannot be used; the message says which and why."""


@dataclass(frozen=True)
class RawSpan:
    """A span as the file has it.

    Attributes:
        start, end: the first unit and the one after the last; anything, until `checked` has seen it.
        label: the same.
        text: what the file says that the span's text is; None where it says nothing.
    """

    start: Any
    end: Any
    label: Any
    text: str | None = None

    @property
    def name(self) -> str:
        """The span for messages."""
        label = f" ({shown(self.label, 40)})" if isinstance(self.label, str) else ""
        return f"the span {shown(self.start, 40)} to {shown(self.end, 40)}{label}"


@dataclass(frozen=True)
class Unit:
    """What offsets count.

    Attributes:
        utf16: UTF-16 code units, of which a character beyond U+FFFF has two; else characters (code points).
        joined: whether CR and LF in succession count as one.
    """

    utf16: bool = False
    joined: bool = False

    @property
    def name(self) -> str:
        """The unit for messages."""
        return ("UTF-16 code units" if self.utf16 else "characters") + (", CRLF as one" if self.joined else "")

    def differs(self, text: str) -> bool:
        """Return whether offsets in this unit may differ from those in characters."""
        return (self.utf16 and any(character > "\uffff" for character in text)) or (self.joined and "\r\n" in text)

    def positions(self, text: str) -> Sequence[int]:
        """Return the character at which each offset lies, (length in units + 1,); -1 inside of a character."""
        if not self.differs(text):
            return range(len(text) + 1)
        result: list[int] = []
        for index, character in enumerate(text):
            if self.joined and character == "\n" and text[index - 1 : index] == "\r":
                continue
            result.append(index)
            if self.utf16 and character > "\uffff":
                result.append(-1)
        return [*result, len(text)]


def units_of(offsets: Offsets | None) -> list[Unit]:
    """Return the units to try, the most likely first.

    Args:
        offsets: the setting `data.read.offsets`; None tries all.
    """
    wide = {None: (False, True), "characters": (False,), "utf-16": (True,)}[offsets]
    return [Unit(utf16, joined) for joined, utf16 in product((False, True), wide)]


class SpanReader:
    """Turns the spans of a file's texts into spans in characters.

    The unit of spans that come with their text is found for each row. Of others it is one for the file: the one in
    which the most spans begin and end between words; `survey` counts them.
    """

    def __init__(self, offsets: Offsets | None) -> None:
        """
        Args:
            offsets: the setting `data.read.offsets`; None to find out.
        """
        self.units = units_of(offsets)
        self.hits = dict.fromkeys(self.units, 0)
        self.differing = self.num_spans = 0

    @property
    def unit(self) -> Unit:
        """The unit of spans that come without their text; the first of the best."""
        return max(self.units, key=lambda unit: self.hits[unit])

    def survey(self, text: str, spans: Sequence[RawSpan]) -> None:
        """Count in which units a row's spans begin and end between words, if its offsets differ between units."""
        if not spans or not any(unit.differs(text) for unit in self.units):
            return
        self.differing += 1
        self.num_spans += len(spans)
        for unit in self.units:
            positions = unit.positions(text)
            self.hits[unit] += sum(_fits(span, text, positions) for span in spans)

    def read(self, text: str, spans: Sequence[RawSpan]) -> list[dict[str, Any]]:
        """Return each span as `{"start", "end", "label"}` in characters, without white space around it.

        Raises:
            SpanFault: a span does not lie in the text, is not where its own text says, or has no label.
        """
        unit = self.unit
        if any(span.text is not None for span in spans):
            units = sorted(self.units, key=lambda other: other != unit)
            unit = next((other for other in units if _all_say(spans, text, other)), unit)
        positions = unit.positions(text)
        return [_checked(span, text, positions, unit) for span in spans]

    def holds(self, text: str, spans: Sequence[RawSpan]) -> bool:
        """Return whether spans lie in a text and are what they say they are, in one of the units."""
        return any(_all_say(spans, text, unit) for unit in self.units)

    def notes(self) -> list[str]:
        """Return remarks on how offsets were read."""
        if not self.differing:
            return []
        return [
            f"offsets in texts with emoji or CRLF ({self.differing}) count {self.unit.name}, in which "
            f"{self.hits[self.unit]} of {self.num_spans} spans fit the text; data.read.offsets decides otherwise"
        ]


def _checked(span: RawSpan, text: str, positions: Sequence[int], unit: Unit) -> dict[str, Any]:
    """Return a span in characters; see `SpanReader.read`."""
    start, end = _whole(span, "start"), _whole(span, "end")
    if not 0 <= start < end < len(positions):
        inside = 0 <= end <= start < len(positions)
        what = "ends where it begins or before" if inside else "does not lie in the text"
        raise SpanFault(f"{span.name} {what}; the text has {len(positions) - 1} {unit.name}")
    first, last = positions[start], positions[end]
    if min(first, last) < 0:
        raise SpanFault(f"{span.name} begins or ends inside of a character")
    given = text[first:last]
    if span.text is not None and not _same(given, span.text):
        raise SpanFault(f"{span.name} is {shown(given, 40)} in the text, and {shown(span.text, 40)} by the file")
    if not isinstance(span.label, str) or not span.label.strip():
        raise SpanFault(f"{span.name} has the label {shown(span.label, 40)}, which is no name")
    if not given.strip():
        raise SpanFault(f"{span.name} has only white space")
    first += len(given) - len(given.lstrip())
    return {"start": first, "end": first + len(given.strip()), "label": span.label.strip()}


def _whole(span: RawSpan, name: str) -> int:
    """Return an offset, which is an integer or a float without a fraction."""
    value = getattr(span, name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise SpanFault(f"{span.name} has a {name} that is no whole number")
    return value


def _bounds(span: RawSpan, positions: Sequence[int]) -> tuple[int, int] | None:
    try:
        start, end = _whole(span, "start"), _whole(span, "end")
    except SpanFault:
        return None
    if not 0 <= start < end < len(positions) or positions[start] < 0 or positions[end] < 0:
        return None
    return positions[start], positions[end]


def _says(span: RawSpan, text: str, positions: Sequence[int]) -> bool:
    bounds = _bounds(span, positions)
    return bounds is not None and (span.text is None or _same(text[slice(*bounds)], span.text))


def _all_say(spans: Sequence[RawSpan], text: str, unit: Unit) -> bool:
    positions = unit.positions(text)
    return all(_says(span, text, positions) for span in spans)


def _same(text: str, told: str) -> bool:
    """Return whether two texts are equal but for white space, which Label Studio rewrites."""
    return text == told or _spaced(text) == _spaced(told)


def _spaced(text: str) -> str:
    return " ".join(text.replace("\\n", " ").split())


def _fits(span: RawSpan, text: str, positions: Sequence[int]) -> bool:
    """Return whether a span begins and ends between words."""
    bounds = _bounds(span, positions)
    if bounds is None:
        return False
    start, end = bounds
    if span.text is not None:
        return _same(text[start:end], span.text)
    inside = text[start:end]
    whole = not (_joins(text, start) or _joins(text, end))
    return whole and not (inside[0].isspace() or inside[-1].isspace())


def _joins(text: str, index: int) -> bool:
    """Return whether a word goes on from the character before an index to the one at it."""
    return 0 < index < len(text) and text[index - 1].isalnum() and text[index].isalnum()
