"""The section `text`: what reads text columns."""

from __future__ import annotations

from typing import Literal

from fusetune.config.backbone import BackboneConfig


class TextConfig(BackboneConfig):
    """The pretrained model that reads text columns, and which columns it reads together."""

    join: list[list[str]] | Literal["auto"] | None = None
    """Columns that are read together, as `[[premise, hypothesis]]`: their texts become one sequence, with the
    tokenizer's own template for pairs, so that attention runs between them. More than two are separated by the
    tokenizer's separator. They are then no longer read one by one. `auto`: if there are exactly two text columns, both
    readings are tuned, on at most 2,000 train rows if there are more than 4,000, and validation rows choose one. None:
    as `auto` if the two columns' names say that they are a pair, as premise and hypothesis or text_a and text_b. []:
    never."""
    cut: str = "longest"
    """Where texts are cut that are too long together: `longest` shortens the longer one; a column's name cuts that
    column's text, if it is the last of its join, else those before it."""
