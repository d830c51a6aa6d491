"""A model under attack: how it does on rows that are changed a little so that its loss on them grows.

The attacker sees the model's weights and the rows' true targets, and changes what enters the encoders (see
`fusetune.models.perturb`) by one step up the gradient of the task's loss (FGM) or by several (PGD). Each row is
attacked by itself. The targets go into the attack alone: nothing of the model or its settings follows from it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fusetune.config.sections import AttackConfig, ReportConfig
from fusetune.config.trainer import TrainerConfig
from fusetune.data.examples import Examples
from fusetune.evaluation.measure.judge import Candidate
from fusetune.evaluation.results import AttackUsed
from fusetune.inference.predict import encode_cells, model_device
from fusetune.models.family import Family
from fusetune.models.perturb import Ball, attacked_columns, find_site, unit_of
from fusetune.tasks.base import Task
from fusetune.training.probe import SplitRows, install_probes
from fusetune.training.updates.adversarial import Ascent
from fusetune.types import Batch

if TYPE_CHECKING:
    from fusetune.training.probe import Probe

UNIT_ROWS = 256
"""Train rows that columns' units are measured on."""


def attack_of(report: ReportConfig, trainer: TrainerConfig) -> AttackConfig | None:
    """The attack that a run reports: the one asked for, else the one that was trained against, else none."""
    if report.attack is not None:
        return None if report.attack.name == "none" else report.attack
    trained = trainer.adversarial
    if trained is None:
        return None
    return AttackConfig(
        name="fgm" if trained.name == "fgm" else "pgd",
        epsilon=trained.epsilon,
        steps=trained.steps,
        step_size=trained.step_size,
        columns=trained.columns,
    )


class Attack:
    """One attack, the same for every model: it changes the same columns by at most the same amount."""

    def __init__(self, model: Family, train: Examples, settings: AttackConfig) -> None:
        """
        Args:
            model: before tuning: the columns' units are measured by its word embeddings.
            train: prepared rows.
            settings: what is asked for.

        Raises:
            ConfigError: a column that the model has not.
        """
        self.name, self.ascent = settings.name.upper(), Ascent.of(settings)
        self.columns = attacked_columns(model, settings.columns, where="report.attack")
        self.units = units_of(model, train, self.columns)

    def used(self) -> AttackUsed:
        """What the report says of it."""
        ascent = self.ascent
        return AttackUsed(self.name, ascent.epsilon, ascent.steps, ascent.step_size, self.columns, self.units)

    def candidate(self, of: str, model: Family, name: str, task: Task, split: SplitRows, train: SplitRows) -> Candidate:
        """A model under the attack.

        Args:
            of: what the model is called: "tuned".
            model: in any mode and on any device.
            name: the task's name in the model.
            task: fitted.
            split: the rows to attack; those that the examples do not use get the constant guess of train rows.
            train: train rows.
        """
        scores = task.constant(train.truth, len(split.indices))
        usable = np.isin(split.indices, split.examples.used)
        if usable.any():
            scores[usable] = task.answers(self.logits(model, name, task, split.examples, split.indices[usable]))
        what = f"the same model, {', '.join(self.columns)} changed against it: {self.name}, ε {self.ascent.epsilon:g}"
        return Candidate(f"{of}, attacked", "attack", what, scores, self.columns)

    def logits(
        self, model: Family, name: str, task: Task, examples: Examples, indices: np.ndarray, *, batch_size: int = 64
    ) -> Tensor:
        """The model's logits for attacked rows, float32 on the CPU, in the order of `indices`.

        Args:
            model: in any mode and on any device.
            name: the task's name in the model.
            task: fitted; every row must be labelled for it.
            examples: prepared rows.
            indices: places in the table, at least one.
            batch_size: rows at a time.
        """
        order = np.argsort(examples.sizes(indices), kind="stable")
        device, parts = model_device(model), []
        was_training = model.training
        model.eval()
        rows = others_encoded(model, examples, self.columns)
        for start in range(0, len(order), batch_size):
            batch = own_cells(rows.batch(indices[order[start : start + batch_size]]).to(device))
            parts.append(self._attacked(model, name, task, batch))
        model.train(was_training)
        return torch.cat(parts)[torch.from_numpy(np.argsort(order))]

    def _attacked(self, model: Family, name: str, task: Task, batch: Batch) -> Tensor:
        target, ones = batch.targets[name], torch.ones_like(batch.weights)
        ball = Ball(model, batch, self.columns, units=self.units)
        deltas = ball.zeros()
        for _ in range(self.ascent.steps if deltas else 0):
            loss = task.loss(model(ball.perturbed(deltas)).logits[name], target, ones)
            found = torch.autograd.grad(loss, list(deltas.values()), allow_unused=True)
            deltas = self.ascent.climb(ball, deltas, found)
        with torch.no_grad():
            logits: Tensor = model(ball.perturbed(deltas)).logits[name]
        return logits.float().cpu()


def start_model(model: Family, probes: Mapping[str, Probe]) -> Family:
    """A freshly built model made what tuning starts from: the linear models on its frozen encoders.

    Args:
        model: with its encoders as pretrained; changed in place.
        probes: per task, the linear model on the encoders' features.
    """
    for probe in probes.values():
        for column, scale in probe.scales.items():
            model.set_scale(column, *scale)
    install_probes(model, probes)
    return model


def units_of(model: Family, examples: Examples, columns: Collection[str]) -> dict[str, float]:
    """Each column's unit on the first `UNIT_ROWS` used rows; columns that none of them has are left out."""
    batch = examples.batch(examples.used[:UNIT_ROWS]).to(model_device(model))
    brought = [column for column in columns if batch.inputs.get(column)]
    sites = {column: find_site(model, column, batch.inputs[column]) for column in brought}
    return {column: 1.0 if site.standard else unit_of([site]) for column, site in sites.items()}


def own_cells(batch: Batch) -> Batch:
    """The batch with a cell of its own for every row, so that rows with equal cells can be changed differently."""
    inputs, cells = dict(batch.inputs), dict(batch.cells)
    for column, tensors in batch.inputs.items():
        if not tensors:
            continue
        present = batch.cells[column] >= 0
        taken = batch.cells[column][present]  # (present rows,)
        cells[column] = torch.where(present, present.cumsum(0) - 1, -1)
        if "owner" not in tensors:
            inputs[column] = {name: tensor[taken] for name, tensor in tensors.items()}
            continue
        parts = [(tensors["owner"] == cell).nonzero().squeeze(1) for cell in taken]
        counts = torch.tensor([len(part) for part in parts], device=taken.device)
        chosen = {name: tensor[torch.cat(parts)] for name, tensor in tensors.items() if name != "owner"}
        owner = torch.arange(len(parts), device=taken.device).repeat_interleave(counts)
        inputs[column] = {**chosen, "owner": owner}
    return replace(batch, inputs=inputs, cells=cells)


def others_encoded(model: Family, examples: Examples, columns: Sequence[str]) -> Examples:
    """Return rows whose columns that are not attacked have gone through their encoders; the attacked ones have not."""
    others = [column for column in model.routes if column not in columns and column in examples.columns]
    return examples.given(
        features={column: encode_cells(model, column, examples.columns[column].given()) for column in others}
    )
