"""Makes tests/golden/VERSION: a small saved model of this version, rows, and what it predicts for them.

Run it once a released version, never to make a failing test pass: folders of older versions stay as they are.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import fusetune
from fusetune.testing.tiny_models import make

HOME = Path(__file__).parent


def main() -> None:
    """Tune on generated rows; keep what a reader needs."""
    folder = HOME / fusetune.__version__
    if folder.exists():
        sys.exit(f"{folder} is there already")
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
    found = tuned.predict(folder / "t.jsonl").table.to_pylist()
    (folder / "predictions.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
