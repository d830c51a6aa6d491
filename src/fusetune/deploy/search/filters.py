"""Filters on a catalogue's columns: `price < 50 and colour in ("red", "blue")`."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fusetune.errors import ConfigError, nearest

Cells = Callable[[str], list[Any]]
"""A column's cells by its name."""

_ORDER: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_NEGATED = {ast.NotEq: ast.Eq, ast.NotIn: ast.In, ast.IsNot: ast.Is}
MAX_LENGTH = 2000


def rows_where(expression: str, columns: Mapping[str, list[Any]] | Cells, names: list[str], rows: int) -> np.ndarray:
    """Return the rows that a filter keeps, (rows,) bool.

    Comparisons (`<`, `<=`, `>`, `>=`, `==`, `!=`, `in`, `not in`) of a column with a number, a text or a list of them,
    joined by `and`, `or`, `not` and brackets. `colour == None` asks for missing cells; every other comparison with a
    missing cell is false, also `!=`. A column whose name is no word is in backticks. Compared with a number, a text is
    read as one where it is one.

    Args:
        expression: the filter.
        columns: cells by name, or a function that returns a column's.
        names: the columns.
        rows: their number.

    Raises:
        ConfigError: it is no such expression, or names a column that there is not.

    Example:
        >>> rows_where("price < 50", {"price": ["9", "80"]}, ["price"], 2)
        array([ True, False])
    """
    quoted: dict[str, str] = {}

    def quote(match: re.Match[str]) -> str:
        return quoted.setdefault(match[1], f"_column_{len(quoted)}_")

    text = re.sub(r"`([^`]+)`", quote, expression.strip())
    if len(text) > MAX_LENGTH:
        raise ConfigError(f"a filter has at most {MAX_LENGTH} characters", came=f"{len(text)}")
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _wrong(expression, "use == to ask for a value" if re.search(r"[^<>=!]=[^=]", text) else None) from None
    back = {placeholder: name for name, placeholder in quoted.items()}
    return _Filter(expression, columns, names, rows, back).mask(tree)


def _wrong(expression: str, do: str | None = None) -> ConfigError:
    return ConfigError(
        f"{expression!r} is no filter",
        expected="""comparisons such as price < 50 and colour in ["red", "blue"]""",
        do=do,
    )


class _Filter:
    def __init__(
        self,
        expression: str,
        columns: Mapping[str, list[Any]] | Cells,
        names: list[str],
        rows: int,
        quoted: Mapping[str, str],
    ) -> None:
        self.expression, self.columns, self.names, self.rows, self.quoted = expression, columns, names, rows, quoted

    def mask(self, node: ast.expr) -> np.ndarray:
        """Return the rows for which an expression is true, (rows,) bool."""
        if isinstance(node, ast.BoolOp):
            join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            return np.asarray(join.reduce([self.mask(part) for part in node.values]))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self.mask(node.operand)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            parts = [self._compared(a, op, b) for a, op, b in zip(sides, node.ops, sides[1:], strict=False)]
            return np.asarray(np.logical_and.reduce(parts))
        raise _wrong(self.expression)

    def _compared(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> np.ndarray:
        if not isinstance(left, ast.Name):
            flipped = {ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE}.get(type(op), type(op))
            if not isinstance(right, ast.Name) or isinstance(op, ast.In | ast.NotIn):
                raise _wrong(self.expression, "compare a column with a value")
            left, op, right = right, flipped(), left
        cells, value = self._cells(left.id), self._value(right)
        has = np.array([cell is not None and cell != "" for cell in cells], dtype=bool)
        positive = _NEGATED.get(type(op), type(op))
        if value is None:
            if positive not in (ast.Eq, ast.Is):
                raise _wrong(self.expression, "compare with None by == or !=")
            return ~has if positive is type(op) else has
        if positive is ast.In:
            values = value if isinstance(value, list) else [value]
            parts = [_compare(cells, has, operator.eq, value) for value in values]
            matched = np.logical_or.reduce([np.zeros(self.rows, bool), *parts])
        elif positive in _ORDER and not isinstance(value, list):
            matched = _compare(cells, has, _ORDER[positive], value)
        else:
            raise _wrong(self.expression)
        return np.asarray(matched if positive is type(op) else has & ~matched)

    def _cells(self, name: str) -> list[Any]:
        name = self.quoted.get(name, name)
        if name not in self.names:
            shown = ", ".join(map(repr, self.names[:40]))
            raise ConfigError(
                f"the catalogue has no column {name!r}", expected=f"one of {shown}", do=nearest(name, self.names)
            )
        return self.columns(name) if callable(self.columns) else self.columns[name]

    def _value(self, node: ast.expr) -> Any:
        """Return a literal: a number, a text, a truth value, None, or a list of them."""
        try:
            value = ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            hint = f'write a text in quotes: "{node.id}"' if isinstance(node, ast.Name) else None
            raise _wrong(self.expression, hint) from None
        values = list(value) if isinstance(value, list | tuple | set) else [value]
        if not all(entry is None or isinstance(entry, int | float | str) for entry in values):
            raise _wrong(self.expression)
        return values if isinstance(value, list | tuple | set) else value


def _compare(cells: list[Any], has: np.ndarray, compare: Callable[[Any, Any], Any], value: Any) -> np.ndarray:
    """Compare cells with a value; missing ones, and texts where a number is asked for, are false."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        numbers = np.array([_number(cell) for cell in cells], dtype=np.float64)
        with np.errstate(invalid="ignore"):
            return np.asarray(compare(numbers, value)) & ~np.isnan(numbers)
    texts = [str(cell).casefold() if isinstance(value, bool) else str(cell) for cell in cells]
    wanted = str(value).casefold() if isinstance(value, bool) else value
    return np.asarray(np.array([compare(text, wanted) for text in texts], dtype=bool) & has)


def _number(cell: Any) -> float:
    if isinstance(cell, int | float):
        return float(cell)
    try:
        return float(cell)
    except (TypeError, ValueError):
        return float("nan")
