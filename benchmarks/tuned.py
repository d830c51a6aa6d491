"""What methods change where the text encoder is tuned, on the generated tickets or on film reviews: one row a method.

python benchmarks/tuned.py                           # 3,000 tickets: adapters and rules, seed 0
python benchmarks/tuned.py --data sst2 --seeds 3     # 2,000 train rows of sst2, every method
python benchmarks/tuned.py full lora --set trainer.epochs=4 --out runs/tuned

Epochs and rates are the same for all. Costs are processor seconds of the whole fit, which other work on the machine
does not change much. Choose by the validation column: the test column is for the table alone.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
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
    "lora, all linear maps": ["text.adapter={name: lora, targets: linear, rank: 16}"],
    "dora": ["text.adapter=dora"],
    "ia3": ["text.adapter=ia3"],
    "vera": ["text.adapter=vera"],
    "only:bias": ["text.freeze=only:bias"],
    "only:norm": ["text.freeze=only:norm"],
    "bottom:4": ["text.freeze=bottom:4"],
    "word dropout": ["augment.text.word_dropout=0.1"],
    "mixup": ["objectives=mixup"],
    "rdrop": ["objectives=rdrop"],
    "vat": ["objectives={vat: {weight: 0.5}}"],
    "supcon": ["objectives={supcon: {weight: 0.1}}"],
    "fgm": ["trainer.adversarial=fgm"],
    "sam": ["trainer.sam=0.05"],
    "ema": ["trainer.ema=0.99"],
    "soup": ["trainer.soup=5"],
    "wise-ft": ["trainer.interpolate=true"],
    "focal": ["tasks.label={name: binary, focal: 2}"],
}
ADAPTERS = ["frozen", "full", "lora", "dora", "ia3", "vera", "only:bias", "only:norm"]


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
    folder = Path(tempfile.mkdtemp(prefix="fusetune-tuned-"))
    given = tables(data, rows, folder)
    start = time.process_time()
    tuned = ft.fit(
        **given,
        out=folder / "model",
        overrides=[f"seed={seed}", "report={alone: none, errors: 0}", *METHODS[name], *overrides],
        progress=False,
    )
    results = tuned.results
    assert results is not None
    task = results.tasks[0]
    curve = results.curve
    kept = [point for point in curve.points if point.step == curve.best_step]
    (text,) = (one for one in results.backbones if one.kind == "text")
    return {
        "name": name,
        "seed": seed,
        "validation": kept[-1].val_metric,
        "accuracy": task.main(task.first("after")).value,
        "probe": task.main(task.first("before")).value,
        "trained": text.trained,
        "share": text.trained / text.parameters,
        "seconds": time.process_time() - start,
        "peak_mb": results.peak_mb,
        "folder_mb": sum(path.stat().st_size for path in (folder / "model").glob("*.safetensors")) / 2**20,
        "kept": curve.best_step,
    }


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: per method the mean over seeds, its standard deviation where there are several, and the cost."""

    def cell(mine: list[dict[str, Any]], figure: str) -> str:
        values = [run[figure] for run in mine]
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.3f}{spread}"

    lines = [
        "| text encoder | trained of it | validation | test | processor, s | peak memory, MB | weights' file, MB |",
        "| --- " * 7 + "|",
    ]
    for name in dict.fromkeys(run["name"] for run in runs):
        mine = [run for run in runs if run["name"] == name]
        cost = [statistics.median(run[figure] for run in mine) for figure in ("seconds", "peak_mb", "folder_mb")]
        lines.append(
            f"| {name} | {mine[0]['share']:.2%} | {cell(mine, 'validation')} | {cell(mine, 'accuracy')} "
            f"| {cost[0]:,.0f} | {cost[1]:,.0f} | {cost[2]:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what was asked for, each fit in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(METHODS)}; sst2: all, tickets: frozen to only:norm")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0 to N - 1")
    parser.add_argument("--data", choices=["tickets", "sst2"], default="tickets")
    parser.add_argument("--rows", type=int, help="3,000 tickets, 30 %% of them to test on, or 2,000 train rows of sst2")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for all")
    parser.add_argument("--out", type=Path, help="figures; what is there already is not measured again")
    asked = parser.parse_args()
    figures = asked.out and asked.out / "tuned.json"
    runs = json.loads(figures.read_text()) if figures and figures.exists() else []
    done = {(run["name"], run["seed"]) for run in runs}
    for seed in range(asked.seeds):
        for name in asked.names or (METHODS if asked.data == "sst2" else ADAPTERS):
            if (name, seed) in done:
                continue
            with ProcessPoolExecutor(1, get_context("spawn")) as alone:
                fit = alone.submit(run, asked.data, name, seed, asked.rows or ROWS[asked.data], asked.set)
                runs.append(fit.result())
            print(json.dumps(runs[-1]), flush=True)
            if figures:
                figures.parent.mkdir(parents=True, exist_ok=True)
                figures.write_text(json.dumps(runs, indent=1))
    print(table(runs))


if __name__ == "__main__":
    main()
