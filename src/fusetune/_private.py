"""Private and undocumented names of other libraries: every one that this package touches is used in this module alone.

A release of torch, transformers or accelerate may change them without notice. Each function therefore has a canary in
`tests/test_private.py`, which fails with the library's name and with what depends on it. Prefer a public name wherever
one does the same.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

# ---- Python


def imports_main() -> bool:
    """Return whether this process was spawned and is running the main script's code to import it."""
    return bool(getattr(multiprocessing.current_process(), "_inheriting", False))


# ---- torch: modules and tensors


def children(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return a module's children by name. `named_children` gives a child with two names only once."""
    return dict(module._modules)


def shallow_copy(module: M, replaced: Mapping[str, nn.Module | None] | None = None) -> M:
    """Return a module of the same class that shares every tensor and setting, with some children replaced.

    `copy.copy` refuses modules with a parametrised weight, and its copy shares the dictionary of children.

    Args:
        module: is not changed, whatever child the copy is given later.
        replaced: children by name.
    """
    made: M = object.__new__(type(module))
    made.__dict__.update(module.__dict__)
    made._modules = {**module._modules, **(replaced or {})}
    return made


def num_changes(tensor: Tensor) -> int:
    """Return how many operations have changed a tensor in place; assignments to `.data` do not count."""
    return int(tensor._version)


@torch.no_grad()
def copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy tensors of one device and dtype into others of the same shapes, in few kernels."""
    torch._foreach_copy_(targets, sources)


# ---- torch: processors


def has_vnni() -> bool:
    """Return whether the processor sums products of 8-bit integers in one instruction (AVX512-VNNI)."""
    return bool(torch.cpu._is_vnni_supported())


def has_fast_bf16() -> bool:
    """Return whether the processor multiplies in bfloat16 itself (AVX512-BF16 or AMX)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def pack_int8(weight: Tensor) -> Tensor:
    """Return an int8 weight, (out, in), in the layout that `int8_products` reads."""
    packed: Tensor = torch.ops.onednn.qlinear_prepack(weight, None)
    return packed


def int8_products(values: Tensor, packed: Tensor, scale: Tensor, zeros: Tensor) -> Tensor:
    """Multiply 8-bit integers and scale the exact sums.

    Args:
        values: (rows, in) uint8, 128 for zero.
        packed: by `pack_int8`.
        scale: (out,) float32.
        zeros: (out,) int32 zeros.

    Returns:
        (rows, out) float32.
    """
    arguments: tuple[Any, ...] = (values, 1.0, 128, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], "")
    products: Tensor = torch.ops.onednn.qlinear_pointwise(*arguments)
    return products


# ---- torch: compilation and graphs


def has_triton() -> bool:
    """Return whether torch.compile finds a Triton that works on this GPU."""
    from torch.utils._triton import has_triton as available

    return bool(available())


def has_cpp_compiler() -> bool:
    """Return whether torch.compile finds a C++ compiler that runs."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def allow_recompilations(most: int) -> None:
    """Let torch.compile compile a function at least so often before it silently runs it uncompiled."""
    import torch._dynamo as dynamo

    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, most)
    dynamo.config.accumulated_recompile_limit = max(dynamo.config.accumulated_recompile_limit, 4 * most)


def compiled_call(module: nn.Module) -> Any:
    """Return what `module.compile()` made of its call, None where it is not compiled."""
    return module._compiled_call_impl


def set_compiled_call(module: nn.Module, call: Any) -> None:
    """Make a module compute by what `compiled_call` gave; None undoes `module.compile()`."""
    module._compiled_call_impl = call


def is_compiler_error(error: BaseException) -> bool:
    """Return whether an exception comes from torch.compile's own code."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def end_failed_capture(device: torch.device) -> None:
    """Reset a GPU's random generator, which a failed capture of a CUDA graph leaves as if it were still captured."""
    generator = torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    generator.graphsafe_set_state(generator.clone_state())


# ---- torch: data parallelism


@contextmanager
def unsynchronised(module: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Inside, `DistributedDataParallel` around the module leaves the parameters of these names alone."""
    module._ddp_params_and_buffers_to_ignore = list(names)  # type: ignore[assignment]
    try:
        yield
    finally:
        module.__dict__.pop("_ddp_params_and_buffers_to_ignore", None)


# ---- transformers


def waveform_mask(model: nn.Module, num_tokens: int, mask: Tensor) -> Tensor:
    """Return which tokens of a waveform encoder come from real samples, (rows, tokens) bool.

    Args:
        model: an encoder of waveforms, such as wav2vec 2.0.
        num_tokens: tokens of the longest row.
        mask: (rows, samples) int64, 1 for a real sample.
    """
    method: Callable[..., Tensor] = model._get_feature_vector_attention_mask  # type: ignore[assignment]
    return method(num_tokens, mask).bool()


@contextmanager
def inputs_not_leaves(model: nn.Module) -> Iterator[None]:
    """Inside, encoders of sounds do not turn their input into a leaf tensor that takes gradients, in training mode.

    They do so for gradient checkpointing; an input that was computed from another tensor cannot become a leaf.
    """
    changed = [module for module in model.modules() if getattr(module, "_requires_grad", False) is True]
    for module in changed:
        module._requires_grad = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in changed:
            module._requires_grad = True  # type: ignore[assignment]


# ---- accelerate


def forget_prepared(accelerator: Any) -> None:
    """Empty an accelerator's lists of what it prepared, without the garbage collection of `free_memory` (0.4 s)."""
    for prepared in (accelerator._models, accelerator._optimizers, accelerator._schedulers):
        prepared.clear()


def forget_precision() -> None:
    """Let the next `Accelerator` of this process choose another precision."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()


def unwrap_forward(module: nn.Module) -> None:
    """Take away the `forward` that an accelerator put on a module for mixed precision."""
    for name in ("forward", "_original_forward"):
        module.__dict__.pop(name, None)
