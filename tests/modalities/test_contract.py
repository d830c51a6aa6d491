"""Every registered modality keeps the contract, and each rule of the contract finds what breaks it."""

import pytest
import torch
from torch import nn

from fusetune.modalities.base import Detection, Modality
from fusetune.modalities.category import CategoryModality
from fusetune.modalities.fixed import FixedFeatures
from fusetune.modalities.number import NumberModality
from fusetune.registry import MODALITIES
from fusetune.testing.modalities import (
    ModalityCase,
    ModalityContract,
    TinyBackbone,
    check_modality,
    sample_cells,
    sort_cells,
)
from fusetune.testing.rules import broken_rules, rules_of
from fusetune.types import Tokens


class TestRegistered(ModalityContract):
    """With whatever of the sample cells the modality reads."""

    @pytest.fixture(params=[name for name in MODALITIES if name != "prompt"])  # which is made of columns, not found
    def case(self, request, tmp_path):
        cls = MODALITIES.get(request.param)
        assert cls.kind == request.param
        backbone = TinyBackbone(cls.kind) if cls.needs_backbone else None

        def make() -> Modality:
            return cls("a column", **({"backbone": backbone} if cls.needs_backbone else {}))

        good, bad = sort_cells(make(), sample_cells(tmp_path), tmp_path)
        assert len(good) >= 2 and bad
        return ModalityCase(make, good, bad, tmp_path, backbone)


class ClaimsAll(NumberModality):
    @classmethod
    def detect(cls, values, *, base_dir):
        return Detection(0.99, "everything is mine")


class ClaimsAnyWords(NumberModality):
    """Is unsure of the bad cells that its author thought of, and sure of everything else."""

    @classmethod
    def detect(cls, values, *, base_dir):
        return Detection(0.0 if "tomorrow" in values else 0.99, "words")


class NoReason(NumberModality):
    @classmethod
    def detect(cls, values, *, base_dir):
        return Detection(super().detect(values, base_dir=base_dir).confidence, "")


class ReadsBad(NumberModality):
    def decode(self, cell, *, row, base_dir):
        return 0.0 if cell == "tomorrow" else super().decode(cell, row=row, base_dir=base_dir)


class ByRow(NumberModality):
    def decode(self, cell, *, row, base_dir):
        return super().decode(cell, row=row, base_dir=base_dir) + 1e-3 * row


class ScalesInDecode(NumberModality):
    def decode(self, cell, *, row, base_dir):
        return super().decode(cell, row=row, base_dir=base_dir) / self.std


class Centred(NumberModality):
    def collate(self, examples):
        values = super().collate(examples)["values"]
        return {"values": values - values.mean(0)}


class SaysNothing(NumberModality):
    def collate(self, examples):
        return {"values": super().collate(examples)["values"] * 0}


class BadKey(NumberModality):
    encoder_key = "number of a column"


class Flat(FixedFeatures):
    def forward(self, *, values):
        return Tokens(values, torch.ones(values.shape, dtype=torch.bool))


class WrongShape(NumberModality):
    def build_encoder(self):
        return Flat(super().build_encoder().dim)


class IdleWeight(NumberModality):
    def build_encoder(self):
        encoder = super().build_encoder()
        encoder.idle = nn.Parameter(torch.zeros(1))
        encoder.scale = nn.Parameter(torch.ones(1))
        encoder.register_forward_hook(lambda module, _, out: Tokens(out.values * module.scale, out.mask))
        return encoder


class Forgetful(CategoryModality):
    def state(self):
        return {**super().state(), "vocabulary": []}


FAULTS = [
    (ClaimsAll, "detect_is_unsure_of_cells_that_are_refused detect_leaves_columns_to_other_kinds"),
    (ClaimsAnyWords, "detect_leaves_columns_to_other_kinds"),
    (NoReason, "detect_judges_any_cells"),
    (ReadsBad, "bad_cells_are_refused"),
    (ByRow, "decode_does_not_depend_on_the_row"),
    (ScalesInDecode, "decode_does_not_depend_on_fit"),
    (Centred, "tokens_do_not_depend_on_the_batch"),
    (SaysNothing, "cells_of_different_values_differ"),
    (BadKey, "the_encoder_is_described"),
    (WrongShape, "tokens_have_their_shape tokens_do_not_depend_on_the_batch cells_of_different_values_differ "
     "every_weight_receives_a_gradient the_state_restores_it"),
    (IdleWeight, "every_weight_receives_a_gradient"),
    (Forgetful, "the_state_restores_it"),
]  # fmt: skip


def test_a_sound_modality_passes(tmp_path):
    check_modality(lambda: NumberModality("a column"), [1, 2, 5], ["tomorrow"], base_dir=tmp_path)


@pytest.mark.parametrize(("broken", "rules"), FAULTS)
def test_each_fault_breaks_its_rules(broken, rules, tmp_path):
    cells, bad = (["1", "2", "5", "2"], ["tomorrow"]) if issubclass(broken, NumberModality) else (["a", "b"], [{}])
    case = ModalityCase(lambda: broken("a column"), cells, bad, tmp_path)
    found = broken_rules(ModalityContract, case=case)
    assert {name.removeprefix("test_") for name in found} == set(rules.split()), found


def test_every_rule_is_shown_to_find_a_fault():
    shown = {f"test_{name}" for _, rules in FAULTS for name in rules.split()}
    assert shown == set(rules_of(ModalityContract))
