"""What the command line says when a verb fails, and the exit code that follows."""

from __future__ import annotations

import platform
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fusetune
from fusetune.cli.common import State, errors_console, print_json
from fusetune.errors import RunError, UserError

USERS, OURS = 2, 1
"""Exit codes: the user's mistake, and a run that failed."""

_PARTS = ("what", "expected", "came", "do", "file", "row", "column")


def tell(error: Exception, state: State) -> int:
    """Say what went wrong, on standard error and, where JSON was asked for, on standard output.

    Returns:
        The exit code: 2 for the user's mistake, 1 for anything else.
    """
    theirs = isinstance(error, UserError)
    message, log = (str(error), None) if theirs or isinstance(error, RunError) else _explain(error)
    to = errors_console()
    if state.debug:
        to.print("".join(traceback.format_exception(error)))
    to.print("error: ", style="bold red", end="")
    to.print(message)
    if state.json:
        print_json({"error": _as_json(error, message, log)})
    return USERS if theirs else OURS


def show_warning(others: Callable[..., None]) -> Callable[..., None]:
    """How warnings are shown: ours as a line for people.

    Args:
        others: shows what other packages warn of.
    """

    def show(message: Any, category: type[Warning], filename: str, lineno: int, *more: Any) -> None:
        if not Path(filename).is_relative_to(Path(fusetune.__file__).parent):
            others(message, category, filename, lineno, *more)
            return
        to = errors_console()
        to.print("warning: ", style="bold yellow", end="")
        to.print(str(message))

    return show


def _explain(error: Exception) -> tuple[str, str | None]:
    """A message for a failure that nobody foresaw, and where its traceback is."""
    text = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        text += "\n  Do: take a smaller trainer.batch_size, or a larger trainer.accumulate, or freeze the backbones"
    elif not isinstance(error, OSError):
        text = f"fusetune itself failed. {text}"
    log = _write_log(error)
    return text + (f"\n  The traceback is in {log}" if log else "\n  `fusetune --debug ...` shows the traceback"), log


def _write_log(error: Exception) -> str | None:
    """Write the traceback to a file of its own; None where that cannot be done, as on a full disk."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="fusetune-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as log:
            log.write(f"fusetune {fusetune.__version__}, Python {platform.python_version()}, {platform.platform()}\n")
            log.write(f"{sys.argv}\n\n")
            log.writelines(traceback.format_exception(error))
            return log.name
    except OSError:
        return None


def _as_json(error: Exception, message: str, log: str | None) -> dict[str, Any]:
    parts = {part: getattr(error, part, None) for part in _PARTS} if isinstance(error, UserError) else {}
    found = {"type": type(error).__name__, "message": message, **parts, "log": log}
    return {name: value for name, value in found.items() if value is not None}
