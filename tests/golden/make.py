"""Makes tests/golden/VERSION: small saved models of this version, rows, and what they predict for them.

VERSION itself has a model of text, pictures, a number and a category; VERSION/adapter one whose encoder has an adapter
beside the backbone that it needs; VERSION/stack one with boosted trees. Run it once a released version, never to make a
failing test pass: what is there stays as it is.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import fusetune
from fusetune.testing.tiny_models import make

HOME = Path(__file__).parent


def main() -> None:
    """Make those that are not there."""
    folder = HOME / fusetune.__version__
    parts = {folder: whole, folder / "adapter": adapter, folder / "stack": stack}
    missing = {place: make_one for place, make_one in parts.items() if not (place / "predictions.json").exists()}
    if not missing:
        sys.exit(f"{folder} is there already")
    for place, make_one in missing.items():
        place.mkdir(parents=True, exist_ok=True)
        make_one(place)


def whole(folder: Path) -> None:
    """Every kind of column but sound, two tasks."""
    work = Path(tempfile.mkdtemp())
    rng = np.random.default_rng(0)
    rows = []
    for place in range(60):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(work / f"p{place}.png")
        rows.append(
            {
                "note": " ".join(f"w{n}" for n in rng.integers(0, 40, int(rng.integers(1, 9)))),
                "photo": f"p{place}.png" if place % 7 else None,
                "price": round(float(rng.normal(20, 5)), 2) if place % 5 else None,
                "plan": str(rng.choice(["basic", "pro", "team"])),
                "label": str(rng.choice(["yes", "no"])),
                "stars": float(rng.normal()),
            }
        )
    (work / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "text": str(make("bert", work / "bert")),
        "image": str(make("resnet", work / "resnet")),
        "columns": {"plan": "category"},
        "fusion": {"name": "attention", "dim": 8},
        "trainer": {"epochs": 1, "head_epochs": 2, "trackers": []},
        "report": {"bootstrap": 0, "alone": "none"},
    }
    tuned = fusetune.fit(work / "t.jsonl", target=["label", "stars"], out=work / "m", config=settings, progress=False)
    shutil.copytree(work / "m", folder / "model", ignore=shutil.ignore_patterns("report*", "logs", "plots"))
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:12]))
    for place in range(12):
        shutil.copy(work / f"p{place}.png", folder)
    keep_predictions(tuned, folder)


def adapter(folder: Path) -> None:
    """A model folder that needs the backbone beside it, named by its path from here."""
    os.chdir(folder)
    make("bert", Path("bert"))
    rows = [{"note": f"w{n % 7} w{n % 11} w{n % 5}", "label": ("no", "yes")[n % 7 > 3]} for n in range(60)]
    settings = {
        "text": {"name": "bert", "adapter": {"name": "lora", "rank": 2}},
        "fusion": {"name": "attention", "dim": 8},
        "trainer": {"epochs": 1, "head_epochs": 2, "trackers": [], "batch_size": 8},
    }
    small(folder, rows, settings, "label")


def stack(folder: Path) -> None:
    """Trees beside a network, on numbers and a category."""
    rng = np.random.default_rng(0)
    rows = []
    for n, (a, b) in enumerate(rng.uniform(0, 4, (600, 2)).tolist()):
        level = ([0, 4, 2, 5] if b < 2 else [5, 1, 3, 0])[int(a)] + n % 3
        rows.append({"a": a, "b": b, "plan": "xyz"[n % 3], "y": level + 0.1 * float(rng.normal())})
    settings = {
        "columns": {"plan": "category"},
        "fusion": {"name": "stack", "base": {"name": "concat", "dim": 8}, "rounds": 60, "leaves": 8},
        "trainer": {"epochs": 0, "head_epochs": 1, "trackers": []},
    }
    small(folder, rows, settings, "y")


def small(folder: Path, rows: list[dict[str, Any]], settings: dict[str, Any], target: str) -> None:
    """Tune on these rows; keep the first twelve."""
    work = Path(tempfile.mkdtemp())
    (work / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings |= {"report": {"bootstrap": 0, "alone": "none"}}
    tuned = fusetune.fit(work / "t.jsonl", target=target, out=work / "m", config=settings, progress=False)
    shutil.copytree(work / "m", folder / "model", ignore=shutil.ignore_patterns("report*", "logs", "plots"))
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:12]))
    keep_predictions(tuned, folder)


def keep_predictions(tuned: fusetune.FineTuned, folder: Path) -> None:
    """What the model says of the rows that are kept."""
    found = tuned.predict(folder / "t.jsonl").table.to_pylist()
    (folder / "predictions.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
