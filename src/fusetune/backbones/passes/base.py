"""`EncoderPass`, a strategy of computing an encoder's forward pass, and `PlainPass`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor, nn

from fusetune.types import Tokens

BOUNDARY = "boundary"
"""Name of the batch input with the input of the first trained layer, (rows or parts, ...)."""


class Encoder(Protocol):
    """The interface of an encoder that passes use; `fusetune.backbones.backbone.Backbone` implements it.

    Attributes:
        model: the wrapped model.
        inputs: prepares and collates its inputs.
        pool: pooling of its tokens.
        max_tokens: maximum number of tokens of a text; 0 for other kinds.
        separate: "" if all rows may share a pass, "lengths" if only rows of equal length may, "cells" if none may.
        grid: the grid of an image's tokens, see `Tokens`.
        channels_last: whether images are encoded in the memory format channels-last.
        start: the pass that starts at the first trained layer, if there is one that was verified.
        wanted: the pass that `using` set.
    """

    model: nn.Module
    inputs: Any
    pool: str
    max_tokens: int
    separate: str
    grid: tuple[int, int, int] | None
    channels_last: bool
    start: EncoderPass | None
    wanted: EncoderPass | None

    def hidden_states(self, **inputs: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run the model: values (rows, tokens, dim), mask (rows, tokens), and its own vector (rows, dim) or None."""
        ...

    def as_tokens(self, values: Tensor, mask: Tensor, own: Tensor | None) -> Tokens:
        """Pool the results of `hidden_states`."""
        ...


class EveryToken:
    """An encoder whose passes return every token, whatever its own pooling; everything else is the encoder's."""

    pool = "none"

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def as_tokens(self, values: Tensor, mask: Tensor, own: Tensor | None) -> Tokens:
        """Return every token."""
        return Tokens(values, mask)


class EncoderPass(ABC):
    """A strategy of computing an encoder's tokens. All strategies return the same tokens up to rounding."""

    def takes(self, encoder: Encoder, inputs: Mapping[str, Tensor]) -> bool:
        """Return whether the strategy supports these inputs; if not, another one is chosen."""
        return True

    @abstractmethod
    def __call__(self, encoder: Encoder, inputs: Mapping[str, Tensor]) -> Tokens:
        """Encode.

        Args:
            encoder: to run.
            inputs: tensors of a collate method without `owner`, (rows or parts, ...); possibly with `BOUNDARY`.

        Returns:
            (rows, 1, dim), or (rows, tokens, dim) with pool "none".
        """


class PlainPass(EncoderPass):
    """Encode all rows at once, padded to the longest one."""

    def takes(self, encoder: Encoder, inputs: Mapping[str, Tensor]) -> bool:
        """Return whether the rows may share a pass that starts at the first layer."""
        return not encoder.separate and BOUNDARY not in inputs

    def __call__(self, encoder: Encoder, inputs: Mapping[str, Tensor]) -> Tokens:
        """See `EncoderPass`."""
        return encoder.as_tokens(*encoder.hidden_states(**inputs))


def single_pass(encoder: Encoder, inputs: Mapping[str, Tensor]) -> EncoderPass:
    """Return the strategy for rows that share a pass: from the boundary if the inputs have one, else plain.

    Raises:
        LookupError: the inputs have a boundary, but the encoder has no verified pass from one.
    """
    if BOUNDARY not in inputs:
        return PlainPass()
    if encoder.start is None:
        raise LookupError("a batch brings a boundary, but no pass from one was tried")
    return encoder.start


@contextmanager
def using(encoder: Any, wanted: EncoderPass) -> Iterator[None]:
    """Prefer a strategy inside the context, for all inputs that it supports.

    Args:
        encoder: any module; one that is not an `Encoder` has only one strategy, and nothing changes.
        wanted: the strategy; the innermost context counts.
    """
    if not hasattr(encoder, "wanted"):
        yield
        return
    before, encoder.wanted = encoder.wanted, wanted
    try:
        yield
    finally:
        encoder.wanted = before
