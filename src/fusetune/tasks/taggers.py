"""Heads of `entities` that tag tokens: each token by itself, or the sequence as a conditional random field."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusetune.tasks import crf
from fusetune.tasks.tagging import IGNORED, Span, allowed, best_path, entities_of, tag_tokens, tags_of
from fusetune.tasks.token_head import TokenHead
from fusetune.tasks.words import continues_word
from fusetune.types import Target, TextTokens

Entity = tuple[int, int, str, float]
"""First character, the one after the last, label, score."""


class Tagger:
    """Tag each token by itself with a softmax; the most likely tags that BIO allows are the answer.

    Attributes:
        classes: the labels.
        whole_words: whether entities begin and end where words do.
        num_shared: see `TargetTask.num_shared`.
    """

    def __init__(self, classes: Sequence[str], *, whole_words: bool = False) -> None:
        self.classes, self.whole_words = list(classes), whole_words
        self.num_tags, self.num_shared = len(tags_of(self.classes)), 0

    def encode(self, values: Sequence[Sequence[Span] | None], tokens: TextTokens) -> Target:
        """Encode as tags, (rows, tokens) int64, `IGNORED` at padding and in entities of a label that no train row has.

        A row's size is the number of its other tokens.
        """
        real = tokens.spans[..., 0] >= 0
        tags = np.where(real, 0, IGNORED).astype(np.int64)
        for row, spans in enumerate(values):
            if spans:
                tag_tokens(tags[row], tokens.spans[row], spans, self.classes)
        labelled = torch.tensor([value is not None for value in values], dtype=torch.bool)
        sizes = torch.from_numpy((tags != IGNORED).sum(1).astype(np.float32))
        return Target(torch.from_numpy(tags), labelled & (sizes > 0), sizes)

    def build(self, dim: int) -> nn.Module:
        """Build (batch, tokens, dim) to (batch, tokens, tags)."""
        return nn.Sequential(*self._layers(dim))

    def _layers(self, dim: int) -> list[nn.Module]:
        return [nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, self.num_tags)]

    def terms(self, logits: Tensor, target: Target) -> Tensor:
        """Return the sum over a row's tokens of their cross-entropy, (batch,)."""
        return F.cross_entropy(logits.transpose(1, 2), target.values, ignore_index=IGNORED, reduction="none").sum(1)

    def entities(self, logits: Tensor, tokens: TextTokens) -> list[list[Entity]]:
        """Return each row's entities; a score is the mean probability of the tokens' tags.

        Args:
            logits: (rows, shared rows + tokens, tags).
            tokens: of the rows.
        """
        logits = logits.detach().double().cpu()
        logs = logits.log_softmax(2).numpy()
        return [self._row(logs[row], np.exp(logs[row]), None, tokens, row) for row in range(len(logs))]

    def _row(
        self,
        scores: np.ndarray,
        probabilities: np.ndarray,
        transitions: np.ndarray | None,
        tokens: TextTokens,
        row: int,
    ) -> list[Entity]:
        indices = np.flatnonzero(tokens.spans[row, :, 0] >= 0)
        spans = tokens.spans[row, indices, 1:]
        inside = continues_word(tokens.texts[row][0], spans) if self.whole_words and len(indices) else None
        may = allowed(len(self.classes))
        path = best_path(scores[indices], may, transitions=transitions, inside=inside)
        return entities_of(path, probabilities[indices], spans, self.classes)


class CrfTagger(Tagger):
    """Tag the tokens of a text as a linear-chain conditional random field; see `fusetune.tasks.crf`.

    The shared rows are the transitions, which start at 0: then it is `Tagger`.
    """

    def __init__(self, classes: Sequence[str], *, whole_words: bool = False) -> None:
        super().__init__(classes, whole_words=whole_words)
        self.num_shared = self.num_tags + 2

    def encode(self, values: Sequence[Sequence[Span] | None], tokens: TextTokens) -> Target:
        """See `Tagger.encode`; padding is `crf.PADDING`."""
        target = super().encode(values, tokens)
        target.values[torch.from_numpy(tokens.spans[..., 0] < 0)] = crf.PADDING
        return target

    def build(self, dim: int) -> nn.Module:
        """Build (batch, tokens, dim) to (batch, tokens, tags), with the transitions as shared rows."""
        return TokenHead(*self._layers(dim), shared=nn.Parameter(torch.zeros(self.num_shared, self.num_tags)))

    def terms(self, logits: Tensor, target: Target) -> Tensor:
        """Return a row's negative log-likelihood, (batch,)."""
        shared, emissions = logits[:, : self.num_shared], logits[:, self.num_shared :]
        if not len(logits):
            return emissions.sum((1, 2))
        return crf.negative_log_likelihood(emissions, shared[0], target.values)

    def entities(self, logits: Tensor, tokens: TextTokens) -> list[list[Entity]]:
        """Return each row's entities; a score is the mean marginal probability of the tokens' tags."""
        if not len(logits):
            return []
        logits = logits.detach().double().cpu()
        transitions, emissions = logits[0, : self.num_shared], logits[:, self.num_shared :]
        mask = torch.from_numpy(tokens.spans[..., 0] >= 0)
        marginals = crf.log_marginals(emissions, transitions, mask).exp().numpy()
        scores, moves = emissions.numpy(), transitions.numpy()
        return [self._row(scores[row], marginals[row], moves, tokens, row) for row in range(len(scores))]


TAGGERS: dict[str, type[Tagger]] = {"softmax": Tagger, "crf": CrfTagger}
"""By the option `head`."""
