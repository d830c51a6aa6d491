"""The forms of a contrastive loss L = λ L_s + (1 − λ) L_d: L_s pulls what belongs together, L_d pushes the rest apart.

Legend: anchors = the rows that terms are computed for, candidates = the rows that they are compared with. A logit
is the similarity of an anchor and a candidate divided by the temperature (`sigmoid`: times t, plus b). Both masks
are (anchors, candidates) bool; a candidate in neither is left out. Terms are (anchors,), finite in any row of the
masks, and 0 for what is empty.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Terms = tuple[Tensor, Tensor]
Form = Callable[[Tensor, Tensor, Tensor], Terms]

CHUNK = 1024
"""Rows that are compared with all others at a time where only counts are needed."""


def infonce(logits: Tensor, positives: Tensor, negatives: Tensor) -> Terms:
    """L_s = −mean over positives of the logit; L_d = log Σ over positives and negatives of exp(logit).

    With one positive, λ = ½ gives ½ InfoNCE (van den Oord et al. 2018, arXiv 1807.03748), the mean over both directions
    ½ of CLIP's loss (Radford et al. 2021, arXiv 2103.00020). With several it gives ½ SupCon (Khosla et al. 2020, arXiv
    2004.11362, equation 2).
    """
    return _pull(logits, positives), _log_sum(logits, positives | negatives)


def decoupled(logits: Tensor, positives: Tensor, negatives: Tensor) -> Terms:
    """L_s as `infonce`; L_d = log Σ over negatives of exp(logit): what is pulled is not pushed.

    λ = ½ gives ½ of the decoupled contrastive loss (Yeh et al. 2022, arXiv 2110.06848).
    """
    return _pull(logits, positives), _log_sum(logits, negatives)


def sigmoid(logits: Tensor, positives: Tensor, negatives: Tensor) -> Terms:
    """L_s = mean over positives of softplus(−logit); L_d = Σ over negatives of softplus(logit).

    λ = ½ gives ½ of SigLIP's loss (Zhai et al. 2023, arXiv 2303.15343).
    """
    return _pull(-F.softplus(-logits), positives), F.softplus(logits).masked_fill(~negatives, 0).sum(1)


FORMS: dict[str, Form] = {"infonce": infonce, "decoupled": decoupled, "sigmoid": sigmoid, "supcon": infonce}


def _pull(logits: Tensor, positives: Tensor) -> Tensor:
    """Return minus the mean over positives, (anchors,)."""
    return -logits.masked_fill(~positives, 0).sum(1) / positives.sum(1).clamp(min=1)


def _log_sum(logits: Tensor, chosen: Tensor) -> Tensor:
    """Return log Σ exp over the chosen candidates, (anchors,); 0, with a gradient of 0, where none is chosen."""
    some = chosen.any(1)
    filled = logits.masked_fill(~chosen, -torch.inf).masked_fill(~some.unsqueeze(1), 0)
    return filled.logsumexp(1).masked_fill(~some, 0)


def alignment(x: Tensor, y: Tensor) -> Tensor:
    """Return ‖x − y‖² a row, (rows,), from 0 to 4 (Wang and Isola 2020, arXiv 2005.10242).

    Args:
        x, y: (rows, dim) of unit length.
    """
    return (x - y).square().sum(1)


def uniformity(similarities: Tensor, chosen: Tensor) -> Tensor:
    """Return log mean exp(−2 ‖x − x'‖²) over the chosen pairs, a scalar from −8 to 0; lower is more even.

    On a sphere of many dimensions evenly spread vectors reach −4. Wang and Isola 2020, arXiv 2005.10242.

    Args:
        similarities: of vectors of unit length: ‖x − x'‖² = 2 − 2 x·x'.
        chosen: of the same shape, bool; at least one.
    """
    kernel = (4 * similarities - 4).masked_fill(~chosen, -torch.inf)
    return kernel.flatten().logsumexp(0) - chosen.sum().to(kernel.dtype).log()


def apart(ids: Tensor, others: Tensor) -> Tensor:
    """Return which pairs of rows have no id in common, (rows, other rows) bool.

    Args:
        ids: (rows, sorts of id) int64.
        others: (other rows, sorts of id).
    """
    result = ids[:, None, 0] != others[None, :, 0]
    for sort in range(1, ids.shape[1]):
        result &= ids[:, None, sort] != others[None, :, sort]
    return result


def related(relation: Callable[[Tensor, Tensor], Tensor], ids: Tensor, *, least: int = 1) -> Tensor:
    """Return which rows are related to at least `least` rows, (rows,) bool.

    Args:
        relation: from (rows, ...) and (other rows, ...) to (rows, other rows) bool, as `apart`.
        ids: (rows, ...).
        least: how many.
    """
    if not len(ids):
        return torch.zeros(0, dtype=torch.bool, device=ids.device)
    return torch.cat([relation(part, ids).sum(1) >= least for part in torch.split(ids, CHUNK)])
