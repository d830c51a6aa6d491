"""The sections `text`, `image` and `audio`: the backbone of each kind of column."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fusetune.config.adapter import AdapterConfig
from fusetune.config.section import ByName, Section


class BackboneConfig(Section):
    """The pretrained model that reads one kind of column."""

    name: str | None = None
    """A hub id, a folder, or the folder of a model tuned before. None: the embedded text model; for images and sounds a
    small one trained from scratch."""
    pool: Literal["auto", "mean", "cls", "last", "none"] = "auto"
    """How a cell's token vectors become one. `auto`: what the model was trained with. `none`: they stay apart, and the
    fusion sees every word, patch or moment; the frozen features of a column then take tokens times the memory."""
    max_tokens: Annotated[int, Field(ge=8)] | None = None
    """Longer texts are cut here. None: the model's own limit, at most 512."""
    freeze: str = "none"
    """`none`, `all`, `bottom:K` (the first K blocks as `fusetune backbones NAME` lists them, the embeddings being the
    first), `only:bias` or `only:norm` (all but these), or `regex:PATTERN` over parameter names. An encoder that is
    trained from scratch cannot be frozen. `auto`: for pictures `bottom:K`, K chosen by a trial on train rows so that
    the frozen blocks promise at most a tenth of what tuning gains; for texts and sounds `none`."""
    lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of this backbone's last block. None: `trainer.backbone_lr`, for an adapter 10 times that, for
    `ia3` and `vera` 50 times."""
    adapter: Annotated[AdapterConfig | None, ByName] = None
    """Train few weights beside the backbone's: `lora`, `rslora`, `dora`, `ia3`, `vera` or `oft`, with its settings.
    None: for a language model that writes and has 100 million weights or more `lora` of rank 16 on all linear layers;
    for others no adapter, as `none`."""
