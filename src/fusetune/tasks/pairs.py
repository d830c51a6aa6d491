"""The base class of tasks about pairs: how alike the two sides of a row are, by the cosine of their vectors.

The sides are the settings `query` and `document`; what is to be learned of them is the target.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusetune.tasks.base import TargetTask
from fusetune.types import TextTokens


class CosineHead(nn.Module):
    """The cosine of two vectors side by side, (batch, 2 · dim) -> (batch,); 0 if one of them is zero."""

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the cosines in float32 or wider."""
        if vectors.dtype in (torch.float16, torch.bfloat16):
            vectors = vectors.float()
        first, second = vectors.chunk(2, dim=1)
        return (F.normalize(first, dim=1, eps=1e-6) * F.normalize(second, dim=1, eps=1e-6)).sum(1)


class PairTask(TargetTask):
    """A task whose answer is the cosine of a row's two sides.

    The model has no parameters for it besides those of the sides' vectors. A loss that compares pairs with one another
    learns it: the objective `similarity`.

    Attributes:
        query, document: the columns of each side; set by `compare`.
    """

    family = "match"
    learned_by = "similarity"

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.query: tuple[str, ...] = ()
        self.document: tuple[str, ...] = ()

    def compare(self, query: Iterable[str], document: Iterable[str]) -> None:
        """Set the columns of the two sides."""
        self.query, self.document = tuple(query), tuple(document)

    @property
    def sides(self) -> dict[str, tuple[str, ...]]:
        """The columns of each side, by its name."""
        return {"query": self.query, "document": self.document}

    def build_head(self, dim: int) -> nn.Module:
        """Build a `CosineHead`, which has no parameters."""
        return CosineHead()

    def answers(self, logits: Tensor, tokens: TextTokens | None = None) -> np.ndarray:
        """Return the cosines, (rows,)."""
        return logits.detach().double().cpu().numpy()
