"""The real models beside the checkout: mobilenet-v2, yamnet and stories260k."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from fusetune.backbones.backbone import Backbone
from fusetune.backbones.load import load_backbone
from fusetune.testing.backbones import BackboneContract

MODELS = Path(os.environ.get("FUSETUNE_DATA", Path(__file__).parents[3] / "shared")) / "models"
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not MODELS.is_dir(), reason=f"no real models: there is no folder {MODELS}"),
]


class TestContract(BackboneContract):
    tolerance = 1e-4

    @pytest.fixture(scope="module", params=[("mobilenet-v2", "image"), ("yamnet", "audio"), ("stories260k", "text")])
    def backbone(self, request: pytest.FixtureRequest) -> Backbone:
        name, kind = request.param
        return load_backbone(str(MODELS / name), kind)


@torch.no_grad()
def test_mobilenet_equals_transformers() -> None:
    folder = str(MODELS / "mobilenet-v2")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8))
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")(picture, return_tensors="pt")
    theirs = AutoModel.from_pretrained(folder).eval()(**pixels).pooler_output
    backbone = load_backbone(folder, "image")
    ours = backbone(**backbone.collate_images([backbone.prepare_image(picture)])).values[:, 0]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert backbone.dim == 1280 and backbone.image_size == (224, 224)
