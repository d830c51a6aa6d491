"""Passes of a model's parts replayed from CUDA graphs, so that a GPU does not wait for single launches.

A pass of a small encoder, or of a fusion, is some hundred kernels that take microseconds each and that Python launches
in milliseconds. Captured once, forward and backward, they are launched as one. A graph holds for one shape, so batches
are padded to a few sizes as for compiled layers, and for one use an update: its results lie where the next replay
writes them.
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
"""Operations of a layer's pass, forward and backward, beside which the time of launching it is nothing; and up to which
the time of computing padding is nothing beside that of launching it."""
MOST = 64
"""Graphs a part may have."""
SHARE = 8
"""The graphs' gradients, which each has of its own, may take one part in so many of the GPU's memory."""
alone = threading.Lock()
"""Held while a pass is captured, in which no other thread may ask CUDA for memory."""


def why_not(encoder: Any) -> str:
    """Return why an encoder's passes cannot be replayed; empty where they can."""
    if encoder.kind == "audio":
        return "sounds have too many lengths"
    if encoder.separate:
        return "it encodes cells of one length at a time"
    return "its batch normalisation would learn from what is padded" if learns_from_padding(encoder) else ""


class Replays:
    """Captured passes of one part of a model.

    Attributes:
        name: of the part, as shown.
        failed: why there will be no more of them, in one line; empty while there may be.
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
        """Return how many there are."""
        return len(self._graphs)

    def begin(self) -> None:
        """An update begins: every graph may be used again."""
        self._turn = 0

    def forget(self) -> None:
        """Let go of all graphs and their memory."""
        self._graphs.clear()
        self._pools.clear()

    def run(self, part: nn.Module, tensors: Mapping[str, Tensor], also: Hashable = ()) -> tuple[Tensor, ...] | None:
        """Return the results of a pass over tensors, which take gradients; None where it is to be computed as else.

        Args:
            part: makes the pass: it has the trained parameters and takes these tensors, in this order.
            tensors: by name.
            also: what the pass depends on besides their names, shapes and kinds.

        Raises:
            RunError: draws fail after a recording that failed.
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
    """An encoder's passes, replayed; what is not worth a replay, or cannot be captured, is computed as usual."""

    def __init__(self, name: str, encoder: Any) -> None:
        """
        Args:
            name: see `Replays`.
            encoder: a `Backbone`, in training mode, with the parameters trainable that will be.
        """
        super().__init__(name, [parameter for parameter in encoder.parameters() if parameter.requires_grad])
        result = structure.layers(encoder.model)
        layers = result[1] if result else [encoder.model]
        self._layer = max(sum(parameter.numel() for parameter in layer.parameters()) for layer in layers)

    def takes(self, encoder: Encoder, inputs: Mapping[str, Tensor]) -> bool:
        """Return whether a pass over these inputs is to be replayed."""
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
        """Return whether a pass is large enough for padding to cost time; one over pictures may be."""
        return "attention_mask" not in inputs or self._work(inputs) > PADDED_WORK

    def _work(self, inputs: Mapping[str, Tensor]) -> float:
        """Return a layer's operations, of texts; 0 for pictures."""
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
    """Bytes of a GPU."""
    return int(torch.cuda.get_device_properties(device).total_memory)


def new_pool() -> Any:
    """Memory that graphs share which are not under way at the same time."""
    return torch.cuda.graph_pool_handle()


def recorded(part: nn.Module, tensors: list[Tensor], pool: Any) -> Callable[..., tuple[Tensor, ...]]:
    """Return a module's pass, captured; it takes other tensors of these shapes, and gives its results with gradients.

    What is captured are not the parameters themselves but others in the same memory: what sums up a parameter's
    gradient would wait for the stream in which it was made, and a capture may wait for none.

    Raises:
        RuntimeError: see `capture`; or the pass draws what a replay would not draw anew.
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
    """Return where the generators outside of GPUs stand."""
    numpy: Any = np.random.get_state(legacy=False)
    keys, index = numpy["state"]["key"], numpy["state"]["pos"]
    return random.getstate(), keys.tobytes(), index, numpy["has_gauss"], torch.get_rng_state().numpy().tobytes()


def capture(over: Callable[..., tuple[Tensor, ...]], tensors: list[Tensor], pool: Any) -> Any:
    """Record a pass forward and backward; draws of dropout go on as if nothing had been.

    Args:
        over: the pass.
        tensors: what it is recorded with, and what later ones are copied into.
        pool: where its memory comes from.

    Returns:
        What replays it.

    Raises:
        RunError: draws fail after a recording that failed.
        RuntimeError: memory is short, or something in it cannot be recorded.
    """
    device, dtype = tensors[0].device, torch.get_autocast_dtype("cuda")
    low = torch.is_autocast_enabled("cuda")
    drawn, stream = torch.cuda.get_rng_state(device), torch.cuda.current_stream(device)
    try:
        # A capture that fails leaves its own stream the current one, hence the outer one.
        with alone, torch.cuda.stream(stream), torch.autocast("cuda", dtype, enabled=low, cache_enabled=False):
            return torch.cuda.make_graphed_callables(over, tuple(tensors), allow_unused_input=True, pool=pool)
    except RuntimeError as error:
        # It also leaves the generator as if it went on.
        _private.end_failed_capture(device)
        try:
            torch.rand(1, device=device)
        except RuntimeError as after:
            why = str(error).strip().splitlines()[0]
            raise RunError(f"a pass cannot be captured: {why}\n  Do: trainer.cuda_graphs=false") from after
        raise
    finally:
        torch.cuda.set_rng_state(drawn, device)
