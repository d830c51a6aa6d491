"""The rows of a run, split again as in its fit; the held-out ones are what new rows are compared with."""

from __future__ import annotations

from pathlib import Path

from fusetune.data.reading.joined import concat
from fusetune.data.table import Source, Table
from fusetune.deploy.fine_tuned import FineTuned
from fusetune.deploy.rows import read_source
from fusetune.errors import ConfigError
from fusetune.fitting.tables import Tables


def held_out_rows(tuned: FineTuned, reference: Source | None) -> Table:
    """Return rows that the model did not learn from.

    Args:
        tuned: the tuned model.
        reference: such rows; None takes the run's validation and test rows, split again as in the fit.

    Raises:
        ConfigError: no reference is given, and the run's tables are not there or have changed.
        TableError: a table cannot be read.
    """
    if reference is not None:
        return read_source(tuned.bundle, reference)
    try:
        splits = run_splits(tuned)
    except ConfigError as error:
        do = "give rows that the model did not learn from: --reference TABLE"
        raise ConfigError(error.what, expected=error.expected, came=error.came, do=do) from None
    held_out = [splits[split] for split in ("val", "test") if split in splits]
    names = dict.fromkeys(table.source for table in held_out)
    return concat(held_out, f"held-out rows of {' + '.join(names)}")


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
