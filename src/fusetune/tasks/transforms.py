"""Scales on which a number is learned: fitted on train rows, and back again."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from fusetune.errors import ConfigError, TableError, nearest

TRANSFORMS = ("auto", "none", "standard", "log1p", "yeo-johnson", "quantile")

SKEWED = 2.0
"""With "auto", numbers of 0 or more whose skewness is above this are learned as log(1 + y)."""

QUANTILES = 1000
"""The most reference points of the quantile transform."""

MARGIN = 0.1
"""A curved scale's inverse is followed at most this share of the train range outside of it, in the target's unit."""


def skewness(values: np.ndarray) -> float:
    """The third standardised moment, 0 where nothing varies."""
    centred = values - values.mean()
    spread = centred.std()
    return float(((centred / spread) ** 3).mean()) if spread > 0 else 0.0


def yeo_johnson(values: np.ndarray, power: float) -> np.ndarray:
    """The power transform for numbers of either sign (Yeo and Johnson 2000, Biometrika 87)."""
    result = np.empty_like(values)
    upper = values >= 0
    high, low = values[upper], -values[~upper]
    result[upper] = np.log1p(high) if abs(power) < 1e-12 else np.expm1(power * np.log1p(high)) / power
    other = 2 - power
    result[~upper] = -np.log1p(low) if abs(other) < 1e-12 else -np.expm1(other * np.log1p(low)) / other
    return result


def yeo_johnson_back(values: np.ndarray, power: float) -> np.ndarray:
    """The inverse of `yeo_johnson`; beyond its range, the end of it."""
    result = np.empty_like(values)
    upper = values >= 0
    high, low = values[upper], -values[~upper]
    end = np.nextafter(-1, 0)
    result[upper] = np.expm1(high if abs(power) < 1e-12 else np.log1p(np.maximum(power * high, end)) / power)
    other = 2 - power
    result[~upper] = -np.expm1(low if abs(other) < 1e-12 else np.log1p(np.maximum(other * low, end)) / other)
    return result


class Transform:
    """A target's scale: bend (log, power of the standardised numbers, or quantiles), then zero mean and unit variance.

    `forward` and `back` take and give (rows,) float64.
    """

    def __init__(self, name: str) -> None:
        """
        Args:
            name: one of `TRANSFORMS`. "auto" is "log1p" for skewed numbers of 0 or more, else "standard".

        Raises:
            ConfigError: the name is unknown.
        """
        if name not in TRANSFORMS:
            raise ConfigError(
                f"there is no target transform called {name!r}",
                expected=", ".join(TRANSFORMS),
                do=nearest(name, TRANSFORMS),
            )
        self.name = name
        self.power, self.shift, self.width = 1.0, 0.0, 1.0
        self.points: np.ndarray = np.zeros(0)
        self.mean, self.scale = 0.0, 1.0
        self.low, self.high = -np.inf, np.inf
        """The range that the inverse of a curved scale is kept in, on the learned scale."""

    def fit(self, values: np.ndarray, column: str) -> None:
        """Learn from the train rows' numbers.

        Raises:
            TableError: "log1p" was asked for and a number is -1 or less.
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
            # far from zero the likeliest power is so extreme that its inverse loses all digits
            self.shift, self.width = float(values.mean()), float(values.std()) or 1.0
            self.power = _best_power((values - self.shift) / self.width)
        if self.name == "quantile":
            self.points = np.quantile(values, np.linspace(0, 1, min(QUANTILES, len(values))))
        bent = self._bend(values)
        if self.name != "none":
            self.mean, self.scale = float(bent.mean()), float(bent.std()) or 1.0
        room = MARGIN * np.ptp(values)
        ends = self.forward(np.array([values.min() - room, values.max() + room]))
        self.low, self.high = float(ends[0]), float(ends[1])

    def forward(self, values: np.ndarray) -> np.ndarray:
        """Numbers in the target's unit on the learned scale."""
        return (self._bend(np.asarray(values, dtype=np.float64)) - self.mean) / self.scale

    def back(self, values: np.ndarray) -> np.ndarray:
        """Numbers on the learned scale in the target's unit, always finite for finite input."""
        values = np.asarray(values, dtype=np.float64)
        if self.name in ("none", "standard"):
            return values * self.scale + self.mean
        bent = np.clip(values, self.low, self.high) * self.scale + self.mean
        if self.name == "log1p":
            return np.asarray(np.expm1(bent))
        if self.name == "yeo-johnson":
            return yeo_johnson_back(bent, self.power) * self.width + self.shift
        return np.asarray(np.interp(ndtr(bent), np.linspace(0, 1, len(self.points)), self.points))

    def _bend(self, values: np.ndarray) -> np.ndarray:
        if self.name == "log1p":
            return np.asarray(np.log1p(np.maximum(values, np.nextafter(-1, 0))))
        if self.name == "yeo-johnson":
            return yeo_johnson((values - self.shift) / self.width, self.power)
        if self.name == "quantile":
            places = np.linspace(0, 1, len(self.points))
            # equal reference points share the middle of their places: the mean of reading from either end
            up = np.interp(values, self.points, places)
            down = np.interp(-values, -self.points[::-1], -places[::-1])
            return np.asarray(ndtri(np.clip((up - down) / 2, 1e-3, 1 - 1e-3)))
        return values

    def state(self) -> dict[str, Any]:
        """Everything `from_state` needs, as JSON."""
        return {
            "name": self.name,
            "power": [self.power, self.shift, self.width],
            "points": self.points.tolist(),
            "mean": self.mean,
            "scale": self.scale,
            "range": [self.low, self.high] if np.isfinite([self.low, self.high]).all() else None,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Transform:
        """The transform that `state()` described."""
        transform = cls(state["name"])
        transform.power, transform.shift, transform.width = map(float, state["power"])
        transform.points = np.asarray(state["points"], dtype=np.float64)
        transform.mean, transform.scale = float(state["mean"]), float(state["scale"])
        if state["range"] is not None:
            transform.low, transform.high = map(float, state["range"])
        return transform


def _best_power(values: np.ndarray) -> float:
    """The likeliest power of Yeo and Johnson's transform, as scikit-learn finds it."""
    from sklearn.preprocessing import PowerTransformer

    if np.ptp(values) == 0:
        return 1.0
    scaled = PowerTransformer(method="yeo-johnson", standardize=False).fit(values[:, None])
    return float(scaled.lambdas_[0])
