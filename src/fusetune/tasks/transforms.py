"""Invertible transforms of a numeric target, fitted on train rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from fusetune.errors import ConfigError, TableError, nearest

TRANSFORMS = ("auto", "none", "standard", "log1p", "yeo-johnson", "quantile")

SKEWED = 2.0
"""With "auto", non-negative numbers whose skewness is above this are transformed by log1p."""

QUANTILES = 1000
"""Maximum number of reference points of the quantile transform."""

MARGIN = 0.1
"""Predictions of a nonlinear transform are clipped to the train range, extended by this share of it at both ends."""


def skewness(values: np.ndarray) -> float:
    """Return the third standardised moment; 0 if all values are equal."""
    centred = values - values.mean()
    spread = centred.std()
    return float(((centred / spread) ** 3).mean()) if spread > 0 else 0.0


def yeo_johnson(values: np.ndarray, power: float) -> np.ndarray:
    """Return the power transform for numbers of either sign (Yeo and Johnson 2000, Biometrika 87).

    Args:
        values: (rows,) float.
        power: λ of the paper.
    """
    result = np.empty_like(values)
    upper = values >= 0
    high, low = values[upper], -values[~upper]
    result[upper] = np.log1p(high) if abs(power) < 1e-12 else np.expm1(power * np.log1p(high)) / power
    other = 2 - power
    result[~upper] = -np.log1p(low) if abs(other) < 1e-12 else -np.expm1(other * np.log1p(low)) / other
    return result


def inverse_yeo_johnson(values: np.ndarray, power: float) -> np.ndarray:
    """Return the inverse of `yeo_johnson`; values outside its range are clipped to it."""
    result = np.empty_like(values)
    upper = values >= 0
    high, low = values[upper], -values[~upper]
    end = np.nextafter(-1, 0)
    result[upper] = np.expm1(high if abs(power) < 1e-12 else np.log1p(np.maximum(power * high, end)) / power)
    other = 2 - power
    result[~upper] = -np.expm1(low if abs(other) < 1e-12 else np.log1p(np.maximum(other * low, end)) / other)
    return result


class Transform:
    """Transform a target by a monotonic curve (log1p, Yeo-Johnson or quantiles), then standardise it.

    `forward` and `inverse` map (rows,) to (rows,) float64.

    Args:
        name: one of `TRANSFORMS`. "auto" becomes "log1p" for skewed non-negative numbers, else "standard".

    Raises:
        ConfigError: the name is unknown.
    """

    def __init__(self, name: str) -> None:
        if name not in TRANSFORMS:
            raise ConfigError(
                f"there is no target transform called {name!r}",
                expected=", ".join(TRANSFORMS),
                do=nearest(name, TRANSFORMS),
            )
        self.name = name
        self.power, self.center, self.spread = 1.0, 0.0, 1.0
        self.points: np.ndarray = np.zeros(0)
        self.mean, self.scale = 0.0, 1.0
        self.low, self.high = -np.inf, np.inf
        """The range of the transformed values that a nonlinear inverse is clipped to."""

    def fit(self, values: np.ndarray, column: str) -> None:
        """Fit the transform to the train rows' numbers.

        Args:
            values: (rows,) float64.
            column: the target's name, for error messages.

        Raises:
            TableError: the transform is "log1p" and a number is -1 or less.
        """
        if self.name == "auto":
            skewed = values.min() >= 0 and skewness(values) > SKEWED
            self.name = "log1p" if skewed and skewness(np.log1p(values)) < skewness(values) else "standard"
        if self.name == "log1p" and values.min() <= -1:
            raise TableError(
                "the target transform log1p does not take numbers of -1 or less",
                came=f"{values.min():g} is the least",
                do="use the transform yeo-johnson or standard",
                column=column,
            )
        if self.name == "yeo-johnson":
            # Without standardising, data far from zero would get a power so extreme that the inverse loses all digits.
            self.center, self.spread = float(values.mean()), float(values.std()) or 1.0
            self.power = _best_power((values - self.center) / self.spread)
        if self.name == "quantile":
            self.points = np.quantile(values, np.linspace(0, 1, min(QUANTILES, len(values))))
        curved = self._curve(values)
        if self.name != "none":
            self.mean, self.scale = float(curved.mean()), float(curved.std()) or 1.0
        margin = MARGIN * np.ptp(values)
        limits = self.forward(np.array([values.min() - margin, values.max() + margin]))
        self.low, self.high = float(limits[0]), float(limits[1])

    def forward(self, values: np.ndarray) -> np.ndarray:
        """Map numbers in the target's unit to the transformed scale."""
        return (self._curve(np.asarray(values, dtype=np.float64)) - self.mean) / self.scale

    def inverse(self, values: np.ndarray) -> np.ndarray:
        """Map transformed numbers to the target's unit; the result is finite for finite input."""
        values = np.asarray(values, dtype=np.float64)
        if self.name in ("none", "standard"):
            return values * self.scale + self.mean
        curved = np.clip(values, self.low, self.high) * self.scale + self.mean
        if self.name == "log1p":
            return np.asarray(np.expm1(curved))
        if self.name == "yeo-johnson":
            return inverse_yeo_johnson(curved, self.power) * self.spread + self.center
        return np.asarray(np.interp(ndtr(curved), np.linspace(0, 1, len(self.points)), self.points))

    def _curve(self, values: np.ndarray) -> np.ndarray:
        if self.name == "log1p":
            return np.asarray(np.log1p(np.maximum(values, np.nextafter(-1, 0))))
        if self.name == "yeo-johnson":
            return yeo_johnson((values - self.center) / self.spread, self.power)
        if self.name == "quantile":
            quantiles = np.linspace(0, 1, len(self.points))
            # Interpolating from both ends gives equal reference points the middle of their quantiles.
            up = np.interp(values, self.points, quantiles)
            down = np.interp(-values, -self.points[::-1], -quantiles[::-1])
            return np.asarray(ndtri(np.clip((up - down) / 2, 1e-3, 1 - 1e-3)))
        return values

    def state(self) -> dict[str, Any]:
        """Return the fitted transform as JSON data."""
        return {
            "name": self.name,
            "power": [self.power, self.center, self.spread],
            "points": self.points.tolist(),
            "mean": self.mean,
            "scale": self.scale,
            "range": [self.low, self.high] if np.isfinite([self.low, self.high]).all() else None,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Transform:
        """Restore a transform from its `state()`."""
        transform = cls(state["name"])
        transform.power, transform.center, transform.spread = map(float, state["power"])
        transform.points = np.asarray(state["points"], dtype=np.float64)
        transform.mean, transform.scale = float(state["mean"]), float(state["scale"])
        if state["range"] is not None:
            transform.low, transform.high = map(float, state["range"])
        return transform


def _best_power(values: np.ndarray) -> float:
    """Return the maximum-likelihood power of the Yeo-Johnson transform; 1 if all values are equal."""
    from sklearn.preprocessing import PowerTransformer

    if np.ptp(values) == 0:
        return 1.0
    scaled = PowerTransformer(method="yeo-johnson", standardize=False).fit(values[:, None])
    return float(scaled.lambdas_[0])
