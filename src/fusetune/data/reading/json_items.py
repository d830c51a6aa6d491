"""The values of a JSON file, one after another: its lines, or the elements of its array, which may lie in an object."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import TextIOBase
from pathlib import Path
from typing import Any, Literal

from fusetune.data.reading.text_files import wrong_encoding
from fusetune.errors import TableError

PIECE = 1 << 16
"""Characters that are read at a time, at least."""
SHOWN = 500
Layout = Literal["lines", "array", "object"]


@dataclass(frozen=True)
class Item:
    """One value of a file.

    Attributes:
        where: its position for messages: "line 3", "element 2 (character 517)".
        value: what was parsed; None where `fault` says that it could not be.
        text: the beginning of its JSON.
        fault: why it cannot be read.
    """

    where: str
    value: Any
    text: str
    fault: str | None = None


class _DuplicateKey(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateKey(f"the key {next(name for name in names if names.count(name) > 1)!r} appears twice")
    return made


_STRICT = json.JSONDecoder(object_pairs_hook=_object)
_LENIENT = json.JSONDecoder(parse_int=str, parse_float=str)
"""Finds the end of a value that is JSON but cannot be used."""


def items_of(path: Path, encoding: str, layout: Layout, key: str | None = None) -> Iterator[Item]:
    """Yield a file's values.

    Args:
        path: the file.
        encoding: of its text.
        layout: "lines": one value a line. "array": the elements of one array. "object": those of the array that an
            object has under `key`.
        key: see `layout`.

    Raises:
        TableError: an array is not JSON, names the element and the character; or the file is not in its encoding.
    """
    with path.open(encoding=encoding, newline="\n") as handle:
        try:
            if layout == "lines":
                yield from _lines(handle)
            else:
                yield from JsonStream(handle, path).elements(key if layout == "object" else None)
        except UnicodeDecodeError as error:
            raise wrong_encoding(path, encoding) from error


def _lines(handle: TextIOBase) -> Iterator[Item]:
    for number, line in enumerate(handle, start=1):
        if not line.strip():
            continue
        where, text = f"line {number}", line.rstrip("\r\n")
        try:
            value = _STRICT.decode(line)
            check_surrogates(line, value)
        except (ValueError, RecursionError) as error:
            yield Item(where, None, text, json_fault(error))
            continue
        yield Item(where, value, text)


def check_surrogates(text: str, value: Any) -> None:
    """Refuse a value whose strings are not Unicode.

    Raises:
        UnicodeEncodeError: it holds half of a surrogate pair.
    """
    if "\\ud" in text.lower():
        json.dumps(value, ensure_ascii=False).encode()
    else:
        text.encode()


def json_fault(error: Exception) -> str:
    """Return what is wrong with a value, by the error that parsing it raised."""
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON at character {error.colno}: {error.msg}"
    if isinstance(error, UnicodeEncodeError):
        return "half of a surrogate pair, which is no character"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(error)


class JsonStream:
    """A JSON text that is parsed value by value; only the current value is in memory."""

    def __init__(self, handle: TextIOBase, path: Path) -> None:
        """
        Args:
            handle: the text.
            path: for errors.
        """
        self.handle, self.path = handle, path
        self.buffer, self.index, self.before, self.ended = "", 0, 0, False
        self.where = ""
        self.row: int | None = None

    def peek(self) -> str:
        """Return the next character that is not white space, "" at the end."""
        while True:
            while self.index < len(self.buffer):
                if not self.buffer[self.index].isspace():
                    return self.buffer[self.index]
                self.index += 1
            if not self._more():
                return ""

    def _more(self) -> bool:
        """Read as much again as is in memory; return whether there was anything."""
        self.before += self.index
        self.buffer, self.index = self.buffer[self.index :], 0
        part = self.handle.read(max(PIECE, len(self.buffer)))
        self.buffer += part
        self.ended |= not part
        return bool(part)

    def take(self, characters: str) -> str:
        """Return the next character, one of `characters`, and step behind it."""
        found = self.peek()
        if not found or found not in characters:
            raise self.broken(f"{repr(found) if found else 'the end'} where {' or '.join(characters)} should be")
        self.index += 1
        return found

    def value(self) -> tuple[Any, str, str | None]:
        """Parse the next value; return it, the beginning of its text, and why it cannot be used.

        Raises:
            TableError: it is not JSON.
        """
        self.peek()
        while True:
            fault = None
            try:
                try:
                    value, end = _STRICT.raw_decode(self.buffer, self.index)
                    check_surrogates(self.buffer[self.index : end], value)
                except json.JSONDecodeError:
                    raise
                except ValueError as error:
                    value, fault = None, json_fault(error)
                    end = _LENIENT.raw_decode(self.buffer, self.index)[1]
                if end < len(self.buffer) or self.ended:
                    text = self.buffer[self.index : min(end, self.index + SHOWN)]
                    self.index = end
                    return value, text, fault
            except json.JSONDecodeError as error:
                if self.ended:
                    raise self.broken(f"{error.msg}", error.pos) from None
            except RecursionError:
                raise self.broken("it is nested too deeply") from None
            self._more()

    def broken(self, why: str, index: int | None = None) -> TableError:
        """Return the error about the text at an index of the buffer, the current one where None."""
        character = self.before + (self.index if index is None else index)
        return TableError(
            f"{self.where}not JSON at character {character}: {why}",
            expected="a whole JSON file",
            do="export it again; it may be cut off",
            file=str(self.path),
            row=self.row,
        )

    def elements(self, key: str | None) -> Iterator[Item]:
        """Yield the elements of the array, or of the array under a key of the object, and check what comes after."""
        if key is None:
            self.row = 0
            for number, item in enumerate(self.array()):
                yield item
                self.row = number + 1
        else:
            for name in self.object_keys():
                if name == key and self.peek() == "[":
                    yield from self.array()
                else:
                    self.value()
        if self.peek():
            raise self.broken("there is more after the end of the value")

    def object_keys(self) -> Iterator[str]:
        """Yield the keys of the object; after each the caller reads the value."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        while True:
            if self.peek() != '"':
                raise self.broken("no key in quotes")
            name = str(self.value()[0])
            self.take(":")
            self.where = f"key {name[:40]!r}: "
            yield name
            if self.take(",}") == "}":
                return

    def array(self) -> Iterator[Item]:
        """Yield the elements of the array."""
        self.take("[")
        number = 0
        while not (number == 0 and self.peek() == "]"):
            self.where = f"element {number + 1}: "
            self.peek()
            where = f"element {number + 1} (character {self.before + self.index})"
            value, text, fault = self.value()
            yield Item(where, value, text, fault)
            number += 1
            if self.take(",]") == "]":
                return
        self.take("]")
