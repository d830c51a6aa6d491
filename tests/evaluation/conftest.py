"""Runs of every kind of task, made of random scores of known quality."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusetune.evaluation.measure.judge import Candidate, EvaluatedRows, judge
from fusetune.evaluation.report.cells import show_cell
from fusetune.evaluation.results import (
    BackboneUsed,
    ColumnUsed,
    CurvePoint,
    LearningCurve,
    Phase,
    RejectedRow,
    RunResults,
    Shown,
    TableUsed,
    TaskResult,
)
from fusetune.registry import TASKS

HOSTILE = '<script>alert("x")</script>'
SYSTEMS = (
    ("majority", "baseline", 0.0),
    ("frozen probe", "before", 1.0),
    ("message", "alone", 1.2),
    ("photo", "alone", 0.6),
    ("voice", "alone", 0.01),
    ("tuned", "after", 2.2),
)


def png(seed: int) -> bytes:
    """A small picture of soft blobs."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((240, 180), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def wav(seed: int) -> bytes:
    """A second of a decaying tone."""
    import soundfile

    time = np.arange(16000) / 16000
    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(2 * math.pi * (200 + 40 * seed) * time) * np.exp(-3 * time), 16000, format="WAV")
    return buffer.getvalue()


def cells(at: int) -> list[Shown]:
    """A hostile text, a picture, a sound, a number and a missing cell."""
    here = Path()
    return [
        show_cell("message", "text", f"{HOSTILE} Row {at}: my order never came & I am upset. مرحبا 😀", base_dir=here),
        show_cell("photo", "image", png(at), base_dir=here),
        show_cell("voice", "audio", wav(at % 7), base_dir=here),
        show_cell("price", "number", 12.5 + at, base_dir=here),
        show_cell("country", "category", None, base_dir=here),
    ]


def class_scores(truth: np.ndarray, num: int, skill: float, rng: np.random.Generator) -> np.ndarray:
    """Probabilities that favour the truth by `skill` logits among noise of 1."""
    logits = rng.normal(size=(len(truth), num)) + skill * np.eye(num)[truth] * math.sqrt(math.log(num + 1))
    powers = np.exp(1.5 * logits)
    return powers / powers.sum(1, keepdims=True)


def make_task(kind: str, rows: int = 400, *, classes: int = 10, skill: float = 2.2, seed: int = 0) -> TaskResult:
    """A judged task of this kind; the tuned model's skill is `skill`, the frozen probe's is 1."""
    rng = np.random.default_rng(seed)
    task = TASKS.get(kind)("target" if kind != "multilabel" else "genres")
    names = [f"class {index:03d}" for index in range(classes)]
    if kind == "binary":
        names = ["no", HOSTILE]
    if kind == "ordinal":
        names = [str(index + 1) for index in range(classes)]
    candidates = []
    if kind == "regression":
        values: list[object] = list(np.round(rng.gamma(3, 20, rows + 50), 2))
        task.fit(values)
        truth = task.truth(values[:rows])
    elif kind == "multilabel":
        picked = rng.random((rows + 50, classes)) < np.linspace(0.05, 0.4, classes)
        picked[: 2 * classes] |= np.tile(np.eye(classes, dtype=bool), (2, 1))
        values = ["|".join(name for name, has in zip(names, row, strict=True) if has) or names[0] for row in picked]
        task.fit(values)
        truth = task.truth(values[:rows])
    else:
        drawn = rng.choice(len(names), rows + 50, p=(share := np.linspace(1, 3, len(names))) / share.sum())
        drawn[: len(names)] = np.arange(len(names))
        values = [names[index] for index in drawn]
        task.fit(values)
        truth = task.truth(values[:rows])
    for name, system, level in SYSTEMS:
        level = skill if system == "after" else level
        if system == "baseline":
            scores = task.constant(task.truth(values), rows)
        elif kind == "regression":
            scores = truth + rng.normal(size=rows) * 60 / (1 + level)
        elif kind == "multilabel":
            scores = 1 / (1 + np.exp(-(2 * level * (truth - 0.5) + rng.normal(size=truth.shape) - 1)))
        else:
            scores = class_scores(truth, len(task.labels), level, rng)
        columns = [name] if system == "alone" else []
        candidates.append(Candidate(name, system, f"{name}: what it is", scores, columns))
    validation = None
    if kind not in ("regression", "multilabel"):
        validation = (class_scores(truth[:50], len(task.labels), skill, rng), truth[:50])
    slices = {"country": list(rng.choice(["NL", "DE", HOSTILE], rows)), "price": list(rng.gamma(2, 30, rows))}
    ids = np.arange(rows) + 1000
    evaluated = EvaluatedRows(truth, ids, slices=slices)
    found = judge(task, candidates, evaluated, validation=validation, show=cells, num=40, seed=seed)
    found.balance = task.target_panels({"train": task.truth(values), "test": truth})
    return found


def make_run(*tasks: TaskResult, title: str = "Tickets") -> RunResults:
    """A run with everything in it around these tasks."""
    points = [
        CurvePoint(step, step / 50, 2 * math.exp(-step / 80) + 0.1 * math.sin(step), math.nan, math.nan, 1e-3, stage)
        for step, stage in [(step, "heads" if step < 60 else "whole model") for step in range(5, 305, 5)]
    ]
    for point in points[9::10]:
        point.val_loss = 1.8 * math.exp(-point.step / 80) + 0.1 + point.step / 1500
        point.val_metric = 0.9 - 0.5 * math.exp(-point.step / 70)
    return RunResults(
        title=title,
        version="0.1.0",
        time="2026-01-02T03:04:05+00:00",
        command="fusetune fit train.csv --target target",
        seed=0,
        device="cpu",
        threads=2,
        tasks=list(tasks),
        settings={"fusion": "attention", "trainer.epochs": "5", "columns.message.text": HOSTILE},
        versions={"torch": "2.13.0", "transformers": "5.23"},
        tables=[TableUsed("train", "train.csv", 2010, 2000, 10, 3), TableUsed("test", "test.csv", 400, 400, 0)],
        columns=[
            ColumnUsed("message", "text", "input", "free text of 3 to 90 words", {"train": 0, "test": 0}),
            ColumnUsed("photo", "image", "input", "all 200 sampled cells end in .jpg", {"train": 31, "test": 4}),
            ColumnUsed(HOSTILE, "category", "ignore", "constant", {"train": 0, "test": 0}),
        ],
        backbones=[
            BackboneUsed("text", ["message"], "all-MiniLM-L6-v2", 384, 22_713_216, 1_774_464, True, "bottom:5 frozen"),
            BackboneUsed("image", ["photo"], "small convolutional net", 128, 310_000, 310_000, False, "all trained"),
        ],
        parameters=25_000_000,
        trained=3_000_000,
        warnings=["2 rows have the same content in train and test."],
        num_rejected=10,
        rejected_by={"the file is not there": 7, "the JPEG is cut off after 512 bytes": 3},
        rejected=[RejectedRow(5, "photo", f"a{HOSTILE}.jpg", "the file is not there", "train.csv")],
        curve=LearningCurve(points, 250, "accuracy"),
        phases=[Phase("read", 1.2, 310.0), Phase("train", 83.5, 1220.4), Phase("evaluate", 7312.0)],
        peak_mb=1220.4,
    )


@pytest.fixture
def task() -> Callable[..., TaskResult]:
    """`make_task`."""
    return make_task


@pytest.fixture
def run() -> Callable[..., RunResults]:
    """`make_run`."""
    return make_run
