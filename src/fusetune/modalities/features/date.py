"""Features of dates and times: elapsed days and periodic parts of the calendar."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from pathlib import Path
from typing import Any, Self

import numpy as np

from fusetune.errors import BadCell
from fusetune.modalities.features.number import NumberFeatures
from fusetune.modalities.profile import plain

DAY = 86_400.0
PARTS = ("month", "day", "weekday", "hour")
"""Periodic parts of the calendar, in the order of the features; each is used if it varies between train rows."""

_ISO = re.compile(
    r"(?:(?P<date>(?P<year>\d{4})[-/](?P<month>\d{1,2})(?:[-/](?P<day>\d{1,2}))?)(?:[T ]+(?=\d)|$))?"
    r"(?P<time>(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2}(?:\.\d+)?))?"
    r"\s*(?P<zone>Z|[+-]\d{2}:?(?:\d{2})?)?)?",
    re.ASCII,
)


def seconds_of(cell: Any) -> float | None:
    """Return the seconds since 1970-01-01 00:00 UTC of a date, a time or both; None for other cells.

    Args:
        cell: text such as "2020-03-14", "2020-03", "2020-03-14 08:30:00+01:00" or "08:30"; or a `date`, `datetime` or
            `time`. The default time zone is UTC, and the default date is 1970-01-01.

    Example:
        >>> seconds_of("1970-01-02 00:00:01"), seconds_of("00:01"), seconds_of("soon")
        (86401.0, 60.0, None)
    """
    if isinstance(cell, datetime):
        moment = cell
    elif isinstance(cell, date):
        moment = datetime(cell.year, cell.month, cell.day)
    elif isinstance(cell, time):
        moment = datetime.combine(date(1970, 1, 1), cell)
    elif isinstance(cell, str):
        parsed = _from_text(cell.strip())
        if parsed is None:
            return None
        moment = parsed
    else:
        return None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()


def _from_text(text: str) -> datetime | None:
    match = _ISO.fullmatch(text) if len(text) <= 40 else None
    if match is None or not (match["date"] or match["time"]):
        return None
    year, month, day = (int(match[part] or other) for part, other in (("year", 1970), ("month", 1), ("day", 1)))
    second = float(match["second"] or 0)
    zone = match["zone"]
    try:
        moment = datetime(year, month, day, int(match["hour"] or 0), int(match["minute"] or 0))
        moment = moment.replace(tzinfo=UTC if zone in (None, "Z") else _zone(zone))
        return moment + timedelta(seconds=second) if second < 61 else None
    except (ValueError, OverflowError):
        return None


def _zone(text: str) -> timezone:
    digits = text[1:].replace(":", "")
    minutes = int(digits[:2]) * 60 + int(digits[2:] or 0)
    return timezone(timedelta(minutes=-minutes if text[0] == "-" else minutes))


class DateFeatures:
    """Decodes dates and computes their features; see `fusetune.modalities.date.DateModality`."""

    def __init__(self, column: str, *, bins: int = 16) -> None:
        """
        Args:
            column: the column's name.
            bins: maximum number of bins for the elapsed days; see `NumberFeatures`.
        """
        self.column = column
        self.elapsed = NumberFeatures(column, bins=bins)
        self.parts: list[str] = []

    def decode(self, cell: Any, *, row: int, base_dir: Path) -> float:
        """Return the seconds since 1970-01-01 00:00 UTC.

        Raises:
            BadCell: it is neither a date nor a time.
        """
        seconds = seconds_of(plain(cell))
        if seconds is None:
            do = f"write it like 2020-03-14 or 2020-03-14 08:30, or say how it is written: columns.{self.column}.read"
            raise BadCell(row=row, column=self.column, value=cell, why="it is no date or time that exists", do=do)
        return seconds

    def fit(self, examples: Sequence[float]) -> None:
        """Fit the encoding of the elapsed days, and find the parts that vary, on train rows."""
        seconds = np.asarray(examples, dtype=np.float64)
        if not len(seconds):
            return
        self.elapsed.fit((seconds / DAY).tolist())
        self.parts = [name for name in PARTS if len(np.unique(_part(name, seconds))) > 1]

    def features(self, examples: Sequence[float]) -> np.ndarray:
        """Return (examples, features) float32: features of the elapsed days, then of the parts."""
        seconds = np.asarray(examples, dtype=np.float64)
        features = [self.elapsed.features((seconds / DAY).tolist())]
        features += [_features(name, seconds) for name in self.parts]
        return np.concatenate(features, axis=1).astype(np.float32)

    @property
    def dim(self) -> int:
        """How many features a date has."""
        return int(self.features([0.0]).shape[1])

    def state(self) -> dict[str, Any]:
        """Return the state of the elapsed days' encoding, and the parts."""
        return {"elapsed": self.elapsed.state(), "parts": self.parts}

    @classmethod
    def from_state(cls, column: str, state: dict[str, Any], backbone: Any = None) -> Self:
        """Return the object that `state()` described."""
        restored = cls(column)
        restored.elapsed = NumberFeatures.from_state(column, state["elapsed"])
        restored.parts = list(state["parts"])
        return restored


def _part(name: str, seconds: np.ndarray) -> np.ndarray:
    """Return a part of the calendar as numbers from 0, (examples,): fractional hours, other parts as integers."""
    days = np.floor(seconds / DAY)
    if name == "hour":
        return np.asarray((seconds - days * DAY) / 3600)
    if name == "weekday":
        return np.asarray((days + 3) % 7)  # 1970-01-01 was a Thursday; 0 is Monday
    dates = days.astype(np.int64).astype("datetime64[D]")
    months = dates.astype("datetime64[M]")
    if name == "month":
        return np.asarray(months.astype(np.int64) % 12)
    return np.asarray((dates - months.astype("datetime64[D]")).astype(np.int64))


def _features(name: str, seconds: np.ndarray) -> np.ndarray:
    """Return a part's features, (examples, features)."""
    part = _part(name, seconds)
    if name in ("month", "weekday"):
        return np.eye(12 if name == "month" else 7)[part.astype(np.int64)]
    angles = 2 * np.pi * part[:, None] / (24 if name == "hour" else 31) * np.arange(1, 3 if name == "hour" else 2)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
