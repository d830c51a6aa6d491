"""The `message` column of the tickets sample: generated texts whose level is the severity of what they report."""

from __future__ import annotations

import numpy as np

LEVELS = ("a question or a wish", "something is slow or looks wrong", "data, money or access is lost")
"""What a message of each level reports."""

_AREAS = (
    "the invoice page", "the calendar", "the reports tab", "the customer list", "the mobile app", "the dashboard",
    "the stock module", "the project board", "the document folder", "the payroll screen", "the booking form",
    "the team chat", "the order history", "the survey builder",
)  # fmt: skip

_OPENERS = (
    "Hello,", "Hi there,", "Good morning,", "Dear team,", "Hi support,", "Hello from accounting,", "Good afternoon,",
    "Hey,", "This is about {area}.", "Writing on behalf of our office.", "", "", "",
)  # fmt: skip

_CLOSERS = (
    "Thanks.", "Best regards, Anna", "Kind regards, Tom", "Let me know.", "Please get back to me.", "Cheers, Priya",
    "Looking forward to your answer.", "You can call me in the afternoon.", "We use version {version}.",
    "I am on a {machine}.", "Regards, Lucía", "", "", "",
)  # fmt: skip

_MACHINES = ("Windows laptop", "Mac", "Linux desktop", "tablet", "work phone", "Chromebook")

_REPORTS: tuple[tuple[str, ...], ...] = (
    (
        "How do I change the language of {area}?",
        "Could you tell me where to find the user guide for {area}?",
        "It would be great if {area} had a dark theme some day.",
        "I have a question: can I share {area} with a colleague?",
        "Is there a tutorial or a webinar that explains {area}?",
        "We would like to suggest a feature: keyboard shortcuts in {area}.",
        "Which plan includes the advanced options of {area}?",
        "Just wondering how to add a second user to {area}.",
        "Can you explain what the star next to {area} means?",
        "Feature request: please let us reorder the entries of {area}.",
        "What is the recommended way to import contacts into {area}?",
        "I am curious whether you plan an integration of {area} with other tools.",
        "Where can I learn how to customise {area}?",
        "May I ask how to rename a label in {area}?",
    ),
    (
        "Loading {area} takes about {seconds} seconds, it used to be quicker.",
        "The text in {area} overlaps with the icons and looks ugly.",
        "Scrolling through {area} is very slow and jerky since the update.",
        "The columns of {area} are misaligned on my screen.",
        "{Area} shows dates in the wrong format, a small display glitch.",
        "There is a flickering line at the edge of {area} when I scroll.",
        "{Area} is sluggish; every click needs {seconds} seconds to respond.",
        "The font in {area} is blurry and the buttons are cut off.",
        "Search in {area} lags behind while I type.",
        "The colours of the chart in {area} are rendered wrong.",
        "Pictures in {area} appear stretched and some icons are missing.",
        "{Area} stutters a lot and refreshes slowly.",
        "The layout of {area} jumps around when the page loads slowly.",
        "The sorting arrow in {area} is displayed upside down and the page is laggy.",
    ),
    (
        "All our records in {area} have been deleted and nothing can be recovered!",
        "Somebody hacked our account through {area} and stole customer data.",
        "We were charged {seconds} times for the same order in {area} and the money is gone.",
        "Everything we stored in {area} has vanished, months of data are lost.",
        "Our whole company is locked out of the account, nobody can log in to {area}.",
        "A stranger has access to our private files in {area}, this is a data breach.",
        "The backup failed and our database behind {area} was wiped out.",
        "Passwords and card numbers leaked through {area}.",
        "Payments made in {area} were sent to the wrong bank account and we lost money.",
        "All accounts are blocked and all files in {area} are destroyed.",
        "An intruder took over our admin login and erased {area}.",
        "Confidential salaries were exposed to outsiders through {area}.",
        "Our account was emptied by a fraudulent payment in {area}.",
        "Nobody in the firm has access any more and the data of {area} are wiped.",
    ),
)


def write_message(level: int, rng: np.random.Generator) -> str:
    """Return a message that reports a problem of this level.

    Args:
        level: index into `LEVELS`.
        rng: draws the wording.
    """

    def pick(choices: tuple[str, ...]) -> str:
        return choices[int(rng.integers(len(choices)))]

    area = pick(_AREAS)
    words = {
        "area": area,
        "Area": area[0].upper() + area[1:],
        "seconds": str(rng.integers(3, 60)),
        "version": f"{rng.integers(1, 9)}.{rng.integers(0, 20)}",
        "machine": pick(_MACHINES),
    }
    parts = (pick(_OPENERS), pick(_REPORTS[level]), pick(_CLOSERS))
    return " ".join(part.format(**words) for part in parts if part)
