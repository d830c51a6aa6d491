"""Shared by fusions: which columns count in a row, modality dropout, one vector a column, the perceptron."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusetune.errors import ConfigError
from fusetune.fusion.base import Fused, Fusion
from fusetune.types import Tokens


def check_rate(name: str, rate: float) -> float:
    """Return a rate that lies in [0, 1).

    Raises:
        ConfigError: it does not.
    """
    if not 0 <= rate < 1:
        raise ConfigError(f"{name} is out of range", expected="0 <= rate < 1", came=str(rate))
    return rate


def check_count(name: str, count: int, *, most: int | None = None) -> int:
    """Return a count that is 1 or more, and at most `most` where that is given.

    Raises:
        ConfigError: it is not.
    """
    if count < 1 or (most is not None and count > most):
        raise ConfigError(
            f"{name} is out of range", expected="1 or more" if most is None else f"1 to {most}", came=str(count)
        )
    return count


def kept_columns(
    order: Sequence[str], columns: dict[str, Tokens], present: dict[str, Tensor], *, drop: float, training: bool
) -> Tensor:
    """Return which columns each row is fused from, (batch, columns) bool, at least one a row.

    A column counts where it is present and has a real token. In training, each counting column is dropped with
    probability `drop`; a row that would lose all of them keeps one, chosen uniformly. A fusion treats a dropped column
    as an absent one, so that the model is trained on missing columns.

    Reference: Neverova et al. 2015, "ModDrop" (arXiv 1501.00102).

    Args:
        order: the columns in the fusion's order.
        columns: per column, (batch, tokens, dim) with its mask.
        present: per column, (batch,) bool.
        drop: probability in [0, 1).
        training: whether to drop at all.
    """
    kept = torch.stack([present[name] & columns[name].mask.any(1) for name in order], dim=1)  # (batch, columns)
    if kept.is_cpu and not torch.compiler.is_compiling():  # elsewhere to look would be to wait
        assert bool(kept.any(1).all()), "a row without any column reached the fusion"
    if not training or drop == 0 or len(order) == 1:
        return kept
    draw = torch.rand(kept.shape, device=kept.device).masked_fill(~kept, -1.0)
    last = draw == draw.max(dim=1, keepdim=True).values  # the column that would be dropped last
    return kept & ((draw >= drop) | last)


def column_vectors(order: Sequence[str], columns: dict[str, Tokens], kept: Tensor, null: Tensor) -> Tensor:
    """Return one vector a column: the mean of its real tokens, or its null vector where the column does not count.

    Masked values are replaced, not multiplied by zero, so that not even a NaN among them reaches the output.

    Args:
        order: the columns in the fusion's order.
        columns: per column, (batch, tokens, dim) with its mask.
        kept: (batch, columns) bool.
        null: (columns, dim), learned.

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


def one_token_each(order: Sequence[str], vectors: Tensor, kept: Tensor) -> dict[str, Tokens]:
    """Return fused tokens of one vector a column.

    Args:
        order: the columns in the fusion's order.
        vectors: (batch, columns, dim).
        kept: (batch, columns) bool, True where the column counts.
    """
    return {name: Tokens(vectors[:, c : c + 1], kept[:, c : c + 1]) for c, name in enumerate(order)}


class VectorFusion(Fusion):
    """Base of fusions of one vector a column: the mean of its tokens, or a learned null vector where it is absent."""

    interacts = True

    def __init__(self, columns: Sequence[str], dim: int, *, modality_dropout: float) -> None:
        """
        Args:
            columns: the columns, in a fixed order.
            dim: features of every token and of the pooled vector.
            modality_dropout: probability in [0, 1) that a present column is hidden from a row in training.

        Raises:
            ConfigError: the probability is out of range.
        """
        super().__init__(columns, dim)
        self.modality_dropout = check_rate("modality_dropout", modality_dropout)
        self.null = nn.Parameter(torch.randn(len(self.columns), dim) * 0.02)
        self.norm = nn.LayerNorm(dim)

    @abc.abstractmethod
    def mix(self, vectors: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Return fused vectors, (batch, columns, dim), and the pooled vector before its norm, (batch, dim).

        Args:
            vectors: (batch, columns, dim).
            kept: (batch, columns) bool, True where the column counts.
        """

    def forward(self, columns: dict[str, Tokens], present: dict[str, Tensor]) -> Fused:
        """See `Fusion.forward`. Fused tokens are one vector a column."""
        kept = kept_columns(self.columns, columns, present, drop=self.modality_dropout, training=self.training)
        vectors, pooled = self.mix(column_vectors(self.columns, columns, kept, self.null), kept)
        return Fused(one_token_each(self.columns, vectors, kept), self.norm(pooled))


def perceptron(num_in: int, dim: int, *, depth: int, dropout: float) -> nn.Sequential:
    """Return a perceptron from `num_in` features through `depth` hidden layers of 2 x dim features to `dim`.

    Each hidden layer is followed by GELU and dropout.

    Raises:
        ConfigError: `depth` or `dropout` is out of range.
    """
    layers: list[nn.Module] = []
    for size in [num_in] + [2 * dim] * (check_count("depth", depth) - 1):
        layers += [nn.Linear(size, 2 * dim), nn.GELU(), nn.Dropout(check_rate("dropout", dropout))]
    return nn.Sequential(*layers, nn.Linear(2 * dim, dim))
