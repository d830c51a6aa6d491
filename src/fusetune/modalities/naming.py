"""Names of submodules from names of columns."""

from __future__ import annotations

import hashlib
import re


def module_name(kind: str, column: str) -> str:
    """Return a name of letters, digits and `_` that differs for every column: "number_unit_price_1f0c9a2b".

    Args:
        kind: what comes first.
        column: the column's name, of any characters; a hash of it keeps "a b" and "a_b" apart.
    """
    readable = re.sub(r"[^a-zA-Z0-9]+", "_", column).strip("_")[:40]
    digest = hashlib.sha256(column.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return "_".join(part for part in (kind, readable, digest) if part)
