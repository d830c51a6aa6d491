"""Fusion by convolution: over the map of each column's tokens, then over the sequence of the columns."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from fusetune.errors import ConfigError
from fusetune.fusion._columns import VectorFusion, check_count, check_rate
from fusetune.fusion.base import Fused
from fusetune.types import Tokens


class ConvolutionFusion(VectorFusion):
    """Convolve each column's tokens over their map, then the sequence of the columns.

    x ← x + GELU(P (D * x)) on each column's tokens, u ← u + GELU(K * LayerNorm(u)) on their means u = [v_1 ... v_k],
    pooled = LayerNorm(mean of u). D is a convolution over height and width for each feature by itself, P a linear map
    of the features at each place: a depthwise-separable convolution, shared by the columns. K is a convolution over the
    columns in their order, an absent one being its learned null vector.

    Inputs: (batch, tokens, dim) a column. Tokens with a `grid`, such as a picture's with `pool: none`, keep their
    height and width; other tokens are a map of height 1, so that D runs along the tokens of a text. Tokens that lie
    nowhere, such as a class token, skip the map.

    Requires: an odd `kernel_size`.

    Relations: the only fusion that uses where tokens lie. Of use where columns have an order that means something, or
    where pictures are read as maps.

    Example:
        >>> import torch
        >>> from fusetune.types import Tokens
        >>> patches = Tokens(torch.randn(4, 1 + 6, 8), torch.ones(4, 7).bool(), grid=(1, 2, 3))
        >>> columns = {"photo": patches, "title": Tokens(torch.randn(4, 5, 8), torch.ones(4, 5).bool())}
        >>> fusion = ConvolutionFusion(["photo", "title"], 8)
        >>> fusion(columns, dict.fromkeys(columns, torch.ones(4).bool())).pooled.shape
        torch.Size([4, 8])

    Reference: Howard et al. 2017, "MobileNets" (arXiv 1704.04861), for the separable convolution; Kim 2014 (arXiv
    1408.5882), for convolution over a sequence of vectors.
    """

    def __init__(
        self,
        columns: Sequence[str],
        dim: int,
        *,
        kernel_size: int = 3,
        depth: int = 1,
        dropout: float = 0.1,
        modality_dropout: float = 0.1,
    ) -> None:
        """
        Args:
            columns: the columns, in a fixed order.
            dim: features of every token and of the pooled vector.
            kernel_size: places that a convolution sees at once, along each axis; odd.
            depth: convolutions over the columns, at least 1.
            dropout: rate in [0, 1) on what each convolution adds.
            modality_dropout: probability in [0, 1) that a present column is hidden from a row in training.

        Raises:
            ConfigError: a setting is out of range.
        """
        super().__init__(columns, dim, modality_dropout=modality_dropout)
        if check_count("kernel_size", kernel_size) % 2 == 0:
            raise ConfigError("kernel_size is even", expected="an odd number", came=str(kernel_size))
        self.depthwise = nn.Conv2d(dim, dim, kernel_size, padding="same", groups=dim, bias=False)
        self.pointwise = nn.Conv2d(dim, dim, 1)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(check_count("depth", depth)))
        self.layers = nn.ModuleList(nn.Conv1d(dim, dim, kernel_size, padding="same") for _ in self.norms)
        self.dropout = nn.Dropout(check_rate("dropout", dropout))

    def forward(self, columns: dict[str, Tokens], present: dict[str, Tensor]) -> Fused:
        """See `Fusion.forward`. Fused tokens are one vector a column."""
        return super().forward({name: self.spread(columns[name]) for name in self.columns}, present)

    def spread(self, tokens: Tokens) -> Tokens:
        """Convolve a column's tokens over their map: (batch, tokens, dim) to the same shape."""
        batch, num, dim = tokens.values.shape
        extra, height, width = tokens.grid or (0, 1, num)
        if not num:
            return tokens
        values = tokens.values.masked_fill(~tokens.mask.unsqueeze(-1), 0.0)
        pictures = values.view(batch, -1, extra + height * width, dim)
        maps = pictures[:, :, extra:].reshape(-1, height, width, dim).permute(0, 3, 1, 2)  # (maps, dim, height, width)
        added = self.dropout(F.gelu(self.pointwise(self.depthwise(maps)))).permute(0, 2, 3, 1)
        added = F.pad(added.reshape(batch, -1, height * width, dim), (0, 0, extra, 0))  # zeros for what lies nowhere
        return Tokens(values + added.view(batch, num, dim), tokens.mask)

    def mix(self, vectors: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """See `VectorFusion.mix`. Fused vectors are the convolved ones."""
        for norm, layer in zip(self.norms, self.layers, strict=True):
            added: Tensor = layer(norm(vectors).transpose(1, 2)).transpose(1, 2)  # over the columns
            vectors = vectors + self.dropout(F.gelu(added))
        return vectors, vectors.mean(1)
