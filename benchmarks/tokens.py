"""Tasks that read tokens and pairs of texts, against the recipes of transformers' examples: scores, seconds, memory.

python benchmarks/tokens.py                            # every set, both sides, seeds 0 to 2
python benchmarks/tokens.py wnut atis --seeds 1 --rows 500
python benchmarks/tokens.py sick --side ours --set trainer.backbone_lr=1e-4

The same backbone, rows, epochs, batch and length for both, each run in a process of its own, which gives its peak
memory. One function scores both sides' predictions of the test rows. The recipes keep the last step, as the examples
do; fusetune keeps its best step by validation rows, which the recipes do not read. Figures are kept in --out.
"""

from __future__ import annotations

import csv
import json
import random
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import token_recipes as recipes
from runs import DATA, Run, asked_keys, collect, details, measured, options, written
from token_recipes import Budget, Row

import fusetune as ft
from fusetune.backbones.hub.source import resolve
from fusetune.tasks.answers.squad import scores as squad_scores
from fusetune.tasks.entities.tagging import spans_of_tags

VAL_ROWS = 300
"""Validation rows at most, by which fusetune chooses its step; the recipes do not read them."""
Scores = dict[str, float]


@dataclass(frozen=True)
class Case:
    """A data set: its rows, what is learned, and how both sides answer; `recipe` is None where there is none."""

    rows: Callable[[], dict[str, list[Row]]]
    targets: list[str]
    recipe: Callable[[dict[str, list[Row]], Budget], tuple[dict[str, Any], float]] | None
    score: Callable[[list[Row], dict[str, list[Any]]], Scores]
    train_rows: int
    """Train rows that are used, drawn by seed 0; the same for both sides and all seeds."""
    test_rows: int = 1000
    max_tokens: int = 128
    epochs: int = 3
    settings: dict[str, Any] = field(default_factory=dict)


def lines(*names: str) -> dict[str, list[Row]]:
    """Read JSON lines: the files of train, val and test rows."""
    parts = zip(("train", "val", "test"), names, strict=True)
    return {part: [json.loads(line) for line in (DATA / name).open(encoding="utf-8")] for part, name in parts}


def table(name: str) -> list[Row]:
    """Read a CSV file."""
    with (DATA / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def split(rows: list[Row]) -> dict[str, list[Row]]:
    """Split at random, the same way each time: 70 % to train, 10 % to choose, 20 % to test."""
    rows = random.Random(0).sample(rows, len(rows))
    first, second = int(0.7 * len(rows)), int(0.8 * len(rows))
    return {"train": rows[:first], "val": rows[first:second], "test": rows[second:]}


def spans_f1(truth: list[list[tuple[Any, ...]]], guesses: list[list[tuple[Any, ...]]]) -> float:
    """Return the micro F1 of exact spans: seqeval's strict mode."""
    right = sum(len(set(t) & set(g)) for t, g in zip(truth, guesses, strict=True))
    return 2 * right / max(1, sum(map(len, truth)) + sum(map(len, guesses)))


def score_tags(target: str) -> Callable[[list[Row], dict[str, list[Any]]], Scores]:
    """Spans of characters by exact match; a side answers with tags or with spans."""

    def score(rows: list[Row], answers: dict[str, list[Any]]) -> Scores:
        truth = [spans_of_tags(row[target], row["tokens"]) for row in rows]
        guesses = []
        for row, answer in zip(rows, answers[target], strict=True):
            if answer and isinstance(answer[0], dict):
                guesses.append([(span["start"], span["end"], span["label"]) for span in answer])
            else:
                guesses.append(spans_of_tags(answer or ["O"] * len(row["tokens"]), row["tokens"]) if answer else [])
        return {f"{target} f1": spans_f1(truth, guesses)}

    return score


def score_labels(target: str) -> Callable[[list[Row], dict[str, list[Any]]], Scores]:
    """Return the accuracy."""
    return lambda rows, answers: {
        f"{target} accuracy": float(
            np.mean([str(r[target]) == str(a) for r, a in zip(rows, answers[target], strict=True)])
        )
    }


def score_number(target: str) -> Callable[[list[Row], dict[str, list[Any]]], Scores]:
    """Return Pearson's and Spearman's correlation."""

    def score(rows: list[Row], answers: dict[str, list[Any]]) -> Scores:
        from scipy.stats import pearsonr, spearmanr

        truth, guesses = [float(row[target]) for row in rows], answers[target]
        return {
            f"{target} pearson": float(pearsonr(truth, guesses).statistic),
            f"{target} spearman": float(spearmanr(truth, guesses).statistic),
        }

    return score


def score_relations(rows: list[Row], answers: dict[str, list[Any]]) -> Scores:
    """Return macro F1 over the directed relations but Other."""
    from sklearn.metrics import f1_score

    truth = [row["relation"] for row in rows]
    names = sorted(set(truth) - {"Other"})
    return {"relation f1": float(f1_score(truth, answers["relation"], labels=names, average="macro", zero_division=0))}


def as_triples(row: Row) -> Row:
    """Return a sentence with two tagged entities as a text with entities and a directed relation; Other is none."""
    text, spans = "", list[tuple[int, int, str]]()
    for number, part in enumerate(re.split(r"</?e[12]>", row["sentence"])):
        if number % 2:
            spans.append((len(text), len(text) + len(part), "entity"))
        text += part
    label, _, direction = row["relation"].partition("(")
    ends = {"head": 1, "tail": 0} if direction.startswith("e2") else {"head": 0, "tail": 1}
    return {"text": text, "triples": {"entities": spans, "relations": [{**ends, "label": label}] if direction else []}}


def score_triples(rows: list[Row], answers: dict[str, list[Any]]) -> Scores:
    """Return the micro F1 of triples whose spans, relation and direction are right."""
    truth, guesses = [], []
    for row, answer in zip(rows, answers["triples"], strict=True):
        spans = row["triples"]["entities"]
        truth.append([(*spans[r["head"]][:2], r["label"], *spans[r["tail"]][:2]) for r in row["triples"]["relations"]])
        sides = [(t["head"], t["label"], t["tail"]) for t in answer]
        guesses.append([(h["start"], h["end"], label, t["start"], t["end"]) for h, label, t in sides])
    return {"triple f1": spans_f1(truth, guesses)}


def score_answers(rows: list[Row], answers: dict[str, list[Any]]) -> Scores:
    """Return SQuAD 2's exact match and F1; an empty answer is right where there is none."""
    both = [squad_scores(str(a or ""), [row["answer"]]) for row, a in zip(rows, answers["answer"], strict=True)]
    return {"answer em": float(np.mean([em for em, _ in both])), "answer f1": float(np.mean([f1 for _, f1 in both]))}


def together(*parts: Callable[[list[Row], dict[str, list[Any]]], Scores]) -> Callable[..., Scores]:
    """Return the scores of several targets."""
    return lambda rows, answers: {k: v for part in parts for k, v in part(rows, answers).items()}


def each(**parts: Callable[[dict[str, list[Row]], Budget], tuple[Any, float]]) -> Any:
    """A recipe a target: the examples learn one at a time."""

    def run(rows: dict[str, list[Row]], budget: Budget) -> tuple[dict[str, Any], float]:
        done = {target: part(rows, budget) for target, part in parts.items()}
        return {target: answers for target, (answers, _) in done.items()}, sum(s for _, s in done.values())

    return run


def worded(rows: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Add the words as one text."""
    return {part: [row | {"text": " ".join(row["tokens"])} for row in some] for part, some in rows.items()}


def atis() -> dict[str, list[Row]]:
    """The split of Goo et al. 2018."""
    return lines(*(f"text_intent_atis/{part}.jsonl" for part in ("train", "valid", "test")))


def sick() -> dict[str, list[Row]]:
    """The split of SemEval-2014 task 1."""
    return {part: table(f"text_pair_sick/{part}.csv") for part in ("train", "val", "test")}


def subjqa(domain: str) -> dict[str, list[Row]]:
    """One domain of SubjQA."""
    return lines(*(f"text_qa_subjqa/{domain}_{part}.jsonl" for part in ("train", "dev", "test")))


SLOTS = {"slots": lambda rows, budget: recipes.tags(rows, "slots", budget)}
INTENT = {"intent": lambda rows, budget: recipes.labels(worded(rows), ["text"], "intent", budget)}
PAIR = ["sentence_a", "sentence_b"]
ENTAILMENT = {"entailment": lambda rows, budget: recipes.labels(rows, PAIR, "entailment", budget)}
RELATED = {"relatedness": lambda rows, budget: recipes.labels(rows, PAIR, "relatedness", budget, number=True)}
RELATION = {"relation": lambda rows, budget: recipes.labels(rows, ["sentence"], "relation", budget)}
ANSWER = {"answer": recipes.answers}
CHOICES = ["answerA", "answerB", "answerC"]
CHOICE = {"correct": lambda rows, budget: recipes.choices(rows, CHOICES, budget)}
JOINED = {"text": {"join": [PAIR]}}
QA = {"tasks": {"answer": {"name": "answer"}}, "trainer": {"accumulate": 8}}
"""A batch of 16 rows has some 80 windows here, the recipe's 16: it is computed two rows at a time."""

CASES: dict[str, Case] = {
    "wnut": Case(
        lambda: lines(*(f"text_ner_wnut17/{part}.jsonl" for part in ("train", "dev", "test"))),
        ["tags"],
        each(tags=lambda rows, budget: recipes.tags(rows, "tags", budget)),
        score_tags("tags"),
        1000,
    ),
    "atis-slots": Case(atis, ["slots"], each(**SLOTS), score_tags("slots"), 1000),
    "atis-intent": Case(atis, ["intent"], each(**INTENT), score_labels("intent"), 1000),
    "atis": Case(
        atis,
        ["slots", "intent"],
        each(**SLOTS, **INTENT),
        together(score_tags("slots"), score_labels("intent")),
        1000,
    ),
    "semeval": Case(
        lambda: split(table("text_re_semeval2010/train.csv")), ["relation"], each(**RELATION), score_relations, 1000
    ),
    "triples": Case(
        lambda: split([as_triples(row) for row in table("text_re_semeval2010/train.csv")]),
        ["triples"],
        None,
        score_triples,
        1000,
        epochs=2,
    ),
    "sick-entailment": Case(
        sick, ["entailment"], each(**ENTAILMENT), score_labels("entailment"), 1000, settings=JOINED
    ),
    "sick-relatedness": Case(
        sick, ["relatedness"], each(**RELATED), score_number("relatedness"), 1000, settings=JOINED
    ),
    "sick": Case(
        sick,
        ["entailment", "relatedness"],
        each(**ENTAILMENT, **RELATED),
        together(score_labels("entailment"), score_number("relatedness")),
        1000,
        settings=JOINED,
    ),
    "sick-default": Case(  # how the texts are read is left to validation rows; the recipe's figures are those of "sick"
        sick,
        ["entailment", "relatedness"],
        None,
        together(score_labels("entailment"), score_number("relatedness")),
        1000,
    ),
    "grocery": Case(
        lambda: subjqa("grocery"), ["answer"], each(**ANSWER), score_answers, 300, 500, 256, 2, settings=QA
    ),
    "electronics": Case(
        lambda: subjqa("electronics"), ["answer"], each(**ANSWER), score_answers, 300, 500, 256, 2, settings=QA
    ),
    "socialiqa": Case(
        lambda: (
            split(lines(*["text_mc_socialiqa/dev.jsonl"] * 3)["train"])
            | {"test": lines(*["text_mc_socialiqa/test.jsonl"] * 3)["test"]}
        ),
        ["correct"],
        each(**CHOICE),
        score_labels("correct"),
        600,
    ),
}


def rows_of(case: Case, most: int | None) -> dict[str, list[Row]]:
    """Return the rows that both sides are given."""
    rows, draw = case.rows(), random.Random(0)
    sizes = {"train": min(most or case.train_rows, case.train_rows), "test": case.test_rows, "val": VAL_ROWS}
    for part, size in sizes.items():
        if len(rows[part]) > size:
            rows[part] = draw.sample(rows[part], size)
    return rows


def ours(case: Case, rows: dict[str, list[Row]], budget: Budget, overrides: list[str]) -> tuple[dict[str, Any], Scores]:
    """Tune with the defaults but for the budget. Return answers, and the seconds of all and of a tuned epoch."""
    folder, files = written(rows, "tokens")
    config = {
        "trainer": {
            "epochs": budget.epochs,
            "batch_size": budget.batch,
            "backbone_lr": budget.rate,
            "precision": "bf16" if budget.bf16 else "no",
        }
        | case.settings.get("trainer", {}),
        "report": {"alone": "none", "errors": 0},
        "data": {"cache": str(folder / "cache")},
        "text": {"name": budget.backbone, "max_tokens": budget.max_tokens} | case.settings.get("text", {}),
    } | {key: value for key, value in case.settings.items() if key not in ("text", "trainer")}
    unused = sorted({key for key in rows["train"][0] if key in ("id", "domain", "intent", "slots", "relatedness")})
    dropped = [key for key in [*unused, "entailment"] if key in rows["train"][0] and key not in case.targets]
    config["columns"] = {key: {"role": "ignore"} for key in dropped}
    tuned = ft.fit(
        files.pop("train"),
        **files,
        target=case.targets,
        config=config,
        overrides=[f"seed={budget.seed}", *overrides],
        out=folder / "model",
        progress=False,
    )
    frame = tuned.predict(rows["test"]).to_pandas()
    answers = {t: [list(a) if isinstance(a, np.ndarray) else a for a in frame[t]] for t in case.targets}
    return answers, details(tuned)


def run(name: str, side: str, budget: Budget, most: int | None, overrides: list[str]) -> Run:
    """One side's run on one data set."""
    case = CASES[name]
    rows = rows_of(case, most)
    with measured() as figures:
        if side == "ours":
            answers, more = ours(case, rows, budget, overrides)
        else:
            assert case.recipe is not None, "sides without a recipe are not run"
            answers, seconds = case.recipe(rows, budget)
            more = {"train": seconds}
    sizes = {part: len(some) for part, some in rows.items()}
    return {"rate": budget.rate, "rows": sizes, "scores": case.score(rows["test"], answers), **figures, "more": more}


def summary(runs: list[dict[str, Any]]) -> str:
    """Markdown: mean and standard deviation over seeds a set, score and side."""
    lines = ["| data | train rows | score | fusetune | transformers' recipe | difference |", "| --- " * 6 + "|"]
    for name in dict.fromkeys(run["name"] for run in runs):
        mine = [run for run in runs if run["name"] == name]
        for score in mine[0]["scores"]:
            cells, means = [], []
            for side in ("ours", "theirs"):
                values = [run["scores"][score] for run in mine if run["side"] == side]
                spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.3f}{spread}" if values else "")
                means.append(statistics.mean(values) if values else float("nan"))
            rows, difference = mine[0]["rows"]["train"], f"{means[0] - means[1]:+.3f}"
            lines.append(f"| {name} | {rows:,} | {score} | {' | '.join(cells)} | {difference} |")
    return "\n".join(lines)


def main() -> None:
    """Run what was asked for."""
    parser = options(__doc__, CASES)
    parser.add_argument("--epochs", type=int, help="of tuning; by default 3, for answers 2")
    parser.add_argument("--rate", type=float, default=2e-4, help="the backbone's learning rate; the examples' is 5e-5")
    parser.add_argument("--float32", action="store_true", help="no bf16 on either side")
    asked = parser.parse_args()
    backbone = str(resolve("minilm").folder)

    def job(name: str, side: str, seed: int) -> partial[Run]:
        case = CASES[name]
        epochs = asked.epochs or case.epochs
        budget = Budget(backbone, epochs, 16, case.max_tokens, asked.rate, not asked.float32, seed)
        return partial(run, name, side, budget, asked.rows, asked.set)

    keys = [key for key in asked_keys(asked, CASES) if key[1] == "ours" or CASES[key[0]].recipe is not None]
    print(summary(collect(((key, job(*key)) for key in keys), asked.out and asked.out / "tokens.json")))


if __name__ == "__main__":
    main()
