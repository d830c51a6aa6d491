"""The section `report.attack`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from fusetune.config.section import Section, StrList, known_name

ATTACKS = ("fgm", "pgd", "none")


class AttackConfig(Section):
    """A small change of what enters the encoders that makes the loss larger."""

    name: str
    """`fgm`: one step of size epsilon up the gradient. `pgd`: several steps, each back onto the ball of that size."""
    epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.02
    """The change's root mean square over that of what it is added to: word embeddings, pixels, samples; standardised
    features count as 1. So 0.02 changes every column by a fiftieth of its size."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Gradients that are followed. None: 3. `fgm` follows 1."""
    step_size: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Size of a step. None: 2.5 epsilon / steps."""
    columns: StrList = []
    """Which columns are changed. []: those of text, images and sounds; all where there are none of these."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return known_name(name, ATTACKS)

    @model_validator(mode="after")
    def _one_step(self) -> AttackConfig:
        if self.name == "fgm" and (self.steps not in (None, 1) or self.step_size not in (None, self.epsilon)):
            raise ValueError("fgm makes one step of size epsilon; leave steps and step_size out, or take pgd")
        return self
