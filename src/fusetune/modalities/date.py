"""Date and time columns: elapsed time and periodic parts of the calendar."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusetune.errors import BadCell
from fusetune.modalities.base import Detection, Modality
from fusetune.modalities.fixed import FixedFeatures
from fusetune.modalities.naming import module_name
from fusetune.modalities.number import NumberModality
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


class DateModality(Modality):
    """A column of dates, times or both.

    The elapsed days are encoded like a number. The parts of the calendar that vary between train rows follow: the month
    (12 features, one-hot), the weekday (7, one-hot), and the day of the month and the hour of the day as points on a
    circle (sine and cosine, for the hour also of twice the angle), so that 23:00 is near 1:00. The encoding of dates
    outside the train rows' range stays at the outermost bins of the number.
    """

    kind = "date"

    def __init__(self, column: str, *, bins: int = 16) -> None:
        """
        Args:
            column: the column's name.
            bins: maximum number of bins for the elapsed days; see `NumberModality`.
        """
        super().__init__(column)
        self.elapsed = NumberModality(column, bins=bins)
        self.parts: list[str] = []

    @classmethod
    def detect(cls, values: Sequence[Any], *, base_dir: Path) -> Detection:
        """Rate the cells: nearly all are dates or times in ISO format."""
        count = sum(seconds_of(plain(value)) is not None for value in values)
        share = count / max(len(values), 1)
        if not count:
            return Detection(0.0, "no cell is a date or time")
        return Detection(
            0.95 * share if share >= 0.95 else 0.3 * share, f"{count} of {len(values)} cells are dates or times"
        )

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

    def collate(self, examples: Sequence[float]) -> dict[str, Tensor]:
        """Return `values`, (examples, features) float32: features of the elapsed days, then of the parts."""
        seconds = np.asarray(examples, dtype=np.float64)
        features = [self.elapsed.collate((seconds / DAY).tolist())["values"].numpy()]
        features += [_features(name, seconds) for name in self.parts]
        return {"values": torch.from_numpy(np.concatenate(features, axis=1).astype(np.float32))}

    @property
    def encoder_key(self) -> str:
        """Each date column has its own encoder."""
        return module_name(self.kind, self.column)

    def build_encoder(self) -> FixedFeatures:
        """Return the features unchanged; call it after `fit`."""
        return FixedFeatures(self.collate([0.0])["values"].shape[1])

    @property
    def part_of(self) -> str:
        """ "tabular"."""
        return "tabular"

    def state(self) -> dict[str, Any]:
        """Return the state of the elapsed days' encoding, and the parts."""
        return {"elapsed": self.elapsed.state(), "parts": self.parts}

    @classmethod
    def from_state(cls, column: str, state: dict[str, Any], backbone: Any = None) -> DateModality:
        """Return the modality that `state()` described."""
        modality = cls(column)
        modality.elapsed, modality.parts = NumberModality.from_state(column, state["elapsed"]), list(state["parts"])
        return modality


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
