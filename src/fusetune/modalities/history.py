"""A user's history: the items that a user interacted with before, read by the vectors that the model has of items.

Legend: cells = histories, items = of the catalogue, longest = items of the longest history in a batch, dim = of the
common space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusetune.errors import BadCell, ConfigError
from fusetune.modalities.base import Detection, Modality
from fusetune.modalities.naming import module_name
from fusetune.types import Tokens

DIM = 128
"""Width of the vectors of an encoder that belongs to no model."""
LARGEST = 2**31

ItemVectors = Callable[[Tensor], Tensor]
"""Maps positions in the catalogue, (items,) int64, to the items' vectors, (items, dim)."""


class HistoryModality(Modality):
    """A column of lists of positions in a catalogue, of items from the earliest to the latest.

    It is made of interactions (`fusetune.data.interactions`), never detected.

    Attributes:
        num: items of the catalogue; set with `know` before the encoder is built.
    """

    kind = "history"

    def __init__(self, column: str, *, length: int = 50) -> None:
        """
        Args:
            column: the column's name.
            length: the latest items that are read, 1 or more.
        """
        super().__init__(column)
        if length < 1:
            raise ConfigError(
                "a history's length is out of range", column=column, expected="1 or more", came=str(length)
            )
        self.length = length
        self.num = 0

    def know(self, num: int) -> None:
        """Set the number of the catalogue's items."""
        self.num = num

    @classmethod
    def detect(cls, values: Sequence[Any], *, base_dir: Path) -> Detection:
        """Rate the cells: never by themselves, as their numbers mean positions in a catalogue."""
        return Detection(0.0, "histories are made of interactions")

    def decode(self, cell: Any, *, row: int, base_dir: Path) -> np.ndarray:
        """Return the positions, (items,) int64.

        Raises:
            BadCell: it is no list of whole numbers from 0.
        """
        numbers = list(cell) if isinstance(cell, list | tuple | np.ndarray) else None
        if not numbers or any(not isinstance(n, int | np.integer) or not 0 <= n < LARGEST for n in numbers):
            why = "it is no list of positions in the catalogue"
            raise BadCell(row=row, column=self.column, value=cell, why=why, do="give whole numbers from 0")
        return np.asarray(numbers, dtype=np.int64)

    def fit(self, examples: Sequence[np.ndarray]) -> None:
        """Know as many items as the train rows name, unless `know` set their number."""
        if not self.num:
            self.num = 1 + max((int(example.max()) for example in examples), default=-1)

    def collate(self, examples: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """Return `items`, (examples, longest) int64 positions, and `real`, (examples, longest) bool, False at padding.

        Items beyond `length`, the earliest, are left out.
        """
        recent = [example[-self.length :] for example in examples]
        items = np.zeros((len(recent), max(map(len, recent))), dtype=np.int64)
        real = np.zeros(items.shape, dtype=bool)
        for row, example in enumerate(recent):
            items[row, : len(example)], real[row, : len(example)] = example, True
        return {"items": torch.from_numpy(items), "real": torch.from_numpy(real)}

    @property
    def encoder_key(self) -> str:
        """Each column has its own encoder."""
        return module_name(self.kind, self.column)

    def build_encoder(self) -> HistoryEncoder:
        """Return a `HistoryEncoder`; call it once the items are known."""
        return HistoryEncoder(self.num)

    @property
    def joined(self) -> int:
        """The mean and the attention-pooled history are side by side one token."""
        return 2

    def state(self) -> dict[str, Any]:
        """Return the length and the number of items."""
        return {"length": self.length, "num": self.num}

    @classmethod
    def from_state(cls, column: str, state: dict[str, Any], backbone: Any = None) -> HistoryModality:
        """Return the modality that `state()` described."""
        modality = cls(column, length=state["length"])
        modality.num = int(state["num"])
        return modality


class HistoryEncoder(nn.Module):
    """The mean and the attention-pooled items of a history: two vectors.

    The attention has one learned query q: weights softmax(q · v_i / √dim) over the items' vectors v_i. It starts at
    zero, where both vectors are the mean.

    Items' vectors come from `item_vectors` if it is set, as in a fit, where the model computes them with a gradient.
    Otherwise they are those that `remember` stored, which a saved model has.

    Args:
        num: items of the catalogue.

    Attributes:
        item_vectors: computes the items' vectors, or None.
        stored: (num, dim), the items' vectors.
    """

    pretrained = False
    stored: Tensor

    def __init__(self, num: int) -> None:
        super().__init__()
        self.num = num
        self.item_vectors: ItemVectors | None = None
        self.set_dim(DIM)

    def set_dim(self, dim: int) -> None:
        """Set the width of the items' vectors; call it before training."""
        self.dim = dim
        self.query = nn.Parameter(torch.zeros(dim))
        draws = torch.Generator().manual_seed(0)
        stored = torch.randn(self.num, dim, generator=draws)  # until `remember` replaces it
        self.register_buffer("stored", F.normalize(stored, dim=1))

    @torch.no_grad()
    def remember(self, vectors: Tensor) -> None:
        """Store the items' vectors, (num, dim), and read histories by these from now on."""
        self.stored.copy_(vectors)
        self.item_vectors = None

    def forward(self, *, items: Tensor, real: Tensor) -> Tokens:
        """
        Args:
            items: (cells, longest) positions; those that the catalogue does not have are left out.
            real: (cells, longest) bool.

        Returns:
            (cells, 2, dim): the mean and the attention-pooled vector; zeros for a history without known items.
        """
        real = real & (items < self.num)
        distinct, places = torch.unique(items[real], return_inverse=True)
        vectors = self.stored[distinct] if self.item_vectors is None else self.item_vectors(distinct)
        values = vectors.new_zeros(*items.shape, self.dim)  # (cells, longest, dim)
        values[real] = vectors[places]
        mask = real.unsqueeze(2)
        mean = values.sum(1) / mask.sum(1).clamp(min=1)
        scores = (values @ self.query / self.dim**0.5).unsqueeze(2)  # (cells, longest, 1)
        weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(1) * mask
        pooled = torch.stack([mean, (weights * values).sum(1)], 1)
        return Tokens(pooled, torch.ones(pooled.shape[:2], dtype=torch.bool, device=pooled.device))


@torch.no_grad()
def start_as_mean(linear: nn.Linear) -> None:
    """Initialise the projection of a history's two vectors, (2 · dim) -> (dim), as their mean."""
    half = torch.eye(linear.out_features) / 2
    linear.weight.copy_(torch.cat([half, half], 1))
    linear.bias.zero_()
