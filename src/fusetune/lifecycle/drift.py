"""Drift: whether new rows come from the distribution of the rows that a tuned model was measured on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fusetune.api import load
from fusetune.data.table import Source
from fusetune.deploy.fine_tuned import FineTuned
from fusetune.deploy.rows import Rows, needed_columns, read_source
from fusetune.errors import ConfigError, TableError
from fusetune.evaluation.report.cells import show_cell
from fusetune.lifecycle.drift_report import DriftReport, DriftTest, UnusualRow
from fusetune.lifecycle.estimate import estimate_accuracy
from fusetune.lifecycle.held_out import held_out_rows
from fusetune.lifecycle.sample import Sample, column_values, column_vectors, read_sample, word_vectors
from fusetune.lifecycle.two_sample import (
    MIN_CELLS,
    PENALTY,
    PERMUTATIONS,
    TwoSample,
    benjamini_hochberg,
    category_test,
    classifier_test,
    mmd_test,
    number_test,
    share_test,
)
from fusetune.tasks.abilities import Labelled
from fusetune.training.progress import track

UNUSUAL = 12
"""The most rows shown that differ from the held-out ones."""
FOLDS = 5


def drift(
    model: FineTuned | str | Path,
    new: Rows,
    *,
    reference: Source | None = None,
    alpha: float = 0.01,
    rows: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> DriftReport:
    """Test whether new rows come from the distribution of the rows that a model was measured on.

    Args:
        model: the tuned model, or its folder.
        new: rows with the model's input columns; with its targets, the estimate of the accuracy is checked too.
        reference: rows that the model did not learn from. None: the run's validation and test rows, read again from its
            tables.
        alpha: the probability of an alarm without drift, in (0, 1).
        rows: the most rows of either side that are compared, drawn at random, at least 20.
        seed: of the draw, the folds and the permutations.
        progress: whether to show progress on standard error.

    Raises:
        TableError: a table cannot be read or lacks a column, or has too few rows.
        ConfigError: there are no held-out rows, or an argument is out of range.

    Example:
        >>> report = ft.drift("runs/tickets", "this_week.csv")
        >>> report.alarm, report.drifted
        (True, ['message'])

    Reference:
        Rabanser et al. 2019, Failing loudly: an empirical study of methods for detecting dataset shift,
        arXiv 1810.11953.
    """
    if not 0 < alpha < 1 or rows < 4 * MIN_CELLS:
        raise ConfigError(
            "an argument is out of range",
            expected=f"0 < alpha < 1, rows of {4 * MIN_CELLS} or more",
            came=f"{alpha=}, {rows=}",
        )
    tuned = model if isinstance(model, FineTuned) else load(model)
    bars = track if progress else None
    bundle = tuned.bundle
    held_out = held_out_rows(tuned, reference).read_as(bundle.schema.forms()).with_joined(bundle.schema.joins())
    arrived = read_source(bundle, new)
    arrived.require(needed_columns(bundle))
    old, now = (read_sample(bundle, table, rows=rows, seed=seed, progress=bars) for table in (held_out, arrived))
    for sample in (old, now):
        if len(sample.examples) < 4 * MIN_CELLS:
            raise TableError(
                "there are too few rows to compare",
                expected=f"{4 * MIN_CELLS} or more",
                came=str(len(sample.examples)),
                file=sample.table.source,
            )
    return _report(tuned, old, now, alpha=alpha, seed=seed)


def _report(tuned: FineTuned, old: Sample, now: Sample, *, alpha: float, seed: int) -> DriftReport:
    first, second = _vectors(tuned, old, now, seed)
    columns = [test for name in tuned.bundle.modalities for test in _column_tests(old, now, name, seed)]
    for test, adjusted in zip(columns, benjamini_hochberg([test.p for test in columns]), strict=True):
        test.adjusted = float(adjusted)
    groups = 2 + len(old.scores) + 1
    permutations = max(PERMUTATIONS, math.ceil(2 * groups / alpha))
    told = classifier_test(first, second, seed=seed)
    tests = [
        _test("rows", "classifier two-sample test", "ROC AUC, 0.5 where alike", told),
        _test(
            "rows",
            "maximum mean discrepancy",
            "MMD², 0 where alike",
            mmd_test(first, second, seed=seed, permutations=permutations),
        ),
        *_prediction_tests(tuned, old, now, seed, permutations),
    ]
    for test in tests:
        test.adjusted = min(test.p * groups, 1.0)
    surest = min((test.adjusted for test in columns if math.isfinite(test.adjusted)), default=math.nan)
    values = [value for value in (surest * groups, *(test.adjusted for test in tests)) if math.isfinite(value)]
    p = min([*values, 1.0])
    return DriftReport(
        p <= alpha,
        alpha,
        p,
        old.table.source,
        now.table.source,
        len(old.examples),
        len(now.examples),
        tests,
        columns,
        [
            estimate
            for name in old.scores
            if (estimate := estimate_accuracy(tuned.bundle.targets[name], name, old, now, seed=seed))
        ],
        _unusual(tuned, first, second, now, seed),
        _detectable(len(old.examples), len(now.examples), alpha / groups),
        list(_notes(tuned, old, now)),
    )


def _test(name: str, test: str, effect_is: str, found: TwoSample, detail: str = "") -> DriftTest:
    return DriftTest(name, test, effect_is, found.effect, found.p, found.low, found.high, detail=detail)


def _vectors(tuned: FineTuned, old: Sample, now: Sample, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows' vectors, (rows, dim) each: the model's, or of the words of a model that writes."""
    if old.vectors is not None and now.vectors is not None:
        return old.vectors, now.vectors
    return word_vectors(*(_row_texts(tuned, sample) for sample in (old, now)), seed=seed)


def _row_texts(tuned: FineTuned, sample: Sample) -> list[str]:
    """Return each used row's cells as one text."""
    names = [name for name, modality in tuned.bundle.modalities.items() if modality.kind == "prompt"]
    cells = [sample.table.cells(name, sample.examples.used) for name in names]
    return [" ".join(_as_text(cell) for cell in row) for row in zip(*cells, strict=True)]


def _as_text(cell: Any) -> str:
    if cell is None:
        return ""
    return cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False, default=str)


def _column_tests(old: Sample, now: Sample, name: str, seed: int) -> Iterator[DriftTest]:
    """Yield the tests of a column's values, of its missing cells if there are any, and of unseen categories."""
    modality = old.examples.columns[name].modality
    (first, missing, rows), (second, missing_now, rows_now) = column_values(old, name), column_values(now, name)
    if modality.kind == "number":
        numbers = [np.asarray(cells, dtype=np.float64) for cells in (first, second)]
        medians = [f"{np.median(part):.4g}" for part in numbers if len(part)]
        detail = f"median {' → '.join(medians)}" if medians else ""
        yield _test(name, "Kolmogorov-Smirnov", "distance of the distributions", number_test(*numbers), detail)
    elif modality.kind == "category":
        yield _test(name, "chi-squared", "distance of the shares", category_test(first, second), _shares(first, second))
        yield _unseen_test(name, set(modality.vocabulary), first, second)  # type: ignore[attr-defined]
    elif (a := column_vectors(old, name)) is not None and (b := column_vectors(now, name)) is not None:
        yield _test(name, "maximum mean discrepancy", "MMD² of the encoder's vectors", mmd_test(a, b, seed=seed))
    else:
        texts = [[_as_text(cell) for cell in sample.table.cells(name, sample.examples.used)] for sample in (old, now)]
        yield _test(
            name, "maximum mean discrepancy", "MMD² of the words", mmd_test(*word_vectors(*texts, seed=seed), seed=seed)
        )
    if missing or missing_now:
        detail = f"{missing / rows:.1%} → {missing_now / rows_now:.1%}"
        share = share_test((missing, rows), (missing_now, rows_now))
        yield _test(f"{name}: missing cells", "Fisher", "difference of the shares", share, detail)


def _unseen_test(name: str, known: set[str], first: list[str], second: list[str]) -> DriftTest:
    """Return the test of the share of categories that the model's vocabulary lacks."""
    counts = [(sum(value not in known for value in part), len(part)) for part in (first, second)]
    examples = sorted({value for value in second if value not in known})[:5]
    return _test(
        f"{name}: unknown categories",
        "Fisher",
        "difference of the shares",
        share_test(*counts),
        f"as {', '.join(examples)}" if examples else "",
    )


def _shares(first: list[str], second: list[str]) -> str:
    """Return the three categories whose shares changed most."""
    if not first or not second:
        return ""
    names = sorted({*first, *second})
    before, after = (np.array([values.count(name) / len(values) for name in names]) for values in (first, second))
    order = np.argsort(-np.abs(after - before), kind="stable")[:3]
    return ", ".join(f"{names[index]} {before[index]:.0%} → {after[index]:.0%}" for index in order)


def _prediction_tests(tuned: FineTuned, old: Sample, now: Sample, seed: int, permutations: int) -> Iterator[DriftTest]:
    """Yield a test of each target's predictions: of numbers, or of the probabilities of classes."""
    for name, before in old.scores.items():
        task, after = tuned.bundle.targets[name], now.scores[name]
        if before.dtype == object:
            continue
        if before.ndim == 1:
            found, test, effect_is = number_test(before, after), "Kolmogorov-Smirnov", "distance of the distributions"
            detail = f"median {np.median(before):.4g} → {np.median(after):.4g}"
        else:
            found = mmd_test(before, after, seed=seed, permutations=permutations)
            test, effect_is, detail = "maximum mean discrepancy", "MMD² of the probabilities", ""
            if isinstance(task, Labelled):
                decided = [[task.labels[index] for index in task.decide(scores)] for scores in (before, after)]
                detail = _shares(*decided)
        yield _test(f"predictions of {task.target}", test, effect_is, found, detail)


def _unusual(tuned: FineTuned, first: np.ndarray, second: np.ndarray, now: Sample, seed: int) -> list[UnusualRow]:
    """Return the new rows that a classifier most surely tells from the held-out ones, by cross-validation."""
    vectors, labels = np.concatenate([first, second]), np.repeat([0, 1], [len(first), len(second)])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, class_weight="balanced", max_iter=500))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    odds = cross_val_predict(model, vectors, labels, cv=folds, method="predict_proba")[len(first) :, 1]
    kinds = {name: spec.kind for name, spec in tuned.bundle.schema.columns.items() if spec.role == "input"}
    result = []
    for index in np.argsort(-odds, kind="stable")[:UNUSUAL]:
        position = int(now.examples.used[index])
        file, row = now.table.file_and_row(int(now.table.rows[position]))
        cells = [
            show_cell(name, kind, now.table.cells(name, [position])[0], base_dir=now.table.base_dir)
            for name, kind in kinds.items()
            if name in now.table
        ]
        result.append(UnusualRow(file, row, float(odds[index]), cells))
    return result


def _detectable(n: int, m: int, alpha: float) -> float:
    """Return the AUC that the Mann-Whitney test on half of the rows finds with a power of 0.8, at level `alpha`."""
    error = math.sqrt((n / 2 + m / 2 + 1) / (12 * (n / 2) * (m / 2)))
    return float(min(0.5 + (norm.isf(alpha) + norm.isf(0.2)) * error, 1.0))


def _notes(tuned: FineTuned, old: Sample, now: Sample) -> Iterator[str]:
    for name, sample in (("held-out", old), ("new", now)):
        if lost := len({item.row for item in [*sample.table.rejected, *sample.examples.rejected]}):
            yield f"{lost} {name} rows could not be read and are left out."
        if masked := len(sample.examples.masked):
            yield f"{masked} cells of {name} rows could not be read and count as missing."
    if old.vectors is None:
        yield "A model that writes has no vectors of rows: rows are compared by the words of their prompts."
    if tuned.bundle.schema.group is not None:
        yield (
            f"Rows of one {tuned.bundle.schema.group} are alike, but the tests take rows as independent: "
            "new groups may raise an alarm without drift."
        )
