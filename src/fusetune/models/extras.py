"""What the linear part reads besides each column's vector: n-grams of texts, and how two columns' vectors compare.

Both add to the logits of every task. They start as the linear probe found them (`fusetune.training.probes.probe`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusetune.types import Batch, Outputs

NgramSource = tuple[str, str]
"""A text column, and the part of its n-grams: "tokens" or "characters"."""
NGRAM_DROPOUT = 0.5
"""Share of train rows whose n-grams are hidden: a linear model of n-grams knows its train rows nearly by heart, and
beside it the encoders would have nothing left to learn."""


class NgramLinear(nn.Module):
    """Logits from the n-grams of text columns, a fixed sparse linear map: what the probe found is not tuned further."""

    def __init__(self, widths: Mapping[NgramSource, int], sizes: Sequence[int], *, hides: bool = True) -> None:
        """
        Args:
            widths: per text column and part of its n-grams, how many there are.
            sizes: per task, how many logits.
            hides: whether n-grams are hidden from `NGRAM_DROPOUT` of the rows in training.
        """
        super().__init__()
        self.sources, self.sizes = list(widths), list(sizes)
        for place, width in enumerate(widths.values()):
            self.register_buffer(f"weight_{place}", torch.zeros(width, sum(sizes)))
        self.hidden = nn.Dropout(NGRAM_DROPOUT if hides else 0.0)

    @torch.no_grad()
    def start_from(self, source: NgramSource, task: int, weight: Tensor) -> None:
        """Take a task's weight of a column's n-grams of a part, (ngrams, logits)."""
        start = sum(self.sizes[:task])
        buffer = self.get_buffer(f"weight_{self.sources.index(source)}")
        buffer[:, start : start + self.sizes[task]] = weight.to(buffer)

    def forward(self, batch: Batch) -> list[Tensor]:
        """Per task, (batch, logits); zeros where a row lacks the columns."""
        like = self.get_buffer("weight_0")
        logits = like.new_zeros(batch.rows.shape[0], sum(self.sizes))
        for place, (column, part) in enumerate(self.sources):
            if f"{part}_ids" not in batch.ngrams.get(column, {}) or column not in batch.cells:
                continue
            ids, values = (batch.ngrams[column][f"{part}_{what}"] for what in ("ids", "values"))
            values = values.masked_fill((batch.cells[column] < 0).unsqueeze(1), 0).to(like)
            weight = self.get_buffer(f"weight_{place}")
            logits = logits + _weighted_sum(ids, weight, values)
        seen = self.hidden(torch.ones_like(logits[:, :1])) > 0  # (batch, 1)
        return list((logits * seen).split(self.sizes, dim=1))

    def add_to(self, outputs: Outputs, batch: Batch, *, passed_over: Collection[str] = ()) -> Outputs:
        """The outputs with these logits added, the tasks in order, but for some tasks."""
        parts = self(batch)
        logits = {
            task: values if task in passed_over else values + part.view_as(values)
            for (task, values), part in zip(outputs.logits.items(), parts, strict=True)
        }
        return Outputs(logits=logits, pooled=outputs.pooled, columns=outputs.columns)


def _weighted_sum(ids: Tensor, weight: Tensor, values: Tensor) -> Tensor:
    """Return the sums of rows of `weight`, each times its value: (batch, most) to (batch, logits)."""
    if torch.compiler.is_exporting():  # exported graphs have no operator of sparse sums
        return (F.embedding(ids, weight) * values.unsqueeze(-1)).sum(1)
    return F.embedding_bag(ids, weight, per_sample_weights=values, mode="sum")


class PairLinear(nn.Module):
    """Logits from |u − v| and u ∘ v of pairs of columns that one encoder reads.

    Reimers and Gurevych 2019, "Sentence-BERT", arXiv 1908.10084. u and v are the columns' standardised vectors; a row
    that lacks either has zeros.
    """

    def __init__(self, pairs: Sequence[tuple[str, str]], dims: Sequence[int], sizes: Sequence[int]) -> None:
        """
        Args:
            pairs: the columns.
            dims: per pair, the features of a vector.
            sizes: per task, how many logits.
        """
        super().__init__()
        self.pairs, self.dims = list(pairs), list(dims)
        for place, dim in enumerate(dims):
            self.register_buffer(f"shift_{place}", torch.zeros(2 * dim))
            self.register_buffer(f"scale_{place}", torch.ones(2 * dim))
        self.linear = nn.ModuleList(nn.Linear(2 * sum(dims), size, bias=False) for size in sizes)
        for layer in self.linear:
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]

    @torch.no_grad()
    def start_from(self, pair: tuple[str, str], task: int, weight: Tensor, scale: tuple[Tensor, Tensor]) -> None:
        """Take a task's weight of a pair, (2 · dim, logits), and how the pair's features are standardised."""
        layer, place = self.linear[task], self.pairs.index(pair)
        assert isinstance(layer, nn.Linear)
        start, width = 2 * sum(self.dims[:place]), 2 * self.dims[place]
        layer.weight[:, start : start + width] = weight.T.to(layer.weight)
        self.get_buffer(f"shift_{place}").copy_(scale[0])
        self.get_buffer(f"scale_{place}").copy_(scale[1])

    def forward(self, vectors: Mapping[str, tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Per task, (batch, logits).

        Args:
            vectors: per column, its rows' standardised vectors, (batch, dim), and (batch, 1) bool, which are there.
        """
        parts = []
        for place, (first, second) in enumerate(self.pairs):
            (left, here), (right, there) = vectors[first], vectors[second]
            shift, scale = self.get_buffer(f"shift_{place}"), self.get_buffer(f"scale_{place}")
            values = (compared(left, right) - shift) * scale / len(shift) ** 0.5
            parts.append(values.masked_fill(~(here & there), 0))
        every = torch.cat(parts, dim=1)
        return [layer(every) for layer in self.linear]


def compared(left: Tensor, right: Tensor) -> Tensor:
    """|u − v| and u ∘ v side by side, (rows, 2 · dim)."""
    return torch.cat([(left - right).abs(), left * right], dim=1)
