"""Drift: how often there is an alarm without drift, and at shifts of a stated size.

    python benchmarks/drift.py                    # generated rows of numbers and categories
    python benchmarks/drift.py --data sst2        # sentences of film reviews, against other reviews

A model is tuned once. Without drift, held-out and new rows are drawn 100 times from the same rows, without overlap.
With drift, the new rows are changed as stated. A line is the share of draws with an alarm at alpha 0.01 and 0.05.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from runs import DATA

import fusetune as ft

DRAWS, ROWS = 100, 200
Change = Callable[[pd.DataFrame, np.random.Generator], pd.DataFrame]


def generated() -> tuple[pd.DataFrame, str, dict[str, Change]]:
    """Rows of two numbers and a category, of which the first number and the category tell the target."""
    rng = np.random.default_rng(0)
    num = 4000
    frame = pd.DataFrame(
        {"size": rng.normal(size=num), "age": rng.gamma(2.0, size=num), "plan": rng.choice(list("abcd"), num)}
    )
    logits = 2 * frame["size"] + (frame["plan"] == "a") - 0.3
    frame["churn"] = np.where(rng.random(num) < 1 / (1 + np.exp(-logits)), "yes", "no")

    def moved(deviations: float) -> Change:
        return lambda rows, rng: rows.assign(size=rows["size"] + deviations)

    def other_plan(share: float) -> Change:
        return lambda rows, rng: rows.assign(plan=np.where(rng.random(len(rows)) < share, "a", rows["plan"]))

    def lost(share: float) -> Change:
        return lambda rows, rng: rows.assign(age=rows["age"].where(rng.random(len(rows)) >= share))

    changes = {"size + 0.25 standard deviations": moved(0.25), "size + 0.5 standard deviations": moved(0.5)}
    changes |= {"20 % of rows move to plan a": other_plan(0.2), "10 % of ages missing": lost(0.1)}
    return frame, "churn", changes


def sst2() -> tuple[pd.DataFrame, str, dict[str, Change]]:
    """Sentences of film reviews; questions of trec in place of a share of them."""
    frame = pd.read_csv(DATA / "text_sst2" / "train.csv")
    frame = frame.sample(4000, random_state=0).reset_index(drop=True)
    asked = pd.read_csv(DATA / "text_trec_qc" / "train.csv")["text"].to_numpy()

    def mixed(share: float) -> Change:
        def change(rows: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
            return rows.assign(text=np.where(rng.random(len(rows)) < share, rng.choice(asked, len(rows)), rows["text"]))

        return change

    return frame, "label", {f"{share:.0%} are questions": mixed(share) for share in (0.05, 0.1, 0.2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=["generated", "sst2"], default="generated")
    asked = parser.parse_args()
    frame, target, changes = generated() if asked.data == "generated" else sst2()
    train, rest = frame[:1000], frame[1000:].reset_index(drop=True)
    with tempfile.TemporaryDirectory() as folder:
        settings = ["trainer.epochs=1", "text.freeze=all", "report.alone=none", "trainer.trackers=[]"]
        tuned = ft.fit(train, target, out=Path(folder) / "run", overrides=settings, progress=False)
        for name, change in {"none": None, **changes}.items():
            least = []
            for draw in range(DRAWS):
                rng = np.random.default_rng(draw)
                order = rng.permutation(len(rest))
                old, new = rest.loc[order[:ROWS]], rest.loc[order[ROWS : 2 * ROWS]]
                new = (new if change is None else change(new, rng)).drop(columns=target)
                report = ft.drift(tuned, new.reset_index(drop=True), reference=old.reset_index(drop=True), seed=draw)
                least.append(report.p)
            rates = [f"{np.mean(np.asarray(least) <= alpha):.2f}" for alpha in (0.01, 0.05)]
            print(f"{name:<36} {ROWS} rows  alarms {rates[0]} at 0.01, {rates[1]} at 0.05", flush=True)


if __name__ == "__main__":
    main()
