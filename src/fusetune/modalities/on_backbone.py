"""What the modalities share whose encoder is a backbone: text, images and sounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from fusetune.modalities.base import Modality

if TYPE_CHECKING:
    from typing import Self

    from fusetune.backbones.load import Backbone


class BackboneModality(Modality):
    """A column that a pretrained encoder reads; nothing is learned from train rows before tuning."""

    needs_backbone = True

    def __init__(self, column: str, *, backbone: Backbone) -> None:
        """
        Args:
            column: the column's name.
            backbone: the encoder, of this modality's kind.
        """
        super().__init__(column)
        self.backbone = backbone

    @property
    def encoder_key(self) -> str:
        """The backbone's key: columns with one backbone share it."""
        return self.backbone.key

    def build_encoder(self) -> nn.Module:
        """Return the backbone itself."""
        return self.backbone

    def state(self) -> dict[str, Any]:
        """Return the options; the backbone holds its own."""
        return {}

    @classmethod
    def from_state(cls, column: str, state: dict[str, Any], backbone: Any = None) -> Self:
        """Return the modality that `state()` described, on this backbone."""
        return cls(column, backbone=backbone, **state)
