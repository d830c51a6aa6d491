"""Columns brought into one space in closed form: what contrastive tuning without a task starts from.

Generalised canonical correlation analysis (Kettenring 1971, "Canonical analysis of several sets of variables", the
MAXVAR form of Carroll 1968), with a ridge penalty on each column and with rows that lack columns left out of them (van
de Velden and Takane 2012). With X_c the standardised features of column c, rows by features, the common vectors G are
the leading eigenvectors of sum_c X_c (X_c' X_c + λ n_c I)^-1 X_c', divided by how many columns a row has, and column
c is mapped by W_c = (X_c' X_c + λ n_c I)^-1 X_c' G E^p, E holding the eigenvalues: directions that the columns agree on
count the more, the larger p is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fusetune.data.examples import Examples
from fusetune.models.family import Family
from fusetune.models.reader import Projection
from fusetune.training.probe import vectors
from fusetune.types import Tokens

PENALTIES = (1e-1, 1e-2, 3e-3, 1e-3, 3e-4)
POWERS = (0.0, 1.0, 2.0)
MAX_ROWS = 4000


@dataclass(frozen=True)
class Alignment:
    """Linear maps into one space.

    Attributes:
        maps: per column, (features, dim), from standardised features divided by the square root of their number.
        penalty: λ.
        power: p.
    """

    maps: Mapping[str, Tensor]
    penalty: float
    power: float

    @torch.no_grad()
    def install(self, model: Family) -> None:
        """Make the projections of these columns the maps; the columns' scales must be set already."""
        for name, weight in self.maps.items():
            projection = model.projection(name)
            assert isinstance(projection, Projection)
            scaled = weight / len(weight) ** 0.5
            projection.linear.weight.copy_(scaled.T.to(projection.linear.weight))
            projection.linear.bias.zero_()


def align(
    examples: Examples,
    features: Mapping[str, Tokens],
    scales: Mapping[str, tuple[Tensor, Tensor]],
    dim: int,
    score: Callable[[Alignment], float],
) -> Alignment | None:
    """The alignment with the highest score of a grid of penalties and powers, the stronger penalty at a tie.

    Args:
        examples: train rows; at most `MAX_ROWS`, evenly spaced, are looked at.
        features: per column, (cells, tokens, features) of its distinct cells.
        scales: per column, the shift and scale that standardise its features.
        dim: of the common space; where the rows have fewer directions in common, the rest are zeros.
        score: of an alignment on validation rows, more is better.

    Returns:
        None where fewer than two columns have features, or no row has two of them.
    """
    chosen = np.unique(np.linspace(0, len(examples.used) - 1, min(len(examples.used), MAX_ROWS)).astype(np.int64))
    rows = examples.used[chosen]
    blocks = {name: _block(examples, rows, name, table, scales[name]) for name, table in features.items()}
    several = sum((there.double() for _, there in blocks.values()), torch.zeros(len(rows), dtype=torch.float64)) >= 2
    if len(blocks) < 2 or int(several.sum()) < 2:
        return None
    blocks = {name: (values[several], there[several]) for name, (values, there) in blocks.items()}
    best: tuple[float, Alignment] | None = None
    for penalty in PENALTIES:
        common, values = _common(blocks, penalty, dim)
        solved = {name: _maps(x, there, common, penalty) for name, (x, there) in blocks.items()}
        for power in POWERS:
            maps = {name: (weight * values**power).float() for name, weight in solved.items()}
            found = Alignment(maps, penalty, power)
            value = score(found)
            if best is None or value > best[0]:
                best = value, found
    assert best is not None
    return best[1]


def _block(
    examples: Examples, rows: np.ndarray, name: str, table: Tokens, scale: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """A column's features in rows, (rows, features) float64 with zeros where it is absent, and where it is present."""
    codes = examples.columns[name].codes[rows]
    there = torch.from_numpy(codes >= 0)
    shift, factor = scale
    block = torch.zeros(len(codes), len(shift))
    block[there] = (vectors(table, codes[codes >= 0]) - shift) * factor / len(shift) ** 0.5
    return block.double(), there


def _common(blocks: Mapping[str, tuple[Tensor, Tensor]], penalty: float, dim: int) -> tuple[Tensor, Tensor]:
    """The common vectors, (rows, dim), and their eigenvalues, (dim,): mean squared correlations, 0 to 1."""
    num = len(next(iter(blocks.values()))[1])
    total, count = torch.zeros(num, num, dtype=torch.float64), torch.zeros(num, dtype=torch.float64)
    for values, there in blocks.values():
        gram = values @ values.T
        ridge = penalty * float(there.sum()) * torch.eye(num, dtype=torch.float64)
        smooth = torch.linalg.solve(gram + ridge, gram)
        total += (smooth + smooth.T) / 2
        count += there
    root = count.clamp(min=1) ** -0.5
    eigenvalues, vectors = torch.linalg.eigh(root[:, None] * total * root)
    kept = min(dim, num)
    common, found = torch.zeros(num, dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)
    found[:kept] = eigenvalues.flip(0)[:kept].clamp(min=0)
    common[:, :kept] = root[:, None] * vectors.flip(1)[:, :kept]
    return common, found


def _maps(values: Tensor, there: Tensor, common: Tensor, penalty: float) -> Tensor:
    """Ridge regression of the common vectors on a column's features: (features, dim), scaled to unit variance."""
    ridge = penalty * float(there.sum()) * torch.eye(values.shape[1], dtype=torch.float64)
    weight: Tensor = torch.linalg.solve(values.T @ values + ridge, values.T @ common)
    return weight.mul(len(values) ** 0.5)
