"""What a teacher answers about labels, in the order of the student's."""

from __future__ import annotations

import numpy as np

from fusetune.errors import ConfigError
from fusetune.tasks.base import TargetTask


def label_logits(task: TargetTask, teacher: TargetTask, logits: np.ndarray, *, same: bool, least: int) -> np.ndarray:
    """Return a teacher's logits in the columns of a task's labels, (rows, labels) float32; NaN for unknown labels.

    Args:
        task: the student's, fitted.
        teacher: its task.
        logits: (rows, labels of the teacher).
        same: whether the teacher's task is of the student's kind.
        least: the number of labels that both must have.

    Raises:
        ConfigError: the teacher's task is of another kind, or shares fewer labels.
    """
    columns = {label: index for index, label in enumerate(teacher.labels)}
    both = [label for label in task.labels if label in columns]
    if not same or len(both) < least:
        raise ConfigError(
            f"the teacher of {task.target!r} answers otherwise",
            expected=f"{task.name}, with {least} or more of the labels {', '.join(task.labels[:5])}"
            + (", ..." if len(task.labels) > 5 else ""),
            came=f"{len(both)} of these labels" if same else teacher.name,
            do="name a model that was tuned for this target: objectives.distill.teacher",
        )
    result = np.full((len(logits), len(task.labels)), np.nan, dtype=np.float32)
    for index, label in enumerate(task.labels):
        if label in columns:
            result[:, index] = logits[:, columns[label]]
    return result
