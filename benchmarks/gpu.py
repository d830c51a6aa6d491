"""What a fit costs on a GPU: ratios as benchmarks/speed.py has them, and the share of the chip's peak arithmetic.

python benchmarks/gpu.py --out runs/gpu                  # everything, a table and gpu.json
python benchmarks/gpu.py --only large --minutes 3        # what has "large" in its name, begun within 3 minutes
python benchmarks/gpu.py --tiny                          # the same code on any machine; figures mean nothing

bare     full tuning, rows a second, against forward, backward and optimiser step alone on ready, sorted tensors
trainer  full tuning against transformers.Trainer with its padding collator: model, batch, epochs and precision alike
cache    ten epochs on a frozen backbone against the same without keeping its features
predict  predictions of a saved model against the encoder in batches of 32 rows in the file's order, float32

All in bf16 but predictions. Encoders have the sizes of MiniLM (6 layers of 384), BERT-base (12 of 768) and BERT-large
(24 of 1024) and random weights, as time does not hang on them; texts are those of sst2, or several of them joined
(`long`). The share of the peak is the operations of the bare loop's passes, counted by torch.utils.flop_counter, by
the seconds of the whole training and the chip's `--peak`.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import speed
import torch
from speed import DEVICE, HERE, Case, rounds
from torch.utils.flop_counter import FlopCounterMode

from fusetune.backbones.passes.compiled import compiling
from fusetune.config.config import Config

PEAK = 989.0
"""Dense bf16 TFLOP/s of an H100 or H200 by their data sheet."""
SIZES = {"minilm": (6, 384, 12), "base": (12, 768, 12), "large": (24, 1024, 16), "tiny": (2, 16, 2)}
"""Layers, features, heads."""
JOINED = 10
"""Sentences of sst2 that make a long text: some 230 tokens."""


@dataclass(frozen=True)
class Plan:
    """One measurement.

    Attributes:
        what: bare, trainer, cache or predict.
        data: sst2, long or movies_rating.
        encoder: a key of `SIZES`.
        rows: of the table.
        batch: rows an update.
        compile: whether layers are compiled.
        graphs: whether small passes are replayed from CUDA graphs.
    """

    what: str
    data: str
    encoder: str
    rows: int
    batch: int = 32
    compile: bool = False
    graphs: bool = True

    @property
    def name(self) -> str:
        """As shown."""
        how = f"{' compiled' if self.compile else ''}{'' if self.graphs else ' launched'}"
        return f"{self.what} {self.data} {self.encoder} batch {self.batch}{how}"


PLANS = [
    Plan("trainer", "sst2", "minilm", 2000, 32),
    Plan("bare", "sst2", "minilm", 2000, 32),
    Plan("bare", "long", "large", 512, 64),
    Plan("predict", "sst2", "base", 4000),
    Plan("cache", "sst2", "base", 1500, 32),
    Plan("trainer", "sst2", "minilm", 6920, 256),
    Plan("bare", "movies_rating", "minilm", 600, 32),
    Plan("bare", "long", "large", 512, 64, compile=True),
    Plan("trainer", "long", "large", 512, 64),
    Plan("predict", "sst2", "minilm", 4000),
    Plan("cache", "sst2", "minilm", 1500, 32),
    Plan("bare", "sst2", "minilm", 6920, 256),
    Plan("bare", "long", "base", 2048, 128),
    Plan("trainer", "sst2", "minilm", 2000, 32, graphs=False),
    Plan("bare", "sst2", "minilm", 2000, 32, compile=True),
    Plan("bare", "long", "base", 2048, 128, compile=True),
]


class Place:
    """Makes encoders and tables in a folder.

    Args:
        folder: for them.
        tokenizer: a folder with the files of MiniLM's tokenizer.
    """

    def __init__(self, folder: Path, tokenizer: Path) -> None:
        self.folder, self.tokenizer = folder, tokenizer

    def encoder(self, name: str) -> Path:
        """The folder of an encoder with random weights."""
        from transformers import AutoTokenizer, BertConfig, BertModel

        folder = self.folder / name
        if not folder.is_dir():
            layers, width, heads = SIZES[name]
            tokenizer = AutoTokenizer.from_pretrained(str(self.tokenizer))
            torch.manual_seed(0)
            config = BertConfig(
                vocab_size=len(tokenizer),
                num_hidden_layers=layers,
                hidden_size=width,
                num_attention_heads=heads,
                intermediate_size=4 * width,
            )
            BertModel(config, add_pooling_layer=False).save_pretrained(str(folder))
            tokenizer.save_pretrained(str(folder))
        return folder

    def long(self) -> Path:
        """A table of long texts."""
        path = self.folder / "long.csv"
        if not path.is_file():
            with open(Config.from_yaml(HERE / "quality" / "sst2.yaml").train[0], encoding="utf-8") as source:
                rows = list(csv.reader(source))
            header, rows = rows[0], rows[1:]
            text = 1 - header.index("label")
            with path.open("w", encoding="utf-8", newline="") as file:
                out = csv.writer(file)
                out.writerow(["text", "label"])
                for start in range(len(rows)):
                    some = [rows[(start + 7 * step) % len(rows)] for step in range(JOINED)]
                    out.writerow([" ".join(row[text] for row in some), some[0][1 - text]])
        return path

    def settings(self, plan: Plan) -> tuple[str, list[str]]:
        """The data's file of settings, and what is set besides."""
        low = "no" if plan.what == "predict" else "bf16"
        said = [
            f"text.name={self.encoder(plan.encoder)}",
            f"trainer.batch_size={plan.batch}",
            f"trainer.precision={low}",
        ]
        said += [
            f"trainer.cuda_graphs={str(plan.graphs).lower()}",
            "text.max_tokens=256",
            "text.pool=mean",
            f"trainer.compile={str(plan.compile).lower()}",
        ]
        if plan.data == "long":
            return "sst2", [*said, f"train={self.long()}"]
        return plan.data, [*said, *(["image.freeze=none"] if plan.data == "movies_rating" else [])]


def full(data: str, rows: int, number: int, *overrides: str) -> dict[str, float]:
    """Full tuning against the bare loop, with what the chip did in it."""
    case = Case.of(data, rows, *overrides)
    train, stage = case.stage()
    bare = case.bare(stage)
    encoders = {key: part for key, part in case.model.encoders.items() if getattr(part, "kind", "") == "text"}
    epochs, stage.epochs = stage.epochs, 1
    bare()  # so that what is made once is there
    with FlopCounterMode(display=False) as counter:
        bare()
    stage.epochs = epochs
    seconds, waited = stage.seconds, stage.waited
    peaks: list[float] = []

    def ours() -> None:
        nonlocal seconds, waited
        if DEVICE.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        stage.seconds = stage.waited = 0.0
        train()
        seconds, waited = stage.seconds, stage.waited
        if DEVICE.type == "cuda":
            peaks.append(torch.cuda.max_memory_allocated() / 2**30)

    with compiling(encoders) if case.config.trainer.compile else nullcontext():
        start = time.perf_counter()
        ours()
        first = time.perf_counter() - start
        found = rounds(number, ours, bare)
    done, tflop = len(case.train.used) * epochs, counter.get_total_flops() * epochs / 1e12
    return found | {
        "first_s": first,
        "captured": {one.name: len(one) for one in getattr(stage.gradients, "all", list)()},
        "not_captured": [one.failed for one in getattr(stage.gradients, "all", list)() if one.failed],
        "rows_s": done / found["ours_s"],
        "other_rows_s": done / found["other_s"],
        "waited": waited / seconds,
        "gib": max(peaks, default=float("nan")),
        "tflop": tflop,
        "tflops": tflop / found["ours_s"],
        "other_tflops": tflop / found["other_s"],
    }


def product(side: int) -> float:
    """TFLOP/s of a bf16 product of square matrices of random numbers: what the chip reaches at best."""
    one, two = (torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16) for _ in "ab")
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        one @ two
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / statistics.median(seconds[1:]) / 1e12


WORK: dict[str, Callable[..., dict[str, float]]] = {
    "bare": full,
    "trainer": speed.trainer,
    "cache": speed.cache,
    "predict": speed.predict,
}


def measure(plans: list[Plan], place: Place, number: int, until: float, keep: Callable[[list[Any]], None]) -> list[Any]:
    """Every plan in turn while there is time; one that fails is written down as it failed."""
    found: list[Any] = []
    for plan in plans:
        if time.perf_counter() > until:
            print(f"no time left for: {plan.name}", file=sys.stderr)
            continue
        try:
            data, overrides = place.settings(plan)
            one = WORK[plan.what](data, plan.rows, number, *overrides)
        except Exception as error:
            traceback.print_exc()
            one = {"failed": f"{type(error).__name__}: {error}"[:500]}
        found.append({"name": plan.name, "what": plan.what, "rows": plan.rows, **one})
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
        keep(found)
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()
    return found


def table(found: list[Any], peak: float) -> str:
    """Markdown of what was measured."""
    lines = [
        "| what | rows | ratio | range | ours, s | other, s | rows/s | waiting | GPU, GiB | TFLOP/s | of the peak |",
        "| --- " * 11 + "|",
    ]
    for one in found:
        if "failed" in one:
            lines.append(f"| {one['name']} | {one['rows']:,} | failed: {one['failed'].splitlines()[0]} |")
            continue
        start = f"| {one['name']} | {one['rows']:,} | **{one['ratio']:.2f}** | {one['low']:.2f} to {one['high']:.2f} "
        start += f"| {one['ours_s']:.2f} | {one['other_s']:.2f} |"
        if "tflops" in one:
            start += f" {one['rows_s']:,.0f} | {one['waited']:.1%} | {one['gib']:.1f} | {one['tflops']:.1f} "
            start += f"| {one['tflops'] / peak:.1%} (bare {one['other_tflops'] / peak:.1%}) |"
        else:
            start += " |" * 5
        lines.append(start)
    return "\n".join(lines)


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the figures here, as gpu.json, after every measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no measurement after so many")
    parser.add_argument("--only", nargs="+", default=[""], help="those with one of these in their name")
    parser.add_argument("--tokenizer", type=Path, help="a folder with MiniLM's tokenizer; default: the embedded one's")
    parser.add_argument("--peak", type=float, default=PEAK, help="the chip's TFLOP/s")
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args()
    until = time.perf_counter() + 60 * asked.minutes
    plans = [plan for plan in PLANS if any(part in plan.name for part in asked.only)]
    if asked.tiny:
        plans = [replace(plan, encoder="tiny", rows=24, batch=8) for plan in plans]
        plans = list(dict.fromkeys(plans))
    if asked.tokenizer is None:
        from fusetune.backbones.hub import embedded

        asked.tokenizer = embedded.folder()
    chip = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "a processor"
    facts = {
        "chip": chip,
        "torch": torch.__version__,
        "peak": asked.peak,
        "product": product(64 if asked.tiny else 8192),
    }
    print(json.dumps(facts), file=sys.stderr, flush=True)

    def keep(found: list[Any]) -> None:
        if asked.out:
            asked.out.mkdir(parents=True, exist_ok=True)
            (asked.out / "gpu.json").write_text(json.dumps({**facts, "found": found}, indent=1))

    with tempfile.TemporaryDirectory() as folder:
        found = measure(plans, Place(Path(folder), asked.tokenizer), asked.rounds, until, keep)
    print(f"{chip}, torch {torch.__version__}; a product of large matrices: {facts['product']:.0f} TFLOP/s\n")
    print(table(found, asked.peak))
    sys.exit(any("failed" in one for one in found))


if __name__ == "__main__":
    main()
