"""Active learning: the accuracy of a probe on rows that each strategy chose, against as many rows at random.

    python benchmarks/active.py                     # trec, sst2 and emoji, five seeds
    python benchmarks/active.py text_trec_qc --plot docs/images/active.png

A pool is drawn from the train table for each seed, and labelled in rounds by its known labels. The same linear probe on
the same frozen features is fitted after each round and measured twice: on other rows of the train table (by these the
defaults were chosen) and on the test table. A line has the mean accuracy over the number of labels (the area under the
learning curve), its gain over random rows with the standard deviation over seeds, and the accuracy at the last round.
`--peer` adds strategies of small-text (`pip install --no-deps small-text`) on the same vectors, rounds and probe.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from runs import DATA

from fusetune.lifecycle.labelling import query
from fusetune.lifecycle.labelling.measure import gain
from fusetune.lifecycle.labelling.pool import read_pool
from fusetune.lifecycle.labelling.rounds import AUTO, simulate

SETS: dict[str, dict[str, Any]] = {
    "text_trec_qc": {"target": "coarse", "columns": ["text"], "count": 25, "rounds": 12},
    "text_sst2": {"target": "label", "columns": ["text"], "count": 25, "rounds": 12},
    "noto_emoji": {"target": "category", "columns": ["image"], "count": 25, "rounds": 12},
}
POOL, HELD_OUT = 1500, 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(SETS)}")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--peer", action="store_true", help="small-text's strategies, too")
    parser.add_argument(
        "--null", type=int, default=0, help="draws of random rows on both sides: how often one is called better"
    )
    parser.add_argument("--image", default="../shared/models/mobilenet-v2", help="encoder of pictures")
    parser.add_argument("--out", type=Path, help="all curves, as JSON")
    parser.add_argument("--plot", type=Path, help="a picture of the learning curves on test rows")
    asked = parser.parse_args()
    if asked.peer:
        query.STRATEGIES.update(peers())
    if asked.null:
        compare_random_with_random(asked.names or list(SETS), asked.null, asked.image)
        return
    curves: dict[str, Any] = {}
    for name in asked.names or SETS:
        curves[name] = measure(name, asked.seeds, asked.image)
        show(name, curves[name])
    if asked.out:
        asked.out.write_text(json.dumps(curves))
    if asked.plot:
        plot(curves, asked.plot)


def rows_of(name: str, seed: int) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Return a pool, other rows of the train table and the test table as one frame, and the rows of each."""
    setting = SETS[name]
    columns = [*setting["columns"], setting["target"]]
    train = pd.read_csv(DATA / name / "train.csv")[columns].drop_duplicates(setting["columns"])
    test = pd.read_csv(DATA / name / "test.csv")[columns].drop_duplicates(setting["columns"])
    train = train.sample(min(POOL + HELD_OUT, len(train)), random_state=seed)
    held = min(HELD_OUT, len(train) // 4)
    frame = pd.concat([train, test]).drop_duplicates(setting["columns"]).reset_index(drop=True)
    for column in setting["columns"]:
        if column == "image":
            frame[column] = [str((DATA / name / cell).resolve()) for cell in frame[column]]
    ends = {"pool": (0, len(train) - held), "held-out": (len(train) - held, len(train)), "test": (len(train), None)}
    return frame, {part: np.arange(len(frame))[slice(*end)] for part, end in ends.items()}


def measure(name: str, seeds: int, image: str) -> dict[str, Any]:
    """Return by strategy, and by the rows that measure it, a learning curve for each seed."""
    setting = SETS[name]
    result: dict[str, Any] = defaultdict(lambda: defaultdict(list))
    for seed in range(seeds):
        frame, parts = rows_of(name, seed)
        overrides = [f"image={image}"] if "image" in setting["columns"] else []
        pool = read_pool(frame[setting["columns"]], None, setting["target"], overrides=overrides)
        labels = [str(cell) for cell in frame[setting["target"]]]
        counts = [setting["count"]] * setting["rounds"]
        held_out = np.concatenate([parts["held-out"], parts["test"]])
        for system, options in systems().items():
            found = simulate(pool, dict(enumerate(labels)), held_out, counts=counts, seed=seed, **options)
            for part, some in (
                ("held-out", slice(len(parts["held-out"]))),
                ("test", slice(len(parts["held-out"]), None)),
            ):
                curve = found.accuracy(some).tolist()
                result[system][part].append([found.num_labels.tolist(), curve, found.area(some)])
        print(f"{name}: seed {seed} of {seeds}", flush=True)
    return {system: dict(parts) for system, parts in result.items()}


def compare_random_with_random(names: list[str], draws: int, image: str) -> None:
    """Print how often `gain` calls rows better or worse than random ones that are random themselves."""
    for name in names:
        frame, parts = rows_of(name, 0)
        overrides = [f"image={image}"] if "image" in SETS[name]["columns"] else []
        pool = read_pool(frame[SETS[name]["columns"]], None, SETS[name]["target"], overrides=overrides)
        labels = [str(cell) for cell in frame[SETS[name]["target"]]]
        verdicts: Counter[str] = Counter()
        for seed in range(draws):
            rows = [int(row) for row in np.random.default_rng(seed).permutation(parts["pool"])[:100]]
            measured, learned = ({row: labels[row] for row in some} for some in (rows[:50], rows[50:]))
            found = gain(pool, {}, learned, measured, seed=seed)
            verdicts[found.verdict if found is not None else "none"] += 1
        print(f"{name}: {dict(verdicts)}", flush=True)


def systems() -> dict[str, dict[str, str]]:
    """Return the strategies by name: all from a random first round, `auto` from a typical one."""
    own = {name: {"strategy": name, "start": "random"} for name in query.STRATEGIES}
    own["auto"] = {"strategy": AUTO, "start": query.COLD}
    return own


def peers() -> dict[str, query.Strategy]:
    """Return strategies of small-text as ours are called."""
    from small_text.query_strategies import BreakingTies, ContrastiveActiveLearning, EmbeddingKMeans, GreedyCoreset

    class Classifier:
        def __init__(self, candidates: query.Candidates) -> None:
            self.candidates = candidates

        def predict_proba(self, rows: np.ndarray) -> np.ndarray:
            return self.candidates.probabilities[rows]

        def embed(self, rows: np.ndarray, *, return_proba: bool = False, pbar: object = None) -> Any:
            vectors = self.candidates.vectors[rows]
            return (vectors, self.predict_proba(rows)) if return_proba else vectors

    def as_ours(theirs: Any) -> query.Strategy:
        def choose(candidates: query.Candidates, count: int, rng: np.random.Generator) -> np.ndarray:
            np.random.seed(int(rng.integers(2**31)))
            rows, labels = np.arange(len(candidates.vectors)), np.zeros(len(candidates.labelled), dtype=int)
            return theirs.query(Classifier(candidates), rows, candidates.open, candidates.labelled, labels, n=count)

        return choose

    theirs = [BreakingTies(), GreedyCoreset(), EmbeddingKMeans(), ContrastiveActiveLearning(pbar=None)]
    return {f"small-text {type(one).__name__}": as_ours(one) for one in theirs}


def show(name: str, curves: dict[str, Any]) -> None:
    """Print a table of a data set."""
    first = curves["random"]["test"][0][0]
    print(f"\n{name}: {first[0]} to {first[-1]} labels, {len(curves['random']['test'])} seeds")
    print(
        "| strategy | area, held-out train rows | gain over random | area, test rows | gain over random | at "
        f"{first[2]} | at {first[-1]} |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for system, parts in curves.items():
        cells = []
        for part in ("held-out", "test"):
            areas = np.asarray([run[2] for run in parts[part]])
            gains = areas - np.asarray([run[2] for run in curves["random"][part]])
            cells += [f"{areas.mean():.3f}", f"{gains.mean():+.3f} ± {gains.std(ddof=1):.3f}"]
        at = [np.mean([run[1][index] for run in parts["test"]]) for index in (2, -1)]
        print(f"| {system} | {' | '.join(cells)} | {at[0]:.3f} | {at[1]:.3f} |", flush=True)


def plot(curves: dict[str, Any], path: Path) -> None:
    """Draw the mean learning curves on test rows."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(curves), figsize=(4.6 * len(curves), 3.6), squeeze=False)
    for axis, (name, systems_of) in zip(axes[0], curves.items(), strict=True):
        for system, parts in systems_of.items():
            if system.startswith("small-text"):
                continue
            runs = np.asarray([run[1] for run in parts["test"]])
            style = {"color": "black", "linestyle": "--"} if system == "random" else {}
            axis.plot(parts["test"][0][0], runs.mean(0), label=system, linewidth=1.4, **style)
        axis.set_title(name), axis.set_xlabel("labels"), axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("accuracy, test rows")
    axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
