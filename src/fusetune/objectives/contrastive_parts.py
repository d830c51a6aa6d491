"""Parts that contrastive objectives share: temperature, projection heads, unit vectors, checks and warnings."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusetune.errors import ConfigError, nearest, shown

DIM = 128
MAX_LOG_SCALE = math.log(100)
HASH_FACTOR = 0x27D4EB2F165667C5
PROJECTIONS = ("linear", "mlp", "none")
MIN_COSINE = 0.5
"""Warn if a collapse costs less than matches that do not reach this mean cosine."""


@dataclass(frozen=True)
class Mining:
    """How hard negatives are mined among the train rows.

    Attributes:
        num: documents for each row.
        every: epochs from one mining to the next.
        margin: see `fusetune.inference.retrieval.hard_negatives`.
    """

    num: int
    every: int
    margin: float | None


class _Bounded(torch.autograd.Function):
    """Clamp to [0, ln 100], passing gradients on unless a descent step would leave the bounds."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        """Clamp `value` to [0, ln 100]."""
        ctx.save_for_backward(value)
        return value.clamp(0, MAX_LOG_SCALE)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return the gradient, or 0 where a descent step would leave the bounds."""
        (value,), (gradient,) = ctx.saved_tensors, gradients
        outwards = ((value >= MAX_LOG_SCALE) & (gradient < 0)) | ((value <= 0) & (gradient > 0))
        return gradient.masked_fill(outwards, 0)


class LogitScale(nn.Module):
    """The logit scale 1/τ, learned as its logarithm in [0, ln 100], so that τ stays in [0.01, 1].

    Args:
        temperature: initial τ, in [0.01, 1].
        learned: whether the logarithm is a parameter. It has one dimension, so weight decay does not apply to it.

    Reference: Radford et al. 2021, "CLIP" (arXiv 2103.00020).
    """

    log_scale: Tensor

    def __init__(self, temperature: float, *, learned: bool) -> None:
        super().__init__()
        start = torch.tensor([-math.log(temperature)])
        if learned:
            self.log_scale = nn.Parameter(start)
        else:
            self.register_buffer("log_scale", start)

    def forward(self) -> Tensor:
        """Return 1/τ, (1,)."""
        bounded: Tensor = _Bounded.apply(self.log_scale)  # type: ignore[no-untyped-call]
        return bounded.exp()


def projection_head(kind: str, in_dim: int, dim: int) -> nn.Module:
    """Build a module from (rows, in_dim) to (rows, dim).

    Args:
        kind: `linear` as in CLIP, `mlp` as in SimCLR, or `none`, the identity.
        in_dim: features of the input.
        dim: features of the output; ignored for `none`.
    """
    if kind == "none":
        return nn.Identity()
    if kind == "linear":
        return nn.Linear(in_dim, dim, bias=False)
    return nn.Sequential(nn.Linear(in_dim, in_dim), nn.ReLU(), nn.Linear(in_dim, dim, bias=False))


def unit(vectors: Tensor) -> Tensor:
    """Scale (rows, dim) vectors to unit length; half-precision vectors become float32."""
    if vectors.dtype in (torch.float16, torch.bfloat16):
        vectors = vectors.float()
    return F.normalize(vectors, dim=1, eps=1e-6)


def row_codes(codes: Sequence[Tensor]) -> Tensor:
    """Return (rows,) int64 codes that are equal where all of a row's codes are; -1 where all are -1.

    Codes of several columns are hashed to 63 bits: different rows have equal codes with a probability of about 1e-19 a
    pair.

    Args:
        codes: per column, (rows,) int64, -1 for a missing cell.
    """
    if len(codes) == 1:
        return codes[0]
    absent = torch.stack([column < 0 for column in codes]).all(0)
    return torch.where(absent, -1, mixed_codes(codes))


def mixed_codes(codes: Sequence[Tensor]) -> Tensor:
    """Return a hash of 63 bits of several codes, int64; the tensors are broadcast against each other."""
    mixed = torch.zeros_like(codes[0])
    for column in codes:
        mixed = (mixed ^ (column + 1)) * HASH_FACTOR  # wraps at 64 bits
        mixed = mixed ^ (mixed >> 29)
    return mixed & (2**63 - 1)


def check_number(setting: str, value: Any, low: float, high: float) -> float:
    """Return a setting's value as a float, if it is a number in [low, high].

    Raises:
        ConfigError: it is out of range, or not a number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        expected = f"a number from {low:g} to {high:g}" if math.isfinite(high) else f"a number of {low:g} or more"
        raise ConfigError(f"{setting} is out of range", expected=expected, came=shown(value))
    return float(value)


def check_choice(setting: str, value: Any, choices: Collection[str]) -> str:
    """Return a setting's value, if it is one of the choices.

    Raises:
        ConfigError: it is not; the message suggests the nearest choice.
    """
    if value not in choices:
        raise ConfigError(
            f"{setting} is unknown", expected=", ".join(choices), came=shown(value), do=nearest(str(value), choices)
        )
    return str(value)


def check_dims(setting: str, dims: Sequence[int], width: int, *, projected: bool = False) -> tuple[int, ...]:
    """Return the numbers of features that vectors are cut to, the greatest first, each once.

    Args:
        setting: the key in the settings.
        dims: as the user wrote them.
        width: features of the model's vectors.
        projected: whether the loss reads other vectors than search does.

    Raises:
        ConfigError: one is less than 1, or not less than the width, or the vectors are projected.
    """
    if dims and projected:
        raise ConfigError(
            f"{setting} cuts the vectors that are searched, and the loss reads projections of them",
            expected="projection=none, without a target that heads predict",
            do="leave one of them out",
        )
    if wrong := [dim for dim in dims if not 1 <= dim < width]:
        raise ConfigError(
            f"{setting} is out of range",
            expected=f"numbers from 1 to {width - 1}, as vectors have {width}",
            came=str(wrong[0]),
            do=f"leave it out; fusion.dim={2 * wrong[0]} makes wider vectors" if wrong[0] > 0 else None,
        )
    return tuple(sorted(set(dims), reverse=True))


def collapse_warnings(where: str, form: str, lam: float, *, within: bool) -> list[str]:
    """Return warnings for a form and λ that are known to collapse, each with the reason and a remedy.

    Args:
        where: the objective's key in the settings, such as "objectives.contrastive".
        form: a form of `contrastive_forms`, or "align_uniform".
        lam: λ, in [0, 1].
        within: whether other cells of the anchor's own column are negatives.
    """
    prefix = f"{where}: with form={form} and lambda={lam:g} "
    if lam == 1:
        return [prefix + "nothing is pushed apart, so all vectors may become one point; take a lambda below 1"]
    if lam == 0:
        return [prefix + "nothing is pulled together, so matches are not found; take a lambda above 0"]
    if form == "triplet":  # a triplet that is far enough apart costs nothing, at any lambda
        return []
    if form in ("infonce", "supcon") and lam < 0.5:
        return [
            f"{prefix}a match is pushed away once the softmax gives it more than lambda/(1-lambda) = "
            f"{lam / (1 - lam):.2f}; take lambda=0.5 or more, or form=decoupled"
        ]
    if form == "decoupled" and not within and lam < 1 / 3:
        return [
            prefix
            + "the columns of a row become opposites, x = -y, as this costs threshold: pushing all rows apart gains "
            "1-lambda, which is more than the 2·lambda that the pull loses; take within=true or lambda=0.5"
        ]
    # A single point gains all of the pull. Matches of mean cosine c gain the share c of it and are spread out as well.
    threshold = {"align_uniform": 3 - 2 / lam, "sigmoid": 0.0}.get(form, 2 - 1 / lam)
    if threshold > MIN_COSINE:
        return [
            f"{prefix}all vectors becoming one point costs less than staying apart, unless matches reach a mean cosine "
            f"of {threshold:.2f}; take lambda=0.5"
        ]
    return []
