"""Contrastive learning between the columns of a row, with the other rows' cells as negatives."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from fusetune.objectives.base import BatchObjective, weighted_mean
from fusetune.objectives.contrastive_forms import FORMS, alignment, has_related, uniformity
from fusetune.objectives.contrastive_parts import (
    DIM,
    PROJECTIONS,
    Mining,
    check_choice,
    check_dims,
    check_number,
    collapse_warnings,
    projection_head,
    row_codes,
    unit,
)
from fusetune.objectives.contrastive_rows import PairRows, RelatedPairs, unrelated
from fusetune.objectives.contrastive_settings import (
    ALIGN_UNIFORM,
    MINE_MARGIN,
    TRIPLET,
    resolve_columns,
    resolve_form,
    resolve_mining,
    resolve_negatives,
    resolve_scale,
    resolve_within,
)
from fusetune.objectives.gather import COUNTS
from fusetune.types import Batch, Outputs

if TYPE_CHECKING:
    from fusetune.data.examples import Examples
    from fusetune.models.family import Family
    from fusetune.tasks.base import TargetTask

VECTOR, CODE, GROUP, WEIGHT = "vector/", "code/", "group", "weight"
NEGATIVE, NEGATIVE_CODE = "negative/", "negative code/"


class ContrastiveObjective(BatchObjective):
    """Pull the columns of a row together and push those of different rows apart.

    L = λ L_s + (1 − λ) L_d. With x_i and y_i the unit vectors of two columns of row i, and s_ij = x_i·y_j, by `form`:

    - infonce: L_s = −mean s_ii/τ, L_d = mean log Σ_j exp(s_ij/τ). λ = ½: ½ CLIP (arXiv 2103.00020).
    - decoupled: the same with the sum over j ≠ i. λ = ½ without `within`: ½ DCL (arXiv 2110.06848).
    - sigmoid: L_s = mean softplus(−(t s_ii + b)), L_d = (1/B) Σ_{i≠j} softplus(t s_ij + b). λ = ½: ½ SigLIP (arXiv
      2303.15343).
    - supcon: vectors of both columns are candidates; those of the same row, of the same group and of equal cells are
      the positives. λ = ½: ½ SupCon (arXiv 2004.11362).
    - triplet: with the cosine distances d_p = 1 − s_ii and d_n of one negative, L_s = mean d_p and L_d = mean (m − d_n)
      over the anchors with d_p − d_n + m > 0, divided by the number of all anchors. λ = ½: ½ triplet loss (arXiv
      1503.03832).
    - align_uniform: L_s = E‖x − y‖², L_d = ½ [log E exp(−2 ‖x − x'‖²) + the same for y] (arXiv 2005.10242).

    The loss is the mean over both directions and over all pairs of columns, each pair weighted by the rows that have
    both of its columns.

    Args:
        model: see `Objective`.
        tasks: see `Objective`.
        weight: factor of the loss in the total, above 0.
        form: infonce, decoupled, sigmoid, supcon, triplet or align_uniform.
        lam: λ in [0, 1], the weight of L_s; in a config also `lambda`.
        columns: the columns to compare. By default, with a task, the columns with a text, image or audio encoder if
            there are two or more; otherwise all columns, or both sides.
        anchor: a column to compare each of the others with; by default every pair of columns is compared.
        within: whether cells of other rows in the anchor's own column are negatives too; for decoupled (default true),
            infonce and triplet (default false) only.
        temperature: initial τ, in [0.01, 1]; 0.07 by default, for sigmoid 0.1 (t = 10).
        learn_temperature: whether τ is trained.
        bias: initial b of sigmoid, -10 by default; with small batches a value near -ln(rows) learns faster.
        margin: m of triplet, above 0 and at most 2; 0.2 by default.
        triplets: the negative of a triplet: semihard, the nearest of those that are farther away than the positive, or
            hard, the nearest; semihard by default.
        mine: how many documents of other train rows are found for each row that are near its query and no right answers
            to it; they are told apart from the queries as named negatives are. 0 by default.
        mine_every: epochs after which they are found anew, by the model as it is then; 1 by default.
        mine_margin: documents that are more similar to the query than this share of its right answer's similarity are
            left out, as they may be right, too; null leaves out none. 0.95 by default.
        projection: the head of each column during training: linear, mlp or none. By default linear with a task; none
            without one, because search reads the model's own projections.
        dim: features of the heads' outputs.
        dims: widths below that of the vectors, such as [128, 64]. The loss is the mean of that of whole vectors and of
            those cut to their first numbers, so that cut vectors can be compared, too (Kusupati et al. 2022,
            "Matryoshka Representation Learning", arXiv 2205.13147).

    Raises:
        ConfigError: a setting is unknown or out of range, or fewer than two columns remain.

    Inputs: each column's projected tokens, (batch, tokens, dim), averaged over its real tokens, mapped by the column's
    head and scaled to unit length.

    Requires: rows that have two of the columns; a row does not enter the pairs whose columns it lacks. Rows of one
    group, and rows with equal cells in either column, are never negatives of each other, nor are a query and a document
    that belong together in another train row. A row without negatives does not count. Documents that the table names as
    negatives (the setting `negative`) or that are mined are further candidates of every query in infonce, decoupled and
    triplet, except of a query to which they are right answers.

    Relations: `supcon` compares rows by their labels; this objective compares the columns of a row.

    Figures: L_s, L_d; alignment and uniformity; the modality gap ‖mean x − mean y‖ (Liang et al. 2022, arXiv
    2203.02053); the temperature; with `mine`, how many negatives a row has, and how many documents were too near.

    Example:
        >>> from fusetune.testing.objectives import make_parts
        >>> model, tasks, examples = make_parts()
        >>> batch, objective = examples.batch(range(12)), ContrastiveObjective(model, tasks, columns=["x", "z"])
        >>> list(objective(model, batch, model(batch)))
        ['contrastive']
        >>> sorted(objective.figures)
        ['L_d', 'L_s', 'alignment', 'gap', 'temperature', 'uniformity']

    Reference: Radford et al. 2021, "CLIP" (arXiv 2103.00020), and the papers at the forms.
    """

    name = "contrastive"
    standalone = True
    needs_target = False

    def __init__(
        self,
        model: Family,
        tasks: Mapping[str, TargetTask],
        *,
        weight: float = 1.0,
        form: str = "decoupled",
        lam: float = 0.5,
        columns: Sequence[str] | str | None = None,
        anchor: str | None = None,
        within: bool | None = None,
        temperature: float | None = None,
        learn_temperature: bool = True,
        bias: float | None = None,
        margin: Annotated[float, Field(gt=0, le=2)] | None = None,
        triplets: str | None = None,
        mine: Annotated[int, Field(ge=0, le=16)] = 0,
        mine_every: Annotated[int, Field(ge=1)] = 1,
        mine_margin: Annotated[float, Field(gt=0, le=1)] | None = MINE_MARGIN,
        projection: str | None = None,
        dim: int = DIM,
        dims: Sequence[int] = (),
    ) -> None:
        super().__init__(model, tasks, weight=weight)
        where = f"objectives.{self.name}"
        self.form = check_choice(f"{where}.form", form, [*FORMS, TRIPLET, ALIGN_UNIFORM])
        self.lam = check_number(f"{where}.lambda", lam, 0, 1)
        self.within = resolve_within(where, self.form, within)
        self.compute = resolve_form(where, self.form, margin, triplets)
        self.related: dict[tuple[str, str], RelatedPairs] = {}
        headed = any(task.learned_by is None for task in tasks.values())  # a head reads the columns besides
        self.columns = resolve_columns(where, model, columns, anchor, headed=headed)
        self.parts = {name: model.compared[name] for name in self.columns}
        self.pairs = [
            (first, second)
            for first, second in itertools.combinations(self.columns, 2)
            if anchor is None or anchor in (first, second)
        ]
        kind = projection if projection is not None else "linear" if headed else "none"
        check_choice(f"{where}.projection", kind, PROJECTIONS)
        size = int(check_number(f"{where}.dim", dim, 1, math.inf))
        # A list, not a dict: the names of columns are the user's and may not be valid module names.
        self.heads = nn.ModuleList(projection_head(kind, model.dim, size) for _ in self.columns)
        self.negatives = resolve_negatives(where, self.form, model, self.columns)
        self.mining = resolve_mining(where, Mining(mine, mine_every, mine_margin), self.negatives)
        self.mined_figures: dict[str, Tensor] = {}
        against = {negative.side for negative in self.negatives.values()}  # the second of a pair
        self.pairs = [(second, first) if first in against else (first, second) for first, second in self.pairs]
        self.scale, self.bias = resolve_scale(where, self.form, temperature, bias, learned=learn_temperature)
        self.dims = check_dims(f"{where}.dims", dims, model.dim, projected=kind != "none")
        self.warnings += collapse_warnings(where, self.form, self.lam, within=self.within)
        if kind != "none" and not headed:
            self.warnings.append(
                f"{where}: search reads the vectors before the {kind} projection; take projection=none"
            )

    def fit(self, train: Examples) -> None:
        """Learn which pairs of cells are right answers to each other; see `Objective.fit`."""
        for first, second in self.pairs:
            codes = [train.codes(self.parts[name]) for name in (first, second)]
            named = any(negative.side == second for negative in self.negatives.values())
            self.related[first, second] = RelatedPairs(*(row_codes(part) for part in codes), every=named)

    def vectors(self, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        """Return unit vectors, (batch, dim), and codes, (batch,), of each column; groups and weights, (batch,)."""
        nothing = torch.full_like(batch.rows, -1)
        tensors = {GROUP: nothing if batch.groups is None else batch.groups, WEIGHT: batch.weights}
        for column, head in zip(self.columns, self.heads, strict=True):
            tokens = outputs.compared(column)
            tensors[VECTOR + column] = unit(head(tokens.mean()))
            codes = row_codes([batch.codes.get(name, nothing) for name in self.parts[column]])
            tensors[CODE + column] = torch.where(tokens.mask.any(1), codes, -1)
        for name, negative in self.negatives.items():
            tokens = outputs.negatives[name]
            tensors[NEGATIVE + name] = unit(self.heads[self.columns.index(negative.side)](tokens.mean()))
            codes = row_codes([batch.codes.get(column, nothing) for column in negative.columns.values()])
            tensors[NEGATIVE_CODE + name] = torch.where(tokens.mask.any(1), codes, -1)
        return tensors

    def of_vectors(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `BatchObjective.of_vectors`. The loss is named "contrastive"."""
        units = [vectors[VECTOR + column] for column in self.columns]
        units += [vectors[NEGATIVE + name] for name in self.negatives]
        own = [parameter.sum() for part in (self.scale,) if part is not None for parameter in part.parameters()]
        own += [] if self.bias is None else [self.bias.sum()]
        # Every parameter enters the loss even if there is nothing to compare: processes that exchange gradients need
        # it.
        nothing = torch.stack([*(values.sum() for values in units), *own]).sum() * 0
        sums: dict[str, Tensor] = {}
        total = 0.0
        with torch.autocast(units[0].device.type, enabled=False):  # similarities over τ need more than 8 bits
            for first, second in self.pairs:
                rows = self._rows(vectors, first, second)
                size = float(rows.weights.sum())
                if not size:
                    continue
                terms = [self._terms(some) for some in (rows, *map(rows.truncated, self.dims))]
                loss = torch.stack([self.lam * pull + (1 - self.lam) * push for pull, push in terms]).mean()
                with torch.no_grad():
                    figures = {"L_s": terms[0][0].detach(), "L_d": terms[0][1].detach()} | rows.geometry()
                for name, value in (figures | {"": loss}).items():
                    sums[name] = sums.get(name, 0) + size * value
                total += size
        self.figures = {name: value / total for name, value in sums.items() if name}
        self.figures |= self.mined_figures
        if self.scale is not None:
            self.figures["temperature"] = 1 / self.scale().detach()[0]
        return {self.name: nothing + sums[""] / total if total else nothing}

    def _rows(self, vectors: Mapping[str, Tensor], first: str, second: str) -> PairRows:
        codes = [vectors[CODE + first], vectors[CODE + second]]
        weights = vectors[WEIGHT].detach()
        complete = ((codes[0] >= 0) & (codes[1] >= 0) & (weights > 0)).nonzero().squeeze(1)
        x, y = vectors[VECTOR + first][complete], vectors[VECTOR + second][complete]
        groups = vectors[GROUP][complete]
        singletons = -1 - torch.arange(len(complete), device=complete.device)  # one group a row without a group
        ids = torch.stack([codes[0][complete], codes[1][complete], torch.where(groups >= 0, groups, singletons)], 1)
        names = [name for name, negative in self.negatives.items() if negative.side == second]
        named_ids = torch.stack(
            [ids[:, 1].new_full((len(ids),), -1), *(vectors[NEGATIVE_CODE + name][complete] for name in names)]
        )
        related = self.related.get((first, second))
        told_apart = has_related(partial(unrelated, related=related), ids)
        weights = weights[complete] * (told_apart | (named_ids >= 0).any(0))
        counts = vectors[COUNTS][complete] if COUNTS in vectors else x.new_ones(len(complete))
        own = counts.nonzero().squeeze(1)
        named = torch.cat([y[:0], *(vectors[NEGATIVE + name][complete] for name in names)])
        return PairRows(x, y, ids, weights, own, (counts * weights)[own], named, named_ids[1:].flatten(), related)

    def _terms(self, rows: PairRows) -> tuple[Tensor, Tensor]:
        """Return this process's part of L_s and L_d for a pair of columns."""
        if self.form == ALIGN_UNIFORM:
            # The logarithm of a mean over pairs is not a mean over rows, so every process computes all of it.
            negatives = unrelated(rows.ids, rows.ids, rows.related)
            pushes = [uniformity(values @ values.T, negatives) for values in (rows.x, rows.y)]
            return weighted_mean(alignment(rows.x, rows.y), rows.weights), (pushes[0] + pushes[1]) / 2
        (pull, push), (pull_back, push_back) = (
            self._direction(rows, rows.x, rows.y, named=True),
            self._direction(rows, rows.y, rows.x, named=False),
        )
        return (pull + pull_back) / 2, (push + push_back) / 2

    def _direction(self, rows: PairRows, anchors: Tensor, others: Tensor, *, named: bool) -> tuple[Tensor, Tensor]:
        """Return this process's part of L_s and L_d with the vectors of one column as anchors.

        Args:
            rows: the rows of the pair of columns.
            anchors: (rows, dim), the vectors of the anchors' column.
            others: (rows, dim), the vectors of the other column.
            named: whether the rows' named negatives are candidates beside `others`.
        """
        assert self.compute is not None
        negatives = rows.told_apart()  # (anchors, rows)
        same_row = torch.zeros_like(negatives)
        same_row[torch.arange(len(rows.own), device=rows.own.device), rows.own] = True
        candidates, positives = others, same_row
        if self.form == "supcon":
            candidates = torch.cat([others, anchors])
            positives = torch.cat([~negatives, ~negatives & ~same_row], 1)
        elif self.within:
            candidates = torch.cat([others, anchors])
            positives = torch.cat([same_row, torch.zeros_like(same_row)], 1)
        if len(candidates) > len(others):
            negatives = torch.cat([negatives, negatives], 1)
        if named and len(rows.named):
            told_apart = rows.told_from_named()  # own negatives and those of other rows
            candidates, negatives = torch.cat([candidates, rows.named]), torch.cat([negatives, told_apart], 1)
            positives = torch.cat([positives, torch.zeros_like(told_apart)], 1)
        logits = anchors[rows.own] @ candidates.T
        if self.scale is not None:
            logits = self.scale() * logits
        if self.bias is not None:
            logits = logits + self.bias
        pull, push = self.compute(logits, positives, negatives)
        return rows.mean(pull), rows.mean(push)
