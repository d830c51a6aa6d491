"""`read_source` reads every kind of source that `Table.read` accepts."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from fusetune.config.read import ReadConfig
from fusetune.data.quarantine import Rejected, check_rate
from fusetune.data.reading.annotations.formats import ENDINGS, read_annotations
from fusetune.data.reading.arrow import normal_batches, normal_schema
from fusetune.data.reading.delimited import read_delimited
from fusetune.data.reading.joined import concat
from fusetune.data.reading.json_files import read_jsonl
from fusetune.data.reading.objects import NO_ROWS, from_arrow, from_hugging_face, from_pandas
from fusetune.data.reading.remote import NOTES, copied, is_address, local_path
from fusetune.data.reading.text_files import BATCH_ROWS, Parsed, check_names
from fusetune.data.storage.mapped import mapped_arange, mapped_flatnonzero, mapped_full, mapped_take
from fusetune.data.storage.temporary import TemporaryFolder
from fusetune.data.table import Source, Table
from fusetune.errors import StorageError, TableError, UserError, nearest

OF_FILES = ("separator", "quote", "encoding", "format", "tag_column", "offsets")
"""The settings that change what is read from a file, not only how its cells are."""
READ_BYTES = 2**20
"""Bytes of a Parquet column that are read at a time."""
FORMAT = 3
"""Version of the cached form; caches of other versions are ignored."""


@dataclass(frozen=True)
class Reading:
    """Options of reading a file.

    Attributes:
        folder: folder that relative media paths start from.
        cache_dir: folder that keeps the Arrow form of text and Parquet files; None for a temporary one.
        read: the settings of text files.
    """

    folder: Path
    cache_dir: Path | None
    read: ReadConfig


def read_source(
    source: Source, *, base_dir: str | Path | None, cache_dir: str | Path | None, read: ReadConfig | None = None
) -> Table:
    """Read a table; see `Table.read`."""
    read = read or ReadConfig()
    if isinstance(source, str | Path):
        name = local_path(str(source)) or str(source)
        if is_address(name):
            return _at_address(name, base_dir, read)
        path = check_path(name)
        if path.is_dir():
            home = base_dir or path
            shards = [read_source(file, base_dir=home, cache_dir=cache_dir, read=read) for file in _shards(path)]
            return concat(shards, source=str(path))
        folder = Path(base_dir) if base_dir is not None else path.parent
        reading = Reading(folder.absolute(), Path(cache_dir) if cache_dir else None, read)
        return FORMATS[path.suffix.lower()](path, reading)
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
    """Return the path of a table's file, or of a folder of such files.

    Raises:
        TableError: it does not exist, is empty, or has an unsupported extension.
    """
    try:
        path = Path(name).expanduser()
        file_type = stat.S_IFMT(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        raise TableError("the file is not there", came=str(path.absolute()), do=_near(path), file=name) from None
    except (OSError, ValueError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise TableError(f"the file is not there: {why}", do="check the path", file=name) from error
    if file_type == stat.S_IFDIR:
        return path
    if file_type != stat.S_IFREG:
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
    """Return advice about a missing file."""
    if not path.parent.is_dir():
        return f"the folder {str(path.parent)!r} is not there either"
    return nearest(path.name, (file.name for file in path.parent.iterdir())) or "check the path"


_INSTEAD = {
    ".xlsx": "save the sheet as CSV UTF-8",
    ".xls": "save the sheet as CSV UTF-8",
    ".gz": "unpack it first",
    ".zip": "unpack it first",
    ".zst": "unpack it first",
    ".pkl": "a pickle can run code when it is read; save it as Parquet",
    ".pickle": "a pickle can run code when it is read; save it as Parquet",
}


def _shards(folder: Path) -> list[Path]:
    """Return the table files of a folder, the shards of one table, sorted by name.

    Raises:
        TableError: there are none, or they have different formats.
    """
    tables = sorted(file for file in folder.iterdir() if file.suffix.lower() in FORMATS and file.is_file())
    files = [file for file in tables if file.suffix.lower() not in NOTES] or tables
    if len({file.suffix.lower() for file in files}) == 1:
        return files
    raise TableError(
        "the folder's files are not the parts of one table",
        expected="tables of one kind: " + ", ".join(FORMATS),
        came=", ".join(file.name for file in files[:5]) or "no table at all",
        do="give one of its files" if files else "give the folder that the tables lie in",
        file=str(folder),
    )


def _at_address(address: str, base_dir: str | Path | None, read: ReadConfig) -> Table:
    """Copy and read the table at a remote address. Its content may change there, so its SHA-256 is in the notes.

    The copy of a text or Parquet file is deleted after it is converted to Arrow.
    """
    kept = TemporaryFolder()
    home, tables = Path(base_dir).absolute() if base_dir is not None else kept.folder, []
    for part in copied(address, kept.folder, FORMATS):
        try:
            table = FORMATS[check_path(str(part.path)).suffix.lower()](part.path, Reading(home, None, read))
        except UserError as error:
            error.file = None
            raise error.in_file(part.address) from None
        if part.path.suffix.lower() not in MAPPED:
            part.path.unlink()
        table.come_from(part.address, part.note, keep=kept, media=base_dir is not None)
        tables.append(table)
    return concat(tables, source=address)


def _converted(path: Path, reading: Reading, parse: Callable[[], Parsed]) -> Table:
    """Convert a file to an Arrow file, or reuse the one in `cache_dir`, and return its memory-mapped table."""
    cache_dir = reading.cache_dir
    keep = None if cache_dir is not None else TemporaryFolder()
    home = cache_dir if cache_dir is not None else keep.folder  # type: ignore[union-attr]
    state = path.stat()
    read = reading.read.model_dump(include=set(OF_FILES))
    key = json.dumps([FORMAT, pa.__version__, str(path.absolute()), state.st_size, state.st_mtime_ns, read])
    name = f"{path.stem[:40]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    data, metadata = home / f"{name}.arrow", home / f"{name}.json"
    if not (data.exists() and metadata.exists()):
        parsed = parse()
        try:
            home.mkdir(parents=True, exist_ok=True)
            _write(parsed, data, metadata)
        except OSError as error:
            raise StorageError(
                f"{data}: the table cannot be written there ({error}); it needs about as much space as {path} has. "
                f"Free some, or set TMPDIR or the cache folder to another disk"
            ) from error
    with metadata.open(encoding="utf-8") as handle:
        content = json.load(handle)
    rejected = [Rejected(**item) for item in content["rejected"]]
    if len(rejected) == content["rows_in"]:
        check_rate(rejected, content["rows_in"], source=str(path))
    with pa.memory_map(str(data)) as mapped:
        arrow = pa.ipc.open_file(mapped).read_all()
    rows = mapped_arange(content["rows_in"])
    if rejected:
        accepted = mapped_full(len(rows), True, bool)
        accepted[[item.row for item in rejected]] = False
        rows = mapped_take(rows, mapped_flatnonzero(accepted))
    return Table(
        arrow,
        source=str(path),
        base_dir=reading.folder,
        rows=rows,
        rejected=rejected,
        notes=content["notes"],
        keep=keep,
    )


def _write(parsed: Parsed, data: Path, metadata: Path) -> None:
    """Write the rows and their metadata, atomically; the data file gets its name last."""
    partial = data.with_name(f"{data.name}.{os.getpid()}.partial")
    try:
        with pa.ipc.new_file(str(partial), parsed.schema) as writer:
            for batch in parsed.batches:
                writer.write_batch(batch)
        content = {
            "rows_in": parsed.rows_in,
            "rejected": [item.record() for item in parsed.rejected],
            "notes": parsed.notes,
        }
        partial_metadata = metadata.with_name(f"{metadata.name}.{os.getpid()}.partial")
        partial_metadata.write_text(json.dumps(content), encoding="utf-8")
        partial_metadata.replace(metadata)
        partial.replace(data)
    finally:
        partial.unlink(missing_ok=True)


def _csv(path: Path, reading: Reading) -> Table:
    return _converted(path, reading, lambda: read_delimited(path, ",", reading.read))


def _tsv(path: Path, reading: Reading) -> Table:
    return _annotated(path, reading, lambda: read_delimited(path, "\t", reading.read))


def _jsonl(path: Path, reading: Reading) -> Table:
    return _annotated(path, reading, lambda: read_jsonl(path, reading.read.encoding))


def _annotated(path: Path, reading: Reading, table: Callable[[], Parsed] | None = None) -> Table:
    return _converted(path, reading, lambda: read_annotations(path, reading.read, table))


def _parquet(path: Path, reading: Reading) -> Table:
    import pyarrow.parquet as pq

    def parse() -> Parsed:
        with _reading(path, "Parquet"):
            # Pages are read one by one, as a row group may be as large as the memory.
            file = pq.ParquetFile(path, page_checksum_verification=True, buffer_size=READ_BYTES)
            check_names(list(file.schema_arrow.names), str(path))
            schema = normal_schema(file.schema_arrow)
        return _with_batches(path, schema, file.iter_batches(batch_size=min(BATCH_ROWS, 1024)), file.metadata.num_rows)

    return _converted(path, reading, parse)


def _with_batches(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], num_rows: int) -> Parsed:
    if num_rows == 0:
        raise TableError(NO_ROWS, expected="at least one row", do="check how it was written", file=str(path))
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


def _ipc(path: Path, reading: Reading) -> Table:
    """Return the table of a memory-mapped Arrow file, in the file format or in the stream format of Hugging Face."""
    with _reading(path, "Arrow"):
        mapped = pa.memory_map(str(path))
        try:
            arrow = pa.ipc.open_file(mapped).read_all()
        except pa.ArrowInvalid:
            mapped.seek(0)
            arrow = pa.ipc.open_stream(mapped).read_all()
        return from_arrow(arrow, str(path), reading.folder)


@contextmanager
def _reading(path: Path, form: str) -> Iterator[None]:
    """Raise Arrow's errors about a broken file as `TableError`, with the file's name."""
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


FORMATS: dict[str, Callable[[Path, Reading], Table]] = {
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
FORMATS |= {ending: _annotated for ending in ENDINGS if ending not in FORMATS}

MAPPED = (".arrow", ".feather")
"""Extensions of files that are memory-mapped directly."""
