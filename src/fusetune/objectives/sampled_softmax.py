"""The softmax over answers, sampled: the other rows' answers are the negatives, corrected for their popularity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from fusetune.data.examples import Examples
from fusetune.errors import ConfigError
from fusetune.objectives.base import BatchObjective
from fusetune.objectives.contrastive_parts import LogitScale, check_number, row_codes, unit
from fusetune.objectives.gather import COUNTS
from fusetune.types import Batch, Outputs

if TYPE_CHECKING:
    from fusetune.models.family import Family
    from fusetune.tasks.base import TargetTask

TEMPERATURE = 0.07
FACTOR = 0x27D4EB2F165667C5
QUERY, ANSWER = "vector/query", "vector/answer"
QUERY_CODE, ANSWER_CODE, WEIGHT = "code/query", "code/answer", "weight"


class SampledSoftmaxObjective(BatchObjective):
    """Maximise the probability of a row's answer among all answers, estimated from the answers of the update's rows.

    With x_i the query's and y_j the answers' unit vectors, s_ij = x_i·y_j / τ, and q_j the share of train rows that
    have the answer j: loss_i = −log [exp(s_ii − ln q_i) / Σ_j exp(s_ij − ln q_j)]. Answers are sampled as negatives in
    proportion to q; the correction makes the sum an estimate of that over the whole catalogue, so that popular answers
    are not pushed away for being sampled often. Then exp(s_ij) follows the popularity of the item, too.

    Answers of other rows that the query has in another train row are no negatives of it.

    Args:
        model: compares two sides; the first is the query's.
        tasks: see `Objective`.
        weight: factor of the loss in the total, above 0.
        correct: whether ln q is subtracted.
        temperature: initial τ, in [0.01, 1].
        learn_temperature: whether τ is trained.

    Raises:
        ConfigError: a setting is out of range, or the model has fewer than two sides.

    Inputs: the sides' vectors, (batch, dim), scaled to unit length.

    Requires: rows that have both sides. `fit` reads q and the pairs from the train rows; without it nothing is
    corrected, and only equal answers are no negatives.

    Relations: `contrastive` with `form=infonce` has both directions and no correction.

    Figures: the temperature; the share of the rows' pairs that are left out as known.

    Example:
        >>> from fusetune.testing.objectives import make_parts
        >>> model, tasks, examples = make_parts()
        >>> batch, objective = examples.batch(range(12)), SampledSoftmaxObjective(model, tasks)
        >>> list(objective(model, batch, model(batch)))
        ['sampled_softmax']

    Reference: Yi et al. 2019, "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations" (RecSys);
    Bengio and Senécal 2008, "Adaptive Importance Sampling to Accelerate Training of a Neural Probabilistic Language
    Model".
    """

    name = "sampled_softmax"
    standalone = True
    needs_target = False

    def __init__(
        self,
        model: Family,
        tasks: Mapping[str, TargetTask],
        *,
        weight: float = 1.0,
        correct: bool = True,
        temperature: float = TEMPERATURE,
        learn_temperature: bool = True,
    ) -> None:
        super().__init__(model, tasks, weight=weight)
        where, compared = f"objectives.{self.name}", list(model.compared)
        if len(compared) < 2:
            raise ConfigError(
                f"{where} compares two sides",
                expected="--user and --item, --query and --document, or two columns",
                came=", ".join(compared),
            )
        self.sides = compared[:2]
        self.parts = {name: self._identity(model, model.compared[name]) for name in self.sides}
        self.correct = correct
        self.scale = LogitScale(check_number(f"{where}.temperature", temperature, 0.01, 1), learned=learn_temperature)
        empty = torch.zeros(0, dtype=torch.int64)
        self.register_buffer("answers", empty, persistent=False)  # (answers,) sorted codes
        self.register_buffer("log_shares", torch.zeros(0), persistent=False)  # (answers,) ln q
        self.register_buffer("pairs", empty.clone(), persistent=False)  # (pairs,) sorted codes of train rows

    @staticmethod
    def _identity(model: Family, columns: tuple[str, ...]) -> tuple[str, ...]:
        """Return the columns that tell what a side is: that of ids, if there is one, else all."""
        ids = [name for name in columns if getattr(model.encoders[model.routes[name]], "identifies", False)]
        return tuple(ids[:1]) or columns

    def fit(self, train: Examples) -> None:
        """See `Objective.fit`: count the answers of the train rows, and collect the pairs."""
        codes = {name: column.codes if column.keys is None else column.keys for name, column in train.columns.items()}
        used = {name: torch.from_numpy(own[train.used].astype("int64")) for name, own in codes.items()}
        query, answer = (row_codes([used[name] for name in self.parts[side]]) for side in self.sides)
        complete = (query >= 0) & (answer >= 0)
        self.answers, counts = torch.unique(answer[complete], return_counts=True)
        self.log_shares = (counts / counts.sum().clamp(min=1)).log().float()
        self.pairs = torch.unique(_pair_codes(query[complete], answer[complete]))

    def vectors(self, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        """Return unit vectors, (batch, dim), and codes, (batch,), of both sides; and weights, (batch,)."""
        nothing = torch.full_like(batch.rows, -1)
        tensors = {WEIGHT: batch.weights}
        for side, vector, code in zip(self.sides, (QUERY, ANSWER), (QUERY_CODE, ANSWER_CODE), strict=True):
            tokens = outputs.compared(side)
            codes = row_codes([batch.codes.get(name, nothing) for name in self.parts[side]])
            tensors |= {vector: unit(tokens.mean()), code: torch.where(tokens.mask.any(1), codes, -1)}
        return tensors

    def of_vectors(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `BatchObjective.of_vectors`. The loss is named "sampled_softmax"."""
        # Every parameter enters the loss even if there is nothing to compare: processes that exchange gradients need
        # it.
        nothing = (vectors[QUERY].sum() + vectors[ANSWER].sum() + self.scale().sum()) * 0
        query, answer = vectors[QUERY_CODE], vectors[ANSWER_CODE]
        weights = vectors[WEIGHT].detach()
        rows = ((query >= 0) & (answer >= 0) & (weights > 0)).nonzero().squeeze(1)
        query, answer, weights = query[rows], answer[rows], weights[rows]
        self.figures = {"temperature": 1 / self.scale().detach()[0]}
        if not len(rows):
            return {self.name: nothing}
        counts = vectors[COUNTS][rows] if COUNTS in vectors else torch.ones_like(weights)
        own = counts.nonzero().squeeze(1)  # the rows of this process
        known = self._known(query[own], answer[own], answer)
        self.figures["known"] = known.float().mean()
        known[torch.arange(len(own), device=known.device), own] = False
        with torch.autocast(rows.device.type, enabled=False):  # similarities over τ need more than 8 bits
            logits = self.scale() * (vectors[QUERY][rows][own] @ vectors[ANSWER][rows].T)
            logits = (logits - self._log_shares(answer)).masked_fill(known, -torch.inf)
            losses = F.cross_entropy(logits, own, reduction="none")
            loss = (losses * counts[own] * weights[own]).sum() / weights.sum()
        return {self.name: nothing + loss}

    def _log_shares(self, answer: Tensor) -> Tensor:
        """Return ln q of some answers, (answers,); that of the rarest for an answer that no train row has."""
        if not self.correct or not len(self.answers):
            return torch.zeros(len(answer), device=answer.device)
        at = torch.searchsorted(self.answers, answer).clamp(max=len(self.answers) - 1)
        return torch.where(self.answers[at] == answer, self.log_shares[at], self.log_shares.min())

    def _known(self, query: Tensor, own: Tensor, answer: Tensor) -> Tensor:
        """Return which answers are no negatives, (queries, answers) bool: equal ones, and others that the query has.

        Args:
            query, own: (queries,) codes of the queries and of their own answers.
            answer: (answers,) codes.
        """
        known: Tensor = own[:, None] == answer[None, :]
        if not len(self.pairs):
            return known
        codes = _pair_codes(query[:, None], answer[None, :])
        at = torch.searchsorted(self.pairs, codes).clamp(max=len(self.pairs) - 1)
        return known.logical_or(self.pairs[at] == codes)


def _pair_codes(query: Tensor, answer: Tensor) -> Tensor:
    """Return a code of each pair, int64; different pairs have equal codes with a probability of about 1e-19."""
    mixed = (query + 1) * FACTOR  # wraps at 64 bits
    mixed = (mixed ^ (mixed >> 29)) * FACTOR ^ (answer + 1) * 0x165667B19E3779F9
    codes: Tensor = mixed ^ (mixed >> 32)
    return codes
