"""A linear-chain conditional random field over the tags of a text's tokens.

p(tags | text) ∝ exp(Σ_t emission_t[tag_t] + transition[tag_{t-1}, tag_t]) with a start before the first tag and an end
after the last. Sums over all sequences of tags are computed by the forward algorithm in log space, one matrix product a
token for all rows at once.

Legend: rows, tokens, tags. `transitions` is (tags + 2, tags): from each tag, from the start, and (last) to the end.

Reference: Lafferty, McCallum and Pereira 2001, "Conditional Random Fields", sections 3 and 4; Tsuboi et al. 2008 for
tokens whose tag is unknown; Lample et al. 2016 (arXiv 1603.01360) for their use on encoders.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOW = -1e4
"""Added to the score of what must not be; its exponential is 0."""
UNKNOWN, PADDING = -100, -101
"""Tags of a token whose tag is not known, and of none."""


def log_partition(emissions: Tensor, transitions: Tensor, mask: Tensor) -> Tensor:
    """Return the logarithm of the sum of exp(score) over all sequences of tags, (rows,).

    Args:
        emissions: (rows, tokens, tags).
        transitions: (tags + 2, tags).
        mask: (rows, tokens) bool, True for a row's tokens, which come first.
    """
    alpha = _forward(emissions, transitions, mask)[-1]
    return (alpha + transitions[-1]).logsumexp(1)


def _forward(emissions: Tensor, transitions: Tensor, mask: Tensor) -> list[Tensor]:
    """Return log Σ exp(score) over the sequences up to each token that end in each tag, (rows, tags) a token.

    Beyond a row's last token its value there is repeated.
    """
    most = transitions[:-2].amax(0).detach()  # a tag's best transition, so that no exponential overflows
    moves = (transitions[:-2] - most).exp()  # (before, after)
    tiny = torch.finfo(emissions.dtype).tiny
    alphas = [transitions[-2] + emissions[:, 0]]
    for token in range(1, emissions.shape[1]):
        before = alphas[-1]
        top = before.amax(1, keepdim=True).detach()
        reached = ((before - top).exp() @ moves).clamp(min=tiny).log() + (top + most + emissions[:, token])
        alphas.append(torch.where(mask[:, token, None], reached, before))
    return alphas


def negative_log_likelihood(emissions: Tensor, transitions: Tensor, tags: Tensor) -> Tensor:
    """Return -log p(tags), (rows,), 0 or more; summed over all tags of a token whose tag is `UNKNOWN`.

    Args:
        emissions: (rows, tokens, tags).
        transitions: (tags + 2, tags).
        tags: (rows, tokens) int64, `PADDING` after a row's tokens.
    """
    mask = tags != PADDING
    others = torch.arange(emissions.shape[2], device=tags.device) != tags.unsqueeze(2)
    given = emissions.masked_fill(others & (tags >= 0).unsqueeze(2), LOW)
    both = log_partition(torch.cat([emissions, given]), transitions, torch.cat([mask, mask]))
    every, right = both.chunk(2)
    return (every - right).masked_fill(~mask[:, 0], 0)


def log_marginals(emissions: Tensor, transitions: Tensor, mask: Tensor) -> Tensor:
    """Return log p(a token's tag | text), (rows, tokens, tags): the forward-backward algorithm.

    The arguments are those of `log_partition`.
    """
    alphas = _forward(emissions, transitions, mask)
    moves = transitions[:-2]
    beta = transitions[-1].expand_as(alphas[-1])
    betas = [beta]
    for token in range(emissions.shape[1] - 1, 0, -1):
        reached = (moves + (emissions[:, token] + beta).unsqueeze(1)).logsumexp(2)
        beta = torch.where(mask[:, token, None], reached, beta)
        betas.append(beta)
    return (torch.stack(alphas, 1) + torch.stack(betas[::-1], 1)).log_softmax(2)
