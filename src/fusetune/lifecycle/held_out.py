"""The rows of a model by split, and those that it did not learn from."""

from __future__ import annotations

from fusetune.api import load
from fusetune.data.reading.joined import concat
from fusetune.data.table import Source, Table
from fusetune.deploy.fine_tuned import FineTuned
from fusetune.deploy.rows import read_source
from fusetune.errors import ConfigError
from fusetune.lifecycle.lineage import first_version, read_lineage, read_record, run_splits


def held_out_rows(tuned: FineTuned, reference: Source | None) -> Table:
    """Return rows that the model did not learn from.

    Args:
        tuned: the tuned model.
        reference: such rows; None takes the validation and test rows of the run, split again as in the fit; of a
            version that was tuned again, also those of the versions before it.

    Raises:
        ConfigError: no reference is given, and the run's tables are not there or have changed.
        TableError: a table cannot be read.
    """
    if reference is not None:
        return read_source(tuned.bundle, reference)
    try:
        splits = all_rows(tuned)
    except ConfigError as error:
        do = "give rows that the model did not learn from: --reference TABLE"
        raise ConfigError(error.what, expected=error.expected, came=error.came, do=do) from None
    tables = [splits[split] for split in ("val", "test") if split in splits]
    names = dict.fromkeys(table.source for table in tables)
    return concat(tables, f"held-out rows of {' + '.join(names)}")


def all_rows(tuned: FineTuned) -> dict[str, Table]:
    """Return the rows of a run by split, or those of a version that was tuned again and of all that it descends from.

    Raises:
        ConfigError, TableError: a table is not there, has changed or cannot be read.
    """
    folder = tuned.folder
    if folder is not None and read_record(folder) is not None:
        store, version = folder.parent, folder.name
        rows = read_lineage(store, version, load(store / first_version(store, version)))
        return {"train": rows.train, "val": rows.val, "test": rows.test}
    return run_splits(tuned)
