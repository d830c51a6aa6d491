"""The section `pretrain`: self-supervised tuning of the encoders on the table's own rows."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from fusetune.config.section import Section, StrList

EPOCHS = {"mlm": 10.0, "simcse": 3.0, "contrastive": 5.0}
"""Default passes over the train rows, by method."""


class PretrainConfig(Section):
    """Self-supervised tuning of the pretrained encoders before the task is tuned. Train rows without a target take
    part, a table of them besides (`train: [labelled.csv, pool.csv]`) too. Test rows do not."""

    name: Literal["mlm", "simcse", "contrastive"]
    """`mlm`: predict masked words of texts (arXiv 2004.10964). `simcse`: pull two dropout passes of a text together and
    push other texts away (2104.08821). `contrastive`: pull the columns of a row together, such as picture and text, and
    push other rows away (2103.00020)."""
    columns: StrList = []
    """The columns that are read. []: all text columns; for `contrastive` all columns with a pretrained encoder."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the train rows, with and without a target. None: 10 for `mlm`, 3 for `simcse`, 5 for `contrastive`.
    The step with the lowest loss on the validation rows is kept."""
    lr: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of an encoder's last block. None: `trainer.backbone_lr`, for an adapter a multiple of it."""
    batch_size: Annotated[int, Field(ge=2)] = 64
    """Rows an update; `simcse` and `contrastive` tell each row from the others of its batch."""
    mask: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """`mlm`: share of a text's tokens that are predicted. Of these, 80 % are replaced by the mask token and 10 % by a
    random token; 10 % stay."""
    temperature: Annotated[float, Field(ge=0.01, le=1)] | None = None
    """τ of the similarities. None: 0.05 for `simcse`; for `contrastive` it is learned, from 0.07."""
    freeze: str = "none"
    """What stays as it is in this step, as in `text.freeze`, which is about tuning to the task only."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many evaluations, one an epoch, without a lower loss on the validation rows. None: never."""

    @property
    def passes(self) -> float:
        """The number of epochs."""
        return EPOCHS[self.name] if self.epochs is None else self.epochs


def _as_section(value: Any) -> Any:
    """A name as the section, `none` and false as no section."""
    if value is False or value == "none":
        return None
    return {"name": value} if isinstance(value, str) else value


Pretrain = Annotated[PretrainConfig | None, BeforeValidator(_as_section)]
