"""The systems that the tuned model is compared with: a constant guess, linear probes, models of one modality."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from fusetune.data.examples import Examples
from fusetune.evaluation.measure.judge import Candidate
from fusetune.inference.answers import answers_of
from fusetune.inference.features import encoded
from fusetune.inference.predict import predict_logits
from fusetune.models.family import Family
from fusetune.tasks.abilities import Probed, Thresholded
from fusetune.tasks.base import TargetTask
from fusetune.training.probes.probe import SplitRows, StartingPoint
from fusetune.training.probes.token_probe import fit_probe
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
        scores[usable] = answers_of(split.examples, task, logits, split.indices[usable])
        if stack is not None:
            rows = split.indices[usable]
            scores[usable] = stack.scores(name, task, scores[usable], split.examples, rows, split.features)
    return scores


def baseline(task: TargetTask, train: SplitRows, test: SplitRows, val: SplitRows | None = None) -> Candidate:
    """Return the best constant guess as a system; `val` are the rows on which its thresholds are tuned."""
    what = "the mean" if not task.labels else "the most frequent answer, or each label's rate"
    what = task.constant_is or f"{what} of the train rows"
    return Candidate(
        "constant guess",
        "baseline",
        f"{what}, whatever the input",
        task.constant(train.truth, len(test.indices)),
        validation=None if val is None else task.constant(train.truth, len(val.indices)),
    )


def before(probe: StartingPoint, test: SplitRows, val: SplitRows | None = None) -> Candidate:
    """Return the linear probe on frozen pretrained encoders and tabular columns as a system.

    Args:
        probe: the fitted probe.
        test: the rows to predict.
        val: the rows on which its thresholds are tuned, if it has any.
    """
    left_out = [name for name in test.examples.columns if name not in probe.scales]
    note = f"; without {', '.join(left_out)}, which no pretrained model reads" if left_out else ""
    what = f"frozen pretrained encoders and a linear model on their features{note}"
    validation = None if val is None else probe.scores(val)
    return Candidate("frozen probe", "before", what, probe.scores(test), list(probe.scales), validation)


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
    grouped, needed = parts(test.examples), _needed(task, splits)
    candidates = []
    for part, columns in grouped.items() if len(grouped) > 1 else ():
        if task.reads is not None and task.reads not in columns:
            continue  # there is nothing to answer about
        if part in models:
            if (model := models[part]) is None:
                continue
            answers = [
                model_scores(model, name, task, split.seen(encoded(model, split.examples.restrict(columns))), train)
                for split in needed
            ]
            what = "tuned with the same recipe on this modality alone"
        elif (probe := fit_probe(task, train, val, columns, select=select)) is None:
            continue
        else:
            answers = [probe.scores(split) for split in needed]
            what = "frozen encoders of this modality alone, with a linear model"
        candidates.append(Candidate(f"{part} alone", "alone", what, answers[0], columns, _validation(answers)))
    return candidates


def single(name: str, task: TargetTask, model: Family, splits: Mapping[str, SplitRows]) -> Candidate:
    """Return a model tuned for one of several targets only, as a system.

    Args:
        name: the task's name in the model.
        task: the fitted task.
        model: a model tuned for this target only.
        splits: "train", "val" and "test".
    """
    train, test = splits["train"], splits["test"]
    answers = [
        model_scores(model, name, task, split.seen(encoded(model, split.examples)), train)
        for split in _needed(task, splits)
    ]
    what = "tuned with the same recipe for this target alone"
    columns = list(test.examples.columns)
    return Candidate("this target alone", "single", what, answers[0], columns, _validation(answers))


def _needed(task: TargetTask, splits: Mapping[str, SplitRows]) -> list[SplitRows]:
    """Return the rows that a system must predict: the test rows and, if it has thresholds, the validation rows."""
    return [splits[name] for name in ("test", *(("val",) if isinstance(task, Thresholded) else ()))]


def _validation(answers: list[np.ndarray]) -> np.ndarray | None:
    return answers[1] if len(answers) > 1 else None


def trained_alone(how: str, split: SplitRows, tasks: Collection[TargetTask]) -> list[str]:
    """Return the modalities for which "alone" needs a trained model.

    These are all modalities if `how` is "tuned" or a task has no linear probe, else those with a column without frozen
    features.
    """
    every = how == "tuned" or not all(isinstance(task, Probed) or task.reads for task in tasks)
    return [
        part
        for part, columns in parts(split.examples).items()
        if every or len(probe_columns(split, columns)) < len(columns)
    ]
