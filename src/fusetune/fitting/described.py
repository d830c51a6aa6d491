"""The tables that describe the users and the items of a fit of interactions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from fusetune.config.config import Config
from fusetune.config.interactions import InteractionsConfig
from fusetune.config.read import ReadConfig
from fusetune.data.interactions import keys_in
from fusetune.data.keys import Key, key_columns, key_of
from fusetune.data.reading.joined import beside, only
from fusetune.data.schema import ColumnSpec, Schema
from fusetune.data.table import Source, Table
from fusetune.errors import ConfigError, TableError, nearest

USER_DROPOUT = 0.5
"""How often a user's id is dropped, if the settings do not say: histories say more of most users."""


class Users:
    """A table with a row for each user.

    Attributes:
        attributes: the columns that describe users, by name.

    Raises:
        TableError: it lacks the column of users, or two rows are about one user.
    """

    def __init__(self, table: Table, user: str, overrides: Mapping[str, Any], read: ReadConfig) -> None:
        """
        Args:
            table: of the users.
            user: the column of their ids.
            overrides: what the user of this library says about columns.
            read: how cells are parsed.
        """
        table.require([user])
        self.table = table
        self.attributes = described(table, [name for name in table.column_names if name != user], overrides, read)
        self._places: dict[str, int] = {}
        for position, cell in enumerate(table.lazy(user)):
            if (key := key_of(cell)) is not None and self._places.setdefault(key, position) != position:
                raise TableError(
                    f"two rows are about the user {key!r}",
                    expected="one row for each user",
                    came=f"rows {int(table.rows[self._places[key]])} and {int(table.rows[position])}",
                    file=table.source,
                    column=user,
                )

    def beside(self, table: Table, users: np.ndarray, keys: Sequence[str]) -> tuple[Table, str]:
        """Return rows beside what is known about their users, and a sentence on users that are not known.

        Args:
            table: the rows.
            users: (rows,) each row's index in `keys`.
            keys: of users.
        """
        if not self.attributes:
            return table, ""
        at = np.array([self._places.get(key, -1) for key in keys], dtype=np.int64)
        lost = int((at[np.unique(users)] < 0).sum())
        rows = np.ma.masked_less(at[users], 0)
        made = beside(table, np.arange(len(table)), self.table, rows, list(self.attributes))
        return made, f"{lost:,} users of {table.source} are not in {self.table.source}." if lost else ""


def check_apart(users: Users | None, items: Sequence[str]) -> None:
    """Refuse a column that describes both users and items.

    Args:
        users: the table of users, or None.
        items: the columns of items.

    Raises:
        TableError: there is one.
    """
    if users is not None and (both := [name for name in users.attributes if name in items]):
        raise TableError(
            f"both users and items have a column {both[0]!r}",
            expected="columns of different names",
            do="rename one of them",
            file=users.table.source,
        )


def items_of(config: Config, source: Source | None, tables: Mapping[str, Table]) -> tuple[Table, Key]:
    """Return the catalogue's table and its key; without one, the distinct items of all tables."""
    assert config.item is not None
    train = tables["train"]
    if source is None:
        keys = dict.fromkeys(key for table in tables.values() for key in keys_in(table, config.item)[1])
        if not keys:
            raise TableError(f"no row has an item in {config.item!r}", file=train.source)
        items = pa.table({config.item: pa.array(list(keys), pa.string())})
        return Table(items, source=f"the items of {train.source}", base_dir=train.base_dir), Key(
            config.item, config.item
        )
    items = Table.read(source, read=config.data.read)
    query, name = key_columns(config.catalogue.key) if config.catalogue.key is not None else (config.item, config.item)
    if query != config.item or name not in items:
        raise TableError(
            f"there is no column {name!r}, the key by which rows name items",
            expected=f"one of {', '.join(map(repr, items.column_names))}",
            do=nearest(name, items.column_names) or f"name it: catalogue.key.{config.item}=COLUMN",
            file=items.source,
        )
    return items, Key(config.item, name)


def described(
    table: Table, names: Sequence[str], overrides: Mapping[str, Any], read: ReadConfig, *, insist: bool = False
) -> dict[str, ColumnSpec]:
    """Return the columns that describe users or items, by name.

    Args:
        table: of users or items.
        names: the columns that may.
        overrides: what the user says about columns.
        read: how cells are parsed.
        insist: whether all of them do.
    """
    table.require(names)
    if not names:
        return {}
    own = {name: overrides[name] for name in names if name in overrides}
    schema = Schema.detect(only(table, names), overrides=own, read=read)
    return {name: spec for name, spec in schema.columns.items() if insist or spec.role == "input"}


def column_notes(
    source: str, asked: InteractionsConfig, time: tuple[str | None, str], rating: tuple[str | None, str]
) -> list[str]:
    """Return sentences on what is taken for time and rating, and what they are for.

    Args:
        source: the table.
        asked: the settings.
        time, rating: the column, None if there is none, and why it is.

    Raises:
        TableError: the settings need ratings, and there are none.
    """
    if time[0] is None and isinstance(asked.half_life, float):
        raise TableError(
            "there is no column of times",
            expected="a column for interactions.half_life",
            do="name it: interactions.time=COLUMN",
            file=source,
        )
    if time[0] is not None:
        notes = [f"The time of {source} is {time[0]!r}: {time[1]}."]
    else:
        notes = ["Rows have no time (interactions.time=COLUMN): some of each user's are held out at random."]
    if rating[0] is None:
        if asked.min_rating is not None or asked.weigh:
            raise TableError(
                "there is no column of ratings",
                expected="a column for interactions.min_rating and interactions.weigh",
                do="name it: interactions.rating=COLUMN",
                file=source,
            )
        return notes
    if asked.min_rating is not None:
        use = f"rows below {asked.min_rating:g} are known to the user, but no right answers"
    elif asked.weigh:
        use = "it weighs the rows"
    else:
        use = "every row counts alike; interactions.min_rating=7 counts high ones, interactions.weigh=true weighs"
    return [*notes, f"The rating is {rating[0]!r}, {rating[1]}: {use}."]


def as_ids(name: str, what: str, asked: Any) -> dict[str, Any]:
    """Return what is said about a column of ids, with the kind and the role that it has.

    Args:
        name: the column.
        what: what it holds, in words.
        asked: what the user says about it, if anything.

    Raises:
        ConfigError: another kind or role is asked for.
    """
    said = dict(asked) if isinstance(asked, Mapping) else {} if asked is None else {"kind": asked}
    fixed = {"kind": "identifier", "role": "input"}
    if wrong := [f"{key}={said[key]}" for key, value in fixed.items() if said.get(key, value) != value]:
        raise ConfigError(
            f"{name!r} is {what}",
            expected="kind identifier, role input",
            came=", ".join(wrong),
            do=f"leave it out; to learn without ids: columns.{name}.min_count=1000000",
        )
    return {**said, **fixed}
