"""Pixels of images by Pillow and numpy alone, without torch and transformers, for `fusetune.runtime`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from PIL import Image


def centred(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the centre (channels, height, width) of a picture; black around it where it is smaller."""
    result = np.zeros((pixels.shape[0], height, width), dtype=pixels.dtype)
    rows, columns = min(height, pixels.shape[1]), min(width, pixels.shape[2])
    top, left = (pixels.shape[1] - rows) // 2, (pixels.shape[2] - columns) // 2
    to_top, to_left = (height - rows) // 2, (width - columns) // 2
    result[:, to_top : to_top + rows, to_left : to_left + columns] = pixels[:, top : top + rows, left : left + columns]
    return result


@dataclass(frozen=True)
class PixelSteps:
    """How an image becomes an encoder's input: resized, cropped, and each channel scaled and shifted.

    It does what an image processor of transformers does whose steps are these; an export tries both on images.

    Attributes:
        size: (height, width) of the result.
        resample: Pillow's filter, as `PIL.Image.Resampling`.
        resize: (height, width) that the image is resized to; or (shorter side,), which keeps the aspect ratio; None for
            no resizing.
        crop: (height, width) of the centre that is cut out, black where the image is smaller; None for no crop.
        scale, offset: of the red, green and blue levels from 0 to 255.
    """

    size: tuple[int, int]
    resample: int
    resize: tuple[int, ...] | None
    crop: tuple[int, int] | None
    scale: tuple[float, ...]
    offset: tuple[float, ...]

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Return an image in mode RGB as (3, height, width) uint8."""
        if self.resize is not None:
            height, width = self._resized(image.height, image.width)
            image = image.resize((width, height), resample=Image.Resampling(self.resample))
        pixels = np.moveaxis(np.asarray(image), 2, 0)
        if self.crop is not None:
            pixels = _cropped(pixels, *self.crop)
        return pixels if pixels.shape[1:] == self.size else centred(pixels, *self.size)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        assert self.resize is not None
        if len(self.resize) == 2:
            return self.resize[0], self.resize[1]
        (short,) = self.resize
        longer = int(short * max(height, width) / min(height, width))
        return (longer, short) if width <= height else (short, longer)

    def collate(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return (images, 3, height, width) float32, scaled and shifted."""
        scale, offset = (np.asarray(part, dtype=np.float32).reshape(3, 1, 1) for part in (self.scale, self.offset))
        return np.stack(images).astype(np.float32) * scale + offset

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the steps that `to_dict` described.

        Raises:
            KeyError, TypeError, ValueError: an attribute is missing or of another type.
        """
        lists: dict[str, Any] = {
            name: None if data[name] is None else tuple(data[name]) for name in ("size", "resize", "crop")
        }
        numbers: dict[str, Any] = {name: tuple(map(float, data[name])) for name in ("scale", "offset")}
        return cls(resample=int(data["resample"]), **lists, **numbers)


def _cropped(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the centre of (channels, rows, columns), as the image processors of transformers cut it."""
    rows, columns = pixels.shape[1:]
    top, left = (rows - height) // 2, (columns - width) // 2
    if top < 0 or left < 0:
        wide = np.zeros((pixels.shape[0], max(height, rows), max(width, columns)), dtype=pixels.dtype)
        to_top, to_left = -(-(wide.shape[1] - rows) // 2), -(-(wide.shape[2] - columns) // 2)
        wide[:, to_top : to_top + rows, to_left : to_left + columns] = pixels
        pixels, top, left = wide, top + to_top, left + to_left
    return pixels[:, max(top, 0) : top + height, max(left, 0) : left + width]
