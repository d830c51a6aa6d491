"""JSON by the standard alone: no NaN, no infinite number, no half a character, no key twice, bounded depth."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any, NoReturn

from fusetune.deploy.serve.problems import Problem


def parse(body: bytes, *, depth: int) -> Any:
    """Parse JSON.

    Args:
        body: UTF-8.
        depth: most nested lists and objects.

    Raises:
        Problem: 400, it is no standard JSON, or nested too deeply.
    """
    try:
        data = json.loads(body.decode("utf-8"), parse_constant=_constant, object_pairs_hook=_object)
    except RecursionError:
        raise _invalid(f"it is nested more than {depth} deep") from None
    except ValueError as error:  # not UTF-8, not JSON, or an integer with thousands of digits
        raise _invalid(str(error)) from None
    _check(data, depth)
    return data


def dump(value: Any) -> bytes:
    """Return a value as standard JSON; NaN and infinite numbers are null."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except ValueError:  # also UnicodeEncodeError, for half a character that a model wrote
        text = json.dumps(_finite(value), ensure_ascii=True, allow_nan=False)
        return text.encode("ascii")


def _invalid(why: str) -> Problem:
    return Problem(400, "invalid_json", f"the body is no valid JSON: {why}")


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number; leave the cell out, or give null, where a value is missing")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!a} is given twice")
    return made


def _check(data: Any, depth: int) -> None:
    """Check depth, numbers and texts, level by level."""
    level, level_number = [data], 0
    while level:
        level_number += 1
        below: list[Any] = []
        for value in level:
            if isinstance(value, str):
                _check_text(value)
            elif isinstance(value, float):
                if not math.isfinite(value):
                    raise _invalid("a number is beyond the range of 64-bit floats")
            elif isinstance(value, dict):
                for name in value:
                    _check_text(name)
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
        nested = any(isinstance(value, dict | list) for value in level)
        if nested and level_number > depth:
            raise _invalid(f"it is nested more than {depth} deep")
        level = below


def _check_text(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise _invalid("a text holds half a character (a lone surrogate)") from None


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value
