"""Replay of passes from CUDA graphs, which removes the overhead of launching kernels one by one.

A pass of a small encoder or a fusion consists of some hundred kernels that take microseconds each, but milliseconds to
launch from Python. Forward and backward are captured once and then launched together. A graph is for static shapes, so
batches are padded to a few sizes as for compiled layers. A graph can be used once an update, as the next replay
overwrites its results.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fusetune import _private
from fusetune.backbones.inspection import structure
from fusetune.backbones.passes.base import Encoder, EncoderPass, single_pass
from fusetune.backbones.passes.compiled import learns_from_padding, padded_pass
from fusetune.errors import RunError
from fusetune.types import Tokens

LAYER_WORK, PADDED_WORK = 2e12, 1e11
"""Floating-point operations of a layer, forward and backward: above the first, launching costs nothing in comparison;
below the second, computing padding costs nothing in comparison with launching."""
MOST = 64
"""Maximum number of graphs of a part."""
SHARE = 8
"""The graphs, each of which has its own gradients, may use 1 / `SHARE` of the GPU's memory for them."""
capture_lock = threading.Lock()
"""Held during a capture, in which no other thread may allocate CUDA memory."""


def why_not_replayed(encoder: Any) -> str:
    """Return why an encoder's passes cannot be replayed, or ""."""
    if encoder.kind == "audio":
        return "sounds have too many lengths"
    if encoder.separate:
        return "it encodes cells of one length at a time"
    return "its batch normalisation would learn from what is padded" if learns_from_padding(encoder) else ""


class Replays:
    """Captured passes of one part of a model.

    Attributes:
        name: of the part, for display.
        failed: why no more passes are captured, in one line; "" if there was no failure.
    """

    def __init__(self, name: str, trained: Sequence[Tensor]) -> None:
        """
        Args:
            name: see above.
            trained: the part's trained parameters, on a GPU.
        """
        self.name, self.failed = name, ""
        self._graphs: dict[Any, Callable[..., tuple[Tensor, ...]]] = {}
        self._pools: list[Any] = []
        self._turn = 0
        size = sum(parameter.nbytes for parameter in trained)
        self._most = min(MOST, memory(trained[0].device) // SHARE // size) if trained else 0

    def __len__(self) -> int:
        """Return the number of graphs."""
        return len(self._graphs)

    def begin(self) -> None:
        """Begin an update, in which every graph may be used again."""
        self._turn = 0

    def forget(self) -> None:
        """Release all graphs and their memory."""
        self._graphs.clear()
        self._pools.clear()

    def run(self, part: nn.Module, tensors: Mapping[str, Tensor], also: Hashable = ()) -> tuple[Tensor, ...] | None:
        """Run a pass by replay, with gradients; return None if it must be computed without a graph.

        Args:
            part: the module to run, with the trained parameters; it takes the tensors in this order.
            tensors: by name.
            also: anything else that the pass depends on, besides the tensors' names, shapes and dtypes.

        Raises:
            RunError: the random generator is unusable after a failed capture.
        """
        index, self._turn = self._turn, self._turn + 1
        kinds = [(name, item.shape, item.dtype, item.requires_grad) for name, item in tensors.items()]
        key = (index, also, *kinds)
        if key not in self._graphs:
            if self.failed or len(self._graphs) >= self._most:
                return None
            while index >= len(self._pools):
                self._pools.append(new_pool())
            try:
                self._graphs[key] = recorded(part, list(tensors.values()), self._pools[index])
            except RunError:
                raise
            except RuntimeError as error:
                self.failed = str(error).strip().splitlines()[0]
                self.forget()
                return None
        return self._graphs[key](*tensors.values())


class ReplayedPass(Replays, EncoderPass):
    """Replay an encoder's passes; large passes, and those that cannot be captured, are computed without a graph."""

    def __init__(self, name: str, encoder: Any) -> None:
        """
        Args:
            name: see `Replays`.
            encoder: a `Backbone` in training mode, after freezing.
        """
        super().__init__(name, [parameter for parameter in encoder.parameters() if parameter.requires_grad])
        result = structure.layers(encoder.model)
        layers = result[1] if result else [encoder.model]
        self._layer = max(sum(parameter.numel() for parameter in layer.parameters()) for layer in layers)

    def takes(self, encoder: Encoder, inputs: Mapping[str, Tensor]) -> bool:
        """Return whether a pass over these inputs should be replayed."""
        return not self.failed and torch.is_grad_enabled() and self._work(inputs) < LAYER_WORK

    def __call__(self, encoder: Encoder, inputs: Mapping[str, Tensor]) -> Tokens:
        """See `EncoderPass`."""

        def replay(padded: dict[str, Tensor]) -> Tokens:
            results = self.run(_Encoding(encoder, list(padded)), padded)
            if results is None:
                return single_pass(encoder, padded)(encoder, padded)
            return Tokens(results[0], results[1], encoder.grid)

        return padded_pass(encoder, inputs, fine=self._is_fine(inputs), run=replay)

    def _is_fine(self, inputs: Mapping[str, Tensor]) -> bool:
        """Return whether a pass is large enough that padding costs time; passes over images are assumed to be."""
        return "attention_mask" not in inputs or self._work(inputs) > PADDED_WORK

    def _work(self, inputs: Mapping[str, Tensor]) -> float:
        """Return the floating-point operations of a layer for texts; 0 for images."""
        mask = inputs.get("attention_mask")
        return 0.0 if mask is None else 6.0 * self._layer * mask.numel()


class _Encoding(nn.Module):
    """An encoder's pass over tensors in a fixed order."""

    def __init__(self, encoder: Any, names: list[str]) -> None:
        super().__init__()
        self.encoder, self.names = encoder, names

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens' values and mask."""
        inputs = dict(zip(self.names, tensors, strict=True))
        tokens = single_pass(self.encoder, inputs)(self.encoder, inputs)
        return tokens.values, tokens.mask


def memory(device: torch.device) -> int:
    """Return a GPU's memory in bytes."""
    return int(torch.cuda.get_device_properties(device).total_memory)


def new_pool() -> Any:
    """Return a memory pool for graphs that are never in use at the same time."""
    return torch.cuda.graph_pool_handle()


def recorded(part: nn.Module, tensors: list[Tensor], pool: Any) -> Callable[..., tuple[Tensor, ...]]:
    """Capture a module's pass; the result takes tensors of the same shapes and returns outputs with gradients.

    The capture uses copies of the parameters in the same memory. The accumulation of the parameters' own gradients
    would synchronise with the stream in which they were created, which is not allowed during a capture.

    Raises:
        RuntimeError: see `capture`; or the pass draws random numbers on the CPU, which a replay would not repeat.
    """
    trained = {name: parameter for name, parameter in part.named_parameters() if parameter.requires_grad}
    names, num = list(trained), len(tensors)

    def over(*given: Tensor) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = functional_call(part, dict(zip(names, given[num:], strict=True)), given[:num])
        return result

    copies = [item.detach().clone().requires_grad_(item.requires_grad) for item in tensors]
    before = _draws()
    replay = capture(over, [*copies, *(item.detach().requires_grad_() for item in trained.values())], pool)
    if _draws() != before:
        raise RuntimeError("random numbers are drawn outside of the GPU")
    return lambda *given: replay(*given, *trained.values())


def _draws() -> tuple[Any, ...]:
    """Return the states of the CPU's random generators."""
    numpy: Any = np.random.get_state(legacy=False)
    keys, index = numpy["state"]["key"], numpy["state"]["pos"]
    return random.getstate(), keys.tobytes(), index, numpy["has_gauss"], torch.get_rng_state().numpy().tobytes()


def capture(over: Callable[..., tuple[Tensor, ...]], tensors: list[Tensor], pool: Any) -> Any:
    """Capture a pass forward and backward, without advancing the random generator.

    Args:
        over: the pass.
        tensors: its static inputs, into which later inputs are copied.
        pool: a memory pool.

    Returns:
        A callable that replays the pass.

    Raises:
        RunError: the random generator is unusable after a failed capture.
        RuntimeError: there is too little memory, or an operation cannot be captured.
    """
    device, dtype = tensors[0].device, torch.get_autocast_dtype("cuda")
    low = torch.is_autocast_enabled("cuda")
    drawn, stream = torch.cuda.get_rng_state(device), torch.cuda.current_stream(device)
    try:
        # A failed capture leaves its stream the current one; the outer context restores it.
        with capture_lock, torch.cuda.stream(stream), torch.autocast("cuda", dtype, enabled=low, cache_enabled=False):
            return torch.cuda.make_graphed_callables(over, tuple(tensors), allow_unused_input=True, pool=pool)
    except RuntimeError as error:
        # It also leaves the generator in capture mode.
        _private.end_failed_capture(device)
        try:
            torch.rand(1, device=device)
        except RuntimeError as after:
            why = str(error).strip().splitlines()[0]
            raise RunError(f"a pass cannot be captured: {why}\n  Do: trainer.cuda_graphs=false") from after
        raise
    finally:
        torch.cuda.set_rng_state(drawn, device)
