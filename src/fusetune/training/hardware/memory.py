"""Measure the memory of an update on a few rows, and split it into micro-batches that fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from fusetune.backbones.inspection.structure import BATCH_NORMS
from fusetune.data.examples import Examples
from fusetune.data.sampler import UpdateSampler
from fusetune.inference.memory import free_memory, total_memory
from fusetune.models.perturb import RngState
from fusetune.training.learner import Learner
from fusetune.training.updates.grad_cache import cached
from fusetune.training.updates.update import Buffers, Gradients
from fusetune.types import Batch

SHARE = 1 / 4
"""The share of the total memory that a micro-batch's activations may take."""
FREE_SHARE = 1 / 2
"""The share of the free memory that they may take at most."""
TRIAL_ROWS = (1, 3)
"""Numbers of rows of the two measured passes; the difference gives the memory of a row."""
GIB = 2**30


@dataclass(frozen=True)
class PassMemory:
    """The memory that a forward pass holds for the backward pass.

    Attributes:
        fixed: bytes that do not depend on the number of rows.
        row: bytes per row.
    """

    fixed: float
    row: float

    def of(self, rows: float) -> float:
        """Return the bytes of a pass with this number of rows."""
        return self.fixed + self.row * rows


@dataclass(frozen=True)
class MicroBatches:
    """How an update is split.

    Attributes:
        accumulate: number of micro-batches.
        rows: rows of a micro-batch.
        needed: bytes of the activations of an unsplit update.
        text: the reason for splitting, for the user; empty if the setting is unchanged.
    """

    accumulate: int
    rows: int
    needed: float
    text: str = ""


def measure(learner: Learner, batch: Callable[[np.ndarray], Batch], heaviest: np.ndarray) -> PassMemory:
    """Measure the memory of a forward pass from the sizes of the tensors that autograd saves.

    The result depends on the model and the rows only, not on the load of the machine. Weights, RNG state, buffers and
    the balance's state are unchanged afterwards.

    Args:
        learner: in the mode, and inside the autocast, in which it is trained.
        batch: maps positions of rows to a batch on the learner's device.
        heaviest: positions of the rows that cost most, at least one.
    """
    few, more = (heaviest[:rows] for rows in TRIAL_ROWS)
    first = _saved_bytes(learner, batch(few))
    if len(more) == len(few):
        return PassMemory(0, first / len(few))
    row = max(0.0, _saved_bytes(learner, batch(more)) - first) / (len(more) - len(few))
    return PassMemory(max(0.0, first - row * len(few)), row)


def _saved_bytes(learner: Learner, batch: Batch) -> int:
    own = {tensor.untyped_storage().data_ptr() for tensor in [*learner.parameters(), *learner.buffers()]}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = tensor  # keeps the tensor alive, so that its address is not reused
        return tensor

    rng_state, buffers, balance = RngState(batch.weights.device), Buffers(learner), learner.objective.balance
    state = balance.process_state() if balance is not None else None
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            learner(batch)
        return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    finally:
        buffers.restore()
        rng_state.restore()
        if balance is not None:
            balance.load_process_state(state)


def split(memory: PassMemory, batch_size: int, accumulate: int) -> MicroBatches:
    """Return how an update is split so that a micro-batch's activations fit into memory.

    The limit is a share of the total memory of the machine or container, so that two runs on one machine split alike.
    It is lower only if less than twice that is free. The number of micro-batches is doubled until they fit, so that
    small differences of a measurement seldom change it.

    Args:
        memory: the memory of a pass.
        batch_size: rows of an update in this process.
        accumulate: the minimum number of micro-batches, from the settings.
    """
    total, free = total_memory(), free_memory()
    usual = 2.0 ** np.floor(np.log2(total * SHARE))
    allowed = usual if free * FREE_SHARE >= usual else max(free * FREE_SHARE, 1.0)
    parts = accumulate
    while -(-batch_size // parts) > 1 and memory.of(-(-batch_size // parts)) > allowed:
        parts *= 2
    rows, needed = -(-batch_size // parts), memory.of(-(-batch_size // accumulate))
    if parts == accumulate:
        return MicroBatches(parts, rows, needed)
    why = f"{total / GIB:.1f} GiB of memory" if allowed == usual else f"{free / GIB:.1f} GiB of free memory"
    text = (
        f"An update is made of {parts} micro-batches of {rows} row{'' if rows == 1 else 's'} "
        f"(trainer.accumulate={parts}): in fewer parts, its activations would take {needed / GIB:.1f} GiB, too much "
        f"beside the rest for {why}. The batch size is the same."
    )
    return MicroBatches(parts, rows, needed, text)


def fit_micro_batches(
    learner: Learner, train: Examples, sampler: UpdateSampler, accelerator: Accelerator, gradients: Gradients
) -> str:
    """Make a sampler's micro-batches small enough for the memory of a CPU.

    The losses and gradients of an update stay the same. If they would change, because a layer or an objective depends
    on the other rows of the micro-batch, nothing is changed.

    Args:
        learner: in training mode.
        train: prepared rows.
        sampler: draws the rows; its `accumulate` may be raised.
        accelerator: autocast and processes.
        gradients: computes an update's gradients.

    Returns:
        The reason for the change, for the user; empty if nothing was changed.
    """
    if accelerator.device.type != "cpu" or any(
        isinstance(module, BATCH_NORMS) and module.training for module in learner.modules()
    ):
        return ""
    if gradients is not cached and learner.objective.batch_objectives():
        return ""
    heaviest = sampler.indices[np.argsort(-sampler.sizes, kind="stable")[: max(TRIAL_ROWS)]]
    with accelerator.autocast():
        memory = measure(learner, lambda rows: train.batch(rows, epoch=0), heaviest)
    choice = split(memory, -(-sampler.batch_size // accelerator.num_processes), sampler.accumulate)
    if accelerator.num_processes > 1:
        choice = broadcast_object_list([choice])[0]
    sampler.accumulate = choice.accumulate
    return choice.text
