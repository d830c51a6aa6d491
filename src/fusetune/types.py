"""The containers that modules exchange: Tokens, TextTokens, Target, Batch, Outputs and Message.

Legend: batch = rows, cells = distinct cells of one column in this batch, tokens = tokens per cell, dim = features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 64
"""Byte alignment of the tensors in a packed batch."""


@dataclass
class Tokens:
    """Feature vectors with a mask.

    Attributes:
        values: (batch, tokens, dim) float.
        mask: (batch, tokens) bool, True where a token is real.
        grid: (extra, height, width) if the tokens are image patches: for each image, `extra` tokens without a position
            (such as a class token), then height * width patches, row by row. A cell's images follow one another. None
            for other tokens.
    """

    values: Tensor
    mask: Tensor
    grid: tuple[int, int, int] | None = None

    def mean(self) -> Tensor:
        """Return the mean of each row's real tokens, (batch, dim); zeros for a row without any."""
        weight = self.mask.unsqueeze(-1).to(self.values.dtype)  # (batch, tokens, 1)
        return (self.values * weight).sum(1) / weight.sum(1).clamp(min=1)


@dataclass
class TextTokens:
    """What the tokens stand for that a task answers one by one.

    Attributes:
        spans: (rows, tokens, 3) int32: which of the row's texts a token comes from, its first character there and the
            one after its last. -1, 0, 0 for padding and for a token that stands for no text. Where the tokens are
            choices, their numbers among all of the row's, blank ones included, 0, 0.
        real: (rows, tokens) bool, False for padding.
        texts: by row, the texts that were read; empty for a row without them.
    """

    spans: np.ndarray
    real: np.ndarray
    texts: Sequence[Sequence[str]]


@dataclass
class Target:
    """One task's encoded targets.

    Attributes:
        values: (batch, ...), encoded by the task; arbitrary for unlabelled rows.
        labelled: (batch,) bool, True if the row has this target.
        sizes: (batch,) float, 0 or more: each row's term in the denominator of the mean loss, such as its class's
            weight or its number of tokens. None counts each row as 1.
        reference: (batch, answers) float, what a model before tuning gave for each row, if the loss compares with it,
            such as the log-probabilities of its answers; None for other losses.
    """

    values: Tensor
    labelled: Tensor
    sizes: Tensor | None = None
    reference: Tensor | None = None

    def take(self, rows: Tensor) -> Target:
        """Select rows by indices or by a (batch,) bool mask."""
        sizes = None if self.sizes is None else self.sizes[rows]
        reference = None if self.reference is None else self.reference[rows]
        return Target(self.values[rows], self.labelled[rows], sizes, reference)

    def where(self, mask: Tensor) -> Target:
        """Return the targets with the rows outside of a (batch,) bool mask unlabelled."""
        return Target(self.values, self.labelled & mask, self.sizes, self.reference)

    def counts(self, weights: Tensor) -> Tensor:
        """Return each row's term in the denominator of the mean loss, (batch,); 0 for unlabelled rows.

        Args:
            weights: (batch,), the rows' weights.
        """
        counts = weights * self.labelled
        return counts if self.sizes is None else counts * self.sizes.to(counts.dtype)


@dataclass
class Batch:
    """Rows as tensors. Equal cells of a column are stored once.

    Attributes:
        inputs: `inputs[column][name]` is a tensor whose first dimension runs over the column's distinct cells, or over
            their parts (a cell's images). Empty if no row of the batch has the column.
        cells: `cells[column]` is (batch,) int64: the index of the row's cell, -1 if the row lacks the column.
        codes: `codes[column]` is (batch,) int64: equal for rows with equal cells, across batches too; -1 if the row
            lacks the column.
        groups: (batch,) int64, equal for rows of one group (see the schema's `group` role), -1 for rows without one.
        targets: by task.
        weights: (batch,) float, the rows' weights in the loss.
        rows: (batch,) int64, the row ids that errors and predictions are reported under.
        ngrams: by text column with n-grams and by part ("tokens", "characters"), `PART_ids` (batch, most) int64 and
            `PART_values` (batch, most) float32, 0 beyond a row's own; see `fusetune.modalities.ngrams`.
        buffer: (bytes,) uint8, the memory that holds all tensors of a packed batch; None if it is not packed.
    """

    inputs: dict[str, dict[str, Tensor]]
    cells: dict[str, Tensor]
    weights: Tensor
    rows: Tensor
    targets: dict[str, Target] = field(default_factory=dict)
    codes: dict[str, Tensor] = field(default_factory=dict)
    groups: Tensor | None = None
    ngrams: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    buffer: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def zero(self) -> Tensor:
        """A float32 scalar 0 on the batch's device, to add losses to."""
        return self.weights.new_zeros((), dtype=torch.float32)

    @property
    def present(self) -> dict[str, Tensor]:
        """`present[column]` is (batch,) bool, True if the row has the column."""
        return {column: cells >= 0 for column, cells in self.cells.items()}

    def to(self, device: object) -> Batch:
        """Copy the batch to a device; a packed batch is one copy, which is asynchronous from pinned memory."""
        if self.buffer is None:
            return self._map(lambda tensor: tensor.to(device))  # type: ignore[call-overload]
        base, moved = self.buffer.data_ptr(), self.buffer.to(device, non_blocking=True)  # type: ignore[call-overload]

        def copied(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() != base:  # replaced after packing
                return tensor.to(device)  # type: ignore[call-overload, no-any-return]
            return _view_as(moved, int(tensor.storage_offset()) * tensor.element_size(), tensor)

        return self._map(copied)

    def packed(self, *, pin: bool) -> Batch:
        """Copy all tensors into one block of memory.

        Args:
            pin: whether to use pinned memory, which a GPU copies from asynchronously.
        """
        tensors: list[Tensor] = []
        self._map(lambda tensor: tensors.append(tensor) or tensor)  # type: ignore[func-returns-value]
        sizes = [-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors]
        buffer = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=pin)
        starts = iter([sum(sizes[:index]) for index in range(len(sizes))])
        batch = self._map(lambda tensor: _view_as(buffer, next(starts), tensor).copy_(tensor))
        batch.buffer = buffer
        return batch

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Apply a function to every tensor of the batch."""

        def changed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: change(tensor) for name, tensor in tensors.items()}

        return Batch(
            inputs={column: changed(tensors) for column, tensors in self.inputs.items()},
            cells=changed(self.cells),
            weights=change(self.weights),
            rows=change(self.rows),
            targets={
                task: Target(
                    change(target.values),
                    change(target.labelled),
                    None if target.sizes is None else change(target.sizes),
                    None if target.reference is None else change(target.reference),
                )
                for task, target in self.targets.items()
            },
            codes=changed(self.codes),
            groups=None if self.groups is None else change(self.groups),
            ngrams={column: changed(tensors) for column, tensors in self.ngrams.items()},
        )


def _view_as(buffer: Tensor, start: int, like: Tensor) -> Tensor:
    """View a buffer from byte `start` with another tensor's dtype, shape and, if it has no gaps, memory format."""
    last = like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last)
    strides = like.stride() if last or like.is_contiguous() else like.contiguous().stride()
    return buffer[start : start + like.nbytes].view(like.dtype).as_strided(like.size(), strides)


@dataclass
class Outputs:
    """A model's outputs for a batch.

    Attributes:
        logits: by task, (batch, ...) from its head; empty for a family without heads.
        columns: by column, the projected tokens, (batch, tokens, dim); a row without the column has no real token.
        sides: by side, its vector as one token, (batch, 1, dim); empty in a family that fuses no sides.
        negatives: by the negative's name, its vector as one token, (batch, 1, dim), as the side has that it is read as;
            a row without it has no real token.
        pooled: (batch, dim), the fused representation that the heads read; None for a family without a fusion.
    """

    logits: dict[str, Tensor]
    columns: dict[str, Tokens]
    pooled: Tensor | None = None
    sides: dict[str, Tokens] = field(default_factory=dict)
    negatives: dict[str, Tokens] = field(default_factory=dict)

    def compared(self, name: str) -> Tokens:
        """Return what is compared with others: a side's vector, in a family without sides a column's tokens."""
        return (self.sides or self.columns)[name]

    @property
    def fused(self) -> Tensor:
        """`pooled`, (batch, dim); an assertion error for a family without a fusion."""
        assert self.pooled is not None, "only a family that fuses its columns has a pooled vector"
        return self.pooled


@dataclass(frozen=True)
class Block:
    """A part of a message's content.

    Attributes:
        type: "text", "image" or "audio".
        value: the text; or the file's path, URL or `data:` URL.
    """

    type: str
    value: str


@dataclass(frozen=True)
class Message:
    """One message of a chat.

    Attributes:
        role: "system", "user" or "assistant".
        content: a text, or blocks of text, images and sounds in order.
        learned: whether a message of the assistant's may be learned.
    """

    role: str
    content: str | tuple[Block, ...]
    learned: bool = field(default=True, repr=False)

    @property
    def text(self) -> str:
        """The message's text: its blocks of text, one a line; images and sounds are left out."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(block.value for block in self.content if block.type == "text")

    @property
    def media(self) -> tuple[Block, ...]:
        """The message's images and sounds, in order."""
        return () if isinstance(self.content, str) else tuple(block for block in self.content if block.type != "text")


def as_numbers(scalars: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Convert scalars to Python floats, with one transfer from the device."""
    tensors = {name: value for name, value in scalars.items() if isinstance(value, Tensor) and not value.is_cpu}
    moved = torch.stack([value.detach().float() for value in tensors.values()]).tolist() if tensors else []
    fetched = dict(zip(tensors, moved, strict=True))
    return {name: fetched[name] if name in fetched else float(value) for name, value in scalars.items()}
