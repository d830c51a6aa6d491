"""Recommendation on MovieTweetings, against popularity, item-kNN, and ALS and BPR of the library implicit.

pip install implicit                                          # for this benchmark only
python benchmarks/recommend.py                                # every system, seeds 0 to 2
python benchmarks/recommend.py popular knn als bpr --seeds 1
python benchmarks/recommend.py "ids, texts, posters" --seeds 1 --set trainer.epochs=3

Train, validation and test rows follow each other in time. Each user of the test rows is a query; all films but those of
the user's train rows are ranked. All systems learn from train rows, choose their settings by nDCG@10 on validation
rows, and are measured by the same functions on the same queries. ALS and BPR have no vector for a new user: they give
the popular films. Each run has a process of its own. Figures are kept in --out.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

import fusetune as ft
from fusetune.evaluation.measure.exposure import MEANINGS
from fusetune.evaluation.measure.interactions import ItemKnn, popularity
from fusetune.evaluation.measure.judge import Candidate
from fusetune.evaluation.measure.recommended import FIGURES, GROUPS, Chosen, Scorer, sections
from fusetune.tasks.match import Search
from fusetune.tasks.recommendation import recommendation_tasks

DATA = Path(__file__).parents[2] / "shared" / "data" / "movietweetings"
SPLITS = ("train", "val", "test")
TASK = recommendation_tasks(["user_id"], ["imdb_id"])["user → item"]
Figures = dict[str, float]

RULES = ("popular", "knn", "als", "bpr")
NO_TEXTS = [f"columns.{name}.role=ignore" for name in ("title", "year", "genres", "plot")]
NO_PLOTS, NO_POSTERS = "columns.plot.role=ignore", "columns.poster.role=ignore"
NO_IDS = [f"columns.{name}.min_count=1000000" for name in ("user_id", "imdb_id")]  # every id is an unseen one
OURS = {
    "ids, texts, posters": [],
    "ids": [*NO_TEXTS, NO_POSTERS],
    "ids, texts": [NO_POSTERS],
    "ids, texts without plots, posters": [NO_PLOTS],
    "texts, posters": NO_IDS,
}
"""Settings of each variant, by name."""


@dataclass(frozen=True)
class Rows:
    """The queries of a split, and what train users chose.

    `users` is the number of each query's user among the train users, (queries,), -1 for a new user.
    """

    search: Search
    chosen: Chosen
    users: np.ndarray


def read_rows() -> dict[str, Rows]:
    """Return the queries of validation and test rows among all films of the catalogue."""
    with (DATA / "items.csv").open(encoding="utf-8", newline="") as file:
        films = {row["imdb_id"]: number for number, row in enumerate(csv.DictReader(file))}
    users: dict[str, int] = {}
    pairs = {}
    for split in SPLITS:
        with (DATA / f"{split}.csv").open(encoding="utf-8", newline="") as file:
            rows = [
                (users.setdefault(row["user_id"], len(users)), films[row["imdb_id"]]) for row in csv.DictReader(file)
            ]
        pairs[split] = np.unique(np.array(rows), axis=0)
    shape = (len(users), len(films))
    by_split = {split: sparse.csr_array((np.ones(len(own)), own.T), shape=shape) for split, own in pairs.items()}
    train = by_split["train"]
    num_known = int(pairs["train"][:, 0].max()) + 1  # train users are numbered first
    result = {}
    for split in SPLITS[1:]:
        right = by_split[split] - by_split[split].multiply(train > 0)
        right.eliminate_zeros()
        asked = np.flatnonzero(np.diff(right.indptr))
        history, rows = train[asked], np.arange(len(asked))
        search = Search(rows, rows, np.arange(len(films)), np.arange(len(films)), right[asked] > 0, seen=history > 0)
        result[split] = Rows(search, Chosen(train[:num_known], history), np.where(asked < num_known, asked, -1))
    return result


def score(scorer: Scorer, rows: Rows) -> Figures:
    """Return all figures of a system; see `fusetune.evaluation.measure.recommended`."""
    answers = TASK.by_similarity(scorer, rows.search)
    overall = TASK.evaluate(answers, TASK.truth(rows.search))
    figures = {name: overall[name] for name in FIGURES}
    for section in sections(rows.search, rows.chosen, [(Candidate("", "after", "", answers), scorer)], num=0):
        figures |= {name.removeprefix(", "): value for name, value in section.figures.items()}
    return figures


def main_figure(scorer: Scorer, rows: Rows) -> float:
    """Return nDCG@10, by which settings are chosen."""
    return TASK.evaluate(TASK.by_similarity(scorer, rows.search), TASK.truth(rows.search))["ndcg@10"]


def popular(rows: Rows) -> Scorer:
    """Return the same order for everyone."""
    counts = popularity(rows.chosen.train)
    return lambda part: np.broadcast_to(counts, (len(rows.search.rows[part]), len(counts)))


def candidates(name: str, data: dict[str, Rows], seed: int) -> Iterator[tuple[dict[str, Any], dict[str, Scorer]]]:
    """Yield the settings of a rule or of a model of implicit, with its scorer of each split."""
    train = data["test"].chosen.train
    if name == "popular":
        yield {}, {split: popular(rows) for split, rows in data.items()}
    elif name == "knn":
        for neighbours, shrinkage in itertools.product((10, 20, 50, 100, 200), (0.0, 20.0, 100.0)):
            knn = ItemKnn(train, neighbours=neighbours, shrinkage=shrinkage)
            scorers: dict[str, Scorer] = {
                split: (lambda part, rows=rows, knn=knn: knn.scores(rows.chosen.history[part]))
                for split, rows in data.items()
            }
            yield {"neighbours": neighbours, "shrinkage": shrinkage}, scorers
    else:
        grid = {
            "als": {"factors": (16, 32, 64, 128), "regularization": (1.0, 10.0), "alpha": (1.0, 5.0, 20.0)},
            "bpr": {
                "factors": (16, 64),
                "learning_rate": (0.003, 0.01, 0.03),
                "regularization": (0.01, 0.05),
                "iterations": (50, 150),
            },
        }[name]
        for values in itertools.product(*grid.values()):
            settings = dict(zip(grid, values, strict=True))
            yield settings, implicit_scorers(name, settings, data, seed)


def implicit_scorers(name: str, settings: dict[str, Any], data: dict[str, Rows], seed: int) -> dict[str, Scorer]:
    """Fit a model of implicit on train rows; new users get the popular films."""
    from implicit.als import AlternatingLeastSquares
    from implicit.bpr import BayesianPersonalizedRanking

    make = {"als": AlternatingLeastSquares, "bpr": BayesianPersonalizedRanking}[name]
    model = make(**settings, num_threads=1, random_state=seed)
    train = data["test"].chosen.train
    model.fit(sparse.csr_matrix(train), show_progress=False)
    users, items = np.asarray(model.user_factors), np.asarray(model.item_factors)
    return {split: vectors_scorer(users, items, rows) for split, rows in data.items()}


def vectors_scorer(users: np.ndarray, items: np.ndarray, rows: Rows) -> Scorer:
    """Return the scorer of users' and items' factors."""
    number, new = rows.users, popular(rows)

    def scorer(part: slice) -> np.ndarray:
        scores = users[np.maximum(number[part], 0)] @ items.T
        return np.where(number[part, None] >= 0, scores, new(part))

    return scorer


def theirs(name: str, seed: int) -> dict[str, Any]:
    """Choose a system's settings on validation rows, and measure it on the test rows."""
    data = read_rows()
    best: tuple[float, dict[str, Any], dict[str, Scorer]] | None = None
    for settings, scorers in candidates(name, data, seed):
        value = main_figure(scorers["val"], data["val"])
        if best is None or value > best[0]:
            best = value, settings, scorers
    assert best is not None
    return {"val": best[0], "settings": best[1], "scores": score(best[2]["test"], data["test"])}


def ours(name: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Tune on frozen backbones with the variant's settings; the figures are those of the report."""
    folder = Path(tempfile.mkdtemp(prefix="fusetune-recommend-"))
    tuned = ft.fit(
        DATA / "train.csv",
        val=DATA / "val.csv",
        test=DATA / "test.csv",
        catalogue=DATA / "items.csv",
        config={
            "user": "user_id",
            "item": "imdb_id",
            "image": str(DATA.parents[1] / "models" / "mobilenet-v2"),
            "trainer": {"epochs": 0, "trackers": []},
            "report": {"errors": 0, "bootstrap": 0},
        },
        overrides=[f"seed={seed}", *OURS[name], *overrides],
        out=folder / "model",
        progress=False,
    )
    results = tuned.results
    assert results is not None
    (task,) = results.tasks
    system = task.first("after")
    assert system is not None
    scores = {figure: system.metrics[figure].value for figure in FIGURES}
    for section in task.sections:
        start = f"{system.name}, "
        scores |= {key.removeprefix(start): value for key, value in section.figures.items() if key.startswith(start)}
    curve = results.curve
    return {
        "val": max((point.val_metric for point in curve.points if point.val_metric == point.val_metric), default=None),
        "settings": {"best_step": curve.best_step},
        "scores": scores,
        "phases": {phase.name: phase.seconds for phase in results.phases},
        "others": {other.name: {figure: other.metrics[figure].value for figure in FIGURES} for other in task.systems},
    }


def run(name: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """One system's run with one seed."""
    start, processor = time.perf_counter(), time.process_time()
    result = ours(name, seed, overrides) if name in OURS else theirs(name, seed)
    return {
        "name": name,
        "seed": seed,
        "set": overrides,
        **result,
        "seconds": time.perf_counter() - start,
        "processor_seconds": time.process_time() - processor,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def summary(runs: list[dict[str, Any]]) -> str:
    """Return Markdown tables: mean and standard deviation over seeds of each system's figures."""
    groups = ["", *(f"{group}, " for group in GROUPS)]
    lines = []
    for heads, keys in (
        (["all", *GROUPS], [f"{group}ndcg@10" for group in groups]),
        (["all", *GROUPS], [f"{group}mean_recall@10" for group in groups]),
        (list(MEANINGS), list(MEANINGS)),
    ):
        lines += ["", f"| {keys[0]} | {' | '.join(heads)} |", "| --- " * (len(heads) + 1) + "|"]
        for name in dict.fromkeys(run["name"] for run in runs):
            cells = []
            for key in keys:
                values = [run["scores"][key] for run in runs if run["name"] == name]
                digits = 1 if key in ("novelty", "popularity") else 4
                spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.{digits}f}{spread}")
            lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| system | settings by validation rows, each seed | seconds |", "| --- | --- | --- |"]
    for name in dict.fromkeys(run["name"] for run in runs):
        own = [run for run in runs if run["name"] == name]
        settings = dict.fromkeys(json.dumps(run["settings"]) for run in own)
        lines.append(f"| {name} | {'; '.join(settings)} | {statistics.mean(run['seconds'] for run in own):.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Run what was asked for, each run in a process of its own."""
    systems = [*RULES, *OURS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {'; '.join(systems)}")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for fusetune")
    parser.add_argument("--out", type=Path, help="figures; what is there already is not measured again")
    asked = parser.parse_args()
    if unknown := [name for name in asked.names if name not in systems]:
        parser.error(f"there is no system {unknown[0]!r}; there are {'; '.join(systems)}")
    figures = asked.out and asked.out / "recommend.json"
    runs = json.loads(figures.read_text()) if figures and figures.exists() else []
    done = {(run["name"], run["seed"], tuple(run["set"])) for run in runs}
    for seed in range(asked.seeds):
        for name in asked.names or systems:
            settings = asked.set if name in OURS else []
            if (name, seed, tuple(settings)) in done or (name in ("popular", "knn") and seed):
                continue
            with ProcessPoolExecutor(1, get_context("spawn")) as alone:
                runs.append(alone.submit(run, name, seed, settings).result())
            print(json.dumps(runs[-1]), flush=True)
            if figures:
                figures.parent.mkdir(parents=True, exist_ok=True)
                figures.write_text(json.dumps(runs, indent=1))
    print(summary(runs))


if __name__ == "__main__":
    main()
