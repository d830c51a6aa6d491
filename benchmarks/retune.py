"""Tuning again: 100 intents of clinc150, then 50 more, with and without what keeps the old ones.

    python benchmarks/retune.py                 # seeds 0 to 2
    python benchmarks/retune.py --seeds 1 --rows 12

The first model learns 100 intents. The new table has the other 50. Accuracy is measured on the test rows of the old and
of the new intents, which are learned by no model. `naive` is a fit on the new rows and one row of each old intent, from
the first model's encoder; the others are `retune` with these options; `at once` is a fit on all rows that starts from
the pretrained encoder.
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

AGAIN: tuple[tuple[float, float, tuple[str, ...]], ...] = (
    (0.0, 0.0, ()),
    (0.0, 1.0, ()),
    (0.2, 0.0, ()),
    (0.2, 1.0, ()),
    (0.2, 0.0, ("trainer.interpolate=true",)),
    (0.2, 1.0, ("trainer.interpolate=true",)),
    (0.2, 0.0, ("text.freeze=all",)),
    (1.0, 0.0, ()),
    (1.0, 1.0, ()),
)
"""Share of old rows that are tuned on again, weight of the distillation, further settings."""
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
            one = frame[~is_new].groupby("intent").head(1)
            parts_of = {"first": frame[~is_new], "second": frame[is_new], "all": frame}
            for name, part in (parts_of | {"naive": pd.concat([frame[is_new], one])}).items():
                part.to_csv(home / f"{name}.csv", index=False)
            ft.fit(home / "first.csv", "intent", out=home / "run", overrides=settings, progress=False)
            models = {"first": lambda home=home: ft.load(home / "run")}
            models["naive"] = lambda home=home, settings=settings: ft.fit(
                home / "naive.csv",
                "intent",
                config={"text": str(home / "run")},
                overrides=settings,
                progress=False,
            )
            for replay, distill, more in AGAIN:
                name = " ".join([f"replay={replay:g}", *([f"distill={distill:g}"] if distill else []), *more])
                models[name] = lambda home=home, asked=(replay, distill, more), name=name: again(home, name, *asked)
            models["at once"] = lambda home=home, settings=settings: ft.fit(
                home / "all.csv", "intent", out=home / "all", overrides=settings, progress=False
            )
            for name, make in models.items():
                start = time.perf_counter()
                tuned = make()
                seconds = time.perf_counter() - start
                scores = {part: accuracy(tuned, rows) for part, rows in tests.items()}
                in_use = "" if not name.startswith("replay") else (home / name / "current").read_text().strip()
                print(
                    f"seed {seed}  {name:<44} old {scores['old']:.4f}  new {scores['new']:.4f}  {seconds:.0f} s"
                    + (f"  in use: version {in_use}" if in_use else ""),
                    flush=True,
                )


def again(home: Path, name: str, replay: float, distill: float, more: tuple[str, ...]) -> ft.FineTuned:
    """Tune the first model again and return what it became, whether it was promoted or not."""
    options = {"replay": replay, "distill": distill, "overrides": more, "progress": False}
    result = ft.retune(home / "run", home / "second.csv", store=home / name, **options)
    return ft.load(Path(result.store) / result.version)


if __name__ == "__main__":
    main()
