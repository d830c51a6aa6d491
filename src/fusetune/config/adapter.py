"""The section `adapter` of a backbone."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from fusetune.config.section import Section, known_name

ADAPTERS = ("lora", "rslora", "dora", "ia3", "vera", "oft")


class AdapterConfig(Section):
    """Few new weights are trained beside a backbone's own, which stay as they are."""

    name: str
    """`lora` (arXiv 2106.09685), `rslora` (2312.03732), `dora` (2402.09353), `ia3` (2205.05638), `vera` (2310.11454) or
    `oft` (2306.07280). `none`: no adapter, also where a language model would have one by default."""
    rank: Annotated[int, Field(ge=1)] | None = None
    """Of the products that are added; for `oft` the size of a block. None: 8, `vera` 64, `oft` 16. Not for `ia3`."""
    alpha: Annotated[int, Field(ge=1)] | None = None
    """α of `lora`, `rslora` and `dora`. None: twice the rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """On what goes into the adapter; not for `ia3`."""
    targets: str = "auto"
    """Which modules get one: `attention` (linear maps in attention), `linear` (all), `conv` (convolutions that mix
    features), or a regular expression on their paths. `auto`: the first of these that the model has."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return known_name(name, (*ADAPTERS, "none"))

    @model_validator(mode="after")
    def _fits(self) -> AdapterConfig:
        if self.name == "ia3" and (self.rank is not None or self.dropout):
            raise ValueError("ia3 has one factor a feature: no rank, no dropout")
        if self.alpha is not None and self.name not in ("lora", "rslora", "dora"):
            raise ValueError(f"{self.name} has no alpha")
        return self
