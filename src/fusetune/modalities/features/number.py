"""Features of numbers: standardised values and their piecewise-linear encoding over quantile bins."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Self

import numpy as np

from fusetune.errors import BadCell, ConfigError
from fusetune.modalities.profile import NUMBER, plain

MAX_DEVIATIONS = 8.0
"""Standardised values are clipped to this many standard deviations, so that one outlier cannot break a batch."""

_CURRENCY = re.compile("[$¢£¥€₩₪₫₱₹₺₽₿]")
_GROUPED = re.compile(r"[+-]?\d{1,3}([,' \u00a0\u2009\u202f]\d{3})+(\.\d+)?", re.ASCII)
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)
_RANGE = re.compile(r"\d+(\.\d+)?\s*(-|–|—|\.\.|to)\s*(\d+(\.\d+)?)?", re.ASCII)
_HEX = re.compile(r"[+-]?0[xXbBoO][0-9a-fA-F_]+", re.ASCII)
_NOT_FINITE = frozenset({"nan", "inf", "infinity"})


class NumberFeatures:
    """Decodes numbers and computes their features; see `fusetune.modalities.number.NumberModality`."""

    def __init__(self, column: str, *, bins: int = 16) -> None:
        """
        Args:
            column: the column's name.
            bins: maximum number of bins; 0 uses only the standardised value.
        """
        self.column = column
        if bins < 0:
            raise ConfigError(
                "a number column's options are out of range",
                column=column,
                expected="bins of 0 or more",
                came=f"bins={bins}",
            )
        self.bins = bins
        self.mean, self.std = 0.0, 1.0
        self.edges = np.zeros(0)  # (bins used + 1,) increasing, or empty

    def decode(self, cell: Any, *, row: int, base_dir: Path) -> float:
        """Return the number as a float; integers beyond 2^53 are rounded.

        Raises:
            BadCell: it is not a plain finite number; examples are "1,234", "12 %", "2007–2019" and "nan".
        """
        cell = plain(cell)
        if isinstance(cell, bool | int | float | Decimal):
            try:
                value = float(cell)
            except (OverflowError, ValueError):
                value = math.inf
            why = "it is too large for a float" if isinstance(cell, int) else "it is not finite"
        elif isinstance(cell, str):
            text = cell.strip()
            value = float(text) if NUMBER.fullmatch(text) else math.nan
            why = "it is too large for a float" if math.isinf(value) else _why_not(text)
        else:
            value = math.nan
            why = f"it is of type {type(cell).__name__}, not a number"
        if not math.isfinite(value):
            do = f"write it like -1234.5, empty the cell, or make {self.column!r} a category or text"
            raise BadCell(row=row, column=self.column, value=cell, why=why, do=do)
        return value

    def fit(self, examples: Sequence[float]) -> None:
        """Fit the mean, the standard deviation and the bins' edges on train rows."""
        values = np.asarray(examples, dtype=np.float64)
        if not len(values):
            return
        # Scaled first, so that neither the sum nor the squares of huge values overflow.
        scale = float(np.abs(values).max()) or 1.0
        self.mean = float((values / scale).mean() * scale)
        std = float((values / scale - self.mean / scale).std() * scale)
        tiny = max(np.finfo(np.float64).eps * scale * 8, np.finfo(np.float64).tiny * 4)
        self.std = std if std > tiny else 1.0
        self.edges = _bin_edges(values, self.bins)

    def features(self, examples: Sequence[float]) -> np.ndarray:
        """Return (examples, 1 + bins used) float32: standardised value, then piecewise-linear encoding."""
        values = np.asarray(examples, dtype=np.float64)[:, None]  # (examples, 1)
        # Halved first, as the difference of two finite floats may overflow; a quotient that overflows is clipped.
        with np.errstate(over="ignore"):
            scaled = np.clip((values / 2 - self.mean / 2) / (self.std / 2), -MAX_DEVIATIONS, MAX_DEVIATIONS)
            if len(self.edges):
                low, high = self.edges[:-1] / 2, self.edges[1:] / 2
                bins = np.clip((values / 2 - low) / (high - low), 0, 1)  # (examples, bins used)
                scaled = np.concatenate([scaled, bins], axis=1)
        return scaled.astype(np.float32)

    @property
    def dim(self) -> int:
        """How many features a number has."""
        return 1 + max(len(self.edges) - 1, 0)

    def state(self) -> dict[str, Any]:
        """Return the options, the mean, the standard deviation and the edges."""
        return {
            "bins": self.bins,
            "mean": self.mean,
            "std": self.std,
            "edges": self.edges.tolist(),
        }

    @classmethod
    def from_state(cls, column: str, state: dict[str, Any], backbone: Any = None) -> Self:
        """Return the object that `state()` described."""
        restored = cls(column, bins=state["bins"])
        restored.mean, restored.std = state["mean"], state["std"]
        restored.edges = np.asarray(state["edges"], dtype=np.float64)
        return restored


def _bin_edges(values: np.ndarray, bins: int) -> np.ndarray:
    """Return ascending edges of at most `bins` quantile bins, (bins used + 1,); empty without distinct values."""
    distinct = np.unique(values)
    if bins == 0 or len(distinct) < 2:
        return np.zeros(0)
    if len(distinct) <= bins + 1:
        edges = distinct
    else:
        edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1), method="nearest"))
    # Bins narrower than the smallest normal floats would have infinite slopes.
    wide = np.diff(edges) > np.finfo(np.float64).tiny * 4
    edges = edges[np.concatenate([[True], wide])]
    return edges if len(edges) > 1 else np.zeros(0)


def _why_not(text: str) -> str:
    """Return a precise explanation of why a string is not a plain number."""
    if text.lower().lstrip("+-") in _NOT_FINITE:
        return "it spells a value that is not a finite number"
    if "\u2212" in text or "\ufe63" in text or "\uff0d" in text:
        return "it has a typographic minus sign instead of '-'"
    if _CURRENCY.search(text):
        return "it has a currency sign"
    if "%" in text or "٪" in text:
        return "it has a percent sign"
    if _GROUPED.fullmatch(text):
        return "it has thousands separators"
    if _DECIMAL_COMMA.fullmatch(text):
        return "it has a decimal comma instead of a point"
    if _RANGE.fullmatch(text):
        return "it is a range, not one number"
    if _HEX.fullmatch(text):
        return "it is not written in decimal digits"
    if "_" in text:
        return "it has underscores"
    if any(character.isdigit() and not character.isascii() for character in text):
        return "it has digits other than 0 to 9"
    return "it is not a number"
