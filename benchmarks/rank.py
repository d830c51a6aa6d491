"""Does the ranking of frozen features foresee what tuning gives? Candidates of every quality, ranked and then tuned.

    python benchmarks/rank.py trec sst2 --models ../shared/models/e5-small     # folders of further text models
    python benchmarks/rank.py emoji --models ../shared/models/dinov2-small

The text candidates are MiniLM, its first 3 layers, its first layer, MiniLM with random weights, and `--models`; the
picture candidates are MobileNetV2, the same with random weights, and `--models`. Each is ranked on the train rows, and
tuned on the same rows with the defaults; the score is that on the test rows. The last lines are Spearman's rank
correlations of each figure with that score.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from runs import DATA
from scipy.stats import spearmanr
from transformers import AutoConfig, AutoModel

import fusetune as ft
from fusetune.backbones.hub.source import resolve

SETS = {
    "trec": ("text_trec_qc", "text", "coarse", ["columns.fine.role=ignore"]),
    "sst2": ("text_sst2", "text", "label", []),
    "emoji": ("noto_emoji", "image", "category", []),
}
SETTINGS = ["trainer.trackers=[]", "report.alone=none", "report.bootstrap=0", "report.errors=0", "trainer.epochs=2"]


def candidates(kind: str, further: list[str], home: Path) -> list[str]:
    """Write the models that are made from others, and return the folders of all."""
    source = str(resolve("minilm").folder if kind == "text" else DATA.parent / "models" / "mobilenet-v2")
    names = [source, *further]
    for layers in (3, 1) if kind == "text" else ():
        model = AutoModel.from_pretrained(source, num_hidden_layers=layers)
        names.append(_written(model, source, home / f"first-{layers}"))
    return [*names, _written(AutoModel.from_config(AutoConfig.from_pretrained(source)), source, home / "random")]


def _written(model, source: str, folder: Path) -> str:
    model.save_pretrained(folder)
    for path in Path(source).iterdir():
        if path.is_file() and not (folder / path.name).exists() and path.suffix in (".json", ".txt"):
            (folder / path.name).write_bytes(path.read_bytes())
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", default=list(SETS), help=", ".join(SETS))
    parser.add_argument("--models", nargs="*", default=[], help="folders of further models")
    parser.add_argument("--rows", type=int, default=400, help="train rows")
    parser.add_argument("--tests", type=int, default=1000, help="test rows, at most")
    asked = parser.parse_args()
    for name in asked.sets:
        folder, kind, target, settings = SETS[name]
        data = DATA / folder
        rows, test = (pd.read_csv(data / f"{part}.csv").sample(frac=1, random_state=0) for part in ("train", "test"))
        train, val = rows[: asked.rows], rows[asked.rows : asked.rows + 200]
        test = test[: asked.tests]
        keep = [column for column in train if column in (kind, target)]
        with tempfile.TemporaryDirectory() as scratch:
            home = Path(scratch)
            paths = {}
            for part, frame in (("train", train), ("val", val), ("test", test)):
                frame = frame[keep]
                if kind == "image":
                    frame = frame.assign(image=[str(data / path) for path in frame["image"]])
                paths[part] = home / f"{part}.csv"
                frame.to_csv(paths[part], index=False)
            settings = [part for part in settings if part.split(".")[1] in keep]
            backbones = candidates(kind, [str(Path(model).absolute()) for model in asked.models], home)
            ranking = ft.rank(
                paths["train"], target, backbones=backbones, overrides=["data.split=[0.9,0.05,0.05]", *settings]
            )
            figures = {}
            for found in ranking.kinds[0].backbones:
                tuned = ft.fit(
                    paths["train"],
                    target,
                    val=paths["val"],
                    test=paths["test"],
                    out=home / "run",
                    overwrite=True,
                    overrides=[*SETTINGS, *settings, f"{kind}={found.name}"],
                    progress=False,
                )
                answers = np.asarray(tuned.predict(pd.read_csv(paths["test"])[[kind]])[target])
                score = float(np.mean(answers.astype(str) == test[target].astype(str).to_numpy()))
                figures[found.name] = {
                    "probe": found.probe.value, "LogME": found.log_me, "H-score": found.h_score, "tuned": score,
                }  # fmt: skip
                shown = "  ".join(f"{key} {value:.3f}" for key, value in figures[found.name].items())
                print(f"{name}  {Path(found.name).name:<20} {shown}", flush=True)
            table = pd.DataFrame(figures).T
            for figure in ("probe", "LogME", "H-score"):
                print(
                    f"{name}  {figure} and tuned: {spearmanr(table[figure], table['tuned']).statistic:+.2f}", flush=True
                )


if __name__ == "__main__":
    main()
