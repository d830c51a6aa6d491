"""What a teacher predicts for the train rows, for the objective `distill`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fusetune.deploy.bundle import Bundle
from fusetune.deploy.fine_tuned import FineTuned
from fusetune.deploy.tuned import read_examples
from fusetune.errors import ConfigError
from fusetune.fitting.prepared import Prepared
from fusetune.inference.scores import predict_scores
from fusetune.models.understand import Understand
from fusetune.objectives.distill import Distillation
from fusetune.tasks.abilities import Distilled
from fusetune.tasks.base import family_of


def with_teacher(fit: Prepared) -> Prepared:
    """Return the fit with the teacher's answers for its train rows, if the settings name one.

    Raises:
        ConfigError: there is no such teacher, or it predicts none of the targets.
        FolderError: its folder is broken.
        TableError: the table lacks a column that the teacher reads.
    """
    options = fit.config.objectives.get(Distillation.name)
    if options is None:
        return fit
    if family_of(fit.tasks) != Understand.name:
        raise ConfigError("objectives.distill teaches models that predict targets", do="leave it out")
    if not options.get("teacher"):
        raise ConfigError(
            "objectives.distill has no teacher",
            expected="the folder of a tuned model",
            do="name it: objectives.distill.teacher=FOLDER",
        )
    teacher = FineTuned.from_folder(Path(options["teacher"])).bundle
    with fit.phase("ask the teacher"):
        references = answers_of_teacher(teacher, fit)
    train = fit.examples["train"].given(references=references)
    for name in fit.targets:
        if name not in references:
            fit.tables.notes.append(f"The teacher of objectives.distill does not teach {name!r}.")
    return replace(fit, examples={**fit.examples, "train": train})


def answers_of_teacher(teacher: Bundle, fit: Prepared) -> dict[str, Tensor]:
    """Return by task the teacher's answers for all train rows, (rows of the table, values) float32.

    A row that it cannot read has NaN.

    Raises:
        ConfigError: it predicts none of the targets.
        TableError: the table lacks a column that it reads.
    """
    taught = {
        name: task for name, task in fit.targets.items() if name in teacher.targets and isinstance(task, Distilled)
    }
    if not taught:
        raise ConfigError(
            "the teacher predicts none of the targets",
            expected=" or ".join(map(repr, fit.targets)),
            came=", ".join(map(repr, teacher.tasks)),
            do="name another model: objectives.distill.teacher",
        )
    table = fit.examples["train"].table
    rows = read_examples(teacher, table, targets=False, progress=fit.progress)
    scores = predict_scores(teacher.model, teacher.targets, rows, stack=teacher.stack, progress=fit.progress)
    references = {}
    for name, task in taught.items():
        known = task.reference(teacher.targets[name], scores[name])
        every = np.full((len(table), known.shape[1]), np.nan, dtype=np.float32)
        every[rows.used] = known
        references[name] = torch.from_numpy(every)
    return references
