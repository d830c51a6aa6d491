"""The section `objectives`: what is minimised besides the task losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from fusetune.config.section import check_known
from fusetune.registry import OBJECTIVES


def _as_options(value: Any) -> Any:
    """Names alone, in a list or as a mapping without options, as a mapping to options; a number is a weight."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        value = dict.fromkeys(value)
    if not isinstance(value, Mapping):
        return value
    numbers = {name: {"weight": said} for name, said in value.items() if isinstance(said, int | float)}
    return {name: {} if said is None else numbers.get(name, said) for name, said in value.items()}


def _known_objectives(value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    for name in value:
        check_known(name, OBJECTIVES)
    return value


Objectives = Annotated[dict[str, dict[str, Any]], BeforeValidator(_as_options), AfterValidator(_known_objectives)]
