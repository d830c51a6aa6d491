"""The generate family: a language model reads a row's prompt, with vectors of other columns in it, and writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fusetune.backbones.language import Embedded, LanguageModel
from fusetune.modalities.prompt import SOFT
from fusetune.models.family import Family, presence
from fusetune.models.projector import PROJECTORS
from fusetune.models.reader import Encoded
from fusetune.types import Batch, Outputs, Tokens


@dataclass(frozen=True)
class Prompts:
    """What a `Generate` model reads and writes.

    Attributes:
        columns: by task, the column of its prompts.
        soft: by column of prompts, the columns whose vectors stand in them, by their numbers.
        soft_tokens: vectors of each.
        projector: a name of `PROJECTORS`.
        noise: see `PromptConfig.noise`.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    soft: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    soft_tokens: int = 4
    projector: str = "mlp"
    noise: float = 0.0


class Generate(Family):
    """Gives the log-likelihoods of answers by a language model, from which it also writes.

    A row's prompt is embedded by the language model; at the places of soft columns it has the vectors that a projector
    makes of the column's projected tokens. Where a row lacks such a column the prompt closes up.
    """

    name = "generate"

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        routes: Mapping[str, str],
        language: LanguageModel,
        prompts: Prompts,
        *,
        dropout: float = 0.1,
    ) -> None:
        """
        Args:
            encoders: of the soft columns, by key.
            routes: by soft column, the key of its encoder.
            language: the language model.
            prompts: see `Prompts`.
            dropout: on the encoders' outputs, in [0, 1).
        """
        super().__init__({**encoders, language.key: language}, routes, language.dim, dropout=dropout)
        if language.hears:  # by the states of its own encoder, as they are
            self.projections = nn.ModuleList()
        self.prompts, self._key = prompts, language.key
        self.tasks = list(prompts.columns)
        weight = language.model.get_input_embeddings().weight  # type: ignore[operator]
        scale = float(weight.detach()[: 2**14].float().square().mean().sqrt())
        make = PROJECTORS[prompts.projector]
        projected = [] if language.hears else self.columns
        self.projectors = nn.ModuleList(make(self.dim, prompts.soft_tokens, scale=scale) for _ in projected)

    @property
    def language(self) -> LanguageModel:
        """The language model."""
        language = self.encoders[self._key]
        assert isinstance(language, LanguageModel)
        return language

    def after_encoders(self) -> list[nn.Module]:
        """See `Family.after_encoders`."""
        return [self.projections, self.projectors]

    def set_scale(self, column: str, shift: Tensor, scale: Tensor) -> None:
        """See `Reader.set_scale`; what a model of speech hears has no scale."""
        if not self.language.hears:
            super().set_scale(column, shift, scale)

    def combine(self, encoded: Encoded, cells: Mapping[str, Tensor], rows: Tensor) -> Outputs:
        """See `Family.combine`: each soft column's vectors, (batch, soft tokens, dim)."""
        if self.language.hears:
            heard = {name: self._heard(encoded(name), cells.get(name), len(rows)) for name in self.columns}
            return Outputs(logits={}, columns=heard)
        present = presence(self.columns, cells, rows)
        columns = {}
        for column, projector in zip(self.columns, self.projectors, strict=True):
            read = encoded(column)
            scaled = None if read is None else self.standardise(column, read)
            projected = self.project(column, scaled, cells.get(column), rows)
            has = (present[column] & projected.mask.any(1)).unsqueeze(1).expand(-1, self.prompts.soft_tokens)
            columns[column] = Tokens(projector(projected), has)
        return Outputs(logits={}, columns=columns)

    def _heard(self, read: Tokens | None, cells: Tensor | None, rows: int) -> Tokens:
        """Return the states of the rows' sounds, (batch, frames, dim), with silent frames; zeros without a sound."""
        if read is None or cells is None:
            device = next(self.parameters()).device
            return Tokens(torch.zeros(rows, 1, self.dim, device=device), torch.zeros(rows, 1, device=device).bool())
        has = (cells >= 0).unsqueeze(1)  # (batch, 1)
        values = read.values[cells.clamp(min=0)].masked_fill(~has.unsqueeze(-1), 0)
        return Tokens(values, has.expand(-1, values.shape[1]))

    def forward(self, batch: Batch) -> Outputs:
        """Compute, for the rows' targets, `LanguageModel.log_likelihoods` by task.

        They are (batch, answer tokens, 2), or (batch, answers, answer tokens, 2) for targets of several answers a row.
        """
        outputs = super().forward(batch)
        for task in self.tasks:
            if (target := batch.targets.get(task)) is not None:
                prompt, values = self.embedded(task, batch, outputs), target.values
                if values.ndim == 2:
                    outputs.logits[task] = self.language.log_likelihoods(prompt.without_last(_shared(values)), values)
                    continue
                scores = self.language.log_likelihoods(prompt.repeated(values.shape[1]), values.flatten(0, 1))
                outputs.logits[task] = scores.view(*values.shape[:2], *scores.shape[1:])
        return outputs

    def read(self, task: str, batch: Batch) -> Embedded:
        """Return what the language model reads of the rows before it writes a task's answers."""
        return self.embedded(task, batch, super().forward(batch))

    def embedded(self, task: str, batch: Batch, outputs: Outputs) -> Embedded:
        """Return the rows' embedded prompts.

        Args:
            task: whose prompts.
            batch: the rows.
            outputs: with the soft columns' vectors.
        """
        column = self.prompts.columns[task]
        ids, real = self._ids(column, batch)
        values = self.language.embed(ids.clamp(min=0))
        place = (-1 - ids).clamp(min=0)
        soft_columns = () if self.language.hears else self.prompts.soft.get(column, ())
        for number, name in enumerate(soft_columns):
            at = real & (ids < 0) & (place // SOFT == number)  # (batch, tokens)
            soft = outputs.columns[name]
            index = (place % SOFT).clamp(max=soft.values.shape[1] - 1)
            vectors = soft.values.gather(1, index.unsqueeze(-1).expand_as(values))
            values = torch.where(at.unsqueeze(-1), vectors.to(values.dtype), values)
            real = real & ~(at & ~soft.mask[:, :1])
        order = (~real).to(torch.int8).argsort(dim=1, stable=True)
        values = values.gather(1, order.unsqueeze(-1).expand_as(values))
        lengths = real.sum(1)
        values = values[:, : int(lengths.max())]
        if self.training and self.prompts.noise:
            values = values + self._noise(values, lengths)
        heard = next((outputs.columns[name].values for name in self.columns), None) if self.language.hears else None
        return Embedded(values, lengths, heard)

    def _ids(self, column: str, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the rows' prompts, (batch, tokens) int64, and which ids are real; a row without one has an end."""
        cells, tensors = batch.cells[column], batch.inputs.get(column) or {}
        end = self.language.end_ids[0]
        if not tensors:
            ids = torch.full((len(batch), 1), end, device=cells.device)
            return ids, torch.ones_like(ids, dtype=torch.bool)
        ids, real = tensors["input_ids"][cells.clamp(min=0)], tensors["attention_mask"][cells.clamp(min=0)].bool()
        real = real & (cells >= 0).unsqueeze(1)
        none = ~(real & ((ids >= 0) | self._has_vectors(column, ids, batch))).any(1)  # (batch,)
        first = torch.zeros_like(real)
        first[:, 0] = none
        return torch.where(first, end, ids), real | first

    def _has_vectors(self, column: str, ids: Tensor, batch: Batch) -> Tensor:
        """Return which ids are places of columns that the row has, (batch, tokens) bool."""
        has = torch.zeros_like(ids, dtype=torch.bool)
        for number, name in enumerate(self.prompts.soft.get(column, ())):
            if name in batch.cells:
                has |= ((-1 - ids) // SOFT == number) & (ids < 0) & (batch.cells[name] >= 0).unsqueeze(1)
        return has

    def _noise(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Return uniform noise of size noise / √(tokens · dim) (NEFTune: Jain et al. 2023, arXiv 2310.05914)."""
        size = self.prompts.noise / (lengths.float() * self.dim).sqrt()  # (batch,)
        return (torch.rand_like(values) * 2 - 1) * size.view(-1, 1, 1).to(values.dtype)


def _shared(values: Tensor) -> Tensor:
    """Return how many tokens of a target the prompt ends with, too, (batch,): those up to the last one that is read.

    Args:
        values: (batch, answer tokens), −2 − id for tokens that are read and not learned.
    """
    places = torch.arange(1, values.shape[1] + 1, device=values.device)
    return ((values < -1) * places).amax(1)
