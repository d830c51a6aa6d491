"""Values of tables that settings name, although YAML reads them as booleans, numbers, times or nothing."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import yaml

from fusetune.security.yaml_text import parse_yaml

MAX_CHARS = 100


def spells(value: Any, text: str) -> bool:
    """Whether a setting's value may have been written as this text.

    YAML reads `no` as False, `01` as 1, `12:30` as 750 and `null` as nothing, so `{no: 1}` may mean the label "no",
    "off" or "False". A table's text is compared by what YAML makes of it.

    Args:
        value: as YAML, JSON or Python gave it.
        text: a label or word of a table.

    Example:
        >>> spells(False, "no"), spells(1, "01"), spells(None, "null"), spells("no", "No")
        (True, True, True, False)
    """
    if isinstance(value, str):
        return value == text
    if str(value) == text:
        return True
    if len(text) > MAX_CHARS:
        return False
    meant = _as_yaml(text)
    return type(meant) is type(value) and bool(meant == value)


def spelled(value: Any, known: Iterable[str]) -> str | None:
    """The known text that a setting's value names, or None where it is none, or several.

    Args:
        value: as YAML, JSON or Python gave it.
        known: a table's labels.
    """
    known = list(known)
    exact = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if exact in known:
        return exact
    found = [text for text in known if spells(value, text)]
    return found[0] if len(found) == 1 else None


@lru_cache(maxsize=4096)
def _as_yaml(text: str) -> Any:
    try:
        return parse_yaml(text)
    except (yaml.YAMLError, ValueError):
        return text
