"""Progress on standard error: bars on a terminal or in a notebook, plain lines with the time of day elsewhere.

The interval between lines depends on time, not on the number of steps: `SHORTEST` seconds at first, later `GROWTH` of
the time since the step began, at most `LONGEST` seconds. A step that ends sooner prints no line.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from rich import progress as bars
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SHORTEST, LONGEST, GROWTH = 5.0, 60.0, 0.1
"""Seconds between two lines: the minimum, the maximum, and the share of the time since the step began."""


def console() -> Console:
    """Return a console on standard error."""
    return Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)


def shows_bars(to: Console) -> bool:
    """Return whether progress bars can be drawn on a console."""
    return to.is_interactive or to.is_jupyter


def print_line(text: str) -> None:
    """Print a line of progress, with the time of day if the output is not a terminal; ignore a closed output."""
    to = console()
    if shows_bars(to):
        to.print(text, markup=False)
        return
    with contextlib.suppress(OSError, ValueError):
        to.file.write(f"{time.strftime('%H:%M:%S')}  {text}\n")  # rich exits where the pipe is closed
        to.file.flush()


class Pace:
    """Decide when the next line is due."""

    def __init__(self) -> None:
        self.start = self.last = time.monotonic()

    def due(self) -> bool:
        """Return whether enough time has passed since the last line; if so the next interval begins."""
        now = time.monotonic()
        if now - self.last < min(max((now - self.start) * GROWTH, SHORTEST), LONGEST):
            return False
        self.last = now
        return True


def track(steps: Iterator[Any], what: str, total: int) -> Iterator[Any]:
    """Yield the steps and show how many are done; a `fusetune.data.column.Progress`.

    Args:
        steps: the iterable to wrap.
        what: the name to show, without markup.
        total: number of steps.
    """
    to = console()
    if shows_bars(to):
        yield from bars.track(steps, description=escape(what), total=total, transient=True, console=to)
        return
    pace, printed = Pace(), False
    number = 0
    for number, step in enumerate(steps, 1):
        yield step
        if pace.due():
            printed = True
            print_line(f"{what}  {number:,}/{total:,}")
    if printed and number < total:
        print_line(f"{what}  {number:,}/{total:,}")


class StageBar:
    """Show a training stage as a progress bar."""

    def __init__(self, to: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, TextColumn("{task.fields[note]}"), transient=True, console=to)
        self.progress.start()
        self.task: Any = None

    def begin(self, name: str, total: int, done: int) -> None:
        """Show a new stage."""
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.task = self.progress.add_task(name, total=total, completed=done, note="")

    def show(self, done: int, note: str) -> None:
        """Show the updates made and a note."""
        if self.task is not None:  # the model is evaluated before the first stage begins, too
            self.progress.update(self.task, completed=done, note=note)

    def end(self) -> None:
        """Remove the bar."""
        self.progress.stop()


class StageLines:
    """Show a training stage as plain lines."""

    def __init__(self) -> None:
        self.name, self.total, self.latest, self.printed = "", 0, "", ""
        self.pace = Pace()

    def begin(self, name: str, total: int, done: int) -> None:
        """Print the last line of the previous stage, and begin a new one."""
        self.end()
        self.name, self.total = name, total
        self.pace = Pace()

    def show(self, done: int, note: str) -> None:
        """Print the updates made and a note, if a line is due."""
        self.latest = f"{self.name}  step {done:,}/{self.total:,}  {note}"
        if self.name and self.pace.due():
            self.end()

    def end(self) -> None:
        """Print the last line, if it has not been printed."""
        if self.name and self.latest not in ("", self.printed):
            print_line(self.latest)
            self.printed = self.latest
        self.latest = ""
