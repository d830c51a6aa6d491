"""Masked language modelling on the text columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusetune.backbones.backbone import Backbone
from fusetune.backbones.masked_head import MaskedHead
from fusetune.data.examples import Examples
from fusetune.errors import BackboneError
from fusetune.objectives.base import Objective
from fusetune.types import Batch, Outputs

if TYPE_CHECKING:
    from fusetune.models.family import Family

REPLACED, RANDOM = 0.8, 0.1
"""Shares of the chosen tokens that become the mask token, and a random token; the rest stay."""
NOT_FOR_MODEL = ("owner", "slot", "select")
"""Inputs of a text column that say which cell a part belongs to."""


def num_chosen(maskable: Tensor, share: float) -> Tensor:
    """Return how many tokens of each text are chosen, (texts,): the share, rounded, and at least one if there is any.

    Args:
        maskable: (texts, tokens) bool.
        share: in (0, 1).
    """
    sizes = maskable.sum(1)
    return (sizes * share).round().long().clamp(min=1).minimum(sizes)


def mask_tokens(ids: Tensor, maskable: Tensor, *, share: float, mask_id: int, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Choose tokens, and replace 80 % of them by the mask token and 10 % by random tokens, as BERT does.

    Args:
        ids: (texts, tokens) int64.
        maskable: (texts, tokens) bool, False for special tokens and padding.
        share: of a text's maskable tokens, see `num_chosen`.
        mask_id: the id of the mask token.
        num_tokens: of the vocabulary.

    Returns:
        The changed ids, (texts, tokens), and which tokens were chosen, (texts, tokens) bool.

    Reference: Devlin et al. 2019, "BERT" (arXiv 1810.04805), section 3.1. As in its code, the number of chosen tokens
    depends on the text's length alone.
    """
    scores = torch.rand(ids.shape, device=ids.device).masked_fill(~maskable, 2.0)
    chosen = scores.argsort(1).argsort(1) < num_chosen(maskable, share).unsqueeze(1)
    draws = torch.rand(ids.shape, device=ids.device)
    others = torch.randint(num_tokens, ids.shape, device=ids.device)
    changed = ids.masked_fill(chosen & (draws < REPLACED), mask_id)
    at_random = chosen & (draws >= REPLACED) & (draws < REPLACED + RANDOM)
    return torch.where(at_random, others, changed), chosen


class MaskedLanguageModelling(Objective):
    """Predict randomly chosen tokens of the texts from the rest of them.

    The loss is the mean cross-entropy of the chosen tokens, over all text columns, weighted by the rows' weights.
    Columns of one encoder share a head. A new head's output layer is the encoder's word embeddings; its bias starts as
    the logarithm of the tokens' frequencies in the train rows.

    Args:
        model: see `Objective`.
        columns: the text columns.
        share: of a text's tokens that are chosen, in (0, 1).

    Raises:
        ConfigError: an encoder has no mask token, or no head for masked tokens.

    Inputs: the batch's token ids. The outputs are not read.

    Requires: text columns whose encoders were pretrained with a mask token.

    Relations: `simcse` tunes texts' vectors rather than tokens.

    Figures: the share of chosen tokens that are predicted right.

    Reference: Devlin et al. 2019, "BERT" (arXiv 1810.04805); on the task's own texts Gururangan et al. 2020, "Don't
    stop pretraining" (arXiv 2004.10964).
    """

    name = "mlm"
    needs_target = False
    perturbs_inputs = True
    needs_dropout = False

    def __init__(self, model: Family, columns: Sequence[str], *, share: float = 0.15) -> None:
        super().__init__(model, {})
        self.columns, self.share = list(columns), share
        self._route = {column: model.routes[column] for column in columns}
        self.keys = list(dict.fromkeys(self._route.values()))
        self.heads = nn.ModuleList(MaskedHead(_encoder(model, key)) for key in self.keys)

    def head(self, key: str) -> MaskedHead:
        """Return the head of an encoder, by its key."""
        head = self.heads[self.keys.index(key)]
        assert isinstance(head, MaskedHead)
        return head

    def fit(self, train: Examples) -> None:
        """Count the tokens of the train rows' texts, for the biases of new heads."""
        for key, head in zip(self.keys, self.heads, strict=True):
            assert isinstance(head, MaskedHead)
            counts = torch.zeros(head.num_tokens)
            for name in self.columns if head.is_new else ():
                column = train.columns[name]
                modality = column.modality
                if modality.encoder_key != key:
                    continue
                codes = column.codes[train.used]
                for example in column.examples(np.unique(codes[codes >= 0])):
                    ids = torch.from_numpy(np.asarray(modality.token_ids(example), dtype=np.int64))  # type: ignore[attr-defined]
                    counts += torch.bincount(ids, minlength=head.num_tokens)[: head.num_tokens]
            head.set_frequencies(counts)

    def counts(self, batch: Batch) -> Tensor:
        """Return each row's number of chosen tokens times its weight, (batch,)."""
        total = torch.zeros_like(batch.weights)
        for column in self.columns:
            if tensors := batch.inputs.get(column):
                cells = batch.cells[column]
                sizes = num_chosen(self._maskable(column, tensors), self.share).float()  # (parts,)
                per_cell = sizes
                if (owner := tensors.get("owner")) is not None:
                    per_cell = sizes.new_zeros(int(owner.max()) + 1).index_add(0, owner, sizes)
                total = total + per_cell[cells.clamp(min=0)] * (cells >= 0)
        return total * batch.weights

    def _maskable(self, column: str, tensors: dict[str, Tensor]) -> Tensor:
        """Return which tokens are neither special nor padding, (parts, tokens) bool."""
        special = self.head(self._route[column]).special.to(tensors["input_ids"].device)
        return tensors["attention_mask"].bool() & ~torch.isin(tensors["input_ids"], special)

    def forward(self, model: nn.Module, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        """Return the mean loss over the chosen tokens of the batch."""
        losses, weights, right = [batch.zero], [batch.zero], [batch.zero]
        for column in self.columns:
            if not (tensors := batch.inputs.get(column)):
                continue
            key = self._route[column]
            head, encoder = self.head(key), _encoder(model, key)
            ids, maskable = tensors["input_ids"], self._maskable(column, tensors)
            options = {"share": self.share, "mask_id": head.mask_id, "num_tokens": head.num_tokens}
            changed, chosen = mask_tokens(ids, maskable, **options)  # type: ignore[arg-type]
            inputs = {name: tensor for name, tensor in tensors.items() if name not in NOT_FOR_MODEL}
            values, _, _ = encoder.hidden_states(**{**inputs, "input_ids": changed})
            if values.shape[1] != ids.shape[1]:
                raise BackboneError(
                    "the encoder does not give a vector for each token of a text",
                    came=f"{values.shape[1]} vectors for {ids.shape[1]} tokens",
                    do="take pretrain.name=simcse, or another text backbone",
                )
            logits = head(values[chosen]).float()  # (chosen, vocabulary)
            own = self._part_weights(batch, column, tensors).unsqueeze(1).expand_as(ids)[chosen]  # (chosen,)
            losses.append((F.cross_entropy(logits, ids[chosen], reduction="none") * own).sum())
            weights.append(own.sum())
            right.append(((logits.detach().argmax(1) == ids[chosen]) * own).sum())
        total = torch.stack(weights).sum().clamp(min=torch.finfo(torch.float32).tiny)
        self.figures = {"accuracy": torch.stack(right).sum() / total}
        return {self.name: torch.stack(losses).sum() / total}

    def _part_weights(self, batch: Batch, column: str, tensors: dict[str, Tensor]) -> Tensor:
        """Return the sum of the weights of the rows that have each part, (parts,)."""
        cells, owner = batch.cells[column], tensors.get("owner")
        num = len(tensors["input_ids"]) if owner is None else int(owner.max()) + 1
        per_cell = batch.weights.new_zeros(num).index_add(0, cells.clamp(min=0), batch.weights * (cells >= 0))
        return per_cell if owner is None else per_cell[owner]


def _encoder(model: nn.Module, key: str) -> Backbone:
    encoder = model.encoders[key]  # type: ignore[index]
    assert isinstance(encoder, Backbone)
    return encoder
