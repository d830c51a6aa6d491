"""Fusion by modulation: one column scales and shifts the features of the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusetune.errors import ConfigError, nearest
from fusetune.fusion.concat import ConcatFusion


class FilmFusion(ConcatFusion):
    """Let one column scale and shift the features of the others, then concatenate.

    v_c becomes (1 + γ_c) * v_c + β_c for every column c except `by`, with [γ_1; β_1; ...] = F v_by + f. F and f start
    at zero, so the fusion starts as `concat`. Rows without `by` are not modulated; the perceptron sees its learned null
    vector.

    Args:
        columns: names of the columns, in a fixed order.
        dim: features of every token and of the pooled vector.
        by: name of the column that modulates the others. None: the first.
        depth: hidden layers of the perceptron, at least 1, each of 2 x dim features.
        dropout: rate in [0, 1) after every hidden layer.
        modality_dropout: probability in [0, 1) that a row's present column is treated as absent in training.
        skip: whether to add a linear skip connection beside the perceptron.

    Raises:
        ConfigError: `by` is not one of the columns, or a setting is out of range.

    Inputs: (batch, tokens, dim) a column, averaged over its real tokens.

    Requires: two or more columns; with one it equals `concat`.

    Relations: `concat` after a modulation; `low_rank` multiplies all columns with one another.

    Example:
        >>> import torch
        >>> from fusetune.types import Tokens
        >>> fusion = FilmFusion(["picture", "category"], 8, by="category")
        >>> columns = {name: Tokens(torch.randn(4, 1, 8), torch.ones(4, 1).bool()) for name in fusion.columns}
        >>> fusion(columns, dict.fromkeys(columns, torch.ones(4).bool())).pooled.shape
        torch.Size([4, 8])

    Reference: Perez et al. 2018, "FiLM: Visual Reasoning with a General Conditioning Layer" (arXiv 1709.07871), with
    the scale written as 1 + γ.
    """

    def __init__(
        self,
        columns: Sequence[str],
        dim: int,
        *,
        by: str | None = None,
        depth: int = 1,
        dropout: float = 0.1,
        modality_dropout: float = 0.1,
        skip: bool = True,
    ) -> None:
        super().__init__(columns, dim, depth=depth, dropout=dropout, modality_dropout=modality_dropout, skip=skip)
        if by is not None and by not in self.columns:
            raise ConfigError(
                f"fusion.by names no input column: {by!r}",
                expected=", ".join(self.columns),
                do=nearest(str(by), self.columns),
            )
        self.by = 0 if by is None else self.columns.index(by)
        num_others = len(self.columns) - 1
        self.film = nn.Linear(dim, num_others * 2 * dim) if num_others else None
        if self.film is not None:
            nn.init.zeros_(self.film.weight)
            nn.init.zeros_(self.film.bias)

    def mix(self, vectors: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """See `VectorFusion.mix`. The fused vectors are the modulated ones."""
        if self.film is not None:
            before, own, after = vectors.tensor_split((self.by, self.by + 1), dim=1)
            others = torch.cat([before, after], dim=1)  # (batch, columns - 1, dim)
            scale, offset = self.film(own).view(vectors.shape[0], others.shape[1], 2, self.dim).unbind(2)
            modulated = counted[:, self.by, None, None]
            others = torch.where(modulated, (1 + scale) * others + offset, others)
            vectors = torch.cat([others[:, : self.by], own, others[:, self.by :]], dim=1)
        return super().mix(vectors, counted)
