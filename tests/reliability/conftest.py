"""What was tried and what survived, as a table at the end of `make torture`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TRIED: dict[str, list[int]] = {}
"""What was tried: how often, and how often it was survived."""


@pytest.fixture
def tried() -> Callable[..., None]:
    """Writes down that something was tried: `tried("SIGKILL at a random moment", survived=True)`."""

    def note(what: str, *, survived: bool, times: int = 1) -> None:
        found = TRIED.setdefault(what, [0, 0])
        found[0] += times
        found[1] += times if survived else 0

    return note


@pytest.fixture
def base(tiny: Callable[[str], str], shop_tables: dict[str, Path]) -> dict[str, Any]:
    """Settings of a small fit with every kind of column, which keeps a checkpoint an update."""
    return {
        **{name: str(path) for name, path in shop_tables.items()},
        "target": ["label"],
        "text": {"name": tiny("bert")},
        "image": {"name": tiny("vit")},
        "audio": {"name": tiny("wav2vec2")},
        "fusion": {"name": "attention", "dim": 16},
        "trainer": {"epochs": 2, "head_epochs": 2, "batch_size": 20, "trackers": [], "checkpoint_minutes": 0},
        "report": {"bootstrap": 0, "alone": "none"},
        "data": {"cache": "none"},
    }


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table: what tests wrote down, and the other tests by their names."""
    if not TRIED:
        return
    rows = {what: tuple(counts) for what, counts in TRIED.items()}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, ()):
            if report.when == "call" and (outcome == "failed" or "torture" not in report.keywords):
                name = report.nodeid.split("/")[-1].split("[")[0].replace(".py::test_", ": ").replace("_", " ")
                counts = rows.get(name, (0, 0))
                rows[name] = counts[0] + 1, counts[1] + (outcome == "passed")
    terminalreporter.section("what was tried")
    terminalreporter.write_line(f"{'tried':>7} {'survived':>9}  what")
    for what, (times, survived) in rows.items():
        terminalreporter.write_line(f"{times:>7,} {survived:>9,}  {what}", red=survived < times)
    total = [sum(counts) for counts in zip(*rows.values(), strict=True)]
    terminalreporter.write_line(f"{total[0]:>7,} {total[1]:>9,}  in all")
