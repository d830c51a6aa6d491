"""The recipes of transformers' examples, on one backbone: what tokens.py compares with.

Each is its example without the command line: run_ner.py, run_glue.py on one or two texts, run_qa.py with squad_v2 and
run_swag.py. Rates, schedule and optimiser are the examples' defaults but for what `Budget` says.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForMultipleChoice,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

IGNORED = -100
STRIDE = 128
"""Tokens that the windows of a long context share, as in run_qa.py."""
LONGEST_ANSWER = 30
"""Tokens of an answer at most, as in run_qa.py."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Budget:
    """What both sides are given."""

    backbone: str
    epochs: int
    batch: int
    max_tokens: int
    rate: float
    bf16: bool
    seed: int


@dataclass
class Tuned:
    """A tuned model, what reads texts for it, and the seconds that training took."""

    model: Any
    tokenizer: Any
    seconds: float


def train(auto: Any, features: Sequence[Any], collator: Callable[[Any], Any], budget: Budget, **config: Any) -> Tuned:
    """Tune `auto`'s model with Trainer: AdamW, linear decay, no warm-up, the last step kept, as the examples do."""
    set_seed(budget.seed)
    tokenizer = AutoTokenizer.from_pretrained(budget.backbone)
    model = auto.from_pretrained(budget.backbone, **config)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=budget.epochs,
            per_device_train_batch_size=budget.batch,
            learning_rate=budget.rate,
            bf16=budget.bf16,
            use_cpu=not torch.cuda.is_available(),
            seed=budget.seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
        )
        trainer = Trainer(model, arguments, train_dataset=features, data_collator=collator)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    return Tuned(trainer.model.eval(), tokenizer, seconds)


@torch.inference_mode()
def predict(tuned: Tuned, features: Sequence[Any], collator: Callable[[Any], Any], batch: int = 32) -> list[Any]:
    """Return each feature's logits, one array or a tuple of arrays, padding included."""
    answers: list[Any] = []
    for start in range(0, len(features), batch):
        inputs = {key: value for key, value in collator(features[start : start + batch]).items() if key != "labels"}
        output = tuned.model(**inputs)
        logits = (output.start_logits, output.end_logits) if hasattr(output, "start_logits") else (output.logits,)
        answers += list(zip(*(part.float().numpy() for part in logits), strict=True))
    return answers


def tags(rows: dict[str, list[Row]], target: str, budget: Budget) -> tuple[list[list[str]], float]:
    """run_ner.py: the first token of each word has the word's tag. Return the test rows' tags and train seconds."""
    names = sorted({tag for row in rows["train"] for tag in row[target]})
    number = {name: i for i, name in enumerate(names)}
    tokenizer = AutoTokenizer.from_pretrained(budget.backbone)
    collator = DataCollatorForTokenClassification(tokenizer)

    def read(row: Row) -> tuple[Row, list[int | None]]:
        cut = {"truncation": True, "max_length": budget.max_tokens}
        encoded = tokenizer(row["tokens"], is_split_into_words=True, **cut)
        words = encoded.word_ids()
        return dict(encoded), [w if w is not None and w != words[i - 1] else None for i, w in enumerate(words)]

    def labelled(row: Row) -> Row:
        encoded, words = read(row)
        return encoded | {"labels": [IGNORED if word is None else number[row[target][word]] for word in words]}

    features = [labelled(row) for row in rows["train"]]
    tuned = train(AutoModelForTokenClassification, features, collator, budget, num_labels=len(names))
    asked = [read(row) for row in rows["test"]]
    blank = [encoded | {"labels": [IGNORED] * len(words)} for encoded, words in asked]
    answers = []
    for (logits,), (_, words), row in zip(predict(tuned, blank, collator), asked, rows["test"], strict=True):
        mine = ["O"] * len(row["tokens"])
        for position, word in enumerate(words):
            if word is not None:
                mine[word] = names[int(logits[position].argmax())]
        answers.append(mine)
    return answers, tuned.seconds


def labels(
    rows: dict[str, list[Row]], texts: Sequence[str], target: str, budget: Budget, *, number: bool = False
) -> tuple[list[Any], float]:
    """run_glue.py: one or two texts as one sequence; a label, or a number (mean squared error)."""
    names = [] if number else sorted({row[target] for row in rows["train"]})
    tokenizer = AutoTokenizer.from_pretrained(budget.backbone)
    collator = DataCollatorWithPadding(tokenizer)

    def read(row: Row) -> Row:
        return dict(tokenizer(*(row[text] for text in texts), truncation=True, max_length=budget.max_tokens))

    def label(row: Row) -> float | int:
        return float(row[target]) if number else names.index(row[target])

    features = [read(row) | {"label": label(row)} for row in rows["train"]]
    tuned = train(AutoModelForSequenceClassification, features, collator, budget, num_labels=len(names) or 1)
    logits = [part for (part,) in predict(tuned, [read(row) for row in rows["test"]], collator)]
    return [float(part[0]) if number else names[int(part.argmax())] for part in logits], tuned.seconds


def choices(rows: dict[str, list[Row]], columns: Sequence[str], budget: Budget) -> tuple[list[str], float]:
    """run_swag.py: context and question against each choice. The answers are letters."""
    letters = "ABCDEFGH"[: len(columns)]
    tokenizer = AutoTokenizer.from_pretrained(budget.backbone)
    collator = DataCollatorForMultipleChoice(tokenizer=tokenizer, return_tensors="pt")

    def read(row: Row) -> Row:
        first = [f"{row['context']} {row['question']}"] * len(columns)
        second = [row[column] for column in columns]
        encoded = tokenizer(first, second, truncation=True, max_length=budget.max_tokens)
        return dict(encoded) | {"labels": letters.index(row["correct"])}

    features = [read(row) for row in rows["train"]]
    tuned = train(AutoModelForMultipleChoice, features, collator, budget)
    asked = [read(row) for row in rows["test"]]
    return [letters[int(part.argmax())] for (part,) in predict(tuned, asked, collator, 8)], tuned.seconds


def answers(rows: dict[str, list[Row]], budget: Budget) -> tuple[list[str], float]:
    """run_qa.py with version_2_with_negative: windows over the context, no answer where the first token wins."""
    tokenizer = AutoTokenizer.from_pretrained(budget.backbone)
    collator = DataCollatorWithPadding(tokenizer)

    def windows(row: Row) -> Any:
        return tokenizer(
            row["question"].strip(),
            row["context"],
            truncation="only_second",
            max_length=budget.max_tokens,
            stride=STRIDE if budget.max_tokens > 2 * STRIDE else budget.max_tokens // 4,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )

    features: list[Row] = []
    for row in rows["train"]:
        encoded = windows(row)
        for i, offsets in enumerate(encoded["offset_mapping"]):
            start, end = _labels(offsets, encoded.sequence_ids(i), row)
            features.append(_inputs(encoded, i) | {"start_positions": start, "end_positions": end})
    tuned = train(AutoModelForQuestionAnswering, features, collator, budget)
    asked = [(number, windows(row)) for number, row in enumerate(rows["test"])]
    flat = [(number, encoded, i) for number, encoded in asked for i in range(len(encoded["input_ids"]))]
    scores = predict(tuned, [_inputs(encoded, i) for _, encoded, i in flat], collator)
    best: dict[int, tuple[float, str]] = {}
    null: dict[int, float] = {}
    for (number, encoded, i), (start, end) in zip(flat, scores, strict=True):
        null[number] = min(null.get(number, np.inf), float(start[0] + end[0]))
        found = _best(start, end, encoded["offset_mapping"][i], encoded.sequence_ids(i))
        if found and found[0] > best.get(number, (-np.inf, ""))[0]:
            begin, stop = found[1]
            best[number] = (found[0], rows["test"][number]["context"][begin:stop])
    threshold = 0.0  # null_score_diff_threshold's default
    said = [best.get(n, (-np.inf, "")) for n in range(len(asked))]
    return ["" if null[n] - score > threshold else text for n, (score, text) in enumerate(said)], tuned.seconds


def _inputs(encoded: Any, i: int) -> Row:
    return {key: encoded[key][i] for key in ("input_ids", "attention_mask", "token_type_ids") if key in encoded}


def _labels(offsets: list[tuple[int, int]], sequence: list[int | None], row: Row) -> tuple[int, int]:
    """Return the answer's first and last token in a window, or twice the first token's index, 0."""
    start, end = row["start"], row["start"] + len(row["answer"])
    inside = [i for i, part in enumerate(sequence) if part == 1]
    if not row["answer"] or not inside or offsets[inside[0]][0] > start or offsets[inside[-1]][1] < end:
        return 0, 0
    first = max(i for i in inside if offsets[i][0] <= start)
    last = min(i for i in inside if offsets[i][1] >= end)
    return first, last


def _best(
    start: np.ndarray, end: np.ndarray, offsets: list[tuple[int, int]], sequence: list[int | None]
) -> tuple[float, tuple[int, int]] | None:
    """Return the window's best span of context tokens among the 20 best starts and ends: score, characters."""
    found = None
    for first in np.argsort(-start)[:20]:
        for last in np.argsort(-end)[:20]:
            real = max(first, last) < len(sequence) and sequence[first] == 1 and sequence[last] == 1
            if not real or last < first or last - first >= LONGEST_ANSWER:
                continue
            score = float(start[first] + end[last])
            if found is None or score > found[0]:
                found = score, (offsets[first][0], offsets[last][1])
    return found
