"""Metrics under scikit-learn's names, in numpy: fast enough to be computed thousands of times for a bootstrap.

Legend: rows = evaluated rows, classes = classes of the target, labels = labels of a multi-label target. `weights` is
(rows,) float or None, for all 1. An undefined metric (a rank metric with a single class, a correlation with a constant)
is NaN, without a warning. A division by zero is 0 where scikit-learn defines it so (precision, recall, F1, MCC).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

MEANINGS = {
    "relation_f1": "mean F1 of the relations, without that of no relation; a wrong direction is wrong (SemEval-2010 8)",
    "triple_f1": "F1 of triples with both entities' characters and labels, the relation and its direction right",
    "entity_f1": "F1 of entities with characters and label right",
    "accuracy": "share of right answers",
    "balanced_accuracy": "mean recall of the classes",
    "f1_macro": "mean F1 of the classes",
    "f1_weighted": "mean F1, by rows of each class",
    "f1_micro": "F1 over all answers",
    "f1_samples": "mean F1 of the rows",
    "mcc": "Matthews' correlation",
    "log_loss": "mean −log probability of the truth",
    "brier": "mean squared error of probabilities",
    "roc_auc": "area under the ROC curve",
    "roc_auc_macro": "mean area under the ROC curves",
    "map_macro": "mean average precision of the labels",
    "map_micro": "average precision over all labels",
    "subset_accuracy": "share of rows with all labels right",
    "hamming_loss": "share of wrong labels",
    "qwk": "agreement with the levels, quadratic kappa",
    "r2": "share of variance explained",
    "rmse": "root of the mean squared error",
    "mae": "mean absolute error",
    "pearson": "correlation",
    "spearman": "correlation of ranks",
    "mrr": "mean reciprocal rank",
    "recall@1": "share of queries whose top answer is right",
    "recall@5": "share of queries with a right answer among the first 5",
    "recall@10": "share of queries with a right answer among the first 10",
    "median_rank": "median rank of the right answer",
    "bleu": "BLEU, 0 to 100, as sacreBLEU: shared runs of 1 to 4 words",
    "chrf": "chrF2, 0 to 100, as sacreBLEU: shared runs of 1 to 6 characters",
    "rouge1": "F1 of words shared with the reference",
    "rouge2": "F1 of pairs of words shared with the reference",
    "rouge_lsum": "F1 of words in the reference's order, by line",
    "exact_match": "share of answers that are the right one, but for case, punctuation and articles",
    "token_f1": "mean F1 of the words that an answer shares with the right one",
    "vqa_accuracy": "mean of min(1, people who gave the answer / 3)",
    "wer": "wrong, missing and additional words by words of the references",
    "cer": "wrong, missing and additional characters by characters of the references",
    "repetition": "mean share of an answer's runs of 4 words that repeat an earlier one",
    "parses": "share of answers that are Python that can be parsed; nothing is run",
    "length_ratio": "characters of the answers by characters of the references",
}
"""Explanations of the metrics in plain words, by name."""

CUTOFFS = (10, 1, 5)
"""The k of recall@k."""

LOWER_IS_BETTER = frozenset(
    {"log_loss", "hamming_loss", "mae", "rmse", "brier", "median_rank", "wer", "cer", "repetition"}
)
"""The metrics of which lower values are better; for all others higher ones are."""


def _ratio(top: np.ndarray, bottom: np.ndarray, empty: float = 0.0) -> np.ndarray:
    """Return top / bottom, and `empty` where bottom is 0."""
    result = np.full(np.shape(bottom), empty, dtype=float)
    np.divide(top, bottom, out=result, where=np.asarray(bottom) != 0)
    return result


def f1_precision_recall(counts: np.ndarray) -> tuple[float, float, float]:
    """Return F1, precision and recall of counts (true positives, false positives, false negatives); nan for none."""
    right, wrong, missed = (float(count) for count in counts)
    if right + wrong + missed == 0:
        return float("nan"), float("nan"), float("nan")
    precision = right / (right + wrong) if right + wrong else 0.0
    recall = right / (right + missed) if right + missed else 0.0
    return 2 * right / (2 * right + wrong + missed), precision, recall


def _row_weights(weights: np.ndarray | None, rows: int) -> np.ndarray:
    return np.ones(rows) if weights is None else np.asarray(weights, dtype=float)


def _mean(values: np.ndarray) -> float:
    """Return the mean of the values that are not NaN; NaN if there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def _steps(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights of true and of false positives at each distinct score as threshold, from high to low."""
    order = np.argsort(-scores, kind="stable")
    scores, truth, weights = scores[order], truth[order].astype(bool), weights[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # the last row of each group of equal scores
    return np.cumsum(weights * truth)[last], np.cumsum(weights * ~truth)[last]


def roc_auc(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the area under the ROC curve; NaN if one of the two classes has no rows.

    Args:
        scores: (rows,), higher for the positive class.
        truth: (rows,) of 0 and 1.
        weights: (rows,).
    """
    if not len(scores):
        return float("nan")
    true, false = _steps(scores, truth, _row_weights(weights, len(scores)))
    if true[-1] <= 0 or false[-1] <= 0:
        return float("nan")
    true, false = np.append(0.0, true), np.append(0.0, false)
    return float(np.sum(np.diff(false) * (true[1:] + true[:-1]) / 2) / (true[-1] * false[-1]))


def average_precision(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the mean of the precision at each threshold, weighted by the recall it adds; NaN without positive rows.

    Args:
        scores: (rows,), higher for the positive class.
        truth: (rows,) of 0 and 1.
        weights: (rows,).
    """
    if not len(scores):
        return float("nan")
    true, false = _steps(scores, truth, _row_weights(weights, len(scores)))
    if true[-1] <= 0:
        return float("nan")
    precision = _ratio(true, true + false)
    return float(np.sum(np.diff(np.append(0.0, true)) * precision) / true[-1])


def confusion(decided: np.ndarray, truth: np.ndarray, classes: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the confusion matrix, (classes, classes) float: the weight of rows of class i that are predicted as j.

    Args:
        decided: (rows,) predicted class indices.
        truth: (rows,) true class indices.
        classes: number of classes.
        weights: (rows,) or None.
    """
    flat = np.asarray(truth, dtype=np.int64) * classes + np.asarray(decided, dtype=np.int64)
    counts = np.bincount(flat, weights=_row_weights(weights, len(flat)), minlength=classes**2)
    return counts.reshape(classes, classes)


def log_loss(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the mean negative log probability of the true class, with probabilities clipped by float64's epsilon."""
    if not len(truth):
        return float("nan")
    weights = _row_weights(weights, len(truth))
    probabilities = scores / scores.sum(axis=1, keepdims=True)
    chosen = probabilities[np.arange(len(truth)), truth]
    epsilon = np.finfo(np.float64).eps
    total = float(weights.sum())
    return float(-np.log(np.clip(chosen, epsilon, 1 - epsilon)) @ weights / total) if total else float("nan")


def _mcc(table: np.ndarray) -> float:
    """Return Matthews' correlation coefficient of a confusion matrix (Gorodkin 2004 for several classes)."""
    total, right = table.sum(), np.trace(table)
    true, decided = table.sum(1), table.sum(0)
    spread = (total**2 - decided @ decided) * (total**2 - true @ true)
    return float((right * total - true @ decided) / np.sqrt(spread)) if spread > 0 else 0.0


def classification(
    scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None, *, positive: int | None = None
) -> dict[str, float]:
    """Return accuracy, balanced_accuracy, f1_macro, f1_weighted, mcc, log_loss, roc_auc, average_precision and brier.

    With a positive class, `roc_auc` and `average_precision` are that class's, as are `f1`, `precision` and `recall`,
    which are added; `brier` is the mean squared error of its probability. Otherwise `roc_auc` (one class against the
    rest) and `average_precision` are means over the classes that have rows, `brier` is summed over classes, and
    `f1_micro`, which equals accuracy, is added.

    Args:
        scores: (rows, classes) probabilities.
        truth: (rows,) class indices.
        weights: (rows,) or None.
        positive: index of the positive class, if there are two classes and one is positive.
    """
    scores = np.asarray(scores, dtype=float)
    weights = _row_weights(weights, len(truth))
    classes = scores.shape[1]
    table = confusion(scores.argmax(1), truth, classes, weights)
    hits, true, decided = np.diag(table), table.sum(1), table.sum(0)
    f1, met = _ratio(2 * hits, true + decided), (true + decided) > 0
    total = float(table.sum())
    accuracy = float(hits.sum() / total) if total else float("nan")
    result = {
        "accuracy": accuracy,
        "balanced_accuracy": _mean(_ratio(hits, true, float("nan"))),
        "f1_macro": _mean(f1[met]),
        "f1_weighted": float(f1 @ true / total) if total else float("nan"),
        "mcc": _mcc(table) if total else float("nan"),
        "log_loss": log_loss(scores, truth, weights),
    }
    curves: dict[str, Callable[..., float]] = {"roc_auc": roc_auc, "average_precision": average_precision}
    if positive is None:
        result["f1_micro"] = accuracy
        for name, curve in curves.items():
            result[name] = _mean(np.array([curve(scores[:, c], truth == c, weights) for c in range(classes)]))
        squares = ((scores - np.eye(classes)[truth]) ** 2).sum(1)
    else:
        result["f1"] = float(f1[positive])
        result["precision"] = float(_ratio(hits, decided)[positive])
        result["recall"] = float(_ratio(hits, true)[positive])
        for name, curve in curves.items():
            result[name] = curve(scores[:, positive], truth == positive, weights)
        squares = (scores[:, positive] - (truth == positive)) ** 2
    result["brier"] = float(squares @ weights / total) if total else float("nan")
    return result


def multilabel(
    scores: np.ndarray, decided: np.ndarray, truth: np.ndarray, weights: np.ndarray | None
) -> dict[str, float]:
    """Return map_macro, map_micro, f1_macro, f1_micro, f1_samples, subset_accuracy, hamming_loss and roc_auc_macro.

    `map_macro` is the mean average precision of the labels that at least one row has, `roc_auc_macro` a mean over the
    labels that some rows have and others lack, `f1_macro` a mean over all labels.

    Args:
        scores: (rows, labels) probabilities.
        decided: (rows, labels) of 0 and 1.
        truth: (rows, labels) of 0 and 1.
        weights: (rows,).
    """
    sizes, truth = _row_weights(weights, len(truth)), truth.astype(bool)
    labels = truth.shape[1]
    spread = np.repeat(sizes, labels)
    return {
        "map_macro": _mean(np.array([average_precision(scores[:, c], truth[:, c], sizes) for c in range(labels)])),
        "map_micro": average_precision(scores.ravel(), truth.ravel(), spread),
        **label_sets(decided, truth, weights),
        "roc_auc_macro": _mean(np.array([roc_auc(scores[:, c], truth[:, c], sizes) for c in range(labels)])),
    }


def label_sets(decided: np.ndarray, truth: np.ndarray, weights: np.ndarray | None) -> dict[str, float]:
    """Return the metrics of `multilabel` that depend on predicted labels only.

    They are f1_macro, f1_micro, f1_samples, subset_accuracy and hamming_loss.

    Args:
        decided: (rows, labels) of 0 and 1.
        truth: (rows, labels) of 0 and 1.
        weights: (rows,).
    """
    sizes, truth, decided = _row_weights(weights, len(truth)), truth.astype(bool), decided.astype(bool)
    hits, predicted, real = sizes @ (decided & truth), sizes @ decided, sizes @ truth
    total = float(sizes.sum())
    each = _ratio(2.0 * (decided & truth).sum(1), (decided.sum(1) + truth.sum(1)).astype(float))
    return {
        "f1_macro": float(_ratio(2 * hits, predicted + real).mean()),
        "f1_micro": float(_ratio(2 * hits.sum(), np.asarray(predicted.sum() + real.sum()))),
        "f1_samples": float(each @ sizes / total) if total else float("nan"),
        "subset_accuracy": float((decided == truth).all(1) @ sizes / total) if total else float("nan"),
        "hamming_loss": float((decided != truth).mean(1) @ sizes / total) if total else float("nan"),
    }


def ranks(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Return ranks from 1, (rows,) float; equal values share the mean of theirs.

    Args:
        values: (rows,).
        weights: (rows,) or None. A row of weight 2 takes two ranks, a row of weight 0 none.
    """
    _, inverse = np.unique(values, return_inverse=True)
    counts = np.bincount(inverse, weights=_row_weights(weights, len(values)))
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse], dtype=float)


def pearson(first: np.ndarray, second: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return Pearson's correlation of two (rows,) arrays; NaN if one of them is constant."""
    sizes = _row_weights(weights, len(first))
    used = sizes > 0
    first, second, sizes = first[used], second[used], sizes[used]
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    first = first - np.average(first, weights=sizes)
    second = second - np.average(second, weights=sizes)
    spread = float(np.sqrt((sizes @ first**2) * (sizes @ second**2)))
    return float(np.clip((sizes @ (first * second)) / spread, -1, 1)) if spread > 0 else float("nan")


def regression(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None) -> dict[str, float]:
    """Return r2, rmse, mae, pearson and spearman; r2 is NaN if the truth is constant.

    Args:
        scores: (rows,) predictions in the target's unit.
        truth: (rows,).
        weights: (rows,) or None; see `ranks` for those of Spearman's correlation.
    """
    names = ("r2", "rmse", "mae", "pearson", "spearman")
    sizes = _row_weights(weights, len(truth))
    if not sizes.sum() > 0:
        return dict.fromkeys(names, float("nan"))
    scores, truth = np.asarray(scores, dtype=float), np.asarray(truth, dtype=float)
    errors = scores - truth
    spread = float(sizes @ (truth - np.average(truth, weights=sizes)) ** 2)
    varies = len(truth) > 1 and np.ptp(truth[sizes > 0]) > 0 and spread > 0
    return {
        "r2": 1 - float(sizes @ errors**2) / spread if varies else float("nan"),
        "rmse": float(np.sqrt(np.average(errors**2, weights=sizes))),
        "mae": float(np.average(np.abs(errors), weights=sizes)),
        "pearson": pearson(scores, truth, sizes),
        "spearman": pearson(ranks(scores, sizes), ranks(truth, sizes), sizes),
    }


def quadratic_kappa(decided: np.ndarray, truth: np.ndarray, levels: int, weights: np.ndarray | None = None) -> float:
    """Return Cohen's kappa with quadratic weights; NaN if all rows have, and are predicted as, one level.

    Args:
        decided: (rows,) predicted level indices.
        truth: (rows,) true level indices.
        levels: number of levels.
        weights: (rows,) or None.
    """
    table = confusion(decided, truth, levels, weights)
    distance = np.subtract.outer(np.arange(levels), np.arange(levels)) ** 2
    chance = float((distance * np.outer(table.sum(1), table.sum(0))).sum())
    return 1 - float((distance * table).sum() * table.sum()) / chance if chance else float("nan")


def weighted_median(values: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the weighted median, the mean of the two middle values if there are two; NaN without rows.

    Args:
        values: (rows,).
        weights: (rows,) or None. A row of weight 2 counts as two rows.
    """
    sizes = _row_weights(weights, len(values))
    order = np.argsort(values[sizes > 0], kind="stable")
    values, reached = values[sizes > 0][order], np.cumsum(sizes[sizes > 0][order])
    if not len(values):
        return float("nan")
    middle = reached[-1] / 2
    low, high = np.searchsorted(reached, [middle * (1 - 1e-12), middle * (1 + 1e-12)])
    return float((values[low] + values[high]) / 2)


def retrieval(ranks: np.ndarray, weights: np.ndarray | None = None, *, more: Sequence[int] = ()) -> dict[str, float]:
    """Return mrr, recall@k (the share of queries with a right answer among the first k) and median_rank.

    Args:
        ranks: (queries,) rank of the first right answer, from 1; ties may add half a rank.
        weights: (queries,) or None.
        more: values of k beside 1, 5 and 10.
    """
    cutoffs = (*CUTOFFS, *more)
    names = ("mrr", *(f"recall@{k}" for k in cutoffs), "median_rank")
    if not len(ranks) or (weights is not None and not weights.sum() > 0):
        return dict.fromkeys(names, float("nan"))
    values = [1 / ranks, *((ranks <= k).astype(float) for k in cutoffs)]
    figures = [float(np.average(value, weights=weights)) for value in values]
    return dict(zip(names, [*figures, weighted_median(ranks, weights)], strict=True))


def better(name: str, new: float, old: float) -> bool:
    """Return whether a metric's new value is better than its old one. Any number is better than NaN."""
    if np.isnan(new):
        return False
    return bool(np.isnan(old) or (new < old if name in LOWER_IS_BETTER else new > old))
