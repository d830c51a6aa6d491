"""Submodule names from column names."""

from __future__ import annotations

import hashlib
import re


def module_name(kind: str, column: str) -> str:
    """Return a submodule name that is unique to a column, such as "number_unit_price_1f0c9a2b".

    Args:
        kind: the prefix.
        column: the column's name, with any characters; its hash distinguishes "a b" from "a_b".
    """
    readable = re.sub(r"[^a-zA-Z0-9]+", "_", column).strip("_")[:40]
    digest = hashlib.sha256(column.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return "_".join(part for part in (kind, readable, digest) if part)
