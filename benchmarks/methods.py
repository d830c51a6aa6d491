"""What fusions and objectives change: the metric over three seeds, time and memory, one table a data set.

python benchmarks/methods.py                                     # all data, all methods, seeds 0 to 2
python benchmarks/methods.py movies_rating --methods attention film --seeds 1 --out runs/methods

Encoders stay frozen (trainer.epochs=0), so that every method sees the same features, which are computed once a data
set; each fit runs in a process of its own. Choose by the validation column: the test column is for the table alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DATA = ["movies_rating", "movies_genres", "coco"]
METHODS: dict[str, list[str]] = {
    "attention": [],
    "attention, no modality dropout": ["fusion.modality_dropout=0"],
    "concat": ["fusion=concat"],
    "gated": ["fusion=gated"],
    "cross_attention": ["fusion=cross_attention"],
    "bottleneck": ["fusion=bottleneck"],
    "convolution": ["fusion=convolution"],
    "low_rank": ["fusion=low_rank"],
    "film": ["fusion=film"],
    "mixture": ["fusion=mixture"],
    "attention + contrastive": ["objectives={contrastive: {weight: 0.1}}"],
    "attention + supcon": ["objectives={supcon: {weight: 0.1}}"],
    "attention + vat": ["objectives={vat: {weight: 0.5}}"],
    "attention + mixup": ["objectives=mixup"],
    "attention + rdrop": ["objectives=rdrop"],
    "attention + unimodal": ["objectives=unimodal"],
    "attention, sam": ["trainer.sam=0.05"],
    "attention, ema, soup": ["trainer.ema=0.99", "trainer.soup=5"],
    "auto": ["fusion=auto"],
    "stack": ["fusion=stack"],
}
LABELS_ONLY = ("attention + supcon",)


def keep_features(folder: Path) -> None:
    """Have fits read frozen features from files, or write them there; rows are told apart by their table."""
    from safetensors.torch import load_file, save_file

    import fusetune.fitting.fit as fitting
    from fusetune.types import Tokens

    fill = fitting.fill_features

    def kept(model: Any, examples: Any, **options: Any) -> dict[str, Tokens]:
        stem = Path(str(examples.table.source)).stem + f"-{len(examples)}"
        names = [name for name, key in model.routes.items() if model.encoders[key].pretrained]
        parts, found = folder / f"{stem}.safetensors", {}
        if not parts.exists():
            found = fill(model, examples, **options)
            values = {f"{place}.values": found[name].values.contiguous() for place, name in enumerate(names)}
            masks = {f"{place}.mask": found[name].mask.contiguous() for place, name in enumerate(names)}
            save_file(values | masks, parts)
            return dict(found)
        tensors = load_file(parts)
        return {name: Tokens(tensors[f"{place}.values"], tensors[f"{place}.mask"]) for place, name in enumerate(names)}

    fitting.fill_features = kept


def one(data: str, method: str, seed: int, features: Path) -> dict[str, Any]:
    """One fit: its main metric on validation and test rows, the seconds of training and the peak memory."""
    import fusetune as ft

    keep_features(features)
    tuned = ft.fit(
        config=HERE / "quality" / f"{data}.yaml",
        out=Path(tempfile.mkdtemp(prefix="fusetune-methods-")) / "model",
        overrides=[f"seed={seed}", "trainer.epochs=0", "report={alone: none, errors: 0}", *METHODS[method]],
        progress=False,
    )
    assert tuned.results is not None
    task = tuned.results.tasks[0]
    curve = tuned.results.curve
    kept = [point for point in curve.points if point.step == curve.best_step]
    return {
        "data": data,
        "method": method,
        "seed": seed,
        "metric": task.metric,
        "validation": kept[-1].val_metric,
        "test": task.main(task.first("after")).value,
        "probe": task.main(task.first("before")).value,
        "seconds": sum(phase.seconds for phase in tuned.results.phases if phase.name == "tune"),
        "peak_mb": tuned.results.peak_mb,
        "step": curve.best_step,
    }


def table(runs: list[dict[str, Any]], data: str) -> str:
    """Markdown: per method the mean over seeds, its standard deviation where there are several, and the cost."""

    def cell(mine: list[dict[str, Any]], figure: str) -> str:
        values = [run[figure] for run in mine]
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.3f}{spread}"

    mine = [run for run in runs if run["data"] == data]
    lines = [
        f"| {data}: {mine[0]['metric']} | validation | test | steps | training, s | peak memory, MB |",
        "|---" * 6 + "|",
        f"| frozen probe | | {cell(mine, 'probe').split(' ')[0]} | | | |",
    ]
    for name in dict.fromkeys(run["method"] for run in mine):
        its = [run for run in mine if run["method"] == name]
        steps = ", ".join(str(run["step"]) for run in its)
        cost = " | ".join(f"{statistics.median(run[figure] for run in its):,.0f}" for figure in ("seconds", "peak_mb"))
        lines.append(f"| {name} | {cell(its, 'validation')} | {cell(its, 'test')} | {steps} | {cost} |")
    return "\n".join(lines)


def measure(data: str, method: str, seed: int, out: Path) -> dict[str, Any]:
    """`one` in a process of its own."""
    command = [sys.executable, __file__, "--one", data, method, str(seed), "--out", str(out)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, Any] = json.loads(said.splitlines()[-1])
    return result


def main() -> None:
    """Run what was asked for, each fit in its own process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", default=DATA, help=f"of {', '.join(DATA)}")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/methods"),
        help="features and figures; what is there already is not measured again",
    )
    parser.add_argument("--one", nargs=3, metavar=("DATA", "METHOD", "SEED"), help="one fit, its figures as JSON")
    asked = parser.parse_args()
    if asked.one:
        data, method, seed = asked.one
        print(json.dumps(one(data, method, int(seed), asked.out / data)), flush=True)
        return
    figures = asked.out / "methods.json"
    runs = json.loads(figures.read_text()) if figures.exists() else []
    done = {(run["data"], run["method"], run["seed"]) for run in runs}
    for data in asked.data:
        if not (asked.out / data).exists():  # encode first, so that no method is charged for it
            (asked.out / data).mkdir(parents=True)
            measure(data, asked.methods[0], 0, asked.out)
        for seed in range(asked.seeds):
            for method in asked.methods:
                if (data, method, seed) in done or (data == "movies_rating" and method in LABELS_ONLY):
                    continue
                runs.append(measure(data, method, seed, asked.out))
                print(json.dumps(runs[-1]), flush=True)
                figures.write_text(json.dumps(runs, indent=1))
        print(table(runs, data) + "\n")


if __name__ == "__main__":
    main()
