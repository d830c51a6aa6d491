"""Sharpness-aware minimisation: gradients are computed where the loss nearby is largest.

SAM: Foret et al. 2021, arXiv 2010.01412. With g the gradient at the weights w, the update follows the gradient at
w + ρ g/‖g‖; the weights are restored before the update. It costs two forward and backward passes an update.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fusetune.errors import ConfigError
from fusetune.models.perturb import RngState
from fusetune.training.updates.update import REPLICATED, Gradients
from fusetune.types import Batch


class Sharpness:
    """SAM; a `Gradients`, see `fusetune.training.updates.update`. Both passes use the same dropout masks.

    It needs memory for a copy of the trained weights while an update is computed. The losses returned are those at the
    unperturbed weights.

    Args:
        rho: ρ, the L2 norm of the weights' perturbation over all trained weights, above 0.
        gradients: computes the gradients at given weights.
    """

    def __init__(self, rho: float, gradients: Gradients) -> None:
        self.rho, self.gradients = rho, gradients

    def __call__(
        self, learner: nn.Module, micro_batches: Sequence[Batch], accelerator: Accelerator
    ) -> dict[str, Tensor]:
        """Add the gradients to the parameters' `.grad`; return the losses by name.

        Raises:
            ConfigError: the parameters are sharded.
        """
        if accelerator.distributed_type.name not in REPLICATED:
            raise ConfigError(
                "trainer.sam needs all parameters in each process",
                came=accelerator.distributed_type.name,
                do="launch with data parallelism (DDP), or leave trainer.sam out",
            )
        rng_state = RngState(accelerator.device)
        losses = self.gradients(learner, micro_batches, accelerator)
        moved = [parameter for parameter in learner.parameters() if parameter.grad is not None]
        gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
        norm = torch.linalg.vector_norm(
            torch.stack([torch.linalg.vector_norm(gradient.float()) for gradient in gradients])
        )
        if not norm.isfinite() or norm == 0:  # no direction to move in: the caller checks the gradient
            return losses
        before = [parameter.detach().clone() for parameter in moved]
        buffers = {name: buffer.clone() for name, buffer in learner.named_buffers()}  # such as batch norm's means
        with torch.no_grad():
            for parameter, gradient in zip(moved, gradients, strict=True):
                parameter.add_(gradient * (self.rho / norm).to(gradient.dtype))
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
