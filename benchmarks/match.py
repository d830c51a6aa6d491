"""Pairs of texts, against sentence-transformers: scores, training rows a second, seconds, memory.

python benchmarks/match.py                                    # every set, both sides, seeds 0 to 2
python benchmarks/match.py relatedness --seeds 1 --rows 500
python benchmarks/match.py retrieval --side ours --set trainer.backbone_lr=2e-5

The same backbone, rows, loss, batch, epochs, rate and length for both, each run in a process of its own, which gives
its peak memory. Both sides' vectors of the test rows are scored by one function. sentence-transformers keeps its last
step; fusetune keeps its best step by validation rows, which the other side does not read. Figures are kept in --out.
"""

from __future__ import annotations

import csv
import random
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from runs import DATA, Run, asked_keys, collect, details, measured, options, written

import fusetune as ft
from fusetune.backbones.hub.source import resolve

SIDES = ("sentence_a", "sentence_b")
MATCH = 4.5
"""Relatedness from which a pair of SICK is a query and its document."""
Row = dict[str, str]
Scores = dict[str, float]


@dataclass(frozen=True)
class Budget:
    """What both sides are given besides the rows."""

    backbone: str
    epochs: float
    batch: int
    rate: float
    max_tokens: int
    bf16: bool
    seed: int


@dataclass(frozen=True)
class Case:
    """A data set: its rows, its loss on both sides, and how vectors of the test rows are scored."""

    rows: Callable[[], dict[str, list[Row]]]
    loss: str
    """Of sentence-transformers; fusetune's default objective is the same loss, or the form in `settings`."""
    score: Callable[[np.ndarray, np.ndarray, list[Row]], Scores]
    target: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def sick() -> dict[str, list[Row]]:
    """The split of SemEval-2014 task 1."""
    parts = {}
    for part in ("train", "val", "test"):
        with (DATA / "text_pair_sick" / f"{part}.csv").open(encoding="utf-8", newline="") as file:
            parts[part] = [{key: row[key] for key in (*SIDES, "relatedness")} for row in csv.DictReader(file)]
    return parts


def matches() -> dict[str, list[Row]]:
    """Pairs of SICK that mean nearly the same, without their scores."""
    return {
        part: [{side: row[side] for side in SIDES} for row in rows if float(row["relatedness"]) >= MATCH]
        for part, rows in sick().items()
    }


def score_relatedness(first: np.ndarray, second: np.ndarray, rows: list[Row]) -> Scores:
    """Return Spearman's and Pearson's correlation of the cosines with the scores."""
    from scipy.stats import pearsonr, spearmanr

    cosines, truth = (first * second).sum(1), [float(row["relatedness"]) for row in rows]
    return {
        "spearman": float(spearmanr(cosines, truth).statistic),
        "pearson": float(pearsonr(cosines, truth).statistic),
    }


def score_retrieval(first: np.ndarray, second: np.ndarray, rows: list[Row]) -> Scores:
    """Return recall at 1 and 10 of the distinct documents, by the first right one; other right ones do not count."""
    texts = list(dict.fromkeys(row[SIDES[1]] for row in rows))
    place = {row[SIDES[1]]: index for index, row in enumerate(rows)}
    documents = second[[place[text] for text in texts]]
    right: dict[str, set[int]] = {}
    for row in rows:
        right.setdefault(row[SIDES[0]], set()).add(texts.index(row[SIDES[1]]))
    ranks = []
    for row, similar in zip(rows, first @ documents.T, strict=True):
        own = right[row[SIDES[0]]]
        best = max(similar[index] for index in own)
        ranks.append(1 + sum(value > best for index, value in enumerate(similar) if index not in own))
    return {f"recall@{k}": float(np.mean(np.asarray(ranks) <= k)) for k in (1, 10)}


CASES = {
    "relatedness": Case(sick, "CoSENTLoss", score_relatedness, "relatedness"),
    "retrieval": Case(
        matches,
        "MultipleNegativesRankingLoss",
        score_retrieval,
        settings={"objectives": {"contrastive": {"form": "infonce", "temperature": 0.05, "learn_temperature": False}}},
    ),
}


def rows_of(case: Case, most: int | None, seed: int) -> dict[str, list[Row]]:
    """Return the rows that both sides are given; with `most`, train rows drawn by the seed."""
    rows = case.rows()
    if most is not None and len(rows["train"]) > most:
        rows["train"] = random.Random(seed).sample(rows["train"], most)
    return rows


def ours(case: Case, rows: dict[str, list[Row]], budget: Budget, overrides: list[str]) -> tuple[Any, dict[str, float]]:
    """Tune with the defaults but for the budget; return both sides' vectors, and the seconds of the phases."""
    folder, files = written(rows, "match")
    config = {
        "query": SIDES[0],
        "document": SIDES[1],
        "target": [case.target] if case.target else [],
        "columns": dict.fromkeys(SIDES, "text"),
        "trainer": {
            "epochs": budget.epochs,
            "batch_size": budget.batch,
            "backbone_lr": budget.rate,
            "precision": "bf16" if budget.bf16 else "no",
        },
        "report": {"errors": 0, "bootstrap": 0},
        "data": {"cache": str(folder / "cache")},
        "text": {"name": budget.backbone, "max_tokens": budget.max_tokens},
        **case.settings,
    }
    more = [f"seed={budget.seed}", *overrides]
    tuned = ft.fit(files.pop("train"), **files, config=config, overrides=more, out=folder / "model", progress=False)
    frame = tuned.predict(rows["test"]).to_pandas()
    vectors = [np.stack(frame[f"{side}_vector"].tolist()) for side in ("query", "document")]
    return vectors, details(tuned)


def theirs(case: Case, rows: dict[str, list[Row]], budget: Budget) -> tuple[Any, dict[str, float]]:
    """Tune by sentence-transformers' trainer; return both sides' vectors, and the seconds of training."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, losses
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments

    model = SentenceTransformer(budget.backbone, device="cpu")
    model.max_seq_length = budget.max_tokens
    columns: dict[str, list[Any]] = {side: [row[side] for row in rows["train"]] for side in SIDES}
    if case.target:
        columns["score"] = [float(row[case.target]) for row in rows["train"]]
    arguments = Arguments(
        output_dir=tempfile.mkdtemp(prefix="st-match-"),
        num_train_epochs=budget.epochs,
        per_device_train_batch_size=budget.batch,
        learning_rate=budget.rate,
        warmup_steps=0.1,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        seed=budget.seed,
        use_cpu=True,
        bf16=budget.bf16,
        disable_tqdm=True,
    )
    loss = getattr(losses, case.loss)(model)
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_dict(columns), loss=loss
    )
    seconds = trainer.train().metrics["train_runtime"]
    vectors = [model.encode([row[side] for row in rows["test"]], normalize_embeddings=True) for side in SIDES]
    return vectors, {"train": seconds}


def run(name: str, side: str, budget: Budget, most: int | None, overrides: list[str]) -> Run:
    """One side's run on one data set."""
    case = CASES[name]
    rows = rows_of(case, most, budget.seed)
    with measured() as figures:
        vectors, more = ours(case, rows, budget, overrides) if side == "ours" else theirs(case, rows, budget)
    return {
        "rate": budget.rate,
        "rows": {part: len(some) for part, some in rows.items()},
        "scores": case.score(*vectors, rows["test"]),
        "rows_a_second": len(rows["train"]) * budget.epochs / max(more["train"], 1e-9),
        **figures,
        "more": more,
    }


def summary(runs: list[dict[str, Any]]) -> str:
    """Markdown: mean and standard deviation over seeds of each set's scores, speed and memory."""
    lines = ["| data | train rows | figure | fusetune | sentence-transformers |", "| --- " * 5 + "|"]
    for name in dict.fromkeys(run["name"] for run in runs):
        mine = [run for run in runs if run["name"] == name]
        figures: dict[str, Callable[[dict[str, Any]], float]] = {
            score: (lambda run, score=score: run["scores"][score]) for score in mine[0]["scores"]
        }
        figures |= {
            "train rows a second": lambda run: run["rows_a_second"],
            "seconds in all": lambda run: run["seconds"],
        }
        figures["peak memory, MB"] = lambda run: run["peak_mb"]
        for figure, value in figures.items():
            cells = []
            for side in ("ours", "theirs"):
                values = [value(run) for run in mine if run["side"] == side]
                digits = 3 if figure in mine[0]["scores"] else 1
                spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):,.{digits}f}{spread}" if values else "")
            lines.append(f"| {name} | {mine[0]['rows']['train']:,} | {figure} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what was asked for."""
    parser = options(__doc__, CASES)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=5e-5, help="the learning rate, at its peak")
    parser.add_argument("--bf16", action="store_true", help="bf16 on both sides")
    asked = parser.parse_args()
    backbone = str(resolve("minilm").folder)

    def job(name: str, side: str, seed: int) -> partial[Run]:
        budget = Budget(backbone, asked.epochs, asked.batch, asked.rate, 128, asked.bf16, seed)
        return partial(run, name, side, budget, asked.rows, asked.set)

    jobs = ((key, job(*key)) for key in asked_keys(asked, CASES))
    print(summary(collect(jobs, asked.out and asked.out / "match.json")))


if __name__ == "__main__":
    main()
