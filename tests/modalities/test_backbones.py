"""The media kinds on the encoders that the package itself builds, as on the stand-in of the contract suite."""

import pytest

from fusetune.backbones.load import load_backbone
from fusetune.registry import MODALITIES
from fusetune.testing.modalities import check_modality, sample_cells, sort_cells


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_keeps_to_the_contract_on_a_small_encoder(kind, tmp_path):
    if kind == "audio":
        pytest.importorskip("soundfile")
    backbone = load_backbone(None, kind)
    cls = MODALITIES.get(kind)
    good, bad = sort_cells(cls("a column", backbone=backbone), sample_cells(tmp_path), tmp_path)
    check_modality(lambda: cls("a column", backbone=backbone), good, bad, base_dir=tmp_path, backbone=backbone)
