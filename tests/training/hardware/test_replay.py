"""Which stages' updates are replayed, and that fits come to the same; on a GPU: test_gpu.py.

Here a replay computes the pass again: see `captured` of conftest.py.
"""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import fusetune
from fusetune.backbones.passes import graphs
from fusetune.training import stages
from fusetune.training.hardware import replay


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """Stages of any length believe to run on one."""
    inside = replay.graphs

    def there(stage, recipe, accelerator, num_rows):
        seen = SimpleNamespace(device=torch.device("cuda"), num_processes=accelerator.num_processes)
        return inside(stage, recipe, seen, num_rows)

    monkeypatch.setattr(stages, "graphs", there)
    monkeypatch.setattr(replay, "WORTHWHILE", 0)


@pytest.fixture
def tune(tiny, shop_tables, tmp_path):
    def still(name):
        """Without dropout, whose draws are others where batches are padded."""
        folder = tmp_path / name
        if not folder.is_dir():
            shutil.copytree(tiny(name), folder)
            config = json.loads((folder / "config.json").read_text())
            config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
            (folder / "config.json").write_text(json.dumps(config))
        return folder

    def run(name, *, fusion=None, pool="auto", objectives=None, **trainer):
        config = {
            "text": str(still("bert")),
            "image": {"name": str(still("vit")), "pool": pool},
            "columns": {"voice": {"role": "ignore"}},
            "fusion": {"name": "attention", "dim": 16, "dropout": 0, "modality_dropout": 0, "input_dropout": 0}
            | (fusion or {}),
            "trainer": {
                "cuda_graphs": True,
                "epochs": 1,
                "head_epochs": 1,
                "precision": "no",
                "trackers": [],
                "patience": None,
            }
            | trainer,
            "objectives": objectives or {},
            "report": {"bootstrap": 0, "alone": "none"},
        }
        return fusetune.fit(
            str(shop_tables["train"]), target="label", out=tmp_path / name, config=config, progress=False
        )

    return run


def losses(tuned):
    return [point.val_loss for point in tuned.results.curve.points]


@pytest.mark.parametrize(
    ("fusion", "pool"), [({}, "auto"), ({"name": "gated"}, "auto"), ({"name": "convolution"}, "none")]
)
def test_replayed_updates_come_to_the_same(tune, captured, fusion, pool):
    """Convolutions need to know how a picture's tokens lie in it."""
    plain, replayed = (tune(str(on), cuda_graphs=on, fusion=fusion, pool=pool) for on in (False, True))
    assert 4 <= len(captured) <= 6  # the fusion in both stages, two encoders, each for one shape or two
    np.testing.assert_allclose(losses(replayed), losses(plain), atol=1e-4)
    for name, value in plain.bundle.model.state_dict().items():
        torch.testing.assert_close(replayed.bundle.model.state_dict()[name], value, atol=1e-4, rtol=0, msg=name)


@pytest.mark.parametrize(
    "settings",
    [
        {"accumulate": 2},  # the gradients of micro-batches would lie in one place
        {"adversarial": "fgm"},
        {"sam": 0.05},
        {"gradient_checkpointing": True},
    ],
)
def test_updates_that_take_gradients_otherwise_are_not_replayed(tune, captured, settings):
    tune("m", head_epochs=0, **settings)
    assert captured == []


def test_neither_by_several_processes_nor_where_an_objective_changes_what_is_read(tune, captured, monkeypatch):
    as_it_is = stages.graphs
    others = SimpleNamespace(device=torch.device("cuda"), num_processes=2)
    inside = replay.graphs
    monkeypatch.setattr(stages, "graphs", lambda stage, recipe, accelerator, num: inside(stage, recipe, others, num))
    tune("several", epochs=0)
    assert captured == []
    monkeypatch.setattr(stages, "graphs", as_it_is)
    tune("vat", epochs=0, objectives={"vat": {}})
    assert captured == []
    tune("usual", epochs=0)
    assert captured


def test_short_stages_are_not(tune, captured, monkeypatch):
    monkeypatch.setattr(replay, "WORTHWHILE", 1000)
    tune("m")
    assert captured == []


def test_what_fails_is_told(tune, captured, monkeypatch):
    def fail(over, tensors, pool):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(graphs, "capture", fail)
    said = [one for one in tune("m").results.warnings if "CUDA graphs" in one]
    assert len(said) == 4  # the fusion in both stages, two encoders
    assert "Passes of the fusion were not replayed from CUDA graphs: operation not permitted." in said


def test_a_fusion_of_others_is_not_captured(tiny, captured):
    class Other(nn.Linear):
        __module__ = "else.where"

    class Parts(nn.Module):
        def __init__(self, fusion):
            super().__init__()
            self.fusion, self.head, self.encoders = fusion, nn.Linear(2, 2), {}

        def after_encoders(self):
            return [self.fusion, self.head]

    assert replay.Replayed(None, Parts(Other(2, 2)), []).fusion is None
    assert replay.Replayed(None, Parts(nn.Linear(2, 2)), []).fusion is not None
