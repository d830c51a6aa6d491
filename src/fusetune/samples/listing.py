"""The samples by name, as the command line lists them."""

from __future__ import annotations

from collections.abc import Callable

from fusetune.samples.tickets import Tickets, make_tickets

SAMPLES: dict[str, tuple[Callable[..., Tickets], str]] = {
    "tickets": (
        make_tickets,
        "support tickets: message, screenshot, voice note, waiting hours and plan; target priority",
    ),
}
"""Name to its generator, called as `(n, seed, folder, *, missing, label_noise, splits)`, and a line on it."""
