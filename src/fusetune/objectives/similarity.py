"""Learn the cosines of scored or labelled pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fusetune.errors import ConfigError
from fusetune.objectives.base import BatchObjective, labelled_weights, weighted_mean
from fusetune.objectives.contrastive_parts import check_choice, check_dims, check_number, unit
from fusetune.tasks.pairs import PairTask
from fusetune.types import Batch, Outputs

if TYPE_CHECKING:
    from fusetune.models.family import Family
    from fusetune.tasks.base import TargetTask

COSENT, REGRESSION, MARGIN = FORMS = ("cosent", "regression", "margin")
OPTIONS = {"temperature": (COSENT,), "lowest": (REGRESSION,), "margin": (MARGIN,), "hard": (MARGIN,)}
"""The forms that have an option."""
COSINE, CUT, TARGET, WEIGHT = "cosine", "cut", "target", "weight"


class SimilarityObjective(BatchObjective):
    """Have the cosine of a row's two sides follow the row's target.

    With s_i the cosine of pair i and y_i its target, scaled to [0, 1] over the train rows, by `form`:

    - cosent: log(1 + Σ exp((s_j − s_i)/τ)) over all i, j with y_i > y_j: cosines are to be in the order of the targets,
      which Spearman's correlation measures. It takes graded and two-valued targets.
    - regression: mean (s_i − (l + (1 − l) y_i))². The least target of the train rows is to have the cosine l, `lowest`,
      the greatest 1.
    - margin: the online contrastive loss of labelled pairs, with the distance d_i = 1 − s_i: L_s = mean d_i² of related
      pairs, L_d = mean max(0, m − d_i)² of unrelated ones, both divided by the number of all pairs; the loss is
      L_s + L_d. With `hard`, only related pairs farther apart than the nearest unrelated one count, and only unrelated
      ones nearer than the farthest related one.

    Args:
        model: see `Objective`.
        tasks: see `Objective`; one of them is about pairs.
        weight: factor of the loss in the total, above 0.
        form: cosent, regression or margin.
        temperature: τ of cosent, in [0.01, 1]; 0.05 by default.
        lowest: l of regression, in [−1, 1); 0 by default.
        margin: m of margin, in [0, 2]; 0.5 by default.
        hard: whether margin counts hard pairs only; true by default.
        dims: widths below that of the vectors, such as [128, 64]. The loss is the mean of that of whole vectors and of
            those cut to their first numbers, so that cut vectors can be compared, too (Kusupati et al. 2022,
            "Matryoshka Representation Learning", arXiv 2205.13147).

    Raises:
        ConfigError: a setting is unknown, out of range or of another form, or the target is not that of pairs.

    Inputs: the cosine of each row's sides, (batch,).

    Requires: rows with a target and both sides; others do not enter the loss.

    Relations: `contrastive` learns from pairs without a target, with the other rows' sides as negatives. Both may be
    minimised together.

    Figures: cosent: the share of the compared pairs whose order is wrong. margin: L_s and L_d.

    Example:
        >>> from fusetune.testing.objectives import make_pairs
        >>> model, tasks, examples = make_pairs()
        >>> batch, objective = examples.batch(range(12)), SimilarityObjective(model, tasks, form="regression")
        >>> list(objective(model, batch, model(batch)))
        ['similarity']

    Reference: Su 2022, "CoSENT", https://kexue.fm/archives/8847; Hadsell et al. 2006, "Dimensionality Reduction by
    Learning an Invariant Mapping"; Reimers and Gurevych 2019, "Sentence-BERT" (arXiv 1908.10084), whose library has
    them as CoSENTLoss, CosineSimilarityLoss and OnlineContrastiveLoss.
    """

    name = "similarity"
    family = "match"

    def __init__(
        self,
        model: Family,
        tasks: Mapping[str, TargetTask],
        *,
        weight: float = 1.0,
        form: str = COSENT,
        temperature: float | None = None,
        lowest: float | None = None,
        margin: float | None = None,
        hard: bool | None = None,
        dims: Sequence[int] = (),
    ) -> None:
        super().__init__(model, tasks, weight=weight)
        where = f"objectives.{self.name}"
        self.form = check_choice(f"{where}.form", form, FORMS)
        given = {"temperature": temperature, "lowest": lowest, "margin": margin, "hard": hard}
        _check_forms(where, self.form, given)
        self.temperature = check_number(f"{where}.temperature", 0.05 if temperature is None else temperature, 0.01, 1)
        self.lowest = check_number(f"{where}.lowest", 0.0 if lowest is None else lowest, -1, 0.999)
        self.margin = check_number(f"{where}.margin", 0.5 if margin is None else margin, 0, 2)
        self.hard = hard is not False
        self.dims = check_dims(f"{where}.dims", dims, model.dim)
        self.task = _pair_task(tasks, where)
        if self.form == MARGIN and tasks[self.task].name != "pair_classification":
            raise ConfigError(
                f"{where}.form=margin learns which pairs are related",
                expected="a target with two values",
                came=f"{self.task!r}, {tasks[self.task].name}",
                do="take form=cosent or form=regression",
            )

    def counts(self, batch: Batch) -> Tensor:
        """See `Objective.counts`."""
        return labelled_weights(batch)

    def vectors(self, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        """Return cosines, targets and weights, (batch,) each; the weight is 0 without a target or a side.

        With `dims`, also the cosines of the cut vectors, (batch, dims).
        """
        target = batch.targets[self.task]
        complete = torch.stack([side.mask.squeeze(1) for side in outputs.sides.values()]).all(0)
        weights = batch.weights * target.labelled * complete
        # A missing target is not read: it may be NaN.
        values = target.values.masked_fill(~target.labelled, 0).to(weights.dtype)
        cosines = {COSINE: outputs.logits[self.task].to(weights.dtype), TARGET: values, WEIGHT: weights}
        if not self.dims:
            return cosines
        sides = torch.stack([side.values.squeeze(1) for side in outputs.sides.values()], 1)  # (batch, 2, dim)
        parts = [unit(sides[:, 0, :dim]) * unit(sides[:, 1, :dim]) for dim in self.dims]
        return cosines | {CUT: torch.stack([part.sum(1) for part in parts], 1).to(weights.dtype)}

    def of_vectors(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `BatchObjective.of_vectors`. The loss is named "similarity".

        Cosent and the choice of hard pairs are no means over rows, so every process computes the loss of all rows.
        """
        nothing = vectors[COSINE].sum() * 0
        self.figures = {}
        used = vectors[WEIGHT].detach() > 0
        if not used.any():
            return {self.name: nothing}
        cosines, targets, weights = (vectors[name][used] for name in (COSINE, TARGET, WEIGHT))
        targets, weights = targets.detach(), weights.detach()
        cut = vectors[CUT][used].unbind(1) if self.dims else ()
        with torch.autocast(cosines.device.type, enabled=False):
            # Whole vectors come last: the figures are theirs.
            losses = [getattr(self, f"_{self.form}")(some, targets, weights) for some in (*cut, cosines)]
        return {self.name: nothing + torch.stack(losses).mean()}

    def _cosent(self, cosines: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Return the CoSENT loss; a pair of pairs counts by the product of both weights over their mean."""
        shares = (weights / weights.mean()).log()
        gaps = (cosines.unsqueeze(0) - cosines.unsqueeze(1)) / self.temperature  # (i, j): s_j − s_i
        ordered = targets.unsqueeze(1) > targets.unsqueeze(0)
        if ordered.any():
            self.figures = {"wrong_order": (gaps.detach()[ordered] >= 0).to(gaps.dtype).mean()}
        terms = (gaps + shares.unsqueeze(0) + shares.unsqueeze(1))[ordered]
        return torch.cat([terms.new_zeros(1), terms]).logsumexp(0)

    def _regression(self, cosines: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Return the mean squared error of the cosines."""
        return weighted_mean((cosines - (self.lowest + (1 - self.lowest) * targets)).square(), weights)

    def _margin(self, cosines: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Return the online contrastive loss."""
        distances, related = 1 - cosines, targets > 0.5
        pulled, pushed = related, ~related
        if self.hard and related.any() and not related.all():
            pulled = related & (distances > distances[~related].min())
            pushed = ~related & (distances < distances[related].max())
        pull = weighted_mean(distances.square() * pulled, weights)
        push = weighted_mean((self.margin - distances).clamp(min=0).square() * pushed, weights)
        self.figures = {"L_s": pull.detach(), "L_d": push.detach()}
        return pull + push


def _check_forms(where: str, form: str, given: Mapping[str, Any]) -> None:
    """Refuse options that the form does not have.

    Raises:
        ConfigError: one is given.
    """
    for name, value in given.items():
        if value is not None and form not in OPTIONS[name]:
            raise ConfigError(
                f"{where}.{name} does not go with form={form}",
                expected=f"form={' or '.join(OPTIONS[name])}",
                came=f"{name}={value}",
                do=f"leave {name} out",
            )


def _pair_task(tasks: Mapping[str, TargetTask], where: str) -> str:
    """Return the name of the task about pairs.

    Raises:
        ConfigError: there is none.
    """
    for name, task in tasks.items():
        if isinstance(task, PairTask):
            return name
    raise ConfigError(
        f"{where} learns the similarity of scored pairs",
        expected="two sides and a target: --query, --document and --target",
        came=", ".join(f"{name!r}, {task.name}" for name, task in tasks.items()) or "no target",
        do="take objectives.contrastive for pairs without a target",
    )
