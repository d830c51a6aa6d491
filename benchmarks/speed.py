"""What a fit costs beside the arithmetic it cannot avoid: ratios, each side measured in turn in one process.

python benchmarks/speed.py                            # every ratio, sst2 and films, three rounds
python benchmarks/speed.py loop trainer --rows 1000 --rounds 5 --out runs/speed

loop     full tuning, rows a second, against forward, backward and optimiser step alone on ready tensors
trainer  full tuning against transformers.Trainer with its padding collator: model, batch and epochs alike
cache    ten epochs on a frozen backbone against the same without keeping its features
part     ten epochs with the first two thirds of the text backbone frozen, against the same without keeping activations
predict  predictions of a saved model against AutoModel in batches of 32 rows in the file's order
int8     the same with precision="int8", of a model tuned on 1,500 rows; with its metric on the validation rows in both
import   seconds of `import fusetune` and of `fusetune --help`

A ratio is the other's time by ours, the median of the rounds: 2 means twice as fast. Quiet machines alone give
ratios worth writing down.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fusetune as ft
from fusetune.config.config import Config
from fusetune.data.examples import Examples
from fusetune.data.sampler import UpdateSampler
from fusetune.data.schema import Schema
from fusetune.data.storage.feature_cache import FeatureCache
from fusetune.data.table import Table
from fusetune.inference.features import fill_features
from fusetune.models.build import Backbones, build_modalities, build_model, build_task
from fusetune.models.understand import Understand
from fusetune.objectives.total import Total
from fusetune.tasks.infer import infer_task
from fusetune.training.hardware.devices import make_accelerator
from fusetune.training.hardware.replay import Replayed
from fusetune.training.learner import Learner
from fusetune.training.loop import run_stage
from fusetune.training.recipe import BackboneRule, Recipe
from fusetune.training.trunk import attach_trunks

HERE = Path(__file__).parent
DATA = ["sst2", "movies_rating"]
BATCH = 32
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPOCHS = 4 if DEVICE.type == "cuda" else 1
"""Of full tuning in a round: on a GPU one takes little beside what a stage begins and ends with."""


@dataclass
class Case:
    """A model as built from a file of settings, and its train rows."""

    config: Config
    model: Understand
    tasks: dict[str, Any]
    train: Examples
    table: Table

    @classmethod
    def of(cls, data: str, rows: int, *overrides: str) -> Case:
        """The first `rows` train rows of a data set, without its images where the text alone is asked for."""
        config = Config.from_yaml(HERE / "quality" / f"{data}.yaml").with_overrides(
            ["trainer.precision=no", "trainer.epochs=1", f"trainer.batch_size={BATCH}", *overrides]
        )
        table = Table.read(config.train[0])
        table = table.select(np.arange(min(rows, len(table))))
        schema = Schema.detect(table, targets=config.target, overrides=config.schema_overrides())
        torch.manual_seed(0)
        columns = {name: (schema.columns[name].kind, schema.columns[name].options) for name in schema.names("input")}
        modalities = build_modalities(
            columns, Backbones({"text": config.text, "image": config.image, "audio": config.audio})
        )
        tasks = {name: build_task(name, infer_task(table.cells(name), name)[0], {}) for name in config.target}
        train = Examples(table, modalities, tasks)
        train.prepare(on_bad_cell="mask")
        train.fit()
        train.check_targets()
        return cls(config, build_model(modalities, tasks, config.fusion), tasks, train, table)

    def stage(self, epochs: float = EPOCHS) -> tuple[Callable[..., None], Any]:
        """What trains for so many epochs, and the recipe's stage."""
        rules = {
            key: BackboneRule(getattr(self.config, kind).freeze)
            for key, kind in ((key, getattr(encoder, "kind", None)) for key, encoder in self.model.encoders.items())
            if kind
        }
        self.model.to(DEVICE)
        recipe = Recipe(self.model, [], self.config.trainer, rules, 0, starts_linear=False)
        learner = Learner(self.model, Total(self.tasks, [], None))
        stage = recipe.tune_stage()
        stage.epochs, stage.evals_per_epoch, stage.patience = epochs, 1, None
        if DEVICE.type == "cuda" and self.config.trainer.cuda_graphs:
            stage.gradients = Replayed(stage.gradients, self.model, recipe.moving())

        def train(rows: Examples = self.train) -> None:
            accelerator = make_accelerator(self.config.trainer, None, self.config.trainer.precision)
            run_stage(learner.to(accelerator.device), stage, rows, lambda: (0.0, 0.0, {}), accelerator, [])

        return train, stage

    def bare(self, stage: Any) -> Callable[[], None]:
        """As many epochs of the same model on batches made before: forward, backward, optimiser step."""
        self.model.to(DEVICE)
        sampler = UpdateSampler(self.train.used, self.train.sizes(self.train.used), batch_size=stage.batch_size)
        ready = [self.train.batch(places).to(DEVICE) for places in sampler]
        optimizer = torch.optim.AdamW(stage.groups, fused=True)
        loss = Total(self.tasks, [], None)
        low = self.config.trainer.precision == "bf16"

        def run() -> None:
            self.model.train()
            for batch in ready * round(stage.epochs):
                with torch.autocast(DEVICE.type, torch.bfloat16, enabled=low):
                    parts = loss(self.model, batch, self.model(batch))
                sum(parts.values()).backward()
                optimizer.step()
                optimizer.zero_grad()

        return run

    def text(self) -> tuple[str, Any]:
        """The text column and its modality."""
        return next((name, c.modality) for name, c in self.train.columns.items() if c.modality.kind == "text")


class Bare(nn.Module):
    """A pretrained text encoder, the mean of its tokens, a linear layer and a loss: what anybody would write."""

    def __init__(self, encoder: nn.Module, num_labels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, num_labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The loss and the logits."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        logits = self.head((hidden * weight).sum(1) / weight.sum(1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def rounds(number: int, ours: Callable[[], None], other: Callable[[], None]) -> dict[str, float]:
    """Both in turn, once unmeasured: the median of the other's time by ours, and each one's median seconds."""
    times: list[tuple[float, float]] = []
    for turn in range(number + 1):
        spent = []
        for work in (ours, other):
            start = time.perf_counter()
            work()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            spent.append(time.perf_counter() - start)
        if turn:
            times.append((spent[0], spent[1]))
    return {
        "ratio": statistics.median(b / a for a, b in times),
        "low": min(b / a for a, b in times),
        "high": max(b / a for a, b in times),
        "ours_s": statistics.median(a for a, _ in times),
        "other_s": statistics.median(b for _, b in times),
    }


def loop(data: str, rows: int, number: int, *overrides: str) -> dict[str, float]:
    """The whole model's loop against the same model on batches made before."""
    case = Case.of(data, rows, *overrides)
    train, stage = case.stage()
    return rounds(number, train, case.bare(stage))


def trainer(data: str, rows: int, number: int, *overrides: str) -> dict[str, float]:
    """Text alone: epochs here against as many of transformers.Trainer, tokenizing in neither."""
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    case = Case.of(data, rows, *overrides)
    column, modality = case.text()
    texts = case.train.restrict([column])
    case.train = texts
    case.model = build_model({column: modality}, case.tasks, case.config.fusion)
    train, _ = case.stage()
    bare = Bare(modality.backbone.model, 2)
    codes = texts.columns[column].codes[texts.used]
    values = [cell > 0 if isinstance(cell, int | float) else hash(cell) % 2 for cell in codes.tolist()]
    features = [
        {"input_ids": texts.columns[column].example(int(code)).tolist(), "labels": int(value)}
        for code, value in zip(codes, values, strict=True)
    ]
    settings = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=case.config.trainer.batch_size,
        bf16=case.config.trainer.precision == "bf16",
        num_train_epochs=EPOCHS,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    collator = DataCollatorWithPadding(modality.backbone.processor)

    def theirs() -> None:
        Trainer(bare, settings, train_dataset=features, data_collator=collator).train()

    return rounds(number, train, theirs)


def cache(data: str, rows: int, number: int, *overrides: str) -> dict[str, float]:
    """Ten epochs with every backbone frozen: its features computed once, that time counted, or in every batch."""
    case = Case.of(data, rows, "text.freeze=all", "image.freeze=all", *overrides)
    train, _ = case.stage(10)

    def ours() -> None:
        train(case.train.given(features=fill_features(case.model, case.train)))

    return rounds(number, ours, train)


def part(data: str, rows: int, number: int, *overrides: str) -> dict[str, float]:
    """Ten epochs with the first four of the text encoder's six layers frozen: these run once, that time counted, or in
    every batch."""
    case = Case.of(data, rows, "text.freeze=bottom:5", "image.freeze=all", *overrides)
    train, _ = case.stage(10)
    frozen = {name for name, column in case.train.columns.items() if column.modality.kind == "image"}
    features = {name: values for name, values in fill_features(case.model, case.train).items() if name in frozen}

    rows = case.train.given(features=features)

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            train(attach_trunks(case.model, [rows], FeatureCache(folder, 50), low=False).rows[0])

    return rounds(number, ours, lambda: train(rows))


def predict(data: str, rows: int, number: int, *overrides: str) -> dict[str, float]:
    """From a table on disk to predictions, tokenizing included in both; the text column alone."""
    return predictions(data, rows, number, *overrides, precision="float32", fitted=400, epochs=0.0)[0]


def int8(data: str, rows: int, number: int, *overrides: str) -> dict[str, float]:
    """As `predict`, with the encoder's linear layers in 8-bit integers, and what that costs on the validation rows."""
    found, tuned, val = predictions(data, rows, number, *overrides, precision="int8", fitted=1500, epochs=1.0)
    for precision in ("float32", "int8"):
        task = tuned.evaluate(val, precision=precision).tasks[0]
        found[f"{task.metric}_{precision}"] = task.systems[0].metrics[task.metric].value
    return found


def predictions(
    data: str, rows: int, number: int, *overrides: str, precision: str, fitted: int, epochs: float
) -> tuple[dict[str, float], Any, Table]:
    """The ratio, the model, tuned for so many epochs on so many rows, and the validation rows."""
    case = Case.of(data, rows, *overrides)
    column, modality = case.text()
    records = [{column: cell} for cell in case.table.cells(column)]
    folder = Path(tempfile.mkdtemp())
    ignored = {name: {"role": "ignore"} for name in case.train.columns if name != column}
    given = case.config.model_dump(mode="json", exclude_defaults=True)
    train = Table.read(case.config.train[0])
    tuned = ft.fit(
        train.select(np.arange(min(fitted, len(train)))),
        target=case.config.target,
        out=folder / "model",
        config={
            "columns": ignored | given.get("columns", {}),
            "text": given.get("text", {}),
            "trainer": given["trainer"] | {"epochs": epochs, "head_epochs": 1, "trackers": []},
            "report": {"alone": "none", "bootstrap": 0},
        },
        progress=False,
    )
    bare, tokenizer = Bare(modality.backbone.model, 2).eval().to(DEVICE), modality.backbone.processor
    texts = [str(record[column] or "") for record in records]
    table = Table.from_records([record | {name: None for name in ignored} for record in records])

    def ours() -> None:
        tuned.predict(table, precision=precision)

    @torch.inference_mode()
    def plain() -> None:
        for start in range(0, len(texts), BATCH):
            part = texts[start : start + BATCH]
            made = tokenizer(part, padding=True, truncation=True, return_tensors="pt").to(DEVICE)
            labels = torch.zeros(len(part), dtype=torch.int64, device=DEVICE)
            bare(made["input_ids"], made["attention_mask"], labels)

    return rounds(number, ours, plain), tuned, Table.read(case.config.val)


def imports(number: int) -> dict[str, float]:
    """Seconds of `import fusetune` beyond Python's own start, and of `fusetune --help`."""

    def seconds(command: Sequence[str]) -> float:
        spent = []
        for _ in range(number + 1):
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            spent.append(time.perf_counter() - start)
        return statistics.median(spent[1:])

    bare = seconds([sys.executable, "-c", ""])
    verb = Path(sys.executable).with_name("fusetune")
    return {
        "import_s": seconds([sys.executable, "-c", "import fusetune"]) - bare,
        "help_s": seconds([str(verb), "--help"]),
    }


RATIOS: dict[str, tuple[Callable[[str, int, int], dict[str, float]], float]] = {
    "loop": (loop, 0.9),
    "trainer": (trainer, 1.5),
    "cache": (cache, 6.0),
    "part": (part, 1.5),
    "predict": (predict, 2.0),
    "int8": (int8, 3.0),
}


def one(name: str, data: str, rows: int, number: int) -> dict[str, Any]:
    """One measurement, in this process."""
    found = RATIOS[name][0](data, rows, number)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"name": name, "data": data, "rows": rows, "wanted": RATIOS[name][1], **found, "peak_mb": peak}


def table(found: list[dict[str, Any]]) -> str:
    """Markdown of what was measured."""
    lines = [
        "| what | data | rows | ratio | range | wanted | ours, s | other, s | peak memory, MB |",
        "| --- " * 9 + "|",
    ]
    lines += [
        f"| {one['name']} | {one['data']} | {one['rows']:,} | **{one['ratio']:.2f}** "
        f"| {one['low']:.2f} to {one['high']:.2f} | {one['wanted']} | {one['ours_s']:.2f} | {one['other_s']:.2f} "
        f"| {one['peak_mb']:,.0f} |"
        for one in found
        if "ratio" in one
    ]
    lines += [
        f"\n{one['name']}, {one['data']}: {key} {value:.4f}"
        for one in found
        for key, value in one.items()
        if key.endswith(("_float32", "_int8"))
    ]
    lines += [f"\n{key}: {value:.3f}" for one in found if "ratio" not in one for key, value in one.items()]
    return "\n".join(lines)


def main() -> None:
    """Run what was asked for, each measurement in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[*RATIOS, "import"], help=f"of {', '.join(RATIOS)}, import")
    parser.add_argument("--data", nargs="+", default=DATA, choices=DATA)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the figures here, as speed.json")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "DATA"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(one(*asked.one, asked.rows, asked.rounds)), flush=True)
        return
    found: list[dict[str, Any]] = []
    for name in asked.names:
        if name == "import":
            found.append(imports(asked.rounds))
            continue
        for data in asked.data:
            command = [sys.executable, __file__, "--one", name, data]
            command += ["--rows", str(asked.rows), "--rounds", str(asked.rounds)]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found.append(json.loads(said.splitlines()[-1]))
            print(said.splitlines()[-1], file=sys.stderr, flush=True)
    print(table(found))
    if asked.out:
        asked.out.mkdir(parents=True, exist_ok=True)
        (asked.out / "speed.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
