"""Panels of tasks that answer with a number: predicted against true, errors, their spread."""

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
    """Return how a regression's predictions lie to the truth; at most 1000 rows are drawn as points.

    Args:
        predicted, truth: (rows,) each.
        target: its name.
        seed: of the choice of points.
    """
    rows = len(truth)
    some = np.arange(rows)
    if rows > MAX_SCATTER:
        some = np.sort(np.random.default_rng(seed).choice(rows, MAX_SCATTER, replace=False))
    errors = predicted - truth
    counts, edges = np.histogram(errors, bins=int(np.clip(np.sqrt(rows), 5, 40)))
    points = []
    for part in np.array_split(np.argsort(predicted, kind="stable"), min(10, rows // 5)) if rows >= 5 else []:
        low, middle, high = np.quantile(errors[part], [0.1, 0.5, 0.9])
        points.append(SpreadPoint(float(predicted[part].mean()), float(low), float(middle), float(high), len(part)))
    return section_of(
        [float(value) for value in truth[some]],
        [float(value) for value in predicted[some]],
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
    """Return the section from what is drawn.

    Args:
        truth, predicted: of the rows that are points.
        errors: edges and counts of the histogram of prediction - truth over all rows.
        points: by tenths of the prediction, lowest first.
        target: its name.
        rows: how many there are.
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
    """Return the target's least, quarters and greatest by split."""
    rows: list[list[Cell]] = [
        [split, len(values), *(map(float, np.quantile(values, [0, 0.25, 0.5, 0.75, 1])))]
        for split, values in truths.items()
        if len(values)
    ]
    figures = [Head(name, "number") for name in ("least", "first quarter", "median", "third quarter", "greatest")]
    return TablePanel([Head("split"), Head("rows", "count"), *figures], rows, caption="The target by split.")
