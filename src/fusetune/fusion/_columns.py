"""What fusions share: which columns count in a row, modality dropout, and one vector a column."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fusetune.errors import ConfigError
from fusetune.types import Tokens


def check_rate(name: str, rate: float) -> float:
    """The rate, refused unless it lies in [0, 1).

    Raises:
        ConfigError: it does not.
    """
    if not 0 <= rate < 1:
        raise ConfigError(f"{name} is out of range", expected="0 <= rate < 1", came=str(rate))
    return rate


def kept_columns(
    order: Sequence[str], columns: dict[str, Tokens], present: dict[str, Tensor], *, drop: float, training: bool
) -> Tensor:
    """Which columns a row is fused from: (batch, columns) bool, at least one a row.

    A column counts where it is present and has a real token. In training, each counting column is dropped with
    probability `drop`; a row that would lose all keeps one of them, each with equal chance. To a fusion a dropped
    column is exactly an absent one, so a model meets while it learns what it will meet when columns are missing
    (Neverova et al. 2015, "ModDrop", arXiv 1501.00102).

    Args:
        order: the columns in the fusion's order.
        columns: per column, (batch, tokens, dim) with its mask.
        present: per column, (batch,) bool.
        drop: probability in [0, 1).
        training: whether to drop at all.
    """
    kept = torch.stack([present[name] & columns[name].mask.any(1) for name in order], dim=1)  # (batch, columns)
    if not torch.compiler.is_compiling():
        assert bool(kept.any(1).all()), "a row without any column reached the fusion"
    if not training or drop == 0 or len(order) == 1:
        return kept
    draw = torch.rand(kept.shape, device=kept.device).masked_fill(~kept, -1.0)
    last = draw == draw.max(dim=1, keepdim=True).values  # the column that would be dropped last
    return kept & ((draw >= drop) | last)


def column_vectors(order: Sequence[str], columns: dict[str, Tokens], kept: Tensor, null: Tensor) -> Tensor:
    """One vector a column: the mean of its real tokens, or its null vector where the column does not count.

    Masked values are replaced, not multiplied by zero, so that not even a NaN among them reaches the output.

    Args:
        order: the columns in the fusion's order.
        columns: per column, (batch, tokens, dim) with its mask.
        kept: (batch, columns) bool.
        null: (columns, dim).

    Returns:
        (batch, columns, dim).
    """
    means = torch.stack(
        [
            Tokens(tokens.values.masked_fill(~tokens.mask.unsqueeze(-1), 0.0), tokens.mask).mean()
            for tokens in (columns[name] for name in order)
        ],
        dim=1,
    )  # (batch, columns, dim)
    means = means.masked_fill(~kept.unsqueeze(-1), 0.0)
    return torch.where(kept.unsqueeze(-1), means, null.to(means.dtype))
