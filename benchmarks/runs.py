"""What benchmarks beside a peer share: options, runs in processes of their own, and figures that are kept."""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import fusetune as ft

DATA = Path(__file__).parents[2] / "shared" / "data"
Run = dict[str, Any]
Key = tuple[str, str, int]
"""Data set, side ("ours" or "theirs"), seed."""


def options(description: str | None, names: Iterable[str], *, peers: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return a parser of the options that all of these benchmarks have; `peers` are sides that "both" leaves out."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(names)}")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1")
    parser.add_argument("--side", choices=["ours", "theirs", "both", *peers], default="both")
    parser.add_argument("--rows", type=int, help="at most so many train rows")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for fusetune")
    parser.add_argument("--out", type=Path, help="figures; what is there already is not measured again")
    return parser


def asked_keys(asked: argparse.Namespace, names: Iterable[str]) -> Iterator[Key]:
    """Yield the runs that were asked for, seed by seed."""
    for seed in range(asked.seeds):
        for name in asked.names or names:
            for side in ["ours", "theirs"] if asked.side == "both" else [asked.side]:
                yield name, side, seed


def collect(jobs: Iterable[tuple[Key, Callable[[], Run]]], file: Path | None) -> list[Run]:
    """Run the jobs whose figures are not in a file yet, each in a process of its own; print and keep each run.

    Args:
        jobs: the runs, picklable; they return the figures.
        file: JSON with the runs so far, or None.

    Returns:
        All runs, with those that the file had.
    """
    runs: list[Run] = json.loads(file.read_text()) if file and file.exists() else []
    done = {(run["name"], run["side"], run["seed"]) for run in runs}
    for key, job in jobs:
        if key in done:
            continue
        with ProcessPoolExecutor(1, get_context("spawn")) as alone:
            runs.append(dict(zip(("name", "side", "seed"), key, strict=True)) | alone.submit(job).result())
        print(json.dumps(runs[-1]), flush=True)
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(runs, indent=1))
    return runs


@contextmanager
def measured() -> Iterator[Run]:
    """Yield a dictionary to which the body's seconds, and the process's peak memory, are added at the end."""
    figures: Run = {}
    start, processor = time.perf_counter(), time.process_time()
    yield figures
    figures["seconds"] = time.perf_counter() - start
    figures["processor_seconds"] = time.process_time() - processor
    figures["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def written(rows: Mapping[str, Sequence[Mapping[str, Any]]], prefix: str) -> tuple[Path, dict[str, Path]]:
    """Write splits as JSON lines; return a new folder, and each split's file in it."""
    folder = Path(tempfile.mkdtemp(prefix=f"fusetune-{prefix}-"))
    files = {part: folder / f"{part}.jsonl" for part in rows}
    for part, some in rows.items():
        with files[part].open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in some)
    return folder, files


def details(tuned: ft.FineTuned) -> dict[str, float]:
    """Return the seconds of a fit's phases, of its updates as "train", and each task's main metric before tuning."""
    results = tuned.results
    assert results is not None
    phases = {phase.name: phase.seconds for phase in results.phases}
    before = {f"before {task.target}": task.main(task.first("before")).value for task in results.tasks}
    return phases | before | {"train": results.updating}
