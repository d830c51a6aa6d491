"""The section `fusion`: one fusion with its options, how one is chosen, or one with trees beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator, model_validator

from fusetune.config.section import ByName, NamedConfig, StrList, check_known
from fusetune.errors import nearest
from fusetune.registry import FUSIONS


class AutoConfig(NamedConfig):
    """`fusion: auto`: before tuning, candidates learn on the frozen features, and validation rows choose one. Keys
    besides these are options of fusions: each candidate is given those that it takes."""

    candidates: StrList = []
    """The fusions to try, in this order. []: attention, concat, gated, low_rank, mixture, film, bottleneck and
    cross_attention, less those that make no sense for the number of columns."""
    minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5
    """No candidate is begun once so many minutes are spent; the first always runs."""

    @field_validator("candidates")
    @classmethod
    def _known(cls, candidates: list[str]) -> list[str]:
        for name in candidates:
            check_known(name, FUSIONS)
        return list(dict.fromkeys(candidates))


def _known_fusion(fusion: NamedConfig) -> NamedConfig:
    if fusion.name is not None:
        check_known(fusion.name, FUSIONS, also=("auto", "stack", "none"))
    return fusion


OneConfig = Annotated[NamedConfig, AfterValidator(_known_fusion), Tag(":one")]


def _fusion_sort(value: Any) -> str:
    name = value.get("name") if isinstance(value, Mapping) else getattr(value, "name", value)
    return f":{name}" if name in ("auto", "stack") else ":one"  # no part of a setting's name begins with a colon


def _neural_sort(value: Any) -> str:
    return ":auto" if _fusion_sort(value) == ":auto" else ":one"


Neural = Annotated[Annotated[AutoConfig, Tag(":auto")] | OneConfig, Discriminator(_neural_sort), ByName]


class StackConfig(NamedConfig):
    """`fusion: stack`: a network with one of the other fusions, and boosted trees beside it, on the columns as they are
    and on what the frozen encoders say. Each target's prediction is a weighted mean of the two."""

    base: Neural = NamedConfig(name="attention")
    """The network's fusion with its options: `gated`, `{name: gated, dim: 64}`, `auto`."""
    rounds: Annotated[int, Field(ge=1)] = 1000
    """Most rounds of boosting; they end where validation rows are predicted no better for 50."""
    leaves: Annotated[int, Field(ge=2, le=1024)] = 15
    """Most leaves of a tree."""
    rate: Annotated[float, Field(gt=0, le=1)] = 0.05
    """What each tree is multiplied by."""
    components: Annotated[int, Field(ge=1)] = 32
    """Principal components that the trees see of a text, image or audio column."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Parts of the train rows: trees see what a linear model says of a row that learned on the other parts."""

    @model_validator(mode="before")
    @classmethod
    def _of_the_base(cls, value: Any) -> Any:
        for key in value if isinstance(value, Mapping) else ():
            if key not in cls.model_fields:
                hint = nearest(str(key), cls.model_fields)
                raise ValueError(
                    f"fusion (stack) has no setting {key!r}; {hint + ' ' if hint else ''}the network's own go under "
                    f"base, as fusion.base.{key}"
                )
        return value

    @field_validator("base")
    @classmethod
    def _one_network(cls, base: NamedConfig) -> NamedConfig:
        if base.name == "stack":
            raise ValueError("the network beside the trees is no stack itself; name another fusion")
        return base


FusionConfig = Annotated[
    Annotated[AutoConfig, Tag(":auto")] | Annotated[StackConfig, Tag(":stack")] | OneConfig,
    Discriminator(_fusion_sort),
    ByName,
]
"""One fusion with its options, or how to choose one, or one with trees beside it."""


def neural(fusion: NamedConfig) -> NamedConfig:
    """The fusion of the network: that of a stack, or the fusion itself."""
    return fusion.base if isinstance(fusion, StackConfig) else fusion


def with_neural(fusion: NamedConfig, chosen: NamedConfig) -> NamedConfig:
    """The same with this fusion in the network."""
    return fusion.model_copy(update={"base": chosen}) if isinstance(fusion, StackConfig) else chosen
