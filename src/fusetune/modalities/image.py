"""Image columns, with one or several images a cell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fusetune.errors import ConfigError
from fusetune.modalities.base import Augmenter, Detection
from fusetune.modalities.media import cells, image_files
from fusetune.modalities.on_backbone import BackboneModality

if TYPE_CHECKING:
    from fusetune.backbones.load import Backbone


class ImageModality(BackboneModality):
    """A column of images.

    A cell is a path (absolute, or relative to the table's file), bytes, base64, `{"bytes", "path"}`, or several of
    these in a list or separated by `;`. The vectors of a cell's images are averaged.
    """

    kind = "image"

    def __init__(self, column: str, *, backbone: Backbone, max_pictures: int = 32) -> None:
        """
        Args:
            column: the column's name.
            backbone: the encoder, of kind "image".
            max_pictures: maximum number of images a cell, 1 or more; a cell with more is refused.
        """
        super().__init__(column, backbone=backbone)
        if max_pictures < 1:
            raise ConfigError(
                "max_pictures is out of range", column=column, expected="1 or more", came=str(max_pictures)
            )
        self.max_pictures = max_pictures

    @classmethod
    def detect(cls, values: Sequence[Any], *, base_dir: Path) -> Detection:
        """Rate the cells by file extensions and magic numbers of images."""
        return cells.detect_files(
            values, base_dir=base_dir, kind="picture", endings=image_files.ENDINGS, starts=image_files.STARTS
        )

    def decode(self, cell: Any, *, row: int, base_dir: Path) -> list[np.ndarray]:
        """Return the cell's images, resized and cropped for the backbone, each (3, height, width) uint8.

        Raises:
            BadCell: an image does not exist or cannot be decoded, or the cell has none or too many.
        """
        location = cells.CellLocation(row, self.column, base_dir)
        pictures = image_files.decode_images(
            cell, location, most=self.max_pictures, used_at=max(self.backbone.image_size)
        )
        return [self.backbone.prepare_image(picture) for picture in pictures]

    def augmenter(self, **options: Any) -> Augmenter:
        """Return an `ImageAugmenter`."""
        from fusetune.modalities.augment.image import ImageAugmenter

        return ImageAugmenter(options)

    def size(self, example: list[np.ndarray]) -> int:
        """Return the number of images."""
        return len(example)

    def collate(self, examples: Sequence[list[np.ndarray]]) -> dict[str, Tensor]:
        """Return `pixel_values`, (images, 3, height, width), and, unless each cell has one image, `owner`, (images,).

        `owner` is int64, the index of each image's cell.
        """
        owner = [cell for cell, parts in enumerate(examples) for _ in parts]
        tensors = self.backbone.collate_images([picture for parts in examples for picture in parts])
        if len(owner) == len(examples):
            return tensors  # joining parts would synchronise with the GPU
        return {**tensors, "owner": torch.tensor(owner, dtype=torch.int64)}

    def state(self) -> dict[str, Any]:
        """Return the options."""
        return {"max_pictures": self.max_pictures}
