"""Contrastive learning between the rows of one label."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fusetune.errors import ConfigError, nearest
from fusetune.objectives.base import BatchObjective
from fusetune.objectives.contrastive_forms import apart, infonce, related, uniformity
from fusetune.objectives.contrastive_parts import (
    DIM,
    PROJECTIONS,
    LogitScale,
    check_choice,
    check_number,
    collapse_warnings,
    projection_head,
    unit,
)
from fusetune.objectives.gather import COUNTS
from fusetune.tasks.abilities import Labelled
from fusetune.types import Batch, Outputs

if TYPE_CHECKING:
    from fusetune.models.family import Family
    from fusetune.tasks.base import TargetTask

TEMPERATURE = 0.1
VECTOR, LABEL, WEIGHT = "vector", "label", "weight"


class SupConObjective(BatchObjective):
    """Pull rows of one label together and push all others apart.

    L = λ L_s + (1 − λ) L_d. With z_i row i's fused vector, projected and of unit length, s_ia = z_i·z_a and P_i the
    other rows with i's label: L_s = mean −1/|P_i| Σ_{p∈P_i} s_ip/τ, L_d = mean log Σ_{a≠i} exp(s_ia/τ). λ = ½ gives ½
    SupCon (equation 2 of the paper).

    Inputs: the fused vectors, (batch, dim), and one target. Rows without it take no part; a row that has no positive or
    no negative in the batch is no anchor. Labels tell which rows belong together, so groups and equal cells do not
    count.

    Requires: a binary, multiclass, ordinal or multilabel target. With several labels a row, rows that share one or more
    are positives.

    Relations: `contrastive` compares the columns within rows, this rows of equal labels.

    Figures: L_s, L_d; alignment, the mean squared distance of positives; uniformity over negatives; the temperature.

    Example:
        >>> from fusetune.testing.objectives import make_parts
        >>> model, tasks, examples = make_parts()
        >>> batch, objective = examples.batch(range(12)), SupConObjective(model, tasks, target="k", temperature=0.1)
        >>> list(objective(model, batch, model(batch))), round(float(objective.figures["temperature"]), 3)
        (['supcon'], 0.1)

    Reference: Khosla et al. 2020, "Supervised Contrastive Learning" (arXiv 2004.11362).
    """

    name = "supcon"

    def __init__(
        self,
        model: Family,
        tasks: Mapping[str, TargetTask],
        *,
        weight: float = 1.0,
        target: str | None = None,
        lam: float = 0.5,
        temperature: float = TEMPERATURE,
        learn_temperature: bool = True,
        projection: str = "linear",
        dim: int = DIM,
    ) -> None:
        """
        Args:
            model: see `Objective`.
            tasks: see `Objective`.
            weight: what the loss counts in the total, above 0.
            target: whose labels are compared; by default those of the only target that has labels.
            lam: λ in [0, 1], the share of the pull; in a config also `lambda`.
            temperature: τ at the start, in [0.01, 1].
            learn_temperature: whether τ is trained.
            projection: linear, mlp or none, between the fused vector and the compared one, left out once trained.
            dim: size of the projection's space.

        Raises:
            ConfigError: a setting is unknown or out of range, or the target has no labels.
        """
        super().__init__(model, tasks, weight=weight)
        where = f"objectives.{self.name}"
        self.target = _labelled_target(tasks, target)
        self.lam = check_number(f"{where}.lambda", lam, 0, 1)
        self.scale = LogitScale(check_number(f"{where}.temperature", temperature, 0.01, 1), learned=learn_temperature)
        check_choice(f"{where}.projection", projection, PROJECTIONS)
        self.head = projection_head(projection, model.dim, int(check_number(f"{where}.dim", dim, 1, math.inf)))
        self.warnings += collapse_warnings(where, self.name, self.lam, within=False)

    def vectors(self, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        """Return unit vectors, (batch, dim), the encoded labels, and weights, (batch,), 0 where unlabelled."""
        target = batch.targets[self.target]
        labels = target.values.bool() if target.values.ndim > 1 else target.values
        return {VECTOR: unit(self.head(outputs.fused)), LABEL: labels, WEIGHT: batch.weights * target.labelled}

    def of_vectors(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `BatchObjective.of_vectors`; the loss is named supcon."""
        # All of it enters the loss, be there nothing to compare: processes that exchange gradients rely on it.
        nothing = (vectors[VECTOR].sum() + self.scale().sum()) * 0
        weights = vectors[WEIGHT].detach()
        here = weights.nonzero().squeeze(1)
        rows, labels = vectors[VECTOR][here], vectors[LABEL][here]
        labels = labels.unsqueeze(1) if labels.ndim == 1 else labels
        differ = apart if vectors[LABEL].ndim == 1 else _share_none
        valid = related(differ, labels) & related(lambda some, others: ~differ(some, others), labels, least=2)
        self.figures = {"temperature": 1 / self.scale().detach()[0]}
        if not valid.any():
            return {self.name: nothing}
        counts = vectors[COUNTS][here] if COUNTS in vectors else rows.new_ones(len(here))
        own = counts.nonzero().squeeze(1)
        negatives = differ(labels[own], labels)  # (anchors, rows)
        positives = ~negatives
        positives[torch.arange(len(own), device=own.device), own] = False
        with torch.autocast(rows.device.type, enabled=False):  # similarities over τ need more than 8 bits
            similarities = rows[own] @ rows.T
            pull, push = infonce(self.scale() * similarities, positives, negatives)
            weights = weights[here] * valid
            shares = (counts * weights)[own] / weights.sum()
            pull, push = (pull * shares).sum(), (push * shares).sum()
        self.figures |= {"L_s": pull.detach(), "L_d": push.detach()}
        with torch.no_grad():
            if positives.any() and negatives.any():
                self.figures["alignment"] = (2 - 2 * similarities[positives]).mean()
                self.figures["uniformity"] = uniformity(similarities, negatives)
        return {self.name: nothing + self.lam * pull + (1 - self.lam) * push}


def _share_none(labels: Tensor, others: Tensor) -> Tensor:
    """Which rows have no label in common, from (rows, labels) and (other rows, labels) bool."""
    shared: Tensor = labels.float() @ others.float().T
    return shared == 0


def _labelled_target(tasks: Mapping[str, TargetTask], target: str | None) -> str:
    fit = [name for name, task in tasks.items() if isinstance(task, Labelled)]
    if target is None and len(fit) == 1:
        return fit[0]
    if target in fit:
        return str(target)
    kinds = f"a target with {Labelled.ability}"
    if target is not None and target in tasks:
        raise ConfigError(
            f"objectives.supcon compares rows of equal labels, and {target!r} has none",
            expected=kinds,
            came=f"{target!r}, {tasks[target].name}",
            do="take objectives.contrastive, which compares the columns of a row, or make the numbers into classes: "
            f"tasks.{target}=multiclass",
        )
    if target is not None:
        raise ConfigError(
            f"objectives.supcon.target is {target!r}, which is no target",
            expected=", ".join(fit) or kinds,
            do=nearest(target, fit),
        )
    if not fit:
        raise ConfigError(
            "objectives.supcon compares rows of equal labels, and no target has labels",
            expected=kinds,
            came=", ".join(f"{name!r}, {task.name}" for name, task in tasks.items()) or "no target",
            do="take objectives.contrastive, which compares the columns of a row",
        )
    raise ConfigError(
        "objectives.supcon must know whose labels are compared", expected="objectives.supcon.target: " + ", ".join(fit)
    )
