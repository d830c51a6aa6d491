"""A head of a task that answers token by token, with parameters beside the tokens' logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TokenHead(nn.Sequential):
    """Layers from (batch, tokens, dim) to (batch, tokens, logits), and parameters that the loss and the answers need.

    The model's logits of such a task begin with the shared rows: (batch, rows + tokens, logits). So they travel with
    the logits through every loss, average and prediction, and belong to the model's own copy of the head.

    Attributes:
        shared: (rows, logits).
    """

    def __init__(self, *layers: nn.Module, shared: nn.Parameter) -> None:
        super().__init__(*layers)
        self.shared = shared


class QueryKeyHead(TokenHead):
    """Layers from (batch, tokens, dim) to (batch, tokens, outputs + keys); the last layer gives all but the keys.

    A model that starts from a probe sets its heads' last layers to zero. The keys are not zero then, so that queries
    among the outputs, which the loss multiplies with them, have a gradient.
    """

    def __init__(self, dim: int, num_outputs: int, num_keys: int, *, shared: nn.Parameter) -> None:
        layers = nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, num_keys), nn.Linear(dim, num_outputs)
        super().__init__(*layers, shared=shared)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs, then the keys."""
        hidden, activation, keys, last = self
        inner = activation(hidden(inputs))
        return torch.cat([last(inner), keys(inner)], -1)


def with_shared(head: nn.Module, logits: Tensor) -> Tensor:
    """Return the tokens' logits, (batch, tokens, logits), with the head's shared rows before them, if it has any."""
    if not isinstance(head, TokenHead):
        return logits
    rows = head.shared.to(logits.dtype).expand(len(logits), *head.shared.shape)
    return torch.cat([rows, logits], 1)


def with_zero_rows(logits: Tensor, num: int) -> Tensor:
    """Return the tokens' logits, (batch, tokens, logits), with `num` shared rows of zeros before them."""
    return F.pad(logits, (0, 0, num, 0)) if num else logits
