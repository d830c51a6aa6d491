"""What the models of each family predict: the output table's columns, and the words for them in the model card."""

from __future__ import annotations

import abc
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from fusetune.backbones.language import LanguageModel
from fusetune.data.column import Progress
from fusetune.data.examples import Examples
from fusetune.deploy.bundle import Bundle
from fusetune.errors import ConfigError
from fusetune.inference.predict import pooled_vectors, row_vectors
from fusetune.inference.scores import predict_scores
from fusetune.inference.write import Written, decoding_of, write
from fusetune.models.generate import Generate
from fusetune.models.match import Match
from fusetune.models.understand import Understand
from fusetune.tasks.abilities import Writes

OutputColumn = tuple[str, pa.DataType, list[Any]]
"""Name, type, and a value for each used row; None where there is none."""


class Output(abc.ABC):
    """The predictions of one family of models."""

    @abc.abstractmethod
    def title(self, bundle: Bundle) -> str:
        """Return the model card's title: "Predicts `price`"."""

    @abc.abstractmethod
    def details(self, bundle: Bundle) -> list[str]:
        """Return a line for each prediction."""

    @abc.abstractmethod
    def columns(self, bundle: Bundle, examples: Examples | None, progress: Progress | None) -> Iterator[OutputColumn]:
        """Yield the output columns.

        Args:
            bundle: the tuned model.
            examples: prepared rows; None, or rows of which none is used, give the same columns without values.
            progress: wraps iterators.
        """


class TargetColumns(Output):
    """A prediction per target, with details such as probabilities."""

    def title(self, bundle: Bundle) -> str:
        """See `Output.title`."""
        return f"Predicts {', '.join(f'`{name}`' for name in bundle.targets)}"

    def details(self, bundle: Bundle) -> list[str]:
        """See `Output.details`."""
        lines = []
        for name, task in bundle.targets.items():
            labels = f": {', '.join(cell_text(label) for label in task.labels[:30])}" if task.labels else ""
            more = f" and {len(task.labels) - 30} more" if len(task.labels) > 30 else ""
            lines.append(f"- `{name}`, {task.name}{labels}{more}")
        return lines

    def columns(self, bundle: Bundle, examples: Examples | None, progress: Progress | None) -> Iterator[OutputColumn]:
        """See `Output.columns`."""
        model = bundle.model
        assert isinstance(model, Understand)
        scores: dict[str, Any] = {}
        if examples is not None and len(examples):
            scores = self.scores(bundle, examples, progress)
        for name, task in bundle.targets.items():
            size = model.at_zero(name)
            size = size.view(1, 1, -1) if task.reads is not None else size.unsqueeze(0)
            like = task.columns(task.example_answers(torch.zeros_like(size, device="cpu")))
            predicted = task.columns(scores[name]) if scores else {column: [] for column in like}
            for column, values in predicted.items():
                yield column, pa.array(like[column]).type, values

    def scores(self, bundle: Bundle, examples: Examples, progress: Progress | None) -> dict[str, np.ndarray]:
        """Return by task the used rows' scores, from which the columns are made; see `predict_scores`."""
        return predict_scores(bundle.model, bundle.targets, examples, stack=bundle.stack, progress=progress)


class VectorColumns(Output):
    """A vector per input column, or per side, in the common space.

    Args:
        dim: how many of a vector's first numbers are taken; None takes all.
    """

    def __init__(self, dim: int | None = None) -> None:
        self.dim = dim

    def title(self, bundle: Bundle) -> str:
        """See `Output.title`."""
        sides = bundle.model.compared
        if sides.keys() == bundle.modalities.keys():
            return f"Aligns {', '.join(cell_text(name) for name in sides)}"
        shown = (", ".join(map(cell_text, columns)) for columns in sides.values())
        return f"Matches {' with '.join(shown)}"

    def details(self, bundle: Bundle) -> list[str]:
        """See `Output.details`."""
        dim = bundle.model.dim
        return [
            f"- `{name}_vector`, {dim} numbers from {', '.join(map(cell_text, columns))}, near what belongs to it"
            for name, columns in bundle.model.compared.items()
        ]

    def columns(self, bundle: Bundle, examples: Examples | None, progress: Progress | None) -> Iterator[OutputColumn]:
        """See `Output.columns`."""
        kind = pa.list_(pa.float32())
        if examples is None or not len(examples):
            yield from ((f"{name}_vector", kind, []) for name in bundle.model.compared)
            return
        vectors = row_vectors(bundle.model, examples, examples.used, dim=self.dim)
        for name, columns in bundle.model.compared.items():
            present = np.any([examples.columns[column].codes[examples.used] >= 0 for column in columns], axis=0)
            values = [
                vector.tolist() if has else None for vector, has in zip(vectors[name].numpy(), present, strict=True)
            ]
            yield f"{name}_vector", kind, values


class MatchColumns(VectorColumns):
    """The answer about the pair, if the model learned a target, then a vector per side."""

    def title(self, bundle: Bundle) -> str:
        """See `Output.title`."""
        targets = ", ".join(f"`{cell_text(name)}`" for name in bundle.targets)
        return super().title(bundle) + (f" by {targets}" if targets else "")

    def details(self, bundle: Bundle) -> list[str]:
        """See `Output.details`."""
        lines = [f"- `{cell_text(name)}`, {task.name}" for name, task in bundle.targets.items()]
        return lines + super().details(bundle)

    def columns(self, bundle: Bundle, examples: Examples | None, progress: Progress | None) -> Iterator[OutputColumn]:
        """See `Output.columns`."""
        columns = list(super().columns(bundle, examples, progress))
        model, sides = bundle.model, [values for _, _, values in columns]
        for name, task in bundle.targets.items():
            assert isinstance(model, Match)
            like, head = task.columns(task.example_answers(torch.zeros(1))), model.heads[model.tasks.index(name)]
            both = [row for row, pair in enumerate(zip(*sides, strict=True)) if None not in pair]
            vectors = torch.tensor([[*sides[0][row], *sides[1][row]] for row in both]).view(len(both), -1)
            predicted = task.columns(task.answers(head(vectors)))
            for column, values in predicted.items():
                spread: list[Any] = [None] * len(sides[0])
                for row, value in zip(both, values, strict=True):
                    spread[row] = value
                yield column, pa.array(like[column]).type, spread
        yield from columns


class TextColumns(TargetColumns):
    """A text per target, its log-probability, and why it ends; with choices their probabilities as JSON."""

    def details(self, bundle: Bundle) -> list[str]:
        """See `Output.details`."""
        return [f"- `{cell_text(name)}`, written by {_language(bundle).source}" for name in bundle.targets]

    def columns(self, bundle: Bundle, examples: Examples | None, progress: Progress | None) -> Iterator[OutputColumn]:
        """See `Output.columns`."""
        model = bundle.model
        assert isinstance(model, Generate)
        for name, task in bundle.targets.items():
            assert isinstance(task, Writes)
            decoding = decoding_of(bundle.config.generation, task)
            written = Written.empty(0, choices=len(decoding.choices))
            if examples is not None and len(examples):
                written = write(model, name, task, examples, examples.used, decoding, progress=progress)
            yield task.target, pa.string(), list(written.texts)
            yield f"{task.target}_log_probability", pa.float32(), written.log_probabilities.tolist()
            yield f"{task.target}_finish", pa.string(), list(written.finish)
            if decoding.choices:
                rows = [dict(zip(decoding.choices, map(float, row), strict=True)) for row in np.exp(written.choices)]
                scores = [
                    None if text is None else json.dumps(row, ensure_ascii=False)
                    for text, row in zip(written.texts, rows, strict=True)
                ]
                yield f"{task.target}_choices", pa.string(), scores


def _language(bundle: Bundle) -> LanguageModel:
    assert isinstance(bundle.model, Generate)
    return bundle.model.language


class PooledVectors(VectorColumns):
    """A row's vector: what a model's heads read, before them."""

    def columns(self, bundle: Bundle, examples: Examples | None, progress: Progress | None) -> Iterator[OutputColumn]:
        """See `Output.columns`."""
        kind, vectors = pa.list_(pa.float32()), []
        if examples is not None and len(examples):
            vectors = pooled_vectors(bundle.model, examples, examples.used).numpy().tolist()
        yield "vector", kind, vectors


EMBEDDINGS: dict[str, Output] = {Understand.name: PooledVectors(), Match.name: VectorColumns()}
"""What `embed` writes, by the family's name."""


def embeddings_of(bundle: Bundle) -> Output:
    """Return what `embed` writes.

    Raises:
        ConfigError: the model writes.
    """
    if bundle.model.name not in EMBEDDINGS:
        raise ConfigError(
            "a model that writes gives no vectors",
            expected="a model that predicts or compares",
            came=f"a model that writes {', '.join(bundle.targets)}",
            do="call predict for its answers",
        )
    return EMBEDDINGS[bundle.model.name]


OUTPUTS: dict[str, Output] = {
    Understand.name: TargetColumns(),
    Match.name: MatchColumns(),
    Generate.name: TextColumns(),
}
"""By the family's name."""


def cell_text(text: str) -> str:
    """Escape text for a Markdown table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
