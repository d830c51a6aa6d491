"""Encoders whose input is changed in a forward pass: word embeddings with something added to them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from fusetune import _private
from fusetune.backbones.passes.base import PlainPass, using
from fusetune.errors import BackboneError
from fusetune.types import Tokens

SHIFT = "shift"
"""The input under which a batch brings what is added to its cells' word embeddings, (cells, tokens, features)."""


def word_embeddings(encoder: nn.Module) -> nn.Embedding:
    """Return what turns token ids into vectors: what the model says itself, else the embedding of the most entries.

    Raises:
        BackboneError: there is none.
    """
    inner: Any = getattr(encoder, "model", encoder)
    try:
        said = inner.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        said = None
    if isinstance(said, nn.Embedding):
        return said
    tables = [module for module in encoder.modules() if isinstance(module, nn.Embedding)]
    result = max(tables, key=lambda table: table.num_embeddings, default=None)
    if result is None:
        raise BackboneError(
            f"{type(inner).__name__} looks up no word embeddings that could be perturbed",
            do="name other columns in the attack's `columns`",
        )
    return result


def encode(encoder: nn.Module, tensors: dict[str, Tensor]) -> Tokens:
    """Return the encoder's tokens, its word embeddings shifted by the tensor under `SHIFT` where there is one.

    The tensors may take gradients.
    """
    rest = dict(tensors)
    shift = rest.pop(SHIFT, None)
    with ExitStack() as after:
        if shift is not None:
            table = word_embeddings(encoder)
            handle = table.register_forward_hook(lambda module, args, output: output + shift.to(output.dtype))
            after.callback(handle.remove)
            after.enter_context(using(encoder, PlainPass()))
        elif any(tensor.requires_grad for tensor in rest.values()):
            after.enter_context(_private.inputs_not_leaves(encoder))
        tokens: Tokens = encoder(**rest)
        return tokens
