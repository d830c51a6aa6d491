"""Parts that fusions share: the present columns of a row, modality dropout, one vector a column, the perceptron."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusetune.errors import ConfigError
from fusetune.fusion.base import Fused, Fusion
from fusetune.types import Tokens


def check_rate(name: str, rate: float) -> float:
    """Return a rate if it is in [0, 1).

    Raises:
        ConfigError: it is not.
    """
    if not 0 <= rate < 1:
        raise ConfigError(f"{name} is out of range", expected="0 <= rate < 1", came=str(rate))
    return rate


def check_count(name: str, count: int, *, most: int | None = None) -> int:
    """Return a count if it is at least 1, and at most `most` if that is given.

    Raises:
        ConfigError: it is not.
    """
    if count < 1 or (most is not None and count > most):
        raise ConfigError(
            f"{name} is out of range", expected="1 or more" if most is None else f"1 to {most}", came=str(count)
        )
    return count


def present_columns(
    order: Sequence[str], columns: dict[str, Tokens], present: dict[str, Tensor], *, drop: float, training: bool
) -> Tensor:
    """Return which columns each row is fused from, (batch, columns) bool, with at least one True a row.

    A column is counted if it is present and has a real token. In training, each counted column is dropped with
    probability `drop`; a row that would lose all of them keeps one, chosen uniformly. A fusion treats a dropped column
    as absent, so that the model is trained on missing columns.

    Args:
        order: the columns in the fusion's order.
        columns: by column, (batch, tokens, dim) with its mask.
        present: by column, (batch,) bool.
        drop: probability in [0, 1).
        training: whether columns are dropped.

    Reference: Neverova et al. 2015, "ModDrop" (arXiv 1501.00102).
    """
    counted = torch.stack([present[name] & columns[name].mask.any(1) for name in order], dim=1)  # (batch, columns)
    if counted.is_cpu and not torch.compiler.is_compiling():  # on a GPU the check would wait for the device
        assert bool(counted.any(1).all()), "a row without any column reached the fusion"
    if not training or drop == 0 or len(order) == 1:
        return counted
    draw = torch.rand(counted.shape, device=counted.device).masked_fill(~counted, -1.0)
    last = draw == draw.max(dim=1, keepdim=True).values  # the column that would be dropped last
    return counted & ((draw >= drop) | last)


def column_vectors(order: Sequence[str], columns: dict[str, Tokens], counted: Tensor, null: Tensor) -> Tensor:
    """Return one vector a column: the mean of its real tokens, or its null vector in rows where it is not counted.

    Masked values are replaced, not multiplied by zero, so that a NaN among them cannot reach the output.

    Args:
        order: the columns in the fusion's order.
        columns: by column, (batch, tokens, dim) with its mask.
        counted: (batch, columns) bool, from `present_columns`.
        null: (columns, dim), the null vectors.

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
    means = means.masked_fill(~counted.unsqueeze(-1), 0.0)
    return torch.where(counted.unsqueeze(-1), means, null.to(means.dtype))


def single_tokens(order: Sequence[str], vectors: Tensor, counted: Tensor) -> dict[str, Tokens]:
    """Return fused tokens with a single token a column, by column.

    Args:
        order: the columns in the fusion's order.
        vectors: (batch, columns, dim).
        counted: (batch, columns) bool, from `present_columns`.
    """
    return {name: Tokens(vectors[:, c : c + 1], counted[:, c : c + 1]) for c, name in enumerate(order)}


class VectorFusion(Fusion):
    """Base class of fusions that read one vector a column: the mean of its tokens, or a learned null vector if absent.

    Args:
        columns: names of the columns, in a fixed order.
        dim: features of every token and of the pooled vector.
        modality_dropout: probability in [0, 1) that a row's present column is treated as absent in training.

    Raises:
        ConfigError: the probability is out of range.
    """

    interacts = True

    def __init__(self, columns: Sequence[str], dim: int, *, modality_dropout: float) -> None:
        super().__init__(columns, dim)
        self.modality_dropout = check_rate("modality_dropout", modality_dropout)
        self.null = nn.Parameter(torch.randn(len(self.columns), dim) * 0.02)
        self.norm = nn.LayerNorm(dim)

    @abc.abstractmethod
    def mix(self, vectors: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """Return fused vectors, (batch, columns, dim), and the pooled vector before its norm, (batch, dim).

        Args:
            vectors: (batch, columns, dim).
            counted: (batch, columns) bool, from `present_columns`.
        """

    def forward(self, columns: dict[str, Tokens], present: dict[str, Tensor]) -> Fused:
        """See `Fusion.forward`. Each column has a single fused token."""
        counted = present_columns(self.columns, columns, present, drop=self.modality_dropout, training=self.training)
        vectors, pooled = self.mix(column_vectors(self.columns, columns, counted, self.null), counted)
        return Fused(single_tokens(self.columns, vectors, counted), self.norm(pooled))


def perceptron(num_in: int, dim: int, *, depth: int, dropout: float) -> nn.Sequential:
    """Build a perceptron with `depth` hidden layers of 2 x dim features, each followed by GELU and dropout.

    Args:
        num_in: features of the input.
        dim: features of the output.
        depth: hidden layers, at least 1.
        dropout: rate in [0, 1).

    Raises:
        ConfigError: `depth` or `dropout` is out of range.
    """
    layers: list[nn.Module] = []
    for size in [num_in] + [2 * dim] * (check_count("depth", depth) - 1):
        layers += [nn.Linear(size, 2 * dim), nn.GELU(), nn.Dropout(check_rate("dropout", dropout))]
    return nn.Sequential(*layers, nn.Linear(2 * dim, dim))
