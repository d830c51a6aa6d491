"""Every family of encoder in transformers, tiny and random, keeps the contract; each rule finds what breaks it."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fusetune.backbones.backbone import Backbone
from fusetune.backbones.load import load_backbone
from fusetune.testing import tiny_models as tiny
from fusetune.testing.backbones import BackboneContract, check_backbone
from fusetune.testing.rules import broken_rules, rules_of
from fusetune.types import Tokens


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def model(home: Path, name: str) -> Path:
    return home / name if (home / name).exists() else tiny.make(name, home / name)


class TestTransformers(BackboneContract):
    """One vector a cell, and every token."""

    @pytest.fixture(scope="module", params=[(*case, pool) for case in tiny.CASES for pool in ("auto", "none")], ids=str)
    def backbone(self, request: pytest.FixtureRequest, home: Path) -> Backbone:
        name, kind, pool = request.param
        return load_backbone(str(model(home, name)), kind, pool=pool)


class TestSmall(BackboneContract):
    """The encoders that are trained from scratch."""

    @pytest.fixture(
        scope="module", params=[(k, pool) for k in ("image", "audio") for pool in ("auto", "none")], ids=str
    )
    def backbone(self, request: pytest.FixtureRequest) -> Backbone:
        kind, pool = request.param
        return load_backbone(None, kind, pool=pool)


def output(change):
    """A fault of what the encoder gives: `change(backbone, values, mask)`."""

    def plant(backbone: Backbone, patch: pytest.MonkeyPatch) -> None:
        forward = backbone.forward

        def changed(**inputs):
            tokens = forward(**inputs)
            return Tokens(*change(backbone, tokens.values, tokens.mask))

        patch.setattr(backbone, "forward", changed)

    return plant


def attribute(name, value):
    """A fault of a method or attribute: `value(backbone, what it was)` stands in its place."""

    def plant(backbone: Backbone, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(backbone, name, value(backbone, getattr(backbone, name)))

    return plant


def idle_weight(backbone: Backbone, patch: pytest.MonkeyPatch) -> None:
    block = backbone.blocks()[-1][1]
    block.register_parameter("idle", nn.Parameter(torch.zeros(1)))


def saves_weights(backbone, save):
    def saving(folder: Path) -> None:
        save(folder)
        (folder / "weights.bin").write_bytes(b"0")

    return saving


def forgets(backbone, describe):
    return lambda: {**describe(), "pool": "another"}


FAULTS = [
    (output(lambda b, values, mask: (values[:, :, :-1], mask)),
     "vectors_have_their_shape it_is_restored_without_its_source"),
    (output(lambda b, values, mask: (values + 1e-3 * torch.randn_like(values), mask)),
     "two_passes_agree a_cell_is_encoded_by_itself it_is_restored_without_its_source"),
    (output(lambda b, values, mask: (values - values.mean(0), mask)),
     "a_cell_is_encoded_by_itself it_is_restored_without_its_source"),
    (output(lambda b, values, mask: (values * 0 + 1, mask)),
     "different_cells_differ it_is_restored_without_its_source"),
    (idle_weight, "every_parameter_receives_a_gradient it_is_restored_without_its_source"),
    (attribute("blocks", lambda b, blocks: lambda: [*blocks(), blocks()[-1]]),
     "blocks_hold_every_parameter_once learning_rates_rise_with_depth"),
    (attribute("train", lambda b, train: lambda mode=True: nn.Module.train(b, mode)),
     "frozen_blocks_do_not_train a_frozen_encoder_does_not_train"),
    (attribute("save", saves_weights), "it_is_restored_without_its_source"),
    (attribute("describe", forgets), "it_is_restored_without_its_source"),
]  # fmt: skip


@pytest.mark.parametrize(("plant", "rules"), FAULTS)
def test_each_fault_breaks_its_rules(plant, rules, home, tmp_path, monkeypatch):
    backbone = load_backbone(str(model(home, "bert")), "text")
    plant(backbone, monkeypatch)
    found = broken_rules(BackboneContract, backbone=backbone, tmp_path=tmp_path)
    assert {name.removeprefix("test_") for name in found} == set(rules.split()), found


def test_every_rule_is_shown_to_find_a_fault():
    shown = {f"test_{name}" for _, rules in FAULTS for name in rules.split()}
    assert shown == set(rules_of(BackboneContract))


def test_one_call_runs_every_rule(home, tmp_path):
    check_backbone(load_backbone(str(model(home, "bert")), "text"), tmp_path)
