"""Target leakage: columns that equal the target, encode it, or are the same number on another scale."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from fusetune.data.table import is_missing

MIN_ROWS = 20
EXPLAINED = 0.99
CHANCE = 1e-6
RANK_CORRELATION = 0.995
SUSPICIOUS = 0.9
"""Error reduction over the most frequent label from which a column is suspected to leak the target."""
MAX_LABELS = 50


def find_leak(cells: Sequence[Any], target: Sequence[Any], kind: str) -> str | None:
    """Return a readable explanation of how a column leaks the target, or None.

    Only rows that have both cells count. A text that contains the label is legitimate input, so a text must equal the
    label to be a leak. Images and sounds are not checked.

    Args:
        cells: the column's cells.
        target: the target's cells of the same rows.
        kind: the column's kind.
    """
    pairs = [
        (plain(cell), plain(label))
        for cell, label in zip(cells, target, strict=True)
        if not (is_missing(cell) or is_missing(label))
    ]
    if kind in ("image", "audio") or len(pairs) < MIN_ROWS or len({label for _, label in pairs}) < 2:
        return None
    if all(cell == label for cell, label in pairs):
        return f"equal in all {len(pairs)} rows that have both"
    if kind == "text":
        return None
    return _ranks(pairs) or _code(pairs)


def plain(cell: Any) -> str:
    """Return a cell's text for comparison: stripped, in lower case, integral floats as integers."""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return str(cell).strip().casefold()


def _code(pairs: list[tuple[str, str]]) -> str | None:
    """Return the explanation if each of the column's values goes with one label, beyond chance, else None."""
    num = len(pairs)
    groups: dict[str, Counter[str]] = {}
    for cell, label in pairs:
        groups.setdefault(cell, Counter())[label] += 1
    if len(groups) > num / 2:
        return None
    labels = Counter(label for _, label in pairs)
    base = max(labels.values()) / num
    repeated = [group for group in groups.values() if group.total() > 1]
    seen = sum(group.total() for group in repeated)
    right = sum(max(group.values()) for group in repeated) / max(seen, 1)
    if right < 1 and (right - base) / (1 - base) < EXPLAINED:
        return None
    agreeing = sum(max(group.values()) - 1 for group in repeated)
    if agreeing < MIN_ROWS or agreeing * math.log(base) > math.log(CHANCE):
        return None
    often = "" if right == 1 else f" in {right:.1%} of rows"
    if len(groups) == len(labels):
        return f"its {len(groups)} values and the target's go together one to one{often}"
    return f"each of its {len(groups)} values goes with one of the target's {len(labels)}{often}"


def _ranks(pairs: list[tuple[str, str]]) -> str | None:
    """Return the explanation if two columns of numbers have the same order, else None."""
    try:
        numbers = np.array([(float(cell), float(label)) for cell, label in pairs])
    except ValueError:
        return None
    if not np.isfinite(numbers).all() or any(len(np.unique(side)) <= 10 for side in numbers.T):
        return None
    from scipy.stats import spearmanr

    correlation = float(spearmanr(numbers[:, 0], numbers[:, 1]).statistic)
    if abs(correlation) <= RANK_CORRELATION:
        return None
    return f"its numbers are in the target's order, rank correlation {correlation:.4f}"


def suspected_leak(cells: Sequence[Any], target: Sequence[Any], kind: str) -> float | None:
    """Return the accuracy of predicting the target from a column alone, if it is suspiciously high.

    Held-out rows are predicted by the most frequent label of equal cells, and for numbers also by a small decision
    tree. Texts and media are not checked, nor are targets with more than `MAX_LABELS` values.

    Args:
        cells: the column's cells.
        target: the target's cells of the same rows.
        kind: the column's kind.

    Returns:
        The accuracy, or None where its error reduction over the most frequent label is below `SUSPICIOUS`, or where
        there are fewer than 100 rows.
    """
    pairs = [
        (plain(cell), plain(label))
        for cell, label in zip(cells, target, strict=True)
        if not (is_missing(cell) or is_missing(label))
    ]
    labels = Counter(label for _, label in pairs)
    if kind in ("text", "image", "audio") or len(pairs) < 5 * MIN_ROWS or not 2 <= len(labels) <= MAX_LABELS:
        return None
    base = max(labels.values()) / len(pairs)
    share = max(_by_equal_cells(pairs), _by_tree(pairs))
    return share if base < 1 and (share - base) / (1 - base) >= SUSPICIOUS else None


def _by_equal_cells(pairs: list[tuple[str, str]]) -> float:
    """Return the leave-one-out accuracy of the most frequent label among rows with an equal cell."""
    groups: dict[str, Counter[str]] = {}
    for cell, label in pairs:
        groups.setdefault(cell, Counter())[label] += 1
    right = 0
    for group in groups.values():
        for label, count in group.items():
            others = max((many for name, many in group.items() if name != label), default=0)
            right += count if count - 1 > others else 0
    return right / len(pairs)


def _by_tree(pairs: list[tuple[str, str]]) -> float:
    """Return the 3-fold cross-validated accuracy of a small decision tree on the column's numbers."""
    try:
        numbers = np.array([[float(cell)] for cell, _ in pairs])
    except ValueError:
        return 0.0
    if not np.isfinite(numbers).all():
        return 0.0
    from sklearn.tree import DecisionTreeClassifier

    labels, fold = np.array([label for _, label in pairs]), np.random.default_rng(0).integers(0, 3, len(pairs))
    right = 0
    for part in range(3):
        inside = fold == part
        if inside.all() or not inside.any():
            return 0.0
        tree = DecisionTreeClassifier(max_leaf_nodes=16, min_samples_leaf=5, random_state=0)
        right += int((tree.fit(numbers[~inside], labels[~inside]).predict(numbers[inside]) == labels[inside]).sum())
    return right / len(pairs)
