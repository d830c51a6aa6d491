"""The section `report`: what the report compares."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fusetune.config.attack import AttackConfig
from fusetune.config.section import ByName, Section, StrList


class ReportConfig(Section):
    """What the report compares."""

    alone: Literal["probe", "tuned", "none"] = "probe"
    """Each modality alone: `probe` is a linear model on its frozen features (an encoder trained from scratch is
    trained alone); `tuned` trains every modality alone with the same recipe; `none` leaves it out."""
    single: bool = False
    """Where there are several targets: each of them trained by itself too, with the same recipe, and compared with."""
    zero_shot: bool = True
    """Have a language model write the test rows' answers before it is tuned, too."""
    few_shot: Annotated[int, Field(ge=0, le=32)] = 3
    """Train rows with their answers that the prompt of a second untuned system begins with, where so many, or fewer,
    fit into the language model's positions; 0 leaves it out."""
    bootstrap: Annotated[int, Field(ge=0)] = 1000
    """Resamples for the intervals; 0 leaves them out."""
    attack: Annotated[AttackConfig | None, ByName] = None
    """`fgm` or `pgd`: how the model before and after tuning does on test rows that are changed against it, with full
    sight of its weights. None: as `trainer.adversarial`, if that is set. `none`: no attack."""
    slices: StrList = []
    """Columns whose values the metrics are split by."""
    errors: Annotated[int, Field(ge=0)] = 24
    """Worst errors shown."""
