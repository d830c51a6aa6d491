"""The encoder of columns whose features need no learning: numbers and categories."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusetune.types import Tokens


class FixedFeatures(nn.Module):
    """Gives each cell's features as its one token. The projection into the fusion is where learning starts."""

    pretrained = True
    """Its features are as good on the first day as on the last, as a pretrained encoder's are."""

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
        return Tokens(values.unsqueeze(1), torch.ones(len(values), 1, dtype=torch.bool, device=values.device))
