"""Recommend items to users with a tuned model: known users, and new ones by attributes or by items that they like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from fusetune.data.examples import Examples
from fusetune.data.interactions import Interactions
from fusetune.data.keys import key_of, keys_of
from fusetune.data.output_names import ERROR, ROW
from fusetune.data.table import Source, Table
from fusetune.deploy.bundle import Bundle
from fusetune.deploy.predictions import Predictions
from fusetune.deploy.rows import Rows, read_source, reading_of
from fusetune.errors import ConfigError, TableError, nearest
from fusetune.inference.predict import row_vectors
from fusetune.modalities.history import HistoryEncoder, HistoryModality
from fusetune.tasks.match import RankingTask
from fusetune.tasks.recommendation import ITEM, USER

LIKED = "liked"
"""The column of items that a user likes, in a table of users: a list of keys, or text with `|`, `;` or `,`."""
CHUNK = 1024
"""Users whose items are ranked together."""


@dataclass(frozen=True)
class Asked:
    """Who is recommended items.

    Attributes:
        users: a table of users, or None.
        ids: ids of users, or None.
        liked: by new user, the keys of items that the user likes, or None.
    """

    users: Rows | None = None
    ids: Sequence[Any] | None = None
    liked: Sequence[Sequence[Any]] | None = None


@dataclass(frozen=True)
class _Items:
    """The items that are ranked.

    Attributes:
        keys: of each item, None if it has none.
        vectors: (items, dim) of unit length; zeros for an item that cannot be read.
        shown: the items' columns that are shown besides, aligned.
    """

    keys: Sequence[str | None]
    vectors: np.ndarray
    shown: pa.Table


def recommend(
    bundle: Bundle, asked: Asked, *, k: int = 10, catalogue: Source | None = None, known: bool = False
) -> Predictions:
    """Rank items for users; see `FineTuned.recommend`.

    Raises:
        ConfigError: the model recommends nothing, k is below 1, or it is not clear who is asked for.
        TableError: a table cannot be read, or has no column that the model reads.
    """
    interactions = bundle.interactions
    if interactions is None:
        raise ConfigError(
            "only a model of users and items recommends",
            expected="a model tuned with --user and --item",
            came=f"a model of {', '.join(bundle.tasks)}",
        )
    if k < 1:
        raise ConfigError("a recommendation has at least one item", expected="k of 1 or more", came=f"k={k}")
    rows = _rows(bundle, asked)
    users, histories, seen, errors = _known(interactions, rows, bundle)
    items = _catalogue(bundle, interactions) if catalogue is None else _encoded(bundle, catalogue)
    table = Table.from_records(
        [{**row, history_column(bundle): history or None} for row, history in zip(rows, histories, strict=True)],
        source="the users",
    )
    vectors, wrong = _vectors(bundle, table, USER)
    errors = {number: "; ".join(filter(None, (errors.get(number), wrong.get(number)))) for number in errors | wrong}
    places = {key: position for position, key in enumerate(items.keys) if key is not None}
    hidden = [] if known else [[places[key] for key in own if key in places] for own in seen]
    return _answers(bundle, users, vectors, items, hidden, errors, k)


def history_column(bundle: Bundle) -> str:
    """Return the name of a model's column of histories."""
    return next(name for name, modality in bundle.modalities.items() if isinstance(modality, HistoryModality))


def side_columns(bundle: Bundle, side: str) -> tuple[str, ...]:
    """Return a side's columns."""
    return next(task for task in bundle.tasks.values() if isinstance(task, RankingTask)).sides[side]


def _rows(bundle: Bundle, asked: Asked) -> list[dict[str, Any]]:
    """Return a row for each user, with the columns of the user's side and the items that the user likes."""
    user = str(bundle.config.user)
    if sum(way is not None for way in (asked.users, asked.ids, asked.liked)) != 1:
        raise ConfigError(
            "it is not clear who is recommended items",
            expected="one of: users=TABLE, user_id=ID, liked=[ITEM, ...]",
            do="name one: --users, --user-id or --liked",
        )
    if asked.ids is not None:
        return [{user: number} for number in asked.ids]
    if asked.liked is not None:
        return [{LIKED: list(keys)} for keys in asked.liked]
    assert asked.users is not None
    table = read_source(bundle, asked.users).read_as(bundle.schema.forms())
    columns = [name for name in side_columns(bundle, USER) if name != history_column(bundle)]
    own = [name for name in (*columns, LIKED) if name in table]
    if not own:
        raise TableError(
            "the table has no column about users",
            expected=f"one of {', '.join(map(repr, (*columns, LIKED)))}",
            came=", ".join(table.column_names),
            do=nearest(user, table.column_names) or None,
            file=table.source,
        )
    cells = {name: table.cells(name) for name in own}
    return [{name: cells[name][row] for name in own} for row in range(len(table))]


def _known(
    interactions: Interactions, rows: Sequence[dict[str, Any]], bundle: Bundle
) -> tuple[list[str | None], list[list[int]], list[list[str]], dict[int, str]]:
    """Return each user's key, history, the keys of items that the user knows, and what is wrong with a row.

    The items that a user likes are taken out of the rows.
    """
    users = {key: number for number, key in enumerate(interactions.users)}
    items = {key: position for position, key in enumerate(interactions.items) if key is not None}
    keys, histories, seen, errors = [], [], [], {}
    for number, row in enumerate(rows):
        keys.append(key_of(row.get(str(bundle.config.user))))
        user = users.get(keys[-1] or "", -1)
        own = [interactions.items[at] for at in interactions.matrix.indices[_part(interactions, user)]]
        liked = keys_of(row.pop(LIKED, None), items)
        if lost := [key for key in liked if key not in items]:
            errors[number] = f"items that the model does not know: {', '.join(lost[:3])}"
        elif user < 0 and not liked and row.keys() <= {bundle.config.user} and keys[-1] is not None:
            errors[number] = "the user has no train rows: these items are recommended to anyone"
        histories.append([*interactions.history(user).tolist(), *(items[key] for key in liked if key in items)])
        seen.append([key for key in (*own, *liked) if key is not None])
    return keys, histories, seen, errors


def _part(interactions: Interactions, user: int) -> slice:
    return slice(0, 0) if user < 0 else slice(*interactions.matrix.indptr[user : user + 2])


def _catalogue(bundle: Bundle, interactions: Interactions) -> _Items:
    """Return the items that the model was tuned with."""
    encoder = bundle.model.encoders[bundle.model.routes[history_column(bundle)]]
    assert isinstance(encoder, HistoryEncoder)
    vectors = encoder.stored.detach().cpu().numpy()
    return _Items(interactions.items, vectors, pa.table({"": pa.nulls(len(vectors))}).select([]))


def _encoded(bundle: Bundle, catalogue: Source) -> _Items:
    """Return the items of another catalogue."""
    columns = side_columns(bundle, ITEM)
    table = Table.read(catalogue, read=reading_of(bundle)).read_as(bundle.schema.forms())
    table.require(columns)
    table = (
        table.with_joined(bundle.schema.joins()) if any(name in bundle.schema.joins() for name in columns) else table
    )
    vectors, _ = _vectors(bundle, table, ITEM)
    key = columns[0]
    shown = [name for name in table.column_names if table.is_scalar(name) and name != key]
    return _Items([key_of(cell) for cell in table.cells(key)], vectors, table.arrow.select(shown))


def _vectors(bundle: Bundle, table: Table, side: str) -> tuple[np.ndarray, dict[int, str]]:
    """Return a side's vectors of all rows, (rows, dim), zeros where it cannot be read, and why by position."""
    columns = side_columns(bundle, side)
    table = table.with_missing(name for name in columns if name not in table)
    examples = Examples(table, {name: bundle.modalities[name] for name in columns})
    examples.prepare(on_bad_cell="mask", memory=bundle.config.data.memory)
    vectors = np.zeros((len(table), bundle.model.dim), dtype=np.float32)
    if len(examples.used):
        vectors[examples.used] = row_vectors(bundle.model, examples, examples.used)[side].numpy()
    place = {int(row): position for position, row in enumerate(table.rows)}
    wrong = {place[item.row]: item.note for item in examples.masked}
    wrong |= {place[item.row]: "nothing is known about the user" for item in examples.rejected}
    return vectors, wrong


def _answers(
    bundle: Bundle,
    users: Sequence[str | None],
    vectors: np.ndarray,
    items: _Items,
    hidden: Sequence[Sequence[int]],
    errors: Mapping[int, str],
    k: int,
) -> Predictions:
    """Return up to k items a user, the best first."""
    item = side_columns(bundle, ITEM)[0]
    usable = np.linalg.norm(items.vectors, axis=1) > 0
    query: list[int] = []
    best: list[int | None] = []
    rank: list[int | None] = []
    score: list[float | None] = []
    for start in range(0, len(vectors), CHUNK):
        similar = vectors[start : start + CHUNK] @ items.vectors.T
        similar[:, ~usable] = -np.inf
        for row, values in enumerate(similar, start=start):
            if not vectors[row].any():
                top = np.zeros(0, np.int64)
            else:
                values[list(hidden[row]) if hidden else []] = -np.inf
                top = torch.topk(torch.from_numpy(values), min(k, len(values))).indices.numpy()
                top = top[np.isfinite(values[top])]
            query += [row] * max(len(top), 1)
            best += top.tolist() or [None]
            rank += list(range(1, len(top) + 1)) or [None]
            score += values[top].tolist() or [None]
    taken = pa.array(best, pa.int64())
    columns: dict[str, Any] = {
        ROW: pa.array(query, pa.int64()),
        USER: pa.array([users[number] for number in query], pa.string()),
        "rank": pa.array(rank, pa.int64()),
        "score": pa.array(score, pa.float32()),
        item: pa.array(items.keys, pa.string()).take(taken),
    }
    for name in items.shown.column_names:
        label = name
        while label in columns or label == ERROR:
            label += "_"
        columns[label] = items.shown.column(name).take(taken)
    nothing = "there is no item that the user does not know"
    wrong = [errors.get(number) or (nothing if at is None else None) for number, at in zip(query, best, strict=True)]
    return Predictions(pa.table(columns | {ERROR: pa.array(wrong, pa.string())}))
