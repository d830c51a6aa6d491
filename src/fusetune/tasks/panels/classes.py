"""Panels of tasks with classes: precision and recall by class, confusion, ROC and precision-recall curves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.metrics import (
    auc,
    average_precision_score,
    precision_recall_curve,
    precision_recall_fscore_support,
    roc_curve,
)

from fusetune.tasks.panels.kinds import Cell, CurvePanel, Head, HeatmapPanel, Line, Section, TablePanel

MAX_CURVES = 10
MAX_POINTS = 120
MIN_CURVE_ROWS = 10
"""Minimum number of rows with a class, and without it, for a curve; with fewer it would have a few steps only."""
MAX_CLASSES = 25
"""With more classes, those with the lowest F1 are shown and the others are collapsed."""
NUM_LOWEST = 15
MAX_PAIRS = 15

CLASS_HEADS = [
    Head("class"),
    Head("rows", "count"),
    Head("precision", "number"),
    Head("recall", "number"),
    Head("F1", "number"),
    Head("", "bar"),
    Head("average precision", "number"),
]


def as_matrix(truth: np.ndarray, num_classes: int) -> np.ndarray:
    """Return class indices as a one-hot (rows, classes) matrix; return a matrix unchanged."""
    matrix: np.ndarray = truth if truth.ndim == 2 else np.eye(num_classes, dtype=np.int64)[truth]
    return matrix


def class_rows(
    scores: np.ndarray,
    decided: np.ndarray,
    truth: np.ndarray,
    labels: Sequence[str],
    weights: np.ndarray | None = None,
) -> list[list[Cell]]:
    """Return a table row with the columns `CLASS_HEADS` for each class, in the order of `labels`.

    Recall and average precision are NaN for a class without rows, precision for a class that is never predicted.

    Args:
        scores: (rows, classes) probabilities.
        decided, truth: (rows,) class indices, or (rows, classes) 0/1.
        labels: class names.
        weights: (rows,) as in the task's metrics; the column "rows" ignores them.
    """
    actual, guess = as_matrix(truth, len(labels)), as_matrix(decided, len(labels))
    precision, recall, f1, _ = precision_recall_fscore_support(
        actual, guess, average=None, zero_division=np.nan, sample_weight=weights
    )
    support = actual.sum(axis=0)
    weight = support if weights is None else weights @ actual
    rows: list[list[Cell]] = []
    for index, label in enumerate(labels):
        area = math.nan
        if weight[index] > 0:
            area = float(average_precision_score(actual[:, index], scores[:, index], sample_weight=weights))
        figures = [float(precision[index]), float(recall[index]), float(f1[index])]
        rows.append([label, int(support[index]), *figures, figures[2], area])
    return rows


def class_section(rows: list[list[Cell]], heads: list[Head] | None = None, notes: Sequence[str] = ()) -> Section:
    """Return the section by class.

    Args:
        rows: from `class_rows`, with or without further columns.
        heads: the columns of the rows; `CLASS_HEADS` by default.
        notes: shown below the table.
    """
    heads = heads or CLASS_HEADS
    panels = [TablePanel(heads, rows)]
    if len(rows) > MAX_CLASSES:
        lowest = sorted((row for row in rows if row[1]), key=_f1)[:NUM_LOWEST]
        panels = [
            TablePanel(heads, lowest, caption=f"The {len(lowest)} classes with the lowest F1, of {len(rows)}."),
            TablePanel(heads, rows, folded=f"All {len(rows)} classes"),
        ]
    return Section("classes", "By class", [*panels], list(notes))


def _f1(row: list[Cell]) -> float:
    value = row[4]
    return value if isinstance(value, float) and math.isfinite(value) else -1.0


def confusion_cells(decided: np.ndarray, truth: np.ndarray) -> list[list[int]]:
    """Return the non-zero cells of the confusion matrix, sorted: `[true index, predicted index, rows]`.

    Args:
        decided, truth: (rows,) class indices.
    """
    pairs, counts = np.unique(np.stack([truth, decided], axis=1), axis=0, return_counts=True)
    return [[int(true), int(guess), int(rows)] for (true, guess), rows in zip(pairs, counts, strict=True)]


def confused_pairs(cells: Sequence[Sequence[int]], labels: Sequence[str]) -> list[list[Cell]]:
    """Return the most frequent confusions: true label, predicted label, rows, share of the true label's rows."""
    support: Counter[int] = Counter()
    for true, _, rows in cells:
        support[true] += rows
    wrong = sorted((cell for cell in cells if cell[0] != cell[1]), key=lambda cell: (-cell[2], cell[0], cell[1]))
    return [[labels[true], labels[guess], rows, rows / support[true]] for true, guess, rows in wrong[:MAX_PAIRS]]


def confusion_section(cells: list[list[int]], labels: list[str]) -> Section:
    """Return the section of the confusion matrix and its most frequent confusions.

    Args:
        cells: from `confusion_cells`.
        labels: class names.
    """
    pairs = confused_pairs(cells, labels)
    heads = [Head("true"), Head("predicted"), Head("rows", "count"), Head("of its true rows", "share")]
    notes = ["Shade: the share of the true class's rows. Blue is right, orange is wrong."]
    if not pairs:
        notes.insert(0, "No row is predicted as another class.")
    if len(labels) > 30:
        notes.append(f"{len(labels)} classes in the order of the labels; point at a cell for its names.")
    table = [TablePanel(heads, pairs, caption="Most frequent confusions")] if pairs else []
    return Section("confusion", "Confusion matrix", [HeatmapPanel(labels, cells), *table], notes)


def curves(
    scores: np.ndarray, truth: np.ndarray, labels: Sequence[str]
) -> tuple[list[tuple[Line, float]], list[tuple[Line, float]]]:
    """Return ROC and precision-recall curves, each with the share of rows that have the class.

    With two classes they are the second one's, else those of the (at most 10) most frequent classes. A class that fewer
    than `MIN_CURVE_ROWS` rows have, or do not have, is left out.

    Args:
        scores: (rows, classes) probabilities.
        truth: (rows,) class indices, or (rows, classes) 0/1.
        labels: class names.
    """
    actual = as_matrix(truth, len(labels))
    support = actual.sum(axis=0)
    defined = [
        index for index in range(len(labels)) if MIN_CURVE_ROWS <= support[index] <= len(actual) - MIN_CURVE_ROWS
    ]
    chosen = [1] if len(labels) == 2 and truth.ndim == 1 else sorted(defined, key=lambda i: -support[i])[:MAX_CURVES]
    roc, pr = [], []
    for index in sorted(set(chosen) & set(defined)):
        own, score, rate = actual[:, index], scores[:, index], float(support[index] / len(actual))
        false, true, _ = roc_curve(own, score)
        roc.append((_thinned(labels[index], false, true, float(auc(false, true))), rate))
        precision, recall, _ = precision_recall_curve(own, score)
        area = float(average_precision_score(own, score))
        pr.append((_thinned(labels[index], recall[::-1], precision[::-1], area), rate))
    return roc, pr


def _thinned(label: str, x: np.ndarray, y: np.ndarray, area: float) -> Line:
    """Return the curve with at most `MAX_POINTS` of its points, evenly spaced along its length."""
    if len(x) > MAX_POINTS:
        along = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
        chosen = np.unique(np.searchsorted(along, np.linspace(0, along[-1], MAX_POINTS)).clip(0, len(x) - 1))
        x, y = x[chosen], y[chosen]
    return Line(label, [round(float(v), 4) for v in x], [round(float(v), 4) for v in y], area)


def curve_section(
    roc: Sequence[tuple[Line, float]], pr: Sequence[tuple[Line, float]], num_classes: int
) -> list[Section]:
    """Return the section of ROC and precision-recall curves, or an empty list if there is no curve."""
    if not roc:
        return []
    level = pr[0][1] if len(pr) == 1 else math.nan
    panels = [
        CurvePanel(
            "Precision and recall", "recall", "precision", [line for line, _ in pr], values="area (AP)", level=level
        ),
        CurvePanel(
            "ROC",
            "false positive rate",
            "true positive rate",
            [line for line, _ in roc],
            values="area (AUC)",
            diagonal="a random order",
        ),
    ]
    notes = []
    if num_classes > len(roc) > 1 or (num_classes > 2 and len(roc) == 1):
        notes = [
            f"The {f'{len(roc)} ' if len(roc) > 1 else ''}most frequent of {num_classes} classes against the rest;"
            f" classes with fewer than {MIN_CURVE_ROWS} rows are left out."
        ]
    return [Section("curves", "Curves", [*panels], notes)]


def balance_panel(counts: Mapping[str, np.ndarray], labels: Sequence[str]) -> TablePanel:
    """Return a table of each class's rows by split.

    Args:
        counts: by split, (classes,) numbers of rows.
        labels: class names.
    """
    rows: list[list[Cell]] = []
    order = np.argsort(-sum(counts.values()), kind="stable")
    for index in order:
        cells: list[Cell] = [labels[index]]
        for split in counts:
            total = int(counts[split].sum())
            cells += [int(counts[split][index]), float(counts[split][index]) / total if total else math.nan]
        rows.append(cells)
    heads = [Head("class")]
    for split in counts:
        heads += [Head(f"{split} rows", "count"), Head("share", "share")]
    folded = f"All {len(labels)} classes by split" if len(labels) > MAX_CLASSES else ""
    return TablePanel(heads, rows, caption="Rows of each class by split.", folded=folded)


def unpredicted(target: str, decided: np.ndarray, truth: np.ndarray) -> list[str]:
    """Return a warning if at least half of the labels that rows have are predicted for no row; else [].

    Args:
        target: the target column's name.
        decided, truth: (rows, labels) 0/1.
    """
    present = truth.any(axis=0)
    never = int((present & ~decided.any(axis=0)).sum())
    if not never or 2 * never < present.sum():
        return []
    return [
        f"The model predicts {never} of the {present.sum()} labels of {target!r} in these rows for no row: what it"
        " says about them is only in the probabilities. More train rows with these labels may help."
    ]


def names(labels: Sequence[str], has: np.ndarray) -> str:
    """Return the names of a row's labels, separated by commas.

    Args:
        labels: all label names.
        has: (labels,) 0/1.
    """
    return ", ".join(label for label, is_set in zip(labels, has, strict=True) if is_set) or "(none)"
