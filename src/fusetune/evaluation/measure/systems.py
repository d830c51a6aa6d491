"""The systems that the tuned model is compared with: a constant guess, linear probes, models of one modality."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from fusetune.data.examples import Examples
from fusetune.evaluation.measure.judge import Candidate
from fusetune.inference.features import encoded
from fusetune.inference.predict import predict_logits
from fusetune.models.family import Family
from fusetune.tasks.abilities import Probed
from fusetune.tasks.base import TargetTask
from fusetune.training.probe import Probe, SplitRows
from fusetune.trees.stack import Stack


def parts(examples: Examples) -> dict[str, list[str]]:
    """Group the columns by modality: text, image, audio, tabular."""
    grouped: dict[str, list[str]] = {}
    for name, column in examples.columns.items():
        grouped.setdefault(column.modality.part_of, []).append(name)
    return grouped


def probe_columns(split: SplitRows, columns: Collection[str]) -> list[str]:
    """Return the columns that have features before any training."""
    return [name for name in columns if name in split.features]


def model_scores(
    model: Family, name: str, task: TargetTask, split: SplitRows, train: SplitRows, stack: Stack | None = None
) -> np.ndarray:
    """Return the model's scores for the rows of a split; unused rows get the constant guess of the train rows.

    Args:
        model: the tuned model.
        name: the task's name in the model.
        task: the fitted task.
        split: the rows to predict.
        train: the rows that give the constant guess.
        stack: the boosted trees beside the model, if any.
    """
    scores = task.constant(train.truth, len(split.indices))
    usable = np.isin(split.indices, split.examples.used)
    if usable.any():
        logits = predict_logits(model, split.examples, split.indices[usable])[name]
        scores[usable] = task.answers(logits)
        if stack is not None:
            rows = split.indices[usable]
            scores[usable] = stack.scores(name, task, scores[usable], split.examples, rows, split.features)
    return scores


def baseline(task: TargetTask, train: SplitRows, test: SplitRows) -> Candidate:
    """Return the best constant guess as a system."""
    what = "the mean" if not task.labels else "the most frequent answer, or each label's rate"
    return Candidate(
        "constant guess",
        "baseline",
        f"{what} of the train rows, whatever the input",
        task.constant(train.truth, len(test.indices)),
    )


def before(probe: Probe, test: SplitRows) -> Candidate:
    """Return the linear probe on frozen pretrained encoders and tabular columns as a system."""
    left_out = [name for name in test.examples.columns if name not in probe.scales]
    note = f"; without {', '.join(left_out)}, which no pretrained model reads" if left_out else ""
    what = f"frozen pretrained encoders and a linear model on their features{note}"
    return Candidate("frozen probe", "before", what, probe.scores(test), list(probe.scales))


def without(
    model: Family, name: str, task: TargetTask, train: SplitRows, test: SplitRows, stack: Stack | None = None
) -> list[Candidate]:
    """Return the tuned model with each modality hidden, if there are several, and without its trees, if it has any."""
    grouped = parts(test.examples)
    candidates = []
    for part, columns in grouped.items() if len(grouped) > 1 else ():
        view = test.examples.restrict([column for column in test.examples.columns if column not in columns])
        scores = model_scores(model, name, task, test.seen(view), train, stack)
        candidates.append(
            Candidate(f"without {part}", "without", f"the tuned model, {', '.join(columns)} hidden", scores, columns)
        )
    if stack is not None and name in stack.blends:
        scores = model_scores(model, name, task, test, train)
        candidates.append(Candidate("without trees", "without", "the tuned network alone, without its trees", scores))
    return candidates


def alone(
    name: str,
    task: TargetTask,
    splits: Mapping[str, SplitRows],
    models: Mapping[str, Family | None],
    *,
    select: bool = False,
) -> list[Candidate]:
    """Return a model of each modality alone, if there are several modalities.

    Args:
        name: the task's name in the model.
        task: the fitted task.
        splits: "train", "val" and "test".
        models: the trained models by modality; modalities without one get a linear probe, those
            with None are left out.
        select: see `Probe.fit`.
    """
    train, val, test = splits["train"], splits["val"], splits["test"]
    grouped = parts(test.examples)
    candidates = []
    for part, columns in grouped.items() if len(grouped) > 1 else ():
        if part in models:
            if (model := models[part]) is None:
                continue
            view = test.seen(encoded(model, test.examples.restrict(columns)))
            scores = model_scores(model, name, task, view, train)
            what = "tuned with the same recipe on this modality alone"
        elif not isinstance(task, Probed):
            continue
        else:
            scores = Probe.fit(task, train, val, columns, select=select).scores(test)
            what = "frozen encoders of this modality alone, with a linear model"
        candidates.append(Candidate(f"{part} alone", "alone", what, scores, columns))
    return candidates


def single(name: str, task: TargetTask, model: Family, splits: Mapping[str, SplitRows]) -> Candidate:
    """Return a model tuned for one of several targets only, as a system.

    Args:
        name: the task's name in the model.
        task: the fitted task.
        model: a model tuned for this target only.
        splits: "train" and "test".
    """
    test = splits["test"]
    scores = model_scores(model, name, task, test.seen(encoded(model, test.examples)), splits["train"])
    what = "tuned with the same recipe for this target alone"
    return Candidate("this target alone", "single", what, scores, list(test.examples.columns))


def trained_alone(how: str, split: SplitRows, tasks: Collection[TargetTask]) -> list[str]:
    """Return the modalities for which "alone" needs a trained model.

    These are all modalities if `how` is "tuned" or a task has no linear probe, else those with a column without frozen
    features.
    """
    every = how == "tuned" or not all(isinstance(task, Probed) for task in tasks)
    return [
        part
        for part, columns in parts(split.examples).items()
        if every or len(probe_columns(split, columns)) < len(columns)
    ]
