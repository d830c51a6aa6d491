"""Every registered modality keeps to the contract, with whatever of the sample cells it reads."""

import pytest

from fusetune.modalities.base import Modality
from fusetune.registry import MODALITIES
from fusetune.testing.modalities import TinyBackbone, check_modality, check_refuses, sample_cells, sort_cells


@pytest.mark.parametrize("kind", list(MODALITIES))
def test_keeps_to_the_contract(kind, tmp_path):
    cls = MODALITIES.get(kind)
    assert cls.kind == kind
    backbone = TinyBackbone(kind) if cls.needs_backbone else None
    options = {"backbone": backbone} if cls.needs_backbone else {}

    def make() -> Modality:
        return cls("a column", **options)

    good, bad = sort_cells(make(), sample_cells(tmp_path), tmp_path)
    assert len(good) >= 2 and bad
    check_modality(make, good, bad, base_dir=tmp_path, backbone=backbone)


def test_the_suite_notices_a_cell_that_is_read_though_bad(tmp_path):
    modality = MODALITIES.get("number")("a column")
    with pytest.raises(AssertionError, match="to be refused"):
        check_refuses(modality, ["3"], tmp_path)


def test_the_suite_notices_tokens_that_depend_on_the_batch(tmp_path):
    class Centred(MODALITIES.get("number")):
        def collate(self, examples):
            tensors = super().collate(examples)
            return {"values": tensors["values"] - tensors["values"].mean(0)}

    with pytest.raises(AssertionError, match="alone and in a batch"):
        check_modality(lambda: Centred("a column"), [1, 2, 5], ["x"], base_dir=tmp_path)


def test_the_suite_notices_a_state_that_forgets(tmp_path):
    class Forgetful(MODALITIES.get("category")):
        def state(self):
            return {**super().state(), "vocabulary": []}

    with pytest.raises(AssertionError, match="collates differently"):
        check_modality(lambda: Forgetful("a column"), ["a", "b", "a", "b"], [{}], base_dir=tmp_path)
