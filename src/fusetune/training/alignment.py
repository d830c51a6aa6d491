"""Linear maps of columns into one space in closed form: the starting point of contrastive tuning without a task.

Generalised canonical correlation analysis (Kettenring 1971, "Canonical analysis of several sets of variables", the
MAXVAR form of Carroll 1968), with a ridge penalty on each column and with rows that lack columns left out of them (van
de Velden and Takane 2012). With X_c the standardised features of column c, rows by features, the common vectors G are
the leading eigenvectors of sum_c X_c (X_c' X_c + λ n_c I)^-1 X_c', divided by the number of columns that a row has.
Column c is mapped by W_c = (X_c' X_c + λ n_c I)^-1 X_c' G E^p, where E holds the eigenvalues: the larger p, the more
the directions count on which the columns agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fusetune.data.examples import Examples
from fusetune.models.family import Family
from fusetune.models.reader import Projection
from fusetune.training.probes.probe import vectors
from fusetune.types import Tokens

PENALTIES = (1e-1, 1e-2, 3e-3, 1e-3, 3e-4)
POWERS = (0.0, 1.0, 2.0)
MAX_ROWS = 4000


@dataclass(frozen=True)
class Identity:
    """The encoders' own vectors, of columns that one encoder reads.

    Attributes:
        columns: whose projections return their input.
    """

    columns: Sequence[str]

    @property
    def description(self) -> str:
        """What the start is, for the report."""
        return "the frozen encoder's own vectors"

    @torch.no_grad()
    def install(self, model: Family) -> None:
        """Make the projections the identity, without standardisation."""
        for name in self.columns:
            projection = model.projection(name)
            projection.shift.zero_()
            projection.scale.fill_(1)
            nn.init.eye_(projection.linear.weight)
            projection.linear.bias.zero_()


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

    @property
    def description(self) -> str:
        """What the start is, for the report."""
        return f"frozen encoders, aligned in closed form (penalty {self.penalty:g}, power {self.power:g})"

    @torch.no_grad()
    def install(self, model: Family) -> None:
        """Copy the maps into the model's projections; the columns' scales must have been set."""
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
    *,
    sides: Mapping[str, Sequence[str]] | None = None,
) -> Alignment | None:
    """Return the best-scoring alignment of a grid of penalties and powers; a tie takes the stronger penalty.

    Args:
        examples: train rows; at most `MAX_ROWS`, evenly spaced, are used.
        features: per column, (cells, tokens, features) of its distinct cells.
        scales: per column, the (shift, scale) that standardise its features, each (features,).
        dim: of the common space; dimensions beyond the number of rows are zeros.
        score: evaluates an alignment on validation rows; more is better.
        sides: by name, the columns whose features count as one set; a row's are mapped to the sum of theirs. None: each
            column is a set.

    Returns:
        The alignment, or None if fewer than two sets have features, or no row has two of them.
    """
    chosen = np.unique(np.linspace(0, len(examples.used) - 1, min(len(examples.used), MAX_ROWS)).astype(np.int64))
    rows = examples.used[chosen]
    columns = {name: _block(examples, rows, name, table, scales[name]) for name, table in features.items()}
    sides = {name: (name,) for name in features} if sides is None else _with_features(sides, features)
    blocks = {side: _joined([columns[name] for name in names]) for side, names in sides.items()}
    several = (
        sum((present.double() for _, present in blocks.values()), torch.zeros(len(rows), dtype=torch.float64)) >= 2
    )
    if len(blocks) < 2 or int(several.sum()) < 2:
        return None
    blocks = {name: (values[several], present[several]) for name, (values, present) in blocks.items()}
    best: tuple[float, Alignment] | None = None
    for penalty in PENALTIES:
        common, values = _common(blocks, penalty, dim)
        solved = {name: _maps(x, present, common, penalty) for name, (x, present) in blocks.items()}
        for power in POWERS:
            maps: dict[str, Tensor] = {}
            for side, names in sides.items():
                weight = (solved[side] * values**power).float()
                parts = torch.split(weight, [columns[name][0].shape[1] for name in names])
                maps |= dict(zip(names, parts, strict=True))
            alignment = Alignment(maps, penalty, power)
            value = score(alignment)
            if best is None or value > best[0]:
                best = value, alignment
    assert best is not None
    return best[1]


def _with_features(sides: Mapping[str, Sequence[str]], features: Mapping[str, Tokens]) -> dict[str, tuple[str, ...]]:
    """Return the columns of each side that have features, without sides that have none."""
    known = {side: tuple(name for name in names if name in features) for side, names in sides.items()}
    return {side: names for side, names in known.items() if names}


def _joined(blocks: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return several columns' features side by side, and the mask of rows that have one of them, (rows,)."""
    if len(blocks) == 1:
        return blocks[0]
    present = torch.stack([present for _, present in blocks]).any(0)
    return torch.cat([values for values, _ in blocks], 1), present


def _block(
    examples: Examples, rows: np.ndarray, name: str, table: Tokens, scale: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return a column's features, (rows, features) float64, zero if absent, and the mask of its presence, (rows,)."""
    codes = examples.columns[name].codes[rows]
    present = torch.from_numpy(codes >= 0)
    shift, factor = scale
    block = torch.zeros(len(codes), len(shift))
    block[present] = (vectors(table, codes[codes >= 0]) - shift) * factor / len(shift) ** 0.5
    return block.double(), present


def _common(blocks: Mapping[str, tuple[Tensor, Tensor]], penalty: float, dim: int) -> tuple[Tensor, Tensor]:
    """Return the common vectors, (rows, dim), and their eigenvalues, (dim,): mean squared correlations, 0 to 1."""
    num = len(next(iter(blocks.values()))[1])
    total, count = torch.zeros(num, num, dtype=torch.float64), torch.zeros(num, dtype=torch.float64)
    for values, present in blocks.values():
        gram = values @ values.T
        ridge = penalty * float(present.sum()) * torch.eye(num, dtype=torch.float64)
        smooth = torch.linalg.solve(gram + ridge, gram)
        total += (smooth + smooth.T) / 2
        count += present
    root = count.clamp(min=1) ** -0.5
    eigenvalues, vectors = torch.linalg.eigh(root[:, None] * total * root)
    rank = min(dim, num)
    common, spectrum = torch.zeros(num, dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)
    spectrum[:rank] = eigenvalues.flip(0)[:rank].clamp(min=0)
    common[:, :rank] = root[:, None] * vectors.flip(1)[:, :rank]
    return common, spectrum


def _maps(values: Tensor, present: Tensor, common: Tensor, penalty: float) -> Tensor:
    """Regress the common vectors on a column's features with a ridge penalty: (features, dim), of unit variance."""
    ridge = penalty * float(present.sum()) * torch.eye(values.shape[1], dtype=torch.float64)
    weight: Tensor = torch.linalg.solve(values.T @ values + ridge, values.T @ common)
    return weight.mul(len(values) ** 0.5)
