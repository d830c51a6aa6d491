"""Linear probes: linear models on frozen features, from which tuning starts and with which it is compared.

Each column's features are standardised on the train rows and divided by the square root of their number, so that a
column with a thousand features weighs as much as one with ten. Then each column is weighted by its own R², so that the
common penalty need not be as strong as the least informative column requires. A missing cell is the mean (zeros), and
each column has one more feature, 1 for a missing cell.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from fusetune.data.examples import Examples
from fusetune.data.storage.mapped import mapped_flatnonzero, mapped_take, mapped_zeros, pieces
from fusetune.models.family import Family
from fusetune.models.understand import Understand
from fusetune.tasks.abilities import Probed
from fusetune.tasks.base import LinearModel
from fusetune.training.probes.cross_validation import MAX_ROWS, NESTED_ROWS, Pool, best_penalty, joined
from fusetune.training.probes.extra_blocks import Key, NgramBlock, PairBlock, compared_columns
from fusetune.training.probes.selection import as_numbers, column_weights
from fusetune.training.probes.selection import select as select_blocks
from fusetune.types import Tokens

Features = Mapping[str, Tokens]
K = TypeVar("K", bound=Hashable)

MIN_SPREAD = 0.1


@dataclass
class SplitRows:
    """The rows of one split that are labelled for a task.

    Attributes:
        examples: prepared rows.
        features: by column with features before training, the frozen encoder's output, (cells, tokens, dim).
        indices: (rows,) the labelled rows' positions in the table.
        truth: (rows, ...) their targets, from `TargetTask.truth`.
    """

    examples: Examples
    features: Features
    indices: np.ndarray
    truth: np.ndarray

    def seen(self, examples: Examples) -> SplitRows:
        """Return the same rows of another view of the examples."""
        return replace(self, examples=examples)

    @classmethod
    def of(cls, task: str, examples: Examples, features: Features) -> SplitRows:
        """Return the rows of some examples that are labelled for a task."""
        indices = examples.labelled(task)
        truth = examples.truth(task, indices)
        return cls(examples, features, indices, truth)


def learn_scale(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return shift and scale, (dim,) each, that standardise (rows, dim) features: (values - shift) * scale.

    The scale is limited for a feature whose standard deviation is below `MIN_SPREAD` times the mean of all: at unit
    variance, dropout noise or an outlier in it would dominate the other features. A constant feature gets the scale 0.
    """
    if not len(values):
        return torch.zeros(values.shape[1]), torch.zeros(values.shape[1])
    mean, std = values.mean(0), values.std(0, unbiased=False)
    varies = std > 1e-6 * torch.maximum(values.amax(0), -values.amin(0))
    floor = (MIN_SPREAD * std.mean()).clamp(min=torch.finfo(std.dtype).tiny)
    return mean, torch.where(varies, 1 / std.clamp(min=floor), torch.zeros_like(std))


def column_scales(examples: Examples, features: Features) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the result of `learn_scale` for each column's features, over the used rows that have the column.

    For a column that a task reads token by token, the values are its tokens, not the means of the cells.
    """
    scales, by_token = {}, {task.reads for task in examples.tasks.values()}
    for name, table in features.items():
        if name in by_token:
            scales[name] = learn_scale(_token_sample(examples, name, table))
            continue
        codes = mapped_take(examples.columns[name].codes, examples.used)
        scales[name] = learn_scale(vectors(table, mapped_take(codes, mapped_flatnonzero(codes >= 0))))
    return scales


def _token_sample(examples: Examples, name: str, table: Tokens) -> Tensor:
    """Return the real tokens of at most `MAX_ROWS` evenly spaced used rows, (tokens, dim)."""
    codes = mapped_take(examples.columns[name].codes, examples.used)
    codes = codes[codes >= 0]
    chosen = codes[np.unique(np.linspace(0, len(codes) - 1, min(len(codes), MAX_ROWS)).astype(np.int64))]
    cells = torch.from_numpy(np.unique(chosen).astype(np.int64))
    return torch.cat([table.values[cell][table.mask[cell]] for cell in cells])


def vectors(table: Tokens, cells: np.ndarray) -> Tensor:
    """Return the mean of the real tokens of some cells, (cells, dim), memory-mapped if they are many.

    Args:
        table: the tokens of a column's distinct cells.
        cells: (cells,) indices of distinct cells.
    """
    means = mapped_zeros((len(cells), table.values.shape[2]))
    for piece in pieces(len(cells)):
        chosen = torch.from_numpy(cells[piece].astype(np.int64))
        means[piece] = Tokens(table.values[chosen], table.mask[chosen]).mean().numpy()
    return torch.from_numpy(means)


class StartingPoint(Protocol):
    """A linear model that a task starts from: `Probe`, or `TokenProbe` for a task that answers token by token.

    Attributes:
        scales: by column, the shift and scale that standardise its features.
        extras: the blocks besides the columns' own.
    """

    scales: dict[str, tuple[Tensor, Tensor]]
    extras: list[NgramBlock | PairBlock]

    def scores(self, split: SplitRows) -> np.ndarray:
        """Return the answers for a split's rows."""
        ...

    def install(self, model: Family, task: str) -> None:
        """Initialise a model so that its logits for a task are those of this linear model."""
        ...


class Probe:
    """A linear model on frozen features of columns, on n-grams of texts and on comparisons of columns.

    Args:
        scales: by column, the shift and scale that standardise its features.
        weights: by block, the factor of its features; 0 for a block that is left out.
        linear: fitted on the concatenation of the weighted blocks, without those that are left out.
        extras: the blocks besides the columns' own.
    """

    def __init__(
        self,
        scales: Mapping[str, tuple[Tensor, Tensor]],
        weights: Mapping[Key, float],
        linear: LinearModel,
        extras: Sequence[NgramBlock | PairBlock] = (),
    ) -> None:
        self.scales, self.weights, self.linear, self.extras = dict(scales), dict(weights), linear, list(extras)

    @classmethod
    def fit(
        cls, task: Probed, train: SplitRows, val: SplitRows, columns: Collection[str], *, select: bool = False
    ) -> Probe:
        """Fit a probe on train rows.

        The penalty is chosen on validation rows. If `select` is True and there are fewer train and validation rows than
        `cross_validation.MAX_ROWS`, penalty, blocks and weights are chosen by cross-validation over both, and the
        linear model with these choices is fitted on the train rows.

        Args:
            task: fitted.
            train, val: the labelled rows.
            columns: the columns, all with features.
            select: also fit a probe with n-grams and comparisons, and without blocks that do not help (see
                `fusetune.training.probes.selection`); return it if its score on held-out rows is no lower.
        """
        small = select and len(train.indices) + len(val.indices) < MAX_ROWS
        pool = Pool.of([train, val] if small else [train])
        plain, before = cls._fit(task, pool, val, columns, select=False)
        if not select:
            return plain
        selected, after = cls._fit(task, pool, val, columns, select=True)
        if math.isnan(before) or (not selected.extras and all(selected.weights.values())):
            return plain
        return selected if after >= before else plain

    @classmethod
    def _fit(
        cls, task: Probed, pool: Pool[SplitRows], val: SplitRows, columns: Collection[str], *, select: bool
    ) -> tuple[Probe, float]:
        """Return the probe with or without selection, and its score on held-out rows (NaN if there are none)."""
        train = pool.splits[0]
        scales = column_scales(train.examples, {name: train.features[name] for name in columns})
        probe = cls(scales, dict.fromkeys(scales, 1.0), _NONE)
        if select:
            probe.extras = _extras(train, {name: block(train, name, scale) for name, scale in scales.items()})
        parts = [probe._blocks(split) for split in pool.splits]
        blocks = {key: joined([part[key] for part in parts]) for key in parts[0]}

        def choose(rows: slice | np.ndarray) -> dict[Key, float]:
            some, truth = {key: values[rows] for key, values in blocks.items()}, pool.truth[rows]
            together = None if pool.held_together is None else pool.held_together[rows]
            weights = column_weights(some, truth, len(task.labels), together)
            return select_blocks(some, weights, as_numbers(truth, len(task.labels)), together) if select else weights

        probe.weights = choose(slice(None))
        probe.extras = [extra for extra in probe.extras if probe.weights[extra.key]]
        weights = [mapped_take(split.examples.weights, split.indices) for split in pool.splits]
        learned = side_by_side({key: values[: len(train.indices)] for key, values in blocks.items()}, probe.weights)
        if len(pool.splits) > 1:

            def features(rows: np.ndarray) -> np.ndarray:
                nested = len(pool.truth) < NESTED_ROWS
                return side_by_side(blocks, choose(rows) if nested else probe.weights)

            index, value = best_penalty(task, features, pool.truth, joined(weights), pool.folds)
            probe.linear = task.linear_path(learned, train.truth, weights[0]).at(index)
            return probe, value
        held = side_by_side(probe._blocks(val), probe.weights)
        probe.linear = task.linear(learned, train.truth, held, val.truth, weights[0])
        sign = 1.0 if task.main.greater_is_better else -1.0
        return probe, sign * _main(task, probe.scores(val), val) if len(val.indices) else math.nan

    def _blocks(self, split: SplitRows) -> dict[Key, np.ndarray]:
        """Return the blocks that the linear model reads, by key."""
        own = {name: block(split, name, scale) for name, scale in self.scales.items()}
        blocks: dict[Key, np.ndarray] = {name: values for name, values in own.items() if self.weights[name]}
        return {**blocks, **{extra.key: _values(extra, split, own) for extra in self.extras}}

    def scores(self, split: SplitRows) -> np.ndarray:
        """Return the task's answers for a split's rows."""
        return self.linear.scores(side_by_side(self._blocks(split), self.weights))

    def parts(self) -> tuple[dict[Key, np.ndarray], np.ndarray]:
        """Return the weight of every block's unweighted features, (features, logits), and the bias, (logits,).

        A block that is left out has zeros.
        """
        weight, bias = self.linear.coefficients()
        widths: dict[Key, int] = {name: len(shift) + 1 for name, (shift, _) in self.scales.items()}
        for extra in self.extras:
            widths[extra.key] = extra.basis.shape[1] if isinstance(extra, NgramBlock) else len(extra.shift)
        parts, start = {}, 0
        for key, width in widths.items():
            if self.weights[key]:
                parts[key] = weight[start : start + width] * self.weights[key]
                start += width
            else:
                parts[key] = np.zeros((width, weight.shape[1]), dtype=weight.dtype)
        return parts, bias

    def install(self, model: Family, task: str) -> None:
        """Initialise a model so that its logits for a task are those of this probe."""
        assert isinstance(model, Understand), "a family with a linear part"
        assert list(self.scales) == model.linear_columns, "the probe and the model's linear part have the same columns"
        parts, bias = self.parts()
        weight = np.concatenate([parts[name] for name in self.scales])
        model.start_from(task, torch.from_numpy(weight).float(), torch.from_numpy(bias).float())
        for extra in self.extras:
            index, part = model.tasks.index(task), parts[extra.key]
            if isinstance(extra, NgramBlock):
                assert model.ngrams is not None
                model.ngrams.start_from(extra.source, index, torch.from_numpy(extra.of_ngrams(part)).float())
            else:
                assert model.pairs is not None
                pair, scale = (extra.first, extra.second), (extra.shift, extra.scale)
                model.pairs.start_from(pair, index, torch.from_numpy(part).float(), scale)


class _Unfitted(LinearModel):
    """A placeholder for the linear model until it is fitted."""

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Refuse."""
        raise AssertionError("the probe is fitted first")

    def coefficients(self) -> tuple[np.ndarray, np.ndarray]:
        """Refuse."""
        raise AssertionError("the probe is fitted first")


_NONE = _Unfitted()


def _main(task: Probed, scores: np.ndarray, split: SplitRows) -> float:
    """Return the task's main metric on a split's rows."""
    return task.main_value(task.measured(scores, split.truth), split.truth)


def _extras(train: SplitRows, own: Mapping[str, np.ndarray]) -> list[NgramBlock | PairBlock]:
    """Return the blocks that are tried besides the columns' own."""
    sources = [(name, part) for name in own for part in train.examples.columns[name].modality.ngrams]
    ngrams = [NgramBlock.fit(source, train.examples, train.indices) for source in sources]
    pairs = compared_columns(train.examples, list(own))
    return [
        *(ngram_block for ngram_block in ngrams if ngram_block is not None),
        *(PairBlock.fit(first, second, own, learn_scale) for first, second in pairs),
    ]


def _values(extra: NgramBlock | PairBlock, split: SplitRows, own: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return a further block of the split's rows, given the columns' own blocks."""
    return extra.values(split.examples, split.indices) if isinstance(extra, NgramBlock) else extra.values(own)


def install_probes(model: Family, probes: Mapping[str, StartingPoint]) -> None:
    """Initialise every task's logits from its probe; the model's linear part reads the blocks of all probes.

    Args:
        model: a freshly built model.
        probes: by task.
    """
    extras = [extra for probe in probes.values() for extra in probe.extras]
    ngrams = {extra.source: len(extra.basis) for extra in extras if isinstance(extra, NgramBlock)}
    pairs = dict.fromkeys((extra.first, extra.second) for extra in extras if isinstance(extra, PairBlock))
    if isinstance(model, Understand) and extras:
        model.extend(ngrams, list(pairs))
    for name, probe in probes.items():
        probe.install(model, name)


def block(split: SplitRows, name: str, scale: tuple[Tensor, Tensor]) -> np.ndarray:
    """Return a column's features for the linear model, (rows, features + 1) float32; the last is 1 if it is missing."""
    shift, factor = scale
    codes = mapped_take(split.examples.columns[name].codes, split.indices)
    matrix = mapped_zeros((len(codes), len(shift) + 1))
    matrix[:, -1] = codes < 0
    for piece in pieces(len(codes)):
        present = np.flatnonzero(codes[piece] >= 0)
        values = vectors(split.features[name], codes[piece][present])
        matrix[piece][present, :-1] = ((values - shift) * factor / len(shift) ** 0.5).numpy()
    return matrix


def side_by_side(blocks: Mapping[K, np.ndarray], weights: Mapping[K, float]) -> np.ndarray:
    """Return the concatenation of the blocks with a weight above 0, each times its weight, (rows, features) float32."""
    blocks = {key: values for key, values in blocks.items() if weights[key]}
    widths = [values.shape[1] for values in blocks.values()]
    matrix = mapped_zeros((len(next(iter(blocks.values()))), sum(widths)))
    for (name, values), end, width in zip(blocks.items(), np.cumsum(widths), widths, strict=True):
        np.multiply(values, np.float32(weights[name]), out=matrix[:, end - width : end])
    return matrix
