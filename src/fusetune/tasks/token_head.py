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


def with_shared(head: nn.Module, logits: Tensor) -> Tensor:
    """Return the tokens' logits, (batch, tokens, logits), with the head's shared rows before them, if it has any."""
    if not isinstance(head, TokenHead):
        return logits
    rows = head.shared.to(logits.dtype).expand(len(logits), *head.shared.shape)
    return torch.cat([rows, logits], 1)


def with_zero_rows(logits: Tensor, num: int) -> Tensor:
    """Return the tokens' logits, (batch, tokens, logits), with `num` shared rows of zeros before them."""
    return F.pad(logits, (0, 0, num, 0)) if num else logits
