"""How an exported model's columns are prepared, as `fusetune.runtime` reads it: runtime.json and the tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fusetune.backbones.inputs import ImageInputs, SpectrogramInputs, TextInputs
from fusetune.backbones.pixels import PixelSteps
from fusetune.deploy.bundle import Bundle, versions
from fusetune.errors import ConfigError
from fusetune.modalities.audio import AudioModality
from fusetune.modalities.base import Modality
from fusetune.modalities.image import ImageModality
from fusetune.modalities.text import TextModality
from fusetune.models.flat import FlatModel, check_flat
from fusetune.runtime.files import FORMAT, TOKENIZERS
from fusetune.runtime.readers import FEATURES
from fusetune.tasks.abilities import Exported

TRIAL_SIZES = ((64, 64), (40, 97), (300, 180), (33, 31), (12, 500), (640, 480))
"""Widths and heights of the images by which `PixelSteps` are compared with an image processor."""
SMALL_CROP = 384
"""ConvNeXt's processors cut the centre of images that are smaller than this."""


def check_exportable(bundle: Bundle) -> None:
    """Check that a model can be exported, before anything is computed.

    Raises:
        ConfigError: it cannot; the message names all columns and tasks that stand in the way.
    """
    if bundle.stack is not None:
        raise ConfigError(
            "boosted trees are not exported",
            came="a model with fusion: stack",
            do="tune it with another fusion, such as fusion=attention",
        )
    check_flat(bundle.model, bundle.modalities, bundle.targets)
    reasons = [f"column {name!r}: {why}" for name, modality in bundle.modalities.items() if (why := _why_not(modality))]
    if reasons:
        raise ConfigError(
            "the preparation of some columns is not exported",
            came="; ".join(reasons),
            do="tune it without these columns, or with another encoder",
        )


def _why_not(modality: Modality) -> str | None:
    """Return why a column's preparation is not exported, or None."""
    if isinstance(modality, TextModality):
        if modality.by_passages:
            return "several texts are read together"
        return "its cells are chats" if modality.chat else None
    if isinstance(modality, ImageModality):
        assert isinstance(modality.backbone.inputs, ImageInputs)
        processor = type(modality.backbone.inputs.processor).__name__
        return None if pixel_steps(modality.backbone.inputs) else f"{processor} does more than resize and crop"
    if isinstance(modality, AudioModality) or modality.kind in FEATURES:
        return None
    return f"cells of kind {modality.kind} are read by fusetune only"


def pixel_steps(inputs: ImageInputs) -> PixelSteps | None:
    """Return the steps that do what an image processor does, as tried on several images; None if they differ."""
    processor = inputs.processor
    size = {name: value for name, value in dict(getattr(processor, "size", None) or {}).items() if value is not None}
    short, ratio = int(size.get("shortest_edge") or 0), getattr(processor, "crop_pct", None)
    resize: tuple[int, ...] | None = None
    crop: tuple[int, int] | None = None
    if getattr(processor, "do_center_crop", False):
        wanted = dict(processor.crop_size)
        crop = int(wanted["height"]), int(wanted["width"])
    if getattr(processor, "do_resize", False):
        if {"height", "width"} == size.keys():
            resize = int(size["height"]), int(size["width"])
        elif size.keys() == {"shortest_edge"} and ratio:
            resize, crop = ((int(short / ratio),), (short, short)) if short < SMALL_CROP else ((short, short), crop)
        elif size.keys() == {"shortest_edge"}:
            resize = (short,)
        else:
            return None
    levels = inputs.scale.flatten().tolist(), inputs.offset.flatten().tolist()
    resample = int(getattr(processor, "resample", None) or Image.Resampling.BILINEAR)
    steps = PixelSteps(inputs.image_size, resample, resize, crop, *map(tuple, levels))
    return steps if all(_equal(steps, inputs, *sides) for sides in TRIAL_SIZES) else None


def _equal(steps: PixelSteps, inputs: ImageInputs, width: int, height: int) -> bool:
    noise = np.random.default_rng(0).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((width, height))
    ours, theirs = steps.prepare(image), inputs.prepare(image)
    return ours.shape == theirs.shape and bool((ours == theirs).all())


def describe(bundle: Bundle, flat: FlatModel, folder: Path) -> dict[str, Any]:
    """Return the content of runtime.json without the variants, and write the tokenizers.

    Args:
        bundle: a model that `check_exportable` accepts.
        flat: its flat form.
        folder: of the export.

    Raises:
        OSError: a tokenizer cannot be written.
    """
    read = bundle.config.data.read.model_dump(mode="json")
    forms = {name: form.to_dict() for name, form in bundle.schema.forms().items() if name in bundle.modalities}
    vectors = [name for name in flat.outputs if name not in flat.targets]
    return {
        "format": FORMAT,
        "versions": dict(versions()),
        "inputs": [
            {"name": given.name, "dtype": str(given.dtype).removeprefix("torch."), "shape": list(given.shape)}
            for given in flat.inputs
        ],
        "columns": {name: _column(modality, flat, folder) for name, modality in bundle.modalities.items()},
        "targets": {task.target: task.output_form() for task in bundle.targets.values() if isinstance(task, Exported)},
        "vectors": {name: list(bundle.model.compared[name.removesuffix("_vector")]) for name in vectors},
        "ids": list(bundle.schema.names("id")),
        "forms": forms,
        "read": {name: value for name, value in read.items() if name != "media"},
    }


def _column(modality: Modality, flat: FlatModel, folder: Path) -> dict[str, Any]:
    """Return what a reader of `fusetune.runtime.readers` is made of."""
    if isinstance(modality, TextModality):
        return {"kind": "text", **_text(modality, flat, folder)}
    if isinstance(modality, ImageModality):
        assert isinstance(modality.backbone.inputs, ImageInputs)
        steps = pixel_steps(modality.backbone.inputs)
        assert steps is not None, "check_exportable tried them"
        return {"kind": "image", "pixels": steps.to_dict(), "max_pictures": modality.max_pictures}
    if isinstance(modality, AudioModality):
        inputs = modality.backbone.inputs
        assert isinstance(inputs, SpectrogramInputs)
        seconds = {"max_seconds": modality.max_seconds, "encoder_seconds": inputs.max_seconds}
        return {"kind": "audio", "spectrogram": inputs.processor.to_dict(), **seconds}
    return {"kind": modality.kind, "state": modality.state()}


def _text(modality: TextModality, flat: FlatModel, folder: Path) -> dict[str, Any]:
    """Return how texts become token ids and n-grams, and write the tokenizer."""
    inputs = modality.backbone.inputs
    assert isinstance(inputs, TextInputs)
    own = folder / TOKENIZERS / modality.encoder_key
    own.mkdir(parents=True, exist_ok=True)
    inputs.processor.backend_tokenizer.save(str(own / "tokenizer.json"))
    parts = [part for column, part in flat.ngrams if column == modality.column]
    return {
        "tokenizer": modality.encoder_key,
        "max_tokens": inputs.max_tokens,
        "filler": inputs.filler,
        "direction": str(getattr(inputs.processor, "truncation_side", "right")),
        "whole_length": inputs.whole_length,
        "types": False,
        "ngrams": {part: modality.ngrams[part].state() for part in parts},
    }
