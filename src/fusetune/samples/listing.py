"""The sample generators by name, for the command line."""

from __future__ import annotations

from collections.abc import Callable

from fusetune.samples.posts import Posts, make_posts
from fusetune.samples.shop import Shop, make_shop
from fusetune.samples.tickets import Tickets, make_tickets

SAMPLES: dict[str, tuple[Callable[..., Tickets | Posts | Shop], str]] = {
    "tickets": (
        make_tickets,
        "support tickets: message, screenshot, voice note, waiting hours and plan; target priority",
    ),
    "posts": (make_posts, "posts with a picture, which tells the types of the names in the text; target entities"),
    "shop": (make_shop, "choices of users among items with a description and a picture, to be recommended"),
}
"""Maps a name to its generator, `(n, seed, folder, *, missing, label_noise, splits)`, and a one-line description."""
