"""Training methods with tasks that answer token by token: each fit ends with other weights, or says why it cannot."""

import json

import numpy as np
import pytest
import torch

import fusetune as ft
from fusetune.backbones.load import load_backbone
from fusetune.testing.token_tables import example_tables

TABLES = {"entities": "spans of a text", "answer": "answers with starts"}
METHODS = {
    "plain": {},
    "contrastive": {"objectives": {"contrastive": {"weight": 0.1}}},
    "rdrop": {"objectives": {"rdrop": {}}},
    "vat": {"objectives": {"vat": {}}},
    **{name: {"trainer": {"adversarial": {"name": name}}} for name in ("fgm", "pgd", "freelb")},
    "sam": {"trainer": {"sam": 0.05}},
    "averages": {"trainer": {"ema": 0.9, "soup": 2}},
    "accumulated": {"trainer": {"accumulate": 2}},
    "lora": {"text": {"adapter": {"name": "lora", "rank": 2}}, "trainer": {"epochs": 3, "backbone_lr": 0.01}},
    "frozen": {"text": {"freeze": "all"}},
    "partly frozen": {"text": {"freeze": "bottom:2"}},
    "checkpointing": {"trainer": {"gradient_checkpointing": True}},
}


def merged(base, more):
    """Sections with those of `more` laid over them."""
    return {**base, **{name: {**base.get(name, {}), **section} for name, section in more.items()}}


def close(one, two):
    """Whether lists, dictionaries and numbers are equal up to rounding."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(close(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(close, one, two))
    return one == (pytest.approx(two, abs=1e-6) if isinstance(two, float) else two)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """By task, a file of rows with a number beside the text."""
    home, rng = tmp_path_factory.mktemp("methods"), np.random.default_rng(0)
    for task, name in TABLES.items():
        rows = [{**record, "size": round(float(rng.normal()), 3)} for record in example_tables(60)[name].records()]
        (home / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return home


def fitted(tiny, tables, task, method, out):
    settings = {
        "target": ["target"],
        "tasks": {"target": task},
        "columns": {"size": "number"},
        "text": {"name": tiny("bert"), "max_tokens": 12},
        "fusion": {"name": "concat", "dim": 16},
        "trainer": {"epochs": 1, "head_epochs": 1, "batch_size": 16, "trackers": []},
        "report": {"bootstrap": 0, "alone": "none"},
    }
    return ft.fit(str(tables / f"{task}.jsonl"), config=merged(settings, METHODS[method]), out=out, progress=False)


@pytest.mark.parametrize(
    ("task", "method"),
    [(task, method) for task in TABLES for method in METHODS],
)
def test_a_token_task_is_trained_by(tiny, tables, tmp_path, task, method):
    tuned = fitted(tiny, tables, task, method, tmp_path / "run")
    curve = json.loads((tmp_path / "run" / "report.json").read_text())["curve"]["points"]
    assert len(curve) > 1 and all(np.isfinite(point["val_loss"]) for point in curve)
    assert len({round(point["val_loss"], 9) for point in curve}) > 1, "the loss does not change"
    if method == "lora":
        weights = [p for name, p in tuned.bundle.model.named_parameters() if "lora_B" in name]
        assert weights and any(weight.any() for weight in weights)
    else:
        encoder = next(m.backbone for m in tuned.bundle.modalities.values() if m.kind == "text")
        start, after = load_backbone(tiny("bert"), "text").state_dict(), encoder.state_dict()
        changed = {name for name, value in start.items() if not torch.equal(value, after[name])}
        assert not changed or method != "frozen"
        assert not any("embeddings" in name for name in changed) or method not in ("frozen", "partly frozen")
    again = ft.load(tmp_path / "run")
    file = str(tables / f"{task}.jsonl")
    one, two = (model.predict(file).table.to_pylist() for model in (again, tuned))
    assert len(one) == 60 and close(one, two)
