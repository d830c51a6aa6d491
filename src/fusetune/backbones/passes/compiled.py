"""Encoders compiled by torch.compile: their equal layers one by one, so that one compilation serves them all.

What is compiled holds for one shape. Batches are therefore padded to a few sizes, in texts and in tokens: rows that are
added repeat the last one, tokens that are added are masked, and both are cut off again.
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
"""Sizes are multiples of this; numbers of rows, where padding costs time."""
MOST = 256
"""Compilations of one function, after which torch would go on without compiling and hardly say so."""
WITHOUT = "trainer.compile=false goes without"


class CompiledPass(EncoderPass):
    """A pass over a batch padded to the sizes of `bucket`, for layers that are compiled."""

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
    """Return an encoder's tokens, computed of padded inputs, without those of the padding.

    Args:
        encoder: whose tokens they are.
        inputs: see `EncoderPass`.
        fine: see `bucketed`.
        run: computes.

    Raises:
        RunError: a layer cannot be compiled.
    """
    padded, rows, num = bucketed(inputs, encoder.max_tokens, fine=fine)
    with explained():
        tokens = run(padded)
    num = num if num and encoder.pool == "none" else tokens.values.shape[1]
    return Tokens(tokens.values[:rows, :num], tokens.mask[:rows, :num], tokens.grid)


def bucket(size: int) -> int:
    """Return the next of the sizes 16, 32, 48, 64, 96, 128, 192, 256, ...: beyond 32 at most half as much again."""
    return -(-size // (step := max(FINEST, 1 << max((size - 1).bit_length() - 2, 0)))) * step


def bucketed(inputs: Mapping[str, Tensor], most: int, *, fine: bool = False) -> tuple[dict[str, Tensor], int, int]:
    """Return an encoder's tensors, padded to sizes of `bucket`.

    Args:
        inputs: of some cells; the one with the most rows says how many rows there are.
        most: tokens that the encoder takes, which a longer text is not padded beyond.
        fine: pad tokens to multiples of `FINEST` instead, and rows to multiples of `FINEST_ROWS`.

    Returns:
        The tensors; the rows there were; the tokens there were, 0 where the encoder reads no tokens.
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
    """Refuse to compile where there is nothing to do it with.

    Raises:
        ConfigError: so it is.
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
    """Inside, these backbones compute by compiled layers; gives what could not be compiled, in sentences.

    The names of parameters stay, and nothing of it is left after.
    """
    said, changed = [], []
    for key, encoder in encoders.items():
        if why := _why_not(encoder):
            said.append(f"{key} is not compiled: {why}.")
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
        yield said


def _why_not(encoder: Any) -> str:
    if isinstance(encoder.inputs, AudioInputs) and not encoder.inputs.makes_features:
        return "it reads waveforms of any length"
    if encoder.separate:
        return "it encodes cells of one length at a time"
    return "its batch normalisation would learn from what is padded" if learns_from_padding(encoder) else ""


def learns_from_padding(encoder: Any) -> bool:
    """Return whether rows that are added to a batch would change what an encoder's batch normalisation learns."""
    norms = any(isinstance(module, structure.BATCH_NORMS) for module in encoder.modules())
    return norms and not (encoder.norm_eval and encoder.pretrained)


@contextmanager
def explained() -> Iterator[None]:
    """What compiling fails with is said as an error of the run.

    Raises:
        RunError: so it did.
    """
    try:
        yield
    except Exception as error:
        if not _private.is_compiler_error(error):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise RunError(f"an encoder cannot be compiled: {lines[0]}\n  Do: {WITHOUT}") from error
