"""Standard output and error that can always be written to: whatever the encoding, and also where they are closed."""

from __future__ import annotations

import codecs
import os
import sys

ESCAPE = "fusetune_escape"
"""The error handler: what an encoding lacks is written as JSON escapes it, which stays valid inside JSON."""


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    pairs = [units[place : place + 2].hex() for place in range(0, len(units), 2)]
    return "".join(f"\\u{pair}" for pair in pairs), error.end


def make_safe() -> None:
    """Escape what the output's encoding lacks; give a closed output the null device."""
    codecs.register_error(ESCAPE, _escape)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  (as long as the process)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=ESCAPE)
