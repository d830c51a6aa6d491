"""The section `data`: how rows are read, split and drawn."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fusetune.config.read import ReadConfig
from fusetune.config.section import Section

OnBadCell = Literal["reject", "mask"]


class DataConfig(Section):
    """How rows are read and split."""

    read: ReadConfig = ReadConfig()
    """How the text of tables is read: separators, quotes, words for missing cells, decimal marks, dates."""
    on_bad_cell: OnBadCell = "reject"
    """A train row with a cell that cannot be read is rejected, or used without that cell (`mask`)."""
    max_rejected: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Larger shares of rejected rows stop the run before training."""
    split: Annotated[list[float], Field(min_length=3, max_length=3)] = [0.8, 0.1, 0.1]
    """Train, validation and test shares where no such rows are given."""
    mix: Annotated[float, Field(ge=0, le=1)] = 1.0
    """How rows are drawn from several train tables of n_i rows: with p_i ∝ n_i^mix; an epoch stays as long. 1: every
    row once an epoch; 0: as many rows of each table."""
    unlabelled: Annotated[float, Field(ge=0)] = 1.0
    """Train rows without a target that an epoch takes for each row with one, at most, if an objective learns from them
    (`contrastive`, `distill`, `rdrop`, `semi`, `vat`). 0: they are left out."""
    probe_only: list[Annotated[int, Field(ge=0)]] = []
    """Train tables, by their number from 0, on whose rows the linear probe and the heads learn, but encoders are not
    tuned: with a table of old and one of new rows, tuning takes as long as on the new ones alone."""
    cache: str | None = None
    """The folder where encoders' outputs, and what the first trained layer reads, are kept for other runs. None:
    $FUSETUNE_CACHE or ~/.cache/fusetune. `none`: nothing is kept."""
    cache_gib: Annotated[float, Field(ge=0)] = 10.0
    """GiB that the folder may take; what was not used for the longest time goes first. 0: nothing is kept."""
    views: Annotated[int, Field(ge=0)] = 0
    """Augmented views of a cell that a frozen encoder, or the frozen first layers of one, sees in turn: each is
    computed once, epoch e uses view e mod `views`. 0: a new one in every epoch, which is computed in every epoch."""
    memory: Annotated[float, Field(ge=0)] = 4.0
    """GiB of decoded cells that are kept, tokens and numbers in mapped files; the rest is decoded again when needed."""

    @model_validator(mode="after")
    def _shares(self) -> DataConfig:
        if min(self.split) < 0 or abs(sum(self.split) - 1) > 1e-6 or self.split[0] == 0:
            raise ValueError(f"three shares of 0 or more that sum to 1, the first above 0; came {self.split}")
        return self
