"""What spreading layers over processes leans on, in one process; tests/fitting/test_processes.py has two."""

from __future__ import annotations

import pytest
import torch

from fusetune.config.trainer import TrainerConfig
from fusetune.data.examples import Examples
from fusetune.data.table import Table
from fusetune.errors import ConfigError
from fusetune.training.hardware import shard
from fusetune.training.hardware.dtensor import clip, full_tensor, gradient_norm, is_sharded
from fusetune.training.hardware.shard import check_shard


@pytest.mark.parametrize("most", [0.5, 5.0, float("inf")])
def test_clipping_is_torchs(most):
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(3, size)) for size in (2, 5)] + [torch.nn.Parameter(torch.ones(2))]
    theirs = [torch.nn.Parameter(one.detach().clone()) for one in ours]
    for one, two in zip(ours[:2], theirs[:2], strict=True):  # the last has no gradient
        one.grad = torch.randn_like(one)
        two.grad = one.grad.clone()
    norm = gradient_norm(ours)
    clip(ours, most, norm, float(norm))
    assert float(norm) == float(torch.nn.utils.clip_grad_norm_(theirs, most))
    for one, two in zip(ours[:2], theirs[:2], strict=True):
        assert torch.equal(one.grad, two.grad)
    assert not is_sharded(ours[0]) and full_tensor(ours[0]) is ours[0]


@pytest.mark.parametrize("other", [{"sam": 0.1}, {"compile": True}, {"adversarial": "fgm"}, {"balance": "pcgrad"}])
def test_settings_that_need_whole_parameters_are_refused(other):
    with pytest.raises(ValueError, match=f"shard does not go with {next(iter(other))} as it is set"):
        TrainerConfig(shard=True, **other)


def test_no_checkpoints_are_asked_for_unless_they_are():
    assert TrainerConfig(shard=True).checkpoint_minutes is None and TrainerConfig().checkpoint_minutes == 5
    assert TrainerConfig(shard=True, checkpoint_minutes=1).checkpoint_minutes == 1  # which is refused
    again = TrainerConfig.model_validate(TrainerConfig(shard=True).model_dump(mode="json"))
    assert again.checkpoint_minutes is None


def test_runs_that_it_does_not_fit_are_refused(monkeypatch, fitted):
    encoders = list(fitted.bundle.model.encoders.values())
    with pytest.raises(ConfigError, match="needs several processes"):
        check_shard(encoders, reads_cells_as_they_are=True, checkpoints=False)
    monkeypatch.setattr(shard, "processes", lambda: type("Two", (), {"num_processes": 2}))
    with pytest.raises(ConfigError, match="keeps no checkpoints"):
        check_shard(encoders, reads_cells_as_they_are=True, checkpoints=True)
    with pytest.raises(ConfigError, match="vat"):
        check_shard(encoders, reads_cells_as_they_are=False, checkpoints=False)
    monkeypatch.setattr(encoders[0], "adapter", "lora")
    with pytest.raises(ConfigError, match="adapters"):
        check_shard(encoders, reads_cells_as_they_are=True, checkpoints=False)
    monkeypatch.setattr(encoders[0], "adapter", None)
    check_shard(encoders, reads_cells_as_they_are=True, checkpoints=False)


def test_a_batch_without_a_column_runs_its_encoder_for_nothing(fitted, shop):
    """So that no process waits for another: the loss is the same, and the encoder's gradient zero."""
    folder, rows = shop
    records = [{**row, "photo": str(folder / row["photo"]), "voice": ""} for row in rows[:6]]
    for record in records[:4]:
        record["note"] = ""
    bundle = fitted.bundle
    examples = Examples(Table.from_records(records), bundle.modalities, bundle.tasks)
    examples.prepare(on_bad_cell="reject")
    model = bundle.model.eval()
    plain = model(examples.batch([0, 1, 2])).logits["label"]
    assert "note" in examples.columns and not examples.batch([0, 1, 2]).inputs["note"]
    batch = examples.given(always=True).batch([0, 1, 2])
    assert len(batch.inputs["note"]["input_ids"]) == 1 and batch.cells["note"].tolist() == [-1] * 3
    assert not batch.inputs["voice"]  # there is no cell that could be brought
    encoder = model.encoders[model.routes["note"]]
    needed = [parameter.requires_grad for parameter in encoder.parameters()]
    encoder.requires_grad_(True)
    logits = model(batch).logits["label"]
    torch.testing.assert_close(logits, plain)
    gradients = torch.autograd.grad(logits.square().sum(), list(encoder.parameters()))
    assert not any(gradient.any() for gradient in gradients)
    for parameter, flag in zip(encoder.parameters(), needed, strict=True):
        parameter.requires_grad_(flag)
