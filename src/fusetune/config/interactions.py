"""The section `interactions`: what the rows of users and items say besides who and what."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fusetune.config.section import Section

NONE = "none"
"""The value of a column's setting that says that there is none."""


class InteractionsConfig(Section):
    """Rows of a user and an item, to learn recommendations from; see `user` and `item`."""

    time: str | None = None
    """The column of the moments: dates, or numbers that grow. With it rows are split by time, and a user's history is
    what came before. None: detected by name and cells. `none`: the rows have no time."""
    rating: str | None = None
    """The column of ratings, for `min_rating` and `weigh`. None: detected by name and cells. `none`: there is none."""
    min_rating: float | None = None
    """Items with a lower rating are known to the user, but no right answers, and not learned. None: every row
    counts."""
    weigh: bool = False
    """Whether a train row's weight is its rating, which is then 0 or more."""
    half_life: Annotated[float, Field(gt=0)] | Literal["auto", "none"] = "auto"
    """Days after which a train row weighs half, as tastes and catalogues change; a time in numbers counts seconds.
    `auto`: the one of 1 to 1000 days whose popular items are best on the validation rows. `none`: all weigh alike."""
    history: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Items that a user's history holds, at most: the latest ones, or any without a time."""
