"""A head of `entities` that scores every span up to a length, for entities that lie within others or cross them.

score(i, j, label) = start_i[label] + end_j[label] + width_{j-i}[label] + query_i · key_j / √size

for the span from token i to token j. All but the widths are channels of the tokens' logits; the widths are shared rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusetune.tasks.entities.taggers import Entity
from fusetune.tasks.entities.tagging import Span
from fusetune.tasks.entities.words import Unit, continues_word
from fusetune.tasks.token_head import QueryKeyHead
from fusetune.types import Target, TextTokens

SIZE = 32
"""Numbers of a query and of a key."""
NO_SPAN, NO_LABEL = -1, 0
"""Entries of a target: the span is no candidate; it has no label. A label's number is counted from 1."""
BIAS = -2.0
"""Where the scores of starts and of ends begin: most spans are no entity."""
ROWS = 16
"""Rows whose spans are scored together."""
Overlap = Literal["equal", "nested", "crossing"]
"""How two spans overlap: the same characters, one within the other, or each with characters of its own."""


def overlap_of(one: tuple[int, int], other: tuple[int, int]) -> Overlap | None:
    """Return how two spans, (start, end), overlap; None if they do not."""
    if min(one[1], other[1]) <= max(one[0], other[0]):
        return None
    if one == other:
        return "equal"
    within = (one[0] <= other[0] and other[1] <= one[1]) or (other[0] <= one[0] and one[1] <= other[1])
    return "nested" if within else "crossing"


def overlaps_in(spans: Sequence[Span]) -> tuple[set[Overlap], int]:
    """Return how some spans of a text overlap, and the number of those that overlap another."""
    kinds: set[Overlap] = set()
    touched: set[int] = set()
    order = sorted(range(len(spans)), key=lambda index: spans[index])
    for place, index in enumerate(order):
        for other in order[place + 1 :]:
            if spans[other][0] >= spans[index][1]:
                break
            if kind := overlap_of(spans[index][:2], spans[other][:2]):
                kinds.add(kind)
                touched |= {index, other}
    return kinds, len(touched)


class SpanScorer:
    """Score the spans of a text, each label of each span by a sigmoid of its own.

    Attributes:
        classes: the labels.
        longest: the most characters of a span, 1 or more.
        overlaps: how entities of one text may overlap.
        unit: what entities begin and end with.
        num_shared: see `TargetTask.num_shared`.

    Reference: Su et al. 2022 (arXiv 2208.03054), the efficient global pointer, for the score; Lee et al. 2017 (arXiv
    1707.07045) and Eberts and Ulges 2020 (arXiv 1909.07755) for the width and the length of spans; Yu et al. 2020
    (arXiv 2005.07150) for the choice among overlapping spans by their scores.
    """

    def __init__(
        self, classes: Sequence[str], *, longest: int, overlaps: Iterable[str] = (), unit: Unit = "token"
    ) -> None:
        self.classes, self.longest, self.unit = list(classes), longest, unit
        self.overlaps = frozenset(overlaps)
        self.num_logits = 2 * len(self.classes) + 2 * SIZE
        self.num_shared = math.ceil(longest * len(self.classes) / self.num_logits)  # a token has a character or more

    def _widths(self, tokens: TextTokens) -> np.ndarray:
        """Return how many spans begin at each token, (rows, tokens): none at padding, else one or more."""
        real = tokens.spans[..., 0] >= 0
        widths = real.astype(np.int64)
        for step in range(1, min(self.longest, real.shape[1])):
            fits = real[:, step:] & (tokens.spans[:, step:, 2] - tokens.spans[:, :-step, 1] <= self.longest)
            fits &= widths[:, :-step] == step
            if not fits.any():
                break
            widths[:, :-step] += fits
        return widths

    def encode(self, values: Sequence[Sequence[Span] | None], tokens: TextTokens) -> Target:
        """Encode as labels of spans, (rows, tokens, widths, labels of a span) int16.

        An entry is for the span that begins at a token and has so many tokens, counted from 1: `NO_SPAN` where there is
        none or it is too long, else the numbers of its labels and then `NO_LABEL`. A row's size is the number of its
        tokens. Entities of a label that no train row has are no entities of the others.
        """
        widths = self._widths(tokens)
        marks: dict[tuple[int, int, int], list[int]] = {}
        index_of = {label: number for number, label in enumerate(self.classes, 1)}
        for row, spans in enumerate(values):
            own = tokens.spans[row]
            for start, end, label in spans or ():
                inside = np.flatnonzero((own[:, 0] >= 0) & (own[:, 1] < end) & (own[:, 2] > start))
                if len(inside) and label in index_of and inside[-1] - inside[0] < widths[row, inside[0]]:
                    labels = marks.setdefault((row, int(inside[0]), int(inside[-1] - inside[0])), [])
                    labels += [index_of[label]] if index_of[label] not in labels else []
        most = max((len(labels) for labels in marks.values()), default=1)
        encoded = np.full((*widths.shape, max(int(widths.max(initial=1)), 1), most), NO_SPAN, dtype=np.int16)
        encoded[np.arange(encoded.shape[2]) < widths[..., None]] = NO_LABEL
        for place, labels in marks.items():
            encoded[place][: len(labels)] = labels
        sizes = torch.from_numpy((tokens.spans[..., 0] >= 0).sum(1).astype(np.float32))
        labelled = torch.tensor([value is not None for value in values], dtype=torch.bool)
        return Target(torch.from_numpy(encoded), labelled & (sizes > 0), sizes)

    def build(self, dim: int) -> nn.Module:
        """Build (batch, tokens, dim) to (batch, tokens, channels), with the widths as shared rows."""
        shared = nn.Parameter(torch.zeros(self.num_shared, self.num_logits))
        num = 2 * len(self.classes)
        head = QueryKeyHead(dim, num + SIZE, SIZE, shared=shared)
        last = head[-1]
        assert isinstance(last, nn.Linear)
        nn.init.constant_(last.bias[:num].detach(), BIAS)
        return head

    def scores(self, logits: Tensor, num_widths: int) -> Tensor:
        """Return the scores of spans, (rows, tokens, widths, labels); those beyond the last token are arbitrary.

        Args:
            logits: (rows, shared rows + tokens, channels), one row or more.
            num_widths: 1 or more; the most tokens of a span.
        """
        num = len(self.classes)
        widths = logits[0, : self.num_shared].flatten()[: self.longest * num].view(self.longest, num)
        starts, ends, queries, keys = torch.split(logits[:, self.num_shared :], [num, num, SIZE, SIZE], 2)
        ends, keys = (F.pad(part, (0, 0, 0, num_widths - 1)) for part in (ends, keys))
        by_width = []
        for step in range(num_widths):
            last = slice(step, step + starts.shape[1])
            product = (queries * keys[:, last]).sum(2, keepdim=True) / math.sqrt(SIZE)
            by_width.append(starts + ends[:, last] + widths[step] + product)
        return torch.stack(by_width, 2)

    def terms(self, logits: Tensor, target: Target) -> Tensor:
        """Return the sum over a row's spans and labels of their binary cross-entropy, (batch,)."""
        if not len(logits):
            return logits.sum((1, 2))
        marks = target.values.long()  # (batch, tokens, widths, labels of a span)
        scores = self.scores(logits, marks.shape[2])
        candidate = (marks[..., :1] != NO_SPAN).to(scores.dtype)
        every = (F.softplus(scores) * candidate).sum((1, 2, 3))
        right = scores.gather(3, (marks - 1).clamp(min=0)) * (marks > 0)
        return every - right.sum((1, 2, 3))

    def divergence(self, logits: Tensor, other: Tensor, real: Tensor) -> Tensor:
        """Return the mean over a row's tokens of the divergence of the spans that begin there, summed, (batch,).

        Spans have up to 8 tokens here. The divergence of a span's label is that of two Bernoulli variables in nats.

        Args:
            logits, other: (batch, shared rows + tokens, channels).
            real: (batch, tokens) bool.
        """
        num_widths = min(8, self.longest)
        if not len(logits):
            return logits.sum((1, 2))
        one, two = (self.scores(values, num_widths) for values in (logits.float(), other.float()))
        losses = one.sigmoid() * (one - two) + F.softplus(two) - F.softplus(one)
        inside = torch.stack([F.pad(real, (0, step))[:, step:] for step in range(num_widths)], 2) & real.unsqueeze(2)
        total = losses.sum(3).masked_fill(~inside, 0).sum((1, 2)).clamp(min=0)
        return total / real.sum(1).clamp(min=1)

    def entities(self, logits: Tensor, tokens: TextTokens) -> list[list[Entity]]:
        """Return each row's entities: the spans with a probability above ½, the most probable first where they overlap.

        A span is left out if it overlaps a more probable one in a way in which train entities do not. A score is the
        probability.

        Args:
            logits: (rows, shared rows + tokens, channels).
            tokens: of the rows.
        """
        found: list[list[Entity]] = []
        widths = self._widths(tokens)
        for start in range(0, len(logits), ROWS):
            rows = slice(start, start + ROWS)
            own = widths[rows]
            num_widths = max(int(own.max(initial=1)), 1)
            scores = self.scores(logits[rows].detach().double().cpu(), num_widths)
            candidates = torch.from_numpy(np.arange(num_widths) < own[..., None]).unsqueeze(3)
            for row, own_scores in enumerate(scores.masked_fill(~candidates, -math.inf).numpy(), start):
                found.append(self._chosen(own_scores, tokens, row))
        return found

    def _chosen(self, scores: np.ndarray, tokens: TextTokens, row: int) -> list[Entity]:
        """Return a row's entities.

        Args:
            scores: (tokens, widths, labels), -inf for spans that are no candidates.
            tokens: of all rows.
            row: the row.
        """
        own, chosen = tokens.spans[row, :, 1:], list[Entity]()
        places = np.argwhere(scores > 0)
        if not len(places):
            return []
        goes_on = np.zeros(len(own) + 1, dtype=bool)
        real = np.flatnonzero(tokens.spans[row, :, 0] >= 0)
        if len(real):
            goes_on[real] = continues_word(tokens.texts[row][0], own[real], self.unit)
        order = np.argsort(-scores[tuple(places.T)], kind="stable")
        for first, more, label in places[order]:
            if goes_on[first] or goes_on[first + more + 1]:
                continue
            score = float(1 / (1 + np.exp(-scores[first, more, label])))
            span = (int(own[first, 0]), int(own[first + more, 1]), self.classes[label], score)
            if all(
                kind is None or kind in self.overlaps for kind in (overlap_of(span[:2], other[:2]) for other in chosen)
            ):
                chosen.append(span)
        return sorted(chosen)
