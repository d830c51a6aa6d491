"""What the tuned model is compared with: a constant, linear probes, and models that see one modality only."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from fusetune.data.examples import Examples
from fusetune.evaluation.measure.judge import Candidate
from fusetune.inference.features import encoded
from fusetune.inference.predict import predict_logits
from fusetune.models.family import Family
from fusetune.tasks.abilities import Probed
from fusetune.tasks.base import Task
from fusetune.training.probe import Probe, SplitRows
from fusetune.trees.stack import Stack


def parts(examples: Examples) -> dict[str, list[str]]:
    """The columns by the sort of signal they are: text, image, audio, tabular."""
    grouped: dict[str, list[str]] = {}
    for name, column in examples.columns.items():
        grouped.setdefault(column.modality.part_of, []).append(name)
    return grouped


def probe_columns(split: SplitRows, columns: Collection[str]) -> list[str]:
    """Those of the columns that have features before any training."""
    return [name for name in columns if name in split.features]


def model_scores(
    model: Family, name: str, task: Task, split: SplitRows, train: SplitRows, stack: Stack | None = None
) -> np.ndarray:
    """Scores of the labelled rows; rows that the examples do not use get the constant guess learned on train rows.

    Args:
        model: tuned.
        name: the task's name in the model.
        task: fitted.
        split: rows to predict.
        train: rows that the constant guess is learned on.
        stack: the trees beside the model, where there are any.
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


def baseline(task: Task, train: SplitRows, test: SplitRows) -> Candidate:
    """The best constant guess."""
    what = "the mean" if not task.labels else "the most frequent answer, or each label's rate"
    return Candidate(
        "constant guess",
        "baseline",
        f"{what} of the train rows, whatever the input",
        task.constant(train.truth, len(test.indices)),
    )


def before(probe: Probe, test: SplitRows) -> Candidate:
    """The pretrained encoders as they come, with a linear model on their features and on the tabular columns."""
    left_out = [name for name in test.examples.columns if name not in probe.scales]
    note = f"; without {', '.join(left_out)}, which no pretrained model reads" if left_out else ""
    what = f"frozen pretrained encoders and a linear model on their features{note}"
    return Candidate("frozen probe", "before", what, probe.scores(test), list(probe.scales))


def without(
    model: Family, name: str, task: Task, train: SplitRows, test: SplitRows, stack: Stack | None = None
) -> list[Candidate]:
    """The tuned model with one modality hidden from it, one candidate a modality where there are several; and without
    its trees."""
    grouped = parts(test.examples)
    candidates = []
    for part, columns in grouped.items() if len(grouped) > 1 else ():
        seen = test.examples.restrict([column for column in test.examples.columns if column not in columns])
        scores = model_scores(model, name, task, test.seen(seen), train, stack)
        candidates.append(
            Candidate(f"without {part}", "without", f"the tuned model, {', '.join(columns)} hidden", scores, columns)
        )
    if stack is not None and name in stack.blends:
        alone = model_scores(model, name, task, test, train)
        candidates.append(Candidate("without trees", "without", "the tuned network alone, without its trees", alone))
    return candidates


def alone(
    name: str,
    task: Task,
    splits: Mapping[str, SplitRows],
    models: Mapping[str, Family],
    *,
    select: bool = False,
) -> list[Candidate]:
    """Each modality alone, where there are several.

    Args:
        name: the task's name in the model.
        task: fitted.
        splits: "train", "val" and "test".
        models: per modality, a model trained on it alone; the others are probed.
        select: see `Probe.fit`.
    """
    train, val, test = splits["train"], splits["val"], splits["test"]
    grouped = parts(test.examples)
    candidates = []
    for part, columns in grouped.items() if len(grouped) > 1 else ():
        if part in models:
            view = test.seen(encoded(models[part], test.examples.restrict(columns)))
            scores = model_scores(models[part], name, task, view, train)
            what = "tuned with the same recipe on this modality alone"
        elif not isinstance(task, Probed):
            continue
        else:
            scores = Probe.fit(task, train, val, columns, select=select).scores(test)
            what = "frozen encoders of this modality alone, with a linear model"
        candidates.append(Candidate(f"{part} alone", "alone", what, scores, columns))
    return candidates


def single(name: str, task: Task, model: Family, splits: Mapping[str, SplitRows]) -> Candidate:
    """A model tuned for one of several targets only.

    Args:
        name: the task's name in the model.
        task: fitted.
        model: tuned for it.
        splits: "train" and "test".
    """
    test = splits["test"]
    scores = model_scores(model, name, task, test.seen(encoded(model, test.examples)), splits["train"])
    what = "tuned with the same recipe for this target alone"
    return Candidate("this target alone", "single", what, scores, list(test.examples.columns))


def trained_alone(how: str, split: SplitRows, tasks: Collection[Task]) -> list[str]:
    """The modalities that "alone" needs a trained model for.

    All if `how` is "tuned" or a task has no linear probe, else those with a column without frozen features.
    """
    every = how == "tuned" or not all(isinstance(task, Probed) for task in tasks)
    return [
        part
        for part, columns in parts(split.examples).items()
        if every or len(probe_columns(split, columns)) < len(columns)
    ]
