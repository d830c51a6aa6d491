"""`BackboneModality`: the base class of text, image and audio columns, whose encoder is a backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from fusetune.modalities.base import Modality

if TYPE_CHECKING:
    from typing import Self

    from fusetune.backbones.load import Backbone


class BackboneModality(Modality):
    """A column that a backbone encodes; there is nothing to fit before training."""

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
        """The backbone's key, which columns with the same backbone share."""
        return self.backbone.key

    def build_encoder(self) -> nn.Module:
        """Return the backbone itself."""
        return self.backbone

    def state(self) -> dict[str, Any]:
        """Return no options: they belong to the backbone."""
        return {}

    @classmethod
    def from_state(cls, column: str, state: dict[str, Any], backbone: Any = None) -> Self:
        """Return the modality that `state()` described, on this backbone."""
        return cls(column, backbone=backbone, **state)
