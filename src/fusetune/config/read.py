"""The section `data.read`: how the text of tables is read."""

from __future__ import annotations

import codecs
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from fusetune.config.section import Section, StrList
from fusetune.errors import nearest

_SEPARATORS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "bar": "|", "space": " "}
_QUOTES = {"double": '"', "single": "'", "none": ""}
_SPACES = {"space": " ", "none": ""}
FileFormat = Literal["table", "conll", "label_studio", "doccano", "spacy", "squad", "semeval2010"]
Offsets = Literal["characters", "utf-16"]


def _character(names: dict[str, str]) -> BeforeValidator:
    """Take a character by a name, as `tab`, or as itself."""
    return BeforeValidator(lambda value: names.get(value.strip().lower(), value) if isinstance(value, str) else value)


class ReadConfig(Section):
    """How the text of tables is read. What is None is detected, and the report says what was found.

    The first six are about text files as a whole, the others about cells. A column may have others of its own, as in
    `columns.price.read={decimal: ","}`.
    """

    separator: Annotated[str | None, _character(_SEPARATORS)] = None
    """Between the columns of a text file: one character, or `tab`, `comma`, `semicolon`, `bar`, `space`."""
    quote: Annotated[str | None, _character(_QUOTES)] = None
    """Around cells of a text file that hold separators or line breaks: `double`, `single`, or `none` where quotation
    marks are part of the text."""
    encoding: str | None = None
    """Of text files, as `cp1252` or `latin-1`. None: UTF-8, or UTF-16 with a byte order mark."""
    format: FileFormat | None = None
    """Of annotation files whose ending does not say it (`.json`, `.jsonl`, `.txt`, `.tsv`): `conll`, `label_studio`,
    `doccano`, `spacy`, `squad`, `semeval2010`; `table` for none of them. None: found by the content."""
    tag_column: str | int | None = None
    """Of CoNLL files, the column with the tags: its number, counted from 1, or in CoNLL-U its name, as `upos`. None:
    the last one that looks like tags."""
    offsets: Offsets | None = None
    """What the offsets of spans in annotation files count: `characters` (code points) or `utf-16` (code units, as in
    JavaScript). None: what fits the spans' texts, else the words around them."""
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
    media: StrList = []
    """Protocols of addresses in cells of pictures and sounds that are fetched, as `[https, s3]`, by fsspec and the
    packages that it names. A saved model does not fetch unless it is told so again. []: none."""
    media_mib: Annotated[float, Field(gt=0)] = 50.0
    """The most MiB that a fetched file may have."""
    media_seconds: Annotated[float, Field(gt=0)] = 30.0
    """The most seconds that fetching a file may take."""

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

    @field_validator("media")
    @classmethod
    def _fetched(cls, value: list[str]) -> list[str]:
        if not value:
            return value
        from fsspec import available_protocols  # 0.1 s to import

        names = [name.strip().lower().removesuffix("://") for name in value]
        known = sorted(set(available_protocols()) - {"file", "local"})
        if lost := [name for name in names if name not in known]:
            raise ValueError(
                f"addresses of {lost[0]!r} cannot be fetched; {nearest(lost[0], known) or ', '.join(known)}"
            )
        return names

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
