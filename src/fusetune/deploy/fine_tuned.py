"""`FineTuned`: a tuned model as users have it, which predicts, evaluates, embeds and searches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fusetune.config.data import OnBadCell
from fusetune.data.table import Source, Table
from fusetune.deploy.bundle import merge_adapters, save_bundle
from fusetune.deploy.card import write_card
from fusetune.deploy.export.sentence_transformers import save_sentence_transformer
from fusetune.deploy.exporting import Exporting
from fusetune.deploy.judged import in_catalogue, read_among_negatives, read_judged
from fusetune.deploy.judged_users import read_users
from fusetune.deploy.outputs import VectorColumns, embeddings_of
from fusetune.deploy.predictions import Predictions, check_ending, write
from fusetune.deploy.publishing import Publishing
from fusetune.deploy.recommend import Asked, recommend
from fusetune.deploy.rows import Rows, index_of, needed_columns, reading_of
from fusetune.deploy.search.files import load_index, save_index
from fusetune.deploy.search.index import SearchIndex, cut_to
from fusetune.deploy.search.rerank import copy_reranker, load_reranker
from fusetune.deploy.search.vectors import DType
from fusetune.deploy.tuned import (
    Precision,
    arithmetic,
    predict,
    predict_parts,
    predict_proba,
)
from fusetune.deploy.writing import Writing
from fusetune.errors import ConfigError
from fusetune.evaluation.measure.evaluate import Evaluation, Judged, measure
from fusetune.evaluation.report.write import write_report
from fusetune.training.progress import track

INDEX_FOLDER = "index"
"""Where a model's folder has its search index."""


class FineTuned(Publishing, Writing, Exporting):
    """A tuned model.

    Attributes:
        bundle: the model, its columns, tasks, schema and settings.
        folder: where it is saved, or None.
        results: what the run found, or None for a folder without a report.
    """

    def __repr__(self) -> str:
        targets = ", ".join(self.bundle.tasks)
        return f"FineTuned({targets} from {', '.join(needed_columns(self.bundle))}; folder={str(self.folder)!r})"

    def predict(
        self,
        source: Rows,
        *,
        on_bad_cell: OnBadCell = "mask",
        precision: Precision = "float32",
        missing_columns: Sequence[str] = (),
        progress: bool = False,
    ) -> Predictions:
        """Predictions for every row of a table, in order.

        Args:
            source: a file, DataFrame, `Dataset` or `Table` with the columns the model was tuned on; or one row as a
                dictionary, or a list of these. Where the model has one input column, a list of its cells will do.
                Pictures may be PIL images or (height, width[, channels]) arrays of uint8.
            on_bad_cell: where a cell cannot be read, "mask" predicts from the row's other cells and says so in the
                error column; "reject" gives that row no prediction.
            precision: "bf16" is faster where the processor or GPU has it; the last digits differ. "int8" computes the
                encoders' linear layers in 8-bit integers, faster on a processor with AVX512-VNNI; `evaluate` says what
                it costs.
            missing_columns: input columns that the table may lack; the model predicts from the others.
            progress: whether to show progress on standard error: bars on a terminal, else plain lines.

        Raises:
            TableError: the table cannot be read or lacks a column.
        """
        return predict(
            self.bundle,
            source,
            on_bad_cell=on_bad_cell,
            precision=precision,
            missing=missing_columns,
            progress=track if progress else None,
        )

    def read(self, source: Source, *, media: Sequence[str] = ()) -> Table:
        """Read a table as the model's were read, for `predict`, `predict_to`, `predict_proba` and `evaluate`.

        Args:
            source: a file, DataFrame, `Dataset` or `Table`.
            media: protocols of addresses in cells of pictures and sounds that are fetched, as `["https"]`. Without it
                none is, whatever the settings say that the model was tuned with.

        Raises:
            TableError: the table cannot be read.
            ConfigError: a protocol is unknown.
        """
        return Table.read(source, read=reading_of(self.bundle, media))

    def predict_proba(
        self, source: Rows, target: str | None = None, *, missing_columns: Sequence[str] = ()
    ) -> np.ndarray:
        """Probabilities of a target's labels, for every row of a table, in order.

        Args:
            source: as in `predict`.
            target: which target, where the model has several.
            missing_columns: as in `predict`.

        Returns:
            (rows, labels), the labels in the order of `labels[target]`; nan for a row that cannot be predicted.

        Raises:
            TableError: the table cannot be read or lacks a column.
            ConfigError: the target has no labels, or is not named.
        """
        return predict_proba(self.bundle, source, target, missing=missing_columns)

    @property
    def labels(self) -> dict[str, list[str]]:
        """Each target's labels in the order of their probabilities; none for a number."""
        return {task.target: list(task.labels) for task in self.bundle.targets.values()}

    def predict_to(
        self,
        source: Rows,
        path: str | Path,
        *,
        on_bad_cell: OnBadCell = "mask",
        precision: Precision = "float32",
        missing_columns: Sequence[str] = (),
        progress: bool = False,
    ) -> tuple[int, int]:
        """Write predictions to a .csv, .jsonl, .parquet or .conll file, in memory that does not grow with the table.

        Returns:
            The rows, and those of them with something in their error column.

        Raises:
            TableError: the table cannot be read or lacks a column.
            StorageError: the file cannot be written.
            ConfigError: its name has another ending; or it ends in .conll and the model finds no spans of a text.
        """
        suffix = check_ending(path, self.bundle.targets.values())
        parts = predict_parts(
            self.bundle,
            source,
            on_bad_cell=on_bad_cell,
            precision=precision,
            missing=missing_columns,
            progress=track if progress else None,
        )
        return write(parts, path, suffix)

    def embed(
        self,
        source: Rows,
        *,
        dim: int | None = None,
        precision: Precision = "float32",
        missing_columns: Sequence[str] = (),
        progress: bool = False,
    ) -> Predictions:
        """Compute a vector for every row of a table, in order.

        Args:
            source, precision, missing_columns, progress: as in `predict`.
            dim: how many of a vector's first numbers are returned, scaled to unit length; see `index`.

        Returns:
            `vector`, the fusion of the row's columns that the heads read; for a model of pairs a vector of unit length
            for each side, `query_vector` and `document_vector`; for one without a target, for each column.

        Raises:
            TableError: the table cannot be read or lacks a column.
            ConfigError: the model writes, or the vectors cannot be cut so.
        """
        parts = list(self._embedded(source, precision, missing_columns, progress, dim))
        return Predictions(pa.concat_tables([part.table for part in parts]), index=index_of(source))

    def embed_to(
        self,
        source: Rows,
        path: str | Path,
        *,
        dim: int | None = None,
        precision: Precision = "float32",
        missing_columns: Sequence[str] = (),
        progress: bool = False,
    ) -> tuple[int, int]:
        """Write what `embed` returns to a .csv, .jsonl or .parquet file, in memory that does not grow with the table.

        Returns:
            The rows, and those of them with something in their error column.

        Raises:
            TableError: the table cannot be read or lacks a column.
            StorageError: the file cannot be written.
            ConfigError: its name has another ending, or the vectors cannot be cut so.
        """
        return write(self._embedded(source, precision, missing_columns, progress, dim), path, check_ending(path))

    def _embedded(
        self, source: Rows, precision: Precision, missing: Sequence[str], progress: bool, dim: int | None
    ) -> Iterator[Predictions]:
        bar = track if progress else None
        output = embeddings_of(self.bundle)
        if cut_to(self.bundle, dim) is not None:
            output = VectorColumns(dim)
        return predict_parts(self.bundle, source, precision=precision, missing=missing, progress=bar, output=output)

    def index(
        self,
        catalogue: Rows | None = None,
        *,
        find: str | None = None,
        dtype: DType = "float32",
        dim: int | None = None,
        approximate: bool | None = None,
        progress: bool = False,
    ) -> SearchIndex:
        """Build an index of a catalogue to search in, or load the one in the model's folder.

        Args:
            catalogue: a table with the columns of what is found, and any others to show and to filter by. None loads
                the index that `save_index` wrote.
            find: what is found: `document` (the default) or `query`, or a column of a model without a target.
            dtype: how vectors are stored: "float16" takes half of the memory of "float32", "int8" a quarter.
            dim: how many of a vector's first numbers are compared; None compares all. Tune with the option `dims` of an
                objective for it.
            approximate: whether searches follow a graph (HNSW) instead of comparing with every vector; None does so
                above 100,000 vectors. It needs the extra `ann`.
            progress: whether to show progress on standard error.

        Raises:
            ConfigError: the model does not compare sides, or it must be named what is found.
            TableError: the catalogue cannot be read, lacks a column, or has no row to find.
            FolderError: there is no index in the model's folder, or it is damaged or of other weights.
        """
        if catalogue is None:
            if self.folder is None:
                raise ConfigError("a model that is not saved has no saved index", do="give the catalogue")
            index = load_index(self.bundle, self.folder / INDEX_FOLDER, self.folder)
            index.reranker = load_reranker(self.folder)
            return index
        bar = track if progress else None
        index = SearchIndex.build(
            self.bundle, catalogue, find=find, dtype=dtype, dim=dim, graph=approximate, progress=bar
        )
        index.reranker = None if self.folder is None else load_reranker(self.folder)
        return index

    def save_index(self, index: SearchIndex) -> Path:
        """Write an index into the model's folder, from which `index()` loads it.

        Raises:
            ConfigError: the model is not saved.
            StorageError: it cannot be written.
        """
        if self.folder is None:
            raise ConfigError("a model that is not saved has no folder for its index", do="save the model first")
        save_index(index, self.folder / INDEX_FOLDER, self.folder)
        return self.folder / INDEX_FOLDER

    def recommend(
        self,
        users: Rows | None = None,
        *,
        user_id: Any = None,
        liked: Sequence[Any] | None = None,
        k: int = 10,
        catalogue: Source | None = None,
        known: bool = False,
    ) -> Predictions:
        """Recommend items to users, with a model that was tuned with `user` and `item`.

        Args:
            users: a table of users: their ids, their attributes, or `liked`, a column of lists of items that they like.
            user_id: an id, or a list of several, in place of a table. What a user of the train rows did is known.
            liked: the ids of items that a new user likes, in place of a table; or a list of such lists.
            k: items a user.
            catalogue: rank the items of this table, by its columns. None: those that the model was tuned with.
            known: whether items are recommended that the user knows.

        Returns:
            Up to k rows a user, the best item first: `row`, the user's number in the request; `user`, the id; `rank`
            from 1; `score`, the cosine similarity; the item's id and, with a catalogue, its columns; `error`.

        Raises:
            ConfigError: the model recommends nothing, k is below 1, or it is not clear who is asked for.
            TableError: a table cannot be read, or lacks a column.
        """
        ids = None if user_id is None else list(user_id) if isinstance(user_id, list | tuple) else [user_id]
        several = liked is not None and all(isinstance(part, list | tuple) for part in liked)
        lists = None if liked is None else liked if several else [liked]
        return recommend(self.bundle, Asked(users, ids, lists), k=k, catalogue=catalogue, known=known)

    def evaluate(
        self,
        source: Rows,
        *,
        catalogue: Source | None = None,
        slices: Sequence[str] = (),
        precision: Precision = "float32",
        missing_columns: Sequence[str] = (),
        progress: bool = False,
    ) -> Evaluation:
        """Measure the model on labelled rows.

        Args:
            source: as in `predict`, with the target columns.
            catalogue: the documents, for a model of pairs whose queries name them by a key. None: those that the model
                was tuned with, if there were any and the table does not have the documents itself.
            slices: columns whose values the main metric is split by.
            precision: as in `predict`.
            missing_columns: as in `predict`.
            progress: whether to show progress on standard error: bars on a terminal, else plain lines.

        Raises:
            TableError: the table cannot be read, lacks a column, or has no row with a target.
        """
        bars = track if progress else None
        bundle, low = arithmetic(self.bundle, precision)
        judged: Judged | None
        if bundle.interactions is not None:
            examples, judged = read_users(bundle, source, catalogue, missing=missing_columns, progress=bars)
        elif (table := in_catalogue(bundle, source, catalogue, missing=missing_columns)) is not None:
            examples, judged = read_judged(bundle, table, progress=bars)
        else:
            examples, judged = read_among_negatives(bundle, source, missing=missing_columns, progress=bars)
        examples.check_targets()
        with low:
            return measure(
                bundle.model,
                bundle.tasks,
                examples,
                judged=judged,
                slices=slices,
                group=bundle.schema.group,
                progress=bars,
                stack=bundle.stack,
                generation=bundle.config.generation,
            )

    def merge(self) -> FineTuned:
        """Work adapters into the backbones' weights, in place: the same predictions, within rounding, by a model whose
        saved folder needs no other.

        Raises:
            ConfigError: no backbone has an adapter.
        """
        if not merge_adapters(self.bundle.model, self.bundle.stack):
            raise ConfigError("no backbone of this model has an adapter", do="it can be used as it is")
        return self

    def save_sentence_transformer(self, folder: str | Path, *, side: str | None = None) -> Path:
        """Write a side of pairs as a folder of sentence-transformers, which gives texts the same vectors.

        Args:
            folder: to write.
            side: "query" or "document", or a column of a model without a target. None: any, if both give a text the
                same vector.

        Raises:
            ConfigError: the side is not one text column read by one encoder, or it is fused, or it must be named.
            StorageError: it cannot be written.
        """
        return save_sentence_transformer(self.bundle, Path(folder), side)

    def save(self, folder: str | Path) -> Path:
        """Write the model folder.

        Raises:
            StorageError: it cannot be written.
        """
        folder = Path(folder)
        save_bundle(self.bundle, folder)
        if self.results is not None:
            write_report(self.results, folder)
        write_card(self.bundle, self.results, folder)
        if self.folder is not None:
            copy_reranker(self.folder, folder)
        return folder
