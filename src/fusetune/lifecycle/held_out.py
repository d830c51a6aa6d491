"""The rows that new rows are compared with: those of a run that its model did not learn from."""

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
        tables = _held_out_tables(tuned)
    except ConfigError as error:
        do = "give rows that the model did not learn from: --reference TABLE"
        raise ConfigError(error.what, expected=error.expected, came=error.came, do=do) from None
    names = dict.fromkeys(table.source for table in tables)
    return concat(tables, f"held-out rows of {' + '.join(names)}")


def _held_out_tables(tuned: FineTuned) -> list[Table]:
    """Return the validation and the test rows of a run, or of a version with all that it descends from."""
    folder = tuned.folder
    if folder is not None and read_record(folder) is not None:
        store, version = folder.parent, folder.name
        rows = read_lineage(store, version, load(store / first_version(store, version)))
        return [rows.val, rows.test]
    splits = run_splits(tuned)
    return [splits[split] for split in ("val", "test") if split in splits]
