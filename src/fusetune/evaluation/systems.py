"""What the tuned model is compared with: a constant, linear probes, and models that see one modality only."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fusetune.data.examples import Examples
from fusetune.evaluation.judge import Candidate
from fusetune.models.understand import Understand
from fusetune.tasks.base import Task
from fusetune.training.inference import predict_logits

Features = Mapping[str, Tensor]


@dataclass
class SplitRows:
    """The rows of one split that are labelled for a task.

    Attributes:
        examples: prepared rows.
        features: frozen encoder outputs per pretrained column, (cells, tokens, dim).
        indices: the labelled rows' places in the table.
        truth: their targets as the task's metrics want them.
    """

    examples: Examples
    features: Features
    indices: np.ndarray
    truth: np.ndarray

    @classmethod
    def of(cls, task: str, examples: Examples, features: Features) -> SplitRows:
        """The labelled rows of some examples."""
        indices = examples.labelled(task)
        truth = examples.tasks[task].truth([examples.targets[task][index] for index in indices])
        return cls(examples, features, indices, truth)


def parts(examples: Examples) -> dict[str, list[str]]:
    """The columns by the sort of signal they are: text, image, audio, tabular."""
    grouped: dict[str, list[str]] = {}
    for name, column in examples.columns.items():
        grouped.setdefault(column.modality.part_of, []).append(name)
    return grouped


def probe_columns(split: SplitRows, columns: Collection[str]) -> list[str]:
    """Those of the columns that have fixed features: a pretrained encoder's, or the modality's own."""
    return [
        name
        for name in columns
        if name in split.features or split.examples.columns[name].modality.probe_features([]) is not None
    ]


def probe_matrix(split: SplitRows, columns: Collection[str]) -> np.ndarray:
    """Fixed features of the columns side by side, (rows, features) float32.

    An absent cell is zeros, and every column that can be absent has a 0/1 feature that says so.
    """
    blocks = []
    for name in columns:
        column = split.examples.columns[name]
        codes = column.codes[split.indices]
        table = _cell_features(split, name)
        block = np.where((codes >= 0)[:, None], table[np.maximum(codes, 0)], np.float32(0))
        blocks += [block, (codes < 0)[:, None].astype(np.float32)]
    return np.concatenate(blocks, axis=1).astype(np.float32)


def _cell_features(split: SplitRows, name: str) -> np.ndarray:
    column = split.examples.columns[name]
    if name in split.features:
        values = split.features[name].mean(1).numpy()
        return values if len(values) else np.zeros((1, values.shape[1]), dtype=np.float32)
    good = [place for place in range(len(column.cells)) if place not in column.bad]
    found = column.modality.probe_features([column.example(place) for place in good])
    assert found is not None
    table = np.zeros((max(1, len(column.cells)), found.shape[1]), dtype=np.float32)
    table[good] = found
    return table


def probe(task: Task, train: SplitRows, val: SplitRows, test: SplitRows, columns: Collection[str]) -> np.ndarray:
    """Test scores of a linear model on fixed features of some columns, its strength chosen on validation rows."""
    model = task.linear(probe_matrix(train, columns), train.truth, probe_matrix(val, columns), val.truth)
    return model.scores(probe_matrix(test, columns))


def model_scores(model: Understand, name: str, task: Task, split: SplitRows, train: SplitRows) -> np.ndarray:
    """Scores of the labelled rows; rows that the examples do not use get the constant guess learned on train rows."""
    scores = task.constant(train.truth, len(split.indices))
    usable = np.isin(split.indices, split.examples.used)
    if usable.any():
        logits = predict_logits(model, split.examples, split.indices[usable])[name]
        scores[usable] = task.scores(logits)
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


def before(task: Task, train: SplitRows, val: SplitRows, test: SplitRows) -> Candidate | None:
    """The pretrained encoders as they come, with a linear model on their features and on the tabular columns."""
    columns = probe_columns(test, test.examples.columns)
    if not columns:
        return None
    left_out = [name for name in test.examples.columns if name not in columns]
    note = f"; without {', '.join(left_out)}, which no pretrained model reads" if left_out else ""
    return Candidate(
        "frozen probe",
        "before",
        f"frozen pretrained encoders and a linear model on their features{note}",
        probe(task, train, val, test, columns),
        columns,
    )


def without(model: Understand, name: str, task: Task, train: SplitRows, test: SplitRows) -> list[Candidate]:
    """The tuned model with one modality hidden from it, one candidate a modality where there are several."""
    grouped = parts(test.examples)
    candidates = []
    for part, columns in grouped.items() if len(grouped) > 1 else ():
        seen = test.examples.restrict([column for column in test.examples.columns if column not in columns])
        view = SplitRows(seen, test.features, test.indices, test.truth)
        scores = model_scores(model, name, task, view, train)
        candidates.append(
            Candidate(f"without {part}", "without", f"the tuned model, {', '.join(columns)} hidden", scores, columns)
        )
    return candidates


def alone(
    name: str,
    task: Task,
    splits: tuple[SplitRows, SplitRows, SplitRows],
    models: Mapping[str, Understand],
) -> list[Candidate]:
    """Each modality alone, where there are several.

    Args:
        name: the task's name in the model.
        task: fitted.
        splits: train, validation and test rows.
        models: per modality, a model trained on it alone; the others are probed.
    """
    train, val, test = splits
    grouped = parts(test.examples)
    candidates = []
    for part, columns in grouped.items() if len(grouped) > 1 else ():
        if part in models:
            view = SplitRows(test.examples.restrict(columns), test.features, test.indices, test.truth)
            scores = model_scores(models[part], name, task, view, train)
            what = "tuned with the same recipe on this modality alone"
        else:
            scores = probe(task, train, val, test, columns)
            what = "frozen encoders of this modality alone, with a linear model"
        candidates.append(Candidate(f"{part} alone", "alone", what, scores, columns))
    return candidates


def trained_alone(how: str, split: SplitRows) -> list[str]:
    """The modalities that "alone" needs a trained model for: all if `how` is "tuned", else those without features."""
    return [
        part
        for part, columns in parts(split.examples).items()
        if how == "tuned" or len(probe_columns(split, columns)) < len(columns)
    ]
