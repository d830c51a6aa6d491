"""Updates whose passes through small encoders are replayed from CUDA graphs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from accelerate import Accelerator
from torch import Tensor, nn

from fusetune.backbones.backbone import Backbone
from fusetune.backbones.passes.base import using
from fusetune.backbones.passes.compiled import CompiledPass
from fusetune.backbones.passes.graphs import ReplayedPass, Replays, why_not_replayed
from fusetune.models.family import Family
from fusetune.models.replays import FusionReplays
from fusetune.training.recipe import Recipe
from fusetune.training.stage import Stage
from fusetune.training.updates.grad_cache import cached
from fusetune.training.updates.update import Gradients, plain
from fusetune.types import Batch

WORTHWHILE = 100
"""Least number of updates of a stage for which captures pay off: each takes as long as several updates."""


class Replayed:
    """A `Gradients` that computes another's gradients with replayed passes.

    Args:
        gradients: computes the gradients, with one backward pass a micro-batch.
        model: on a GPU, with its parameters already frozen or trainable.
        keys: of the encoders that are trained.
    """

    def __init__(self, gradients: Gradients, model: Family, keys: Collection[str]) -> None:
        self.gradients, self.model = gradients, model
        packages = {
            module.__class__.__module__.split(".")[0] for part in model.after_encoders() for module in part.modules()
        }
        self.fusion = FusionReplays(model) if packages <= {"torch", "fusetune"} else None
        self.encoders = {
            key: ReplayedPass(key, encoder)
            for key in sorted(keys)
            if isinstance(encoder := model.encoders[key], Backbone)
            and not isinstance(encoder.wanted, CompiledPass)
            and not why_not_replayed(encoder)
        }

    def all(self) -> list[Replays]:
        """Return the replays of all parts."""
        return [*self.encoders.values(), *([self.fusion] if self.fusion is not None else [])]

    def __call__(
        self, learner: nn.Module, micro_batches: Sequence[Batch], accelerator: Accelerator
    ) -> dict[str, Tensor]:
        """See `Gradients`."""
        for replays in self.all():
            replays.begin()
        if len(micro_batches) > 1:  # all of them would write their gradients into the same memory
            for replays in self.all():
                replays.forget()
            return self.gradients(learner, micro_batches, accelerator)
        with self._replaying():
            return self.gradients(learner, micro_batches, accelerator)

    @contextmanager
    def _replaying(self) -> Iterator[None]:
        """Inside, the model's parts replay their passes."""
        with ExitStack() as after:
            for key, replays in self.encoders.items():
                after.enter_context(using(self.model.encoders[key], replays))
            self.model.replays = self.fusion
            try:
                yield
            finally:
                self.model.replays = None


@contextmanager
def graphs(stage: Stage, recipe: Recipe, accelerator: Accelerator, num_rows: int) -> Iterator[None]:
    """Let the stage's updates use replays within the context, if the settings, the device and its length allow it.

    Args:
        stage: the stage about to run.
        recipe: the stage's recipe; notes on failed captures are added to it.
        accelerator: devices.
        num_rows: number of train rows.
    """
    settings = recipe.settings
    if not (
        settings.cuda_graphs
        and accelerator.device.type == "cuda"
        and accelerator.num_processes == 1
        and stage.gradients in (plain, cached)  # others differentiate one pass several times
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
    failed = [replays for replays in replayed.all() if replays.failed]
    recipe.notes += [f"Passes of {part.name} were not replayed from CUDA graphs: {part.failed}." for part in failed]
