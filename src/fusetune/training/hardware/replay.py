"""A stage's updates with the passes of small encoders replayed from CUDA graphs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from fusetune.backbones.backbone import Backbone
from fusetune.backbones.graphs import EncoderReplays, Replays, why_not
from fusetune.models.family import Family
from fusetune.models.replays import FusionReplays
from fusetune.training.loop import Stage
from fusetune.training.recipe import Recipe
from fusetune.training.updates.grad_cache import cached
from fusetune.training.updates.update import Gradients, plain
from fusetune.types import Batch

WORTHWHILE = 100
"""Updates that a stage must have for the captures to pay, each of which takes as long as some updates."""


class Replayed:
    """`Gradients` that are computed by replays."""

    def __init__(self, gradients: Gradients, model: Family, keys: Collection[str]) -> None:
        """
        Args:
            gradients: what else computes them, one backward pass a micro-batch.
            model: on a GPU, with the parameters trainable that will be.
            keys: the encoders that are trained.
        """
        self.gradients, self.model = gradients, model
        usual = {
            module.__class__.__module__.split(".")[0] for part in model.after_encoders() for module in part.modules()
        }
        self.fusion = FusionReplays(model) if usual <= {"torch", "fusetune"} else None
        self.encoders = {
            key: EncoderReplays(key, encoder)
            for key in sorted(keys)
            if isinstance(encoder := model.encoders[key], Backbone) and not encoder.compiled and not why_not(encoder)
        }

    def all(self) -> list[Replays]:
        """Of every part."""
        return [*self.encoders.values(), *([self.fusion] if self.fusion is not None else [])]

    def __call__(
        self, learner: nn.Module, micro_batches: Sequence[Batch], accelerator: Accelerator
    ) -> dict[str, Tensor]:
        """See `Gradients`."""
        for one in self.all():
            one.begin()
        if len(micro_batches) > 1:  # their gradients would lie in one place
            for one in self.all():
                one.forget()
            return self.gradients(learner, micro_batches, accelerator)
        self._set(on=True)
        try:
            return self.gradients(learner, micro_batches, accelerator)
        finally:
            self._set(on=False)

    def _set(self, *, on: bool) -> None:
        self.model.replays = self.fusion if on else None
        for key, one in self.encoders.items():
            encoder: Any = self.model.encoders[key]
            encoder.replays = one if on else None


@contextmanager
def graphs(stage: Stage, recipe: Recipe, accelerator: Accelerator, num_rows: int) -> Iterator[None]:
    """Inside, the stage's updates replay what they can, where the settings, the device and its length allow it.

    Args:
        stage: to be run.
        recipe: whose it is; told what could not be captured.
        accelerator: devices.
        num_rows: train rows.
    """
    settings = recipe.settings
    if not (
        settings.cuda_graphs
        and accelerator.device.type == "cuda"
        and accelerator.num_processes == 1
        and stage.gradients in (plain, cached)  # others take gradients of one pass several times
        and recipe.reads_cells_as_they_are()
        and not settings.gradient_checkpointing
        and stage.epochs * num_rows >= WORTHWHILE * stage.batch_size
    ):
        yield
        return
    before = stage.gradients
    stage.gradients = replayed = Replayed(before, recipe.model, recipe.moving())
    try:
        yield
    finally:
        stage.gradients = before
    failed = [one for one in replayed.all() if one.failed]
    recipe.said += [f"Passes of {one.name} were not replayed from CUDA graphs: {one.failed}." for one in failed]
