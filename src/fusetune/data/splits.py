"""Train, validation and test rows: by a column that says it, or by chance with groups kept whole and classes even."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np

from fusetune.data.distinct import hashed, numbered
from fusetune.data.roles import SPLIT_WORDS
from fusetune.data.schema import Schema
from fusetune.data.scratch import counting, filled, joined, ordered, pieces, room, taken, where
from fusetune.data.table import Table, is_missing
from fusetune.errors import TableError, shown

SPLITS = ("train", "val", "test")
MAX_CLASSES = 20
NUM_BINS = 10
HASH_ROWS = 1024


def split_rows(
    table: Table,
    schema: Schema,
    *,
    wanted: Collection[str] = ("val", "test"),
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int,
) -> dict[str, np.ndarray]:
    """Divide a table's rows into train and the wanted splits.

    A column with the role split decides where there is one; its `options` may say which cells mean what, as
    `{"test": [5], "val": [4]}`, all others being train. Splits that it does not name are taken from its train rows.
    Otherwise chance decides: rows of one group, and rows whose texts, images and sounds are all equal, stay
    together; the first target's classes (or ranges of its numbers) get even shares, and rare classes stay in train.

    Args:
        table: the rows; those without a target should be out already.
        schema: gives the columns for split, group and target, and the inputs.
        wanted: "val", "test" or both; the shares of the others go to the rest in proportion.
        fractions: the shares of train, val and test, which sum to 1.
        seed: equal seeds give equal splits.

    Returns:
        `{"train": positions, ...}`, int64 and rising; every row is in exactly one. A share of 0 gives no rows.

    Raises:
        TableError: there are too few rows or groups, or the split column's cells cannot be understood.
    """
    keep = {"train": fractions[0]} | {
        name: share for name, share in zip(SPLITS, fractions, strict=True) if name in wanted
    }
    if schema.split is None:
        return _by_chance(table, schema, counting(len(table)), keep, seed)
    said = read_splits(table, schema)
    extra = [name for name in said if name not in keep]
    if extra:
        raise TableError(
            f"{len(said[extra[0]])} cells say {extra[0]}, and {extra[0]} rows are given in a table of their own, too",
            do=f"leave those rows out of the table, or give the column the role ignore, or give no {extra[0]} table",
            file=table.source,
            column=schema.split,
        )
    rest = {name: share for name, share in keep.items() if name == "train" or name not in said}
    if len(rest) == 1:
        return said
    return said | _by_chance(table, schema, said["train"], rest, seed)


def carve_val(table: Table, schema: Schema, *, fraction: float = 0.1, seed: int) -> dict[str, np.ndarray]:
    """Take validation rows out of train rows, where a test table is given and no validation table.

    Args:
        table: the train rows.
        schema: as in `split_rows`.
        fraction: the share of validation rows, between 0 and 1.
        seed: equal seeds give equal splits.

    Returns:
        `{"train": positions, "val": positions}`.

    Raises:
        TableError: as `split_rows`.
    """
    return split_rows(table, schema, wanted=("val",), fractions=(1 - fraction, fraction, 0), seed=seed)


def read_splits(table: Table, schema: Schema) -> dict[str, np.ndarray]:
    """The rows of each split that the schema's split column names; train is always among them.

    Raises:
        TableError: a cell is missing or names no split, or no row is in train.
    """
    column = schema.split
    assert column is not None
    options = schema.columns[column].options
    table.require([column])
    unknown = [name for name in options if name not in SPLITS]
    if unknown:
        raise TableError(
            f"there is no split {unknown[0]!r}",
            expected="options train, val and test",
            file=table.source,
            column=column,
        )
    means = {_text(cell): name for name in options for cell in _listed(options[name])} if options else SPLIT_WORDS
    found = np.zeros(len(table), dtype=np.int8)
    for place, cell in enumerate(table.lazy(column)):
        split = means.get(_text(cell), "train" if options and "train" not in options else None)
        if split is None or is_missing(cell):
            raise TableError(
                "the cell is missing" if is_missing(cell) else "the cell names no split",
                expected=", ".join(sorted(set(means))),
                came=shown(cell),
                do="fill it in, or say which cells mean which split: options: {test: [...], val: [...]}",
                file=table.source,
                row=int(table.rows[place]),
                column=column,
            )
        found[place] = SPLITS.index(split)
    said = {name: np.flatnonzero(found == place) for place, name in enumerate(SPLITS) if (found == place).any()}
    if "train" not in said:
        raise TableError("the split column has no train row", came=", ".join(said), file=table.source, column=column)
    return said


def _text(cell: Any) -> str:
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return str(cell).strip().casefold()


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _by_chance(
    table: Table, schema: Schema, rows: np.ndarray, shares: dict[str, float], seed: int
) -> dict[str, np.ndarray]:
    """The given rows, divided in proportion to the shares."""
    whole = sum(shares.values())
    names = [name for name in SPLITS if shares.get(name, 0) > 0]
    part = table.select(rows)
    units = whole_units(part, schema)
    target = next(iter(schema.targets), None)
    strata = strata_of(part.lazy(target)) if target is not None else room((len(rows),), np.int64)
    if units.max(initial=-1) + 1 < len(names):
        what = "rows" if schema.group is None else f"groups in the column {schema.group!r}"
        raise TableError(
            f"there are too few {what} to make {', '.join(names)} of",
            expected=f"at least {len(names)}, and hundreds for results that mean something",
            came=f"{units.max(initial=-1) + 1} in {len(rows)} rows",
            do="give more rows, or tables of their own for validation and test",
            file=table.source,
        )
    which = partition(strata, units, [shares[name] / whole for name in names], seed)
    made = {name: taken(rows, where(which == place)) for place, name in enumerate(names)}
    return made | {name: rows[:0] for name in shares if name not in made}


def strata_of(cells: Sequence[Any]) -> np.ndarray:
    """(rows,) int64: which class, or which tenth of the range of numbers, each cell is in."""

    def texts() -> Iterator[str]:
        return ("" if is_missing(cell) else _text(cell) for cell in cells)

    few: set[str] = set()
    for text in texts():
        few.add(text)
        if len(few) > MAX_CLASSES:
            break
    if len(few) > MAX_CLASSES:
        try:
            given = (float(text) if text else np.nan for text in texts())
            numbers = _laid(given, len(cells), np.float64)
        except ValueError:
            few = set(texts())
        else:
            edges = np.nanquantile(numbers, np.linspace(0, 1, NUM_BINS + 1)[1:-1])
            # NaN sorts behind the last edge.
            return joined((np.searchsorted(edges, numbers[piece]) for piece in pieces(len(numbers))), len(numbers))
    # Plain dictionaries: a numpy array of strings makes every one as wide as the longest.
    places = {text: place for place, text in enumerate(sorted(few))}
    return _laid((places[text] for text in texts()), len(cells), np.int64)


def _laid(values: Iterator[Any], rows: int, dtype: Any) -> np.ndarray:
    return joined((np.fromiter(values, dtype, piece.stop - piece.start) for piece in pieces(rows)), rows)


def whole_units(table: Table, schema: Schema) -> np.ndarray:
    """(rows,) int64: rows with equal numbers must stay on one side: one group, or equal texts and media.

    Where most rows repeat others, repetition is the nature of the data (a fixed set of questions, say), and only
    groups count. A row without a group is a group of its own.
    """
    num = len(table)
    units = counting(num)
    if schema.group is not None:
        units = _numbered(table, [schema.group], lambda cells: str(cells[0]).encode("utf-8", "surrogatepass"), any)
    twins = _twins(table, schema)
    if twins is None:
        return units
    if schema.group is None:
        return twins
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    size = int(units.max()) + int(twins.max()) + 2
    links = coo_array((np.ones(num, dtype=np.int8), (units, twins + int(units.max()) + 1)), shape=(size, size))
    _, component = connected_components(links, directed=False)
    return np.asarray(np.unique(component[units], return_inverse=True)[1], dtype=np.int64)


def _numbered(
    table: Table, columns: list[str], key: Callable[[tuple[Any, ...]], bytes], lacks: Callable[[Any], bool]
) -> np.ndarray:
    """(rows,) int64: equal numbers, from 0, for rows of equal keys; a row that lacks its cells is like no other.

    Args:
        table: the rows.
        columns: those of its columns that make the key.
        key: from a row's cells to what is compared.
        lacks: from which of a row's cells are missing to whether the row lacks them.
    """
    keys, step = room((len(table), 2), np.uint64), min(HASH_ROWS, *(table.at_once(name) for name in columns))
    for start in range(0, len(table), step):
        rows = range(start, min(start + step, len(table)))
        cells = list(zip(*(table.cells(name, rows) for name in columns), strict=True))
        lost = [lacks(map(is_missing, row)) for row in cells]
        keys[start : start + step] = hashed(
            b"row %d" % place if gone else b"key " + key(row)
            for place, row, gone in zip(rows, cells, lost, strict=True)
        )
    return numbered(keys)[0]


def _twins(table: Table, schema: Schema) -> np.ndarray | None:
    """Numbers of equal content, or None where there is nothing to compare or most rows repeat others."""
    columns = [name for name in schema.inputs if schema.columns[name].kind in ("text", "image", "audio")]
    if not columns:
        return None
    numbers = _numbered(table, columns, _digest, all)
    return numbers if numbers.max() + 1 >= len(table) / 2 else None


def _digest(cells: tuple[Any, ...]) -> bytes:
    made = hashlib.blake2b(digest_size=16)
    for cell in cells:
        data = cell if isinstance(cell, bytes) else repr(cell).encode("utf-8", "backslashreplace")
        made.update(len(data).to_bytes(8, "little") + data)
    return made.digest()


def partition(strata: np.ndarray, units: np.ndarray, fractions: Sequence[float], seed: int) -> np.ndarray:
    """Assign rows to parts: units whole, strata in even shares, every part filled.

    Args:
        strata: (rows,) int64, each row's class, from 0.
        units: (rows,) int64, from 0 without gaps; rows with equal numbers stay together. At least as many as parts.
        fractions: the parts' shares, above 0, summing to 1; the first part is train.
        seed: equal seeds give equal parts.

    Returns:
        (rows,) int64, each row's part. A stratum that is in any unit small enough has a row in train.
    """
    rng = np.random.default_rng(seed)
    shares = np.asarray(fractions, dtype=np.float64)
    members = _Units(units)
    which = filled(len(units), -1, np.int64)
    _place_groups([members.rows(int(place)) for place in np.flatnonzero(members.sizes > 1)], strata, shares, which, rng)
    _place_singles(taken(members.first, where(members.sizes == 1)), strata, shares, which, rng)
    _fill_empty(members, which, len(shares))
    _keep_rare(members, strata, which)
    return which


class _Units:
    """The rows of each unit.

    Attributes:
        numbers: (rows,) int64, each row's unit.
        sizes: (units,) int64, the rows of each.
        first: (units,) int64, the first row of each.
    """

    def __init__(self, numbers: np.ndarray) -> None:
        self.numbers, self.sizes = numbers, _counts(numbers)
        self._order = ordered(numbers)
        self._starts = room(self.sizes.shape, np.int64)
        np.cumsum(self.sizes, out=self._starts)
        self._starts -= self.sizes
        self.first = taken(self._order, self._starts)

    def rows(self, unit: int) -> np.ndarray:
        """A unit's rows, rising."""
        return self._order[self._starts[unit] : self._starts[unit] + self.sizes[unit]]


def _counts(numbers: np.ndarray) -> np.ndarray:
    """`np.bincount`."""
    counts = room((int(numbers.max(initial=-1)) + 1,), np.int64)
    for piece in pieces(len(numbers)):
        np.add.at(counts, numbers[piece], 1)
    return counts


def _place_groups(
    groups: list[np.ndarray], strata: np.ndarray, shares: np.ndarray, which: np.ndarray, rng: np.random.Generator
) -> None:
    """Largest first, each group to the part that lacks its classes most and still has room for it."""
    desired = shares[:, None] * _counts(strata)[None, :]  # (parts, strata)
    room = shares * len(strata)
    have = np.zeros_like(desired)
    shuffled = [groups[place] for place in rng.permutation(len(groups))]
    for rows in sorted(shuffled, key=len, reverse=True):
        classes, counts = np.unique(strata[rows], return_counts=True)
        lack = ((1 - have[:, classes] / np.maximum(desired[:, classes], 1e-9)) * counts).sum(1) / len(rows)
        fits = room >= len(rows)
        part = int(np.argmax(np.where(fits, lack, -np.inf))) if fits.any() else int(np.argmax(room))
        which[rows] = part
        room[part] -= len(rows)
        have[part, classes] += counts


def _place_singles(
    rows: np.ndarray, strata: np.ndarray, shares: np.ndarray, which: np.ndarray, rng: np.random.Generator
) -> None:
    """Walk the rows class by class and deal them out at a steady pace, so that every class gets even shares."""
    if not len(rows):
        return
    rng.shuffle(rows)
    if np.count_nonzero(_counts(strata)) <= shares[0] * len(strata) / 2:
        first = filled(int(strata.max()) + 1, len(rows), np.int64)
        for piece in pieces(len(rows)):
            np.minimum.at(first, strata[rows[piece]], np.arange(piece.start, piece.stop))
        kept = first[(first < len(rows)) & ~_in_train(strata, which)]
        which[rows[kept]] = 0
        others = filled(len(rows), True, bool)
        others[kept] = False
        rows = taken(rows, where(others))
    ranks = rng.permutation(int(strata.max()) + 1)
    left = taken(rows, ordered(taken(ranks, taken(strata, rows))))
    _put(which, left, 0)
    for part in range(len(shares) - 1, 0, -1):
        wanted = max(shares[part] * len(strata) - np.count_nonzero(which == part), 0)
        chosen = _steadily(len(left), min(wanted / max(len(left), 1), 1.0))
        _put(which, taken(left, where(chosen)), part)
        left = taken(left, where(np.logical_not(chosen, out=chosen)))


def _in_train(strata: np.ndarray, which: np.ndarray) -> np.ndarray:
    """(strata,) bool: of which there is a row in train."""
    found = room((int(strata.max(initial=-1)) + 1,), bool)
    for piece in pieces(len(strata)):
        found[strata[piece][which[piece] == 0]] = True
    return found


def _put(which: np.ndarray, rows: np.ndarray, part: int) -> None:
    for piece in pieces(len(rows)):
        which[rows[piece]] = part


def _steadily(num: int, pace: float) -> np.ndarray:
    """(num,) bool: `num * pace` of them, evenly spaced."""
    steps = (np.floor(np.arange(piece.start, piece.stop + 1) * pace + 0.5) for piece in pieces(num))
    return joined((np.diff(step) > 0 for step in steps), num)


def _fill_empty(members: _Units, which: np.ndarray, num_parts: int) -> None:
    """Give a part without rows the smallest unit of the part with the most units."""
    for part in range(num_parts):
        if (which == part).any():
            continue
        owners = which[members.first]
        owned = np.flatnonzero(owners == np.bincount(owners, minlength=num_parts).argmax())
        which[members.rows(int(owned[members.sizes[owned].argmin()]))] = part


def _keep_rare(members: _Units, strata: np.ndarray, which: np.ndarray) -> None:
    """Move a unit of a class that train lacks into train, where its part keeps another unit."""
    lost = np.flatnonzero((_counts(strata) > 0) & ~_in_train(strata, which))
    if not len(lost) or len(lost) > len(members.sizes) / 4:
        return
    owners = which[members.first]
    for stratum in lost:
        if (strata[which == 0] == stratum).any():
            continue
        holding = np.unique(members.numbers[strata == stratum])
        spare = holding[np.bincount(owners)[owners[holding]] > 1]
        if len(spare):
            place = int(spare[members.sizes[spare].argmin()])
            which[members.rows(place)] = 0
            owners[place] = 0
