"""An encoder's weights after self-supervised tuning, for the same encoder loaded again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fusetune.backbones.backbone import Backbone


@dataclass(frozen=True)
class ChangedWeights:
    """The tensors of an encoder that self-supervised tuning changed.

    Attributes:
        values: by name in the encoder's state dict, on the CPU.
        sha256: of names and values; "" if there are none.
    """

    values: Mapping[str, Tensor]
    sha256: str

    @classmethod
    def since(cls, before: Mapping[str, Tensor], backbone: Backbone) -> ChangedWeights:
        """Return what has changed since a copy of the state dict was taken."""
        now = {name: value.detach().cpu() for name, value in backbone.state_dict().items()}
        changed = {name: value.clone() for name, value in now.items() if not torch.equal(value, before[name])}
        digest = hashlib.sha256()
        for name in sorted(changed):
            digest.update(name.encode())
            digest.update(changed[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return cls(changed, digest.hexdigest() if changed else "")

    @property
    def num(self) -> int:
        """The number of changed parameters, counted by tensors."""
        return sum(value.numel() for value in self.values.values())

    def install(self, backbone: Backbone) -> None:
        """Load the values into the encoder, or one that was loaded from the same source."""
        backbone.load_state_dict(dict(self.values), strict=False)
        backbone.pretrained_on_rows = self.sha256
