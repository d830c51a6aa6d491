"""Fusion by convolutions over each column's map of tokens, then over the sequence of columns."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from fusetune.errors import ConfigError
from fusetune.fusion._columns import VectorFusion, check_count, check_rate
from fusetune.fusion.base import Fused
from fusetune.types import Tokens


class ConvolutionFusion(VectorFusion):
    """Convolve each column's tokens over their map, then the columns' vectors over the sequence of columns.

    x ← x + GELU(P (D * x)) on each column's tokens, u ← u + GELU(K * LayerNorm(u)) on their means u = [v_1 ... v_k],
    pooled = LayerNorm(mean of u). D is a depthwise convolution over height and width, P a pointwise one: together a
    depthwise-separable convolution, shared by all columns. K is a convolution over the columns in their order, in which
    an absent column is its learned null vector.

    Args:
        columns: names of the columns, in a fixed order.
        dim: features of every token and of the pooled vector.
        kernel_size: size of each kernel along each axis, an odd number.
        depth: convolutions over the columns, at least 1.
        dropout: rate in [0, 1) on each residual branch.
        modality_dropout: probability in [0, 1) that a row's present column is treated as absent in training.

    Raises:
        ConfigError: a setting is out of range.

    Inputs: (batch, tokens, dim) a column. Tokens with a `grid`, such as an image's with `pool: none`, are convolved
    over height and width. Other tokens are a map of height 1, so D runs along the tokens of a text. Tokens without a
    position, such as a class token, are left out of the map.

    Requires: an odd `kernel_size`.

    Relations: the only fusion that uses the tokens' positions. It is useful where the order of columns has a meaning,
    or where images are read as maps.

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
        super().__init__(columns, dim, modality_dropout=modality_dropout)
        if check_count("kernel_size", kernel_size) % 2 == 0:
            raise ConfigError("kernel_size is even", expected="an odd number", came=str(kernel_size))
        self.depthwise = nn.Conv2d(dim, dim, kernel_size, padding="same", groups=dim, bias=False)
        self.pointwise = nn.Conv2d(dim, dim, 1)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(check_count("depth", depth)))
        self.layers = nn.ModuleList(nn.Conv1d(dim, dim, kernel_size, padding="same") for _ in self.norms)
        self.dropout = nn.Dropout(check_rate("dropout", dropout))

    def forward(self, columns: dict[str, Tokens], present: dict[str, Tensor]) -> Fused:
        """See `Fusion.forward`. Each column has a single fused token."""
        return super().forward({name: self.convolve(columns[name]) for name in self.columns}, present)

    def convolve(self, tokens: Tokens) -> Tokens:
        """Convolve a column's tokens over their map; the shape, (batch, tokens, dim), stays the same."""
        batch, num, dim = tokens.values.shape
        extra, height, width = tokens.grid or (0, 1, num)
        if not num:
            return tokens
        values = tokens.values.masked_fill(~tokens.mask.unsqueeze(-1), 0.0)
        images = values.view(batch, -1, extra + height * width, dim)
        maps = images[:, :, extra:].reshape(-1, height, width, dim).permute(0, 3, 1, 2)  # (maps, dim, height, width)
        added = self.dropout(F.gelu(self.pointwise(self.depthwise(maps)))).permute(0, 2, 3, 1)
        added = F.pad(
            added.reshape(batch, -1, height * width, dim), (0, 0, extra, 0)
        )  # zeros for tokens without a position
        return Tokens(values + added.view(batch, num, dim), tokens.mask)

    def mix(self, vectors: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """See `VectorFusion.mix`. The fused vectors are the convolved ones."""
        for norm, layer in zip(self.norms, self.layers, strict=True):
            added: Tensor = layer(norm(vectors).transpose(1, 2)).transpose(1, 2)  # over the columns
            vectors = vectors + self.dropout(F.gelu(added))
        return vectors, vectors.mean(1)
