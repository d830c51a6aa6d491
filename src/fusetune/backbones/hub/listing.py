"""The encoders that are available on this machine, and the description of one of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusetune.backbones.hub import embedded, embedded_lm, source
from fusetune.backbones.load import load_backbone
from fusetune.backbones.spectrogram import FILE as SPECTROGRAM
from fusetune.errors import BackboneError, FusetuneError

_DIMS = ("hidden_size", "d_model", "n_embd", "projection_dim")


@dataclass(frozen=True)
class Listed:
    """An available encoder.

    Attributes:
        name: its name as a setting; "" for the small encoders, which are the defaults.
        kinds: the kinds of columns that it can encode.
        dim: features of its output, None if it must be loaded to find out.
        parameters: number of weights in its files.
        where: "package", "folder", "hub cache" or "built in".
        path: its folder, "" for the small encoders, and for the embedded language model before it is first used.
        writes: whether it is a language model with its head, which also writes texts.
    """

    name: str
    kinds: tuple[str, ...]
    dim: int | None
    parameters: int
    where: str
    path: str
    writes: bool = False


def list_backbones(folders: list[Path] | None = None) -> list[Listed]:
    """Return the encoders that load offline: embedded, small, in the hub's cache and in these folders.

    Args:
        folders: folders whose direct subfolders are models.
    """
    result: list[Listed] = []
    if embedded.is_installed():
        result.append(_listed(embedded.NAME, embedded.folder(), "package"))
    if embedded_lm.is_installed():
        result.append(
            Listed(embedded_lm.NAME, ("text",), embedded_lm.DIM, embedded_lm.PARAMETERS, "package", "", writes=True)
        )
    for kind in ("image", "audio"):
        backbone = load_backbone(None, kind)
        size = sum(parameter.numel() for parameter in backbone.parameters())
        result.append(Listed("", (kind,), backbone.dim, size, "built in", ""))
    for folder in folders or []:
        for path in sorted(child for child in folder.iterdir() if (child / "config.json").is_file()):
            result += _maybe(str(path), path, "folder")
    for name, path in _cached():
        result += _maybe(name, path, "hub cache")
    return result


def _maybe(name: str, path: Path, where: str) -> list[Listed]:
    """Return the encoder in a folder, or an empty list if the folder cannot be loaded."""
    try:
        listed = _listed(name, path, where)
    except (FusetuneError, OSError):
        return []
    return [listed] if listed.kinds else []


def _listed(name: str, path: Path, where: str) -> Listed:
    config = source.check_safe(path)
    texts = config.get("text_config") or {}
    dims = [config.get(key) for key in ("projection_dim", *_DIMS)] + [texts.get(key) for key in _DIMS]
    dim = next((value for value in dims if isinstance(value, int)), None)
    size = source.count_weights(source.weight_files(path))
    return Listed(name, kinds_of(path, config), dim, size, where, str(path), writes=_writes(config))


def _writes(config: dict[str, Any]) -> bool:
    """Return whether a model folder's config states a decoder or an encoder-decoder with its language-model head."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

    kind = CONFIG_MAPPING[config["model_type"]]
    mappings: tuple[Any, ...] = (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING)
    heads = {getattr(mapping.get(kind, None), "__name__", "") for mapping in mappings} - {""}
    return bool(heads & set(config.get("architectures") or ()))


def kinds_of(path: Path, config: dict[str, Any]) -> tuple[str, ...]:
    """Return the kinds of columns that a model folder can encode, by its config and its processor files."""
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    model: Any = MODEL_MAPPING.get(CONFIG_MAPPING[config["model_type"]], None)
    if model is None:
        return ()
    model = model[0] if isinstance(model, tuple | list) else model
    towers = tuple(kind for kind in ("text", "image", "audio") if hasattr(model, f"get_{kind}_features"))
    if len(towers) > 1:
        return towers
    name = getattr(model, "main_input_name", "")
    if name == "pixel_values":
        return ("audio",) if (path / SPECTROGRAM).is_file() else ("image",)
    return {"input_ids": ("text",), "input_values": ("audio",), "input_features": ("audio",)}.get(name, ())


def _cached() -> list[tuple[str, Path]]:
    """Return the hub ids in the local cache, each with the folder of its revision "main"."""
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(os.environ.get("HF_HUB_CACHE", HF_HUB_CACHE))
    result = []
    for reference in sorted(cache.glob("models--*/refs/main")):
        home = reference.parent.parent
        revision = reference.read_text(encoding="utf-8").strip() if reference.is_file() else ""
        path = home / "snapshots" / revision
        if revision.isalnum() and (path / "config.json").is_file():
            result.append((home.name.removeprefix("models--").replace("--", "/"), path))
    return result


def describe(name: str, kind: str | None = None) -> list[dict[str, Any]]:
    """Load an encoder and describe it for each kind of column that it can encode.

    Args:
        name: a source for `load_backbone`, or "" for the small encoders.
        kind: only this kind; None for all kinds.

    Returns:
        For each kind: name, kind, key, dim, pool, parameters, fingerprint, pretrained, blocks (names and numbers of
        weights, from input to output), and max_tokens, sampling_rate (Hz) or image_size (pixels).

    Raises:
        BackboneError: it does not exist, cannot be loaded, or encodes none of these kinds.
    """
    if not name:
        kinds: tuple[str, ...] = ("image", "audio")
    else:
        folder = source.resolve(name).folder
        kinds = kinds_of(folder, source.check_safe(folder))
    chosen = [each for each in kinds if kind in (None, each)] or ([kind] if kind else [])
    if not chosen:
        raise BackboneError("this model encodes neither text nor images nor audio", came=name)
    return [_described(name, each) for each in chosen]


def _described(name: str, kind: str) -> dict[str, Any]:
    backbone = load_backbone(name or None, kind)
    sizes = [(path, sum(p.numel() for p in block.parameters())) for path, block in backbone.blocks()]
    reads: dict[str, dict[str, Any]] = {
        "text": {"max_tokens": backbone.max_tokens},
        "image": {"image_size": list(backbone.image_size)},
        "audio": {"sampling_rate": backbone.sampling_rate},
    }
    return {
        "name": name or backbone.key,
        "kind": kind,
        "key": backbone.key,
        "dim": backbone.dim,
        "pool": backbone.pool,
        "parameters": sum(size for _, size in sizes),
        "fingerprint": backbone.fingerprint,
        "pretrained": backbone.pretrained,
        "blocks": [{"name": path, "parameters": size} for path, size in sizes],
        **reads[kind],
    }
