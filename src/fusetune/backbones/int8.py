"""Encoders whose linear layers multiply 8-bit integers, for predictions on a processor that does so itself.

    y = (round(127 x / a) · round(127 w / b)) · a b / 127² + bias

with a the largest magnitude in a token's vector and b in an output's weights: one scale a token and one an output,
found from the numbers at hand, so nothing is calibrated and a row's prediction does not depend on the rows beside it.
Sums are exact. The kernel is given the weights' scale alone: of two scales it rounds the products in an order that
depends on the number of rows. All else (attention, normalisation, embeddings, convolutions) stays float32.
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
"""Numbers that are rounded at a time: what the processor's cache holds."""
TOGETHER = [("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"), ("q", "k", "v")]
"""Layers of one attention that mostly read the same, as transformers' models name them."""


def has_int8() -> bool:
    """Return whether the processor sums products of 8-bit integers itself (AVX512-VNNI)."""
    return _private.has_vnni()


def num_linear(module: nn.Module) -> int:
    """Return how many layers `in_int8` would change."""
    return sum(type(part) is nn.Linear for part in module.modules())


class Rounded:
    """What several layers read one after another, rounded once.

    It holds for the same tensor, until a layer reads it the second time: then it may have changed in place.
    """

    def __init__(self) -> None:
        self._values: Callable[[], Tensor | None] = lambda: None
        self._found: tuple[Tensor, Tensor] | None = None
        self._readers: set[int] = set()

    def of(self, values: Tensor, reader: int, readers: int) -> tuple[Tensor, Tensor]:
        """Return the same as `rounded`.

        Args:
            values: (..., in).
            reader: which layer reads.
            readers: how many there are.
        """
        if self._found is None or self._values() is not values or reader in self._readers:
            self._values, self._found, self._readers = weakref.ref(values), rounded(values), set()
        result = self._found
        self._readers.add(reader)
        if len(self._readers) == readers:
            self._values, self._found = lambda: None, None
        return result


def rounded(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return (rows, in) uint8, 128 for zero, and the size of each row's step, (rows, 1); of (..., in) float32."""
    rows = values.flatten(0, -2)
    most = torch.maximum(rows.amax(1, keepdim=True), -rows.amin(1, keepdim=True)).clamp_(min=1e-30)
    factor = LEVELS / most
    whole = torch.empty(rows.shape, dtype=torch.int8)
    step = max(1, CHUNK // rows.shape[1])
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        whole[part] = torch.mul(rows[part], factor[part]).round_()
    # The processor multiplies unsigned by signed: a flipped first bit is 128 added, which is the zero point.
    return whole.view(torch.uint8).bitwise_xor_(128), most / LEVELS


class Int8Linear(nn.Module):
    """A linear layer in 8-bit integers, without gradients.

    Attributes:
        weight: (out, in) of the layer it stands for, for code that looks at it.
        bias: (out,) of that layer, or None.
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
        whole = (weight / self._scale.unsqueeze(1)).round().to(torch.int8)
        self._packed = _private.pack_int8(whole)
        self._zeros = torch.zeros(layer.out_features, dtype=torch.int32)
        self._bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias.detach()
        self._rounded: tuple[Rounded, int, int] | None = None

    def forward(self, values: Tensor) -> Tensor:
        """Return (..., in) float32 to (..., out) float32."""
        if self._rounded is None:
            unsigned, step = rounded(values)
        else:
            shared, reader, readers = self._rounded
            unsigned, step = shared.of(values, reader, readers)
        result = _private.int8_products(unsigned, self._packed, self._scale, self._zeros)
        return torch.addcmul(self._bias, result, step, out=result).view(*values.shape[:-1], self.out_features)


def in_int8(module: M) -> M:
    """Return a module that shares every tensor and setting with this one, but whose linear layers are in 8-bit
    integers.

    Args:
        module: float32, on the CPU.
    """
    return cast(M, _view(module, {}))


@torch.no_grad()
def _view(module: nn.Module, seen: dict[nn.Module, nn.Module]) -> nn.Module:
    if module not in seen:
        if type(module) is nn.Linear:  # a subclass may do something else
            seen[module] = Int8Linear(module)
        else:
            children = _private.children(module).items()
            replaced = {name: None if child is None else _view(child, seen) for name, child in children}
            view = seen[module] = _private.shallow_copy(module, replaced)
            _round_once(view)
    return seen[module]


def _round_once(module: nn.Module) -> None:
    """Have an attention's layers round once what they all read."""
    for names in TOGETHER:
        layers = [getattr(module, name, None) for name in names]
        if all(isinstance(layer, Int8Linear) for layer in layers):
            shared = Rounded()
            for reader, layer in enumerate(cast(list[Int8Linear], layers)):
                layer._rounded = (shared, reader, len(layers))
