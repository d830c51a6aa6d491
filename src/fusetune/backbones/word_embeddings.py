"""Perturbation of an encoder's word embeddings in a forward pass."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fusetune import _private
from fusetune.backbones.backbone import Backbone
from fusetune.backbones.passes.base import PlainPass, using
from fusetune.backbones.passes.grouping import one_pass
from fusetune.errors import BackboneError
from fusetune.types import Tokens

PERTURBATION = "perturbation"
"""Name of the input that is added to the word embeddings of a batch's cells, (cells, tokens, features)."""


def word_embeddings(encoder: nn.Module) -> nn.Embedding:
    """Return an encoder's word embeddings: `get_input_embeddings()`, else the largest embedding table.

    Raises:
        BackboneError: it has no embedding table.
    """
    inner: Any = getattr(encoder, "model", encoder)
    try:
        embeddings = inner.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        embeddings = None
    if isinstance(embeddings, nn.Embedding):
        return embeddings
    tables = [module for module in encoder.modules() if isinstance(module, nn.Embedding)]
    largest = max(tables, key=lambda table: table.num_embeddings, default=None)
    if largest is None:
        raise BackboneError(
            f"{type(inner).__name__} looks up no word embeddings that could be perturbed",
            do="name other columns in the attack's `columns`",
        )
    return largest


def run_encoder(encoder: nn.Module, tensors: dict[str, Tensor]) -> Tokens:
    """Run an encoder, adding the tensor under `PERTURBATION`, if there is one, to its word embeddings.

    The tensors may require gradients.
    """
    rest = dict(tensors)
    perturbation = rest.pop(PERTURBATION, None)
    with ExitStack() as after:
        if perturbation is not None:
            table = word_embeddings(encoder)

            def add(module: nn.Module, args: Any, output: Tensor, more: Tensor = perturbation) -> Tensor:
                return output + F.pad(more, (0, 0, 0, output.shape[1] - more.shape[1])).to(output.dtype)

            after.callback(table.register_forward_hook(add).remove)
            strategy = one_pass(encoder, rest) if isinstance(encoder, Backbone) else PlainPass()
            after.enter_context(using(encoder, strategy))
        elif any(tensor.requires_grad for tensor in rest.values()):
            after.enter_context(_private.inputs_not_leaves(encoder))
        tokens: Tokens = encoder(**rest)
        return tokens
