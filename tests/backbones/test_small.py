"""The small encoders learn from scratch what they are there for: small pictures and short sounds."""

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn

from fusetune.backbones.load import Backbone, load_backbone


def picture(generator: np.random.Generator, label: int) -> Image.Image:
    """A grey noise picture with a square whose place (left or right) and colour (red or green) make four classes."""
    noise = generator.integers(90, 160, (60, 90, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    left, top = (5 if label % 2 else 50) + int(generator.integers(0, 18)), int(generator.integers(4, 38))
    colour = (200, 60, 60) if label // 2 else (60, 200, 60)
    ImageDraw.Draw(image).rectangle((left, top, left + 14, top + 14), fill=colour)
    return image


def sound(generator: np.random.Generator, label: int) -> np.ndarray:
    """One second and a bit of noise with a short tone, one of four pitches, somewhere in it."""
    samples = int(generator.integers(14_000, 22_000))
    wave = generator.normal(0, 0.02, samples)
    start = int(generator.integers(0, samples - 6000))
    pitch = (300, 600, 1200, 2400)[label] * generator.uniform(0.95, 1.05)
    wave[start : start + 5000] += 0.2 * np.sin(2 * np.pi * pitch * np.arange(5000) / 16_000)
    return wave.astype(np.float32)


def accuracy(backbone: Backbone, cells: list[np.ndarray], labels: torch.Tensor, steps: int, size: int) -> float:
    """On the last quarter of the cells, after training on the others."""
    collate = backbone.collate_images if backbone.kind == "image" else backbone.collate_audio
    num_train = len(cells) * 3 // 4
    head = nn.Linear(backbone.dim, 4)
    optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=2e-3)
    backbone.train()
    order = np.random.default_rng(0)
    for _ in range(steps):
        chosen = order.choice(num_train, size, replace=False)
        logits = head(backbone(**collate([cells[i] for i in chosen])).values[:, 0])
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, labels[chosen]).backward()
        optimizer.step()
    backbone.eval()
    with torch.no_grad():
        logits = head(backbone(**collate(cells[num_train:])).values[:, 0])
    return float((logits.argmax(1) == labels[num_train:]).float().mean())


def test_pictures() -> None:
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    backbone = load_backbone(None, "image")
    labels = torch.from_numpy(generator.integers(0, 4, 320))
    cells = [backbone.prepare_image(picture(generator, int(label))) for label in labels]
    assert accuracy(backbone, cells, labels, steps=50, size=32) >= 0.9
    assert not backbone.pretrained and backbone.key == "image_small"


def test_sounds() -> None:
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    backbone = load_backbone(None, "audio")
    labels = torch.from_numpy(generator.integers(0, 4, 240))
    cells = [backbone.prepare_audio(sound(generator, int(label)), 16_000) for label in labels]
    assert accuracy(backbone, cells, labels, steps=70, size=16) >= 0.9
    assert not backbone.pretrained and backbone.key == "audio_small"
