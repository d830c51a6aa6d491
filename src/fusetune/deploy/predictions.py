"""`Predictions`, a table of predictions, and writing it to files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from fusetune._optional import optional_import
from fusetune.deploy.conll import Spans, conll_block, require_spans, span_targets
from fusetune.errors import ConfigError, StorageError, reason
from fusetune.evaluation.report.notebook import html_table
from fusetune.tasks.base import TargetTask

if TYPE_CHECKING:
    import pandas

SHOWN_ROWS = 10
"""The most rows that a notebook shows."""
ENDINGS = (".csv", ".jsonl", ".parquet")
CONLL = ".conll"


class Predictions:
    """Predictions, one row for each input row, in order.

    Attributes:
        table: an Arrow table with the columns `row` (the row number, from 0), identifier columns, each target's
            prediction and probabilities, and last `error`: why a row has no prediction, or which cells were ignored;
            else null. If a target is called `row` or `error`, the other column is `row_` or `error_`.
        index: the rows' pandas index, or None.
        spans: the columns of spans and the cells that they lie in; None if there are none, or several texts.
    """

    def __init__(self, table: pa.Table, *, index: Any = None, spans: Spans | None = None) -> None:
        """
        Args:
            table: see the attributes.
            index: the pandas index of `to_pandas`; None for a range.
            spans: see the attributes.
        """
        self.table, self.index, self.spans = table, index, spans

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __repr__(self) -> str:
        return f"Predictions({len(self)} rows, {self.num_errors} with an error; columns {self.table.column_names})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the first rows."""
        rows = self.table.slice(0, SHOWN_ROWS).to_pylist()
        names = self.table.column_names
        index = list(range(len(self))) if self.index is None else list(self.index[:SHOWN_ROWS])
        cells = [[str(index[number]), *(row[name] for name in names)] for number, row in enumerate(rows)]
        table = html_table(("", *names), cells)
        return str(table) + f"<p>{len(self):,} rows, {self.num_errors:,} with an error</p>"

    @property
    def num_errors(self) -> int:
        """Number of rows with an entry in the error column."""
        return len(self) - int(self.table.column(self.table.num_columns - 1).null_count)

    def __getitem__(self, column: str) -> list[Any]:
        """Return a column as a list."""
        return list(self.table.column(column).to_pylist())

    def to_pandas(self) -> pandas.DataFrame:
        """Return a pandas DataFrame, with the index of the input if that was a DataFrame."""
        optional_import("pandas", "to give predictions as a DataFrame")
        frame = self.table.to_pandas()
        return frame if self.index is None else frame.set_index(self.index)

    def to_csv(self, path: str | Path) -> None:
        """Write a CSV file with a header; lists are JSON."""
        write([self], path, ".csv")

    def to_parquet(self, path: str | Path) -> None:
        """Write a Parquet file."""
        write([self], path, ".parquet")

    def to_jsonl(self, path: str | Path) -> None:
        """Write one JSON object a row."""
        write([self], path, ".jsonl")

    def to_conll(self, path: str | Path) -> None:
        """Write spans as CoNLL columns: word, start, end, score and BIO tag; see `fusetune.deploy.conll`.

        Raises:
            ConfigError: no column has spans, or they lie in several texts.
        """
        require_spans(self.spans is not None, path)
        write([self], path, CONLL)


def write(parts: Iterable[Predictions], path: str | Path, ending: str) -> tuple[int, int]:
    """Write predictions part by part; the file is replaced atomically.

    Args:
        parts: with equal columns.
        path: the file.
        ending: the format: one of `ENDINGS`, or .conll.

    Returns:
        The number of rows, and of rows with an entry in the error column.

    Raises:
        StorageError: it cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    rows = errors = 0
    try:
        with partial.open("wb") as target, ExitStack() as open_writers:
            writer: Any = None
            for part in parts:
                rows, errors = rows + len(part), errors + part.num_errors
                if ending == ".jsonl":
                    target.write("".join(line + "\n" for line in _as_json(part.table.to_pylist())).encode())
                    continue
                if ending == CONLL:
                    target.write("".join(f"{block}\n\n" for block in _blocks(part)).encode())
                    continue
                table = _flat(part.table) if ending == ".csv" else part.table
                if writer is None:
                    make = arrow_csv.CSVWriter if ending == ".csv" else parquet.ParquetWriter
                    writer = open_writers.enter_context(make(target, table.schema))
                writer.write_table(table)
        partial.replace(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {reason(error)}") from error
    finally:
        partial.unlink(missing_ok=True)
    return rows, errors


def check_ending(path: str | Path, tasks: Iterable[TargetTask] | None = None) -> str:
    """Return the ending of a file of predictions.

    Args:
        path: the file.
        tasks: what is predicted, if it may be written as CoNLL columns.

    Raises:
        ConfigError: predictions, or those of these tasks, are not written to such files.
    """
    ending, known = Path(path).suffix.lower(), (*ENDINGS, *([CONLL] if tasks is not None else []))
    if ending not in known:
        raise ConfigError(
            f"no table can be written as {str(path)!r}",
            expected=f"a name that ends in {', '.join(known)}",
            do=f"--out {Path(path).with_suffix('.csv')}",
        )
    if ending == CONLL and tasks is not None:
        require_spans(span_targets(tasks)[1] is not None, path)
    return ending


def _blocks(part: Predictions) -> Iterable[str]:
    """Yield the lines of each row as CoNLL columns."""
    assert part.spans is not None
    rows, errors = part.table.column(0).to_pylist(), part[part.table.column_names[-1]]
    answers = {column: part[column] for column in part.spans.columns}
    for index, cell in enumerate(part.spans.texts):
        own = {column: entries[index] for column, entries in answers.items()}
        yield conll_block(cell, own, errors[index], rows[index])


def _flat(table: pa.Table) -> pa.Table:
    """Convert columns of lists and objects to JSON."""
    for index, column in enumerate(table.schema):
        if pa.types.is_nested(column.type):
            cells = [None if cell is None else _as_json([cell])[0] for cell in table.column(index).to_pylist()]
            table = table.set_column(index, column.name, pa.array(cells, type=pa.string()))
    return table


def _as_json(values: Sequence[Any]) -> list[str]:
    return [json.dumps(value, ensure_ascii=False) for value in values]
