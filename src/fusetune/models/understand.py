"""The understand family: one fusion over all columns and one head per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.fusion.base import Fusion
from fusetune.modalities.ngrams import NGRAM_KEYS
from fusetune.models.extras import NgramLinear, NgramSource, PairLinear
from fusetune.models.family import Family, presence
from fusetune.models.reader import Encoded
from fusetune.tasks.token_head import with_shared
from fusetune.types import Batch, Outputs, Tokens


class Understand(Family):
    """Maps columns to logits: encodes and projects each column, fuses the columns, and applies a head per task.

    logits = head(fusion(projected columns)) + linear(standardised columns) [+ linear(n-grams)] [+ linear(pairs)]

    A task may answer token by token of one column. Its head then maps h_t = projected token + fused vector to the
    token's logits, and its linear part reads the token's standardised vector in place of the column's mean:

    logits_t = head(h_t) + linear(standardised token, standardised other columns);  0 where a token is not real

    The logits begin with the head's shared rows, if it is a `fusetune.tasks.token_head.TokenHead`.

    The linear part reads the columns with pretrained encoders. `start_from` sets it to a linear probe and the heads to
    zero, so training starts from the probe's predictions and adds to them. Without a probe the linear part starts at
    zero and the heads keep their random initialisation.
    """

    name = "understand"

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        routes: Mapping[str, str],
        fusion: Fusion,
        heads: Mapping[str, nn.Module],
        *,
        dropout: float = 0.1,
        joined: Mapping[str, int] | None = None,
        reads: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            encoders: by key; `forward(**tensors) -> Tokens`, with the attributes `dim` and `pretrained`.
            routes: by column, the key of its encoder.
            fusion: over exactly these columns.
            heads: by task, maps (batch, fusion.dim) to logits; for a task that answers token by token, (batch, tokens,
                fusion.dim) to (batch, tokens, logits).
            dropout: on the encoders' outputs, in [0, 1).
            joined: see `Reader`.
            reads: by task that answers token by token, the column of the tokens.
        """
        super().__init__(encoders, routes, fusion.dim, dropout=dropout, joined=joined)
        self.tasks = list(heads)
        self.reads = dict(reads or {})
        self.fusion = fusion
        self.heads = nn.ModuleList(heads.values())
        self.linear_columns = [column for column, key in routes.items() if encoders[key].pretrained]
        width = sum(self.encoder_dim(column) + 1 for column in self.linear_columns)
        sizes = [self.at_zero(task).numel() for task in self.tasks]
        self.linear = nn.ModuleList(nn.Linear(width, size) for size in sizes) if width else None
        self.hides = dropout > 0
        self.ngrams: NgramLinear | None = None
        self.pairs: PairLinear | None = None
        for layer in self.linear or ():
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def head(self, task: str) -> nn.Module:
        """Return a task's head."""
        return self.heads[self.tasks.index(task)]

    def at_zero(self, task: str) -> Tensor:
        """Return a task's logits for a vector of zeros, in the shape of one row's logits, or of one token's."""
        head = self.head(task)
        like = next(head.parameters(), torch.zeros(()))
        shape = (1, 1, self.dim) if task in self.reads else (1, self.dim)
        logits: Tensor = head(torch.zeros(shape, device=like.device, dtype=like.dtype)).flatten(0, len(shape) - 2)[0]
        return logits

    @torch.no_grad()
    def start_from(self, task: str, weight: Tensor, bias: Tensor) -> None:
        """Initialise a task's linear part from a linear probe, and its head with zeros.

        Args:
            task: the task's name.
            weight: (features, logits); the features are, column by column, the standardised features divided by the
                square root of their number, then an indicator of the column's absence.
            bias: (logits,).
        """
        assert self.linear is not None, "there are columns for the linear part"
        layer = self.linear[self.tasks.index(task)]
        assert isinstance(layer, nn.Linear)
        _set_to_zero(self.head(task))
        layer.weight.copy_(weight.T.to(layer.weight.device))
        # With zero parameters, a head with ordered thresholds still returns non-zero logits.
        layer.bias.copy_(bias.to(layer.bias.device) - self.at_zero(task).view(-1))

    def extend(self, ngrams: Mapping[NgramSource, int], pairs: Sequence[tuple[str, str]]) -> None:
        """Have the linear part read more than each column's vector; its weights there are zero.

        Args:
            ngrams: per text column and part of its n-grams, the size of the vocabulary; see `NgramLinear`.
            pairs: columns to compare; see `PairLinear`.
        """
        sizes = [self.at_zero(task).numel() for task in self.tasks]
        device = next(self.parameters()).device
        ngrams = {source: size for part in NGRAM_KEYS for source, size in ngrams.items() if source[1] == part}
        self.ngrams = NgramLinear(ngrams, sizes, hides=self.hides).to(device) if ngrams else None
        dims = [self.encoder_dim(first) for first, _ in pairs]
        self.pairs = PairLinear(pairs, dims, sizes).to(device) if pairs else None

    def extension(self) -> dict[str, Any]:
        """Return what `extend` was given, as JSON: the columns of n-grams and the pairs; empty without any."""
        found: dict[str, Any] = {}
        if self.ngrams is not None:
            for part, key in NGRAM_KEYS.items():
                if columns := [column for column, own in self.ngrams.sources if own == part]:
                    found[key] = columns
        if self.pairs is not None:
            found["pairs"] = [list(pair) for pair in self.pairs.pairs]
        return found

    def forward(self, batch: Batch) -> Outputs:
        """See `Family.forward`."""
        outputs = super().forward(batch)
        return outputs if self.ngrams is None else self.ngrams.add_to(outputs, batch, passed_over=self.reads)

    def linear_part(self) -> nn.Module | None:
        """See `Family.linear_part`."""
        return self.linear if self.pairs is None or self.linear is None else nn.ModuleList([self.linear, self.pairs])

    def after_encoders(self) -> list[nn.Module]:
        """See `Family.after_encoders`."""
        return [
            self.projections,
            self.fusion,
            self.heads,
            *(part for part in (self.linear, self.pairs) if part is not None),
        ]

    def combine(self, encoded: Encoded, cells: Mapping[str, Tensor], rows: Tensor) -> Outputs:
        """See `Family.combine`."""
        columns, blocks, tokens = {}, [], dict[str, Tensor]()
        for column in self.columns:
            read, row_cells = encoded(column), cells.get(column)
            scaled = None if read is None else self.standardise(column, read)
            columns[column] = self.project(column, scaled, row_cells, rows)
            if column in self.linear_columns:
                blocks.append(self._block(column, scaled, row_cells, columns[column]))
            if column in self.reads.values():
                tokens[column] = self._token_block(column, scaled, row_cells, columns[column])
        pooled = self.fusion(columns, presence(self.columns, cells, rows)).pooled
        logits = {}
        for index, (task, head) in enumerate(zip(self.tasks, self.heads, strict=True)):
            if task in self.reads:
                logits[task] = self._token_logits(index, columns[self.reads[task]], tokens, blocks, pooled)
                continue
            logits[task] = head(pooled)
            if self.linear is not None:
                logits[task] = logits[task] + self.linear[index](torch.cat(blocks, 1)).view_as(logits[task])
        if self.pairs is not None:
            vectors = {name: self._vector(name, block) for name, block in zip(self.linear_columns, blocks, strict=True)}
            for task, part in zip(self.tasks, self.pairs(vectors), strict=True):
                if task not in self.reads:
                    logits[task] = logits[task] + part.view_as(logits[task])
        return Outputs(logits=logits, pooled=pooled, columns=columns)

    def _token_logits(
        self, index: int, column: Tokens, tokens: Mapping[str, Tensor], blocks: Sequence[Tensor], pooled: Tensor
    ) -> Tensor:
        """Return a task's logits token by token, (batch, shared rows + tokens, logits).

        Args:
            index: the task's position.
            column: the projected tokens, (batch, tokens, dim).
            tokens: by column that tasks read, its tokens' inputs of the linear part.
            blocks: the columns' inputs of the linear part, (batch, features) each.
            pooled: (batch, dim).
        """
        task = self.tasks[index]
        logits: Tensor = self.heads[index](column.values + pooled.unsqueeze(1))
        if self.linear is not None:
            layer, start = self.linear[index], 0
            assert isinstance(layer, nn.Linear)
            for name, block in zip(self.linear_columns, blocks, strict=True):
                part = tokens[name] if name == self.reads[task] else block.unsqueeze(1)
                logits = logits + nn.functional.linear(part, layer.weight[:, start : start + part.shape[-1]])
                start += part.shape[-1]
            logits = logits + layer.bias
        return with_shared(self.heads[index], logits.masked_fill(~column.mask.unsqueeze(-1), 0))

    def _token_block(self, name: str, cells: Tokens | None, row_cells: Tensor | None, projected: Tokens) -> Tensor:
        """Return the tokens' inputs of the linear part, (batch, tokens, encoder dim + 1); the last is 0."""
        width = self.encoder_dim(name)
        if cells is None or row_cells is None:
            return projected.values.new_zeros(*projected.values.shape[:2], width + 1)
        values = (cells.values / width**0.5)[row_cells.clamp(min=0)]
        return nn.functional.pad(values.masked_fill(~projected.mask.unsqueeze(-1), 0), (0, 1))

    def _vector(self, column: str, block: Tensor) -> tuple[Tensor, Tensor]:
        """A column's standardised vectors, (batch, encoder dim), and (batch, 1) bool, which rows have it."""
        return block[:, :-1] * self.encoder_dim(column) ** 0.5, block[:, -1:] == 0

    def _block(self, column: str, cells: Tokens | None, row_cells: Tensor | None, projected: Tokens) -> Tensor:
        """Return a column's inputs of the linear part, (batch, encoder dim + 1); the last indicates its absence."""
        width = self.encoder_dim(column)
        if cells is None or row_cells is None:
            block = projected.values.new_zeros(len(projected.values), width + 1)
            block[:, -1] = 1
            return block
        absent = (row_cells < 0).unsqueeze(1)  # (batch, 1)
        vector = (cells.mean() / width**0.5)[row_cells.clamp(min=0)].masked_fill(absent, 0)
        return torch.cat([vector, absent.to(vector.dtype)], dim=1)


def _set_to_zero(head: nn.Module) -> None:
    """Set a head's output to what it is without any input: the last layer's parameters, or all of them, to zero."""
    last = list(head.children())[-1] if isinstance(head, nn.Sequential) else head
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
