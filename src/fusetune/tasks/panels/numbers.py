"""Panels of tasks that predict a number: predicted against true, errors and their spread."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fusetune.tasks.panels.kinds import (
    Cell,
    Head,
    HistogramPanel,
    Panel,
    ScatterPanel,
    Section,
    SpreadPanel,
    SpreadPoint,
    TablePanel,
)

MAX_SCATTER = 1000


def number_section(predicted: np.ndarray, truth: np.ndarray, target: str, *, seed: int = 0) -> Section:
    """Return the section that compares a regression's predictions with the truth.

    At most `MAX_SCATTER` rows, chosen at random, are drawn as points.

    Args:
        predicted, truth: (rows,) each.
        target: the target's name.
        seed: for the choice of points.
    """
    rows = len(truth)
    drawn = np.arange(rows)
    if rows > MAX_SCATTER:
        drawn = np.sort(np.random.default_rng(seed).choice(rows, MAX_SCATTER, replace=False))
    errors = predicted - truth
    counts, edges = np.histogram(errors, bins=int(np.clip(np.sqrt(rows), 5, 40)))
    points = []
    for part in np.array_split(np.argsort(predicted, kind="stable"), min(10, rows // 5)) if rows >= 5 else []:
        low, middle, high = np.quantile(errors[part], [0.1, 0.5, 0.9])
        points.append(SpreadPoint(float(predicted[part].mean()), float(low), float(middle), float(high), len(part)))
    return section_of(
        [float(value) for value in truth[drawn]],
        [float(value) for value in predicted[drawn]],
        ([float(value) for value in edges], [int(value) for value in counts]),
        points,
        target,
        rows,
    )


def section_of(
    truth: list[float],
    predicted: list[float],
    errors: tuple[list[float], list[int]],
    points: list[SpreadPoint],
    target: str,
    rows: int,
) -> Section:
    """Return the section from the points and counts to draw.

    Args:
        truth, predicted: of the rows that are drawn as points.
        errors: edges and counts of the histogram of prediction - truth over all rows.
        points: the spread of errors by tenths of the prediction, lowest first.
        target: the target's name.
        rows: number of all rows.
    """
    scatter = ScatterPanel(
        "Predicted against true", f"true {target}", f"predicted {target}", truth, predicted, "predicted = true"
    )
    histogram = HistogramPanel("Errors", f"predicted \N{MINUS SIGN} true {target}", *errors)
    spread = SpreadPanel(
        "Spread of errors, by tenths of the prediction",
        f"predicted {target} (mean of the tenth)",
        "error: 10th, 50th, 90th percentile",
        points,
    )
    notes = [f"{len(truth):,} of {rows:,} rows are drawn as points."] if len(truth) < rows else []
    panels: list[Panel] = [scatter, histogram]
    panels += [spread] if len(points) > 1 else []
    return Section("numbers", "Predictions and their errors", panels, notes)


def range_panel(truths: Mapping[str, np.ndarray]) -> TablePanel:
    """Return a table of the target's minimum, quartiles and maximum by split."""
    rows: list[list[Cell]] = [
        [split, len(values), *(map(float, np.quantile(values, [0, 0.25, 0.5, 0.75, 1])))]
        for split, values in truths.items()
        if len(values)
    ]
    figures = [Head(name, "number") for name in ("minimum", "first quartile", "median", "third quartile", "maximum")]
    return TablePanel([Head("split"), Head("rows", "count"), *figures], rows, caption="The target by split.")
