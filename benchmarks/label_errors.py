"""Label errors: how many of the first rows that are listed have a label that was made wrong.

    python benchmarks/label_errors.py             # trec and sst2, three seeds

A model is tuned once, whose labels define the task. Then 10 % of 2,000 rows get another label at random, probes predict
each row without its label, and the rows are ranked: by the probability of the given label (ours), by cleanlab on the
same probabilities, and at random. A line has the mean share of wrong labels among the first k, where N are wrong.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from runs import DATA

import fusetune as ft
from fusetune.data.table import Table
from fusetune.lifecycle.confident import self_confidence, wrong_labels
from fusetune.lifecycle.frozen import read_frozen
from fusetune.lifecycle.label_errors import held_out_probabilities
from fusetune.tasks.abilities import Probed

ROWS, RATE = 2000, 0.1
SETS = {"text_trec_qc": "coarse", "text_sst2": "label"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    from cleanlab.filter import find_label_issues

    for name, target in SETS.items():
        frame = pd.read_csv(DATA / name / "train.csv")[["text", target]].sample(ROWS, random_state=0)
        frame = frame.reset_index(drop=True)
        settings = ["trainer.epochs=1", "text.freeze=all", "report.alone=none", "trainer.trackers=[]"]
        with tempfile.TemporaryDirectory() as folder:
            tuned = ft.fit(frame, target, out=Path(folder) / "run", overrides=settings, progress=False)
            frozen = read_frozen(tuned.bundle, Table.read(frame), targets=True)
        ((key, task),) = tuned.bundle.targets.items()
        assert isinstance(task, Probed)
        rows = frozen.examples.labelled(key)
        true = frozen.examples.truth(key, rows)
        num = round(RATE * len(rows))
        ranks = (20, 50, 100, num)
        figures: dict[str, list[list[float]]] = {"ours": [], "cleanlab": [], "random": []}
        for seed in range(asked.seeds):
            rng = np.random.default_rng(seed)
            given, changed = true.copy(), rng.choice(len(rows), num, replace=False)
            given[changed] = (given[changed] + rng.integers(1, len(task.labels), num)) % len(task.labels)
            probabilities = held_out_probabilities(task, frozen, rows, given, folds=5, seed=seed)
            theirs = find_label_issues(given, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
            orders = {"ours": np.argsort(self_confidence(given, probabilities), kind="stable"), "cleanlab": theirs}
            orders["random"] = rng.permutation(len(rows))
            for system, order in orders.items():
                figures[system].append([float(np.mean(given[order[:k]] != true[order[:k]])) for k in ranks])
            wrong = wrong_labels(given, probabilities, seed=seed)
            print(f"{name} seed {seed}: {num} wrong, estimated {wrong.value:.0f} [{wrong.low:.0f}, {wrong.high:.0f}]")
        clean = wrong_labels(true, held_out_probabilities(task, frozen, rows, true, folds=5, seed=0))
        print(f"{name} unchanged labels: estimated {clean.value:.0f} [{clean.low:.0f}, {clean.high:.0f}]")
        for system, lines in figures.items():
            means = " ".join(f"{value:.2f}@{k}" for k, value in zip(ranks, np.mean(lines, 0), strict=True))
            print(f"{name} {system:<9} {means}", flush=True)


if __name__ == "__main__":
    main()
