"""Generated tables whose best reachable accuracy is known for every set of columns."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusetune.samples.tickets import Tickets as Tickets
    from fusetune.samples.tickets import make_tickets as make_tickets

__all__ = ["Tickets", "make_tickets"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("fusetune.samples.tickets"), name)
    raise AttributeError(f"module 'fusetune.samples' has no attribute {name!r}")
