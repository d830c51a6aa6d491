"""Where the rows of a version come from: the first run's tables, then a table for each time that it was tuned again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fusetune.data.reading.joined import concat
from fusetune.data.schema import Schema
from fusetune.data.splits import split_rows
from fusetune.data.table import Table
from fusetune.deploy.fine_tuned import FineTuned
from fusetune.errors import ConfigError, FolderError, TableError
from fusetune.evaluation.report.write import replace_file
from fusetune.fitting.tables import Tables
from fusetune.security.untrusted import TEXT_BYTES, parse_json, read_bytes

RECORD = "retune.json"
"""The file in a version's folder that says what it was tuned on, and why it was promoted or not."""
SHARE, MIN_TEST, MIN_ROWS = 0.1, 20, 40
"""Of a new table's rows: the shares of validation and of test rows, the fewest test rows, the fewest labelled rows."""


@dataclass
class Rows:
    """A version's rows.

    Attributes:
        train, val: the rows that it learned from, and that chose its best step.
        tests: by source, "first run" or the new table's path, rows that no version has learned from.
    """

    train: Table
    val: Table
    tests: dict[str, Table] = field(default_factory=dict)

    @property
    def test(self) -> Table:
        """All test rows."""
        return concat(list(self.tests.values()))


def first_version(store: Path, version: str) -> str:
    """Return the version that a version descends from, which no other was tuned before.

    Raises:
        FolderError: a record is broken.
    """
    record = read_record(store / version)
    return version if record is None else first_version(store, record["parent"])


def read_lineage(store: Path, version: str, first: FineTuned) -> Rows:
    """Read the rows of a version again.

    Args:
        store: the folder of versions.
        version: its name.
        first: the first version, whose schema says how tables are read.

    Raises:
        ConfigError, TableError: a table is not there or has changed.
        FolderError: a record is broken.
    """
    record = read_record(store / version)
    if record is None:
        splits = run_splits(first)
        if "test" not in splits:
            raise ConfigError(
                "the first run has no test rows, so forgetting cannot be measured", do="tune it with some"
            )
        return Rows(splits["train"], splits["val"], {"first run": splits["test"]})
    before = read_lineage(store, record["parent"], first)
    path = Path(record["table"])
    if not path.exists() or digest(path) != record["sha256"]:
        raise ConfigError(
            f"{path} is not as it was when version {version} was tuned on it",
            came="another file" if path.exists() else "no such file",
            do="put it back, or begin a new folder of versions from a run",
        )
    new = split_new(path, first, seed=record["seed"])
    return Rows(concat([before.train, new.train]), concat([before.val, new.val]), {**before.tests, **new.tests})


def run_splits(tuned: FineTuned) -> dict[str, Table]:
    """Return the rows of a run by split, read again from its tables.

    Raises:
        ConfigError: the tables are not there, have changed, or are not split by the settings alone.
        TableError: a table cannot be read.
    """
    config = tuned.bundle.config
    files = [*config.train, *(path for path in (config.val, config.test) if path is not None)]
    gone = [path for path in files if "://" not in path and not Path(path).exists()]
    if not config.train or gone or config.user is not None or config.catalogue.path is not None:
        raise ConfigError(
            "the rows of the run cannot be read again",
            expected="a run on a table in a file, without a catalogue",
            came=f"{gone[0]} is not there" if gone else "another run",
        )
    tables = Tables(config, {"train": config.train, "val": config.val, "test": config.test})
    if tuned.results is not None:
        before = {table.split: table.rows_in for table in tuned.results.tables if "(split off)" not in table.file}
        now = {split: rows for split, (_, rows) in tables.files.items()}
        off = sum(table.rows_in for table in tuned.results.tables if "(split off)" in table.file)
        before["train"] = before.get("train", 0) + off
        if before != now:
            raise ConfigError(
                "the run's tables have changed since the fit",
                expected=", ".join(f"{rows} {split} rows" for split, rows in before.items()),
                came=", ".join(f"{rows} {split} rows" for split, rows in now.items()),
            )
    return tables.splits


def split_new(path: Path, first: FineTuned, *, seed: int) -> Rows:
    """Split a new table's labelled rows into train, validation and test rows.

    Raises:
        TableError: it cannot be read, lacks a column, or has too few labelled rows.
    """
    schema = _without_split(first.bundle.schema)
    table = Table.read(path, read=first.bundle.config.data.read).read_as(schema.forms())
    schema.validate(table, targets=True)
    lost = np.logical_and.reduce([table.missing(target) for target in schema.targets])
    table = table.select(np.flatnonzero(~lost))
    if len(table) < MIN_ROWS:
        raise TableError(
            "there are too few labelled rows to learn and to measure",
            expected=f"{MIN_ROWS} or more",
            came=str(len(table)),
            file=str(path),
        )
    test = max(SHARE, MIN_TEST / len(table))
    parts = split_rows(table, schema, fractions=(1 - SHARE - test, SHARE, test), seed=seed)
    return Rows(table.select(parts["train"]), table.select(parts["val"]), {str(path): table.select(parts["test"])})


def _without_split(schema: Schema) -> Schema:
    """Return the schema without its split column: a new table's rows are split at random."""
    return replace(schema, columns={name: spec for name, spec in schema.columns.items() if spec.role != "split"})


def digest(path: Path) -> str:
    """Return a file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return what a version was tuned again on; None for a first run.

    Raises:
        FolderError: the record cannot be read.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        record = parse_json(read_bytes(path, TEXT_BYTES))
        if not isinstance(record, dict) or not {"parent", "table", "sha256", "seed", "replayed"} <= record.keys():
            raise ValueError("it lacks what a record has")
    except (OSError, ValueError) as error:
        raise FolderError("the record of a version cannot be read", came=str(error), file=str(path)) from error
    return record


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write a version's record.

    Raises:
        StorageError: it cannot be written.
    """
    replace_file(folder / RECORD, json.dumps(record, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
