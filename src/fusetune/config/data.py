"""The section `data`: how rows are read, split and drawn."""

from __future__ import annotations

import codecs
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from fusetune.config.sections import OnBadCell, Section

_SEPARATORS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "bar": "|", "space": " "}
_QUOTES = {"double": '"', "single": "'", "none": ""}
_SPACES = {"space": " ", "none": ""}


def _character(names: dict[str, str]) -> BeforeValidator:
    """Take a character by a name, as `tab`, or as itself."""
    return BeforeValidator(lambda value: names.get(value.strip().lower(), value) if isinstance(value, str) else value)


class ReadConfig(Section):
    """How the text of tables is read. What is None is detected, and the report says what was found.

    The first three are about text files as a whole, the others about cells. A column may have others of its own, as in
    `columns.price.read={decimal: ","}`.
    """

    separator: Annotated[str | None, _character(_SEPARATORS)] = None
    """Between the columns of a text file: one character, or `tab`, `comma`, `semicolon`, `bar`, `space`."""
    quote: Annotated[str | None, _character(_QUOTES)] = None
    """Around cells of a text file that hold separators or line breaks: `double`, `single`, or `none` where quotation
    marks are part of the text."""
    encoding: str | None = None
    """Of text files, as `cp1252` or `latin-1`. None: UTF-8, or UTF-16 with a byte order mark."""
    missing: list[Any] | None = None
    """Words for a missing cell in every column, as `[NA, unknown]`; case counts. None: in columns of numbers and dates,
    the usual words (`NA`, `nan`, `null`, `?`, `-`, ...); in all others such words are cells like any other. `[]`:
    none."""
    decimal: Literal[".", ","] | None = None
    """The decimal mark of numbers."""
    thousands: Annotated[Literal["", ",", ".", " ", "'", "_"] | None, _character(_SPACES)] = None
    """Between groups of three digits; `none` for none, `space` for any kind of space."""
    dates: str | None = None
    """The format of dates in strptime's letters, as `%d/%m/%Y`. ISO dates are always read."""

    @field_validator("separator", "quote")
    @classmethod
    def _one_character(cls, value: str | None) -> str | None:
        if value and (len(value) > 1 or value in "\r\n"):
            raise ValueError("it is one character")
        return value

    @field_validator("separator")
    @classmethod
    def _not_empty(cls, value: str | None) -> str | None:
        if value == "":
            raise ValueError("it is one character")
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                "".encode(value)
                codecs.lookup(value)
            except (LookupError, ValueError):
                raise ValueError("there is no such text encoding; such as utf-8, cp1252, latin-1, shift_jis") from None
        return value

    @model_validator(mode="after")
    def _marks_differ(self) -> ReadConfig:
        if self.decimal is not None and self.decimal == self.thousands:
            raise ValueError(f"the decimal mark and the thousands separator are both {self.decimal!r}")
        if self.separator is not None and self.separator == self.quote:
            raise ValueError(f"the separator and the quote are both {self.quote!r}")
        return self


class DataConfig(Section):
    """How rows are read and split."""

    read: ReadConfig = ReadConfig()
    """How the text of tables is read: separators, quotes, words for missing cells, decimal marks, dates."""
    on_bad_cell: OnBadCell = "reject"
    """A train row with a cell that cannot be read is rejected, or used without that cell (`mask`)."""
    max_rejected: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Larger shares of rejected rows stop the run before training."""
    split: Annotated[list[float], Field(min_length=3, max_length=3)] = [0.8, 0.1, 0.1]
    """Train, validation and test shares where no such rows are given."""
    mix: Annotated[float, Field(ge=0, le=1)] = 1.0
    """How rows are drawn from several train tables of n_i rows: with p_i ∝ n_i^mix; an epoch stays as long. 1: every
    row once an epoch; 0: as many rows of each table."""
    cache: str | None = None
    """The folder where encoders' outputs, and what the first trained layer reads, are kept for other runs. None:
    $FUSETUNE_CACHE or ~/.cache/fusetune. `none`: nothing is kept."""
    cache_gib: Annotated[float, Field(ge=0)] = 10.0
    """GiB that the folder may take; what was not used for the longest time goes first. 0: nothing is kept."""
    views: Annotated[int, Field(ge=0)] = 0
    """Augmented views of a cell that a frozen encoder, or the frozen first layers of one, sees in turn: each is
    computed once, epoch e uses view e mod `views`. 0: a new one in every epoch, which is computed in every epoch."""
    memory: Annotated[float, Field(ge=0)] = 4.0
    """GiB of decoded cells that are kept, tokens and numbers in mapped files; the rest is decoded again when needed."""

    @model_validator(mode="after")
    def _shares(self) -> DataConfig:
        if min(self.split) < 0 or abs(sum(self.split) - 1) > 1e-6 or self.split[0] == 0:
            raise ValueError(f"three shares of 0 or more that sum to 1, the first above 0; came {self.split}")
        return self
