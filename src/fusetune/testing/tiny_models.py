"""Tiny models with random weights and their processors, saved as model folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    PreTrainedTokenizerFast,
)

WORDS = [f"w{number}" for number in range(40)]
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
VOCAB = {word: number for number, word in enumerate([*SPECIALS, *WORDS])}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SIDE = 32


def tokenizer(
    folder: Path, *, pad: bool = True, specials: bool = True, limit: int = 32, names: list[str] | None = None
) -> None:
    """Write a word-level fast tokenizer over `WORDS`."""
    marks = [(word, VOCAB[word]) for word in ("[CLS]", "[SEP]")]
    single = [
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
    ]
    second = [{"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}]
    frame = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, *second],
        "special_tokens": {word: {"id": word, "ids": [number], "tokens": [word]} for word, number in marks},
    }
    core: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": frame if specials else None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": VOCAB, "unk_token": "[UNK]"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(core))
    given: dict[str, Any] = {"unk_token": "[UNK]", "model_max_length": limit}
    if pad:
        given["pad_token"] = "[PAD]"
    if names:
        given["model_input_names"] = names
    file = str(folder / "tokenizer.json")
    made: Any = PreTrainedTokenizerFast(tokenizer_file=file, **given)  # type: ignore[no-untyped-call]
    made.save_pretrained(str(folder))


def image_processor(folder: Path, **changes: Any) -> None:
    """Write the preprocessor_config.json of an image processor that resizes to `SIDE` and normalises."""
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": SIDE, "width": SIDE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.25, 0.3],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | changes))


def feature_extractor(folder: Path, **settings: Any) -> None:
    """Write the preprocessor_config.json of a feature extractor."""
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def _save(folder: Path, model_type: str, *, auto: Any = AutoModel, **settings: Any) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **settings)
    model: Any = auto.from_config(config)
    model.save_pretrained(str(folder))


def make(name: str, folder: Path) -> Path:
    """Create the tiny model of a name in a folder, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    _MAKERS[name](folder)
    return folder


def _bert(folder: Path) -> None:
    _save(folder, "bert", vocab_size=len(VOCAB), max_position_embeddings=32, **SMALL)
    tokenizer(folder, names=["input_ids", "token_type_ids", "attention_mask"])


def _roberta(folder: Path) -> None:
    _save(folder, "roberta", vocab_size=len(VOCAB), max_position_embeddings=34, pad_token_id=0, **SMALL)
    tokenizer(folder, limit=1000)


def _t5(folder: Path) -> None:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    _save(folder, "t5", vocab_size=len(VOCAB), decoder_start_token_id=0, **sizes)
    tokenizer(folder)


def _llama(folder: Path) -> None:
    _save(folder, "llama", vocab_size=len(VOCAB), num_key_value_heads=1, max_position_embeddings=64, **SMALL)
    tokenizer(folder, pad=False, specials=False, limit=64)


def _gpt2(folder: Path) -> None:
    _save(folder, "gpt2", vocab_size=len(VOCAB), n_embd=16, n_layer=2, n_head=2, n_positions=64)
    tokenizer(folder, pad=False, specials=False, limit=64)


ENDS = {"eos_token_id": VOCAB["[SEP]"], "bos_token_id": VOCAB["[CLS]"], "pad_token_id": 0}


def _ending(folder: Path, *, specials: bool = False) -> None:
    """Write a tokenizer of 96 tokens a text whose `eos_token` is [SEP]."""
    tokenizer(folder, specials=specials, limit=96)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": "[SEP]"}))


def _llama_writer(folder: Path) -> None:
    sizes = {"num_key_value_heads": 1, "max_position_embeddings": 96, "tie_word_embeddings": True}
    _save(folder, "llama", auto=AutoModelForCausalLM, vocab_size=len(VOCAB), **sizes, **ENDS, **SMALL)
    _ending(folder)


def _gpt2_writer(folder: Path) -> None:
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 96}
    _save(folder, "gpt2", auto=AutoModelForCausalLM, vocab_size=len(VOCAB), **sizes, **ENDS)
    _ending(folder)


def _t5_writer(folder: Path) -> None:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    ends = {"eos_token_id": VOCAB["[SEP]"], "pad_token_id": 0, "decoder_start_token_id": 0}
    _save(folder, "t5", auto=AutoModelForSeq2SeqLM, vocab_size=len(VOCAB), **sizes, **ends)
    _ending(folder, specials=True)


def _whisper_writer(folder: Path) -> None:
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": len(VOCAB), "num_mel_bins": 8}
    sizes |= {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
    sizes |= {f"{part}_ffn_dim": 24 for part in ("encoder", "decoder")}
    sizes |= {"max_source_positions": 100, "max_target_positions": 32, "decoder_start_token_id": VOCAB["[CLS]"]}
    _save(folder, "whisper", auto=AutoModelForSpeechSeq2Seq, **sizes, **ENDS)
    _ending(folder)
    feature_extractor(
        folder,
        feature_extractor_type="WhisperFeatureExtractor",
        feature_size=8,
        chunk_length=2,
        sampling_rate=16000,
        hop_length=160,
        n_fft=400,
    )


def _vit(folder: Path) -> None:
    _save(folder, "vit", image_size=SIDE, patch_size=8, **SMALL)
    image_processor(folder)


def _dinov2(folder: Path) -> None:
    sizes = {key: value for key, value in SMALL.items() if key != "intermediate_size"}
    _save(folder, "dinov2", image_size=SIDE, patch_size=8, **sizes)
    image_processor(
        folder,
        size={"shortest_edge": 40},
        do_center_crop=True,
        crop_size={"height": SIDE, "width": SIDE},
        image_processor_type="BitImageProcessor",
    )


def _swin(folder: Path) -> None:
    _save(folder, "swin", image_size=SIDE, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
    image_processor(folder)


def _resnet(folder: Path) -> None:
    _save(folder, "resnet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic")
    image_processor(folder, image_processor_type="ConvNextImageProcessor", size={"shortest_edge": SIDE}, crop_pct=0.875)


def _convnext(folder: Path) -> None:
    _save(folder, "convnext", hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
    image_processor(folder, image_processor_type="ConvNextImageProcessor", size={"shortest_edge": SIDE}, crop_pct=0.875)


def _mobilenet(folder: Path) -> None:
    _save(folder, "mobilenet_v2", depth_multiplier=0.1, min_depth=8, image_size=SIDE)
    image_processor(
        folder,
        image_processor_type="MobileNetV2ImageProcessor",
        size={"shortest_edge": 40},
        do_center_crop=True,
        crop_size={"height": SIDE, "width": SIDE},
    )


_CONVS = {"conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_feat_extract_layers": 2}
_WAVE = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}


def _wav2vec2(folder: Path) -> None:
    _save(folder, "wav2vec2", feat_extract_norm="layer", do_stable_layer_norm=True, **_CONVS, **_WAVE, **SMALL)
    feature_extractor(
        folder,
        feature_extractor_type="Wav2Vec2FeatureExtractor",
        sampling_rate=2000,
        do_normalize=True,
        return_attention_mask=True,
    )


def _hubert(folder: Path) -> None:
    _save(folder, "hubert", feat_extract_norm="group", **_CONVS, **_WAVE, **SMALL)
    feature_extractor(folder, feature_extractor_type="Wav2Vec2FeatureExtractor", sampling_rate=2000, do_normalize=True)


def _whisper(folder: Path) -> None:
    sizes = {
        "d_model": 16,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 24,
    }
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "vocab_size": 50}
    _save(folder, "whisper", num_mel_bins=8, max_source_positions=100, max_target_positions=8, **sizes, **tokens)
    feature_extractor(
        folder,
        feature_extractor_type="WhisperFeatureExtractor",
        feature_size=8,
        chunk_length=2,
        sampling_rate=16000,
        hop_length=160,
        n_fft=400,
    )


def _ast(folder: Path) -> None:
    _save(
        folder,
        "audio-spectrogram-transformer",
        max_length=64,
        num_mel_bins=16,
        patch_size=8,
        frequency_stride=8,
        time_stride=8,
        **SMALL,
    )
    feature_extractor(
        folder, feature_extractor_type="ASTFeatureExtractor", sampling_rate=16000, num_mel_bins=16, max_length=64
    )


def _clip(folder: Path) -> None:
    text = {"vocab_size": len(VOCAB), "max_position_embeddings": 32, "eos_token_id": VOCAB["[SEP]"], "pad_token_id": 0}
    vision = {"image_size": SIDE, "patch_size": 8}
    _save(folder, "clip", text_config=text | SMALL, vision_config=vision | SMALL, projection_dim=12)
    tokenizer(folder)
    image_processor(
        folder,
        image_processor_type="CLIPImageProcessor",
        size={"shortest_edge": SIDE},
        do_center_crop=True,
        crop_size={"height": SIDE, "width": SIDE},
        do_convert_rgb=True,
    )


def _siglip(folder: Path) -> None:
    text = {"vocab_size": len(VOCAB), "max_position_embeddings": 16}
    _save(folder, "siglip", text_config=text | SMALL, vision_config={"image_size": SIDE, "patch_size": 8} | SMALL)
    tokenizer(folder, limit=16, names=["input_ids"])
    image_processor(folder, image_processor_type="SiglipImageProcessor")


def _clap(folder: Path) -> None:
    text = {"vocab_size": len(VOCAB), "max_position_embeddings": 34, "pad_token_id": 0, "projection_dim": 12}
    audio = {
        "spec_size": 64,
        "num_mel_bins": 16,
        "patch_size": 4,
        "patch_stride": [4, 4],
        "window_size": 4,
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1],
        "num_attention_heads": [1, 2],
        "hidden_size": 16,
        "projection_dim": 12,
        "num_hidden_layers": 2,
    }
    _save(folder, "clap", text_config=text | SMALL, audio_config=audio, projection_dim=12)
    tokenizer(folder, limit=32)
    feature_extractor(
        folder,
        feature_extractor_type="ClapFeatureExtractor",
        feature_size=16,
        sampling_rate=16000,
        hop_length=160,
        max_length_s=1,
        fft_window_size=512,
        truncation="rand_trunc",
        padding="repeatpad",
        frequency_max=8000,
    )


def _spectrogram(folder: Path) -> None:
    _save(folder, "mobilenet_v1", num_channels=1, depth_multiplier=0.1, min_depth=8, image_size=SIDE)
    settings = {
        "sampling_rate": 8000,
        "window_length": 200,
        "hop_length": 80,
        "fft_length": 256,
        "num_mel_filters": 32,
        "min_frequency": 60,
        "max_frequency": 4000,
        "log_offset": 0.01,
        "patch_frames": 32,
        "patch_hop_frames": 16,
    }
    (folder / "spectrogram.json").write_text(json.dumps(settings))


CASES = [
    ("bert", "text"),
    ("roberta", "text"),
    ("t5", "text"),
    ("llama", "text"),
    ("gpt2", "text"),
    ("clip", "text"),
    ("siglip", "text"),
    ("clap", "text"),
    ("vit", "image"),
    ("dinov2", "image"),
    ("swin", "image"),
    ("resnet", "image"),
    ("convnext", "image"),
    ("mobilenet", "image"),
    ("clip", "image"),
    ("siglip", "image"),
    ("wav2vec2", "audio"),
    ("hubert", "audio"),
    ("whisper", "audio"),
    ("ast", "audio"),
    ("clap", "audio"),
    ("spectrogram", "audio"),
]
"""All names of `make`, each with the kinds of cells that the model encodes."""

WRITERS = ["llama_writer", "gpt2_writer", "t5_writer"]
"""The names of `make` of language models with their heads."""

_MAKERS: dict[str, Callable[[Path], None]] = {
    "llama_writer": _llama_writer,
    "gpt2_writer": _gpt2_writer,
    "t5_writer": _t5_writer,
    "whisper_writer": _whisper_writer,
    "bert": _bert,
    "roberta": _roberta,
    "t5": _t5,
    "llama": _llama,
    "gpt2": _gpt2,
    "clip": _clip,
    "siglip": _siglip,
    "clap": _clap,
    "vit": _vit,
    "dinov2": _dinov2,
    "swin": _swin,
    "resnet": _resnet,
    "convnext": _convnext,
    "mobilenet": _mobilenet,
    "wav2vec2": _wav2vec2,
    "hubert": _hubert,
    "whisper": _whisper,
    "ast": _ast,
    "spectrogram": _spectrogram,
}
