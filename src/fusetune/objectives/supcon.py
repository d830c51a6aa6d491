"""Supervised contrastive learning: rows with the same label are positives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fusetune.errors import ConfigError, nearest
from fusetune.objectives.base import BatchObjective
from fusetune.objectives.contrastive_forms import has_related, infonce, no_common_id, uniformity
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
    """Pull rows with the same label together and push all others apart.

    L = λ L_s + (1 − λ) L_d, with L_s = mean −1/|P_i| Σ_{p∈P_i} s_ip/τ and L_d = mean log Σ_{a≠i} exp(s_ia/τ). Here z_i
    is row i's fused vector after the projection, of unit length, s_ia = z_i·z_a, and P_i are the other rows with row
    i's label. λ = ½ gives ½ SupCon (equation 2 of the paper).

    Args:
        model: see `Objective`.
        tasks: see `Objective`.
        weight: factor of the loss in the total, above 0.
        target: the target whose labels are compared; by default the only one that has labels.
        lam: λ in [0, 1], the weight of L_s; in a config also `lambda`.
        temperature: initial τ, in [0.01, 1].
        learn_temperature: whether τ is trained.
        projection: the head on the fused vectors during training: linear, mlp or none.
        dim: features of the head's output.

    Raises:
        ConfigError: a setting is unknown or out of range, or the target has no labels.

    Inputs: the fused vectors, (batch, dim), and the labels of one target. Unlabelled rows are ignored, and a row
    without a positive or without a negative in the batch is not an anchor. Groups and equal cells play no role.

    Requires: a binary, multiclass, ordinal or multilabel target. Rows with several labels are positives if they share
    at least one.

    Relations: `contrastive` compares the columns of a row; this objective compares rows by their labels.

    Figures: L_s, L_d; alignment, the mean squared distance of positives; uniformity of negatives; the temperature.

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
        super().__init__(model, tasks, weight=weight)
        where = f"objectives.{self.name}"
        self.target = _labelled_target(tasks, target)
        self.lam = check_number(f"{where}.lambda", lam, 0, 1)
        self.scale = LogitScale(check_number(f"{where}.temperature", temperature, 0.01, 1), learned=learn_temperature)
        check_choice(f"{where}.projection", projection, PROJECTIONS)
        self.head = projection_head(projection, model.dim, int(check_number(f"{where}.dim", dim, 1, math.inf)))
        self.warnings += collapse_warnings(where, self.name, self.lam, within=False)

    def vectors(self, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        """Return unit vectors, (batch, dim), encoded labels, (batch, ...), and weights, (batch,), 0 if unlabelled."""
        target = batch.targets[self.target]
        labels = target.values.bool() if target.values.ndim > 1 else target.values
        return {VECTOR: unit(self.head(outputs.fused)), LABEL: labels, WEIGHT: batch.weights * target.labelled}

    def of_vectors(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `BatchObjective.of_vectors`. The loss is named "supcon"."""
        # Every parameter enters the loss even if there is nothing to compare: processes that exchange gradients need
        # it.
        nothing = (vectors[VECTOR].sum() + self.scale().sum()) * 0
        weights = vectors[WEIGHT].detach()
        labelled = weights.nonzero().squeeze(1)
        rows, labels = vectors[VECTOR][labelled], vectors[LABEL][labelled]
        labels = labels.unsqueeze(1) if labels.ndim == 1 else labels
        differ = no_common_id if vectors[LABEL].ndim == 1 else _no_common_label
        valid = has_related(differ, labels) & has_related(lambda some, others: ~differ(some, others), labels, minimum=2)
        self.figures = {"temperature": 1 / self.scale().detach()[0]}
        if not valid.any():
            return {self.name: nothing}
        counts = vectors[COUNTS][labelled] if COUNTS in vectors else rows.new_ones(len(labelled))
        own = counts.nonzero().squeeze(1)
        negatives = differ(labels[own], labels)  # (anchors, rows)
        positives = ~negatives
        positives[torch.arange(len(own), device=own.device), own] = False
        with torch.autocast(rows.device.type, enabled=False):  # similarities over τ need more than 8 bits
            similarities = rows[own] @ rows.T
            pull, push = infonce(self.scale() * similarities, positives, negatives)
            weights = weights[labelled] * valid
            shares = (counts * weights)[own] / weights.sum()
            pull, push = (pull * shares).sum(), (push * shares).sum()
        self.figures |= {"L_s": pull.detach(), "L_d": push.detach()}
        with torch.no_grad():
            if positives.any() and negatives.any():
                self.figures["alignment"] = (2 - 2 * similarities[positives]).mean()
                self.figures["uniformity"] = uniformity(similarities, negatives)
        return {self.name: nothing + self.lam * pull + (1 - self.lam) * push}


def _no_common_label(labels: Tensor, others: Tensor) -> Tensor:
    """Return which pairs of rows have no label in common, (rows, other rows) bool.

    Args:
        labels: (rows, labels) bool, multi-hot.
        others: (other rows, labels) bool.
    """
    shared: Tensor = labels.float() @ others.float().T
    return shared == 0


def _labelled_target(tasks: Mapping[str, TargetTask], target: str | None) -> str:
    """Return the target whose labels are compared: the named one, or the only one that has labels.

    Raises:
        ConfigError: there is no such target, it has no labels, or several have.
    """
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
