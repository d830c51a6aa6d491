"""Interactions of users with items: their times, how they are split, and the histories that follow from them.

Legend: users, items = numbered from 0, an item by its position in the catalogue; rows = interactions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import sparse

from fusetune.config.interactions import NONE
from fusetune.data.detect.columns import evenly_spaced
from fusetune.data.detect.roles import words_of
from fusetune.data.distinct import is_missing
from fusetune.data.keys import key_of
from fusetune.data.table import Table
from fusetune.errors import TableError, nearest
from fusetune.modalities.features.date import seconds_of
from fusetune.modalities.profile import plain

SAMPLE = 1000
"""Cells by which a column is tried as time or rating."""
MOST = 0.95
"""The share of cells that must be numbers or dates for a column to be detected."""
TIME_WORDS = ("timestamp", "time", "datetime", "date", "when", "moment", "day")
RATING_WORDS = ("rating", "stars", "score", "grade", "vote", "rate")
PREFIXES = {"ratings": "rating", "scores": "score", "votes": "vote", "ts": "timestamp"}


@dataclass(frozen=True)
class Interactions:
    """Which users interacted with which items, by train rows.

    Attributes:
        users: by number, the user's key.
        items: by position in the catalogue, the item's key; None for an item without a key.
        matrix: (users, items) sparse float32, 1 where there is a train row. A user's items are in the order of their
            time, or of the table if there is none (`indices` is not sorted).
        liked: (train pairs,) bool, aligned with `matrix.indices`: whether the rating, if there is one, is high enough
            to be learned from.
        times: (train pairs,) float64, aligned as well; None if the rows have no time.
    """

    users: Sequence[str]
    items: Sequence[str | None]
    matrix: sparse.csr_array
    liked: np.ndarray
    times: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        users: Sequence[str],
        items: Sequence[str | None],
        rows: tuple[np.ndarray, np.ndarray],
        *,
        times: np.ndarray | None,
        liked: np.ndarray,
    ) -> Interactions:
        """Collect train rows; a repeated pair counts once, at its last row.

        Args:
            users, items: see the attributes.
            rows: (rows,) each row's user and item.
            times: (rows,) float64, or None.
            liked: (rows,) bool.
        """
        user, item = rows
        order = np.argsort(user, kind="stable") if times is None else np.lexsort((times, user))
        pair = user[order] * max(len(items), 1) + item[order]
        _, last = np.unique(pair[::-1], return_index=True)
        order = order[np.sort(len(pair) - 1 - last)]
        starts = np.searchsorted(user[order], np.arange(len(users) + 1))
        ones = np.ones(len(order), np.float32)
        shape = (len(users), len(items))
        matrix = sparse.csr_array((ones, item[order], starts), shape=shape)
        return cls(users, items, matrix, liked[order], None if times is None else times[order])

    def history(self, user: int, *, before: float = np.inf) -> np.ndarray:
        """Return the items that a user liked, the earliest first, (items,) int64; none for -1, an unknown user.

        Args:
            user: the number.
            before: a moment; of rows with a time only those strictly before it count.
        """
        if user < 0:
            return np.zeros(0, dtype=np.int64)
        part = slice(*self.matrix.indptr[user : user + 2])
        chosen = self.liked[part] if self.times is None else self.liked[part] & (self.times[part] < before)
        return np.asarray(self.matrix.indices[part][chosen], dtype=np.int64)

    def contains(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Return which pairs of a user and an item are train rows, (pairs,) bool.

        Args:
            users: (pairs,) numbers; -1 for a user without train rows.
            items: (pairs,) positions in the catalogue.
        """
        size = max(len(self.items), 1)
        own = np.repeat(np.arange(len(self.users)), np.diff(self.matrix.indptr)) * size + self.matrix.indices
        return np.isin(users * size + items, own) & (users >= 0)

    def seen(self, users: np.ndarray) -> sparse.csr_array:
        """Return which items some users interacted with, (users, items) sparse bool.

        Args:
            users: (users,) numbers; -1 for a user without train rows.
        """
        known = np.flatnonzero(users >= 0)
        ones = np.ones(len(known), dtype=np.float32)
        picked = sparse.csr_array((ones, (known, users[known])), shape=(len(users), len(self.users)))
        return sparse.csr_array(picked @ self.matrix > 0)


def find_column(table: Table, asked: str | None, words: Sequence[str], taken: Sequence[str]) -> tuple[str | None, str]:
    """Return the column of times or ratings, and why; None if there is none.

    Args:
        table: of interactions.
        asked: the setting: a column, `none`, or None to detect one.
        words: those that names of such columns hold, `TIME_WORDS` or `RATING_WORDS`, the likeliest first.
        taken: columns that are something else.

    Raises:
        TableError: the named column is not in the table.
    """
    if asked == NONE:
        return None, ""
    if asked is not None:
        if asked not in table:
            names = table.column_names
            raise TableError(
                f"there is no column {asked!r}",
                expected=", ".join(map(repr, names)),
                do=nearest(asked, names),
                file=table.source,
            )
        return asked, "named in the settings"
    for word in words:
        for name in table.column_names:
            named = [PREFIXES.get(part, part) for part in words_of(name)]
            if name in taken or word not in named or not table.is_scalar(name):
                continue
            cells = [cell for cell in table.cells(name, evenly_spaced(len(table), SAMPLE)) if not is_missing(cell)]
            read = [_moment(cell) if words is TIME_WORDS else _number(cell) for cell in cells]
            readable = sum(value is not None for value in read)
            if cells and readable >= MOST * len(cells):
                kind = "dates or numbers" if words is TIME_WORDS else "numbers"
                return name, f"its name has {word!r}, and {readable:,} of {len(cells):,} sampled cells are {kind}"
    return None, ""


def read_times(table: Table, column: str) -> tuple[np.ndarray, dict[int, str]]:
    """Return each row's moment, (rows,) float64, and by position why it cannot be read.

    Args:
        table: of interactions, with its cells' forms.
        column: dates, or numbers that grow. If there are both, those that fewer rows have cannot be read.
    """
    values, wrong = _read(table, column, _moment, "it is no date and no number")
    read = np.array([position for position in range(len(table)) if position not in wrong], dtype=np.int64)
    is_number = np.array([_number(cell) is not None for cell in table.lazy(column, read)], dtype=bool)
    fewer = is_number.mean() <= 0.5 if len(read) else False
    why = "it is a number, and other rows have dates" if fewer else "it is a date, and other rows have numbers"
    return values, wrong | dict.fromkeys(read[is_number == fewer].tolist(), why)


def read_ratings(table: Table, column: str) -> tuple[np.ndarray, dict[int, str]]:
    """Return each row's rating, (rows,) float64, and by position why it cannot be read."""
    return _read(table, column, _number, "the rating is no number")


def _read(table: Table, column: str, read: Any, why: str) -> tuple[np.ndarray, dict[int, str]]:
    values, wrong = np.zeros(len(table)), {}
    for position, cell in enumerate(table.lazy(column)):
        value = None if is_missing(cell) else read(cell)
        if value is None:
            wrong[position] = "it is missing" if is_missing(cell) else why
        else:
            values[position] = value
    return values, wrong


def _number(cell: Any) -> float | None:
    try:
        value = float(plain(cell))
    except (TypeError, ValueError, OverflowError):
        return None
    return value if np.isfinite(value) else None


def _moment(cell: Any) -> float | None:
    value = _number(cell)
    return seconds_of(plain(cell)) if value is None else value


def keys_in(table: Table, column: str) -> tuple[np.ndarray, list[str]]:
    """Return each row's number among the distinct keys of a column, (rows,) int64, -1 if missing, and the keys."""
    codes, first = table.distinct(column)
    numbers: dict[str, int] = {}
    of_cell = np.array(
        [
            -1 if (key := key_of(cell)) is None else numbers.setdefault(key, len(numbers))
            for cell in table.lazy(column, first)
        ],
        dtype=np.int64,
    )
    rows = np.where(codes >= 0, of_cell[codes] if len(of_cell) else -1, -1)
    return rows, list(numbers)


def split_by_time(times: np.ndarray, shares: Sequence[float]) -> list[np.ndarray]:
    """Return consecutive spans of time, as ascending positions; rows of one moment stay together.

    Args:
        times: (rows,) of any order.
        shares: the spans' shares of the rows, the earliest first; they sum to 1.
    """
    ordered = np.sort(times)
    ends = np.cumsum(shares)[:-1] * len(times)
    bounds = [ordered[min(round(end), len(times) - 1)] if len(times) else np.inf for end in ends]
    part = np.searchsorted(np.asarray(bounds), times, side="right")
    return [np.flatnonzero(part == number) for number in range(len(shares))]


def split_by_user(users: np.ndarray, shares: Sequence[float], *, seed: int) -> list[np.ndarray]:
    """Return random parts of each user's rows, as ascending positions; every user keeps a row in the first part.

    Args:
        users: (rows,) each row's user.
        shares: of the parts; they sum to 1.
        seed: equal seeds give equal parts.
    """
    rng = np.random.default_rng(seed)
    order = np.lexsort((rng.random(len(users)), users))  # a user's rows together, shuffled
    starts = np.flatnonzero(np.r_[True, np.diff(users[order]) > 0][: len(order)])
    sizes = np.diff(starts, append=len(order))
    part = np.zeros(len(users), dtype=np.int64)
    offsets = rng.random(len(sizes))  # rounds the shares of small users so that they add up over all users
    for start, size, offset in zip(starts, sizes, offsets, strict=True):
        bounds = np.floor(np.cumsum(shares[::-1])[:-1] * size + offset).astype(np.int64)
        left = order[start : start + size]
        for number, position in enumerate(left[: size - 1]):
            part[position] = len(shares) - 1 - np.searchsorted(bounds, number, side="right")
    return [np.flatnonzero(part == number) for number in range(len(shares))]


def histories(
    users: np.ndarray, items: np.ndarray, times: np.ndarray | None, *, length: int, seed: int
) -> list[np.ndarray]:
    """Return each train row's history: (items,) positions of what its user interacted with before, the earliest first.

    With times it is what came strictly before the row's own moment. Without, it is the user's other rows, without the
    row's own item.

    Args:
        users, items: (rows,) of the train rows.
        times: (rows,) float64; None if the rows have no time.
        length: items of a history, at most: the latest, or a random choice.
        seed: of the random choice.
    """
    rng = np.random.default_rng(seed)
    order = np.argsort(users, kind="stable") if times is None else np.lexsort((times, users))
    result: list[np.ndarray] = [items[:0]] * len(users)
    for rows in np.split(order, np.flatnonzero(np.diff(users[order])) + 1) if len(order) else ():
        own = items[rows]
        if times is not None:
            before = np.searchsorted(times[rows], times[rows], side="left")
            for row, count in zip(rows, before, strict=True):
                result[row] = own[max(count - length, 0) : count]
            continue
        for row, item in zip(rows, own, strict=True):
            others = own[own != item]
            result[row] = others if len(others) <= length else rng.choice(others, length, replace=False)
    return result


def as_cells(lists: Sequence[np.ndarray]) -> pa.Array:
    """Return lists of positions as a column; an empty list is a missing cell."""
    sizes = np.fromiter((len(items) for items in lists), dtype=np.int64, count=len(lists))
    offsets = pa.array(np.r_[0, np.cumsum(sizes)].astype(np.int32))
    values = np.concatenate([*lists, np.zeros(0, np.int64)]).astype(np.int64)
    return pa.ListArray.from_arrays(offsets, pa.array(values), mask=pa.array(sizes == 0))
