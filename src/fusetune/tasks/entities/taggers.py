"""Heads of `entities` that tag tokens: each token by itself, or the sequence as a conditional random field."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusetune.tasks.divergence import tokens_divergence
from fusetune.tasks.entities import crf
from fusetune.tasks.entities.tagging import IGNORED, Span, allowed, best_path, entities_of, tag_tokens, tags_of
from fusetune.tasks.entities.words import Unit, continues_word
from fusetune.tasks.token_head import TokenHead
from fusetune.types import Target, TextTokens

Entity = tuple[int, int, str, float]
"""First character, the one after the last, label, score."""


class Tagger:
    """Tag each unit, a word or token, by itself with a softmax; the most likely tags that BIO allows are the answer.

    A unit's tag is that of its first token (Devlin et al. 2019, arXiv 1810.04805, section 5.3); the others have none.

    Attributes:
        classes: the labels.
        unit: what entities begin and end with.
        num_shared: see `TargetTask.num_shared`.
    """

    untagged = IGNORED
    """The target of a token that is not the first of its unit."""

    def __init__(self, classes: Sequence[str], *, unit: Unit = "token") -> None:
        self.classes, self.unit = list(classes), unit
        self.num_tags, self.num_shared = len(tags_of(self.classes)), 0

    def encode(self, values: Sequence[Sequence[Span] | None], tokens: TextTokens) -> Target:
        """Encode as tags, (rows, tokens) int64, `IGNORED` at padding, in entities of a label that no train row has, and
        at tokens that go on with a unit.

        A row's size is the number of its other tokens.
        """
        real = tokens.spans[..., 0] >= 0
        tags = np.where(real, 0, IGNORED).astype(np.int64)
        for row, spans in enumerate(values):
            if spans:
                tag_tokens(tags[row], tokens.spans[row], spans, self.classes)
            tags[row, self.continued(tokens, row)] = self.untagged
        labelled = torch.tensor([value is not None for value in values], dtype=torch.bool)
        sizes = torch.from_numpy((tags >= 0).sum(1).astype(np.float32))
        return Target(torch.from_numpy(tags), labelled & (sizes > 0), sizes)

    def continued(self, tokens: TextTokens, row: int) -> np.ndarray:
        """Return which of a row's tokens go on with a unit, (tokens,) bool."""
        spans, continued = tokens.spans[row], np.zeros(tokens.spans.shape[1], dtype=bool)
        real = np.flatnonzero(spans[:, 0] >= 0)
        if len(real):
            continued[real] = continues_word(tokens.texts[row][0], spans[real, 1:], self.unit)
        return continued

    def build(self, dim: int) -> nn.Module:
        """Build (batch, tokens, dim) to (batch, tokens, tags)."""
        return nn.Sequential(*self._layers(dim))

    def _layers(self, dim: int) -> list[nn.Module]:
        return [nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, self.num_tags)]

    def terms(self, logits: Tensor, target: Target) -> Tensor:
        """Return the sum over a row's tokens of their cross-entropy, (batch,)."""
        flat, tags = (
            logits.flatten(0, 1),
            target.values.flatten(),
        )  # a softmax over strided tags takes three times as long
        losses = F.cross_entropy(flat, tags, ignore_index=IGNORED, reduction="none")
        return losses.view(target.values.shape).sum(1)

    def divergence(self, logits: Tensor, other: Tensor, real: Tensor) -> Tensor:
        """Return the mean over a row's tokens of the divergence of their tags in nats, (batch,).

        Args:
            logits, other: (batch, shared rows + tokens, tags).
            real: (batch, tokens) bool.
        """
        return tokens_divergence(logits, other, real)

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
        real, continued = tokens.spans[row, :, 0] >= 0, self.continued(tokens, row)
        indices = np.flatnonzero(real & ~continued)
        spans = tokens.spans[row, indices, 1:].copy()
        last = np.append(indices[1:], real.sum())[: len(indices)] - 1  # of each unit
        spans[:, 1] = tokens.spans[row, last, 2]
        path = best_path(scores[indices], allowed(len(self.classes)), transitions=transitions)
        return entities_of(path, probabilities[indices], spans, self.classes)


class CrfTagger(Tagger):
    """Tag the tokens of a text as a linear-chain conditional random field; see `fusetune.tasks.entities.crf`.

    The shared rows are the transitions, which start at 0: then it is `Tagger`.
    """

    untagged = crf.PADDING

    def __init__(self, classes: Sequence[str], *, unit: Unit = "token") -> None:
        super().__init__(classes, unit=unit)
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

    def divergence(self, logits: Tensor, other: Tensor, real: Tensor) -> Tensor:
        """See `Tagger.divergence`; of the tags' marginal probabilities."""
        if not len(logits):
            return logits.sum((1, 2))
        first, second = (
            crf.log_marginals(values[:, self.num_shared :], values[0, : self.num_shared], real)
            for values in (logits.float(), other.float())
        )
        return tokens_divergence(first, second, real)

    def entities(self, logits: Tensor, tokens: TextTokens) -> list[list[Entity]]:
        """Return each row's entities; a score is the mean marginal probability of the tokens' tags."""
        if not len(logits):
            return []
        logits = logits.detach().double().cpu()
        transitions, emissions = logits[0, : self.num_shared], logits[:, self.num_shared :]
        continued = np.stack([self.continued(tokens, row) for row in range(len(logits))])
        mask = torch.from_numpy((tokens.spans[..., 0] >= 0) & ~continued)
        marginals = crf.log_marginals(emissions, transitions, mask).exp().numpy()
        scores, moves = emissions.numpy(), transitions.numpy()
        return [self._row(scores[row], marginals[row], moves, tokens, row) for row in range(len(scores))]


TAGGERS: dict[str, type[Tagger]] = {"softmax": Tagger, "crf": CrfTagger}
"""By the option `head`."""
