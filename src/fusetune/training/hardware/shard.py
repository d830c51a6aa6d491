"""Encoders' layers sharded over the processes (FSDP2), with their gradients and optimiser state.

Each process holds a shard of every layer's parameters and gathers a layer when it computes with it. Parameters outside
the layers are replicated, and data parallelism averages their gradients. While a stage trains, sharded copies replace
the layers; afterwards the layers are put back, and `BestStep` gives them the best step's weights.

Every process must run every layer, or the others would wait for ever: a batch without any cell of a column gets one
that belongs to no row (`Examples.always`).
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from fusetune import _private
from fusetune.backbones.backbone import Backbone
from fusetune.backbones.inspection import structure
from fusetune.errors import ConfigError
from fusetune.models.family import Family
from fusetune.training.hardware.devices import processes
from fusetune.training.hardware.dtensor import is_sharded
from fusetune.training.learner import Learner
from fusetune.types import Batch


def check_shard(encoders: Collection[nn.Module], *, reads_cells_as_they_are: bool, checkpoints: bool) -> None:
    """Check that `trainer.shard` is compatible with the other settings.

    Args:
        encoders: of the model.
        reads_cells_as_they_are: whether no objective perturbs the encoders' inputs.
        checkpoints: whether the run saves checkpoints.

    Raises:
        ConfigError: it is not.
    """
    problem = None
    if processes().num_processes == 1:
        problem = "needs several processes", "launch with torchrun --nproc_per_node N, or leave it out"
    elif checkpoints:
        problem = "keeps no checkpoints", "set trainer.checkpoint_minutes=null"
    elif not reads_cells_as_they_are:
        problem = (
            "does not go with objectives that change what enters the encoders (vat, semi)",
            "leave one of them out",
        )
    elif any(isinstance(encoder, Backbone) and encoder.adapter is not None for encoder in encoders):
        problem = "does not go with adapters", "leave one of them out; adapters need little memory without it"
    if problem:
        raise ConfigError(f"trainer.shard {problem[0]}", do=problem[1])


@contextmanager
def sharded(learner: Learner, keys: Collection[str]) -> Iterator[list[nn.Module]]:
    """Shard the layers of these encoders within the context; yield the sharded layers.

    Args:
        learner: on this process's device, with the same weights in all processes.
        keys: of the encoders.
    """
    assert isinstance(learner.model, Family)
    device = next(learner.model.parameters()).device
    mesh = init_device_mesh(device.type, (processes().num_processes,)) if keys else None
    replaced: list[tuple[Any, int, nn.Module]] = []
    shards: list[nn.Module] = []
    try:
        for key in sorted(keys):
            encoder: Any = learner.model.encoders[key]
            if (layers := structure.layers(encoder.model)) is None:
                continue
            members: Any = encoder.model.get_submodule(layers[0])
            for index, layer in enumerate(layers[1]):
                shard: Any = copy.deepcopy(layer)
                fully_shard(shard, mesh=mesh, reshard_after_forward=True)
                shard.unshard()  # allocates its buffers here: made in inference mode, they could take no gradients
                shard.reshard()
                replaced.append((members, index, layer))
                members[index] = shard
                layer.to("cpu")  # the device holds only the shard
                shards.append(shard)
        names = [name for name, parameter in learner.named_parameters() if is_sharded(parameter)]
        with _private.unsynchronised(learner, names):
            yield shards
    finally:
        for members, index, layer in replaced:
            for original, parameter in zip(layer.parameters(), members[index].parameters(), strict=True):
                original.requires_grad_(parameter.requires_grad)
            members[index] = layer.to(device)


def clear_absent_gradients(learner: Learner, micro_batches: Sequence[Batch], accelerator: Accelerator) -> None:
    """Set the gradients to None in the parts of columns that no row of the update has, in any process.

    These parts ran on stand-in cells, so their gradients are zero. An optimiser skips a parameter without a gradient,
    but with zeros its momentum and weight decay would still move it.
    """
    model = learner.model
    assert isinstance(model, Family)
    counts_here = [float(any((batch.cells[name] >= 0).any() for batch in micro_batches)) for name in model.columns]
    rows = accelerator.reduce(torch.tensor(counts_here, device=accelerator.device), "sum").tolist()
    present = {name for name, count in zip(model.columns, rows, strict=True) if count}
    projections = {model.projection(name) for name in present}  # columns may share one
    idle = [projection for projection in model.projections if projection not in projections]
    used = {model.routes[name] for name in present}
    idle += [encoder for key, encoder in model.encoders.items() if key not in used]
    for parameter in (parameter for part in idle for parameter in part.parameters()):
        parameter.grad = None
