"""Generated tables whose best reachable score is known for every set of columns."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusetune.samples.posts import Posts as Posts
    from fusetune.samples.posts import make_posts as make_posts
    from fusetune.samples.shop import Shop as Shop
    from fusetune.samples.shop import make_shop as make_shop
    from fusetune.samples.tickets import Tickets as Tickets
    from fusetune.samples.tickets import make_tickets as make_tickets

_MODULES = {
    **{"Posts": "posts", "make_posts": "posts"},
    **{"Shop": "shop", "make_shop": "shop"},
    **{"Tickets": "tickets", "make_tickets": "tickets"},
}

__all__ = ["Posts", "Shop", "Tickets", "make_posts", "make_shop", "make_tickets"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"fusetune.samples.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'fusetune.samples' has no attribute {name!r}")
