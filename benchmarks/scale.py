"""What a fit costs against the number of rows: seconds, peak memory, and their slopes.

python benchmarks/scale.py                       # 1,000 to 100,000 generated rows
python benchmarks/scale.py --most 1000000 --out runs/scale

Rows have a text of eight words, a number, a category and a binary target; the text encoder is tiny and random, so that
what is measured is everything but the encoder's arithmetic. Each fit runs in a process of its own: one epoch of the
heads, no intervals. A slope of 1 is linear; memory is given in bytes a row beyond the smallest table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
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


def table(rows: int, folder: Path) -> Path:
    """A generated table."""
    path = folder / f"rows-{rows}.parquet"
    if not path.exists():
        rng = np.random.default_rng(0)
        number = rng.normal(size=rows)
        words = [" ".join(f"w{word}" for word in row) for row in rng.integers(0, 40, (rows, 8))]
        label = np.where(number + rng.normal(size=rows) > 0, "yes", "no")
        category = [f"c{place}" for place in rng.integers(0, 20, rows)]
        pq.write_table(pa.table({"note": words, "size": number, "plan": category, "label": label}), path)
    return path


def one(rows: int, folder: Path) -> dict[str, Any]:
    """One fit: its phases' seconds and its peak memory."""
    from fusetune.testing.tiny_models import make

    model = folder / "bert"
    if not model.exists():
        make("bert", model)
    command = [str(Path(sys.executable).with_name("fusetune")), "fit", str(table(rows, folder)), "-t", "label"]
    command += ["-o", str(folder / f"model-{rows}"), f"text={model}", *SETTINGS, "--json"]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    phases = {phase["name"]: phase["seconds"] for phase in report["phases"]}
    return {"rows": rows, "seconds": sum(phases.values()), "phases": phases, "peak_mb": report["peak_mb"]}


def show(found: list[dict[str, Any]]) -> str:
    """Markdown: a row a size, and the slopes over the upper half of the sizes, where fixed costs hardly count."""
    names = list(found[0]["phases"])
    lines = [f"| rows | seconds | {' | '.join(names)} | peak memory, MB |", "| --- " * (len(names) + 3) + "|"]
    for run in found:
        phases = " | ".join(f"{run['phases'][name]:.1f}" for name in names)
        lines.append(f"| {run['rows']:,} | {run['seconds']:.1f} | {phases} | {run['peak_mb']:,.0f} |")
    if len(found) > 1:
        small, large = found[-2], found[-1]
        slope = np.log(large["seconds"] / small["seconds"]) / np.log(large["rows"] / small["rows"])
        extra = (large["peak_mb"] - found[0]["peak_mb"]) * 2**20 / (large["rows"] - found[0]["rows"])
        lines.append(f"\nslope of the seconds, {small['rows']:,} to {large['rows']:,} rows: {slope:.2f}")
        lines.append(f"memory: {extra:,.0f} bytes a row")
    return "\n".join(lines)


def main() -> None:
    """Run the sizes, ten times as many rows each time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=100_000, help="the largest table's rows")
    parser.add_argument("--out", type=Path, help="tables, models and the figures; a temporary folder if not given")
    asked = parser.parse_args()
    folder = asked.out or Path(tempfile.mkdtemp(prefix="fusetune-scale-"))
    folder.mkdir(parents=True, exist_ok=True)
    sizes = [10**power for power in range(3, 10) if 10**power <= asked.most]
    found = []
    for rows in sizes:
        found.append(one(rows, folder))
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    print(show(found))
    (folder / "scale.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
