"""`FixedFeatures`: the encoder of number, date and category columns, which has no parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusetune.types import Tokens


class FixedFeatures(nn.Module):
    """Returns each cell's features as a single token; the projection into the fusion is the first trained layer."""

    pretrained = True
    """Its features are useful before training, like those of a pretrained encoder."""

    def __init__(self, dim: int) -> None:
        """
        Args:
            dim: features of a cell.
        """
        super().__init__()
        self.dim = dim

    def forward(self, *, values: Tensor) -> Tokens:
        """
        Args:
            values: (cells, dim).

        Returns:
            (cells, 1, dim), all real.
        """
        return Tokens(values.unsqueeze(1), torch.ones(values.shape[0], 1, dtype=torch.bool, device=values.device))
