"""Encoders compiled by torch.compile, layer by layer, so that all equal layers share a compilation.

Compilation is for static shapes. Batches are therefore padded to a few sizes: added rows repeat the last one, added
tokens are masked, and both are removed from the output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fusetune import _private
from fusetune.backbones.inputs import AudioInputs
from fusetune.backbones.inspection import structure
from fusetune.backbones.passes.base import Encoder, EncoderPass, single_pass, using
from fusetune.errors import ConfigError, RunError
from fusetune.types import Tokens

FINEST, FINEST_ROWS = 16, 4
"""Sizes are multiples of `FINEST`; if padding is costly, numbers of rows are multiples of `FINEST_ROWS`."""
MOST = 256
"""Limit on the recompilations of a function, after which torch silently stops compiling it."""
WITHOUT = "trainer.compile=false goes without"


class CompiledPass(EncoderPass):
    """Encode a batch padded to the sizes of `bucket`, for compiled layers."""

    def __call__(self, encoder: Encoder, inputs: Mapping[str, Tensor]) -> Tokens:
        """See `EncoderPass`.

        Raises:
            RunError: a layer cannot be compiled.
        """
        return padded_pass(
            encoder, inputs, fine=False, run=lambda padded: single_pass(encoder, padded)(encoder, padded)
        )


def padded_pass(
    encoder: Encoder, inputs: Mapping[str, Tensor], *, fine: bool, run: Callable[[dict[str, Tensor]], Tokens]
) -> Tokens:
    """Run an encoder on padded inputs and remove the padding from its tokens.

    Args:
        encoder: to run.
        inputs: see `EncoderPass`.
        fine: see `bucketed`.
        run: computes the tokens of padded inputs.

    Raises:
        RunError: a layer cannot be compiled.
    """
    padded, rows, num = bucketed(inputs, encoder.max_tokens, fine=fine)
    with explained():
        tokens = run(padded)
    num = num if num and encoder.pool == "none" else tokens.values.shape[1]
    return Tokens(tokens.values[:rows, :num], tokens.mask[:rows, :num], tokens.grid)


def bucket(size: int) -> int:
    """Return the next of the sizes 16, 32, 48, 64, 96, 128, 192, 256, ...; steps from 32 on are at most 50 %."""
    return -(-size // (step := max(FINEST, 1 << max((size - 1).bit_length() - 2, 0)))) * step


def bucketed(inputs: Mapping[str, Tensor], most: int, *, fine: bool = False) -> tuple[dict[str, Tensor], int, int]:
    """Pad an encoder's tensors to sizes of `bucket`.

    Args:
        inputs: of some cells; the longest tensor has the number of rows.
        most: the encoder's maximum number of tokens, beyond which nothing is padded.
        fine: pad tokens to multiples of `FINEST` and rows to multiples of `FINEST_ROWS` instead.

    Returns:
        The padded tensors, the original number of rows, and the original number of tokens (0 without tokens).
    """
    rows = max(len(tensor) for tensor in inputs.values())
    tokens = inputs["attention_mask"].shape[1] if "attention_mask" in inputs else 0
    wanted = -(-tokens // FINEST) * FINEST if fine else bucket(tokens)
    longer = max(min(wanted, most) - tokens, 0) if tokens else 0
    more = -rows % FINEST_ROWS if fine else bucket(rows) - rows
    padded = {}
    for name, tensor in inputs.items():
        if longer and tensor.ndim > 1 and tensor.shape[1] == tokens:
            tensor = F.pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, longer))
        if len(tensor) == rows:
            tensor = torch.cat([tensor, tensor[-1:].expand(more, *tensor.shape[1:])])
        padded[name] = tensor
    return padded, rows, tokens


def check_compiler() -> None:
    """Check that the compiler's dependencies are installed.

    Raises:
        ConfigError: Triton (GPU) or a C++ compiler (CPU) is missing.
    """
    if torch.cuda.is_available():
        if not _private.has_triton():
            raise ConfigError("trainer.compile needs Triton on a GPU", do=f"pip install triton; {WITHOUT}")
        return
    if not _private.has_cpp_compiler():
        raise ConfigError(
            "trainer.compile needs a C++ compiler", came="none that runs", do=f"install g++ or set CXX; {WITHOUT}"
        )


@contextmanager
def compiling(encoders: Mapping[str, Any]) -> Iterator[list[str]]:
    """Compile the layers of these backbones inside the context; yield notes on those that cannot be compiled.

    Names of parameters do not change, and the layers are restored on exit.
    """
    notes, changed = [], []
    for key, encoder in encoders.items():
        if why := _why_not(encoder):
            notes.append(f"{key} is not compiled: {why}.")
            continue
        result = structure.layers(encoder.model)
        changed.append((encoder, list(result[1]) if result else [encoder.model]))
    if changed:
        _private.allow_recompilations(MOST)
    with ExitStack() as after:
        for encoder, parts in changed:
            after.enter_context(using(encoder, CompiledPass()))
            for part in parts:
                part.compile(dynamic=False)
                after.callback(_private.set_compiled_call, part, None)
        yield notes


def _why_not(encoder: Any) -> str:
    if isinstance(encoder.inputs, AudioInputs) and not encoder.inputs.makes_features:
        return "it reads waveforms of any length"
    if encoder.separate:
        return "it encodes cells of one length at a time"
    return "its batch normalisation would learn from what is padded" if learns_from_padding(encoder) else ""


def learns_from_padding(encoder: Any) -> bool:
    """Return whether padding rows would change the running statistics of an encoder's batch normalisation."""
    norms = any(isinstance(module, structure.BATCH_NORMS) for module in encoder.modules())
    return norms and not (encoder.norm_eval and encoder.pretrained)


@contextmanager
def explained() -> Iterator[None]:
    """Raise the compiler's errors as `RunError`.

    Raises:
        RunError: compilation failed.
    """
    try:
        yield
    except Exception as error:
        if not _private.is_compiler_error(error):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise RunError(f"an encoder cannot be compiled: {lines[0]}\n  Do: {WITHOUT}") from error
