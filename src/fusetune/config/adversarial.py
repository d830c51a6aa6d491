"""The section `trainer.adversarial`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from fusetune.config.attack import AttackConfig
from fusetune.config.section import known_name

ADVERSARIAL = ("fgm", "pgd", "freelb")


class AdversarialConfig(AttackConfig):
    """What is minimised is the loss at inputs that are changed so that it grows. `epsilon`, `steps`, `step_size` and
    `columns` are those of an attack."""

    name: str
    """`fgm` (arXiv 1605.07725): the loss as it is, and after one step up the gradient. `pgd` (1706.06083): and after
    several. `freelb` (1909.11764): the mean of the losses at all the steps."""
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The share of the changed inputs' loss, the rest is the loss as it is; not for `freelb`."""
    random_start: bool | None = None
    """Start from random changes instead of none. None: `freelb` does."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return known_name(name, ADVERSARIAL)

    @model_validator(mode="after")
    def _fits(self) -> AdversarialConfig:
        if self.name == "freelb" and self.weight != 0.5:
            raise ValueError("freelb has no weight: its steps, the first of which is near no change, count alike")
        return self
