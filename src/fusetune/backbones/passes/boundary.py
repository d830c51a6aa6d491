"""Frozen first layers of an encoder, run once: what the first trained layer reads is kept, and passes start there.

Nothing is known of the model but its list of equal layers. The first of them that is trained is stopped at, to learn
what it reads; later the frozen ones are passed over. Whether a model bears that is tried out, not assumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fusetune import _private
from fusetune.backbones.convolutions import channels_last
from fusetune.backbones.inputs import AudioInputs, TextInputs
from fusetune.backbones.inspection import structure
from fusetune.backbones.passes.base import BOUNDARY, Encoder, EncoderPass, PlainPass, using
from fusetune.types import Tokens

TOLERANCE = 1e-4


class _Reached(Exception):
    """The pass came to the first trained layer."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class BoundaryPass(EncoderPass):
    """A pass that starts at the first trained layer, with what the inputs bring under `BOUNDARY`."""

    def __init__(self, layer: int, *, gives_tuples: bool) -> None:
        """
        Args:
            layer: the number of the first layer that runs, see `frozen_layers`.
            gives_tuples: whether the layers before it return a tuple of one tensor instead of a tensor.
        """
        self.layer, self.gives_tuples = layer, gives_tuples

    def takes(self, encoder: Encoder, inputs: Mapping[str, Tensor]) -> bool:
        """Return whether the inputs bring a boundary."""
        return BOUNDARY in inputs

    def __call__(self, encoder: Encoder, inputs: Mapping[str, Tensor]) -> Tokens:
        """See `EncoderPass`."""
        hidden = inputs[BOUNDARY].to(next(encoder.model.parameters()).dtype)
        hidden = channels_last(hidden) if encoder.channels_last else hidden
        rest = {name: tensor for name, tensor in inputs.items() if name != BOUNDARY}
        with starting_at(encoder, self.layer, hidden, gives_tuples=self.gives_tuples):
            return PlainPass()(encoder, rest)


def frozen_layers(backbone: Any) -> int:
    """Return how many first layers have nothing to train, nor has anything before them; 0 where a pass cannot start
    later."""
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
    """Return what layer `number` reads of these cells, (rows or parts, ...).

    Raises:
        LookupError: the pass never came there, or the layer reads no tensor first.
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
    """Passes inside skip the first `number` layers, the next one reads `hidden`.

    Args:
        backbone: the encoder.
        number: as `frozen_layers` gave it.
        hidden: as `run_to` gave it.
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


def stand_in(backbone: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that accompany the boundary: texts' tensors unchanged, one black image for all images."""
    if isinstance(backbone.inputs, TextInputs):
        return tensors
    return {name: tensor if name == "owner" else torch.zeros_like(tensor[:1]) for name, tensor in tensors.items()}


def boundary_pass(backbone: Any, number: int, tensors: dict[str, Tensor]) -> BoundaryPass | None:
    """Return the pass that starts at a layer; None where it does not give what a plain pass gives within `TOLERANCE`.

    Args:
        backbone: in evaluation mode.
        number: as `frozen_layers` gave it.
        tensors: what a collate method gave of some cells.
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
            again = backbone(**stand_in(backbone, tensors), boundary=hidden)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):
        return None
    finally:
        handle.remove()
    scale = float(plain.values.abs().max().clamp(min=1))
    same = again.values.shape == plain.values.shape and torch.equal(again.mask, plain.mask)
    return tried if same and torch.allclose(again.values, plain.values, rtol=0, atol=TOLERANCE * scale) else None
