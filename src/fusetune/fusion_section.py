"""The section `fusion`: one fusion with its options, or how one is chosen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, field_validator

from fusetune.errors import nearest
from fusetune.registry import FUSIONS
from fusetune.sections import ByName, NamedConfig, StrList


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
            if name not in FUSIONS:
                raise ValueError(f"there is no fusion called {name!r}; {nearest(name, FUSIONS) or _listed(FUSIONS)}")
        return list(dict.fromkeys(candidates))


def _listed(names: Iterable[str]) -> str:
    return "known: " + ", ".join(names)


def _fusion_sort(value: Any) -> str:
    name = value.get("name") if isinstance(value, Mapping) else getattr(value, "name", value)
    return f":{name}" if name in ("auto",) else ":one"  # no part of a setting's name begins with a colon


FusionConfig = Annotated[
    Annotated[AutoConfig, Tag(":auto")] | Annotated[NamedConfig, Tag(":one")], Discriminator(_fusion_sort), ByName
]
"""One fusion with its options, or how to choose one."""
