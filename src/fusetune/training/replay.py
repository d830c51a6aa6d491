"""A stage's updates with the passes of small encoders replayed from CUDA graphs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from accelerate import Accelerator
from torch import Tensor, nn

from fusetune.backbones.graphs import Replays, replaying, why_not
from fusetune.training.grad_cache import cached
from fusetune.training.loop import Stage
from fusetune.training.recipe import Recipe
from fusetune.training.update import Gradients, plain
from fusetune.types import Batch

WORTHWHILE = 100
"""Updates that a stage must have for the captures to pay, each of which takes as long as some updates."""


class Replayed:
    """`Gradients` that are computed by replays."""

    def __init__(self, gradients: Gradients, replays: dict[str, Replays]) -> None:
        self.gradients, self.replays = gradients, replays

    def __call__(
        self, learner: nn.Module, micro_batches: Sequence[Batch], accelerator: Accelerator
    ) -> dict[str, Tensor]:
        """See `Gradients`."""
        with replaying(self.replays, passes=len(micro_batches)):
            return self.gradients(learner, micro_batches, accelerator)


@contextmanager
def graphs(stage: Stage, recipe: Recipe, accelerator: Accelerator, num_rows: int) -> Iterator[None]:
    """Inside, the stage's updates replay what they can, where the settings, the device and its length allow it.

    Args:
        stage: the one that trains encoders.
        recipe: whose it is; told what could not be captured.
        accelerator: devices.
        num_rows: train rows.
    """
    settings, encoders = recipe.settings, recipe.model.encoders
    fits = (
        settings.cuda_graphs
        and accelerator.device.type == "cuda"
        and accelerator.num_processes == 1
        and stage.gradients in (plain, cached)  # others take gradients of one pass several times
        and recipe.reads_cells_as_they_are()
        and not settings.gradient_checkpointing
        and stage.epochs * num_rows >= WORTHWHILE * stage.batch_size
    )
    keys = [key for key in sorted(recipe.moving()) if fits and not why_not(encoders[key])]
    before, replays = stage.gradients, {key: Replays(encoders[key]) for key in keys}
    if replays:
        stage.gradients = Replayed(before, replays)
    try:
        yield
    finally:
        stage.gradients = before
    recipe.said += [
        f"Passes of {key} were not replayed from CUDA graphs: {one.failed}."
        for key, one in replays.items()
        if one.failed
    ]
