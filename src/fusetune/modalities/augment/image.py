"""Augmentation of images, after they are resized for the backbone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from fusetune.errors import ConfigError
from fusetune.modalities.augment.options import Option, Transform, settings, transforms
from fusetune.modalities.base import Augmenter

RAND = {"num": 2, "magnitude": 9}
BINS = 30
"""Highest magnitude of RandAugment and TrivialAugment."""
Operation = Callable[[Image.Image, float], Image.Image]


class ImageAugmenter(Augmenter):
    """Augmentation of each of a cell's images.

    flip      horizontal flip with this probability.
    crop      random crop of an area between this share and 1, with an aspect ratio of 3/4 to 4/3, resized back.
    color     colour jitter: brightness, contrast and saturation, each multiplied by 1 ± up to this.
    rand      `num` random operations of `magnitude` out of 30 (RandAugment: Cubuk et al. 2019, arXiv 1909.13719).
    trivial   one random operation of random magnitude (TrivialAugment Wide: Müller, Hutter 2021, arXiv 2103.10158).
    erasing   random erasing with this probability: a rectangle of 2 to 33 % of the area is replaced by noise (Zhong et
              al. 2017, arXiv 1708.04896).
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        """
        Args:
            options: values of the transforms by name.

        Raises:
            ConfigError: an option is unknown or out of range.
        """
        known = {
            "crop": Option(_crop, 0.5, 0.01, 1),
            "flip": Option(_flip, 0.5, 0, 1),
            "rand": Option(_rand, {}),
            "trivial": Option(lambda _: _trivial, True),
            "color": Option(_color, 0.4, 0, 1),
            "erasing": Option(_erasing, 0.25, 0, 1),
        }
        self.transforms = transforms("image", options, known)

    def __call__(self, cell: Any, example: Any, rng: np.random.Generator, base_dir: Path) -> Any:
        """See `Augmenter`; an example is a list of (3, height, width) uint8."""
        result = []
        for picture in example:
            image = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
            for transform in self.transforms:
                image = transform(image, rng)
            result.append(np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)))
        return result


def _flip(rate: float) -> Transform:
    return lambda image, rng: ImageOps.mirror(image) if rng.random() < rate else image


def _crop(least: float) -> Transform:
    def crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        width, height = image.size
        area, aspect = rng.uniform(least, 1) * width * height, math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        wide = min(max(round(math.sqrt(area * aspect)), 1), width)
        high = min(max(round(math.sqrt(area / aspect)), 1), height)
        left, top = int(rng.integers(0, width - wide + 1)), int(rng.integers(0, height - high + 1))
        box = (left, top, left + wide, top + high)
        return image.resize(image.size, Image.Resampling.BICUBIC, box=box)

    return crop


def _color(size: float) -> Transform:
    def change(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        for index, factor in zip(rng.permutation(3), rng.uniform(1 - size, 1 + size, 3), strict=True):
            enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[index]
            image = enhance(image).enhance(float(factor))
        return image

    return change


def _erasing(rate: float) -> Transform:
    def erase(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        if rng.random() >= rate:
            return image
        width, height = image.size
        area, aspect = rng.uniform(0.02, 0.33) * width * height, math.exp(rng.uniform(math.log(0.3), math.log(3.3)))
        wide = min(max(round(math.sqrt(area * aspect)), 1), width)
        high = min(max(round(math.sqrt(area / aspect)), 1), height)
        left, top = int(rng.integers(0, width - wide + 1)), int(rng.integers(0, height - high + 1))
        pixels = np.array(image)
        pixels[top : top + high, left : left + wide] = rng.integers(0, 256, (high, wide, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    return erase


def _affine(matrix: Callable[[float], tuple[float, ...]], most: float) -> Operation:
    def apply(image: Image.Image, level: float) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, matrix(level * most), fillcolor=(128, 128, 128))

    return apply


def _enhance(kind: Any, most: float) -> Operation:
    return lambda image, level: kind(image).enhance(1 + level * most)


def _operations(wide: bool) -> dict[str, tuple[Operation, bool]]:
    """Return the operations by name, each with whether its level is signed; levels range from 0 (identity) to ±1."""
    shear, degrees, enhance, bits = (0.99, 135.0, 0.99, 6) if wide else (0.3, 30.0, 0.9, 4)
    translate = 32 / 224 if wide else 150 / 331
    return {
        "identity": (lambda image, level: image, False),
        "shear_x": (_affine(lambda size: (1, size, 0, 0, 1, 0), shear), True),
        "shear_y": (_affine(lambda size: (1, 0, 0, size, 1, 0), shear), True),
        "translate_x": (lambda image, level: _translate(image, level * translate * image.width, 0), True),
        "translate_y": (lambda image, level: _translate(image, 0, level * translate * image.height), True),
        "rotate": (lambda image, level: image.rotate(level * degrees, fillcolor=(128, 128, 128)), True),
        "brightness": (_enhance(ImageEnhance.Brightness, enhance), True),
        "color": (_enhance(ImageEnhance.Color, enhance), True),
        "contrast": (_enhance(ImageEnhance.Contrast, enhance), True),
        "sharpness": (_enhance(ImageEnhance.Sharpness, enhance), True),
        "posterize": (lambda image, level: ImageOps.posterize(image, 8 - round(level * bits)), False),
        "solarize": (lambda image, level: ImageOps.solarize(image, round(256 * (1 - level))), False),
        "autocontrast": (lambda image, level: ImageOps.autocontrast(image), False),
        "equalize": (lambda image, level: ImageOps.equalize(image), False),
    }


def _translate(image: Image.Image, right: float, down: float) -> Image.Image:
    data = (1, 0, -right, 0, 1, -down)
    return image.transform(image.size, Image.Transform.AFFINE, data, fillcolor=(128, 128, 128))


def _apply_random(
    image: Image.Image, operations: dict[str, tuple[Operation, bool]], level: float, rng: Any
) -> Image.Image:
    operation, signed = operations[list(operations)[int(rng.integers(0, len(operations)))]]
    sign = -1 if rng.random() < 0.5 and signed else 1
    return operation(image, sign * level)


def _trivial(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return _apply_random(image, _operations(True), int(rng.integers(0, BINS + 1)) / BINS, rng)


def _rand(value: Any) -> Transform:
    chosen = settings("augment.image.rand", value, RAND)
    num, magnitude = int(chosen["num"]), float(chosen["magnitude"])
    if num < 1 or not 0 <= magnitude <= BINS:
        raise ConfigError(
            "augment.image.rand is out of range",
            expected=f"num of 1 or more, magnitude in [0, {BINS}]",
            came=str(value),
        )

    def apply(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        for _ in range(num):
            image = _apply_random(image, _operations(False), magnitude / BINS, rng)
        return image

    return apply
