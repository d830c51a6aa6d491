"""Load a `Backbone` by name, hub id or folder, and restore one from a saved folder."""

from __future__ import annotations

from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fusetune.backbones import small
from fusetune.backbones.adapters import adapt
from fusetune.backbones.backbone import FILE, KINDS, POOLS, Backbone
from fusetune.backbones.hub import embedded
from fusetune.backbones.hub.source import (
    ResolvedSource,
    check_files,
    check_safe,
    count_weights,
    fingerprint,
    quiet,
    read_json,
    resolve,
    weight_files,
)
from fusetune.backbones.inputs import (
    MAX_SECONDS,
    AudioInputs,
    ImageInputs,
    Inputs,
    SpectrogramInputs,
    TextInputs,
    token_limit,
)
from fusetune.backbones.inspection import structure
from fusetune.backbones.inspection.pooling import check_weights, finalize, fold_norms
from fusetune.backbones.inspection.trial import check_vectors
from fusetune.backbones.load_language import load_language, restore_language
from fusetune.backbones.pretrained import lacking, processor_of, steady, tokenizer_of
from fusetune.backbones.spectrogram import FILE as SPECTROGRAM
from fusetune.backbones.spectrogram import Spectrogram
from fusetune.backbones.tuned import is_tuned, load_tuned
from fusetune.config.adapter import AdapterConfig
from fusetune.errors import BackboneError, FolderError, FusetuneError, nearest
from fusetune.security.untrusted import reading

__all__ = ["Backbone", "load_backbone", "restore_backbone"]

USUAL_TOKENS = 512
MOST_RANK = 8192
CHECK = "check that config.json belongs to the weights and that the files are whole"
_restoring: ContextVar[tuple[Path, ...]] = ContextVar("restoring", default=())
"""Folders that are being restored, to detect cycles: an adapter's backbone may be a tuned model with an adapter."""


def load_backbone(
    source: str | None,
    kind: str,
    *,
    pool: str = "auto",
    max_tokens: int | None = None,
    max_seconds: float = MAX_SECONDS,
    norm_eval: bool = True,
) -> Backbone:
    """Load a pretrained encoder for one kind of cell, from safetensors only and without running code of its folder.

    Args:
        source: "minilm" (embedded, text), a folder, the folder of a tuned model, or a hub id "owner/name" or
            "owner/name@revision". None is "minilm" for text, and a small encoder without pretraining for images and
            audio.
        kind: "text", "image" or "audio".
        pool: see `Backbone`; "auto" is the pooling that the model was trained with.
        max_tokens: maximum number of tokens of a text; None for the model's default, at most 512.
        max_seconds: maximum duration of a sound in seconds, above 0.
        norm_eval: keep the running statistics of batch normalisation in training.

    Returns:
        The encoder in evaluation mode, float32, on the CPU.

    Raises:
        BackboneError: it does not exist, is not safe to load, lacks weights, or cannot encode this kind.
        MissingExtra: the embedded encoder is neither installed nor in the hub's cache.
    """
    _choose("kind", kind, KINDS)
    _choose("pool", pool, ("auto", *POOLS))
    if source is not None and is_tuned(source):
        return load_tuned(source, kind, pool=pool, restore=restore_backbone)
    if source in (None, small.KEYS.get(kind)) and kind != "text":
        return small.build(kind, pool=pool, max_seconds=max_seconds)
    resolved = resolve(source or embedded.NAME)
    with reading("the backbone cannot be loaded", file=resolved.folder, do=CHECK, error=BackboneError):
        return _loaded(resolved, kind, pool=pool, max_tokens=max_tokens, max_seconds=max_seconds, norm_eval=norm_eval)


def _loaded(
    resolved: ResolvedSource, kind: str, *, pool: str, max_tokens: int | None, max_seconds: float, norm_eval: bool
) -> Backbone:
    config = check_safe(resolved.folder)
    files = weight_files(resolved.folder)
    spectrogram = kind == "audio" and (resolved.folder / SPECTROGRAM).is_file()
    model, missing = _load(resolved.folder, config, count_weights(files))
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    part, method = structure.narrow(model, kind, spectrogram=spectrogram)
    inputs = _inputs(resolved.folder, kind, part, model.config, max_tokens=max_tokens, max_seconds=max_seconds)
    weights_sha256 = fingerprint(files)
    backbone = Backbone(
        part,
        inputs=inputs,
        kind=kind,
        pool="mean" if pool == "auto" else pool,
        source=resolved.source,
        key="_".join([kind, resolved.name, weights_sha256[:8], *([] if pool == "auto" else [pool])]),
        fingerprint=weights_sha256,
        pretrained=True,
        method=method,
        config=model.config,
        norm_eval=norm_eval,
    )
    finalize(backbone, pool, resolved.folder)
    lost = [names[id(p)] for p in backbone.parameters() if names.get(id(p)) in missing]
    if lost:
        raise lacking(sorted(lost), resolved.folder)
    check_weights(backbone, resolved.folder)
    fold_norms(backbone)
    check_vectors(backbone)
    return backbone


def restore_backbone(folder: Path, *, most: int | None = None) -> Backbone:
    """Restore an encoder from a folder of `Backbone.save`, with random weights that the model's are loaded over.

    Args:
        folder: with `backbone.json`.
        most: number of values in the weights' file; a much larger encoder is refused.

    Raises:
        FolderError: the folder lacks a file, or a file is broken or unsafe.
    """
    resolved = folder.resolve()
    if resolved in _restoring.get():
        raise FolderError("the encoder has an adapter to itself", do="name another backbone", file=str(folder))
    token = _restoring.set((*_restoring.get(), resolved))
    try:
        with reading("the encoder cannot be restored", file=folder / FILE, do="save the model again"):
            check_files(folder)
            saved = read_json(folder / FILE)
            if saved["small"]:
                return small.restore(saved, folder)
            if saved.get("adapter") is not None:
                return _adapted(saved)
            check_safe(folder)
            return restore_language(folder, saved, most) if saved.get("writes") else _restore(folder, saved, most)
    except FusetuneError as error:
        raise FolderError("the encoder cannot be restored", came=str(error), file=str(folder)) from error
    finally:
        _restoring.reset(token)


def _adapted(saved: dict[str, Any]) -> Backbone:
    """Restore a backbone with an adapter: pretrained weights from their source, adapter weights at random."""
    backbone = (
        load_language(saved["source"])
        if saved.get("writes")
        else load_backbone(
            saved["source"],
            saved["kind"],
            pool=saved["pool"],
            max_tokens=int(saved["max_tokens"]) or None,
            max_seconds=float(saved["max_seconds"]),
            norm_eval=bool(saved["norm_eval"]),
        )
    )
    if backbone.fingerprint != saved["fingerprint"]:
        raise BackboneError(
            f"{saved['source']} is not the pretrained model that the adapter was trained on",
            expected=f"weights of SHA-256 {saved['fingerprint']}",
            came=backbone.fingerprint,
            do="put the model back that was there; a merged folder does without: fusetune merge FOLDER --out OTHER",
        )
    if int(saved["adapter"].get("rank") or 0) > MOST_RANK:
        raise BackboneError("the adapter is too large", expected=f"a rank of at most {MOST_RANK}")
    adapt(backbone, AdapterConfig.model_validate(saved["adapter"]))
    backbone.key, backbone.pretrained_on_rows = saved["key"], str(saved.get("pretrained_on_rows", ""))
    return backbone.eval()


def _restore(folder: Path, saved: dict[str, Any], most: int | None) -> Backbone:
    from transformers import AutoConfig, AutoModel

    with quiet():
        config = steady(AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True))
        if most is not None:
            structure.check_size(config, most)
        model = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)  # type: ignore[no-untyped-call]
    kind = saved["kind"]
    part, method = structure.narrow(model, kind, spectrogram=(folder / SPECTROGRAM).is_file())
    tokens = int(saved["max_tokens"]) or None
    inputs = _inputs(folder, kind, part, config, max_tokens=tokens, max_seconds=float(saved["max_seconds"]))
    if isinstance(inputs, TextInputs):
        inputs.whole_length = bool(saved["whole_length"])
    removed = [(str(path), str(how)) for path, how in saved["removed"]]
    for path, how in removed:
        structure.remove(part, path, how)
    named = {name: saved[name] for name in ("pool", "key", "source", "fingerprint", "pretrained", "norm_eval")}
    backbone = Backbone(part, inputs=inputs, kind=kind, method=method, config=config, **named)
    backbone.removed, backbone.dim = removed, int(saved["dim"])
    backbone.normalised = bool(saved.get("normalised", False))
    backbone.separate = str(saved.get("separate", "")) or backbone.separate
    backbone.pretrained_on_rows = str(saved.get("pretrained_on_rows", ""))
    if saved.get("grid") is not None:
        extra, height, width = (int(number) for number in saved["grid"])
        backbone.grid = (extra, height, width)
    fold_norms(backbone.eval())
    return backbone


def _choose(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        hint = nearest(value, known)
        raise BackboneError(f"unknown {name} {value!r}", expected=", ".join(known), do=hint)


def _load(folder: Path, raw: dict[str, Any], most: int) -> tuple[Any, set[str]]:
    """Load the model of a folder; return it with the names of the parameters that its checkpoint lacks.

    Args:
        folder: of the model.
        raw: its config.json.
        most: number of values in the checkpoint.
    """
    from transformers import AutoConfig, AutoModel

    what = f"transformers cannot load this model (model_type {raw.get('model_type')!r})"
    with reading(what, file=folder, do=CHECK, error=BackboneError), quiet():
        config = steady(AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True))
        structure.check_size(config, most)
        model, info = AutoModel.from_pretrained(
            str(folder),
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    return model.eval(), set(info["missing_keys"])


def _inputs(
    folder: Path, kind: str, model: nn.Module, config: Any, *, max_tokens: int | None, max_seconds: float
) -> Inputs:
    """Return the inputs of a model, by the processor files in its folder."""
    if kind == "audio" and (folder / SPECTROGRAM).is_file():
        return SpectrogramInputs(Spectrogram.read(folder), max_seconds)
    if kind == "text":
        tokenizer = tokenizer_of(folder)
        usual = USUAL_TOKENS
        if (folder / "sentence_bert_config.json").is_file():
            usual = int(read_json(folder / "sentence_bert_config.json").get("max_seq_length") or usual)
        structure.check_words(model, max(tokenizer.get_vocab().values(), default=0))
        limit = token_limit(tokenizer, structure.num_positions(model, config), max_tokens, usual)
        try:
            return TextInputs(tokenizer, limit)
        except BackboneError as error:
            raise error.in_file(str(folder)) from None
    if kind == "image":
        if getattr(config, "num_channels", 3) != 3:
            raise BackboneError(
                "this image model does not read colour pictures",
                expected="3 channels",
                came=str(config.num_channels),
                do=f"for sounds, add {SPECTROGRAM} and use it for an audio column",
                file=str(folder),
            )
        return ImageInputs(processor_of("AutoImageProcessor", folder, "preprocessor_config.json", backend="pil"))
    return AudioInputs(processor_of("AutoFeatureExtractor", folder, "preprocessor_config.json"), max_seconds)
