"""The contract of a modality: one kind of column, from cells to tokens."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from fusetune.errors import ConfigError
from fusetune.modalities.ngrams import Ngrams


@dataclass(frozen=True)
class Detection:
    """How sure a modality is that a column is of its kind.

    Attributes:
        confidence: 0 (cannot be) to 1 (can be nothing else).
        reason: what it saw, for people: "all 200 sampled cells parse as numbers".
    """

    confidence: float
    reason: str


class Augmenter(abc.ABC):
    """Changes a train row's cell a little, in a way that should not change the row's target."""

    @abc.abstractmethod
    def __call__(self, cell: Any, example: Any, rng: np.random.Generator, base_dir: Path) -> Any:
        """Return an example to be used in place of `example`, which is left as it is.

        Args:
            cell: as the table has it.
            example: what `Modality.decode` made of it.
            rng: the only source of chance; made from (seed, epoch, row, column).
            base_dir: where relative media paths start.
        """

    def prepare(  # noqa: B027  (most need nothing)
        self, cells: Sequence[Any], codes: np.ndarray, example: Callable[[int], Any], *, progress: Any = None
    ) -> None:
        """Whatever is done once before training.

        Args:
            cells: the train rows' distinct cells.
            codes: (rows,) which of them each row has, -1 for none.
            example: what `Modality.decode` made of a distinct cell.
            progress: wraps iterators.
        """


class Modality(abc.ABC):
    """One column of one kind: reads its cells, learns what it must from train rows, makes tensors and an encoder.

    The way of a cell: `decode(cell) -> example` (once; may be kept in memory), `collate(examples) -> tensors`
    (every batch), `encoder(**tensors) -> Tokens` with one row per example. A missing cell never gets here.
    What `fit` learned and the options travel in `state()`, which is JSON.

    Attributes:
        ngrams: a vocabulary of n-grams of the examples, where they are token ids and it was learned.
    """

    kind: ClassVar[str]
    needs_backbone: ClassVar[bool] = False
    """Whether the constructor takes `backbone=`, a `fusetune.backbones.load.Backbone`, which is then the encoder."""

    def __init__(self, column: str) -> None:
        self.column = column
        self.ngrams: Ngrams | None = None

    @classmethod
    @abc.abstractmethod
    def detect(cls, values: Sequence[Any], *, base_dir: Path) -> Detection:
        """Return how well a sample of a column's cells fits this kind.

        Args:
            values: cells that are not missing, as the table has them.
            base_dir: where relative media paths start.
        """

    @abc.abstractmethod
    def decode(self, cell: Any, *, row: int, base_dir: Path) -> Any:
        """Return the cell as an example: what is kept and collated. Does not depend on `fit`.

        Raises:
            BadCell: the cell cannot be read as this kind.
        """

    def fit(self, examples: Sequence[Any]) -> None:  # noqa: B027  (most media learn nothing)
        """Learn from the decoded examples of the train rows, one for each row that has the column."""

    @abc.abstractmethod
    def collate(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """At least one example as tensors; the encoder's keyword arguments."""

    @property
    @abc.abstractmethod
    def encoder_key(self) -> str:
        """Names the encoder: columns with equal keys share one encoder and its weights.

        Letters, digits and `_` only, as it names a submodule.
        """

    @abc.abstractmethod
    def build_encoder(self) -> nn.Module:
        """Return a module with `forward(**tensors) -> Tokens` (one row per example), the attribute `dim` (its output
        features) and the attribute `pretrained`: whether its features are of use before any training."""

    @property
    def part_of(self) -> str:
        """The sort of signal this column belongs to in reports: "text", "image", "audio" or "tabular"."""
        return self.kind

    def size(self, example: Any) -> int:
        """Return what an example costs to encode, in this modality's own unit; batches are made of like sizes."""
        return 1

    def augmenter(self, **options: Any) -> Augmenter:
        """Return what changes this column's cells in training, after `fit`.

        Args:
            options: what changes and how much; the kind decides which there are.

        Raises:
            ConfigError: an unknown option, one out of range, or the kind cannot be augmented.
        """
        raise ConfigError(
            f"columns of kind {self.kind} cannot be augmented",
            column=self.column,
            do=f"leave out augment.{self.kind}, or set columns.{self.column}.augment=none",
        )

    @abc.abstractmethod
    def state(self) -> dict[str, Any]:
        """Return everything `from_state` needs, as JSON: options and what `fit` learned."""

    @classmethod
    @abc.abstractmethod
    def from_state(cls, column: str, state: dict[str, Any], backbone: Any = None) -> Modality:
        """Return the modality that `state()` described; `backbone` is its encoder where the kind needs one."""
