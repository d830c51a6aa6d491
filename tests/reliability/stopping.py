"""Fits of every sort, small ones, that are stopped and gone on with: their settings, and what they come to."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "augmented": {
        "augment": {
            "text": {"word_dropout": 0.2},
            "image": {"flip": True, "crop": 0.8},
            "audio": {"noise": 0.3},
            "number": {"noise": 0.1},
        },
        "trainer": {"ema": 0.9, "soup": 3, "interpolate": True, "accumulate": 2},
    },
    "workers": {"augment": {"text": {"word_dropout": 0.2}}, "trainer": {"workers": 2}},
    "no head stage": {"trainer": {"head_epochs": 0, "optimizer": "lion"}},
    "attacked": {"trainer": {"adversarial": {"name": "freelb", "steps": 2}}},
    "sam, vat, mixup": {"objectives": {"vat": {}, "mixup": {}}, "trainer": {"sam": 0.05}},
    "lora, rdrop": {"text": {"adapter": "lora"}, "objectives": {"rdrop": {}}, "trainer": {"optimizer": "adafactor"}},
    "partly frozen": {
        "text": {"freeze": "bottom:1"},
        "image": {"freeze": "all"},
        "audio": {"freeze": "only:norm"},
        "data": {"cache": "CACHE"},
    },
    "contrastive": {"objectives": {"contrastive": {"weight": 0.2}, "unimodal": {}}, "fusion": {"name": "bottleneck"}},
    "famo": {"target": ["label", "plan"], "trainer": {"balance": "famo"}},
    "dwa": {"target": ["label", "plan"], "trainer": {"balance": "dwa", "epochs": 3}, "report": {"single": True}},
    "uncertainty": {"target": ["label", "plan"], "trainer": {"balance": "uncertainty"}},
    "no target": {"target": [], "objectives": {"contrastive": {}}},
    "fusion of their choice": {"fusion": {"name": "auto", "dim": 16, "candidates": ["gated", "concat"]}},
    "trees": {"fusion": {"name": "stack", "base": {"name": "attention", "dim": 16}, "rounds": 5}},
    "each alone": {"report": {"alone": "tuned"}},
}
"""What differs from the fixture `base`, section by section."""


def settings(base: dict[str, Any], case: str, tmp_path: Path) -> dict[str, Any]:
    """A case's settings; the cache of those that have one is their own."""
    found = {key: dict(value) if isinstance(value, dict) else value for key, value in base.items()}
    for key, value in CASES[case].items():
        found[key] = {**found.get(key, {}), **value} if isinstance(value, dict) else value
    if found["fusion"]["name"] in ("stack", "auto"):
        found["fusion"] = CASES[case]["fusion"]
    if found["data"]["cache"] == "CACHE":
        found["data"]["cache"] = str(tmp_path / "cache")
    return found


def weights(folder: Path) -> dict[str, str]:
    """SHA-256 of all that was learned."""
    files = [*folder.glob("*.safetensors"), *folder.glob("stack/*")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
