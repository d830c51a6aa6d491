"""The section `augment`: the augmentations of each kind of column."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from fusetune.errors import nearest
from fusetune.registry import MODALITIES


def _as_augmentation(value: Any) -> Any:
    """Names alone, or in a list, with their defaults; `none` for none."""
    if value in ("none", False):
        return {}
    names = [value] if isinstance(value, str) else value
    return dict.fromkeys(names, True) if isinstance(names, list) else value


def _known_kinds(value: dict[str, Any]) -> dict[str, Any]:
    for kind in value:
        if kind not in MODALITIES:
            raise ValueError(f"there is no kind {kind!r}; {nearest(kind, MODALITIES) or ', '.join(MODALITIES)}")
    return value


Augmentation = Annotated[dict[str, Any], BeforeValidator(_as_augmentation)]

Augmentations = Annotated[dict[str, Augmentation], AfterValidator(_known_kinds)]
