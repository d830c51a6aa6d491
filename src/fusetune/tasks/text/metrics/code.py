"""Whether answers are Python: a share of answers that parse, where the references are Python. Nothing is run.

    parses   answers that parse / rows with a reference that is Python

It is nan where fewer than half of the rows have such a reference.
"""

from __future__ import annotations

import ast
import textwrap
import warnings
from collections.abc import Sequence

import numpy as np

from fusetune.tasks.text.metrics.measure import Measure, ratio

MAX_CHARACTERS = 20_000
"""Longer texts are taken for none: Python's parser recurses, and what it takes grows with the text."""


def parses(text: str) -> bool:
    """Return whether a text is Python that this version of Python can read; an empty one is not.

    An indentation that all lines share is left out, as that of a function's body.

    Example:
        >>> parses("for x in y:\\n    print(x)"), parses("for x in y")
        (True, False)
    """
    return bool(_statements(text))


def is_python(text: str) -> bool:
    """Return whether a text is Python rather than prose that can be read as such, for example "yes, no" or "Ada: 7".

    A line is Python if it is a statement with a keyword; of several lines, an assignment or a call is enough.

    Example:
        >>> is_python("return x + 1"), is_python("yes"), is_python("x = 1\\nprint(x)")
        (True, False, True)
    """
    several = "\n" in text.strip()
    return any(_is_code(statement, several) for statement in _statements(text))


def _is_code(statement: ast.stmt, several: bool) -> bool:
    if isinstance(statement, ast.Expr):
        return several and isinstance(statement.value, ast.Call)
    if isinstance(statement, ast.AnnAssign):
        return several and statement.value is not None
    return several or not isinstance(statement, ast.Assign)


def _statements(text: str) -> list[ast.stmt]:
    """Return the statements of a text; none if it cannot be parsed."""
    if len(text) > MAX_CHARACTERS:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in strings, which are the answer's own
            return ast.parse(textwrap.dedent(text).strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two of deep nesting
        return []


def _row(answer: str, references: Sequence[str]) -> list[float]:
    """Return whether a reference is Python, and whether the answer then parses."""
    code = any(map(is_python, references))
    return [float(code), float(code and parses(answer))]


def _metrics(sums: np.ndarray, rows: float) -> dict[str, float]:
    return {"parses": ratio(sums[1], sums[0] if 2 * sums[0] >= rows else 0)}


CODE = Measure(2, _row, _metrics)
