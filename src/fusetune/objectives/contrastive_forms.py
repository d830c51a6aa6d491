"""The forms of a contrastive loss L = λ L_s + (1 − λ) L_d: L_s pulls positives together, L_d pushes negatives apart.

Legend: anchors = the rows that losses are computed for, candidates = the rows that they are compared with.

Every form takes `logits`, `positives` and `negatives`, each (anchors, candidates). A logit is the similarity of an
anchor and a candidate divided by the temperature (`sigmoid`: times t, plus b; `triplet`: the similarity itself). The
masks are bool; candidates in neither are ignored. It returns L_s and L_d, (anchors,) each: finite for every mask, and 0
for an anchor without positives or negatives.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Terms = tuple[Tensor, Tensor]
Form = Callable[[Tensor, Tensor, Tensor], Terms]

CHUNK = 1024
"""Rows that `has_related` compares with all others at a time, which bounds its memory."""


def infonce(logits: Tensor, positives: Tensor, negatives: Tensor) -> Terms:
    """L_s = −mean over positives of the logit; L_d = log Σ over positives and negatives of exp(logit).

    With one positive an anchor, λ = ½ gives ½ InfoNCE (van den Oord et al. 2018, arXiv 1807.03748), and the mean over
    both directions gives ½ of CLIP's loss (Radford et al. 2021, arXiv 2103.00020). With several positives, λ = ½ gives
    ½ SupCon (Khosla et al. 2020, arXiv 2004.11362, equation 2).
    """
    return _pull(logits, positives), _log_sum(logits, positives | negatives)


def decoupled(logits: Tensor, positives: Tensor, negatives: Tensor) -> Terms:
    """L_s as in `infonce`; L_d = log Σ over negatives of exp(logit), so positives are not pushed away.

    λ = ½ gives ½ of the decoupled contrastive loss (Yeh et al. 2022, arXiv 2110.06848).
    """
    return _pull(logits, positives), _log_sum(logits, negatives)


def sigmoid(logits: Tensor, positives: Tensor, negatives: Tensor) -> Terms:
    """L_s = mean over positives of softplus(−logit); L_d = Σ over negatives of softplus(logit).

    λ = ½ gives ½ of SigLIP's loss (Zhai et al. 2023, arXiv 2303.15343).
    """
    return _pull(-F.softplus(-logits), positives), F.softplus(logits).masked_fill(~negatives, 0).sum(1)


def triplet(similarities: Tensor, positives: Tensor, negatives: Tensor, *, margin: float, hardest: bool) -> Terms:
    """L_s = 1 − s_p and L_d = s_n + margin − 1, of anchors whose triplet is active: s_n + margin > s_p; else 0.

    λ = ½ gives ½ of the triplet loss max(0, d_p − d_n + margin), with the cosine distances d = 1 − s to the positive
    and to one negative.

    Args:
        similarities: (anchors, candidates) cosines.
        positives: (anchors, candidates) bool; with several, s_p is their mean.
        negatives: (anchors, candidates) bool.
        margin: above 0.
        hardest: take the nearest negative. Otherwise the semi-hard one: the nearest of those that are farther away than
            the positive, or the farthest one if none is (Schroff et al. 2015, "FaceNet", arXiv 1503.03832).
    """
    own = -_pull(similarities, positives)
    some = negatives.any(1)
    with torch.no_grad():
        given = similarities.masked_fill(~negatives, -torch.inf)
        chosen = given.argmax(1)
        if not hardest:
            farther = given.masked_fill(given >= own.unsqueeze(1), -torch.inf)
            farthest = similarities.masked_fill(~negatives, torch.inf).argmin(1)
            chosen = torch.where(farther.isfinite().any(1), farther.argmax(1), farthest)
    nearest = similarities.gather(1, chosen.unsqueeze(1)).squeeze(1)
    active = some & positives.any(1) & (nearest + margin > own)
    return (1 - own).masked_fill(~active, 0), (nearest + margin - 1).masked_fill(~active, 0)


FORMS: dict[str, Form] = {"infonce": infonce, "decoupled": decoupled, "sigmoid": sigmoid, "supcon": infonce}


def _pull(logits: Tensor, positives: Tensor) -> Tensor:
    """Return minus the mean logit of the positives, (anchors,); 0 for an anchor without positives."""
    return -logits.masked_fill(~positives, 0).sum(1) / positives.sum(1).clamp(min=1)


def _log_sum(logits: Tensor, chosen: Tensor) -> Tensor:
    """Return log Σ exp(logit) over the chosen candidates, (anchors,); 0, with gradient 0, if none is chosen."""
    some = chosen.any(1)
    filled = logits.masked_fill(~chosen, -torch.inf).masked_fill(~some.unsqueeze(1), 0)
    return filled.logsumexp(1).masked_fill(~some, 0)


def alignment(x: Tensor, y: Tensor) -> Tensor:
    """Return each row's ‖x − y‖², (rows,), from 0 to 4 (Wang and Isola 2020, arXiv 2005.10242).

    Args:
        x, y: (rows, dim) of unit length.
    """
    return (x - y).square().sum(1)


def uniformity(similarities: Tensor, chosen: Tensor) -> Tensor:
    """Return log mean exp(−2 ‖x − x'‖²) over the chosen pairs, a scalar from −8 to 0; lower is more uniform.

    Vectors that are spread evenly over a sphere of many dimensions reach −4. Wang and Isola 2020, arXiv 2005.10242.

    Args:
        similarities: (rows, other rows), x·x' of unit vectors; ‖x − x'‖² = 2 − 2 x·x'.
        chosen: (rows, other rows) bool, with at least one pair.
    """
    kernel = (4 * similarities - 4).masked_fill(~chosen, -torch.inf)
    return kernel.flatten().logsumexp(0) - chosen.sum().to(kernel.dtype).log()


def no_common_id(ids: Tensor, others: Tensor) -> Tensor:
    """Return which pairs of rows have no id in common, (rows, other rows) bool.

    Args:
        ids: (rows, kinds) int64, a row's id of each kind, such as its cell's code and its group.
        others: (other rows, kinds) int64.
    """
    result = ids[:, None, 0] != others[None, :, 0]
    for kind in range(1, ids.shape[1]):
        result &= ids[:, None, kind] != others[None, :, kind]
    return result


def has_related(relation: Callable[[Tensor, Tensor], Tensor], ids: Tensor, *, minimum: int = 1) -> Tensor:
    """Return which rows are related to at least `minimum` rows, (rows,) bool.

    Args:
        relation: maps (rows, ...) and (other rows, ...) to (rows, other rows) bool, such as `no_common_id`.
        ids: (rows, ...), the first argument of `relation`; the second is all of them.
        minimum: number of related rows that a row needs.
    """
    if not len(ids):
        return torch.zeros(0, dtype=torch.bool, device=ids.device)
    return torch.cat([relation(part, ids).sum(1) >= minimum for part in torch.split(ids, CHUNK)])
