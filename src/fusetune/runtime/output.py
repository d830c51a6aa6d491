"""Predictions of an exported model: the columns of `FineTuned.predict`, as lists."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusetune._optional import optional_import
from fusetune.errors import ConfigError, StorageError, reason

ENDINGS = (".csv", ".jsonl", ".parquet")


class Predictions:
    """Predictions, one row for each input row, in order.

    Attributes:
        columns: by name, a value for each row: the row number, identifiers, each target's prediction and
            probabilities, and last the error: why a row has no prediction, or which cells were ignored; else None.
    """

    def __init__(self, columns: dict[str, list[Any]]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __repr__(self) -> str:
        return f"Predictions({len(self)} rows, {self.num_errors} with an error; columns {list(self.columns)})"

    def __getitem__(self, column: str) -> list[Any]:
        """Return a column."""
        return self.columns[column]

    @property
    def num_errors(self) -> int:
        """Number of rows with an entry in the error column."""
        return sum(note is not None for note in list(self.columns.values())[-1])

    def rows(self) -> list[dict[str, Any]]:
        """Return one dictionary for each row."""
        return [dict(zip(self.columns, row, strict=True)) for row in zip(*self.columns.values(), strict=True)]

    def write(self, path: str | Path) -> None:
        """Write a .csv, .jsonl or .parquet file; lists are JSON in a CSV file. The file is replaced atomically.

        Raises:
            ConfigError: the path has another ending.
            MissingExtra: Parquet needs pyarrow.
            StorageError: it cannot be written.
        """
        path, ending = Path(path), check_ending(path)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            if ending == ".parquet":
                arrow, parquet = (optional_import(name, "to write Parquet") for name in ("pyarrow", "pyarrow.parquet"))
                parquet.write_table(arrow.table(self.columns), partial)
            else:
                with partial.open("w", encoding="utf-8", newline="") as file:
                    if ending == ".jsonl":
                        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows())
                    else:
                        csv.writer(file).writerows(
                            [list(self.columns), *map(_as_text, zip(*self.columns.values(), strict=True))]
                        )
            partial.replace(path)
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {reason(error)}") from error
        finally:
            partial.unlink(missing_ok=True)


def check_ending(path: str | Path) -> str:
    """Return the ending of a file of predictions.

    Raises:
        ConfigError: predictions are not written to such files.
    """
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        raise ConfigError(f"no table can be written as {str(path)!r}", expected=f"a name in {', '.join(ENDINGS)}")
    return ending


def _as_text(row: Sequence[Any]) -> list[Any]:
    return [json.dumps(cell, ensure_ascii=False) if isinstance(cell, list) else cell for cell in row]
