"""Few labels and a pool: self-supervised tuning on all texts before the task, beside supervised tuning alone.

    python benchmarks/pretrain.py trec --labels 10           # 10 labels a class, seeds 0 to 2
    python benchmarks/pretrain.py trec --labels 50 --only supervised mlm

A seed draws the labelled rows, the validation rows, and the rows whose label is hidden from the train table. Accuracy
is on all rows of test.csv: of the linear probe on the frozen encoder, and of the tuned model. The fit on the task is
the same in all systems.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from runs import DATA
from semi import SETTINGS, draw

import fusetune as ft

SETS = {
    "trec": ("text_trec_qc", "text", "coarse"),
    "clinc150": ("text_clinc150", "text", "intent"),
    "sst2": ("text_sst2", "text", "label"),
}
SYSTEMS = ("supervised", "mlm", "simcse")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", default=list(SETS), help=", ".join(SETS))
    parser.add_argument("--labels", type=int, default=10, help="labelled train rows of a class")
    parser.add_argument("--val", type=int, default=5, help="validation rows of a class")
    parser.add_argument("--pool", type=int, default=750, help="rows without a label")
    parser.add_argument("--epochs", type=float, default=5, help="of tuning to the task")
    parser.add_argument("--mlm", type=float, default=4, help="epochs of mlm")
    parser.add_argument("--simcse", type=float, default=1, help="epochs of simcse")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1")
    parser.add_argument("--only", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for every fit")
    asked = parser.parse_args()
    for name in asked.sets:
        scores: dict[tuple[str, str], list[float]] = {}
        for seed in range(asked.seeds):
            run_seed(name, seed, asked, scores)
        print(f"{name}, {asked.labels} labels a class: mean and standard deviation of {asked.seeds} seeds;")
        print("difference to supervised with its standard error over seeds")
        for (system, what), found in scores.items():
            gain = np.asarray(found) - np.asarray(scores[asked.only[0], what])
            error = gain.std(ddof=1) / len(gain) ** 0.5 if len(gain) > 1 else float("nan")
            spread = float(np.std(found, ddof=1)) if len(found) > 1 else float("nan")
            print(
                f"  {system:<11} {what:<7} {np.mean(found):.4f} ± {spread:.4f}  {gain.mean():+.4f} ± {error:.4f}",
                flush=True,
            )


def run_seed(name: str, seed: int, asked: argparse.Namespace, scores: dict[tuple[str, str], list[float]]) -> None:
    """Fit every system on one draw of rows and append its test accuracies."""
    folder, column, label = SETS[name]
    train, test = (pd.read_csv(DATA / folder / f"{part}.csv")[[column, label]] for part in ("train", "test"))
    labelled = draw(train, label, asked.labels, seed)
    rest = train.drop(labelled.index)
    val = draw(rest, label, asked.val, seed)
    rest = rest.drop(val.index)
    pool = rest.sample(min(asked.pool, len(rest)), random_state=seed)[[column]]
    with tempfile.TemporaryDirectory() as home:
        for file, frame in (("labelled", labelled), ("val", val), ("pool", pool), ("test", test)):
            frame.to_csv(Path(home) / f"{file}.csv", index=False)
        for system in asked.only:
            epochs = {"mlm": asked.mlm, "simcse": asked.simcse}.get(system, 1)
            settings = [*SETTINGS, f"trainer.epochs={asked.epochs}", f"seed={seed}", *asked.set]
            settings += [f"pretrain={system}", f"pretrain.epochs={epochs}"] if system != "supervised" else []
            tables = [Path(home) / "labelled.csv", *([Path(home) / "pool.csv"] if system != "supervised" else [])]
            start = time.perf_counter()
            tuned = ft.fit(
                tables,
                label,
                val=Path(home) / "val.csv",
                test=Path(home) / "test.csv",
                out=Path(home) / system,
                overrides=settings,
                progress=False,
            )
            seconds, results = time.perf_counter() - start, tuned.results
            assert results is not None
            task = results.tasks[0]
            *_, probe = (part for part in task.systems if part.kind == "before")
            after = task.first("after")
            assert after is not None
            found = {"probe": probe.metrics["accuracy"].value, "tuned": after.metrics["accuracy"].value}
            for what, value in found.items():
                scores.setdefault((system, what), []).append(value)
            used = results.pretraining
            loss = "" if used is None else f"  loss {used.before.val_loss:.4g} -> {used.after.val_loss:.4g}"
            shown = "  ".join(f"{what} {value:.4f}" for what, value in found.items())
            print(f"{name} seed {seed}  {system:<11} {shown}{loss}  {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
