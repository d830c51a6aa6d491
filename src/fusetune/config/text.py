"""The section `text`: what reads text columns."""

from __future__ import annotations

from fusetune.config.backbone import BackboneConfig


class TextConfig(BackboneConfig):
    """The pretrained model that reads text columns, and which columns it reads together."""

    join: list[list[str]] = []
    """Columns that are read together, as `[[premise, hypothesis]]`: their texts become one sequence, with the
    tokenizer's own template for pairs, so that attention runs between them. More than two are separated by the
    tokenizer's separator. They are then no longer read one by one."""
    cut: str = "longest"
    """Where texts are cut that are too long together: `longest` shortens the longer one; a column's name cuts that
    column's text, if it is the last of its join, else those before it."""
