"""The sample generators by name, for the command line."""

from __future__ import annotations

from collections.abc import Callable

from fusetune.samples.tickets import Tickets, make_tickets

SAMPLES: dict[str, tuple[Callable[..., Tickets], str]] = {
    "tickets": (
        make_tickets,
        "support tickets: message, screenshot, voice note, waiting hours and plan; target priority",
    ),
}
"""Maps a name to its generator, `(n, seed, folder, *, missing, label_noise, splits)`, and a one-line description."""
