"""Encoders that read padding, draw random numbers or hold nothing are told when they are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fusetune.backbones.backbone import Backbone
from fusetune.backbones.inspection import structure
from fusetune.backbones.inspection.trial import check_vectors
from fusetune.backbones.load import load_backbone, restore_backbone
from fusetune.backbones.passes.graphs import why_not_replayed
from fusetune.errors import BackboneError

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TEXTS = ["w1 w2 w3", "w4", " ".join(f"w{i}" for i in range(20)), "w9 w3 w2"]


def save(folder: Path, kind: str, **settings: Any) -> Path:
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(kind, **settings)).save_pretrained(str(folder))
    return folder


def processor(folder: Path, **settings: Any) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")


def with_tokenizer(folder: Path, tiny: Any) -> Path:
    for file in Path(tiny("bert")).iterdir():
        if "token" in file.name or "vocab" in file.name:
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def vectors(backbone: Backbone, cells: list[Any]) -> torch.Tensor:
    with torch.no_grad():
        return backbone(**backbone.inputs.collate([backbone.inputs.prepare(cell) for cell in cells])).mean()


def text_encoder(tmp_path: Path, tiny: Any, kind: str, **settings: Any) -> Path:
    folder = save(tmp_path / kind, kind, vocab_size=200, max_position_embeddings=32, **SIZES, **settings)
    return with_tokenizer(folder, tiny)


@pytest.mark.parametrize(("kind", "settings"), [("fnet", {"pad_token_id": 0}), ("convbert", {"embedding_size": 16})])
@pytest.mark.parametrize("pool", ["auto", "none"])
def test_a_text_encoder_that_reads_padding_takes_one_length_at_a_time(tmp_path, tiny, kind, settings, pool) -> None:
    backbone = load_backbone(str(text_encoder(tmp_path, tiny, kind, **settings)), "text", pool=pool)
    assert backbone.separate == "lengths" and backbone.source in backbone.notes[0]
    alone = torch.cat([vectors(backbone, [text]) for text in TEXTS])
    torch.testing.assert_close(vectors(backbone, TEXTS), alone, rtol=0, atol=1e-5)
    assert why_not_replayed(backbone)
    backbone.save(tmp_path / "saved")
    assert restore_backbone(tmp_path / "saved").separate == "lengths"
    backbone.separate = ""  # the test can fail
    assert not torch.allclose(vectors(backbone, TEXTS), alone, atol=1e-5)


def test_usual_encoders_take_a_batch_in_one_pass(tiny) -> None:
    for name in ("bert", "roberta", "t5", "llama"):
        backbone = load_backbone(tiny(name), "text")
        assert backbone.separate == "" and backbone.notes == []


SOUNDS = {
    "wav2vec2-bert": (
        {**SIZES, "feature_projection_input_dim": 16, "conv_depthwise_kernel_size": 3},
        {"feature_extractor_type": "SeamlessM4TFeatureExtractor", "num_mel_bins": 8, "stride": 2, "padding_value": 0.0},
    ),
    "speech_to_text": (
        {
            **{"vocab_size": 50, "d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2},
            **{"decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "input_channels": 1},
            **{"input_feat_per_channel": 8, "conv_channels": 16, "max_source_positions": 400, "pad_token_id": 0},
            **{"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
        },
        {"feature_extractor_type": "Speech2TextFeatureExtractor", "num_mel_bins": 8},
    ),
}


@pytest.mark.parametrize("kind", SOUNDS)
def test_features_as_long_as_the_sound_are_read_alone_and_in_a_batch_alike(tmp_path, kind) -> None:
    settings, extractor = SOUNDS[kind]
    folder = save(tmp_path / kind, kind, **settings)
    processor(folder, feature_size=8, sampling_rate=16000, **extractor)
    backbone, random = load_backbone(str(folder), "audio"), np.random.default_rng(0)
    sounds = [random.normal(0, 0.1, num).astype(np.float32) for num in (16000, 8000, 24000, 700)]

    def encoded(cells: list[np.ndarray]) -> torch.Tensor:
        prepared = [backbone.prepare_audio(cell, 16000) for cell in cells]
        with torch.no_grad():
            return backbone(**backbone.collate_audio(prepared)).mean()

    torch.testing.assert_close(encoded(sounds), torch.cat([encoded([s]) for s in sounds]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("pool", ["auto", "none"])
def test_waveforms_under_group_normalisation_are_read_one_length_at_a_time(tmp_path, pool) -> None:
    convolutions = {"conv_dim": [16, 16], "conv_kernel": [10, 8], "conv_stride": [20, 16]}
    more = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "vocab_size": 40}
    folder = save(tmp_path / "waves", "wav2vec2", feat_extract_norm="group", **convolutions, **more, **SIZES)
    kind = "Wav2Vec2FeatureExtractor"
    processor(folder, feature_extractor_type=kind, feature_size=1, sampling_rate=16000, return_attention_mask=False)
    backbone, random = load_backbone(str(folder), "audio", pool=pool), np.random.default_rng(0)
    assert backbone.separate == "lengths" and backbone.source in backbone.notes[0]
    sounds = [random.normal(0, 0.1, num).astype(np.float32) for num in (16000, 8000, 24000, 8000)]
    alone = torch.cat([vectors(backbone, [sound]) for sound in sounds])
    torch.testing.assert_close(vectors(backbone, sounds), alone, rtol=0, atol=1e-5)
    backbone.separate = ""  # the test can fail
    assert not torch.allclose(vectors(backbone, sounds), alone, atol=1e-5)


@pytest.mark.parametrize("pool", ["auto", "mean", "none"])
def test_a_model_that_hides_patches_sees_all_of_them_in_their_order(tmp_path, pool) -> None:
    folder = save(tmp_path / "mae", "vit_mae", image_size=32, patch_size=8, **SIZES)
    side, half = {"height": 32, "width": 32}, [0.5, 0.5, 0.5]
    processor(folder, image_processor_type="ViTImageProcessor", size=side, image_mean=half, image_std=half)
    backbone = load_backbone(str(folder), "image", pool=pool)
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    inputs = backbone.collate_images([backbone.prepare_image(Image.fromarray(pixels))])
    with torch.no_grad():
        one, two = backbone(**inputs), backbone(**inputs)
    assert torch.equal(one.values, two.values)
    if pool == "none":
        assert one.values.shape[1] == 17 and backbone.grid == (1, 4, 4)


class Stub(torch.nn.Module):
    """An encoder that draws, gives NaN or mixes the rows of a batch."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.words, self.fault = torch.nn.Embedding(200, 8), fault

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        from transformers.modeling_outputs import BaseModelOutput

        values = self.words(input_ids)
        if self.fault == "draws":
            values = values + torch.rand_like(values)
        elif self.fault == "nan":
            values = values / 0 * 0
        elif self.fault == "rows":
            values = values + values.mean(0, keepdim=True)
        return BaseModelOutput(last_hidden_state=values)


@pytest.mark.parametrize(("fault", "said"), [("draws", "each pass"), ("nan", "not finite"), ("rows", "")])
def test_a_model_is_refused_or_run_cell_by_cell(tiny, fault, said) -> None:
    usual = load_backbone(tiny("bert"), "text")
    named = {"kind": "text", "pool": "mean", "source": "stub", "key": "stub", "fingerprint": "", "pretrained": True}
    backbone = Backbone(Stub(fault), inputs=usual.inputs, **named).eval()
    if said:
        with pytest.raises(BackboneError, match=said):
            check_vectors(backbone)
        return
    check_vectors(backbone)
    assert backbone.separate == "cells" and "one cell" in backbone.notes[0]
    alone = torch.cat([vectors(backbone, [text]) for text in TEXTS])
    torch.testing.assert_close(vectors(backbone, TEXTS), alone)


def test_no_tokenizer_files_are_refused(tmp_path) -> None:
    for kind in ("bert", "roberta", "electra"):
        folder = save(tmp_path / kind, kind, vocab_size=65, max_position_embeddings=34, pad_token_id=1, **SIZES)
        with pytest.raises(BackboneError, match="no tokenizer"):
            load_backbone(str(folder), "text")


def test_weights_of_zeros_are_refused_and_a_matrix_of_zeros_is_told(tmp_path, tiny) -> None:
    from safetensors.torch import load_file, save_file

    folder = text_encoder(tmp_path, tiny, "bert")
    weights = load_file(folder / "model.safetensors")
    name = "encoder.layer.0.attention.self.key.weight"
    save_file({**weights, name: torch.zeros(16, 16)}, folder / "model.safetensors", metadata={"format": "pt"})
    assert any(name in note for note in load_backbone(str(folder), "text").notes)
    save_file(
        {key: torch.zeros_like(value) for key, value in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(BackboneError, match="zero"):
        load_backbone(str(folder), "text")


@pytest.mark.parametrize("style", ["mode", "flags"])
@pytest.mark.parametrize(("mode", "pool"), [("mean", "mean"), ("cls", "cls"), ("lasttoken", "last"), ("max", None)])
@pytest.mark.parametrize("normalised", [True, False])
def test_a_sentence_encoders_own_pooling(tmp_path, tiny, style, mode, pool, normalised) -> None:
    folder = text_encoder(tmp_path, tiny, "bert")
    names = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken", "max": "max_tokens"}
    flags = {f"pooling_mode_{name}": key == mode for key, name in names.items()}
    (folder / "1_Pooling").mkdir()
    said = {"pooling_mode": mode} if style == "mode" else {"word_embedding_dimension": 16, **flags}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(said), encoding="utf-8")
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalised else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": paths[n]} for n, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    if pool is None:
        with pytest.raises(BackboneError, match="pool: mean"):
            load_backbone(str(folder), "text")
        assert load_backbone(str(folder), "text", pool="mean").pool == "mean"
        return
    backbone = load_backbone(str(folder), "text")
    assert backbone.pool == pool and backbone.normalised == normalised
    norms = vectors(backbone, TEXTS).norm(dim=1)
    assert torch.allclose(norms, torch.ones(4)) == normalised
    backbone.save(tmp_path / "saved")
    assert restore_backbone(tmp_path / "saved").normalised == normalised


def test_gits_own_objects_are_passed_over(tmp_path, tiny) -> None:
    folder = text_encoder(tmp_path, tiny, "bert")
    (folder / ".git" / "objects" / "ab").mkdir(parents=True)
    (folder / ".git" / "objects" / "ab" / "cd").write_bytes(b"\x78\x01" + bytes(20))
    assert load_backbone(str(folder), "text").dim == 16
    (folder / "other").write_bytes(b"\x78\x01" + bytes(20))
    with pytest.raises(BackboneError, match="compressed"):
        load_backbone(str(folder), "text")


def test_a_timm_model_says_what_it_would_need(tmp_path) -> None:
    config = {"architecture": "resnet18", "num_classes": 1000, "num_features": 512, "pretrained_cfg": {}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(BackboneError, match="torchvision"):
        load_backbone(str(tmp_path), "image")


def test_patches_are_counted(tiny) -> None:
    assert structure.patch_grid(load_backbone(tiny("vit"), "image").model, (32, 32)) is not None


def test_efficientnets_second_division_is_part_of_the_arithmetic(tmp_path) -> None:
    settings = {"width_coefficient": 0.1, "depth_coefficient": 0.1, "image_size": 32, "hidden_dim": 128}
    folder = save(tmp_path / "net", "efficientnet", **settings)
    side, mean, deviation = {"height": 32, "width": 32}, [0.485, 0.456, 0.406], [0.4785, 0.4733, 0.4743]
    more = {"size": side, "image_mean": mean, "image_std": deviation, "include_top": True, "do_center_crop": False}
    processor(folder, image_processor_type="EfficientNetImageProcessor", **more)
    backbone = load_backbone(str(folder), "image")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))
    ours = backbone.collate_images([backbone.prepare_image(picture)])["pixel_values"]
    wanted = backbone.processor(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours, wanted, rtol=0, atol=2e-4)
