"""Adapters against full tuning, on the generated tickets or on film reviews: one row a method.

python benchmarks/adapters.py                           # 3,000 tickets, the text encoder tuned, seed 0
python benchmarks/adapters.py --data sst2               # 2,000 train rows of sst2
python benchmarks/adapters.py --seeds 3 --out runs/adapters
python benchmarks/adapters.py full lora --set trainer.epochs=4

The text encoder is tuned in full, by an adapter or by a rule, with the same epochs; the others are as in tickets.yaml.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

import fusetune as ft

HERE = Path(__file__).parent
SST2 = HERE.parents[1] / "shared" / "data" / "text_sst2"
ROWS = {"tickets": 3000, "sst2": 2000}
METHODS: dict[str, list[str]] = {
    "frozen": ["text.freeze=all"],
    "full": [],
    "lora": ["text.adapter=lora"],
    "dora": ["text.adapter=dora"],
    "ia3": ["text.adapter=ia3"],
    "vera": ["text.adapter=vera"],
    "only:bias": ["text.freeze=only:bias"],
    "only:norm": ["text.freeze=only:norm"],
}


def tables(data: str, rows: int, folder: Path) -> dict[str, Any]:
    """What `ft.fit` is given: tickets, or so many train rows of sst2."""
    config = HERE / "quality" / f"{data}.yaml"
    if data == "tickets":
        made = ft.samples.make_tickets(rows, 0, folder / "table", splits={"train": 0.7, "test": 0.3}).tables
        return {"train": made["train"], "test": made["test"], "target": "priority", "config": config}
    with (SST2 / "train.csv").open(encoding="utf-8", newline="") as file:
        records = list(csv.DictReader(file))
    random.Random(0).shuffle(records)
    folder.mkdir(exist_ok=True)
    with (folder / "train.csv").open("w", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, list(records[0]))
        out.writeheader()
        out.writerows(records[:rows])
    return {
        "train": folder / "train.csv",
        "val": SST2 / "dev.csv",
        "test": SST2 / "test.csv",
        "target": "label",
        "config": config,
    }


def run(data: str, name: str, seed: int, rows: int, overrides: list[str]) -> dict[str, Any]:
    """One fit: its accuracy on test rows, what it trained, and what it took."""
    folder = Path(tempfile.mkdtemp(prefix="fusetune-adapters-"))
    tuned = ft.fit(
        **tables(data, rows, folder),
        out=folder / "model",
        overrides=[f"seed={seed}", "report={alone: none, errors: 0}", *METHODS[name], *overrides],
        progress=False,
    )
    results = tuned.results
    assert results is not None
    task = results.tasks[0]
    (text,) = (one for one in results.backbones if one.kind == "text")
    return {
        "name": name,
        "seed": seed,
        "accuracy": task.main(task.first("after")).value,
        "probe": task.main(task.first("before")).value,
        "trained": text.trained,
        "share": text.trained / text.parameters,
        "seconds": sum(phase.seconds for phase in results.phases if phase.name == "tune"),
        "folder_mb": sum(path.stat().st_size for path in (folder / "model").glob("*.safetensors")) / 2**20,
        "kept": results.curve.best_step,
    }


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: per method the mean over seeds, and the range where there are several."""
    lines = ["| text encoder | trained of it | share | accuracy | tune, s | weights' file, MB |", "|---" * 6 + "|"]
    for name in dict.fromkeys(run["name"] for run in runs):
        mine = [run for run in runs if run["name"] == name]
        values = [run["accuracy"] for run in mine]
        spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
        lines.append(
            f"| {name} | {mine[0]['trained']:,} | {mine[0]['share']:.2%} "
            f"| {statistics.mean(values):.3f}{spread} | {statistics.median(run['seconds'] for run in mine):.0f} "
            f"| {mine[0]['folder_mb']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(METHODS), help=f"of {', '.join(METHODS)}")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0 to N - 1")
    parser.add_argument("--data", choices=["tickets", "sst2"], default="tickets")
    parser.add_argument("--rows", type=int, help="3,000 tickets, 30 %% of them to test on, or 2,000 train rows of sst2")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for all")
    parser.add_argument("--out", type=Path, help="write the figures here")
    asked = parser.parse_args()
    runs = []
    for seed in range(asked.seeds):
        for name in asked.names:
            runs.append(run(asked.data, name, seed, asked.rows or ROWS[asked.data], asked.set))
            print(json.dumps(runs[-1]), flush=True)
            if asked.out:
                asked.out.mkdir(parents=True, exist_ok=True)
                (asked.out / "adapters.json").write_text(json.dumps(runs, indent=1))
    print(table(runs))


if __name__ == "__main__":
    main()
