"""The tensors that travel between the parts.

Legend: batch = rows, cells = distinct cells of one column in this batch, tokens = tokens a cell, dim = features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

ALIGNED = 64
"""Bytes at whose multiples the tensors of a packed batch begin."""


@dataclass
class Tokens:
    """Feature vectors with a mask.

    Attributes:
        values: (batch, tokens, dim) float.
        mask: (batch, tokens) bool, True where a token is real.
        grid: (extra, height, width) where the tokens are maps: of each picture first `extra` tokens that lie nowhere
            (a class token), then height * width of them, row by row; a cell's pictures follow one another.
    """

    values: Tensor
    mask: Tensor
    grid: tuple[int, int, int] | None = None

    def mean(self) -> Tensor:
        """The mean of each row's real tokens, zeros where it has none: (batch, dim)."""
        weight = self.mask.unsqueeze(-1).to(self.values.dtype)  # (batch, tokens, 1)
        return (self.values * weight).sum(1) / weight.sum(1).clamp(min=1)


@dataclass
class Target:
    """One task's encoded targets.

    Attributes:
        values: (batch, ...), in the form that the task encodes; any value where a row is unlabelled.
        labelled: (batch,) bool, True where the row has this target.
        sizes: (batch,) float, 0 or more: how much each row counts in the denominator of the mean loss, such as its
            class's weight or its number of tokens. None: 1 each.
    """

    values: Tensor
    labelled: Tensor
    sizes: Tensor | None = None

    def take(self, rows: Tensor) -> Target:
        """Return the targets of some rows, given by their indices or a bool mask."""
        sizes = None if self.sizes is None else self.sizes[rows]
        return Target(self.values[rows], self.labelled[rows], sizes)

    def where(self, mask: Tensor) -> Target:
        """Return the targets with the rows outside of a (batch,) bool mask unlabelled."""
        return Target(self.values, self.labelled & mask, self.sizes)

    def counts(self, weights: Tensor) -> Tensor:
        """Return how much each row counts in the denominator of the mean loss, (batch,): 0 where it is unlabelled.

        Args:
            weights: (batch,) of the rows.
        """
        counts = weights * self.labelled
        return counts if self.sizes is None else counts * self.sizes.to(counts.dtype)


@dataclass
class Batch:
    """Some rows as tensors. Equal cells of a column appear once.

    Attributes:
        inputs: `inputs[column][name]` is a tensor whose first dimension runs over the column's distinct cells
            (or over parts of them, as the modality decides); empty where no row of the batch has the column.
        cells: `cells[column]` is (batch,) int64: which of the cells a row has, -1 where the column is absent.
        codes: `codes[column]` is (batch,) int64: equal for rows with equal cells, whatever batch they come in, -1 where
            the column is absent.
        groups: (batch,) int64, equal for rows of one group (see the schema's `group` role), -1 for rows of none.
        targets: per task.
        weights: (batch,) float, the rows' weights in the loss.
        rows: (batch,) int64, the row ids that errors and predictions are reported under.
        ngrams: per text column with n-grams, `ids` (batch, most) int64 and `values` (batch, most) float32, 0 beyond a
            row's own; see `fusetune.modalities.ngrams`.
        whole: the memory that all the tensors lie in, where they were packed.
    """

    inputs: dict[str, dict[str, Tensor]]
    cells: dict[str, Tensor]
    weights: Tensor
    rows: Tensor
    targets: dict[str, Target] = field(default_factory=dict)
    codes: dict[str, Tensor] = field(default_factory=dict)
    groups: Tensor | None = None
    ngrams: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    whole: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def zero(self) -> Tensor:
        """A scalar 0 where the batch is, to add losses to."""
        return self.weights.new_zeros((), dtype=torch.float32)

    @property
    def present(self) -> dict[str, Tensor]:
        """`present[column]` is (batch,) bool, True where the row has the column."""
        return {column: cells >= 0 for column, cells in self.cells.items()}

    def to(self, device: object) -> Batch:
        """The same on another device; what was packed is copied at once, without waiting where it is pinned."""
        if self.whole is None:
            return self._each(lambda tensor: tensor.to(device))  # type: ignore[call-overload]
        base, moved = self.whole.data_ptr(), self.whole.to(device, non_blocking=True)  # type: ignore[call-overload]

        def there(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() != base:  # put into the batch since
                return tensor.to(device)  # type: ignore[call-overload, no-any-return]
            return _laid(moved, int(tensor.storage_offset()) * tensor.element_size(), tensor)

        return self._each(there)

    def packed(self, *, pin: bool) -> Batch:
        """The same with all tensors in one stretch of memory.

        Args:
            pin: whether it is memory that a GPU reads by itself.
        """
        tensors: list[Tensor] = []
        self._each(lambda tensor: tensors.append(tensor) or tensor)  # type: ignore[func-returns-value]
        sizes = [-(-tensor.nbytes // ALIGNED) * ALIGNED for tensor in tensors]
        whole = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=pin)
        starts = iter([sum(sizes[:place]) for place in range(len(sizes))])
        batch = self._each(lambda tensor: _laid(whole, next(starts), tensor).copy_(tensor))
        batch.whole = whole
        return batch

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with each of its tensors changed."""

        def all_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: change(tensor) for name, tensor in tensors.items()}

        return Batch(
            inputs={column: all_of(tensors) for column, tensors in self.inputs.items()},
            cells=all_of(self.cells),
            weights=change(self.weights),
            rows=change(self.rows),
            targets={
                task: Target(
                    change(target.values),
                    change(target.labelled),
                    None if target.sizes is None else change(target.sizes),
                )
                for task, target in self.targets.items()
            },
            codes=all_of(self.codes),
            groups=None if self.groups is None else change(self.groups),
            ngrams={column: all_of(tensors) for column, tensors in self.ngrams.items()},
        )


def _laid(whole: Tensor, start: int, like: Tensor) -> Tensor:
    """A tensor as another, in memory from a byte on; its memory format too where that leaves no gaps."""
    last = like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last)
    strides = like.stride() if last or like.is_contiguous() else like.contiguous().stride()
    return whole[start : start + like.nbytes].view(like.dtype).as_strided(like.size(), strides)


@dataclass
class Outputs:
    """What a model gives for a batch.

    Attributes:
        logits: per task, in the form its head gives; empty for a family without heads.
        columns: per column, the projected tokens, (batch, tokens, dim); none real in rows that lack it.
        pooled: (batch, dim), the fused representation that the heads read; None for a family without a fusion.
    """

    logits: dict[str, Tensor]
    columns: dict[str, Tokens]
    pooled: Tensor | None = None

    @property
    def fused(self) -> Tensor:
        """`pooled`, (batch, dim), for what cannot do without."""
        assert self.pooled is not None, "only a family that fuses its columns has a pooled vector"
        return self.pooled


def as_numbers(scalars: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Scalars as Python's numbers, in one transfer from their device."""
    tensors = {name: value for name, value in scalars.items() if isinstance(value, Tensor) and not value.is_cpu}
    moved = torch.stack([value.detach().float() for value in tensors.values()]).tolist() if tensors else []
    known = dict(zip(tensors, moved, strict=True))
    return {name: known[name] if name in known else float(value) for name, value in scalars.items()}
