"""Detection of a column's date format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fusetune.config.read import ReadConfig
from fusetune.data.detect.forms import MISSING_WORDS, NUMBERS
from fusetune.data.detect.roles import words_of
from fusetune.data.reading.cell_forms import CellForm, iso_date, missing_words
from fusetune.modalities.features.date import seconds_of

SAMPLE = 200
MAX_CHARS = 40
_DAYS = (
    "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y.%m.%d", "%d %b %Y", "%d %B %Y", "%b %d, %Y",
    "%B %d, %Y", "%d-%b-%Y", "%d-%b-%y", "%d.%m.%y", "%m/%d/%y", "%d/%m/%y",
)  # fmt: skip
_TIMES = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
_FORMATS = [day + time for day in _DAYS for time in _TIMES]
_COMPACT = "%Y%m%d"
_DATE_WORDS = {"date", "day", "time", "timestamp", "datetime", "on", "at", "dob", "birthday"}


@dataclass(frozen=True)
class DateGuess:
    """The detected date format of a column.

    Attributes:
        form: the format, with the words that stand for missing cells.
        other: another format that fits all cells equally well (no day is above 12), or None.
    """

    form: CellForm
    other: str | None = None


def guess_dates(name: str, cells: Sequence[Any], read: ReadConfig) -> DateGuess | None:
    """Return the format of a column's dates, None if its cells are not dates.

    Args:
        name: the column's name; cells of eight digits are dates only if it contains a word such as "date".
        cells: a sample, none missing.
        read: the settings; their format takes precedence.
    """
    texts = [cell.strip() for cell in cells if isinstance(cell, str)]
    if len(texts) < len(cells) or any(len(text) > MAX_CHARS for text in texts[:SAMPLE]):
        return None
    words = {text for text in set(texts) if _is_missing(text, read)}
    rest = [text for text in texts if text not in words]
    if not rest or len(rest) * 2 < len(texts):
        return None
    missing = tuple(sorted(words))
    some = rest[:: max(len(rest) // SAMPLE, 1)]
    if sum(seconds_of(text) is not None for text in some) >= NUMBERS * len(some):
        return DateGuess(CellForm(missing=missing))
    compact = [_COMPACT] if set(words_of(name)) & _DATE_WORDS else []
    formats = [read.dates] if read.dates else [*_FORMATS, *compact]
    fitting = [(share, format) for format in formats if (share := _share(format, some)) >= NUMBERS]
    if not fitting:
        return None
    best = max(share for share, _ in fitting)
    likeliest = [format for share, format in fitting if share == best]
    # Slashes are more often American (month first); points and hyphens never are.
    chosen = next((format for format in likeliest if format.startswith("%m/")), likeliest[0])
    swapped = [format for format in likeliest if format != chosen and sorted(format) == sorted(chosen)]
    return DateGuess(CellForm(missing=missing, dates=chosen), swapped[0] if swapped else None)


def _is_missing(text: str, read: ReadConfig) -> bool:
    return text.casefold() in MISSING_WORDS if read.missing is None else missing_words(read.missing, text)


def _share(format: str, texts: Sequence[str]) -> float:
    if iso_date(texts[0], format) is None and iso_date(texts[-1], format) is None:
        return 0.0
    return sum(iso_date(text, format) is not None for text in texts) / len(texts)
