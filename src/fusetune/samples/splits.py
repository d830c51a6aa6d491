"""How a sample's rows are spread over its tables."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fusetune.errors import ConfigError


def split_rows(n: int, shares: Mapping[str, float]) -> dict[str, range]:
    """Return the rows of each table of a sample: ranges that follow each other and hold every row once.

    Args:
        n: number of rows.
        shares: by table name, its share of the rows; they sum to 1.

    Raises:
        ConfigError: a name is no file name, a share is not positive, or they do not sum to 1.
    """
    bad_names = [name for name in shares if not name or not name.replace("_", "").replace("-", "").isalnum()]
    if bad_names or any(share <= 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        raise ConfigError(
            "these splits cannot be made",
            expected="names of letters, digits, - and _ with positive shares that sum to 1",
            came=repr(dict(shares)),
        )
    ends = np.round(np.cumsum(list(shares.values())) * n).astype(int).tolist()
    return {name: range(start, end) for name, start, end in zip(shares, [0, *ends[:-1]], ends, strict=True)}
