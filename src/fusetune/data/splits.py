"""Train, validation and test rows: from a split column, or by a random, grouped and stratified split."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fusetune.data.detect.roles import SPLIT_WORDS
from fusetune.data.distinct import hashed, numbered
from fusetune.data.partition import partition
from fusetune.data.schema import Schema
from fusetune.data.storage.mapped import (
    mapped_arange,
    mapped_concatenate,
    mapped_flatnonzero,
    mapped_full,
    mapped_take,
    mapped_zeros,
    pieces,
)
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
    sides: Sequence[Sequence[str]] = (),
    seed: int,
) -> dict[str, np.ndarray]:
    """Divide a table's rows into train and other splits.

    A column with the role split takes precedence. Its `options` may map cells to splits, such as
    `{"test": [5], "val": [4]}`; all other cells are then train. Splits that it does not name are drawn from its train
    rows. Without such a column the split is random. Rows of one group stay together, as do rows with equal texts,
    images and sounds. The split is stratified by the first target's classes, or by quantiles of its numbers, and rare
    classes stay in train.

    Args:
        table: the rows; those without a target should be removed before.
        schema: names the split, group and target columns and the inputs.
        wanted: "val", "test" or both; the shares of the others are distributed in proportion.
        fractions: the shares of train, val and test, which sum to 1.
        sides: the columns of each side of pairs; see `indivisible_units`.
        seed: equal seeds give equal splits.

    Returns:
        `{"train": positions, ...}`, int64 and ascending; every row is in exactly one split. A share of 0 gives no rows.

    Raises:
        TableError: there are too few rows or groups, or a cell of the split column names no split.
    """
    keep = {"train": fractions[0]} | {
        name: share for name, share in zip(SPLITS, fractions, strict=True) if name in wanted
    }
    if schema.split is None:
        return _split_randomly(table, schema, mapped_arange(len(table)), keep, sides, seed)
    named = read_splits(table, schema)
    extra = [name for name in named if name not in keep]
    if extra:
        raise TableError(
            f"{len(named[extra[0]])} cells say {extra[0]}, and {extra[0]} rows are given in a table of their own, too",
            do=f"leave those rows out of the table, or give the column the role ignore, or give no {extra[0]} table",
            file=table.source,
            column=schema.split,
        )
    rest = {name: share for name, share in keep.items() if name == "train" or name not in named}
    if len(rest) == 1:
        return named
    return named | _split_randomly(table, schema, named["train"], rest, sides, seed)


def carve_val(table: Table, schema: Schema, *, fraction: float = 0.1, seed: int) -> dict[str, np.ndarray]:
    """Split validation rows off the train rows, for users who give a test table and no validation table.

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
    """Return the rows of each split that the schema's split column names; train is always one of them.

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
    means, rest = _meanings(options)
    numbers = np.zeros(len(table), dtype=np.int8)
    for index, cell in enumerate(table.lazy(column)):
        split = means.get(_text(cell), rest)
        if split is None or is_missing(cell):
            raise TableError(
                "the cell is missing" if is_missing(cell) else "the cell names no split",
                expected=", ".join(sorted(set(means))),
                came=shown(cell),
                do="fill it in, or say which cells mean which split: options: {test: [...], val: [...]}",
                file=table.source,
                row=int(table.rows[index]),
                column=column,
            )
        numbers[index] = SPLITS.index(split)
    named = {name: np.flatnonzero(numbers == index) for index, name in enumerate(SPLITS) if (numbers == index).any()}
    if "train" not in named:
        raise TableError("the split column has no train row", came=", ".join(named), file=table.source, column=column)
    return named


def may_train(table: Table, schema: Schema, held_out: Sequence[Table]) -> np.ndarray:
    """Return which rows without a target may be train rows, (rows,) bool.

    A row whose split column names another split may not, nor may a row of a group that other splits have.

    Args:
        table: the rows.
        schema: gives the columns for split and group.
        held_out: the tables of the other splits.
    """
    allowed = mapped_full(len(table), True, bool)
    if schema.split is not None and schema.split in table:
        means, rest = _meanings(schema.columns[schema.split].options)
        for index, cell in enumerate(table.lazy(schema.split)):
            allowed[index] = not is_missing(cell) and means.get(_text(cell), rest) == "train"
    if (group := schema.group) is not None:
        taken = {str(cell) for part in held_out if group in part for cell in part.lazy(group) if not is_missing(cell)}
        for index, cell in enumerate(table.lazy(group)):
            allowed[index] &= is_missing(cell) or str(cell) not in taken
    return allowed


def _meanings(options: Mapping[str, Any]) -> tuple[Mapping[str, str], str | None]:
    """Return the split that each cell of a split column means, and that of any other cell."""
    if not options:
        return SPLIT_WORDS, None
    means = {_text(cell): name for name in options for cell in _listed(options[name])}
    return means, None if "train" in options else "train"


def _text(cell: Any) -> str:
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return str(cell).strip().casefold()


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _split_randomly(
    table: Table,
    schema: Schema,
    rows: np.ndarray,
    shares: dict[str, float],
    sides: Sequence[Sequence[str]],
    seed: int,
) -> dict[str, np.ndarray]:
    """Return the rows, divided at random in proportion to the shares."""
    total = sum(shares.values())
    names = [name for name in SPLITS if shares.get(name, 0) > 0]
    part = table.select(rows)
    units = indivisible_units(part, schema, sides)
    target = next(iter(schema.targets), None)
    strata = strata_of(part.lazy(target)) if target is not None else mapped_zeros((len(rows),), np.int64)
    if units.max(initial=-1) + 1 < len(names):
        what = "rows" if schema.group is None else f"groups in the column {schema.group!r}"
        raise TableError(
            f"there are too few {what} to make {', '.join(names)} of",
            expected=f"at least {len(names)}, and hundreds for results that mean something",
            came=f"{units.max(initial=-1) + 1} in {len(rows)} rows",
            do="give more rows, or tables of their own for validation and test",
            file=table.source,
        )
    which = partition(strata, units, [shares[name] / total for name in names], seed)
    made = {name: mapped_take(rows, mapped_flatnonzero(which == index)) for index, name in enumerate(names)}
    return made | {name: rows[:0] for name in shares if name not in made}


def strata_of(cells: Sequence[Any]) -> np.ndarray:
    """Return each cell's stratum, (rows,) int64: its class, its decile for numbers, 0 for lists that hardly repeat.

    Where most cells are texts that occur once, as answers to questions are, those share one stratum.
    """

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
            numbers = _to_array(given, len(cells), np.float64)
        except ValueError:
            if all(isinstance(cell, list | dict) or is_missing(cell) for cell in cells):
                return mapped_zeros((len(cells),), np.int64)  # tags or spans, which are no classes
            counts = Counter(texts())
            once = sum(number == 1 for text, number in counts.items() if text)
            alone = once > (counts.total() - counts[""]) / 2
            few = {text for text, number in counts.items() if number > 1 or not (alone and text)}
        else:
            edges = np.nanquantile(numbers, np.linspace(0, 1, NUM_BINS + 1)[1:-1])
            # NaN sorts after the last edge.
            return mapped_concatenate(
                (np.searchsorted(edges, numbers[piece]) for piece in pieces(len(numbers))), len(numbers)
            )
    # A dictionary, as a numpy array of strings gives every string the width of the longest.
    indices = {text: index for index, text in enumerate(sorted(few))}
    return _to_array((indices.get(text, len(indices)) for text in texts()), len(cells), np.int64)


def _to_array(values: Iterator[Any], rows: int, dtype: Any) -> np.ndarray:
    return mapped_concatenate((np.fromiter(values, dtype, piece.stop - piece.start) for piece in pieces(rows)), rows)


def indivisible_units(table: Table, schema: Schema, sides: Sequence[Sequence[str]] = ()) -> np.ndarray:
    """Return each row's unit, (rows,) int64; a unit's rows have one group, or equal texts and media, and stay together.

    Where most rows repeat others, repetition is in the nature of the data (a fixed set of questions, for example), and
    only groups count. A row without a group is a group of its own.

    Args:
        table: the rows.
        schema: names the group column and the inputs.
        sides: the columns of each side of pairs. Rows that share a side's cells stay together, also over several rows,
            unless that ties more than half of the rows to each other.
    """
    units = _rows_or_groups(table, schema)
    for side in sides:
        joined = _joined(units, _numbered(table, list(side), _digest, all))
        units = joined if np.bincount(joined).max(initial=0) <= len(table) / 2 else units
    return units


def _rows_or_groups(table: Table, schema: Schema) -> np.ndarray:
    """Return the units of rows that have one group, or equal texts and media."""
    num = len(table)
    units = mapped_arange(num)
    if schema.group is not None:
        units = _numbered(table, [schema.group], lambda cells: str(cells[0]).encode("utf-8", "surrogatepass"), any)
    twins = _twins(table, schema)
    if twins is None:
        return units
    return twins if schema.group is None else _joined(units, twins)


def _joined(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return units of rows that are linked by a unit of either numbering, (rows,) int64 from 0."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    size = int(first.max(initial=-1)) + int(second.max(initial=-1)) + 2
    ones = np.ones(len(first), dtype=np.int8)
    links = coo_array((ones, (first, second + int(first.max(initial=-1)) + 1)), shape=(size, size))
    _, component = connected_components(links, directed=False)
    return np.asarray(np.unique(component[first], return_inverse=True)[1], dtype=np.int64)


def _numbered(
    table: Table, columns: list[str], key: Callable[[tuple[Any, ...]], bytes], lacks: Callable[[Any], bool]
) -> np.ndarray:
    """Number the rows by a key of some cells, (rows,) int64 from 0; a row whose cells are missing has its own number.

    Args:
        table: the rows.
        columns: those that make up the key.
        key: maps a row's cells to the bytes that are compared.
        lacks: maps the flags of a row's missing cells to whether the row has no key: `any` or `all`.
    """
    keys, step = mapped_zeros((len(table), 2), np.uint64), min(HASH_ROWS, *(table.at_once(name) for name in columns))
    for start in range(0, len(table), step):
        rows = range(start, min(start + step, len(table)))
        cells = list(zip(*(table.cells(name, rows) for name in columns), strict=True))
        keyless = [lacks(map(is_missing, row)) for row in cells]
        keys[start : start + step] = hashed(
            b"row %d" % index if gone else b"key " + key(row)
            for index, row, gone in zip(rows, cells, keyless, strict=True)
        )
    return numbered(keys)[0]


def _twins(table: Table, schema: Schema) -> np.ndarray | None:
    """Number the rows by their texts, images and sounds; None where there are none or most rows repeat others."""
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
