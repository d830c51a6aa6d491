"""From answers to the output table's columns, without torch: shared by the tasks and by `fusetune.runtime`.

An exported model has a *form* for each target, a JSON object with `kind`, `target` and the arguments of the function of
that kind. `columns_of` reads it.

    {"kind": "label", "target": "plan", "labels": ["basic", "pro"], "decide": "argmax"}
    {"kind": "label_set", "target": "tags", "labels": ["a", "b"], "thresholds": [0.5, 0.4], "separator": "|",
     "as_json": false}
    {"kind": "number", "target": "price"}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MAX_WRITTEN_CLASSES = 20
"""The most classes for which the output table has a column of probabilities per class."""


def median_level(probabilities: np.ndarray) -> np.ndarray:
    """Return the index of the median level, (rows,), from (rows, levels) probabilities of ordered levels."""
    above = 1 - np.cumsum(probabilities[:, :-1], axis=1)
    return np.asarray((above > 0.5).sum(1))


def reached(probabilities: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Return which labels' probabilities reach their thresholds, (rows, labels) int8."""
    return np.asarray(probabilities >= np.asarray(thresholds), dtype=np.int8)


def label_columns(target: str, labels: Sequence[str], probabilities: np.ndarray, decided: np.ndarray) -> dict[str, Any]:
    """Return the label under the target's name, its probability, and up to 20 labels' probabilities.

    Args:
        target: the target column's name.
        labels: in the order of the probabilities.
        probabilities: (rows, labels).
        decided: (rows,) the index of each row's label.
    """
    result: dict[str, list[Any]] = {
        target: [labels[index] for index in decided],
        f"{target}_probability": probabilities[np.arange(len(probabilities)), decided].astype(float).tolist(),
    }
    return result | _by_label(target, labels, probabilities)


def label_set_columns(
    target: str, labels: Sequence[str], probabilities: np.ndarray, decided: np.ndarray, *, separator: str | None
) -> dict[str, Any]:
    """Return the labels of each row ("[]" for none), and the probabilities of up to 20 labels.

    Args:
        target: the target column's name.
        labels: in the order of the probabilities.
        probabilities: (rows, labels).
        decided: (rows, labels) of 0 and 1.
        separator: between labels; None writes JSON lists.
    """
    sets = [[label for label, has_label in zip(labels, row, strict=True) if has_label] for row in decided]
    written = [
        json.dumps(own, ensure_ascii=False) if separator is None or not own else separator.join(own) for own in sets
    ]
    return {target: written} | _by_label(target, labels, probabilities)


def number_columns(target: str, numbers: np.ndarray) -> dict[str, Any]:
    """Return the numbers, (rows,), under the target's name."""
    return {target: numbers.astype(float).tolist()}


def _by_label(target: str, labels: Sequence[str], probabilities: np.ndarray) -> dict[str, Any]:
    """Return a column of probabilities for each of up to 20 labels."""
    if len(labels) > MAX_WRITTEN_CLASSES:
        return {}
    return {f"{target}:{label}": probabilities[:, index].astype(float).tolist() for index, label in enumerate(labels)}


def decisions_of(form: Mapping[str, Any], answers: np.ndarray) -> np.ndarray:
    """Return the decisions: label indices, (rows,); a 0/1 matrix, (rows, labels); or the numbers, (rows,)."""
    if form["kind"] == "label":
        return median_level(answers) if form["decide"] == "median" else np.asarray(answers.argmax(1))
    return reached(answers, form["thresholds"]) if form["kind"] == "label_set" else answers


def columns_of(form: Mapping[str, Any], answers: np.ndarray) -> dict[str, list[Any]]:
    """Return the output table's columns of a target.

    Args:
        form: see the module.
        answers: (rows, labels) probabilities, or (rows,) numbers.

    Raises:
        ValueError: the form's kind is unknown.

    Example:
        >>> form = {"kind": "label", "target": "plan", "labels": ["basic", "pro"], "decide": "argmax"}
        >>> columns_of(form, np.array([[0.25, 0.75]]))
        {'plan': ['pro'], 'plan_probability': [0.75], 'plan:basic': [0.25], 'plan:pro': [0.75]}
    """
    target, decided = form["target"], decisions_of(form, answers)
    if form["kind"] == "label":
        return label_columns(target, form["labels"], answers, decided)
    if form["kind"] == "label_set":
        separator = None if form["as_json"] else form["separator"]
        return label_set_columns(target, form["labels"], answers, decided, separator=separator)
    if form["kind"] == "number":
        return number_columns(target, answers)
    raise ValueError(f"answers of the kind {form['kind']!r} are unknown")
