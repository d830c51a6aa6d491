"""What a fit costs against the number of rows: seconds, peak memory, and their slopes.

python benchmarks/scale.py                       # 1,000 to 100,000 generated rows
python benchmarks/scale.py --most 1000000 --out runs/scale
python benchmarks/scale.py --shards 16           # the table as a folder of so many Parquet files

Rows have a text of eight words, a number, a category and a binary target; the text encoder is tiny and random, so that
what is measured is everything but the encoder's arithmetic. Each fit runs in a process of its own: one epoch of the
heads, no intervals. A slope of 1 is linear. Memory is given in bytes a row beyond the smallest table: what the process
holds by itself, which the machine must have; and with the files that it has mapped (the table, large features), which
the system drops and reads again where memory is short.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SETTINGS = [
    "trainer={epochs: 0, head_epochs: 1, trackers: []}",
    "report={bootstrap: 0, alone: none}",
    "data.cache=none",
]
PART = 100_000
"""Rows that are generated at a time."""
LOOK = 0.05
"""Seconds between two looks at a fit's memory."""


def part(rows: int, seed: int) -> pa.Table:
    """Generated rows."""
    rng = np.random.default_rng(seed)
    number = rng.normal(size=rows)
    words = [" ".join(f"w{word}" for word in row) for row in rng.integers(0, 40, (rows, 8))]
    label = np.where(number + rng.normal(size=rows) > 0, "yes", "no")
    category = [f"c{place}" for place in rng.integers(0, 20, rows)]
    return pa.table({"note": words, "size": number, "plan": category, "label": label})


def table(rows: int, folder: Path, shards: int) -> Path:
    """A generated table: one Parquet file, or a folder of several."""
    path = folder / (f"rows-{rows}-{shards}" if shards > 1 else f"rows-{rows}.parquet")
    if path.exists():
        return path
    files = [path]
    if shards > 1:
        path.mkdir()
        files = [path / f"part-{number:03}.parquet" for number in range(shards)]
    for number, file in enumerate(files):
        left, writer = rows // len(files), None
        while left:
            made = part(min(left, PART), seed=1000 * number + left // PART)
            writer = writer or pq.ParquetWriter(file, made.schema)
            writer.write_table(made)
            left -= len(made)
        if writer is not None:
            writer.close()
    return path


def watched(command: list[str]) -> tuple[dict[str, Any], float, float]:
    """What a command prints as JSON, the most memory that it held by itself, in MB, mapped files left out, and the
    processor's seconds that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out)
        own = 0
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:  # it has just ended, or this system has no such file
                status = ""
            own = max([own, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))])
            time.sleep(LOOK)
        if process.returncode:
            raise SystemExit(process.returncode)
        out.seek(0)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return json.load(out), own / 1024, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def one(rows: int, folder: Path, shards: int) -> dict[str, Any]:
    """One fit: its phases' seconds and its peak memory."""
    from fusetune.testing.tiny_models import make

    model = folder / "bert"
    if not model.exists():
        make("bert", model)
    command = [str(Path(sys.executable).with_name("fusetune")), "fit", str(table(rows, folder, shards)), "-t", "label"]
    command += ["-o", str(folder / f"model-{rows}"), f"text={model}", *SETTINGS, "--json"]
    report, own, cpu = watched(command)
    phases = {phase["name"]: phase["seconds"] for phase in report["phases"]}
    peaks = {phase["name"]: round(phase["peak_mb"]) for phase in report["phases"]}
    found = {"rows": rows, "seconds": sum(phases.values()), "cpu_seconds": cpu, "phases": phases, "peaks": peaks}
    return {**found, "own_mb": own, "peak_mb": report["peak_mb"]}


def show(found: list[dict[str, Any]]) -> str:
    """Markdown: a row a size, and the slopes over the upper half of the sizes, where fixed costs hardly count."""
    names = list(found[0]["phases"])
    lines = [f"| rows | seconds | of a processor | {' | '.join(names)} | own memory, MB | with mapped files, MB |"]
    lines.append("| --- " * (len(names) + 5) + "|")
    for run in found:
        phases = " | ".join(f"{run['phases'][name]:.1f}" for name in names)
        memory = f"{run['own_mb']:,.0f} | {run['peak_mb']:,.0f}"
        lines.append(f"| {run['rows']:,} | {run['seconds']:.1f} | {run['cpu_seconds']:.1f} | {phases} | {memory} |")
    if len(found) > 1:
        small, large = found[-2], found[-1]
        rows = large["rows"] - found[0]["rows"]
        ratio = np.log(large["rows"] / small["rows"])
        slope, of_cpu = (np.log(large[name] / small[name]) / ratio for name in ("seconds", "cpu_seconds"))
        own, all_of_it = ((large[name] - found[0][name]) * 2**20 / rows for name in ("own_mb", "peak_mb"))
        lines.append(f"\nslope of the seconds, {small['rows']:,} to {large['rows']:,} rows: {slope:.2f}")
        lines.append(f"of the processor's seconds, which other work on the machine hardly changes: {of_cpu:.2f}")
        lines.append(f"memory: {own:,.0f} bytes a row, with mapped files {all_of_it:,.0f}")
    return "\n".join(lines)


def main() -> None:
    """Run the sizes, ten times as many rows each time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--least", type=int, default=1000, help="the smallest table's rows")
    parser.add_argument("--most", type=int, default=100_000, help="the largest table's rows")
    parser.add_argument("--shards", type=int, default=1, help="Parquet files that a table is made of")
    parser.add_argument("--out", type=Path, help="tables, models and the figures; a temporary folder if not given")
    asked = parser.parse_args()
    folder = asked.out or Path(tempfile.mkdtemp(prefix="fusetune-scale-"))
    folder.mkdir(parents=True, exist_ok=True)
    sizes = [10**power for power in range(1, 10) if asked.least <= 10**power <= asked.most]
    found = []
    for rows in sizes:
        found.append(one(rows, folder, asked.shards))
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    print(show(found))
    (folder / "scale.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
