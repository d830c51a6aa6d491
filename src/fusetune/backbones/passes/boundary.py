"""Passes that start at the first trained layer, from cached activations of the frozen layers before it.

They need only the model's list of equal layers: a pass is stopped at the first trained layer to record its input, and
later passes skip the frozen layers. `boundary_pass` verifies that a model supports this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusetune import _private
from fusetune.backbones.convolutions import channels_last
from fusetune.backbones.inputs import AudioInputs, TextInputs
from fusetune.backbones.inspection import structure
from fusetune.backbones.passes.base import BOUNDARY, Encoder, EncoderPass, PlainPass, using
from fusetune.backbones.passes.grouping import RoundedPass, one_pass
from fusetune.types import Tokens

TOLERANCE = 1e-4


class _Reached(Exception):
    """Raised to stop a pass at the first trained layer."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class BoundaryPass(EncoderPass):
    """Start at the first trained layer, whose input is the batch's `BOUNDARY`."""

    def __init__(self, layer: int, *, gives_tuples: bool) -> None:
        """
        Args:
            layer: index of the first layer that runs, see `frozen_layers`.
            gives_tuples: whether the skipped layers return a tuple of one tensor instead of a tensor.
        """
        self.layer, self.gives_tuples = layer, gives_tuples

    def takes(self, encoder: Encoder, inputs: Mapping[str, Tensor]) -> bool:
        """Return whether the inputs have a boundary."""
        return BOUNDARY in inputs

    def __call__(self, encoder: Encoder, inputs: Mapping[str, Tensor]) -> Tokens:
        """See `EncoderPass`."""
        hidden = inputs[BOUNDARY].to(next(encoder.model.parameters()).dtype)
        hidden = channels_last(hidden) if encoder.channels_last else hidden
        rest = {name: tensor for name, tensor in inputs.items() if name != BOUNDARY}
        strategy = one_pass(encoder, rest)
        if isinstance(strategy, RoundedPass):  # as in passes of all layers, so that dropout draws the same
            hidden = F.pad(hidden, (0, 0, 0, strategy.padding(encoder, rest)))
        with starting_at(encoder, self.layer, hidden, gives_tuples=self.gives_tuples):
            return strategy(encoder, rest)


def frozen_layers(backbone: Any) -> int:
    """Return the number of leading layers that, with all before them, are frozen; 0 if passes cannot skip layers."""
    result = structure.layers(backbone.model)
    if result is None or isinstance(backbone.inputs, AudioInputs) or backbone.separate:
        return 0
    path, members = result
    names = [f"{path}.{number}" for number in range(len(members))]
    number = 0
    for name, block in backbone.blocks():
        if any(parameter.requires_grad for parameter in block.parameters()) or name not in ("embeddings", *names):
            break
        number = names.index(name) + 1 if name in names else number
    return number if number < len(members) else 0


def run_to(backbone: Any, number: int, tensors: dict[str, Tensor]) -> Tensor:
    """Return the input of layer `number` for these cells, (rows or parts, ...).

    Raises:
        LookupError: the pass does not reach the layer, or the layer's first argument is not a tensor.
    """
    result = structure.layers(backbone.model)
    assert result is not None

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs.get("hidden_states")
        if not isinstance(hidden, Tensor):
            raise LookupError("the layer reads no tensor first")
        raise _Reached(hidden)

    handle = result[1][number].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with using(backbone, PlainPass()):
            backbone(**tensors)
    except _Reached as reached:
        return reached.hidden
    finally:
        handle.remove()
    raise LookupError("the pass never came to the layer")


@contextmanager
def starting_at(backbone: Any, number: int, hidden: Tensor, *, gives_tuples: bool = False) -> Iterator[None]:
    """Skip the first `number` layers in passes inside the context; the next layer reads `hidden`.

    Args:
        backbone: the encoder.
        number: from `frozen_layers`.
        hidden: from `run_to`.
        gives_tuples: see `BoundaryPass`.
    """
    result = structure.layers(backbone.model)
    assert result is not None

    def first(*args: Any, **kwargs: Any) -> Any:
        return (hidden,) if gives_tuples else hidden

    def later(*args: Any, **kwargs: Any) -> Any:
        passed = args[0] if args else kwargs["hidden_states"]
        return (passed,) if gives_tuples else passed

    skipped = result[1][:number]
    compiled = [_private.compiled_call(layer) for layer in skipped]
    for index, layer in enumerate(skipped):
        layer.forward = later if index else first
        _private.set_compiled_call(layer, None)
    try:
        yield
    finally:
        for layer, before in zip(skipped, compiled, strict=True):
            layer.__dict__.pop("forward", None)
            _private.set_compiled_call(layer, before)


def placeholder_inputs(backbone: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that accompany the boundary: texts' tensors unchanged, one black image for all images."""
    if isinstance(backbone.inputs, TextInputs):
        return tensors
    return {name: tensor if name == "owner" else torch.zeros_like(tensor[:1]) for name, tensor in tensors.items()}


def boundary_pass(backbone: Any, number: int, tensors: dict[str, Tensor]) -> BoundaryPass | None:
    """Return the pass that starts at a layer, or None if it differs from a plain pass by more than `TOLERANCE`.

    Args:
        backbone: in evaluation mode.
        number: from `frozen_layers`.
        tensors: collated tensors of some cells.
    """
    result = structure.layers(backbone.model)
    assert result is not None
    given: list[Any] = []
    handle = result[1][number - 1].register_forward_hook(lambda module, args, output: given.append(output))
    try:
        plain = backbone(**tensors)
        handle.remove()
        if not given or (isinstance(given[0], tuple) and len(given[0]) != 1):
            return None
        tried = BoundaryPass(number, gives_tuples=isinstance(given[0], tuple))
        hidden = run_to(backbone, number, tensors)
        if isinstance(backbone.inputs, TextInputs) and hidden.shape[:2] != tensors["input_ids"].shape:
            return None
        with using(backbone, tried):
            again = backbone(**placeholder_inputs(backbone, tensors), boundary=hidden)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):
        return None
    finally:
        handle.remove()
    scale = float(plain.values.abs().max().clamp(min=1))
    same = again.values.shape == plain.values.shape and torch.equal(again.mask, plain.mask)
    return tried if same and torch.allclose(again.values, plain.values, rtol=0, atol=TOLERANCE * scale) else None
