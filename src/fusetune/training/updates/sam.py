"""Sharpness-aware minimisation: gradients are taken where the loss nearby is largest.

SAM: Foret et al. 2021, arXiv 2010.01412. With g the gradient at the weights w, the update follows the gradient at
w + ρ g/‖g‖; the weights themselves are put back before it is made. Two forward and backward passes an update.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fusetune.errors import ConfigError
from fusetune.models.perturb import RngState
from fusetune.training.updates.update import Gradients
from fusetune.types import Batch

WHOLE = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_NPU", "MULTI_XPU")
"""Ways of distributing in which every process holds all parameters."""


class Sharpness:
    """SAM; a `Gradients`, see `fusetune.training.updates.update`. Dropout draws the same masks in both passes.

    Memory: a copy of the trained weights while an update is computed. The losses given are those at the weights.
    """

    def __init__(self, rho: float, gradients: Gradients) -> None:
        """
        Args:
            rho: ρ, how far the weights are moved, above 0; the norm is over all trained weights.
            gradients: how gradients are computed at given weights.
        """
        self.rho, self.gradients = rho, gradients

    def __call__(
        self, learner: nn.Module, micro_batches: Sequence[Batch], accelerator: Accelerator
    ) -> dict[str, Tensor]:
        """Add the gradients to the parameters'; gives the losses under their names.

        Raises:
            ConfigError: the parameters are spread over processes.
        """
        if accelerator.distributed_type.name not in WHOLE:
            raise ConfigError(
                "trainer.sam needs all parameters in each process",
                came=accelerator.distributed_type.name,
                do="launch with data parallelism (DDP), or leave trainer.sam out",
            )
        rng_state = RngState(accelerator.device)
        losses = self.gradients(learner, micro_batches, accelerator)
        moved = [parameter for parameter in learner.parameters() if parameter.grad is not None]
        slopes = [parameter.grad for parameter in moved if parameter.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(slope.float()) for slope in slopes]))
        if not norm.isfinite() or norm == 0:  # the update is refused, or makes no difference
            return losses
        before = [parameter.detach().clone() for parameter in moved]
        buffers = {name: buffer.clone() for name, buffer in learner.named_buffers()}  # as batch norm's means
        with torch.no_grad():
            for parameter, slope in zip(moved, slopes, strict=True):
                parameter.add_(slope * (self.rho / norm).to(slope.dtype))
                parameter.grad = None
        try:
            rng_state.restore()
            self.gradients(learner, micro_batches, accelerator)
        finally:
            with torch.no_grad():
                for parameter, value in zip(moved, before, strict=True):
                    parameter.copy_(value)
                for name, buffer in learner.named_buffers():
                    buffer.copy_(buffers[name])
        return losses
