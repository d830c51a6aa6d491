"""Few labels: semi-supervised objectives beside supervised tuning on the same labels, with as many updates.

    python benchmarks/semi.py trec                       # 10 labels a class, seeds 0 to 2, backbones tuned
    python benchmarks/semi.py clinc150 --frozen          # backbones frozen
    python benchmarks/semi.py emoji --frozen --seeds 5 --only supervised freematch

A seed draws the labelled rows, the validation rows and the rows whose label is hidden from the train table. Accuracy is
on all rows of test.csv. An epoch takes RATIO rows without a label for each labelled one, so the supervised fit has
1 + RATIO times the epochs and the same number of updates.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from runs import DATA

import fusetune as ft

SETS = {
    "trec": ("text_trec_qc", "text", "coarse", []),
    "clinc150": ("text_clinc150", "text", "intent", []),
    "emoji": ("noto_emoji", "image", "category", [f"image={DATA.parent / 'models' / 'mobilenet-v2'}"]),
}
SYSTEMS = {
    "supervised": None,
    "rdrop": "objectives={rdrop: {weight: 1}}",
    "vat": "objectives={vat: {weight: 1}}",
    "pseudo_label": "objectives={semi: {method: pseudo_label}}",
    "fixmatch": "objectives={semi: {method: fixmatch}}",
    "freematch": "objectives={semi: {method: freematch}}",
    "mean_teacher": "objectives={semi: {method: mean_teacher}}",
}
SETTINGS = [
    "trainer.trackers=[]",
    "trainer.patience=null",
    "report.alone=none",
    "report.bootstrap=0",
    "report.errors=0",
]


def draw(frame: pd.DataFrame, label: str, num: int, seed: int) -> pd.DataFrame:
    """Return `num` random rows of each class, or all of a class that has fewer."""
    return frame.sample(frac=1, random_state=seed).groupby(label).head(num)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", default=list(SETS), help=", ".join(SETS))
    parser.add_argument("--labels", type=int, default=10, help="labelled train rows of a class")
    parser.add_argument("--val", type=int, default=5, help="validation rows of a class")
    parser.add_argument("--pool", type=int, default=1500, help="rows without a label")
    parser.add_argument("--ratio", type=int, default=3, help="rows without a label an epoch for each labelled row")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of a semi-supervised fit")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1")
    parser.add_argument("--frozen", action="store_true", help="do not tune the backbones")
    parser.add_argument("--only", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for every fit")
    asked = parser.parse_args()
    for name in asked.sets:
        scores: dict[str, list[float]] = {}
        for seed in range(asked.seeds):
            run_seed(name, seed, asked, scores)
        print(f"{name}: mean of {asked.seeds} seeds; difference to supervised, its standard error over seeds")
        for system, found in scores.items():
            gain = np.asarray(found) - np.asarray(scores[asked.only[0]])
            error = gain.std(ddof=1) / len(gain) ** 0.5 if len(gain) > 1 else float("nan")
            print(f"  {system:<13} {np.mean(found):.4f}  {gain.mean():+.4f} ± {error:.4f}", flush=True)


def run_seed(name: str, seed: int, asked: argparse.Namespace, scores: dict[str, list[float]]) -> None:
    """Fit every system on one draw of rows and append their test accuracies."""
    folder, column, label, own = SETS[name]
    train, test = (pd.read_csv(DATA / folder / f"{part}.csv")[[column, label]] for part in ("train", "test"))
    if column == "image":
        for frame in (train, test):
            frame[column] = [str(DATA / folder / path) for path in frame[column]]
    labelled = draw(train, label, asked.labels, seed)
    rest = train.drop(labelled.index)
    val = draw(rest, label, asked.val, seed)
    rest = rest.drop(val.index)
    pool = rest.sample(min(asked.pool, len(rest)), random_state=seed)[[column]]
    with tempfile.TemporaryDirectory() as home:
        for file, frame in (("labelled", labelled), ("val", val), ("pool", pool), ("test", test)):
            frame.to_csv(Path(home) / f"{file}.csv", index=False)
        for system in asked.only:
            times = 1 if SYSTEMS[system] else 1 + asked.ratio
            epochs, head = (0, 4 * asked.epochs) if asked.frozen else (asked.epochs, 5)
            settings = [f"trainer.epochs={epochs * times}", f"trainer.head_epochs={head * times}", f"seed={seed}"]
            settings += [*SETTINGS, *own, f"data.unlabelled={asked.ratio}", *asked.set]
            settings += [SYSTEMS[system]] if SYSTEMS[system] else []
            start = time.perf_counter()
            tuned = ft.fit(
                [Path(home) / "labelled.csv", Path(home) / "pool.csv"],
                label,
                val=Path(home) / "val.csv",
                test=Path(home) / "test.csv",
                out=Path(home) / system,
                overrides=settings,
                progress=False,
            )
            found = float(np.mean(np.asarray(tuned.predict(test[[column]])[label]) == test[label].to_numpy()))
            scores.setdefault(system, []).append(found)
            seconds = time.perf_counter() - start
            print(
                f"{name} seed {seed}  {system:<13} {found:.4f}  {seconds:.0f} s  ({len(labelled)} labels)", flush=True
            )


if __name__ == "__main__":
    main()
