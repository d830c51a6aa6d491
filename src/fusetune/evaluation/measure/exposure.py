"""What recommendation does besides being right: how much of the catalogue it shows, how new, how popular.

Legend: queries = users, k = items recommended to each, items = the catalogue.
"""

from __future__ import annotations

import numpy as np

MEANINGS = {
    "coverage": "share of the catalogue that is recommended to someone",
    "novelty": "mean information of a recommended item in bits, -log2 of the share of train users who chose it",
    "popularity": "mean number of train users who chose a recommended item",
    "gini": "how unequally items are recommended: 0 all equally often, 1 one item to everyone",
}
"""The figures of `exposure` in plain words."""


def top_items(scores: np.ndarray, num: int) -> np.ndarray:
    """Return the items of the highest scores, best first, (queries, num); -1 where a score is minus infinity.

    Equal scores are in the order of the items.

    Args:
        scores: (queries, items), minus infinity for items that are left out.
        num: how many items, at most; fewer if there are fewer.
    """
    num = min(num, scores.shape[1])
    best = np.argpartition(-scores, num - 1, axis=1)[:, :num]
    least = np.take_along_axis(scores, best, 1).min(1, keepdims=True)
    for query in np.flatnonzero((scores >= least).sum(1) > num):  # several are equal to the last one
        above, equal = np.flatnonzero(scores[query] > least[query]), np.flatnonzero(scores[query] == least[query])
        best[query] = np.concatenate([above, equal])[:num]
    best = np.sort(best, axis=1)
    values = np.take_along_axis(scores, best, 1)
    order = np.argsort(-values, axis=1, kind="stable")
    best, values = np.take_along_axis(best, order, 1), np.take_along_axis(values, order, 1)
    return np.where(np.isneginf(values), -1, best)


def exposure(top: np.ndarray, chosen: np.ndarray, num_users: int) -> dict[str, float]:
    """Return coverage, novelty, popularity and gini of recommendations; nan if there are none.

    - coverage: distinct recommended items / items (catalogue or aggregate diversity; Herlocker et al. 2004,
      "Evaluating collaborative filtering recommender systems"; Adomavicius and Kwon 2012).
    - novelty: mean over recommended items of −log2 p(i), where p(i) is the share of train users who chose item i. An
      item that nobody chose counts as chosen once (Zhou et al. 2010, "Solving the apparent diversity-accuracy dilemma
      of recommender systems", mean self-information; Vargas and Castells 2011).
    - popularity: mean over recommended items of the train users who chose it, average recommendation popularity
      (Yin et al. 2012, "Challenging the long tail recommendation"; Abdollahpouri et al. 2019, arXiv:1901.07555).
    - gini: Gini index of how often each item of the catalogue is recommended, in [0, 1) (Fleder and Hosanagar 2009,
      "Blockbuster culture's next rise or fall").

    Args:
        top: (queries, k) recommended items, -1 for none.
        chosen: (items,) train users who chose each item.
        num_users: the number of train users.
    """
    shown = top[top >= 0]
    if not len(shown):
        return dict.fromkeys(MEANINGS, float("nan"))
    counts = np.bincount(shown, minlength=len(chosen))
    share = np.maximum(chosen, 1) / max(num_users, 1)
    return {
        "coverage": float((counts > 0).mean()),
        "novelty": float(-np.log2(share[shown]).mean()),
        "popularity": float(chosen[shown].mean()),
        "gini": gini(counts),
    }


def gini(counts: np.ndarray) -> float:
    """Return the Gini index of counts: Σ_i (2i − n − 1) c_i / (n Σ c), with the counts ascending and i from 1.

    Args:
        counts: (items,) 0 or more; one above 0.
    """
    ordered, num = np.sort(counts), len(counts)
    return float(((2 * np.arange(1, num + 1) - num - 1) * ordered).sum() / (num * ordered.sum()))
