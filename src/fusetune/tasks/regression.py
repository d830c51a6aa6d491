"""Regression: a number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusetune.data.table import is_missing
from fusetune.errors import BadCell, ConfigError, TableError, shown
from fusetune.modalities.base import Detection
from fusetune.modalities.values import canonical
from fusetune.tasks import metrics as measures
from fusetune.tasks.abilities import Boosted, Distilled, Divergent, Exported, Probed
from fusetune.tasks.answer_modules import NumberAnswers
from fusetune.tasks.base import LinearPath, Metric, TargetTask
from fusetune.tasks.cells import is_whole, label_text, number_of, present_cells, read_number
from fusetune.tasks.divergence import squared_difference
from fusetune.tasks.linear import ridge_path
from fusetune.tasks.output_columns import number_columns
from fusetune.tasks.panels.kinds import Evidence, Panel, Section, WorstRows, WrongRow, ranked
from fusetune.tasks.panels.numbers import number_section, range_panel
from fusetune.tasks.transforms import Transform
from fusetune.types import Target, TextTokens

LOSSES = ("mse", "huber", "mae")
BOOSTED_LOSSES = {"mse": "regression", "huber": "huber", "mae": "regression_l1"}
"""LightGBM's names for the losses."""


class _NumberHead(nn.Linear):
    """Map (batch, dim) to (batch,)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).squeeze(-1)


class RegressionTask(Probed, Divergent, Distilled, Boosted, Exported):
    """Predict a number, trained on a transformed scale and answered in the target's unit. Main metric: r2.

    Args:
        target: the target column's name.
        transform: the transform of the target: "none", "standard", "log1p", "yeo-johnson", "quantile", or "auto":
            "log1p" if no number is negative and the skewness is above 2, else "standard".
        loss: "mse", "huber" or "mae", on the transformed scale.
        delta: the error at which Huber's loss turns from quadratic to linear, in standard deviations, above 0.
        clip: whether to clip predictions to the train rows' range. Predictions of a nonlinear transform are always
            clipped to that range, extended by a tenth at both ends.

    Raises:
        ConfigError: a setting is unknown or out of range.

    Loss: squared, Huber's or absolute error, on the transformed scale.

    Answers: (rows,) numbers in the target's unit.

    Requires: cells that are numbers, with two or more distinct values in the train rows.

    Relations: `ordinal` suits a few ordered whole numbers, such as stars; `multiclass` suits codes.

    Example:
        >>> task = RegressionTask("price", transform="log1p")
        >>> task.fit(["3.50", "12", "8.25", "190"])
        >>> target = task.encode(["12", None])
        >>> target.labelled.tolist()
        [True, False]
        >>> task.answers(target.values).round(2)[0]
        np.float64(12.0)

    Reference: Huber 1964, "Robust Estimation of a Location Parameter", for the loss `huber`.
    """

    name = "regression"
    main = Metric("r2")

    def __init__(
        self,
        target: str,
        *,
        transform: str = "auto",
        loss: Literal["mse", "huber", "mae"] = "mse",
        delta: float = 1.0,
        clip: bool = False,
    ) -> None:
        super().__init__(target)
        if loss not in LOSSES:
            raise ConfigError(f"there is no loss called {loss!r} for regression", expected=", ".join(LOSSES))
        if not delta > 0:
            raise ConfigError("delta is out of range", expected="a number above 0", came=str(delta))
        self.transform = Transform(transform)
        self.loss_name, self.delta, self.clip = loss, delta, clip
        self.low, self.high, self.mean = 0.0, 0.0, 0.0

    @classmethod
    def detect(cls, values: Sequence[Any]) -> Detection:
        """Return high confidence for cells that are numbers, unless they have leading zeros or at most two values."""
        readable = [number_of(value) for value in values]
        share = sum(number is not None for number in readable) / max(len(values), 1)
        if share < 0.95:
            return Detection(0.0, f"{share:.0%} of the sampled cells are numbers")
        codes = [value for value in values if isinstance(value, str) and value.lstrip("+-")[:1] == "0"]
        if any(value.isdigit() and len(value) > 1 for value in codes):
            return Detection(0.1, "numbers with leading zeros are codes")
        distinct = len(set(readable))
        all_whole = all(is_whole(canonical(label_text(value))) for value in values)
        kind = "whole numbers" if all_whole else "numbers"
        return Detection(0.8 if distinct > 2 else 0.2, f"{kind} with {distinct} distinct values in {len(values)} rows")

    def fit(self, values: Sequence[Any]) -> None:
        """Learn scale and range from the train rows' cells; cells that `check` refuses are skipped.

        Raises:
            TableError: no cell is a number, or all numbers are equal.
        """
        cells = present_cells(values, self.target)
        read = [number for number in map(number_of, cells) if number is not None]
        if not read:
            raise TableError(
                "no train row has a number in the target column",
                expected="numbers such as 12 or -0.5",
                came=", ".join(shown(cell, 40) for cell in cells[:3]),
                do="name a task that fits the target, such as multiclass",
                column=self.target,
            )
        numbers = np.asarray(read)
        if np.ptp(numbers) == 0:
            raise TableError(
                "the target is the same number everywhere, so there is nothing to learn",
                came=f"{shown(numbers[0].item())} in all {len(numbers)} labelled train rows",
                do="name another target column",
                column=self.target,
            )
        self.transform.fit(numbers, self.target)
        self.low, self.high, self.mean = float(numbers.min()), float(numbers.max()), float(numbers.mean())

    def check(self, value: Any, *, row: int) -> None:
        """Refuse a cell that is not a finite number.

        Raises:
            BadCell: it is not.
        """
        try:
            read_number(value, row=row, column=self.target)
        except BadCell as error:
            do = "write it with digits and a decimal point, or leave the cell empty"
            raise BadCell(row=row, column=self.target, value=value, why=error.why, do=do) from None

    def truth(self, values: Sequence[Any]) -> np.ndarray:
        """Return numbers in the target's unit, (rows,) float64."""
        numbers = [number_of(value) for value in values]
        assert None not in numbers, "a cell was not checked"
        return np.asarray(numbers, dtype=np.float64)

    def encode(self, values: Sequence[Any], tokens: TextTokens | None = None) -> Target:
        """Return numbers on the transformed scale, (rows,) float32; 0 for unlabelled rows."""
        labelled = np.asarray([not is_missing(value) for value in values], dtype=bool)
        encoded = np.zeros(len(values))
        known = self.truth([value for value in values if not is_missing(value)])
        encoded[labelled] = self.transform.forward(known)
        return Target(torch.tensor(encoded, dtype=torch.float32), torch.from_numpy(labelled))

    def build_head(self, dim: int) -> nn.Module:
        """Build a module from (batch, dim) to (batch,), whose bias starts at the train rows' mean."""
        head = _NumberHead(dim, 1)
        with torch.no_grad():
            # All transforms except "none" have zero mean.
            head.bias.fill_(0.0 if self.transform.name != "none" else self.mean)
        return head

    def terms(self, logits: Tensor, target: Target) -> Tensor:
        """Return each row's loss on the transformed scale, (batch,).

        Args:
            logits: (batch,) predictions.
            target: numbers on the transformed scale, (batch,).
        """
        targets = target.values.to(logits.dtype)
        if self.loss_name == "mse":
            return F.mse_loss(logits, targets, reduction="none")
        if self.loss_name == "huber":
            return F.huber_loss(logits, targets, reduction="none", delta=self.delta)
        return F.l1_loss(logits, targets, reduction="none")

    def divergence(self, logits: Tensor, other: Tensor, real: Tensor | None = None) -> Tensor:
        """Return the squared difference on the transformed scale, (batch,)."""
        return squared_difference(logits, other)

    def reference(self, teacher: TargetTask, answers: np.ndarray) -> np.ndarray:
        """Return the teacher's numbers on this task's transformed scale, (rows, 1) float32.

        Raises:
            ConfigError: the teacher's task has no numbers.
        """
        if not isinstance(teacher, RegressionTask):
            raise ConfigError(
                f"the teacher of {self.target!r} answers otherwise", expected=self.name, came=teacher.name
            )
        return np.asarray(self.transform.forward(answers), dtype=np.float32).reshape(-1, 1)

    def distillation(self, logits: Tensor, reference: Tensor, temperature: float) -> Tensor:
        """Return the squared difference on the transformed scale, (batch,); the temperature has no meaning here."""
        known = ~reference[:, 0].isnan()
        return squared_difference(logits, torch.where(known, reference[:, 0].to(logits.dtype), logits.detach()))

    def answers(self, logits: Tensor, tokens: TextTokens | None = None) -> np.ndarray:
        """Return numbers in the target's unit, (rows,)."""
        return self._finish(logits.detach().double().cpu().numpy())

    def _finish(self, learned: np.ndarray) -> np.ndarray:
        numbers = self.transform.inverse(learned.reshape(len(learned)))
        return np.clip(numbers, self.low, self.high) if self.clip else numbers

    def metrics(self, measured: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
        """See `fusetune.tasks.metrics.regression`."""
        return measures.regression(measured.reshape(len(truth)), truth, weights)

    def panels(self, evidence: Evidence) -> list[Section]:
        """Return the panels of predicted against true numbers, of errors and of their spread."""
        return [number_section(evidence.answers, evidence.truth, self.target, seed=evidence.seed)]

    def target_panels(self, truths: Mapping[str, np.ndarray]) -> list[Panel]:
        """Return a panel of the target's range by split."""
        return [range_panel(truths)]

    def worst(self, answers: np.ndarray, truth: np.ndarray, num: int) -> WorstRows:
        """Return the rows with the largest errors, taken in turn from too high and too low predictions."""
        errors = answers - truth
        rows = [
            WrongRow(
                at,
                f"{truth[at]:.6g}",
                f"{answers[at]:.4g} (off by {errors[at]:+.3g})",
                math.nan,
                float(abs(errors[at])),
            )
            for at in ranked(np.abs(errors), np.sign(errors), num)
        ]
        return WorstRows("rows with the largest error, from above and below", rows)

    def constant(self, truth: np.ndarray, rows: int) -> np.ndarray:
        """Return the mean of `truth` for every row."""
        return np.full(rows, truth.mean())

    def linear_path(self, features: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> LinearPath:
        """Return ridge regressions on the transformed scale."""
        return ridge_path(features, self.transform.forward(truth), self._finish, weights=weights)

    def linear_score(self, scores: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
        """Return the negative mean squared error in the target's unit, then the negative mean absolute error."""
        return -float(np.mean((scores - truth) ** 2)), -float(np.mean(np.abs(scores - truth)))

    def columns(self, scores: np.ndarray) -> dict[str, list[Any]]:
        """Return the numbers under the target's name."""
        return number_columns(self.target, scores)

    def answer_module(self) -> nn.Module:
        """Return the inverse of the transform."""
        return NumberAnswers(self.transform, (self.low, self.high) if self.clip else None)

    def output_form(self) -> dict[str, Any]:
        """Return a form of the kind "number"."""
        return {"kind": "number", "target": self.target}

    @property
    def num_boosters(self) -> int:
        """Always 1."""
        return 1

    def boosting(self, truth: np.ndarray, booster: int) -> tuple[dict[str, Any], np.ndarray]:
        """Return the task's loss, on the transformed scale."""
        labels = self.transform.forward(truth) if len(truth) else truth
        return {"objective": BOOSTED_LOSSES[self.loss_name], "alpha": self.delta}, labels

    def boosted_logits(self, raw: Sequence[np.ndarray]) -> np.ndarray:
        """Return numbers on the transformed scale, (rows,)."""
        return raw[0]

    def row_losses(self, scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Return squared errors in the target's unit, (rows,)."""
        return np.asarray((scores - truth) ** 2)

    def state(self) -> dict[str, Any]:
        """Return options, transform and range as JSON data."""
        return {
            "transform": self.transform.state(),
            "loss": self.loss_name,
            "delta": self.delta,
            "clip": self.clip,
            "range": [self.low, self.high],
            "mean": self.mean,
        }

    @classmethod
    def from_state(cls, target: str, state: dict[str, Any]) -> RegressionTask:
        """Restore a task from its `state()`."""
        task = cls(target, loss=state["loss"], delta=state["delta"], clip=state["clip"])
        task.transform = Transform.from_state(state["transform"])
        task.low, task.high = map(float, state["range"])
        task.mean = float(state["mean"])
        return task
