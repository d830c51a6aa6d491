"""White-box adversarial attacks: measure a model on rows that are changed slightly so that its loss grows.

The attacker knows the model's weights and the rows' true targets. It changes the encoders' inputs (see
`fusetune.models.perturb`) by one gradient ascent step on the task's loss (FGM) or by several (PGD). Each row is
attacked separately. The targets are used for the attack only; they choose nothing of the model or its settings.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fusetune.config.attack import AttackConfig
from fusetune.config.report import ReportConfig
from fusetune.config.trainer import TrainerConfig
from fusetune.data.examples import Examples
from fusetune.evaluation.measure.judge import Candidate
from fusetune.evaluation.results import AttackUsed
from fusetune.inference.answers import answers_of
from fusetune.inference.predict import concatenate_logits, encode_cells, model_device
from fusetune.models.family import Family
from fusetune.models.perturb import Ball, attacked_columns, find_site, unit_of
from fusetune.tasks.base import TargetTask
from fusetune.training.probes.probe import SplitRows, install_probes
from fusetune.training.updates.adversarial import Ascent
from fusetune.types import Batch

if TYPE_CHECKING:
    from fusetune.training.probes.probe import StartingPoint

UNIT_ROWS = 256
"""The number of train rows on which the columns' units are measured."""


def attack_of(report: ReportConfig, trainer: TrainerConfig) -> AttackConfig | None:
    """Return the attack to report: the one in the settings, else the one of adversarial training, else None."""
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
    """An attack with fixed columns and a fixed size of change, so that models can be compared under it."""

    def __init__(self, model: Family, train: Examples, settings: AttackConfig) -> None:
        """
        Args:
            model: the model before tuning. Its word embeddings give the units of text columns.
            train: prepared train rows.
            settings: the attack's settings.

        Raises:
            ConfigError: a column is not in the model.
        """
        self.name, self.ascent = settings.name.upper(), Ascent.of(settings)
        self.columns = attacked_columns(model, settings.columns, where="report.attack")
        self.units = units_of(model, train, self.columns)

    def used(self) -> AttackUsed:
        """Return the attack's description for the report."""
        ascent = self.ascent
        return AttackUsed(self.name, ascent.epsilon, ascent.steps, ascent.step_size, self.columns, self.units)

    def candidate(
        self, of: str, model: Family, name: str, task: TargetTask, split: SplitRows, train: SplitRows
    ) -> Candidate:
        """Return a model's answers under the attack, as a system to compare.

        Args:
            of: the model's name in the report: "tuned".
            model: the model, in any mode and on any device.
            name: the task's name in the model.
            task: fitted.
            split: the rows to attack. Rows that the examples do not use get the constant guess of the train rows.
            train: train rows.
        """
        scores = task.constant(train.truth, len(split.indices))
        usable = np.isin(split.indices, split.examples.used)
        if usable.any():
            rows = split.indices[usable]
            logits = self.logits(model, name, task, split.examples, rows)
            scores[usable] = answers_of(split.examples, task, logits, rows)
        what = f"the same model, {', '.join(self.columns)} changed against it: {self.name}, ε {self.ascent.epsilon:g}"
        return Candidate(f"{of}, attacked", "attack", what, scores, self.columns)

    def logits(
        self,
        model: Family,
        name: str,
        task: TargetTask,
        examples: Examples,
        indices: np.ndarray,
        *,
        batch_size: int = 64,
    ) -> Tensor:
        """Return the model's logits for attacked rows, float32 on the CPU, in the order of `indices`.

        Args:
            model: in any mode and on any device.
            name: the task's name in the model.
            task: fitted; every row must be labelled for it.
            examples: prepared rows.
            indices: positions in the table, at least one.
            batch_size: rows per batch.
        """
        order = np.argsort(examples.sizes(indices), kind="stable")
        device, parts = model_device(model), []
        was_training = model.training
        model.eval()
        rows = others_encoded(model, examples, self.columns)
        for start in range(0, len(order), batch_size):
            batch = separate_cells(rows.batch(indices[order[start : start + batch_size]]).to(device))
            parts.append(self._attacked(model, name, task, batch))
        model.train(was_training)
        return concatenate_logits(parts)[torch.from_numpy(np.argsort(order))]

    def _attacked(self, model: Family, name: str, task: TargetTask, batch: Batch) -> Tensor:
        target, ones = batch.targets[name], torch.ones_like(batch.weights)
        ball = Ball(model, batch, self.columns, units=self.units)
        deltas = ball.zeros()
        for _ in range(self.ascent.steps if deltas else 0):
            loss = task.loss(model(ball.perturbed(deltas)).logits[name], target, ones)
            gradients = torch.autograd.grad(loss, list(deltas.values()), allow_unused=True)
            deltas = self.ascent.climb(ball, deltas, gradients)
        with torch.no_grad():
            logits: Tensor = model(ball.perturbed(deltas)).logits[name]
        return logits.float().cpu()


def start_model(model: Family, probes: Mapping[str, StartingPoint]) -> Family:
    """Turn a freshly built model into the starting point of tuning: linear probes on frozen encoders.

    Args:
        model: with pretrained encoders; changed in place.
        probes: per task, the linear model on the encoders' features.
    """
    for probe in probes.values():
        for column, scale in probe.scales.items():
            model.set_scale(column, *scale)
    install_probes(model, probes)
    return model


def units_of(model: Family, examples: Examples, columns: Collection[str]) -> dict[str, float]:
    """Return each column's unit on the first `UNIT_ROWS` used rows, without columns that all of them lack."""
    batch = examples.batch(examples.used[:UNIT_ROWS]).to(model_device(model))
    present = [column for column in columns if batch.inputs.get(column)]
    sites = {column: find_site(model, column, batch.inputs[column]) for column in present}
    return {column: 1.0 if site.standard else unit_of([site]) for column, site in sites.items()}


def separate_cells(batch: Batch) -> Batch:
    """Return the batch with a separate cell per row, so that rows with equal cells can be changed differently."""
    inputs, cells = dict(batch.inputs), dict(batch.cells)
    for column, tensors in batch.inputs.items():
        if not tensors:
            continue
        present = batch.cells[column] >= 0
        cell_ids = batch.cells[column][present]  # (present rows,)
        cells[column] = torch.where(present, present.cumsum(0) - 1, -1)
        if "owner" not in tensors:
            inputs[column] = {name: tensor[cell_ids] for name, tensor in tensors.items()}
            continue
        parts = [(tensors["owner"] == cell).nonzero().squeeze(1) for cell in cell_ids]
        counts = torch.tensor([len(part) for part in parts], device=cell_ids.device)
        chosen = {name: tensor[torch.cat(parts)] for name, tensor in tensors.items() if name not in ("owner", "select")}
        if "select" in tensors:  # a row a cell
            chosen["select"] = tensors["select"][cell_ids]
        owner = torch.arange(len(parts), device=cell_ids.device).repeat_interleave(counts)
        inputs[column] = {**chosen, "owner": owner}
    return replace(batch, inputs=inputs, cells=cells)


def others_encoded(model: Family, examples: Examples, columns: Sequence[str]) -> Examples:
    """Return the rows with encoded features for every column that is not attacked."""
    others = [column for column in model.routes if column not in columns and column in examples.columns]
    return examples.given(
        features={column: encode_cells(model, column, examples.columns[column].given()) for column in others}
    )
