"""Interactions to measure a recommendation by: users, the items that they turned to, and the whole catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy import sparse

from fusetune.data.catalogue import Catalogue, Pairs, Sides
from fusetune.data.column import Progress
from fusetune.data.examples import Examples
from fusetune.data.interactions import Interactions, as_cells, keys_in, read_ratings
from fusetune.data.keys import Key, key_of
from fusetune.data.reading.joined import with_column
from fusetune.data.table import Source, Table
from fusetune.deploy.bundle import Bundle
from fusetune.deploy.judged import known_catalogue
from fusetune.deploy.recommend import history_column, side_columns
from fusetune.deploy.rows import Rows, read_source, reading_of
from fusetune.errors import TableError
from fusetune.evaluation.measure.evaluate import Judged
from fusetune.tasks.recommendation import ITEM, USER


def read_users(
    bundle: Bundle, source: Rows, catalogue: Source | None, *, missing: Sequence[str], progress: Progress | None
) -> tuple[Examples, Judged]:
    """Read interactions that a model recommends by, and decode their users and the whole catalogue.

    What users did in the train rows is known from the model's folder: it is their history, and left out of the ranking.

    Args:
        bundle: the tuned model.
        source: the interactions, with the columns of users and items; others that describe users are read, too.
        catalogue: the items. None: those that the model was tuned with.
        missing: input columns that the catalogue may lack.
        progress: wraps iterators.

    Raises:
        TableError: a table cannot be read or lacks a column, or no row can be measured.
        ConfigError: the catalogue must be given.
    """
    interactions, config = bundle.interactions, bundle.config
    assert interactions is not None and config.user is not None and config.item is not None
    queries = read_source(bundle, source).read_as(bundle.schema.forms())
    documents = _catalogue(bundle, interactions, catalogue, missing)
    history = history_column(bundle)
    queries = queries.with_missing(name for name in side_columns(bundle, USER) if name not in queries)
    pairs = documents.pairs(queries)
    users = _users(interactions, pairs.table, config.user)
    known = _known_items(interactions, documents)
    right = _right(bundle, pairs, users, known)
    end = 1 + max([int(queries.rows.max(initial=-1)), *(item.row for item in queries.rejected)])
    notes = [*documents.notes]
    if not right.any():
        raise TableError(
            "no row can be measured", expected="users with items that they do not know", file=queries.source
        )
    if len(right) > (count := int(right.sum())):
        notes.append(f"{len(right) - count:,} rows repeat a train row, or have a low rating: not measured.")
    searched = documents.searched(pairs, np.flatnonzero(right), reserved=end)
    num, total = searched.num_queries, len(searched.table)
    asked = _users(interactions, searched.table.select(np.arange(num)), config.user)
    lists = [interactions.history(user)[-config.interactions.history :] for user in asked]
    cells = as_cells([*lists, *([np.zeros(0, np.int64)] * (total - num))])
    table = with_column(searched.table, history, cells).read_as(bundle.schema.forms())
    examples = Examples(table.with_joined(bundle.schema.joins()), bundle.modalities)
    examples.prepare(on_bad_cell="mask", memory=config.data.memory, progress=progress)
    seen = sparse.coo_array(interactions.seen(asked)[:, known[1]])
    entries = seen.coords[0], num + known[0][seen.coords[1]]
    hidden = sparse.csr_array((np.ones(seen.nnz, dtype=bool), entries), shape=(total, total))
    rejected = [*queries.rejected, *pairs.rejected, *(item for item in examples.rejected if item.row < end)]
    judged = Judged(searched.related, len(queries) + len(queries.rejected), rejected, notes)
    return examples, replace(judged, seen=hidden)


def _catalogue(
    bundle: Bundle, interactions: Interactions, catalogue: Source | None, missing: Sequence[str]
) -> Catalogue:
    """Return the items that are ranked."""
    config, columns = bundle.config, side_columns(bundle, ITEM)
    assert config.user is not None and config.item is not None
    if catalogue is None and config.catalogue.path is None and len(columns) == 1:  # ids alone
        arrow = pa.table({columns[0]: pa.array([key for key in interactions.items if key is not None], pa.string())})
        items = Table(arrow, source="the items", base_dir=Path.cwd())
    else:
        source = known_catalogue(config.catalogue.path) if catalogue is None else catalogue
        items = Table.read(source, read=reading_of(bundle))
        items = items.with_missing(name for name in missing if name in columns and name not in items)
    items.require(columns)
    return Catalogue(items, Key(config.item, columns[0]), Sides((config.user,), columns), None)


def _users(interactions: Interactions, table: Table, column: str) -> np.ndarray:
    """Return each row's user, (rows,) int64, -1 for one without train rows."""
    numbers = {key: number for number, key in enumerate(interactions.users)}
    rows, keys = keys_in(table, column)
    found = np.array([numbers.get(key, -1) for key in keys] or [-1], dtype=np.int64)
    return np.where(rows >= 0, found[rows], -1)


def _known_items(interactions: Interactions, documents: Catalogue) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions in a catalogue of the items that the model knows, and their positions in the fit's."""
    keys = [key_of(cell) for cell in documents.items.lazy(documents.key.item)]
    own = {key: position for position, key in enumerate(interactions.items) if key is not None}
    here = np.array([place for place, key in enumerate(keys) if key in own], dtype=np.int64)
    return here, np.array([own[key] for key in keys if key in own], dtype=np.int64)


def _right(bundle: Bundle, pairs: Pairs, users: np.ndarray, known: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return which pairs are right answers, (pairs,) bool: no train rows, and rated high enough."""
    assert bundle.interactions is not None
    in_fit = np.full(1 + max(int(pairs.items.max()), int(known[0].max(initial=0))), -1, dtype=np.int64)
    in_fit[known[0][known[0] < len(in_fit)]] = known[1][known[0] < len(in_fit)]
    items = in_fit[pairs.items]
    right: np.ndarray = ~(bundle.interactions.contains(users, items) & (items >= 0))
    least, rating = bundle.config.interactions.min_rating, bundle.config.interactions.rating
    if least is not None and rating in pairs.table:
        values, wrong = read_ratings(pairs.table, str(rating))
        right &= (values >= least) & ~np.isin(np.arange(len(values)), list(wrong))
    return right
