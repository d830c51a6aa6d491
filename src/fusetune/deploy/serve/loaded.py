"""`Loaded`: a model that is served, with what requests need to know of it; `Live`: the one that is served now."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from fusetune.data.table import Table
from fusetune.deploy.bundle import Bundle
from fusetune.deploy.fine_tuned import INDEX_FOLDER, FineTuned
from fusetune.deploy.outputs import OUTPUTS
from fusetune.deploy.search.index import SearchIndex
from fusetune.deploy.serve.inputs import Inputs, Record, table_of
from fusetune.deploy.serve.media import MEDIA
from fusetune.deploy.tuned import Precision, predict
from fusetune.deploy.versions import current_version, folder_in_use
from fusetune.errors import UserError
from fusetune.models.generate import Generate
from fusetune.models.match import Match
from fusetune.models.understand import Understand

LoadModel = Callable[[Path], FineTuned]
"""Loads a model's folder, as `fusetune.load`."""
EXAMPLE_BYTES = 64 * 2**20
"""A larger train table is not read for an example."""
EXAMPLE_CHARS = 200


@dataclass(eq=False)
class Loaded:
    """A model in memory.

    Attributes:
        tuned: the model.
        name: in addresses and answers.
        version: the name of its folder in a folder of versions, else the start of its weights' digest.
        precision: see `FineTuned.predict`.
        inputs: the columns of its rows.
        index: its search index, or None.
        shows_rows: whether the example may be a row of the train table that the folder names. That may be any table of
            this machine, so it is for servers that no other machine reaches.
        example: a row to show in the API's description.
    """

    tuned: FineTuned
    name: str
    version: str
    precision: Precision = "float32"
    index: SearchIndex | None = None
    shows_rows: bool = False
    inputs: Inputs = field(init=False)
    example: Record = field(init=False)

    def __post_init__(self) -> None:
        self.inputs = Inputs.of(self.bundle)
        self.example = example_row(_first_row(self.bundle) if self.shows_rows else {}, self.inputs)

    @property
    def bundle(self) -> Bundle:
        """The model with its columns and tasks."""
        return self.tuned.bundle

    @property
    def writes(self) -> bool:
        """Whether it writes text."""
        return isinstance(self.bundle.model, Generate)

    @property
    def matches(self) -> bool:
        """Whether it has vectors of sides, which are compared."""
        return isinstance(self.bundle.model, Match)

    @property
    def embeds(self) -> bool:
        """Whether it gives vectors."""
        return isinstance(self.bundle.model, Match | Understand)

    @property
    def draws(self) -> bool:
        """Whether its answers depend on a row's number, as those that are drawn at a temperature."""
        return self.writes and bool(self.bundle.config.generation.temperature)

    def predict(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        """Return each record's predictions by column.

        Raises:
            UserError: the rows cannot be read.
        """
        table: pa.Table = predict(self.bundle, table_of(records), precision=self.precision).table
        if not len(records):
            return []
        absent = [name for name in self.inputs.extra if all(record.get(name) is None for record in records)]
        rows: list[dict[str, Any]] = table.drop_columns([n for n in absent if n in table.column_names]).to_pylist()
        return rows

    def output_columns(self) -> dict[str, str]:
        """Return the names of the columns that `predict` gives, with their Arrow types."""
        columns = OUTPUTS[self.bundle.model.name].columns(self.bundle, None, None)
        return {name: str(kind) for name, kind, _ in columns}

    def warm_up(self) -> None:
        """Predict a row, so that everything that is loaded lazily is there before the first request.

        Raises:
            UserError: an extra is missing that the model needs.
        """
        self.predict(
            [{name: None if self.inputs.kinds.get(name) in MEDIA else cell for name, cell in self.example.items()}]
        )


class Live:
    """The model that is served now. Replaced as a whole, so that a request has the same model from start to end."""

    def __init__(self, model: Loaded) -> None:
        self._model, self._lock = model, threading.Lock()

    @property
    def model(self) -> Loaded:
        """The model for requests that come now."""
        return self._model

    def swap(self, model: Loaded) -> Loaded:
        """Serve another model; return the one before, which finishes the requests that it has."""
        with self._lock:
            before, self._model = self._model, model
        return before


def load_version(
    load: LoadModel, folder: Path, *, name: str | None, precision: Precision, shows_rows: bool = False
) -> Loaded:
    """Load the model of a folder, or the one that its file `current` names, and predict a row with it.

    Raises:
        FolderError: there is no model, or it is broken.
    """
    version, path = current_version(folder), folder_in_use(folder)
    tuned = load(path)
    known = (path / INDEX_FOLDER).is_dir() and isinstance(tuned.bundle.model, Match)
    index = tuned.index() if known else None
    label = version or fingerprint(path)
    loaded = Loaded(tuned, name or (folder.resolve().name or "model"), label, precision, index, shows_rows)
    loaded.warm_up()
    return loaded


def fingerprint(folder: Path) -> str:
    """Return what changes whenever a model is saved to a folder: its bundle's size and time, in hexadecimal."""
    status = (folder / "bundle.json").stat()
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def example_row(row: Mapping[str, Any], inputs: Inputs) -> Record:
    """Return a row to show: texts are cut to `EXAMPLE_CHARS`, files described, cells that the row lacks made up."""
    return {
        name: f"<base64 of a {'picture' if kind == 'image' else 'sound'}>"
        if kind in MEDIA
        else _cut(row.get(name), kind)
        for name, kind in inputs.kinds.items()
    }


def _first_row(bundle: Bundle) -> Mapping[str, Any]:
    """Return the first row of the train table, if it is a small file on this machine; else an empty row."""
    try:
        path = Path(next(iter(bundle.config.train), ""))
        if not path.is_file() or path.stat().st_size > EXAMPLE_BYTES:
            return {}
        table = Table.read(path).read_as(bundle.schema.forms())
        return table.row(0) if len(table) else {}
    except (UserError, OSError, ValueError):
        return {}


def _cut(cell: Any, kind: str) -> Any:
    if isinstance(cell, str):
        return cell[:EXAMPLE_CHARS]
    if cell is None:
        return 1.5 if kind == "number" else "text"
    return cell
