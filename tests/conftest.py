"""What every test runs under: no hub, no tracker's server, one thread a process; and a small shop to learn from."""

from __future__ import annotations

import csv
import importlib.util
import os
import tempfile
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from fusetune.api import FineTuned

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["FUSETUNE_CACHE"] = "none"  # tests that are about it name a folder of their own
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Here, in the processes of pytest-xdist and in all that tests start: see tests/no_network.
GUARD = str(Path(__file__).parent / "no_network")
if GUARD not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
    os.environ["PYTHONPATH"] = os.pathsep.join([GUARD, *filter(None, [os.environ.get("PYTHONPATH")])])
os.environ.setdefault(
    "FUSETUNE_TEST_CONNECTIONS", str(Path(tempfile.mkdtemp(prefix="fusetune-tests-")) / "connections")
)
CONNECTIONS = Path(os.environ["FUSETUNE_TEST_CONNECTIONS"])
_spec = importlib.util.spec_from_file_location("no_network", Path(GUARD) / "sitecustomize.py")
assert _spec is not None and _spec.loader is not None
_spec.loader.exec_module(importlib.util.module_from_spec(_spec))

Row = dict[str, Any]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """By name (see `fusetune.testing.tiny_models` and `tiny_masked`), the folder of a tiny random model."""
    home, made = tmp_path_factory.mktemp("models"), {}

    def folder(name: str) -> str:
        from fusetune.testing.tiny_masked import MASKED, make_masked
        from fusetune.testing.tiny_models import make

        if name not in made:
            made[name] = str((make_masked if name in MASKED else make)(name, home / name))
        return made[name]

    return folder


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    """120 rows with every kind of column, and the folder that their media lie in.

    `label` follows from the note's first word, the photo's colour and the price; `rating`, `stars` and `tags`
    (several, parted by |) from the same.
    """
    from PIL import Image

    folder, rng = tmp_path_factory.mktemp("shop"), np.random.default_rng(7)
    for name, colour in (("red", (220, 30, 20)), ("blue", (20, 40, 230))):
        for number in range(4):
            noise = rng.integers(0, 25, (40, 40, 3)) + np.asarray(colour)
            Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder / f"{name}{number}.png")
    for number in range(4):
        pitch = 200 * (number + 1)
        sound = (np.sin(2 * np.pi * pitch * np.arange(800) / 2000) * 12000).astype("<i2")
        with wave.open(str(folder / f"voice{number}.wav"), "wb") as file:
            file.setnchannels(1), file.setsampwidth(2), file.setframerate(2000)
            file.writeframes(sound.tobytes())
    rows: list[Row] = []
    for place in range(120):
        word, red, price = int(rng.integers(0, 6)), bool(rng.integers(0, 2)), float(rng.uniform(1, 9))
        hidden = (word - 2.5) / 2 + (1.0 if red else -1.0) + (price - 5) / 3
        rest = " ".join(f"w{number}" for number in rng.integers(6, 40, 4))
        rows.append(
            {
                "note": f"w{word} {rest}",
                "photo": f"{'red' if red else 'blue'}{place % 4}.png",
                "voice": f"voice{int(rng.integers(0, 4))}.wav",
                "price": f"{price:.2f}",
                "plan": ("basic", "pro", "team")[place % 3],
                "label": "yes" if hidden > 0 else "no",
                "rating": f"{hidden * 2 + 10 + rng.normal() * 0.2:.3f}",
                "stars": str(int(np.clip(np.round(hidden + 3), 1, 5))),
                "tags": "|".join(tag for tag, on in (("a", word > 2), ("b", red), ("c", price > 5)) if on) or "d",
            }
        )
    return folder, rows


@pytest.fixture(scope="session")
def write_csv() -> Callable[..., Path]:
    """Writes rows as CSV: `write_csv(path, rows, columns)`."""

    def write(path: Path, rows: list[Row], columns: list[str] | None = None) -> Path:
        with path.open("w", encoding="utf-8", newline="") as file:
            out = csv.DictWriter(file, columns or list(rows[0]), extrasaction="ignore")
            out.writeheader()
            out.writerows(rows)
        return path

    return write


@pytest.fixture(scope="session")
def quick() -> dict[str, Any]:
    """Settings of a fit that takes a second: the head stage alone, nothing logged."""
    return {
        "fusion": {"name": "attention", "dim": 16},
        "trainer": {"epochs": 0, "head_epochs": 1, "trackers": []},
        "report": {"bootstrap": 0, "errors": 2, "alone": "none"},
    }


@pytest.fixture(scope="session")
def shop_tables(shop: tuple[Path, list[Row]], write_csv: Callable[..., Path]) -> dict[str, Path]:
    """The shop's train, val and test tables; `label` is the only target among the columns."""
    folder, rows = shop
    columns = ["note", "photo", "voice", "price", "plan", "label"]
    parts = {"train": rows[:80], "val": rows[80:100], "test": rows[100:]}
    return {name: write_csv(folder / f"{name}.csv", part, columns) for name, part in parts.items()}


@pytest.fixture(scope="session")
def fitted(
    tiny: Callable[[str], str], shop_tables: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> FineTuned:
    """A model tuned on the shop with a text, an image and an audio encoder, saved to a folder. Leave it as it is."""
    from fusetune import api

    settings = {
        "text": tiny("bert"),
        "image": tiny("vit"),
        "audio": tiny("wav2vec2"),
        "fusion": {"name": "attention", "dim": 16},
        "trainer": {"epochs": 1, "head_epochs": 3, "lr": 0.01, "probe": "columns"},
        "report": {"bootstrap": 50, "errors": 3},
    }
    out = tmp_path_factory.mktemp("fitted") / "model"
    return api.fit(
        str(shop_tables["train"]),
        target="label",
        val=str(shop_tables["val"]),
        test=str(shop_tables["test"]),
        out=out,
        config=settings,
        progress=False,
    )


@pytest.fixture(scope="session")
def exported(
    tiny: Callable[[str], str], shop: tuple[Path, list[Row]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, FineTuned, Path, dict[str, Any]]:
    """The shop's columns, read by a model with random weights, exported with an int8 variant.

    The exported folder, the model, a table with missing and bad cells, and the export's report.
    """
    import torch

    from fusetune.backbones.load import load_backbone
    from fusetune.backbones.small import build as build_small
    from fusetune.config.config import Config
    from fusetune.config.section import NamedConfig
    from fusetune.data.examples import Examples
    from fusetune.data.reading.cell_forms import CellForm
    from fusetune.data.schema import ColumnSpec, Schema
    from fusetune.data.table import Table
    from fusetune.deploy.bundle import Bundle
    from fusetune.deploy.fine_tuned import FineTuned
    from fusetune.modalities.audio import AudioModality
    from fusetune.modalities.category import CategoryModality
    from fusetune.modalities.date import DateModality
    from fusetune.modalities.image import ImageModality
    from fusetune.modalities.number import NumberModality
    from fusetune.modalities.text import TextModality
    from fusetune.models.build import build_model
    from fusetune.registry import TASKS

    folder, rows = shop
    rows = [{**row, "key": f"k{n}", "day": f"2021-0{1 + n % 9}-03"} for n, row in enumerate(rows[:24])]
    text, image = load_backbone(tiny("bert"), "text"), load_backbone(tiny("resnet"), "image")
    audio = build_small("audio")
    modalities: dict[str, Any] = {
        "note": TextModality("note", backbone=text),
        "photo": ImageModality("photo", backbone=image),
        "voice": AudioModality("voice", backbone=audio),
        "price": NumberModality("price", bins=4),
        "plan": CategoryModality("plan"),
        "day": DateModality("day"),
    }
    tasks = {name: TASKS.get(kind)(name) for name, kind in
             {"label": "binary", "rating": "regression", "stars": "ordinal", "tags": "multilabel"}.items()}  # fmt: skip
    examples = Examples(Table.from_records(rows, base_dir=folder), modalities, tasks)
    examples.prepare(on_bad_cell="reject")
    examples.fit()
    modalities["note"].learn_ngrams([text.tokenize(row["note"]) for row in rows])
    torch.manual_seed(0)
    model: Any = build_model(modalities, tasks, NamedConfig(name="mean", dim=16))
    model.extend({("note", part): len(ngrams) for part, ngrams in modalities["note"].ngrams.items()}, [])
    with torch.no_grad():
        for parameter in [*model.linear.parameters(), *model.ngrams.buffers()]:
            parameter.normal_(std=0.3)
    specs = {name: ColumnSpec(name, modality.kind) for name, modality in modalities.items()}
    specs["price"] = ColumnSpec("price", "number", read=CellForm(missing=("NA",)))
    specs["key"] = ColumnSpec("key", "text", role="id")
    bundle = Bundle(model.eval(), modalities, tasks, Schema(specs), Config())
    bad = [dict(row) for row in rows[:14]]
    for place, name in enumerate(modalities):
        bad[place][name] = ""
    bad[7] |= {"photo": f"{bad[0]['photo'] or bad[8]['photo']};{bad[8]['photo']}", "price": "NA"}
    bad[8] |= {"price": "many", "photo": "nowhere.png"}
    bad[9] |= dict.fromkeys(modalities, "")
    bad[10] |= {"note": "w5 " * 500, "day": "never"}
    path = folder / "to_export.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(bad[0]))
        writer.writeheader()
        writer.writerows(bad)
    tuned = FineTuned(bundle, folder=None, results=None)
    out = tmp_path_factory.mktemp("exported") / "model"
    report = tuned.save_onnx(out, variants=["int8"], check=path)
    return out, tuned, path, report


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Nothing that is tested, and no process that a test starts, tried to connect to another machine."""
    yield
    tried = CONNECTIONS.read_text() if CONNECTIONS.exists() else ""
    assert not tried, f"connections were tried:\n{tried}"


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, list[tuple[int, ...]]]]:
    """The pool and the shapes of each pass that was captured, of 8 GiB.

    In place of torch.cuda.make_graphed_callables, on a processor: a replay computes the pass again over the tensors
    that it was recorded with, into which others are copied, and gives its results without their history.
    """
    import torch

    from fusetune.backbones.passes import graphs

    made: list[tuple[Any, list[tuple[int, ...]]]] = []

    def capture(over: Any, tensors: list[torch.Tensor], pool: Any) -> Any:
        made.append((pool, [tuple(one.shape) for one in tensors]))

        class Replay(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *given: torch.Tensor) -> Any:
                for own, one in zip(tensors, given, strict=True):
                    if own.data_ptr() != one.data_ptr():
                        own.data.copy_(one)
                with torch.enable_grad():
                    ctx.found = over(*tensors)
                return tuple(one.detach() for one in ctx.found)

            @staticmethod
            @torch.autograd.function.once_differentiable
            def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
                pairs = [(one, pull) for one, pull in zip(ctx.found, gradients, strict=True) if one.requires_grad]
                taken = [one for one in tensors if one.requires_grad]
                outs, pulls = zip(*pairs, strict=True)
                found = iter(torch.autograd.grad(outs, taken, pulls, allow_unused=True))
                return tuple(next(found) if one.requires_grad else None for one in tensors)

        return Replay.apply

    monkeypatch.setattr(graphs, "memory", lambda device: 8 * 2**30)
    monkeypatch.setattr(graphs, "new_pool", object)
    monkeypatch.setattr(graphs, "capture", capture)
    return made
