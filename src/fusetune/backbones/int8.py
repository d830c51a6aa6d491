"""Dynamic int8 quantisation of linear layers, for prediction on CPUs with integer dot products.

    y = (round(127 x / a) · round(127 w / b)) · a b / 127² + bias

where a is the largest magnitude in a token's vector and b that in an output's weights: one scale a token and one an
output. The scales are computed on the fly, so there is no calibration, and a row's prediction does not depend on other
rows. Sums are exact. Only the weights' scale is passed to the kernel: with two scales, its order of rounding would
depend on the number of rows. Everything else (attention, normalisation, embeddings, convolutions) stays float32.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from fusetune import _private

M = TypeVar("M", bound=nn.Module)
LEVELS = 127
CHUNK = 1 << 17
"""Number of values that are quantised at a time, so that they fit into the CPU's cache."""
SHARED_INPUTS = [
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"),
]
"""Names of the layers of an attention that usually have the same input, in transformers' models."""


def has_int8() -> bool:
    """Return whether the CPU has integer dot products (AVX512-VNNI)."""
    return _private.has_vnni()


def num_linear(module: nn.Module) -> int:
    """Return the number of layers that `in_int8` would quantise."""
    return sum(type(part) is nn.Linear for part in module.modules())


class SharedInput:
    """The quantised input that several layers share.

    It is reused for the same tensor until a layer reads it a second time, when it may have changed in place.
    """

    def __init__(self) -> None:
        self._values: Callable[[], Tensor | None] = lambda: None
        self._quantised: tuple[Tensor, Tensor] | None = None
        self._readers: set[int] = set()

    def of(self, values: Tensor, reader: int, readers: int) -> tuple[Tensor, Tensor]:
        """Return `quantise(values)`.

        Args:
            values: (..., in).
            reader: index of the layer that reads.
            readers: number of layers.
        """
        if self._quantised is None or self._values() is not values or reader in self._readers:
            self._values, self._quantised, self._readers = weakref.ref(values), quantise(values), set()
        result = self._quantised
        self._readers.add(reader)
        if len(self._readers) == readers:
            self._values, self._quantised = lambda: None, None
        return result


def quantise(values: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise (..., in) float32 to (rows, in) uint8 with the zero point 128; return it with the scales, (rows, 1)."""
    rows = values.flatten(0, -2)
    most = torch.maximum(rows.amax(1, keepdim=True), -rows.amin(1, keepdim=True)).clamp_(min=1e-30)
    factor = LEVELS / most
    quantised = torch.empty(rows.shape, dtype=torch.int8)
    step = max(1, CHUNK // rows.shape[1])
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        quantised[part] = torch.mul(rows[part], factor[part]).round_()
    # The CPU multiplies unsigned by signed integers: flipping the sign bit adds 128, the zero point.
    return quantised.view(torch.uint8).bitwise_xor_(128), most / LEVELS


class Int8Linear(nn.Module):
    """A linear layer with int8 arithmetic, without gradients.

    Attributes:
        weight: (out, in) of the original layer, for code that inspects it.
        bias: (out,) of the original layer, or None.
    """

    def __init__(self, layer: nn.Linear) -> None:
        """
        Args:
            layer: float32, on the CPU.
        """
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        weight = layer.weight.detach()
        self._scale = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / LEVELS  # (out,)
        quantised = (weight / self._scale.unsqueeze(1)).round().to(torch.int8)
        self._packed = _private.pack_int8(quantised)
        self._zeros = torch.zeros(layer.out_features, dtype=torch.int32)
        self._bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias.detach()
        self._shared: tuple[SharedInput, int, int] | None = None

    def forward(self, values: Tensor) -> Tensor:
        """Return (..., in) float32 to (..., out) float32."""
        if self._shared is None:
            unsigned, step = quantise(values)
        else:
            shared, reader, readers = self._shared
            unsigned, step = shared.of(values, reader, readers)
        result = _private.int8_products(unsigned, self._packed, self._scale, self._zeros)
        return torch.addcmul(self._bias, result, step, out=result).view(*values.shape[:-1], self.out_features)


def in_int8(module: M) -> M:
    """Return a copy of a module that shares its tensors and has `Int8Linear` in place of linear layers.

    Args:
        module: float32, on the CPU.
    """
    return cast(M, _view(module, {}))


@torch.no_grad()
def _view(module: nn.Module, seen: dict[nn.Module, nn.Module]) -> nn.Module:
    if module not in seen:
        if type(module) is nn.Linear:  # subclasses may compute something else
            seen[module] = Int8Linear(module)
        else:
            children = _private.children(module).items()
            replaced = {name: None if child is None else _view(child, seen) for name, child in children}
            view = seen[module] = _private.shallow_copy(module, replaced)
            _share_inputs(view)
    return seen[module]


def _share_inputs(module: nn.Module) -> None:
    """Let the layers of an attention share their quantised input."""
    for names in SHARED_INPUTS:
        layers = [getattr(module, name, None) for name in names]
        if all(isinstance(layer, Int8Linear) for layer in layers):
            shared = SharedInput()
            for reader, layer in enumerate(cast(list[Int8Linear], layers)):
                layer._shared = (shared, reader, len(layers))
