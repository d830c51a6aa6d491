"""A fit of users who interact with items: rows that name an item of a catalogue, with histories and a split by time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import sparse

from fusetune.config.config import Config
from fusetune.config.interactions import NONE
from fusetune.config.read import ReadConfig
from fusetune.config.section import NamedConfig
from fusetune.data.catalogue import Catalogue, Pairs, Sides
from fusetune.data.interactions import (
    RATING_WORDS,
    TIME_WORDS,
    Interactions,
    as_cells,
    find_column,
    histories,
    keys_in,
    read_ratings,
    read_times,
    split_by_time,
    split_by_user,
)
from fusetune.data.keys import key_of
from fusetune.data.quarantine import Rejected
from fusetune.data.reading.joined import only, with_column
from fusetune.data.schema import ColumnSpec, Schema
from fusetune.data.table import Table
from fusetune.errors import TableError
from fusetune.fitting.aging import age_weights
from fusetune.fitting.described import (
    USER_DROPOUT,
    Users,
    as_ids,
    check_apart,
    column_notes,
    described,
    items_of,
)
from fusetune.fitting.documents import Documents, Splitting
from fusetune.modalities.base import Modality
from fusetune.modalities.history import HistoryModality
from fusetune.models.build import NO_FUSION

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class _Rows:
    """The rows of a table of interactions that can be used, aligned with its pairs.

    Attributes:
        users: (pairs,) numbers of all users, those of the train table first.
        times: (pairs,) float64, or None.
        ratings: (pairs,) float64, or None.
    """

    users: np.ndarray
    times: np.ndarray | None
    ratings: np.ndarray | None


class Recommendations(Documents):
    """The users and items of a fit, and the splits that follow from them.

    Train rows are interactions, each beside its item and its user's history at that moment. Validation and test rows
    are the users with interactions there, and the whole catalogue.

    Attributes:
        interactions: of the train rows; set by `splits`.
        recent: (items,) each item's train rows, weighed by age; None if all weigh alike. Set by `splits`.
        user, item: the columns of ids.
        history: the column of histories that is made here.
    """

    interactions: Interactions
    recent: np.ndarray | None = None

    def __init__(self, config: Config, sources: Mapping[str, Any], tables: Mapping[str, Table]) -> None:
        """
        Args:
            config: the settings.
            sources: the catalogue and the table of users under "catalogue" and "users", if they are given.
            tables: the tables of interactions, by split.

        Raises:
            TableError: a table lacks a column, or the catalogue is empty or has no key.
            TooManyRejected: too large a share of the catalogue has no item.
        """
        assert config.user is not None and config.item is not None
        self.user, train, read = config.user, tables["train"], config.data.read
        for table in tables.values():
            table.require([self.user, config.item])
        overrides = config.schema_overrides()
        items, key = items_of(config, sources.get("catalogue"), tables)
        self.item, others = key.item, [name for name in items.column_names if name != key.item]
        self._items = described(items, list(config.document) or others, overrides, read, insist=bool(config.document))
        source = sources.get("users")
        self._users = None if source is None else Users(Table.read(source, read=read), self.user, overrides, read)
        self._attributes = {} if self._users is None else self._users.attributes
        check_apart(self._users, [key.item, *self._items])
        sides = Sides((self.user,), (key.item, *self._items))
        self._start(config, Catalogue(items, key, sides, None))
        taken = [self.user, config.item]
        asked = config.interactions
        self.time, why_time = find_column(train, asked.time, TIME_WORDS, taken)
        taken += [self.time] if self.time is not None else []
        self.rating, why_rating = find_column(train, asked.rating, RATING_WORDS, taken)
        self.notes += column_notes(train.source, asked, (self.time, why_time), (self.rating, why_rating))
        self.history = "history"
        while any(self.history in table for table in (*tables.values(), items)) or self.history in self._attributes:
            self.history += "_"
        self._own = config
        columns: dict[str, Any] = {
            "query": [self.user, *self._attributes, self.history],
            "document": [key.item, *self._items],
        }
        if config.fusion == NamedConfig(name="attention"):  # the default
            columns["fusion"] = NamedConfig(name=NO_FUSION)
        self.config = self.config.model_copy(update=columns)
        self._rows: dict[str, _Rows] = {}
        self._keys: dict[str, dict[str, np.ndarray]] = {}

    @property
    def announcement(self) -> str:
        """A line on what the splits hold."""
        users = f"{len(self.interactions.users):,} users with train rows"
        return f"items    {len(self.catalogue.items):,} of {self.item}; {users}; val and test: users and all items"

    def pairs_of(self, tables: Mapping[str, Table]) -> dict[str, Table]:
        """Return the rows beside their items and users' attributes, with room for histories."""
        super().pairs_of(tables)
        numbers: dict[str, int] = {}
        for split in (split for split in SPLITS if split in self._pairs):
            pairs = self._readable(split, tables[split], self._pairs[split])
            own, keys = keys_in(pairs.table, self.user)
            users = np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)[own]
            self._rows[split] = replace(self._rows[split], users=users)
            table = pairs.table
            if self._users is not None:
                table, lost = self._users.beside(table, users, list(numbers))
                self.notes += [lost] if lost else []
            if self._weighs:
                weights = self._rows[split].ratings if self.config.interactions.weigh else np.ones(len(table))
                table = with_column(table.with_missing([self._weight]), self._weight, pa.array(weights))
            table = table.with_missing([self.history])
            self._pairs[split] = replace(pairs, table=table)
        return {split: pairs.table for split, pairs in self._pairs.items()}

    @property
    def _weighs(self) -> bool:
        return self.config.interactions.weigh or (self.time is not None and self.config.interactions.half_life != NONE)

    @property
    def _weight(self) -> str:
        return "weight of a row"

    def _readable(self, split: str, queries: Table, pairs: Pairs) -> Pairs:
        """Return the pairs whose time and rating can be read; the others are rejected."""
        position = np.searchsorted(queries.rows, pairs.table.rows)
        values: dict[str, np.ndarray | None] = {"times": None, "ratings": None}
        keep, rejected = np.ones(len(position), dtype=bool), list(pairs.rejected)
        needed = self.config.interactions.min_rating is not None or self.config.interactions.weigh
        for name, column, read in (
            ("times", self.time, read_times),
            ("ratings", self.rating if needed else None, read_ratings),
        ):
            if column is None:
                continue
            queries.require([column])
            numbers, wrong = read(queries, column)
            cells = queries.cells(column, list(wrong))
            rejected += [
                Rejected(int(queries.rows[at]), column, cell, why)
                for (at, why), cell in zip(wrong.items(), cells, strict=True)
            ]
            keep &= ~np.isin(position, list(wrong))
            values[name] = numbers[position]
        if not keep.any():
            raise TableError(
                f"no {split} row can be used", came=rejected[-1].why if rejected else None, file=queries.source
            )
        kept = {name: None if numbers is None else numbers[keep] for name, numbers in values.items()}
        self._rows[split] = _Rows(np.zeros(0, np.int64), kept["times"], kept["ratings"])
        grades = pairs.grades[keep]
        if (least := self.config.interactions.min_rating) is not None:
            assert kept["ratings"] is not None
            grades = (kept["ratings"] >= least).astype(np.float64)
        table = pairs.table if keep.all() else pairs.table.select(keep)
        return replace(pairs, table=table, items=pairs.items[keep], grades=grades, rejected=rejected)

    def overrides(self, overrides: dict[str, Any]) -> dict[str, Any]:
        """Return what the user says about columns; see `detect`."""
        return overrides

    def detect(self, pairs: Table, overrides: Mapping[str, Any], read: ReadConfig) -> Schema:
        """Return the schema: ids, what describes items and users, histories; other columns are not read."""
        described = {**self._items, **self._attributes}
        own = {name: value for name, value in overrides.items() if name not in described}
        reasons = {self.user: "the column of users", self.item: "the column of items"}
        own |= {name: as_ids(name, what, own.get(name)) for name, what in reasons.items()}
        own[self.user]["options"] = {"dropout": USER_DROPOUT, **own[self.user].get("options", {})}
        rest = [name for name in pairs.column_names if name not in (*described, self.history)]
        schema = Schema.detect(only(pairs, rest), overrides=own, read=read)
        for name, spec in schema.columns.items():
            if name in reasons:
                schema.columns[name] = replace(spec, reason=reasons[name])
            elif spec.role not in ("split", "weight"):
                reason = {self.time: "the time", self.rating: "the rating"}.get(name, "describes neither side")
                schema.columns[name] = replace(spec, role="ignore", reason=reason)
        if self._weighs:
            schema.columns[self._weight] = ColumnSpec(self._weight, "number", "weight", "made of ratings or times")
        options = {"length": self.config.interactions.history}
        schema.columns |= described
        schema.columns[self.history] = ColumnSpec(self.history, "history", "input", "the user's items before", options)
        return schema

    def know(self, modalities: Mapping[str, Modality]) -> None:
        """Tell the column of histories which items there are."""
        history = modalities[self.history]
        assert isinstance(history, HistoryModality)
        history.know(len(self.catalogue.items))

    def _item_keys(self) -> list[str | None]:
        return [key_of(cell) for cell in self.catalogue.items.lazy(self.catalogue.key.item)]

    def splits(self, given: Mapping[str, Table], tables: Splitting) -> dict[str, Table]:
        """Return the rows of every split: interactions for train, users and the catalogue for the others.

        Raises:
            TableError: a split has no row that can be used.
        """
        for split, pairs in self._pairs.items():
            tables.rejected[split] += pairs.rejected
        self._pairs = {split: replace(pairs, table=given[split]) for split, pairs in self._pairs.items()}
        chosen = {split: np.arange(len(table)) for split, table in given.items()}
        carved = self._carved(given, tables)
        self._source_of = {split: "train" if split in carved else split for split in {**chosen, **carved}}
        chosen |= carved
        for split, positions in chosen.items():
            self._ids[split] = np.unique(self._pairs[self._source_of[split]].table.rows[positions])
        self._collect(chosen["train"])
        self._note_order(chosen, tables)
        if self._weighs:
            self._age(chosen, tables)
        train = self._train(self._pairs["train"], chosen["train"], tables)
        others = [split for split in chosen if split != "train"]
        return {"train": train} | {
            split: self._searched(split, self._pairs[self._source_of[split]], chosen[split], tables) for split in others
        }

    def _age(self, chosen: Mapping[str, np.ndarray], tables: Splitting) -> None:
        """Let earlier train rows weigh less."""
        pairs, rows, positions = self._pairs["train"], self._rows["train"], chosen["train"]
        train = pairs.items[positions], None if rows.times is None else rows.times[positions]
        source, right = self._source_of.get("val", "train"), chosen.get("val", positions[:0])
        right = right[self._pairs[source].grades[right] > 0]
        users = self._rows[source].users[right]
        held_out = np.where(users < len(self.interactions.users), users, -1), self._pairs[source].items[right]
        factors, note = age_weights(self.config.interactions.half_life, self.interactions, train, held_out)
        tables.notes += [note] if note else []
        weights = np.array(pairs.table.cells(self._weight), dtype=np.float64)
        weights[positions] *= factors
        if factors.min() < 1:
            self.recent = np.bincount(train[0], factors * (pairs.grades[positions] > 0), len(self.catalogue.items))
        self._pairs["train"] = replace(pairs, table=with_column(pairs.table, self._weight, pa.array(weights)))

    def _carved(self, given: Mapping[str, Table], tables: Splitting) -> dict[str, np.ndarray]:
        """Return the positions of splits without a table of their own, and of train, in the train table."""
        wanted = [split for split in SPLITS if split not in given]
        if not wanted:
            return {}
        if tables.schema.split is not None:
            return tables.split_positions(given, [])
        names = ["train", *wanted]
        shares = np.array([self.config.data.split[SPLITS.index(name)] for name in names])
        shares = shares / shares.sum()
        rows = self._rows["train"]
        if rows.times is None:
            parts = split_by_user(rows.users, shares.tolist(), seed=self.config.seed)
        else:
            parts = split_by_time(rows.times, shares.tolist())
            tables.notes.append(f"Rows are split by {self.time}: {', then '.join(names)}.")
        if not len(parts[0]):
            raise TableError(
                "no row is left to train on",
                came=f"{len(np.unique(rows.times)) if rows.times is not None else 0} different times",
                do="name another column: interactions.time=COLUMN, or interactions.time=none",
                file=given["train"].source,
            )
        return {name: part for name, part in zip(names, parts, strict=True) if len(part) or name == "train"}

    def _note_order(self, chosen: Mapping[str, np.ndarray], tables: Splitting) -> None:
        """Note how many rows of a given split are not later than all train rows."""
        times = {split: self._rows[self._source_of[split]].times for split in chosen}
        if (train := times.pop("train")) is None:
            return
        last = train[chosen["train"]].max()
        for split, own in times.items():
            if own is not None and (early := int((own[chosen[split]] <= last).sum())):
                tables.notes.append(
                    f"{early:,} {split} rows are not later than the last train row: users' histories stop before them."
                )

    def _collect(self, positions: np.ndarray) -> None:
        """Collect the interactions of the train rows; number the users, those of train rows first."""
        rows, pairs = self._rows["train"], self._pairs["train"]
        known = np.unique(rows.users[positions])
        total = 1 + max(int(part.users.max(initial=-1)) for part in self._rows.values())
        number = np.full(total, -1, dtype=np.int64)
        number[known] = np.arange(len(known))
        number[number < 0] = np.arange(len(known), total)
        self._rows = {split: replace(part, users=number[part.users]) for split, part in self._rows.items()}
        rows = self._rows["train"]
        own, keys = keys_in(pairs.table, self.user)
        names = dict(zip(rows.users.tolist(), own.tolist(), strict=True))
        self.interactions = Interactions.of(
            [keys[names[user]] for user in range(len(known))],
            self._item_keys(),
            (rows.users[positions], pairs.items[positions]),
            times=None if rows.times is None else rows.times[positions],
            liked=pairs.grades[positions] > 0,
        )

    def _train(self, pairs: Pairs, positions: np.ndarray, tables: Splitting) -> Table:
        liked = positions[pairs.grades[positions] > 0]
        if not len(liked):
            raise TableError(
                "no train row has a rating that is high enough",
                expected=f"ratings of {self.config.interactions.min_rating} or more",
                file=pairs.table.source,
            )
        rows = self._rows["train"]
        users, items = rows.users[liked], pairs.items[liked]
        times = None if rows.times is None else rows.times[liked]
        length, seed = self.config.interactions.history, self.config.seed
        lists = histories(users, items, times, length=length, seed=seed)
        self._keys["train"] = {self.user: users, self.item: items}
        table = with_column(pairs.table.select(liked), self.history, as_cells(lists))
        return table.read_as(tables.schema.forms())

    def _searched(self, split: str, pairs: Pairs, positions: np.ndarray, tables: Splitting) -> Table:
        reserved = self._ends[self._source_of[split]]
        tables.reserved[split] = reserved
        rows = self._rows[self._source_of[split]]
        known = self.interactions
        user = np.where(rows.users < len(known.users), rows.users, -1)[positions]
        repeated = known.contains(user, pairs.items[positions])
        right = positions[~repeated & (pairs.grades[positions] > 0)]
        if count := int(repeated.sum()):
            tables.notes.append(f"{count:,} {split} rows repeat a train row's user and item: not measured.")
        if not len(right):
            raise TableError(
                f"no {split} row can be measured", expected="users with new items", file=pairs.table.source
            )
        searched = self.catalogue.searched(pairs, right, reserved=reserved)
        self.related[split], self.num_queries[split] = searched.related, searched.num_queries
        total, num = len(searched.table), searched.num_queries
        front = rows.users[np.searchsorted(pairs.table.rows, searched.table.rows[:num])]
        numbers = np.where(front < len(known.users), front, -1)
        lists = self._histories_before(numbers, rows, positions)
        seen = sparse.coo_array(known.seen(numbers))
        entries = seen.coords[0], seen.coords[1] + num
        self.seen[split] = sparse.csr_array((np.ones(seen.nnz, dtype=bool), entries), shape=(total, total))
        alone = np.arange(len(self.catalogue.items))
        best = self.catalogue.positions(searched.table.cells(self.item, np.arange(num)))
        self._keys[split] = {self.user: np.r_[front, np.full(len(alone), -1)], self.item: np.r_[best, alone]}
        cells = as_cells([*lists, *([np.zeros(0, np.int64)] * len(alone))])
        return with_column(searched.table, self.history, cells).read_as(tables.schema.forms())

    def _histories_before(self, users: np.ndarray, rows: _Rows, positions: np.ndarray) -> list[np.ndarray]:
        """Return the items that users liked in train rows strictly before the first of their held-out rows.

        Args:
            users: (users,) numbers; -1 for a user without train rows.
            rows: the table's.
            positions: of the held-out rows among them.
        """
        first = np.full(1 + int(rows.users.max(initial=0)), np.inf)
        if rows.times is not None:
            np.minimum.at(first, rows.users[positions], rows.times[positions])
        length = self.config.interactions.history
        return [self.interactions.history(user, before=first[user])[-length:] for user in users]

    def keys(self, split: str) -> dict[str, np.ndarray]:
        """See `Documents.keys`: numbers of users, and positions of items in the catalogue."""
        return self._keys[split]

    def saved(self, config: Config, schema: Schema) -> tuple[Config, Schema]:
        """Return what is saved: the settings as they were given, with the columns that were detected."""
        found = config.interactions.model_copy(update={"time": self.time or NONE, "rating": self.rating or NONE})
        sides = {"query": self._own.query, "document": self._own.document}
        return config.model_copy(update={**sides, "interactions": found}), schema
