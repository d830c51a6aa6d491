"""Language models that write: translation, summaries, dialogue, captions, questions about pictures, spoken words.

    python ../shared/tools/get_models.py smollm2 flan-t5-small --out ~/models      # pip install gguf onnx first
    python benchmarks/generate.py                                                 # every case, both sides, seeds 0 to 2
    python benchmarks/generate.py translation translation-smollm2 --seeds 1 --rows 500
    python benchmarks/generate.py easy-vqa --side ours --set trainer.epochs=2

    PYTHONPATH=DIR python benchmarks/generate.py translation-smollm2 --seeds 1 --rows 320 --held-out 64 --side trl

A run is a fit: its report has the untuned model with the same prompt and the rules without a model, on the same test
rows, which choose nothing. The other side is a bare loop of transformers and peft on the same model, rows, epochs and
batches, for the cases whose prompts are text: it has no validation, no report, and no answers. The side "trl" is TRL's
SFTTrainer on the same, of decoders (see trl_language.py). Figures are kept in --out.
"""

from __future__ import annotations

import csv
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from runs import DATA, Run, asked_keys, collect, measured, options, written

import fusetune as ft
from fusetune.training import loop

MODELS = Path(os.environ.get("FUSETUNE_MODELS", Path.home() / "models"))
SHARED = DATA.parent / "models"
T5, SMOLLM2 = "flan-t5-small", "smollm2"
Row = dict[str, Any]
Parts = dict[str, list[Row]]


@dataclass(frozen=True)
class Case:
    """A data set and a language model.

    Attributes:
        rows: of the parts "train", "val" and "test".
        target: the column that is written.
        model: a folder of `MODELS`.
        template: of the prompt.
        train_rows, val_rows, test_rows: the most rows of each part, drawn by seed 0.
        settings: for fusetune.
        plain: whether the prompt is text alone, which the bare loop reads too.
    """

    rows: Callable[[], Parts]
    target: str
    model: str
    template: str
    train_rows: int
    val_rows: int = 200
    test_rows: int = 500
    epochs: float = 1
    settings: dict[str, Any] = field(default_factory=dict)
    plain: bool = False


def lines(name: str) -> Parts:
    """Read the parts of a data set of JSON lines."""
    files = {"train": "train", "val": "dev", "test": "test"}
    return {
        part: [json.loads(line) for line in (DATA / name / f"{file}.jsonl").open(encoding="utf-8")]
        for part, file in files.items()
    }


def table(name: str, *, val: str | None = "val") -> Parts:
    """Read the parts of a data set of CSV files; media paths become absolute, and rows without a part are split off."""
    parts: Parts = {}
    for part, file in (("train", "train"), ("val", val), ("test", "test")):
        if file is not None:
            with (DATA / name / f"{file}.csv").open(encoding="utf-8", newline="") as opened:
                parts[part] = list(csv.DictReader(opened))
    for row in (row for rows in parts.values() for row in rows):
        for column in ("image", "audio"):
            if column in row:
                row[column] = str(DATA / name / row[column])
    if val is None:
        parts["val"], parts["train"] = split(parts["train"], 0.1)
    return parts


def split(rows: list[Row], share: float) -> tuple[list[Row], list[Row]]:
    """Split rows in two at random, by seed 0."""
    order = list(rows)
    random.Random(0).shuffle(order)
    cut = round(share * len(order))
    return order[:cut], order[cut:]


def multi30k() -> Parts:
    """English captions and their German translations."""
    parts = {}
    for part, file in (("train", "train"), ("val", "val"), ("test", "test_2016_flickr")):
        sides = [(DATA / "text_mt_multi30k_en_de" / f"{file}.{side}").read_text("utf-8") for side in ("en", "de")]
        pairs = zip(*(side.strip().split("\n") for side in sides), strict=True)
        parts[part] = [{"en": en.strip(), "de": de.strip()} for en, de in pairs]
    return parts


def scitldr() -> Parts:
    """Papers' abstracts and their one-sentence summaries, of which test rows have several."""
    return {
        part: [{"document": row["document"], "summary": row["summaries"]} for row in rows]
        for part, rows in lines("text_sum_scitldr").items()
    }


def dialogue() -> Parts:
    """The three turns before a turn of the system, its dialogue acts, and the turn."""
    parts: Parts = {}
    for part, chats in lines("text_dialog_sgd").items():
        parts[part] = []
        for chat in chats:
            turns = chat["turns"]
            for number, turn in enumerate(turns):
                if turn["speaker"] == "SYSTEM":
                    before = [
                        f"{said['speaker'].lower()}: {said['text']}" for said in turns[max(0, number - 3) : number]
                    ]
                    acts = ", ".join(dict.fromkeys(act.lower() for act in turn["acts"]))
                    parts[part].append({"history": "\n".join(before), "act": acts, "answer": turn["text"]})
    return parts


def esc10() -> Parts:
    """Sounds and what they are, in words; the fifth fold is for the test, the fourth for validation."""
    with (DATA / "esc10" / "esc10.csv").open(encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    rows = [
        {"audio": str(DATA / "esc10" / row["audio"]), "text": row["label"].replace("_", " "), "fold": row["fold"]}
        for row in rows
    ]
    folds = {"train": "123", "val": "4", "test": "5"}
    return {part: [row for row in rows if row["fold"] in own] for part, own in folds.items()}


PEERS = {"theirs": "bare_language", "trl": "trl_language"}
"""The module of each side that is not fusetune."""
IMAGE = {"image": str(SHARED / "mobilenet-v2")}
AUDIO = {"audio": str(SHARED / "yamnet")}
T5_RATE = {"trainer.backbone_lr": 5e-4}
CASES = {
    "translation": Case(
        multi30k,
        "de",
        T5,
        "translate English to German: {en}",
        8000,
        settings={"trainer.backbone_lr": 5e-4},
        plain=True,
    ),
    "translation-smollm2": Case(
        multi30k, "de", SMOLLM2, "English: {en}\nGerman:", 8000, settings={"prompt.chat": "no"}, plain=True
    ),
    "summaries": Case(
        scitldr,
        "summary",
        T5,
        "summarize: {document}",
        1500,
        test_rows=300,
        epochs=2,
        settings={"prompt.max_tokens": 256, "trainer.backbone_lr": 3e-4, "trainer.batch_size": 16},
        plain=True,
    ),
    "dialogue": Case(dialogue, "answer", T5, "{history}\nsystem:", 3000, settings=T5_RATE, plain=True),
    "dialogue-acts": Case(dialogue, "answer", T5, "{history}\nsystem ({act}):", 3000, settings=T5_RATE, plain=True),
    "captions": Case(
        partial(table, "coco_caption_multilabel"),
        "caption",
        SMOLLM2,
        "A picture: {image}\nA caption:",
        3000,
        settings={"prompt.chat": "no", **IMAGE},
    ),
    "easy-vqa": Case(
        partial(table, "easy_vqa", val=None),
        "answer",
        T5,
        "{image} {question}",
        6000,
        epochs=4,
        settings={"tasks.answer": "generate", "trainer.backbone_lr": 5e-4, "image.freeze": "all", **IMAGE},
    ),
    "daquar": Case(
        partial(table, "daquar_vqa"),
        "answer",
        T5,
        "{image} {question}",
        5000,
        epochs=2,
        settings={"tasks.answer": "generate", "trainer.backbone_lr": 5e-4, **IMAGE},
    ),
    "digits": Case(
        partial(table, "fsdd", val=None),
        "text",
        T5,
        "{audio} What is said?",
        2000,
        epochs=4,
        settings={"tasks.text": "generate", "trainer.backbone_lr": 5e-4, "trainer.metric": "wer", **AUDIO},
    ),
    "sounds": Case(
        esc10,
        "text",
        T5,
        "{audio} What is heard?",
        240,
        epochs=10,
        settings={"tasks.text": "generate", "trainer.backbone_lr": 5e-4, "trainer.metric": "wer", **AUDIO},
    ),
}


@dataclass(frozen=True)
class Limits:
    """The most train rows, and the most validation and test rows each; None leaves the case's."""

    train: int | None = None
    held_out: int | None = None


def chosen(case: Case, most: Limits) -> Parts:
    """Return a case's rows: at most so many of each part, drawn by seed 0."""
    limits = {"train": case.train_rows, "val": case.val_rows, "test": case.test_rows}
    asked = {"train": most.train, "val": most.held_out, "test": most.held_out}
    limits = {part: min(limit, asked[part] or limit) for part, limit in limits.items()}
    parts = {}
    for part, rows in case.rows().items():
        order = list(rows)
        random.Random(0).shuffle(order)
        parts[part] = order[: limits[part]]
    return parts


@contextmanager
def updates_timed(figures: Run) -> Iterator[None]:
    """Add the processor seconds of a fit's updates to the figures: other work on the machine does not change them."""
    plain, figures["train_processor"] = loop.update, 0.0

    def timed(*arguments: Any, **options: Any) -> Any:
        start = time.process_time()
        losses = plain(*arguments, **options)
        figures["train_processor"] += time.process_time() - start
        return losses

    loop.update = timed  # type: ignore[assignment]
    try:
        yield
    finally:
        loop.update = plain


def ours(name: str, seed: int, most: Limits, overrides: list[str]) -> Run:
    """Fit, and return the metrics of every system of the report."""
    case = CASES[name]
    parts = chosen(case, most)
    folder, files = written(parts, "generate")
    settings = {"text": str(MODELS / case.model), "prompt.template": case.template, "trainer.epochs": case.epochs}
    given = [f"{key}={value}" for key, value in (settings | case.settings | {"trainer.trackers": "[]"}).items()]
    with measured() as figures, updates_timed(figures):
        tuned = ft.fit(
            str(files["train"]),
            target=case.target,
            val=str(files["val"]),
            test=str(files["test"]),
            overrides=[*given, f"seed={seed}", "report.errors=6", *overrides],
            out=str(folder / "run"),
        )
    results = tuned.results
    assert results is not None
    (task,) = results.tasks
    names = ("bleu", "chrf", "rouge1", "rouge2", "rouge_lsum", "exact_match", "token_f1", "wer")
    figures["scores"] = {
        system.name: {metric: round(system.metrics[metric].value, 4) for metric in names if metric in system.metrics}
        for system in task.systems
    }
    if (before := task.first("before")) is not None:
        differences = before.difference.items()
        figures["difference"] = {metric: [value.value, value.low, value.high] for metric, value in differences}
    likelihood = next(section for section in task.sections if section.key == "likelihood")
    figures |= {"likelihood": likelihood.figures, "rows": {part: len(rows) for part, rows in parts.items()}}
    figures |= {"updating": results.updating, "phases": {phase.name: phase.seconds for phase in results.phases}}
    figures["val_losses"] = [point.val_loss for point in results.curve.points]
    return figures


def peer(module: str, name: str, seed: int, most: Limits, overrides: list[str]) -> Run:
    """Tune by the function `tune` of a module, and return the seconds of its updates and its validation loss."""
    tune = import_module(module).tune
    case = CASES[name]
    parts = chosen(case, most)
    rate = float(case.settings.get("trainer.backbone_lr", 5e-4))
    batch = int(case.settings.get("trainer.batch_size", 32))
    most_tokens = int(case.settings.get("prompt.max_tokens", 512))
    with measured() as figures:
        figures |= tune(
            MODELS / case.model, parts, case.template, case.target, rate, batch, case.epochs, most_tokens, seed
        )
    return figures


def main() -> None:
    parser = options(__doc__, CASES, peers=["trl"])
    parser.add_argument("--held-out", type=int, help="at most so many validation rows, and test rows")
    asked = parser.parse_args()
    torch.manual_seed(0)
    jobs = []
    for name, side, seed in asked_keys(asked, CASES):
        if side != "ours" and not CASES[name].plain:
            continue
        job = ours if side == "ours" else partial(peer, PEERS[side])
        jobs.append(((name, side, seed), partial(job, name, seed, Limits(asked.rows, asked.held_out), asked.set)))
    start = time.perf_counter()
    runs = collect(jobs, asked.out)
    for run in runs:
        print(
            run["name"],
            run["side"],
            run["seed"],
            json.dumps(run.get("scores", {k: run[k] for k in ("val_loss", "train") if k in run})),
        )
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
