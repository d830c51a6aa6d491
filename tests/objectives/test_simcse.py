"""SimCSE: the formula written out in numpy, equal texts, and encoders without dropout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fusetune.backbones.load import load_backbone
from fusetune.data.examples import Examples
from fusetune.data.table import Table
from fusetune.errors import ConfigError
from fusetune.modalities.text import TextModality
from fusetune.models.encoders import SECOND, Encoders
from fusetune.objectives.simcse import SimCSE

TEXTS = ["w1 w2 w3", "w4 w5", "w6 w7 w8 w9", "w4 w5", "w10 w11"]


def make(folder, *, temperature=0.05):
    encoder = load_backbone(folder, "text")
    examples = Examples(
        Table.from_records([{"note": text} for text in TEXTS]), {"note": TextModality("note", backbone=encoder)}
    )
    examples.prepare(on_bad_cell="reject")
    model = Encoders({encoder.key: encoder}, {"note": encoder.key}, passes=2)
    return model, SimCSE(model, temperature=temperature), examples


def cross_entropy(logits):
    return np.mean([-row[place] + np.log(np.exp(row[np.isfinite(row)]).sum()) for place, row in enumerate(logits)])


@pytest.mark.parametrize("temperature", [0.05, 0.2])
def test_the_loss_is_the_papers_in_both_directions(tiny, temperature):
    """MultipleNegativesRankingLoss of sentence-transformers is the same cross-entropy, with scale 1/τ."""
    model, objective, examples = make(tiny("bert"), temperature=temperature)
    batch = examples.batch(range(5))
    model.train()
    torch.manual_seed(0)
    outputs = model(batch)
    (loss,) = objective(model, batch, outputs).values()
    first, second = (outputs.columns[name].values[:, 0].detach().numpy() for name in ("note", "note" + SECOND))
    assert not np.allclose(first, second), "the passes have dropout masks of their own"
    first, second = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in (first, second))
    logits = first @ second.T / temperature
    logits[1, 3] = logits[3, 1] = -np.inf  # equal texts are no negatives of each other
    assert objective.weight * float(loss.detach()) == pytest.approx(
        (cross_entropy(logits) + cross_entropy(logits.T)) / 2, abs=1e-4
    )
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert set(objective.figures) >= {"alignment", "uniformity"}


def test_without_dropout_the_passes_are_equal(tiny):
    model, _, examples = make(tiny("bert"))
    outputs = model.eval()(examples.batch(range(5)))
    assert torch.equal(outputs.columns["note"].values, outputs.columns["note" + SECOND].values)


def test_an_encoder_without_dropout_is_refused(tiny, tmp_path):
    folder = Path(shutil.copytree(tiny("bert"), tmp_path / "m"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="no dropout"):
        make(str(folder))


def test_a_row_without_the_column_does_not_count(tiny):
    model, objective, examples = make(tiny("bert"))
    batch = examples.batch([0, 1, 2])
    batch.cells["note"][2] = batch.codes["note"][2] = -1
    model.train()
    torch.manual_seed(0)
    three = objective(model, batch, model(batch))["simcse"]
    assert torch.isfinite(three)
    outputs = model(batch)
    assert not outputs.columns["note"].mask[2].any()
