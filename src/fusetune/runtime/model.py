"""`RuntimeModel`: an exported model that predicts rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fusetune._optional import optional_import
from fusetune.data.missing import is_missing
from fusetune.data.output_names import ERROR, ROW, error_notes, free_name
from fusetune.data.quarantine import Rejected
from fusetune.errors import BadCell, ConfigError, FolderError, nearest
from fusetune.runtime.files import FLOAT32, graph_file, read_description
from fusetune.runtime.output import Predictions
from fusetune.runtime.readers import build_reader
from fusetune.runtime.source import SourceRows, TableForm, read_source
from fusetune.security.untrusted import reading
from fusetune.tasks.output_columns import columns_of

TOKENS, MAX_ROWS, PART_ROWS = 2048, 64, 4096
"""Most tokens and rows of a batch, padding included; and rows whose cells are decoded together."""


def load(
    folder: str | Path,
    variant: str | None = None,
    *,
    threads: int | None = None,
    providers: Sequence[str] = ("CPUExecutionProvider",),
) -> RuntimeModel:
    """Load an exported model.

    Args:
        folder: written by `fusetune export RUN --to onnx`.
        variant: "float32", "float16" or "int8", if the folder has it; None takes float32.
        threads: of onnxruntime; None takes one a processor core.
        providers: of onnxruntime, by preference.

    Raises:
        FolderError: the folder is missing, broken or of a later format, or has no such variant.
        MissingExtra: onnxruntime is not installed.

    Example:
        >>> model = fusetune.runtime.load("exported")  # doctest: +SKIP
        >>> model.predict({"note": "it broke"})["label"]  # doctest: +SKIP
        ['repair']
    """
    folder = Path(folder)
    description = read_description(folder)
    variants = list(description["variants"])
    variant = FLOAT32 if variant is None else variant
    if variant not in variants:
        raise FolderError(
            f"the exported model has no variant {variant!r}",
            expected=", ".join(variants),
            do=nearest(variant, variants) or f"export it with --variants {variant}",
            file=str(folder),
        )
    runtime: Any = optional_import("onnxruntime", "to run an exported model")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    with reading("the exported model cannot be read", file=folder / graph_file(variant), do="export it again"):
        session = runtime.InferenceSession(str(folder / graph_file(variant)), options, providers=list(providers))
        return RuntimeModel(folder, graph_file(variant), description, session)


class RuntimeModel:
    """An exported model.

    Attributes:
        folder: that it was loaded from.
        file: name of the graph.
        description: the content of runtime.json.
        session: of onnxruntime.
        readers: by input column.
    """

    def __init__(self, folder: Path, file: str, description: Mapping[str, Any], session: Any) -> None:
        """See the attributes."""
        self.file = file
        self.folder, self.description, self.session = folder, description, session
        self.readers = {name: build_reader(name, spec, folder) for name, spec in description["columns"].items()}
        self.form = TableForm(list(self.readers), list(description["ids"]), description["forms"], description["read"])
        self._inputs = {given.name for given in session.get_inputs()}
        self._outputs = [given.name for given in session.get_outputs()]

    def __repr__(self) -> str:
        return f"RuntimeModel({', '.join(self._outputs)} from {', '.join(self.readers)}; folder={str(self.folder)!r})"

    @property
    def labels(self) -> dict[str, list[str]]:
        """Each target's labels in the order of their probabilities; none for a number."""
        return {form["target"]: list(form.get("labels", [])) for form in self.description["targets"].values()}

    def predict(
        self,
        source: Any,
        *,
        on_bad_cell: Literal["mask", "reject"] = "mask",
        missing_columns: Sequence[str] = (),
    ) -> Predictions:
        """Predict every row, in order.

        Args:
            source: one row as a dictionary, a list of these, or, for a model with one input column, of its cells; or a
                table: a CSV, JSON or Parquet file, a DataFrame, an Arrow table (these need pyarrow, pydantic and
                pyyaml).
            on_bad_cell: where a cell cannot be read, "mask" predicts from the row's other cells and says so in the
                error column; "reject" gives that row no prediction.
            missing_columns: input columns that the rows may lack.

        Returns:
            The columns of `FineTuned.predict`.

        Raises:
            TableError: the source cannot be read or lacks a column.
            ConfigError: `missing_columns` names no input column.
        """
        rows, kept, answers, errors = self._answers(source, on_bad_cell, missing_columns)
        return self._predictions(rows, kept, answers, errors)

    def answers(self, source: Any) -> tuple[list[int], dict[str, np.ndarray]]:
        """Return the network's outputs.

        Args:
            source: as in `predict`.

        Returns:
            The places of the rows that are predicted; and by output, (rows, ...) float32 of these rows.

        Raises:
            TableError: the source cannot be read or lacks a column.
        """
        _, kept, answers, _ = self._answers(source, "mask", ())
        return kept, answers

    def _answers(
        self, source: Any, on_bad_cell: str, missing: Sequence[str]
    ) -> tuple[SourceRows, list[int], dict[str, np.ndarray], list[str | None]]:
        """Return the rows, which of them are predicted, the outputs, and the error column."""
        unknown = [name for name in missing if name not in self.readers]
        if unknown:
            raise ConfigError(
                f"{unknown[0]!r} is no input column of the model",
                expected=", ".join(self.readers),
                do=nearest(unknown[0], self.readers),
            )
        rows = read_source(source, self.form, missing)
        rejected, masked, results = list(rows.rejected), list[Rejected](), dict[str, list[np.ndarray]]()
        kept: list[int] = []
        for start in range(0, len(rows.rows), PART_ROWS):
            places = range(start, min(start + PART_ROWS, len(rows.rows)))
            examples, used = self._decode(rows, places, rejected, masked, reject=on_bad_cell == "reject")
            if used:
                kept += [start + place for place in used]
                for name, values in self._run(examples, used).items():
                    results.setdefault(name, []).append(values)
        answers = {name: np.concatenate(parts) for name, parts in results.items()}
        return rows, kept, answers, error_notes(rows.rows, rejected, masked)

    def _decode(
        self, rows: SourceRows, places: range, rejected: list[Rejected], masked: list[Rejected], *, reject: bool
    ) -> tuple[dict[str, list[Any]], list[int]]:
        """Decode some rows' cells; return the examples by column, and which of the rows are predicted.

        Rows and cells that cannot be read are added to `rejected` and `masked`.
        """
        examples: dict[str, list[Any]] = {}
        lost = {item.row for item in rows.rejected}
        for name, reader in self.readers.items():
            known: dict[Any, Any] = {}
            own: list[Any] = []
            for place in places:
                cell, row = rows.cells[name][place], rows.rows[place]
                if is_missing(cell):
                    own.append(None)
                    continue
                key = (type(cell), cell) if isinstance(cell, str | int | float | bytes) else id(cell)
                if key not in known:
                    try:
                        known[key] = reader.decode(cell, row=row, base_dir=rows.base_dir)
                    except BadCell as error:
                        known[key] = error
                example = known[key]
                if isinstance(example, BadCell):
                    (rejected if reject else masked).append(Rejected(row, name, cell, example.why, do=example.do))
                    lost |= {row} if reject else set()
                own.append(None if isinstance(example, BadCell) else example)
            examples[name] = own
        used = []
        for at, place in enumerate(places):
            row = rows.rows[place]
            if row in lost:
                continue
            if all(own[at] is None for own in examples.values()):
                rejected.append(Rejected(row, None, None, "no input column has a value"))
                continue
            used.append(at)
        return examples, used

    def _run(self, examples: Mapping[str, Sequence[Any]], used: Sequence[int]) -> dict[str, np.ndarray]:
        """Return the outputs of some rows by name, in the order of `used`."""
        sizes = {
            name: np.array([0 if own[at] is None else reader.size(own[at]) for at in used])
            for (name, reader), own in zip(self.readers.items(), examples.values(), strict=True)
        }
        order = np.argsort(sum(sizes.values(), np.zeros(len(used), np.int64)), kind="stable")
        results: dict[str, np.ndarray] = {}
        for batch in _batches(order, sizes):
            feeds: dict[str, np.ndarray] = {}
            for name, reader in self.readers.items():
                tensors = reader.tensors([examples[name][used[index]] for index in batch])
                feeds |= {f"{name}.{key}": tensor for key, tensor in tensors.items()}
            given = {name: tensor for name, tensor in feeds.items() if name in self._inputs}
            for name, values in zip(self._outputs, self.session.run(None, given), strict=True):
                if name not in results:
                    results[name] = np.zeros((len(used), *values.shape[1:]), dtype=np.float32)
                results[name][batch] = values
        return results

    def _predictions(
        self, rows: SourceRows, kept: Sequence[int], answers: Mapping[str, np.ndarray], errors: list[str | None]
    ) -> Predictions:
        """Return the output table."""
        targets, vectors = self.description["targets"], self.description["vectors"]
        columns: dict[str, list[Any]] = {free_name(ROW, [form["target"] for form in targets.values()]): rows.rows}
        for name in self.form.ids:
            if name in rows.cells:
                own = [None if cell is None else str(cell) for cell in rows.cells[name]]
                columns[free_name(name, columns)] = own

        def add(name: str, values: Sequence[Any]) -> None:
            spread: list[Any] = [None] * len(rows.rows)
            for place, value in zip(kept, values, strict=True):
                spread[place] = value
            columns[free_name(name, columns)] = spread

        for name, form in targets.items():
            empty = np.zeros((0, len(form["labels"])) if "labels" in form else 0)
            for column, values in columns_of(form, answers.get(name, empty).astype(np.float64)).items():
                add(column, values)
        for name, sides in vectors.items():
            cells = [rows.cells[column] for column in sides]
            has = [any(not is_missing(own[place]) for own in cells) for place in kept]
            add(
                name,
                [vector.tolist() if there else None for vector, there in zip(answers.get(name, ()), has, strict=True)],
            )
        columns[free_name(ERROR, columns)] = list(errors)
        return Predictions(columns)


def _batches(order: np.ndarray, sizes: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
    """Yield batches of rows, in order of their sizes, of up to `MAX_ROWS` rows and about `TOKENS` tokens."""
    start = 0
    for end in range(1, len(order) + 1):
        following = order[start : end + 1]
        longest = sum(int(own[following].max()) for own in sizes.values())
        if end == len(order) or len(following) > MAX_ROWS or longest * len(following) > TOKENS:
            yield order[start:end]
            start = end
