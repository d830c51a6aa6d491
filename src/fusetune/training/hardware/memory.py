"""How much memory an update needs, measured on a few rows, and how many micro-batches it is split into for that."""

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
"""Of the memory that there is: what the activations of a micro-batch may take."""
FREE_SHARE = 1 / 2
"""Of the memory that is free: the most that they may take where it is less than usual."""
TRIAL_ROWS = (1, 3)
"""Rows of the two passes that are measured; their difference is what a row takes."""
GIB = 2**30


@dataclass(frozen=True)
class PassMemory:
    """What a forward pass keeps for the backward pass.

    Attributes:
        fixed: bytes whatever the number of rows.
        row: bytes a row.
    """

    fixed: float
    row: float

    def of(self, rows: float) -> float:
        """Return the bytes of a pass of so many rows."""
        return self.fixed + self.row * rows


@dataclass(frozen=True)
class MicroBatches:
    """How an update is split.

    Attributes:
        accumulate: micro-batches an update.
        rows: rows of a micro-batch.
        needed: bytes that the activations of an unsplit update take.
        text: says what was chosen and why; empty where it is what was asked for.
    """

    accumulate: int
    rows: int
    needed: float
    text: str = ""


def measure(learner: Learner, batch: Callable[[np.ndarray], Batch], heaviest: np.ndarray) -> PassMemory:
    """Return what a forward pass keeps, in bytes, from the sizes of the tensors that autograd saves.

    These follow from model and rows, whatever else the process holds and however busy the machine is. Weights, RNG
    state, buffers and the balance's state are left as they were.

    Args:
        learner: in the mode, and inside the autocast, that it is trained in.
        batch: from rows, by their places, to a batch on the learner's device.
        heaviest: places of the rows that cost most, at least one.
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
            saved[storage.data_ptr()] = tensor  # kept alive, so that no other takes its address
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
    """Return how an update is split so that a micro-batch's activations fit.

    They fit into a share of the memory that the machine or container has, so that two runs on one machine split alike;
    only where less than twice that is free do they follow what is free. The number of micro-batches is doubled, so that
    small differences of a measurement seldom change it.

    Args:
        memory: what a pass takes.
        batch_size: rows an update, on this process.
        accumulate: micro-batches that are asked for, the fewest that are made.
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
    """Have a sampler's micro-batches so small that what they keep for the backward pass fits into a processor's memory.

    Losses and gradients of an update are the same; where a layer or a comparison sees the rows of a micro-batch alone,
    they would not be, and micro-batches stay as they are.

    Args:
        learner: in training mode.
        train: prepared rows.
        sampler: draws them; its `accumulate` may be raised.
        accelerator: autocast and processes.
        gradients: how those of an update are computed.

    Returns:
        What was chosen and why; empty where nothing was changed.
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
