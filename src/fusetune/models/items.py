"""The vectors that a model of users and items has of the items, for the encoder of users' histories."""

from __future__ import annotations

import torch
from torch import Tensor

from fusetune.data.examples import Examples
from fusetune.modalities.history import HistoryEncoder
from fusetune.models.match import Match

CHUNK = 1024
"""Items whose vectors are computed together."""


class ItemVectors:
    """Computes items' vectors from their own columns, with a gradient in training.

    Args:
        model: with a side of items.
        side: its name.
        items: rows with the side's columns, with the outputs of frozen encoders as features.
        first: position of the catalogue's first item among the rows.
    """

    def __init__(self, model: Match, side: str, items: Examples, first: int) -> None:
        self.model, self.side, self.first = model, side, first
        self.items = items.restrict(model.compared[side])

    def __call__(self, positions: Tensor) -> Tensor:
        """Return the unit vectors of some items, (items, dim).

        Args:
            positions: (items,) int64, in the catalogue.
        """
        batch = self.items.batch(self.first + positions.cpu().numpy())
        return self.model.side(self.side, batch.to(positions.device))


def attach_items(model: Match, vectors: ItemVectors) -> None:
    """Have the model's histories read items by these vectors."""
    for encoder in model.encoders.values():
        if isinstance(encoder, HistoryEncoder):
            encoder.item_vectors = vectors


@torch.no_grad()
def remember_items(model: Match) -> None:
    """Store the items' present vectors in the model, so that its histories can be read without the catalogue."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    for encoder in model.encoders.values():
        if isinstance(encoder, HistoryEncoder) and encoder.item_vectors is not None:
            every = torch.arange(encoder.num, device=device)
            encoder.remember(
                torch.cat([encoder.item_vectors(part) for part in torch.tensor_split(every, -(-len(every) // CHUNK))])
            )
    model.train(training)
