"""Tunes on the real data sets of ../shared and prints what was reached: one row a system, the median over seeds.

python benchmarks/quality.py                       # everything, seed 0
python benchmarks/quality.py esc10 sst2 --seeds 3  # two of them, seeds 0 to 2
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import fusetune as ft

HERE = Path(__file__).parent
TICKETS = "tickets"
NUM_TICKETS = 3000


def settings_of(name: str, folder: Path) -> dict[str, Any]:
    """What `ft.fit` is called with."""
    if name != TICKETS:
        return {"config": HERE / "quality" / f"{name}.yaml"}
    tickets = ft.samples.make_tickets(NUM_TICKETS, 0, folder / "table", splits={"train": 0.7, "test": 0.3})
    return {
        "train": tickets.tables["train"],
        "test": tickets.tables["test"],
        "target": "priority",
        "config": HERE / "quality" / "tickets.yaml",
    }


def processor_seconds() -> float:
    """Return the processor seconds that this process and its ended children have used, user and system."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def run(name: str, seed: int, out: Path | None, overrides: list[str]) -> dict[str, Any]:
    """One fit: the main metric of every system on the test rows, and the seconds it took."""
    folder = (out or Path(tempfile.mkdtemp(prefix="fusetune-quality-"))) / f"{name}-{seed}"
    start, used = time.perf_counter(), processor_seconds()
    tuned = ft.fit(
        **settings_of(name, folder), out=folder / "model", overrides=[f"seed={seed}", *overrides], progress=False
    )
    seconds = time.perf_counter() - start
    cpu_seconds = processor_seconds() - used
    assert tuned.results is not None
    task = tuned.results.tasks[0]
    systems = {system.name: task.main(system) for system in task.systems}
    return {
        "name": name,
        "seed": seed,
        "metric": task.metric,
        "rows": task.rows,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_mb": tuned.results.peak_mb,
        "phases": {phase.name: round(phase.seconds, 1) for phase in tuned.results.phases},
        "systems": {key: [value.value, value.low, value.high] for key, value in systems.items()},
    }


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: for each data set and system the median over seeds, the range, and the first seed's 95 % interval."""
    lines = ["| data | metric | system | median | range over seeds | 95 % interval, first seed |", "|---" * 6 + "|"]
    for name in dict.fromkeys(run["name"] for run in runs):
        mine = [run for run in runs if run["name"] == name]
        for system in mine[0]["systems"]:
            values = [run["systems"][system][0] for run in mine]
            _, low, high = mine[0]["systems"][system]
            interval = f"{low:.3f} to {high:.3f}" if math.isfinite(low) else ""
            lines.append(
                f"| {name} | {mine[0]['metric']} | {system} | {statistics.median(values):.3f} "
                f"| {min(values):.3f} to {max(values):.3f} | {interval} |"
            )
        seconds = statistics.median(run["seconds"] for run in mine)
        lines.append(f"| {name} | seconds, whole fit and report | | {seconds:.0f} | | |")
        cpu_seconds = statistics.median(run["cpu_seconds"] for run in mine)
        lines.append(f"| {name} | processor seconds of it | | {cpu_seconds:.0f} | | |")
    return "\n".join(lines)


def main() -> None:
    """Run what was asked for."""
    names = sorted(path.stem for path in (HERE / "quality").glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=names, help=f"of {', '.join(names)}")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0 to N - 1")
    parser.add_argument("--out", type=Path, help="keep models, reports and figures here")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for all")
    asked = parser.parse_args()
    runs = []
    for name in asked.names:
        for seed in range(asked.seeds):
            runs.append(run(name, seed, asked.out, asked.set))
            print(json.dumps(runs[-1]), flush=True)
    if asked.out:
        (asked.out / "quality.json").write_text(json.dumps(runs, indent=1))
    print(table(runs))


if __name__ == "__main__":
    main()
