"""Does a search of settings pay? The default space against the defaults, on the same rows for the same time.

    python benchmarks/search_settings.py trec sst2 --trials 20 --layers 3
    python benchmarks/search_settings.py emoji --trials 20 --set image.freeze=all

A seed draws train, validation and test rows. Three systems: the defaults, tuned once; the defaults with other seeds for
the processor time that the search took, of which the best on validation rows counts; the search, of which the best
trial on validation rows counts, before it is compared over seeds. The score is the accuracy on the test rows, of one
fit.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from runs import DATA
from transformers import AutoModel

import fusetune as ft
from fusetune.backbones.hub.source import resolve

SETS = {
    "trec": ("text_trec_qc", "text", "coarse", []),
    "sst2": ("text_sst2", "text", "label", []),
    "emoji": ("noto_emoji", "image", "category", [f"image={DATA.parent / 'models' / 'mobilenet-v2'}"]),
}
QUICK = ["trainer.trackers=[]", "report.alone=none", "report.bootstrap=0", "report.errors=0"]


def draw(name: str, seed: int, num: tuple[int, int, int], home: Path) -> tuple[dict[str, Path], list[str]]:
    """Write train, validation and test rows; return their files and the settings of the set."""
    folder, column, target, settings = SETS[name]
    data = DATA / folder
    rows, test = (pd.read_csv(data / f"{part}.csv").sample(frac=1, random_state=seed) for part in ("train", "test"))
    parts = {"train": rows[: num[0]], "val": rows[num[0] : num[0] + num[1]], "test": test[: num[2]]}
    for part, frame in parts.items():
        frame = frame[[column, target]]
        if column == "image":
            frame = frame.assign(image=[str(data / path) for path in frame["image"]])
        frame.to_csv(home / f"{part}.csv", index=False)
    return {part: home / f"{part}.csv" for part in parts}, settings


def fit(files: dict[str, Path], settings: list[str], out: Path, *, target: str, test: str) -> tuple[float, float]:
    """Tune; return the accuracy on validation rows, of the best step, and on the rows of `test`."""
    tuned = ft.fit(
        files["train"], target, val=files["val"], test=files[test], out=out, overwrite=True, progress=False,
        overrides=[*QUICK, *settings],
    )  # fmt: skip
    curve, task = tuned.results.curve, tuned.results.tasks[0]
    best = max(point.val_metric for point in curve.points if point.step == curve.best_step)
    return best, task.main(task.first("after")).value


def run_seed(name: str, seed: int, asked: argparse.Namespace, home: Path) -> tuple[float, float, float]:
    """Return the test accuracy of the defaults, of the defaults with the best seed, and of the search's best trial."""
    files, settings = draw(name, seed, tuple(asked.rows), home)
    settings, target = [*settings, *asked.set], SETS[name][2]
    if asked.layers and SETS[name][1] == "text":
        settings.append(f"text.name={first_layers(asked.layers, home / 'model')}")

    def tune(*more: str, test: str = "val") -> tuple[float, float]:
        return fit(files, [*settings, *more], home / "run", target=target, test=test)

    tune("trainer.epochs=0")  # fills the cache of features
    start = time.process_time()
    searched = ft.search_settings(
        files["train"], target, val=files["val"], test=files["test"], out=home / "searched", trials=asked.trials,
        seeds=0, sampler=asked.sampler, overrides=settings, progress=False,
    )  # fmt: skip
    seconds, start, values = time.process_time() - start, time.process_time(), []
    while time.process_time() - start < seconds:
        values.append(tune(f"seed={len(values)}")[0])
    again = int(np.argmax(values))
    tuned = ft.fit(config=home / "searched" / "best.yaml", overrides=QUICK, out=home / "best", progress=False)
    task, best = tuned.results.tasks[0], searched.best_trial
    scores = tune("seed=0", test="test")[1], tune(f"seed={again}", test="test")[1]
    result = task.main(task.first("after")).value
    states = [trial.state for trial in searched.trials]
    print(
        f"{name} seed {seed}, {seconds:.0f} s  defaults {scores[0]:.4f} (validation {values[0]:.4f})  best of "
        f"{len(values)} seeds {scores[1]:.4f} ({max(values):.4f})  search {result:.4f} ({best.value:.4f}; "
        f"{states.count('complete')} complete, {states.count('pruned')} pruned)  {best.params}",
        flush=True,
    )
    return *scores, result


def first_layers(num: int, folder: Path) -> Path:
    """Write MiniLM's first layers as a model of their own, and return its folder."""
    source = resolve("minilm").folder
    AutoModel.from_pretrained(source, num_hidden_layers=num).save_pretrained(folder)
    for path in source.iterdir():
        if path.is_file() and not (folder / path.name).exists() and path.suffix in (".json", ".txt"):
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", default=list(SETS), help=", ".join(SETS))
    parser.add_argument("--trials", type=int, default=20, help="of the search")
    parser.add_argument("--seeds", type=int, default=2, help="draws of rows")
    parser.add_argument("--rows", type=int, nargs=3, default=[200, 200, 1000], help="train, validation, test rows")
    parser.add_argument("--layers", type=int, default=0, help="of MiniLM, the first ones; 0: all")
    parser.add_argument("--sampler", default="tpe", choices=["tpe", "random"])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for every fit")
    asked = parser.parse_args()
    for name in asked.sets:
        scores = []
        for seed in range(asked.seeds):
            with tempfile.TemporaryDirectory() as scratch:
                scores.append(run_seed(name, seed, asked, Path(scratch)))
        table = np.asarray(scores)
        spread = table.std(axis=0, ddof=1) if len(table) > 1 else [np.nan] * 3
        shown = zip(("defaults", "best of seeds", "search"), table.mean(axis=0), spread, strict=True)
        print(f"{name}  " + "  ".join(f"{system} {mean:.4f} ± {std:.4f}" for system, mean, std in shown), flush=True)


if __name__ == "__main__":
    main()
