"""Layers of encoders spread over the processes (FSDP2), with their gradients and what the optimiser knows of them.

Each process holds its part of every layer's parameters and gathers a layer when it computes with it. What is outside
the layers stays whole, and data parallelism averages its gradients. While a stage trains, copies that are spread stand
in the layers' places; after it the layers are back, and `BestStep` gives them the best step's weights.

Every process must come to every layer, else the others wait for it: a batch that lacks a column brings one of its
cells, which no row has (`Examples.always`).
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
from fusetune.backbones import structure
from fusetune.backbones.backbone import Backbone
from fusetune.errors import ConfigError
from fusetune.models.family import Family
from fusetune.training.hardware.devices import processes
from fusetune.training.hardware.dtensor import is_spread
from fusetune.training.learner import Learner
from fusetune.types import Batch


def check_shard(encoders: Collection[nn.Module], *, reads_cells_as_they_are: bool, checkpoints: bool) -> None:
    """Refuse `trainer.shard` with what it cannot go with.

    Args:
        encoders: of the model.
        reads_cells_as_they_are: whether nothing changes what enters the encoders.
        checkpoints: whether the run's state is kept.

    Raises:
        ConfigError: so it is.
    """
    found = None
    if processes().num_processes == 1:
        found = "needs several processes", "launch with torchrun --nproc_per_node N, or leave it out"
    elif checkpoints:
        found = "keeps no checkpoints", "set trainer.checkpoint_minutes=null"
    elif not reads_cells_as_they_are:
        found = "does not go with objectives.vat", "leave one of them out"
    elif any(isinstance(encoder, Backbone) and encoder.adapter is not None for encoder in encoders):
        found = "does not go with adapters", "leave one of them out; adapters need little memory without it"
    if found:
        raise ConfigError(f"trainer.shard {found[0]}", do=found[1])


@contextmanager
def sharded(learner: Learner, keys: Collection[str]) -> Iterator[list[nn.Module]]:
    """Inside, the layers of these encoders are spread; gives them.

    Args:
        learner: on this process's device; the same in all processes.
        keys: of the encoders.
    """
    assert isinstance(learner.model, Family)
    device = next(learner.model.parameters()).device
    mesh = init_device_mesh(device.type, (processes().num_processes,)) if keys else None
    places: list[tuple[Any, int, nn.Module]] = []
    spread: list[nn.Module] = []
    try:
        for key in sorted(keys):
            encoder: Any = learner.model.encoders[key]
            if (found := structure.layers(encoder.model)) is None:
                continue
            members: Any = encoder.model.get_submodule(found[0])
            for place, layer in enumerate(found[1]):
                part: Any = copy.deepcopy(layer)
                fully_shard(part, mesh=mesh, reshard_after_forward=True)
                part.unshard()  # what it gathers into is made here, as in inference mode it could take no gradients
                part.reshard()
                places.append((members, place, layer))
                members[place] = part
                layer.to("cpu")  # the copy's share is all that the device holds
                spread.append(part)
        names = [name for name, parameter in learner.named_parameters() if is_spread(parameter)]
        with _private.unsynchronised(learner, names):
            yield spread
    finally:
        for members, place, layer in places:
            for own, parameter in zip(layer.parameters(), members[place].parameters(), strict=True):
                own.requires_grad_(parameter.requires_grad)
            members[place] = layer.to(device)


def forget_absent(learner: Learner, micro_batches: Sequence[Batch], accelerator: Accelerator) -> None:
    """Take the gradients, which are zero, from what ran for columns that no row of the update has, in any process.

    An optimiser leaves parameters without a gradient as they are; zeros would have it follow earlier gradients.
    """
    model = learner.model
    assert isinstance(model, Family)
    had = [float(any((batch.cells[name] >= 0).any() for batch in micro_batches)) for name in model.columns]
    rows = accelerator.reduce(torch.tensor(had, device=accelerator.device), "sum").tolist()
    present = {name for name, count in zip(model.columns, rows, strict=True) if count}
    idle = [model.projections[place] for place, name in enumerate(model.columns) if name not in present]
    used = {model.routes[name] for name in present}
    idle += [encoder for key, encoder in model.encoders.items() if key not in used]
    for parameter in (parameter for part in idle for parameter in part.parameters()):
        parameter.grad = None
