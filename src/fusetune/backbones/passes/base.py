"""What a pass of an encoder is: a batch's tensors in, `Tokens` out; and the plain one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor, nn

from fusetune.types import Tokens

BOUNDARY = "boundary"
"""The input under which a batch brings what the first trained layer reads, (rows or parts, ...)."""


class Encoder(Protocol):
    """What a pass needs of an encoder; `fusetune.backbones.backbone.Backbone` has it.

    Attributes:
        model: the wrapped model.
        inputs: what it reads.
        pool: how its tokens are pooled.
        max_tokens: tokens of a text that are read; 0 for other kinds.
        separate: "" where rows of any lengths may share a pass; "lengths" where only rows of one length may; "cells"
            where none may.
        grid: how a picture's tokens lie in it, see `Tokens`.
        channels_last: whether pictures are encoded with their channels innermost.
        start: the pass that begins at the first trained layer, where one was tried and found right.
        wanted: the pass that is entered with `using`.
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
        """Run the model once: (rows, tokens, dim), (rows, tokens) bool and its own (rows, dim), if it makes one."""
        ...

    def as_tokens(self, values: Tensor, mask: Tensor, own: Tensor | None) -> Tokens:
        """Pool what `hidden_states` returned."""
        ...


class EncoderPass(ABC):
    """One way to compute an encoder's tokens. Every way returns the same tokens, up to rounding."""

    def takes(self, encoder: Encoder, inputs: Mapping[str, Tensor]) -> bool:
        """Return whether these inputs can be computed this way; where not, the usual pass is chosen."""
        return True

    @abstractmethod
    def __call__(self, encoder: Encoder, inputs: Mapping[str, Tensor]) -> Tokens:
        """Encode.

        Args:
            encoder: computes.
            inputs: what a collate method returned without `owner`, first dimension rows or parts; perhaps `BOUNDARY`.

        Returns:
            (rows, 1, dim), or (rows, tokens, dim) with pool "none".
        """


class PlainPass(EncoderPass):
    """All rows at once, padded to the longest."""

    def takes(self, encoder: Encoder, inputs: Mapping[str, Tensor]) -> bool:
        """Return whether rows may share a pass that starts at the first layer."""
        return not encoder.separate and BOUNDARY not in inputs

    def __call__(self, encoder: Encoder, inputs: Mapping[str, Tensor]) -> Tokens:
        """See `EncoderPass`."""
        return encoder.as_tokens(*encoder.hidden_states(**inputs))


def single_pass(encoder: Encoder, inputs: Mapping[str, Tensor]) -> EncoderPass:
    """Return the way to compute rows that share one pass: from the boundary if the inputs bring it, else plain.

    Raises:
        LookupError: the inputs bring a boundary, but no layer was found that passes may start at.
    """
    if BOUNDARY not in inputs:
        return PlainPass()
    if encoder.start is None:
        raise LookupError("a batch brings a boundary, but no pass from one was tried")
    return encoder.start


@contextmanager
def using(encoder: Any, wanted: EncoderPass) -> Iterator[None]:
    """Inside, an encoder computes this way wherever the way takes the inputs.

    Args:
        encoder: any module; one that is no `Encoder` has one way only and stays as it is.
        wanted: the way; the innermost counts.
    """
    if not hasattr(encoder, "wanted"):
        yield
        return
    before, encoder.wanted = encoder.wanted, wanted
    try:
        yield
    finally:
        encoder.wanted = before
