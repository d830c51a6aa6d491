"""`Modality`, the base class of the kinds of columns, and `Augmenter`."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from fusetune.errors import ConfigError
from fusetune.modalities.detection import Detection as Detection
from fusetune.modalities.ngrams import Ngrams


class Augmenter(abc.ABC):
    """Changes a train row's cell at random, in ways that should keep the row's target."""

    @abc.abstractmethod
    def __call__(self, cell: Any, example: Any, rng: np.random.Generator, base_dir: Path) -> Any:
        """Return the augmented example; `example` itself is not changed.

        Args:
            cell: the table's cell.
            example: the cell's example, from `Modality.decode`.
            rng: the only source of randomness, seeded by (seed, epoch, row, column).
            base_dir: folder that relative media paths start from.
        """

    def prepare(  # noqa: B027  (most need nothing)
        self, cells: Sequence[Any], codes: np.ndarray, example: Callable[[int], Any], *, progress: Any = None
    ) -> None:
        """Prepare for training; called once.

        Args:
            cells: the train rows' distinct cells.
            codes: (rows,) the index in `cells` of each row's cell, -1 where it is missing.
            example: `example(index)` returns the example of a distinct cell.
            progress: `progress(iterator, description, total)` wraps an iterator.
        """


class Modality(abc.ABC):
    """A column of one kind: decodes its cells, is fitted on train rows, collates batches and builds the encoder.

    A cell passes through `decode(cell) -> example` (once; the example may be cached), `collate(examples) -> tensors`
    (in every batch) and `encoder(**tensors) -> Tokens`, with one row for each example. Missing cells are never passed.
    The options and what `fit` learned are saved by `state()` as JSON.

    Attributes:
        column: the column's name.
        ngrams: fitted vocabularies of n-grams of the examples' token ids, by part: "tokens", "characters".
    """

    kind: ClassVar[str]
    needs_backbone: ClassVar[bool] = False
    """Whether the constructor takes `backbone=`, a `fusetune.backbones.load.Backbone` that is the encoder."""

    def __init__(self, column: str) -> None:
        self.column = column
        self.ngrams: dict[str, Ngrams] = {}

    @classmethod
    @abc.abstractmethod
    def detect(cls, values: Sequence[Any], *, base_dir: Path) -> Detection:
        """Rate how well a sample of a column's cells fits this kind.

        Args:
            values: cells of the table, none missing.
            base_dir: folder that relative media paths start from.
        """

    @abc.abstractmethod
    def decode(self, cell: Any, *, row: int, base_dir: Path) -> Any:
        """Return the cell's example, which is cached and collated. The result must not depend on `fit`.

        Args:
            cell: of the table, not missing.
            row: the row's id, for errors.
            base_dir: folder that relative media paths start from.

        Raises:
            BadCell: the cell cannot be read as this kind.
        """

    def fit(self, examples: Sequence[Any]) -> None:  # noqa: B027  (most media learn nothing)
        """Fit on the examples of the train rows, one for each row that has the column."""

    @abc.abstractmethod
    def collate(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """Return the encoder's keyword arguments for one or more examples."""

    @property
    @abc.abstractmethod
    def encoder_key(self) -> str:
        """The encoder's name; columns with equal keys share one encoder and its weights.

        It names a submodule, so it has letters, digits and `_` only.
        """

    @abc.abstractmethod
    def build_encoder(self) -> nn.Module:
        """Return a module with `forward(**tensors) -> Tokens`, one row for each example.

        Its attribute `dim` is the number of features of a token, and `pretrained` says whether they are useful before
        training.
        """

    @property
    def joined(self) -> int:
        """How many of the encoder's vectors are side by side one token of the column; 1 for most kinds."""
        return 1

    @property
    def part_of(self) -> str:
        """The modality of this column in reports: "text", "image", "audio" or "tabular"."""
        return self.kind

    def size(self, example: Any) -> int:
        """Return the cost of encoding an example, in a unit of the modality; batches have examples of similar cost."""
        return 1

    def augmenter(self, **options: Any) -> Augmenter:
        """Return the augmenter of this column; called after `fit`.

        Args:
            options: the settings of `augment.KIND`.

        Raises:
            ConfigError: an option is unknown or out of range, or the kind cannot be augmented.
        """
        raise ConfigError(
            f"columns of kind {self.kind} cannot be augmented",
            column=self.column,
            do=f"leave out augment.{self.kind}, or set columns.{self.column}.augment=none",
        )

    @abc.abstractmethod
    def state(self) -> dict[str, Any]:
        """Return the options and what `fit` learned, as JSON for `from_state`."""

    @classmethod
    @abc.abstractmethod
    def from_state(cls, column: str, state: dict[str, Any], backbone: Any = None) -> Modality:
        """Restore a modality.

        Args:
            column: the column's name.
            state: from `state()`.
            backbone: the encoder, for kinds that need one.
        """
