"""The recipe: what is frozen stays, each layer at its rate, the best step comes back, and trackers hold the run."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch

from fusetune.backbones.backbone import Backbone
from fusetune.config.backbone import BackboneConfig
from fusetune.config.section import NamedConfig
from fusetune.config.trainer import TrainerConfig
from fusetune.data.examples import Examples
from fusetune.data.table import Table
from fusetune.errors import ConfigError, MissingExtra, NonFiniteLoss
from fusetune.inference.features import fill_features
from fusetune.modalities.number import NumberModality
from fusetune.modalities.text import TextModality
from fusetune.models.build import Backbones, build_model
from fusetune.objectives.balance import build_balance
from fusetune.tasks.classes.classification import MulticlassTask
from fusetune.tasks.regression import RegressionTask
from fusetune.training import finetune as recipe
from fusetune.training import loop
from fusetune.training import stages as runner
from fusetune.training.finetune import evaluate_loss, finetune
from fusetune.training.hardware import devices
from fusetune.training.hardware.devices import make_accelerator
from fusetune.training.plan import Goal, RunContext, Start, TrainingRows
from fusetune.training.probes.probe import Probe, SplitRows
from fusetune.training.recipe import BackboneRule


class Parts:
    """A text and a number column, a class and a number to predict, split in train and validation rows."""

    def __init__(self, source: str) -> None:
        rng = np.random.default_rng(5)
        records = []
        for _ in range(60):
            word, x = int(rng.integers(0, 4)), float(rng.normal())
            text = " ".join(f"w{n}" for n in [word, *rng.integers(4, 40, 3)])
            records.append({"text": text, "x": x, "k": "ab"[int(word + x > 1.5)], "y": word + x})
        backbone = Backbones({"text": BackboneConfig(name=source)}).get("text", None)
        modalities = {"text": TextModality("text", backbone=backbone), "x": NumberModality("x", bins=4)}
        self.tasks = {"k": MulticlassTask("k"), "y": RegressionTask("y")}
        table = Table.from_records(records)
        places = np.arange(40), np.arange(40, 60)
        self.train, self.val = (Examples(table.select(part), modalities, self.tasks) for part in places)
        for examples in (self.train, self.val):
            examples.prepare(on_bad_cell="reject")
        self.train.fit()
        torch.manual_seed(0)
        self.model = build_model(modalities, self.tasks, NamedConfig(name="concat", dim=8))
        self.features = fill_features(self.model, self.train), fill_features(self.model, self.val)
        self.encoder = self.model.encoders[self.model.routes["text"]]
        assert isinstance(self.encoder, Backbone)

    def probes(self) -> dict[str, Probe]:
        found = {}
        for name, task in self.tasks.items():
            rows = [SplitRows.of(name, e, f) for e, f in zip((self.train, self.val), self.features, strict=True)]
            found[name] = Probe.fit(task, *rows, ["text", "x"])
        return found

    def tune(self, rule: BackboneRule | None = None, *, probes=True, log_dir=None, **settings):
        given = TrainerConfig(**({"epochs": 1, "head_epochs": 1, "batch_size": 16, "trackers": []} | settings))
        rules = {self.model.routes["text"]: rule} if rule else None
        chosen = self.probes() if probes else None
        rows = TrainingRows(self.train, self.val, *self.features)
        start, context = Start(chosen or {}), RunContext(log_dir=log_dir)
        return finetune(self.model, rows, Goal(self.tasks), given, rules=rules, start=start, context=context)

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}


@pytest.fixture
def parts(tiny) -> Parts:
    return Parts(tiny("bert"))


@pytest.mark.parametrize("head_epochs", [0, 1])
def test_the_result_is_no_worse_than_the_probe_on_validation_rows(parts, head_epochs):
    probes = parts.probes()
    history = parts.tune(head_epochs=head_epochs, lr=1.0, backbone_lr=0.5, head_lr=1.0)
    scores = []
    for name, task in parts.tasks.items():
        rows = SplitRows.of(name, parts.val, parts.features[1])
        value = task.metrics(probes[name].scores(rows), rows.truth)[task.main.name]
        scores.append(value if task.main.greater_is_better else -value)
    assert history.checks[0].step == 0 and history.checks[0].score == pytest.approx(np.mean(scores), abs=1e-4)
    assert history.best.score >= np.mean(scores) - 1e-4


def test_the_model_is_left_at_the_best_check(parts):
    history = parts.tune(epochs=3, head_epochs=3, lr=0.3, backbone_lr=0.05, head_lr=0.3)
    assert len({round(check.score, 6) for check in history.checks}) > 1
    scales = build_balance("sum", parts.model, parts.tasks, parts.train).scales()
    loss, score, _ = evaluate_loss(parts.model, parts.tasks, parts.val, scales=scales)
    assert score == pytest.approx(history.best.score, abs=1e-5)
    assert loss == pytest.approx(history.best.val_loss, abs=1e-4)
    assert history.best.score == max(check.score for check in history.checks)


@pytest.fixture
def keep_last(monkeypatch):
    """Leaves the model at the last step, not at the best."""
    monkeypatch.setattr(recipe.BestStep, "restore", lambda self: None)


@pytest.mark.parametrize("rule", ["all", "only:heads"])
def test_a_frozen_encoder_stays_bit_identical(parts, keep_last, rule):
    before = parts.weights()
    history = parts.tune(BackboneRule(rule), probes=False, head_epochs=0, lr=0.05)
    after = parts.weights()
    assert history.moved == set() and history.trained[parts.model.routes["text"]] == 0
    for name, value in before.items():
        if name.startswith("encoders"):
            assert torch.equal(after[name], value), name
    assert any(not torch.equal(after[name], value) for name, value in before.items() if name.startswith("fusion"))


def test_bottom_blocks_stay_bit_identical_and_the_others_move(parts, keep_last):
    frozen = {id(p) for _, block in parts.encoder.blocks()[:2] for p in block.parameters()}
    names = {n: id(p) in frozen for n, p in parts.encoder.named_parameters()}
    before = {n: p.detach().clone() for n, p in parts.encoder.named_parameters()}
    parts.tune(BackboneRule("bottom:2"), probes=False, head_epochs=0, backbone_lr=0.01)
    moved = {n: not torch.equal(p.detach(), before[n]) for n, p in parts.encoder.named_parameters()}
    assert not any(moved[n] for n, still in names.items() if still)
    assert any(moved[n] for n, still in names.items() if not still)


def test_a_pattern_freezes_what_it_matches(parts, keep_last):
    before = {n: p.detach().clone() for n, p in parts.encoder.named_parameters()}
    parts.tune(BackboneRule("regex:attention"), probes=False, head_epochs=0, backbone_lr=0.01)
    for name, parameter in parts.encoder.named_parameters():
        if "attention" in name:
            assert torch.equal(parameter.detach(), before[name]), name
    assert any(not torch.equal(p.detach(), before[n]) for n, p in parts.encoder.named_parameters())


@pytest.mark.parametrize("rule", ["botom:2", "bottom:99", "regex:nothing_like_it"])
def test_wrong_rules_are_refused(parts, rule):
    with pytest.raises(ConfigError, match="freeze"):
        parts.tune(BackboneRule(rule), probes=False, head_epochs=0)


def test_each_layer_learns_at_its_rate(parts, monkeypatch):
    stages = []
    monkeypatch.setattr(runner, "run_stage", lambda learner, stage, *a, **k: stages.append(stage) or 0)
    parts.tune(BackboneRule(lr=0.01), layer_decay=0.5, lr=0.2, head_lr=0.3, weight_decay=0.1)
    head, tune = stages
    rate = {id(p): (group["lr"], group["weight_decay"]) for group in tune.groups for p in group["params"]}
    blocks = parts.encoder.blocks()
    for depth, (_, block) in enumerate(blocks):
        wanted = 0.01 * 0.5 ** (len(blocks) - 1 - depth)
        for parameter in block.parameters():
            assert rate[id(parameter)][0] == pytest.approx(wanted)
            assert rate[id(parameter)][1] == (0.1 if parameter.ndim > 1 else 0.0)
    for parameter in parts.model.fusion.parameters():
        assert rate[id(parameter)][0] == 0.3
    in_head = {id(p) for group in head.groups for p in group["params"]}
    assert not in_head & {id(p) for p in parts.encoder.parameters()}
    assert not in_head & {id(p) for p in parts.model.linear.parameters()}
    assert all(group["lr"] == 0.2 for group in head.groups)
    assert {id(p) for p in parts.model.parameters()} == set(rate)


def test_the_encoder_does_not_run_while_the_head_learns(parts, monkeypatch):
    calls = []
    real = parts.encoder.forward
    monkeypatch.setattr(parts.encoder, "forward", lambda **k: calls.append(1) or real(**k))
    parts.tune(epochs=0, head_epochs=2)
    assert calls == []
    parts.tune(epochs=1, head_epochs=1)
    assert calls


def test_no_epoch_at_all_is_the_linear_probe(parts):
    probes = parts.probes()
    history = parts.tune(epochs=0, head_epochs=0)
    assert [check.step for check in history.checks] == [0]
    rows = SplitRows.of("k", parts.val, parts.features[1])
    logits = recipe.predict_logits(parts.model, parts.val, rows.indices)["k"]
    np.testing.assert_allclose(parts.tasks["k"].answers(logits), probes["k"].scores(rows), atol=1e-5)


def test_features_are_given_to_views_of_the_rows_alone(parts):
    parts.tune(epochs=0)
    assert all(column.features is None for e in (parts.train, parts.val) for column in e.columns.values())


def test_loss_of_rows_without_any_label_is_undefined(parts):
    view = parts.val.restrict(["text"])
    view.used = view.used[:0]
    loss, score, metrics = evaluate_loss(parts.model, parts.tasks, view)
    assert math.isnan(loss) and math.isnan(score) and metrics == {}


def test_tensorboard_files_hold_losses_and_metrics(parts, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = parts.tune(epochs=1, log_dir=tmp_path, trackers=["tensorboard"])
    events = EventAccumulator(str(tmp_path / "fusetune"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert tags >= {"train/k", "train/y", "train/lr", "val/loss", "val/k/accuracy", "val/y/r2"}
    logged = {event.step: event.value for event in events.Scalars("val/loss")}
    # Two checks may share a step: the last of one stage and the first of the next.
    assert logged[history.checks[-1].step] == pytest.approx(history.checks[-1].val_loss, rel=1e-5)
    assert len(events.Scalars("train/k")) == history.checks[-1].step


def test_wandb_writes_offline_into_the_logs(parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    parts.tune(epochs=0, log_dir=tmp_path / "logs", trackers=["wandb"])
    (run,) = (tmp_path / "logs" / "wandb").glob("offline-run-*")
    (file,) = run.glob("*.wandb")
    names = {b"train/k", b"train/y", b"val/loss", b"val/k/accuracy", b"val/y/r2"}
    until = time.monotonic() + 20
    while (missing := {name for name in names if name not in file.read_bytes()}) and time.monotonic() < until:
        time.sleep(0.2)  # wandb's own process writes the file
    assert not missing
    assert not (tmp_path / "wandb").exists()


def test_an_unknown_tracker_is_named(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'tensorboard'"):
        make_accelerator(TrainerConfig(trackers=["tensorbord"]), tmp_path)
    assert make_accelerator(TrainerConfig(trackers=["tensorbord"]), None).trackers == []


def test_without_tensorboard_the_default_tracks_nothing(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    parts.tune(epochs=0, log_dir=tmp_path, trackers=["tensorboard"])
    assert not list(tmp_path.iterdir())


def test_a_tracker_that_is_not_installed_names_its_extra(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtra, match=r"fusetune\[wandb\]"):
        make_accelerator(TrainerConfig(trackers=["wandb"]), tmp_path)


def test_trackers_are_closed_when_a_run_fails(parts, tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("no")

    monkeypatch.setattr(runner, "run_stage", fails)
    ended = []
    monkeypatch.setattr(recipe.Trackers, "on_end", lambda self: ended.append(1))
    with pytest.raises(RuntimeError):
        parts.tune(log_dir=tmp_path, trackers=["tensorboard"])
    assert ended == [1] and parts.train.columns["x"].features is None


@pytest.mark.parametrize("settings", [{"epochs": 0}, {"epochs": 0, "head_epochs": 0}])
def test_without_a_tune_stage_no_encoder_counts_as_trained(parts, settings):
    history = parts.tune(**settings)
    assert not history.moved
    assert history.trained[parts.model.routes["text"]] == 0


def test_weights_that_are_not_finite_are_no_model(parts, monkeypatch):
    def spoil(learner, *rest):
        next(p for p in learner.parameters() if p.requires_grad).data.view(-1)[0] = math.inf
        return []

    monkeypatch.setattr(runner, "average_weights", spoil)
    with pytest.raises(NonFiniteLoss, match="NaN or infinite at the best step, so the model is not saved"):
        parts.tune()


def test_updates_that_were_left_out_are_told_in_the_end(parts, monkeypatch):
    real, begun = loop.update, []

    def update(*args, **kwargs):
        begun.append(1)
        if len(begun) == 2:
            raise NonFiniteLoss(f"the loss became NaN at {kwargs['where']}")
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "update", update)
    with pytest.warns(UserWarning, match="skipped"):
        history = parts.tune(skip_nonfinite=1)
    assert [said for said in history.warnings if "skipped" in said] == [
        "An update was skipped: the loss became NaN at update 2 of stage 'head'."
    ]
