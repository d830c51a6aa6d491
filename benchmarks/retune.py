"""Tuning again: 100 intents of clinc150, then 50 more, beside tuning without replay and on everything at once.

    python benchmarks/retune.py                 # seeds 0 to 2
    python benchmarks/retune.py --seeds 1 --rows 12

The first model learns 100 intents. The new table has the other 50. Accuracy is measured on the test rows of the old and
of the new intents, which are learned by no model. `replay 0` is tuning on the new rows and one row of each old intent;
`at once` is a fit on all rows that starts from the pretrained encoder.
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

SETTINGS = ["trainer.trackers=[]", "report.alone=none", "report.bootstrap=0", "report.errors=0"]


def accuracy(tuned: ft.FineTuned, rows: pd.DataFrame) -> float:
    return float(np.mean(np.asarray(tuned.predict(rows[["text"]])["intent"]) == rows["intent"].to_numpy()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1")
    parser.add_argument("--rows", type=int, default=20, help="train rows of an intent")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for every fit")
    asked = parser.parse_args()
    parts = {name: pd.read_csv(DATA / "text_clinc150" / f"{name}.csv") for name in ("train", "test")}
    intents = sorted(parts["train"]["intent"].unique())
    for seed in range(asked.seeds):
        rng = np.random.default_rng(seed)
        later = set(rng.permutation(intents)[:50])
        frame = parts["train"].sample(frac=1, random_state=seed).groupby("intent").head(asked.rows)
        is_new = frame["intent"].isin(later)
        tests = {
            "old": parts["test"][~parts["test"]["intent"].isin(later)],
            "new": parts["test"][parts["test"]["intent"].isin(later)],
        }
        settings = [*SETTINGS, f"seed={seed}", *asked.set]
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder)
            for name, part in (("first", frame[~is_new]), ("second", frame[is_new]), ("all", frame)):
                part.to_csv(home / f"{name}.csv", index=False)
            ft.fit(home / "first.csv", "intent", out=home / "run", overrides=settings, progress=False)
            models = {"first": lambda home=home: ft.load(home / "run")}
            for replay in (0.0, 0.2, 1.0):
                models[f"replay {replay:g}"] = lambda home=home, replay=replay: again(home, replay)
            models["at once"] = lambda home=home, settings=settings: ft.fit(
                home / "all.csv", "intent", out=home / "all", overrides=settings, progress=False
            )
            for name, make in models.items():
                start = time.perf_counter()
                tuned = make()
                seconds = time.perf_counter() - start
                scores = {part: accuracy(tuned, rows) for part, rows in tests.items()}
                promoted = "" if not name.startswith("replay") else (home / name / "current").read_text().strip()
                print(
                    f"seed {seed}  {name:<10} old {scores['old']:.4f}  new {scores['new']:.4f}  {seconds:.0f} s"
                    + (f"  in use: version {promoted}" if promoted else ""),
                    flush=True,
                )


def again(home: Path, replay: float) -> ft.FineTuned:
    """Tune the first model again and return what it became, whether it was promoted or not."""
    result = ft.retune(
        home / "run", home / "second.csv", store=home / f"replay {replay:g}", replay=replay, progress=False
    )
    return ft.load(Path(result.store) / result.version)


if __name__ == "__main__":
    main()
