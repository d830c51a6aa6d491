"""Every exception fusetune raises on purpose.

    FusetuneError
    ├── UserError (ValueError)        the user's mistake: the command line exits with 2
    │   ├── ConfigError               a setting is unknown, of the wrong type or contradicts another
    │   ├── TableError                a table cannot be read, or lacks what was asked of it
    │   │   └── EmptyTable            a table has no rows
    │   ├── SchemaError               a column's kind or role cannot be what was asked
    │   ├── BadCell                   one cell cannot be read (row, column, value, why)
    │   ├── TooManyRejected           more rows were rejected than allowed
    │   ├── BackboneError             a pretrained model cannot be found, loaded or used
    │   ├── FolderError               a saved model folder is incomplete, broken or refused
    │   └── MissingExtra              an optional dependency is not installed
    └── RunError (RuntimeError)       the run failed: the command line exits with 1
        ├── NonFiniteLoss             the loss or a gradient became NaN or infinite
        ├── ExportError               an exported model answers otherwise than the model that it was made from
        ├── StorageError              a file could not be written
        └── ReportError               the model is tuned and saved, but its report could not be made

Besides, `Interrupted` (KeyboardInterrupt): the run was told to stop, by Ctrl-C or SIGTERM.

A message says what was expected, what came and what to do, and where: file, row, column.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any, Self

MAX_SHOWN = 120


def shown(value: object, limit: int = MAX_SHOWN) -> str:
    """Format a value for an error message: quoted, control characters escaped, at most `limit` characters."""
    if isinstance(value, bytes | bytearray):
        return f"<{len(value)} bytes>"
    text = repr(value if len(str(value)) <= limit else str(value)[: limit - 1] + "…")
    return text


NEAREST = "did you mean"
"""How a suggestion begins."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return a sentence that suggests the known name closest to a misspelt one, or None if none is close."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not close:  # the same letters in another case
        folded = {text.strip().casefold(): text for text in known}
        close = [folded[near] for near in difflib.get_close_matches(name.strip().casefold(), folded, n=1, cutoff=0.6)]
    return f"{NEAREST} {close[0]!r}?" if close else None


def unmatched(names: Iterable[str], known: Iterable[str], limit: int = 5) -> str:
    """Return names that match none of the known ones, each with the closest of these where one is close.

    Example:
        >>> unmatched(["Yes", "perhaps"], ["no", "yes"])
        "'Yes' (did you mean 'yes'?), 'perhaps'"
    """
    names, known = list(names), list(known)
    shown_names = []
    for name in names[:limit]:
        close = nearest(name, known)
        shown_names.append(f"{shown(name, 60)} ({close})" if close else shown(name, 60))
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(shown_names) + more


def reason(error: OSError) -> str:
    """Return the system's message without the error number: "No such file or directory"."""
    return error.strerror or str(error) or type(error).__name__


class FusetuneError(Exception):
    """The root of the tree: catch it to catch every exception that fusetune raises on purpose."""


class UserError(FusetuneError, ValueError):
    """A mistake that the user can correct: in the table, the settings or a folder."""

    def __init__(
        self,
        what: str,
        *,
        expected: str | None = None,
        came: str | None = None,
        do: str | None = None,
        file: str | None = None,
        row: int | None = None,
        column: str | None = None,
    ) -> None:
        """
        Args:
            what: one sentence on the problem.
            expected: what a valid value would have been.
            came: what was found instead.
            do: what the user can do about it.
            file: the file it was found in.
            row: the row's number: 0 is the first row of data.
            column: the column's name.
        """
        self.what, self.expected, self.came, self.do = what, expected, came, do
        self.file, self.row, self.column = file, row, column
        super().__init__(self._message())

    def in_file(self, file: str) -> Self:
        """Add the file's name if the error has none, and return the error."""
        if self.file is None:
            self.file = file
            self.args = (self._message(),)
        return self

    def with_advice(self, text: str) -> Self:
        """Add a sentence on what to do, and return the error."""
        self.do = text if self.do is None else f"{self.do.rstrip('.')}. {text}"
        self.args = (self._message(),)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Support pickling, by which a worker process passes the error to the main one."""
        return _restore, (type(self), self.args, self.__dict__)

    def _message(self) -> str:
        location = [part for part in (self.file, _numbered("row", self.row), _quoted("column", self.column)) if part]
        text = f"{', '.join(location)}: {self.what}" if location else self.what
        for label, part in (("Expected", self.expected), ("Came", self.came), ("Do", self.do)):
            if part:
                text += f"\n  {label}: {part}"
        return text


def _restore(kind: type[UserError], args: tuple[Any, ...], state: dict[str, Any]) -> UserError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


def _numbered(label: str, number: int | None) -> str | None:
    return None if number is None else f"{label} {number}"


def _quoted(label: str, name: str | None) -> str | None:
    return None if name is None else f"{label} {name!r}"


class ConfigError(UserError):
    """A setting is unknown, of the wrong type, out of range or contradicts another.

    Attributes:
        problems: the errors that this one lists; empty if it is a single problem.
    """

    problems: tuple[ConfigError, ...] = ()


def all_at_once(checks: Iterable[Callable[[], object]]) -> None:
    """Run every check and raise all problems as one error.

    Raises:
        ConfigError: the error of the only check that failed, or one that lists all of them.
    """
    problems: list[ConfigError] = []
    for check in checks:
        try:
            check()
        except ConfigError as error:
            problems += error.problems or (error,)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        lines = [str(error).replace("\n", "\n    ") for error in problems]
        several = ConfigError(f"the settings: {len(problems)} problems\n    " + "\n    ".join(lines))
        several.problems = tuple(problems)
        raise several


class TableError(UserError):
    """A table cannot be read, or lacks a column, rows or a label that was asked of it."""


class EmptyTable(TableError):
    """A table has no rows."""


class SchemaError(UserError):
    """A column's kind or role does not fit what was requested."""


class BadCell(UserError):
    """One cell cannot be read as its column's kind.

    Its attributes `row`, `column`, `value` and `why` are written to the list of rejected rows.
    """

    def __init__(self, *, row: int, column: str, value: Any, why: str, do: str | None = None) -> None:
        """
        Args:
            row: the row's id in its table.
            column: the column's name.
            value: the cell's value in the table.
            why: what is wrong with it, without row and column: "the JPEG is cut off after 512 bytes".
            do: what the user can do about it.
        """
        self.value, self.why = value, why
        super().__init__(why, came=shown(value), do=do, row=row, column=column)


class TooManyRejected(UserError):
    """More rows were rejected than allowed, so training did not start."""


class BackboneError(UserError):
    """A pretrained model cannot be found, loaded safely or used for this kind of column."""


class FolderError(UserError):
    """A saved model folder is incomplete, broken or refused."""


class MissingExtra(UserError, ImportError):
    """An optional dependency is needed and not installed; the message names the extra."""


class RunError(FusetuneError, RuntimeError):
    """The run failed for a reason that lies outside the user's input."""


class NonFiniteLoss(RunError):
    """The loss or a gradient became NaN or infinite; no update was made from it."""


class ExportError(RunError):
    """An exported model answers otherwise than the model that it was made from; it was not kept."""


class StorageError(RunError):
    """A file could not be written; the message has the path and the reason."""


class ReportError(RunError):
    """The model is tuned and saved, but comparing it or drawing its report failed."""


class Interrupted(KeyboardInterrupt):
    """The run was stopped by a signal, at a point from which it can be resumed."""

    def __init__(self, signal: int, *, saved: bool) -> None:
        """
        Args:
            signal: its number.
            saved: whether a checkpoint was written.
        """
        self.signal, self.saved = signal, saved
        super().__init__("stopped; a checkpoint was written, --resume goes on from it" if saved else "stopped")
