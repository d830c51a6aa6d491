"""Every source that `Table.read` takes, each turned into a `Table`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fusetune.data.arrow import check_whole, from_cells, normal_array, normal_batches, normal_field, normal_schema
from fusetune.data.joined import concat
from fusetune.data.json_files import read_jsonl
from fusetune.data.quarantine import Rejected, check_rate
from fusetune.data.table import Source, Table
from fusetune.data.text_files import BATCH_ROWS, Parsed, check_names, read_delimited
from fusetune.errors import StorageError, TableError, nearest

FORMAT = 1
"""Counts changes of the cached form, so that an older cache is not read as a newer one."""


def read_source(source: Source, *, base_dir: str | Path | None, cache_dir: str | Path | None) -> Table:
    """What `Table.read` does; see there."""
    if isinstance(source, str | Path):
        path = check_path(str(source))
        if path.is_dir():
            shards = [read_source(one, base_dir=base_dir or path, cache_dir=cache_dir) for one in _shards(path)]
            return concat(shards, source=str(path))
        folder = Path(base_dir) if base_dir is not None else path.parent
        return FORMATS[path.suffix.lower()](path, folder.absolute(), Path(cache_dir) if cache_dir else None)
    folder = Path(base_dir or Path.cwd()).absolute()
    if isinstance(source, pa.Table):
        return from_arrow(source, "the Arrow table", folder)
    package = type(source).__module__.split(".")[0]
    if package == "pandas" and type(source).__name__ == "DataFrame":
        return from_pandas(source, folder)
    if package == "datasets":
        return from_hugging_face(source, folder)
    raise TableError(
        f"a {type(source).__module__}.{type(source).__name__} is not a table",
        expected="a file's path, a pandas DataFrame, a Hugging Face Dataset or an Arrow table",
        do="rows as a list of dicts: Table.from_records(rows)" if isinstance(source, list) else None,
    )


def check_path(name: str) -> Path:
    """The path of a table's file, or of a folder of such files.

    Raises:
        TableError: it is a URL, is not there, or has an extension that is not read.
    """
    if "://" in name:
        raise TableError(
            "a table is not read from a URL: what it holds could change between two runs, unseen",
            came=name,
            do="download it first and give the file's path",
        )
    try:
        path = Path(name).expanduser()
        sort = stat.S_IFMT(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        raise TableError("the file is not there", came=str(path.absolute()), do=_near(path), file=name) from None
    except (OSError, ValueError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise TableError(f"the file is not there: {why}", do="check the path", file=name) from error
    if sort == stat.S_IFDIR:
        return path
    if sort != stat.S_IFREG:
        raise TableError(
            "it is a device or a pipe, not a file",
            do="write what comes out of it to a file, as a table is read more than once",
            file=name,
        )
    if path.suffix.lower() not in FORMATS:
        raise TableError(
            f"tables are not read from {path.suffix!r} files" if path.suffix else "the file's name has no extension",
            expected=", ".join(FORMATS),
            do=_INSTEAD.get(path.suffix.lower(), "save or rename it as one of these"),
            file=name,
        )
    if path.stat().st_size == 0:
        raise TableError(
            "the file is empty (0 bytes)", expected="a header line and rows", do="write it again", file=name
        )
    return path


def _near(path: Path) -> str:
    """What to do about a file that is not there."""
    if not path.parent.is_dir():
        return f"the folder {str(path.parent)!r} is not there either"
    return nearest(path.name, (one.name for one in path.parent.iterdir())) or "check the path"


_NO_ROWS = "the table has no rows"
_INSTEAD = {
    ".json": "write one JSON object a line and call it .jsonl (pandas: to_json(..., orient='records', lines=True))",
    ".xlsx": "save the sheet as CSV UTF-8",
    ".xls": "save the sheet as CSV UTF-8",
    ".gz": "unpack it first",
    ".zip": "unpack it first",
    ".zst": "unpack it first",
    ".txt": "rename it to .csv or .tsv if it has a header line and columns",
    ".pkl": "a pickle can run code when it is read; save it as Parquet",
    ".pickle": "a pickle can run code when it is read; save it as Parquet",
}


def _shards(folder: Path) -> list[Path]:
    """A folder's tables, by name: parts of one table, all of one kind.

    Raises:
        TableError: there is none, or they are of several kinds.
    """
    found = sorted(one for one in folder.iterdir() if one.suffix.lower() in FORMATS and one.is_file())
    kinds = sorted({one.suffix.lower() for one in found})
    if len(kinds) == 1:
        return found
    raise TableError(
        "the folder's files are not the parts of one table",
        expected="tables of one kind: " + ", ".join(FORMATS),
        came=", ".join(one.name for one in found[:5]) or "no table at all",
        do="give one of its files" if found else "give the folder that the tables lie in",
        file=str(folder),
    )


class _Kept:
    """A temporary folder that is removed when the last table that is mapped from it is gone, at exit at the latest."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fusetune-table-"))
        weakref.finalize(self, _remove, str(self.folder), os.getpid())


def _remove(folder: str, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def _converted(path: Path, folder: Path, cache_dir: Path | None, parse: Callable[[], Parsed]) -> Table:
    """The file's rows through an Arrow file on disk, from `cache_dir` where it is already there."""
    keep = None if cache_dir is not None else _Kept()
    home = cache_dir if cache_dir is not None else keep.folder  # type: ignore[union-attr]
    state = path.stat()
    key = json.dumps([FORMAT, pa.__version__, str(path.absolute()), state.st_size, state.st_mtime_ns])
    name = f"{path.stem[:40]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    data, told = home / f"{name}.arrow", home / f"{name}.json"
    if not (data.exists() and told.exists()):
        parsed = parse()
        try:
            home.mkdir(parents=True, exist_ok=True)
            _write(parsed, data, told)
        except OSError as error:
            raise StorageError(
                f"{data}: the table cannot be written there ({error}); it needs about as much space as {path} has. "
                f"Free some, or set TMPDIR or the cache folder to another disk"
            ) from error
    with told.open(encoding="utf-8") as handle:
        story = json.load(handle)
    rejected = [Rejected(**item) for item in story["rejected"]]
    if len(rejected) == story["rows_in"]:
        check_rate(rejected, story["rows_in"], source=str(path))
    with pa.memory_map(str(data)) as mapped:
        arrow = pa.ipc.open_file(mapped).read_all()
    rows = np.setdiff1d(np.arange(story["rows_in"]), [item.row for item in rejected], assume_unique=True)
    return Table(
        arrow,
        source=str(path),
        base_dir=folder,
        rows=rows.astype(np.int64),
        rejected=rejected,
        notes=story["notes"],
        keep=keep,
    )


def _write(parsed: Parsed, data: Path, told: Path) -> None:
    """Both files appear under their names when they are complete, the data last."""
    partial = data.with_name(f"{data.name}.{os.getpid()}.partial")
    try:
        with pa.ipc.new_file(str(partial), parsed.schema) as writer:
            for batch in parsed.batches:
                writer.write_batch(batch)
        story = {
            "rows_in": parsed.rows_in,
            "rejected": [item.record() for item in parsed.rejected],
            "notes": parsed.notes,
        }
        partial_told = told.with_name(f"{told.name}.{os.getpid()}.partial")
        partial_told.write_text(json.dumps(story), encoding="utf-8")
        partial_told.replace(told)
        partial.replace(data)
    finally:
        partial.unlink(missing_ok=True)


def _csv(path: Path, folder: Path, cache_dir: Path | None) -> Table:
    return _converted(path, folder, cache_dir, lambda: read_delimited(path, ","))


def _tsv(path: Path, folder: Path, cache_dir: Path | None) -> Table:
    return _converted(path, folder, cache_dir, lambda: read_delimited(path, "\t"))


def _jsonl(path: Path, folder: Path, cache_dir: Path | None) -> Table:
    return _converted(path, folder, cache_dir, lambda: read_jsonl(path))


def _parquet(path: Path, folder: Path, cache_dir: Path | None) -> Table:
    import pyarrow.parquet as pq

    def parse() -> Parsed:
        with _reading(path, "Parquet"):
            file = pq.ParquetFile(path, page_checksum_verification=True)
            check_names(list(file.schema_arrow.names), str(path))
            schema = normal_schema(file.schema_arrow)
        return _with_batches(path, schema, file.iter_batches(batch_size=min(BATCH_ROWS, 1024)), file.metadata.num_rows)

    return _converted(path, folder, cache_dir, parse)


def _with_batches(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], num_rows: int) -> Parsed:
    if num_rows == 0:
        raise TableError(_NO_ROWS, expected="at least one row", do="check how it was written", file=str(path))
    parsed = Parsed(schema, iter(()))

    def read() -> Any:
        with _reading(path, "Parquet"):
            for batch in normal_batches(batches, schema):
                parsed.rows_in += len(batch)
                yield batch
            if parsed.rows_in != num_rows:
                raise _broken(path, "Parquet", f"it claims {num_rows:,} rows and has {parsed.rows_in:,}")

    parsed.batches = read()
    return parsed


def _ipc(path: Path, folder: Path, cache_dir: Path | None) -> Table:
    """An Arrow file is mapped as it is; the stream form, which Hugging Face writes, too."""
    with _reading(path, "Arrow"):
        mapped = pa.memory_map(str(path))
        try:
            arrow = pa.ipc.open_file(mapped).read_all()
        except pa.ArrowInvalid:
            mapped.seek(0)
            arrow = pa.ipc.open_stream(mapped).read_all()
        return from_arrow(arrow, str(path), folder)


@contextmanager
def _reading(path: Path, form: str) -> Iterator[None]:
    """Whatever Arrow raises on a broken file as a `TableError` that names the file."""
    try:
        yield
    except TableError as error:
        raise error.in_file(str(path)) from error.__cause__
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _broken(path, form, (str(error) or type(error).__name__).splitlines()[0]) from error


def _broken(path: Path, form: str, why: str) -> TableError:
    return TableError(
        f"the file cannot be read as {form}: {why}",
        expected=f"a whole {form} file",
        do="write or copy it again; it may be cut off or of another format than its name says",
        file=str(path),
    )


FORMATS: dict[str, Callable[[Path, Path, Path | None], Table]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".tab": _tsv,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".parquet": _parquet,
    ".pq": _parquet,
    ".arrow": _ipc,
    ".feather": _ipc,
}


def from_arrow(arrow: pa.Table, source: str, folder: Path) -> Table:
    """An Arrow table; columns that need no change are not copied.

    Raises:
        TableError: it has no rows, column names that clash, or cells that are broken or of no type that is read.
    """
    check_names([str(name) for name in arrow.column_names], source)
    if arrow.num_rows == 0:
        raise TableError(_NO_ROWS, expected="at least one row", do="check how it was made", file=source)
    try:
        check_whole(arrow)
        schema = normal_schema(arrow.schema)
        return Table(_normal_table(arrow, schema), source=source, base_dir=folder)
    except TableError as error:
        raise error.in_file(source) from error.__cause__


def _normal_table(arrow: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = []
    for place, field in enumerate(schema):
        column = arrow.column(place)
        changed = column.type != field.type
        chunks = [normal_array(chunk, field) for chunk in column.chunks] if changed else column.chunks
        columns.append(pa.chunked_array(chunks, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def from_pandas(frame: Any, folder: Path) -> Table:
    """A pandas DataFrame; its index is not a column.

    Integers stay integers, NaN and NaT are missing, text stays text, also beside numbers in one column.

    Raises:
        TableError: it has no rows, column names that clash, or cells that cannot be kept.
    """
    source = "the DataFrame"
    names = [str(name) for name in frame.columns]
    check_names(names, source)
    if not len(frame):
        raise TableError("the DataFrame has no rows", expected="at least one row", file=source)
    arrays, fields = [], []
    for place, name in enumerate(names):
        series = frame.iloc[:, place]
        part = None
        # Arrow would keep periods as numbers, and categories that are intervals as pairs.
        if not str(series.dtype).startswith(("object", "category", "period", "interval")):
            try:
                part = pa.table({name: pa.array(series, from_pandas=True)})
            except (pa.ArrowException, TypeError, ValueError):
                part = None
        if part is None:
            part = from_cells({name: [_cell(value) for value in series]}, source)
        fields.append(normal_field(part.schema.field(0)))
        arrays.append(normal_array(part.column(0).combine_chunks(), fields[-1]))
    return Table(pa.Table.from_arrays(arrays, schema=pa.schema(fields)), source=source, base_dir=folder)


def _cell(value: Any) -> Any:
    """An object cell of pandas as plain Python: its own words for nothing as None, numpy as lists and numbers."""
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return _cell(value.item())
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if type(value).__name__ in ("Period", "Interval", "Decimal"):
        return str(value)
    if isinstance(value, tuple | set | frozenset):
        return list(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def from_hugging_face(data: Any, folder: Path) -> Table:
    """A Hugging Face `Dataset`: media undecoded, class labels as their names (-1, "none", as missing).

    Raises:
        TableError: it is a dictionary of splits, is streamed, has no rows, or column names that clash.
    """
    sort = type(data).__name__
    if sort != "Dataset":
        splits = ", ".join(map(repr, data)) if isinstance(data, dict) else ""
        raise TableError(
            f"a datasets.{sort} is not one table",
            expected="a datasets.Dataset",
            do=f"choose a split: data[name], of {splits}" if splits else "load it without streaming=True",
        )
    source = "the Dataset"
    if not len(data):
        raise TableError("the Dataset has no rows", expected="at least one row", file=source)
    arrow = data.with_format("arrow")[:]
    for place, name in enumerate(arrow.column_names):
        names = getattr(data.features[name], "names", None)
        if names is not None and type(data.features[name]).__name__ == "ClassLabel":
            labels = [names[i] if i is not None and i >= 0 else None for i in arrow.column(place).to_pylist()]
            arrow = arrow.set_column(place, name, pa.array(labels, pa.string()))
    return from_arrow(arrow, source, folder)
