"""A small student with and without a teacher: questions of trec_qc, MiniLM teaches a Llama of 260,000 parameters.

    python benchmarks/distill.py                         # seeds 0 to 2
    python benchmarks/distill.py --labels 600 --seeds 1

Both learn the same labelled rows. The student without a teacher has as many updates as the one that learns from the
teacher's answers for the labelled rows and for a pool of rows without a label. Accuracy is on all rows of test.csv.
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

SMALL = DATA.parent / "models" / "stories260k"
SETTINGS = [
    "trainer.trackers=[]",
    "report.alone=none",
    "report.bootstrap=0",
    "report.errors=0",
    "trainer.patience=null",
]
RATIO, EPOCHS = 3, 4
"""Rows without a label an epoch for each labelled one, and epochs of a student that has them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=300, help="labelled train rows")
    parser.add_argument("--pool", type=int, default=1500, help="rows without a label")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1")
    asked = parser.parse_args()
    train, test = (pd.read_csv(DATA / "text_trec_qc" / f"{part}.csv")[["text", "coarse"]] for part in ("train", "test"))
    found: dict[str, list[float]] = {}
    for seed in range(asked.seeds):
        rows = train.sample(asked.labels + 100 + asked.pool, random_state=seed)
        labelled, val, pool = rows[: asked.labels], rows[asked.labels : -asked.pool], rows[-asked.pool :]
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder)
            for name, part in (("labelled", labelled), ("val", val), ("pool", pool[["text"]]), ("test", test)):
                part.to_csv(home / f"{name}.csv", index=False)
            for system, score in run_seed(home, seed, test):
                found.setdefault(system, []).append(score)
    alone = np.asarray(found["student alone"])
    for system, scores in found.items():
        gain = np.asarray(scores) - alone
        error = gain.std(ddof=1) / len(gain) ** 0.5 if len(gain) > 1 else float("nan")
        print(f"{system:<34} {np.mean(scores):.4f}  to the student alone {gain.mean():+.4f} ± {error:.4f}")


def run_seed(home: Path, seed: int, test: pd.DataFrame) -> list[tuple[str, float]]:
    """Tune the teacher and the students on one draw of rows; return their accuracies on test rows."""
    small = [f"text={SMALL}"]
    distill = f"objectives={{distill: {{teacher: {home / 'teacher'}}}}}"
    systems = {
        "teacher": ([], 3, []),
        "student alone": ([], EPOCHS * (1 + RATIO), small),
        "student, taught on labelled rows": ([], EPOCHS * (1 + RATIO), [*small, distill]),
        "student, taught on the pool too": (["pool"], EPOCHS, [*small, distill, f"data.unlabelled={RATIO}"]),
    }
    scores = []
    for system, (more, epochs, own) in systems.items():
        start = time.perf_counter()
        tuned = ft.fit(
            [home / f"{name}.csv" for name in ("labelled", *more)],
            "coarse",
            val=home / "val.csv",
            test=home / "test.csv",
            out=home / system,
            overrides=[*SETTINGS, f"seed={seed}", f"trainer.epochs={epochs}", *own],
            progress=False,
        )
        right = np.asarray(tuned.predict(test[["text"]])["coarse"]) == test["coarse"].to_numpy()
        scores.append((system, float(right.mean())))
        print(f"seed {seed}  {system:<34} {right.mean():.4f}  {time.perf_counter() - start:.0f} s", flush=True)
    return scores


if __name__ == "__main__":
    main()
