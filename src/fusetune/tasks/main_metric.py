"""The metric that decides and is the headline: one of the task's, or a function of the user's own."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np

from fusetune.errors import ConfigError, shown

ResponseMethod = Literal["predict", "predict_proba"]
WEIGHT_NAMES = ("sample_weight", "weights")
"""Names of the parameter to which a function's row weights are passed."""
CALL = "()"
"""What ends the name of a metric in the settings where it is a function: `trainer.metric: profit()`."""


@dataclass(frozen=True)
class Metric:
    """A metric: its name, its direction, and its function where it is the user's own.

    The function is called as scikit-learn's metrics are, `function(y_true, y_pred)`, and with `sample_weight=` (or
    `weights=`) if it has a parameter of that name. It returns a number. A `ValueError` or an `ArithmeticError` that it
    raises for a selection of rows means that the metric is undefined there.

    Attributes:
        name: as the report shows it.
        greater_is_better: whether greater values are better.
        function: of arrays whose first axis is the rows. `y_true` holds labels as the table writes them (numbers where
            all are numbers), numbers, or a 0/1 matrix of the labels; None for one of the task's metrics.
        response_method: what `y_pred` is: "predict", the same form as `y_true`; or "predict_proba", probabilities,
            (rows, labels) in the order of `FineTuned.labels`, of a binary target (rows,) of the positive class.

    Example:
        >>> def profit(y_true, y_pred):
        ...     return float(np.mean(np.where(y_pred == "yes", np.where(y_true == "yes", 10, -1), 0)))
        >>> Metric("profit", function=profit).value(np.array(["yes", "no"]), np.array(["yes", "yes"]), None)
        4.5

    Reference: scikit-learn's `make_scorer`, whose `greater_is_better=False` would turn the sign; here it does not.
    """

    name: str
    greater_is_better: bool = True
    function: Callable[..., Any] | None = None
    response_method: ResponseMethod = "predict"

    def __post_init__(self) -> None:
        """
        Raises:
            ConfigError: the function cannot be called, the name is empty, or the response method is unknown.
        """
        if not isinstance(self.name, str) or not self.name.strip() or self.name.endswith(CALL):
            raise ConfigError("a metric has no name", expected="a text such as 'profit'", came=shown(self.name))
        if self.function is not None and not callable(self.function):
            raise ConfigError(f"the function of the metric {self.name!r} cannot be called", came=shown(self.function))
        if self.response_method not in get_args(ResponseMethod):
            raise ConfigError(
                f"the metric {self.name!r} has an unknown response_method",
                expected=" or ".join(get_args(ResponseMethod)),
                came=shown(self.response_method),
            )

    @classmethod
    def of(cls, function: Metric | Callable[..., Any]) -> Metric:
        """Return a function as a metric under the function's name, of which greater values are better."""
        if isinstance(function, Metric):
            return function
        inner = function.func if isinstance(function, partial) else function
        name = getattr(inner, "__name__", type(inner).__name__)
        return cls("own_metric" if name == "<lambda>" else name, function=function)

    @property
    def meaning(self) -> str:
        """Return the first line of the function's docstring."""
        lines = (getattr(self.function, "__doc__", None) or "").strip().splitlines()
        return lines[0].rstrip(".") if lines and not isinstance(self.function, partial) else "a function of your own"

    @property
    def takes_weights(self) -> bool:
        """Whether row weights can be passed to the function."""
        return self._weight_name() is not None

    def _weight_name(self) -> str | None:
        try:
            parameters = inspect.signature(self.function).parameters if self.function is not None else {}
        except (TypeError, ValueError):  # a function of a compiled module may have no signature
            return None
        return next((name for name in WEIGHT_NAMES if name in parameters), None)

    def value(
        self, y_true: np.ndarray, y_pred: np.ndarray, weights: np.ndarray | None, *, strict: bool = False
    ) -> float:
        """Return what the function gives for some rows; nan where it is undefined or infinite.

        Args:
            y_true, y_pred: (rows, ...); the function gets copies.
            weights: (rows,) or None.
            strict: whether an error that means "undefined" is told too.

        Raises:
            ConfigError: the function fails, or gives something that is no number.
        """
        assert self.function is not None, "a task's own metric has no function"
        name = None if weights is None else self._weight_name()
        options = {} if name is None else {name: np.array(weights)}
        try:
            result = self.function(np.array(y_true), np.array(y_pred), **options)
        except Exception as error:
            if isinstance(error, ValueError | ArithmeticError) and not strict:
                return math.nan
            raise ConfigError(
                f"trainer.metric: {self.name} failed on {len(y_true)} rows",
                expected="a function of y_true and y_pred that returns a number",
                came=f"{type(error).__name__}: {error}",
                do=f"try it by itself with arrays such as y_true = {shown(y_true[:3].tolist(), 60)}",
            ) from error
        if isinstance(result, np.ndarray | np.generic) and np.ndim(result) == 0:
            result = result.item()
        if not isinstance(result, Real):
            raise ConfigError(
                f"trainer.metric: {self.name} gives no number", expected="a number", came=shown(result, 60)
            )
        return float(result) if math.isfinite(result) else math.nan
