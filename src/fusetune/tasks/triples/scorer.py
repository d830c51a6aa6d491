"""The head of `triples`: tags of tokens, and scores of the relations between entities.

score_r(i, j) = head_i[r] + tail_j[r] + Σ_d w_r[d] · query_i[d] · key_j[d] / √size + distance_(j-i)[r]

for the relation r from the entity with the first token i to the one with the first token j, with r = 0 for none. All
but w and the distances are channels of the tokens' logits; these two are shared rows. A relation has `size` numbers
w_r, as if its matrix between queries and keys were diagonal; a full matrix would have size².

Legend: rows, tokens, entities = the most of a row, classes = relations + 1, size = `SIZE`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fusetune.tasks.divergence import tokens_divergence
from fusetune.tasks.entities.taggers import Entity, Tagger
from fusetune.tasks.entities.tagging import IGNORED
from fusetune.tasks.entities.words import Unit, word_numbers, word_starts
from fusetune.tasks.token_head import QueryKeyHead
from fusetune.tasks.triples.cells import Triples
from fusetune.types import Target, TextTokens

SIZE = 64
"""Numbers of a query and of a key."""
DISTANCES = (2, 4, 8, 16, 32, 64)
"""The least tokens between two first tokens of each class of distances but the first; forward and backward apart."""
ROWS = 64
"""Rows whose entities are paired together."""
NUM_LIKELY = 16
"""A row's tokens that most likely begin an entity, whose pairs are compared by the divergence."""
TAG, POSITION, MARKS = 0, 1, 2
"""Of a token's target: its tag; where an entity begins, 1 + the number of its first word, else 0; then its relations:
first the tails' tokens, from 1, 0 for none, then the labels, from 1, `IGNORED` for one that no train row has."""

ScoredRelation = tuple[int, int, str, float]
"""The head's number among a row's entities, the tail's, the label, the probability."""


@dataclass(frozen=True)
class Pairing:
    """Which pairs of entities are scored, and how.

    Attributes:
        window: the most words from the beginning of one entity to that of the other; None for any number.
        most: the most relations of one head in a train row; targets have room for so many, or more.
        several: whether a pair may have several relations.
        weight: of a pair's loss, as a multiple of a word's.
    """

    window: int | None = None
    most: int = 1
    several: bool = False
    weight: float = 1.0


class PairScorer:
    """Tag tokens as entities, and score the relations of all ordered pairs of entities by their first tokens.

    Attributes:
        relations: the labels of relations.
        pairing: which pairs are scored.
        num_shared: see `TargetTask.num_shared`.

    Reference: Zhong and Chen 2021 (arXiv 2010.12812) and Eberts and Ulges 2020 (arXiv 1909.07755) for pairs of true
    entities in training and predicted ones after it; Yang et al. 2015 (arXiv 1412.6575) for the diagonal product; Zhou
    et al. 2021 (arXiv 2010.11304), section 3.2, for the loss of pairs with any number of relations.
    """

    def __init__(
        self, classes: Sequence[str], relations: Sequence[str], *, unit: Unit = "token", pairing: Pairing
    ) -> None:
        self.tagger = Tagger(classes, unit=unit)
        self.relations, self.pairing = list(relations), pairing
        self.num_classes = len(self.relations) + 1
        self.num_logits = self.tagger.num_tags + 2 * self.num_classes + 2 * SIZE
        self.num_distances = 2 * (len(DISTANCES) + 1)
        self.num_shared = math.ceil((SIZE + self.num_distances) * self.num_classes / self.num_logits)

    def encode(self, values: Sequence[Triples | None], tokens: TextTokens) -> Target:
        """Encode as (rows, tokens, 2 + 2 · relations of a head) int64; see `TAG`.

        Tags, labelled rows and sizes are `Tagger.encode`'s, padding and words' further tokens included.
        """
        target = self.tagger.encode([None if value is None else value.entities for value in values], tokens)
        known = {label: number for number, label in enumerate(self.relations, 1)}
        found: dict[tuple[int, int], list[tuple[int, int]]] = {}
        positions = np.zeros(target.values.shape, dtype=np.int64)
        for row, value in enumerate(values):
            if value is None or not value.entities:
                continue
            firsts = self._first_tokens([span[:2] for span in value.entities], tokens, row)
            for first, position in zip(firsts, value.positions, strict=True):
                if first is not None:
                    positions[row, first] = 1 + position
            for head, tail, label in value.relations:
                start, end = firsts[head], firsts[tail]
                if start is not None and end is not None:
                    found.setdefault((row, start), []).append((1 + end, known.get(label, IGNORED)))
        most = max(self.pairing.most, max(map(len, found.values()), default=0))
        marks = np.zeros((*positions.shape, MARKS + 2 * most), dtype=np.int64)
        marks[..., TAG], marks[..., POSITION] = target.values.numpy(), positions
        for place, relations in found.items():
            for number, (tail, relation) in enumerate(relations):
                marks[place][MARKS + number], marks[place][MARKS + most + number] = tail, relation
        return Target(torch.from_numpy(marks), target.labelled, target.sizes)

    def _first_tokens(self, spans: Sequence[tuple[int, int]], tokens: TextTokens, row: int) -> list[int | None]:
        """Return the first token of the unit in which each span begins; None for a span without a token."""
        own, order = tokens.spans[row], np.arange(tokens.spans.shape[1])
        begins = np.maximum.accumulate(np.where(self.tagger.continued(tokens, row), 0, order))
        firsts: list[int | None] = []
        for start, end in spans:
            inside = np.flatnonzero((own[:, 0] >= 0) & (own[:, 1] < end) & (own[:, 2] > start))
            firsts.append(int(begins[inside[0]]) if len(inside) else None)
        return firsts

    def build(self, dim: int) -> nn.Module:
        """Build (batch, tokens, dim) to (batch, tokens, channels), with w and the distances as shared rows."""
        shared = torch.zeros(self.num_shared * self.num_logits)
        nn.init.normal_(shared[: SIZE * self.num_classes])
        rows = nn.Parameter(shared.view(self.num_shared, self.num_logits))
        return QueryKeyHead(dim, self.num_logits - SIZE, SIZE, shared=rows)

    def _tags(self, logits: Tensor) -> Tensor:
        """Return the tokens' tags, (rows, tokens, tags), of logits with shared rows."""
        return logits[:, self.num_shared :, : self.tagger.num_tags]

    def scores(self, logits: Tensor, firsts: Tensor) -> Tensor:
        """Return the scores of relations, (rows, entities, entities, classes), from the second axis to the third.

        Args:
            logits: (rows, shared rows + tokens, channels), one row or more.
            firsts: (rows, entities) the entities' first tokens.
        """
        num = self.num_classes
        parts = [self.tagger.num_tags, num, num, SIZE, SIZE]
        _, *channels = torch.split(logits[:, self.num_shared :], parts, 2)
        heads, tails, queries, keys = (
            part.gather(1, firsts.unsqueeze(2).expand(-1, -1, part.shape[2])) for part in channels
        )
        shared = logits[0, : self.num_shared].flatten()[: (SIZE + self.num_distances) * num]
        weights, distances = shared[: SIZE * num].view(num, SIZE), shared[SIZE * num :].view(-1, num)
        product = torch.einsum("rid,cd,rjd->rijc", queries, weights, keys) / math.sqrt(SIZE)
        steps = firsts.unsqueeze(1) - firsts.unsqueeze(2)
        far = torch.bucketize(steps.abs(), torch.tensor(DISTANCES, device=steps.device), right=True)
        return heads.unsqueeze(2) + tails.unsqueeze(1) + product + distances[far + (steps < 0) * (len(DISTANCES) + 1)]

    def terms(self, logits: Tensor, target: Target) -> Tensor:
        """Return a row's cross-entropies of tags, summed, plus `Pairing.weight` times its pairs' losses, (rows,)."""
        if not len(logits):
            return logits.sum((1, 2))
        marks = target.values
        tags = self.tagger.terms(self._tags(logits), Target(marks[..., TAG], target.labelled))
        begins = marks[..., POSITION] > 0
        num = max(int(begins.sum(1).max()), 1)
        firsts = begins.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :num]
        mask = self._pairs(marks[..., POSITION].gather(1, firsts), begins.gather(1, firsts))
        right = self._relations_of(marks, begins, num)
        mask = mask & ~right[..., 0]
        losses = _pair_losses(self.scores(logits, firsts), right[..., 1:])
        return tags + self.pairing.weight * torch.where(mask, losses, 0).sum((1, 2))

    def _pairs(self, positions: Tensor, real: Tensor) -> Tensor:
        """Return which ordered pairs are scored, (rows, entities, entities) bool.

        Args:
            positions: (rows, entities) the numbers of the words at which they begin.
            real: (rows, entities) bool.
        """
        mask = real.unsqueeze(1) & real.unsqueeze(2)
        mask = mask & ~torch.eye(real.shape[1], dtype=torch.bool, device=real.device)
        if self.pairing.window is not None:
            mask = mask & ((positions.unsqueeze(1) - positions.unsqueeze(2)).abs() <= self.pairing.window)
        return mask

    def _relations_of(self, marks: Tensor, begins: Tensor, num: int) -> Tensor:
        """Return the true relations, (rows, num, num, classes) bool; at 0, whether a pair has one that is unknown.

        Args:
            marks: the target's values.
            begins: (rows, tokens) bool, where entities begin.
            num: entities.
        """
        most = (marks.shape[2] - MARKS) // 2
        tails, labels = marks[..., MARKS : MARKS + most], marks[..., MARKS + most :]
        number = begins.long().cumsum(1) - 1  # of the entity that begins at a token
        rows, tokens, which = (tails > 0).nonzero(as_tuple=True)
        heads = number[rows, tokens]
        ends = number[rows, tails[rows, tokens, which] - 1]
        right = torch.zeros(len(marks), num, num, self.num_classes, dtype=torch.bool, device=marks.device)
        right[rows, heads, ends, labels[rows, tokens, which].clamp(min=0)] = True
        return right

    def divergence(self, logits: Tensor, other: Tensor, real: Tensor) -> Tensor:
        """Return the mean over a row's tokens of the divergence of their tags, plus that of likely pairs, (batch,).

        The pairs are those of the `NUM_LIKELY` tokens that most likely begin an entity; each pair weighs the product of
        the probabilities that they do. In nats.

        Args:
            logits, other: (batch, shared rows + tokens, channels).
            real: (batch, tokens) bool.
        """
        if not len(logits):
            return logits.sum((1, 2))
        logits, other = logits.float(), other.float()
        tags = self._tags(logits), self._tags(other)
        begin = sum(part.detach().softmax(2)[..., 1::2].sum(2) for part in tags) / 2 * real
        likely, firsts = begin.topk(min(NUM_LIKELY, begin.shape[1]), 1)
        weights = likely.unsqueeze(1) * likely.unsqueeze(2)
        weights = weights * self._pairs(torch.zeros_like(firsts), likely > 0)
        one, two = (self.scores(values, firsts).log_softmax(3) for values in (logits, other))
        pairs = ((one.exp() * (one - two)).sum(3) * weights).sum((1, 2)) / weights.sum((1, 2)).clamp(min=1)
        return tokens_divergence(*tags, real) + pairs

    def found(self, logits: Tensor, tokens: TextTokens) -> list[tuple[list[Entity], list[ScoredRelation]]]:
        """Return each row's entities, and the relations between them.

        A relation's score is its probability against no relation; it is above one half.

        Args:
            logits: (rows, shared rows + tokens, channels).
            tokens: of the rows.
        """
        entities = self.tagger.entities(self._tags(logits), tokens)
        answers: list[tuple[list[Entity], list[ScoredRelation]]] = []
        for start in range(0, len(logits), ROWS):
            own = entities[start : start + ROWS]
            num = max(map(len, own))
            if num < 2:
                answers += [(some, []) for some in own]
                continue
            firsts, positions = np.zeros((2, len(own), num), dtype=np.int64)
            for row, some in enumerate(own):
                known = [
                    first or 0 for first in self._first_tokens([entity[:2] for entity in some], tokens, start + row)
                ]
                firsts[row, : len(some)] = known
                if some:
                    words = word_starts(tokens.texts[start + row][0])
                    positions[row, : len(some)] = word_numbers(words, [entity[0] for entity in some])
            counts = torch.tensor([len(some) for some in own])
            mask = self._pairs(torch.from_numpy(positions), torch.arange(num) < counts.unsqueeze(1))
            scores = self.scores(logits[start : start + ROWS].detach().double().cpu(), torch.from_numpy(firsts))
            margins = (scores[..., 1:] - scores[..., :1]).masked_fill(~mask.unsqueeze(3), -math.inf).numpy()
            answers += [(some, self._positive(margins[row])) for row, some in enumerate(own)]
        return answers

    def _positive(self, margins: np.ndarray) -> list[ScoredRelation]:
        """Return the relations with a positive margin, (entities, entities, relations), or the best of each pair."""
        places = np.argwhere(margins > 0)
        if not self.pairing.several:
            best = margins.argmax(2)
            places = places[best[places[:, 0], places[:, 1]] == places[:, 2]]
        scores = 1 / (1 + np.exp(-margins[tuple(places.T)]))
        return [
            (int(head), int(tail), self.relations[label], float(score))
            for (head, tail, label), score in zip(places, scores, strict=True)
        ]


def _pair_losses(scores: Tensor, right: Tensor) -> Tensor:
    """Return the loss of pairs, (...): each right relation's cross-entropy against none, and none's against the others.

    Args:
        scores: (..., classes), none first.
        right: (..., relations) bool.
    """
    none = scores[..., :1]
    against = torch.cat([none, scores[..., 1:].masked_fill(~right, -math.inf)], -1).logsumexp(-1, keepdim=True)
    every = torch.cat([none, scores[..., 1:].masked_fill(right, -math.inf)], -1).logsumexp(-1)
    first = torch.where(right, against - scores[..., 1:], 0).sum(-1)
    return first + every - none.squeeze(-1)
