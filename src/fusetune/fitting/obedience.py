"""How far written texts obey the categories that their prompts ask for, as a classifier of texts sees them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from fusetune.evaluation.measure.compare import draw_all
from fusetune.evaluation.measure.judge import EvaluatedRows
from fusetune.tasks.panels.kinds import Cell, Head, Panel, Section, TablePanel

MIN_ROWS, MAX_LABELS = 5, 50
"""Least train rows of a label that the classifier knows, and most labels of an attribute."""
MOST_ROWS = 20_000
"""Most train rows that the classifier learns from."""
TRUE, USUAL = "the true texts", "the most frequent label"
"""Names of the rows of a table beside the systems."""


@dataclass(frozen=True)
class Attribute:
    """A category column that prompts name.

    Attributes:
        column: its name.
        train: (train rows,) labels, None where missing.
        asked: (evaluated rows,) the same.
    """

    column: str
    train: Sequence[str | None]
    asked: Sequence[str | None]


def obedience_section(
    attributes: Sequence[Attribute],
    train_texts: Sequence[str],
    texts: Mapping[str, Sequence[str]],
    rows: EvaluatedRows,
    *,
    num: int,
    seed: int,
) -> Section | None:
    """Return the share of texts whose attribute, as a classifier sees it, is the one that was asked for.

    The classifier is a logistic regression on tf-idf of words and pairs of words, fitted on the train rows' true texts.

    Args:
        attributes: those of the prompts.
        train_texts: (train rows,) the true texts.
        texts: (evaluated rows,) by system, the true ones first, under `TRUE`: their share is the classifier's accuracy.
        rows: the evaluated rows.
        num: the number of bootstrap draws.
        seed: of the draws, and of the train rows if there are very many.

    Returns:
        The section; None if no attribute has two labels that enough train rows have.
    """
    panels, notes, figures = list[Panel](), list[str](), dict[str, float]()
    for attribute in attributes:
        obeyed = _obeyed(attribute, train_texts, texts, seed)
        if obeyed is None:
            continue
        known = ~np.isnan(obeyed[TRUE][:, 0])
        zeros = np.zeros(len(known))
        draws = draw_all(_share, obeyed, zeros, num=num, seed=seed, weights=rows.weights, groups=rows.groups)
        table: list[list[Cell]] = []
        for name, drawn in draws.items():
            share = drawn.intervals(0.95)["share"]
            span = f"{share.low:.1%} to {share.high:.1%}" if np.isfinite(share.low) else ""
            table.append([name, share.value, span])
            figures[f"{attribute.column}: {name}"] = share.value
        heads = [Head("texts"), Head(f"{attribute.column} as asked", "share"), Head("95 %")]
        panels.append(TablePanel(heads, table, caption=f"{attribute.column}, {int(known.sum()):,} rows"))
        gain = draws[TRUE].minus(draws[USUAL], 0.95)["share"]
        if not gain.low > 0:
            notes.append(
                f"The classifier tells {attribute.column} from the true texts no better than {USUAL} does, so these "
                "figures say nothing."
            )
    if not panels:
        return None
    notes.insert(
        0,
        "A classifier of texts (logistic regression on tf-idf), fitted on the train rows' true texts, says which "
        f"category a text has. Its share on {TRUE} is its own accuracy on held-out rows.",
    )
    return Section("obedience", "Obedience to the categories in the prompt", panels, notes, figures)


def _obeyed(
    attribute: Attribute, train_texts: Sequence[str], texts: Mapping[str, Sequence[str]], seed: int
) -> dict[str, np.ndarray] | None:
    """Return by system whether each text has the label that was asked for, (rows, 1); NaN where that is unknown."""
    counts = Counter(label for label in attribute.train if label is not None)
    known = {label for label, count in counts.items() if count >= MIN_ROWS}
    rows = np.array([at for at, label in enumerate(attribute.train) if label in known and train_texts[at].strip()])
    if not 2 <= len(known) <= MAX_LABELS or not len(rows):
        return None
    if len(rows) > MOST_ROWS:
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:MOST_ROWS])
    labels = [str(attribute.train[at]) for at in rows]
    words = TfidfVectorizer(token_pattern=r"(?u)\w+", ngram_range=(1, 2), sublinear_tf=True, max_features=2**16)
    classifier = make_pipeline(words, LogisticRegression(C=10.0, max_iter=1000))
    try:
        classifier.fit([train_texts[at] for at in rows], labels)
    except ValueError:  # no words, or one label alone
        return None
    asked = np.array([label if label in known else "" for label in attribute.asked], dtype=object)
    predicted = {name: classifier.predict(list(own)) for name, own in texts.items()}
    predicted[USUAL] = np.full(len(asked), Counter(labels).most_common(1)[0][0], dtype=object)
    return {
        name: np.where(asked == "", np.nan, (own == asked).astype(float))[:, None] for name, own in predicted.items()
    }


def _share(obeyed: np.ndarray, truth: np.ndarray, weights: np.ndarray | None) -> dict[str, float]:
    values, known = obeyed[:, 0], ~np.isnan(obeyed[:, 0])
    own = None if weights is None else weights[known]
    has_weight = known.any() and (own is None or own.sum() > 0)
    return {"share": float(np.average(values[known], weights=own)) if has_weight else float("nan")}
