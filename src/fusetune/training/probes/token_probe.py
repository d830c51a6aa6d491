"""Linear models on the frozen features of tokens: what a task that answers token by token starts from.

logits_t = W [x_t; absent] + Σ over the other columns W_c [v_c; absent] + b, with x_t a token's and v_c a column's
standardised features over the square root of their number, as in `fusetune.training.probes.probe`. W is fitted by the
task's own loss plus an L2 penalty, which validation rows choose.

Legend: rows, tokens = the most tokens of a row, k = logits of a token.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fusetune.inference.answers import answers_of
from fusetune.models.family import Family
from fusetune.models.understand import Understand
from fusetune.tasks.abilities import Probed
from fusetune.tasks.base import TargetTask
from fusetune.tasks.token_head import with_zero_rows
from fusetune.training.probes.extra_blocks import NgramBlock, PairBlock
from fusetune.training.probes.probe import Probe, SplitRows, StartingPoint, block, column_scales
from fusetune.types import Target

PENALTIES = (1e-3, 1e-4, 1e-5)
"""L2 penalties on the mean loss that are tried in turn, until the score on validation rows falls."""
STEPS = 60
"""The most iterations of L-BFGS for each penalty; it starts from the solution for the one before."""
MAX_TOKENS = 100_000
"""The model is fitted on evenly spaced rows with about so many tokens at most."""
LEAST_GAIN = 1e-6
"""L-BFGS stops when an iteration lowers the mean loss by less."""
ROWS = 128
"""Rows whose logits are padded together."""


@dataclass
class _Rows:
    """Some rows' inputs of the linear model.

    Attributes:
        tokens: (tokens of all rows, features) of the text, row by row.
        counts: (rows,) each row's tokens.
        others: (rows, features) of the other columns.
    """

    tokens: Tensor
    counts: np.ndarray
    others: Tensor

    def logits(self, weight: Tensor, other_weight: Tensor, bias: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield some rows at a time and their logits, (rows, tokens, k), 0 where a row has no token."""
        ends = np.cumsum(self.counts)
        for first in range(0, len(self.counts), ROWS):
            rows = slice(first, min(first + ROWS, len(self.counts)))
            start = int(ends[first - 1]) if first else 0
            flat = self.tokens[start : int(ends[rows.stop - 1])] @ weight + bias
            if self.others.shape[1]:
                which = torch.from_numpy(np.repeat(np.arange(rows.stop - first), self.counts[rows]))
                flat = flat + (self.others[rows] @ other_weight)[which]
            counts = torch.from_numpy(self.counts[rows])
            real = torch.arange(int(counts.max())) < counts.unsqueeze(1)
            # The gradient of pad_sequence holds all rows' logits once for each row.
            padded = flat.new_zeros(real.numel(), flat.shape[1])
            padded = padded.index_copy(0, real.flatten().nonzero().squeeze(1), flat)
            yield rows, padded.view(*real.shape, -1)


class TokenProbe:
    """A linear model on the frozen features of a text's tokens and of the other columns."""

    def __init__(
        self, task: TargetTask, scales: Mapping[str, tuple[Tensor, Tensor]], weight: Tensor, bias: Tensor
    ) -> None:
        """
        Args:
            task: fitted; answers token by token.
            scales: per column, the shift and scale that standardise its features.
            weight: (features, k), the columns' features one after another.
            bias: (k,).
        """
        assert task.reads is not None
        self.task, self.reads, self.scales, self.weight, self.bias = task, task.reads, dict(scales), weight, bias
        self.extras: list[NgramBlock | PairBlock] = []

    @classmethod
    def fit(cls, task: TargetTask, train: SplitRows, val: SplitRows, columns: Collection[str]) -> TokenProbe:
        """Fit on train rows; the penalty with the best main metric on validation rows is chosen.

        Args:
            task: fitted; answers token by token.
            train, val: labelled rows.
            columns: that have features, the text among them.
        """
        assert task.reads is not None
        scales = column_scales(train.examples, {name: train.features[name] for name in columns})
        size = len(task.build_head(1)(torch.zeros(1, 1, 1))[0, 0])
        probe = cls(task, scales, torch.zeros(sum(len(s) + 1 for s, _ in scales.values()), size), torch.zeros(size))
        name = next(name for name, one in train.examples.tasks.items() if one is task)
        used = _evenly(train, task.reads)
        rows, target = probe._rows(used), used.examples.encode(name, used.indices)
        weights = torch.from_numpy(used.examples.weights[used.indices])
        sign = 1.0 if task.main.greater_is_better else -1.0
        best, chosen = -np.inf, (probe.weight, probe.bias)
        for penalty in PENALTIES:
            probe._solve(rows, target, weights, penalty)
            score = sign * task.evaluate(probe.scores(val), val.truth)[task.main.name] if len(val.indices) else 0.0
            if score < best:
                break
            best, chosen = score, (probe.weight.clone(), probe.bias.clone())
        probe.weight, probe.bias = chosen
        return probe

    def scores(self, split: SplitRows) -> np.ndarray:
        """Return the task's answers for a split's rows."""
        parts = []
        for start in range(0, len(split.indices), ROWS):
            some = split.indices[start : start + ROWS]
            rows = self._rows(SplitRows(split.examples, split.features, some, split.truth[start : start + ROWS]))
            with torch.no_grad():
                _, logits = next(rows.logits(*self._parts()))
                logits = with_zero_rows(logits, self.task.num_shared)
            parts.append(answers_of(split.examples, self.task, logits, some))
        return np.concatenate(parts) if parts else self.task.constant(split.truth, 0)

    def install(self, model: Family, task: str) -> None:
        """Make a model's output for a task this linear model, to be tuned from there."""
        assert isinstance(model, Understand), "a family with a linear part"
        assert list(self.scales) == model.linear_columns, "the probe and the model's linear part see the same columns"
        model.start_from(task, self.weight, self.bias)

    def _places(self) -> dict[str, slice]:
        """Where each column's features lie in the weight."""
        ends = np.cumsum([len(shift) + 1 for shift, _ in self.scales.values()])
        starts = [0, *ends[:-1].tolist()]
        return {name: slice(start, int(end)) for name, start, end in zip(self.scales, starts, ends, strict=True)}

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the weight of the tokens' features, that of the other columns' features, and the bias."""
        places = self._places()
        text = places.pop(self.reads)
        others = [self.weight[place] for place in places.values()]
        return (
            self.weight[text.start : text.stop - 1],
            torch.cat(others) if others else self.weight[:0],
            self.bias,
        )

    def _rows(self, split: SplitRows) -> _Rows:
        shift, scale = self.scales[self.reads]
        features, codes = split.features[self.reads], split.examples.columns[self.reads].codes[split.indices]
        there = torch.from_numpy(codes >= 0)
        cells = torch.from_numpy(np.maximum(codes, 0).astype(np.int64))
        mask = features.mask[cells] & there.unsqueeze(1)
        values = torch.cat([features.values[cell][real] for cell, real in zip(cells, mask, strict=True)])
        tokens = (values - shift) * scale / len(shift) ** 0.5
        blocks = [block(split, name, self.scales[name]) for name in self.scales if name != self.reads]
        others = np.concatenate(blocks, axis=1) if blocks else np.zeros((len(codes), 0), np.float32)
        return _Rows(tokens, mask.sum(1).numpy(), torch.from_numpy(others))

    def _solve(self, rows: _Rows, target: Target, weights: Tensor, penalty: float) -> None:
        """Minimise the task's mean loss plus penalty / 2 · |weight|², starting from the weight and bias so far."""
        weight, bias = self.weight.clone().requires_grad_(), self.bias.clone().requires_grad_()
        solver = torch.optim.LBFGS(
            [weight, bias],
            max_iter=STEPS,
            history_size=10,
            tolerance_change=LEAST_GAIN,
            line_search_fn="strong_wolfe",
        )
        total = target.counts(weights).sum().clamp(min=1e-9)

        def closure() -> Tensor:
            solver.zero_grad()
            self.weight, self.bias = weight, bias
            losses = 0.0
            for part, logits in rows.logits(*self._parts()):
                chunk = target.take(torch.arange(part.start, part.stop))
                chunk.values = chunk.values[:, : logits.shape[1]] if chunk.values.ndim > 1 else chunk.values
                logits = with_zero_rows(logits, self.task.num_shared)
                share = (self.task.terms(logits, chunk) * weights[part] * chunk.labelled).sum() / total
                share.backward()  # type: ignore[no-untyped-call]
                losses += float(share.detach())
            decay = penalty / 2 * weight.square().sum()
            decay.backward()  # type: ignore[no-untyped-call]
            return decay.detach() + losses

        with torch.enable_grad():
            solver.step(closure)  # type: ignore[no-untyped-call]
        self.weight, self.bias = weight.detach(), bias.detach()


def _evenly(train: SplitRows, reads: str) -> SplitRows:
    """Return evenly spaced rows with about `MAX_TOKENS` tokens at most."""
    codes = train.examples.columns[reads].codes[train.indices]
    counts = train.features[reads].mask.sum(1).numpy()[np.maximum(codes, 0)]
    share = min(1.0, MAX_TOKENS / max(int(counts.sum()), 1))
    chosen = np.unique(np.linspace(0, len(codes) - 1, max(int(len(codes) * share), 1)).astype(np.int64))
    return SplitRows(train.examples, train.features, train.indices[chosen], train.truth[chosen])


def fit_probe(
    task: TargetTask, train: SplitRows, val: SplitRows, columns: Collection[str], *, select: bool
) -> StartingPoint | None:
    """Return the linear model on some columns' frozen features that a task starts from; None for a task without one.

    Args:
        task: fitted.
        train, val: labelled rows.
        columns: that have features.
        select: see `Probe.fit`.
    """
    if task.reads is not None:
        return TokenProbe.fit(task, train, val, columns) if task.reads in columns else None
    return Probe.fit(task, train, val, columns, select=select) if isinstance(task, Probed) and columns else None
