"""The section `columns`: kind, role and options of each column."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, field_validator

from fusetune.config.augment import Augmentation
from fusetune.errors import nearest
from fusetune.registry import MODALITIES

Role = Literal["input", "target", "group", "split", "weight", "id", "ignore"]


def _by_name(value: Any) -> Any:
    """A kind or a role by its name alone."""
    if not isinstance(value, str):
        return value
    return {"role": value} if value in get_args(Role) else {"kind": value}


class ColumnConfig(BaseModel):
    """What the user says of one column; other keys are options of its kind."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    kind: str | None = None
    """text, image, audio, number, category or a plug-in's. None: detected."""
    role: Role | None = None
    """input, target, group, split, weight, id or ignore. None: detected."""
    backbone: str | None = None
    """A backbone for this column alone, as in `text.name`."""
    read: dict[str, Any] | None = None
    """How the text of its cells is read: `missing`, `decimal`, `thousands`, `affixes` (signs and units that are left
    out) and `dates`, in place of what is detected. `{}`: as plain numbers are."""
    augment: Augmentation | None = None
    """How this column's train cells are changed, in place of what `augment` says of its kind; `none` for not at all."""

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str | None) -> str | None:
        if kind is not None and kind not in MODALITIES:
            roles = get_args(Role)
            known = f"known: {', '.join(MODALITIES)}; or a role: {', '.join(roles)}"
            raise ValueError(f"there is no such kind or role; {nearest(kind, [*MODALITIES, *roles]) or known}")
        return kind


Columns = dict[str, Annotated[ColumnConfig, BeforeValidator(_by_name)]]
