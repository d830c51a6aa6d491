"""Notations of numbers, dates and missing cells in text, and their conversion to a canonical form."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from fusetune.modalities.profile import NUMBER

SPACES = "\u00a0\u2009\u202f "
_MINUS = "\u2212\ufe63\uff0d"
_APOSTROPHES = "'\u2019"


@dataclass(frozen=True)
class CellForm:
    """How the text cells of a column are parsed.

    Attributes:
        missing: words for a missing cell.
        decimal: the decimal mark, "." or ",".
        thousands: the thousands separator: "", ",", ".", " " (any kind of space), "'" or "_".
        affixes: currencies and units before or after the number that are removed, such as "$", "%" or "kg".
        dates: the strptime format of dates, which become ISO dates; None if cells are no dates or ISO dates already.

    Example:
        >>> form = CellForm(missing=("NA",), decimal=",", thousands=".", affixes=("€",))
        >>> [form.read(cell) for cell in ["1.234,5 €", "-7", "NA", "unknown"]]
        ['1234.5', '-7', None, 'unknown']
    """

    missing: tuple[str, ...] = ()
    decimal: str = "."
    thousands: str = ""
    affixes: tuple[str, ...] = ()
    dates: str | None = None

    @property
    def is_numeric(self) -> bool:
        """Whether numbers have another notation than -1234.5."""
        return self.decimal != "." or bool(self.thousands or self.affixes)

    def read(self, cell: Any) -> Any:
        """Return the cell in canonical form: None (missing), "1234.5" or "2020-03-14"; other cells unchanged."""
        if not isinstance(cell, str):
            return cell
        text = cell.strip()
        if text in self.missing:
            return None
        if self.dates is not None:
            return iso_date(text, self.dates) or cell
        if self.is_numeric:
            return self.number(text) or cell
        return cell

    def number(self, text: str, *, strict: bool = False) -> str | None:
        """Return the text as a canonical number, "-1234.5", or None if it is not a number.

        Args:
            text: the cell.
            strict: refuse numbers in another notation, such as "1.5" where the decimal mark is a comma.
        """
        text = text.translate(dict.fromkeys(map(ord, _MINUS), "-")).strip()
        negative = text.startswith("(") and text.endswith(")")
        text = text[1:-1].strip() if negative else text
        sign, text = _signed(text)
        text = self._without_affix(text)
        if not sign:
            sign, text = _signed(text)
        plain = self._digits(text)
        if plain is None and not strict and NUMBER.fullmatch(text):
            plain = text
        if plain is None or (negative and sign):
            return None
        return ("-" if negative else sign.replace("+", "")) + plain

    def _without_affix(self, text: str) -> str:
        for affix in self.affixes:
            if text.startswith(affix):
                return text[len(affix) :].strip()
            if text.endswith(affix):
                return text[: -len(affix)].strip()
        return text

    def _digits(self, text: str) -> str | None:
        """Return a number in this notation with a decimal point and without separators, or None."""
        integer, mark, fraction = text.partition(self.decimal)
        number = integer
        if self.thousands:
            separators = {" ": SPACES, "'": _APOSTROPHES}.get(self.thousands, self.thousands)
            if any(character in separators for character in integer):
                groups = rf"\d{{1,3}}([{re.escape(separators)}]\d{{2,3}})*[{re.escape(separators)}]\d{{3}}"
                if not re.fullmatch(groups, integer):
                    return None
                number = re.sub(r"\D", "", integer)
        plain = number + ("." + fraction if mark else "")
        return plain if NUMBER.fullmatch(plain) else None

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes that differ from the default, as JSON."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, (value, default) in values.items()
            if value != default
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CellForm:
        """Return the form that `to_dict` described.

        Raises:
            ValueError: a key or value is wrong.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(map(str, data)) - known):
            raise ValueError(f"there is no {', '.join(unknown)} among {', '.join(sorted(known))}")
        made: dict[str, Any] = {}
        for name, value in data.items():
            if name in ("missing", "affixes"):
                made[name] = tuple(value if isinstance(value, list | tuple) else [value])
                if not all(isinstance(word, str) for word in made[name]):
                    raise ValueError(f"{name} are texts; put {value!r} in quotes")
            elif not isinstance(value, str):
                raise ValueError(f"{name} is a text, came {value!r}")
            else:
                made[name] = value
        form = cls(**made)
        if form.decimal not in (".", ",") or form.decimal == form.thousands:
            raise ValueError(f"decimal is '.' or ',', and not the thousands separator; came {form.decimal!r}")
        return form

    def __str__(self) -> str:
        """Return a readable description, such as "'NA' is missing, ',' is the decimal mark"."""
        parts = []
        if self.missing:
            words = ", ".join(map(repr, self.missing))
            parts.append(f"{words} {'is' if len(self.missing) == 1 else 'are'} missing")
        if self.decimal != ".":
            parts.append(f"{self.decimal!r} is the decimal mark")
        if self.thousands:
            parts.append(f"{self.thousands!r} stands between thousands")
        if self.affixes:
            parts.append(f"{', '.join(map(repr, self.affixes))} is left out")
        if self.dates is not None:
            parts.append(f"dates are written {self.dates}")
        return ", ".join(parts)


def _signed(text: str) -> tuple[str, str]:
    return (text[0], text[1:].strip()) if text[:1] in ("+", "-") else ("", text)


def iso_date(text: str, format: str) -> str | None:
    """Return a date in a strptime format as an ISO date, with the time if the format has one; None if it differs."""
    try:
        moment = datetime.strptime(text, format)
    except ValueError:
        return None
    has_time = any(letter in format for letter in ("%H", "%I", "%M", "%X", "%c"))
    return moment.isoformat(sep=" ") if has_time else moment.date().isoformat()


def missing_words(words: Sequence[Any], text: str) -> bool:
    """Return whether a cell's text is one of a setting's words, which YAML may have parsed as booleans or numbers."""
    from fusetune.config.spelling import spells

    return any(spells(word, text) for word in words)
