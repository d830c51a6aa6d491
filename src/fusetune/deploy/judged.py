"""Query rows to be measured on a catalogue, which is a table of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fusetune.data.catalogue import Catalogue, Pairs, Sides
from fusetune.data.column import Progress
from fusetune.data.examples import Examples
from fusetune.data.keys import key_columns
from fusetune.data.negatives import with_negatives
from fusetune.data.table import Source, Table
from fusetune.deploy.bundle import Bundle
from fusetune.deploy.rows import Rows, read_source, reading_of
from fusetune.deploy.tuned import read_examples
from fusetune.errors import ConfigError
from fusetune.evaluation.measure.evaluate import Judged


@dataclass(frozen=True)
class InCatalogue:
    """A query table's rows beside their documents, and the catalogue."""

    queries: Table
    pairs: Pairs
    catalogue: Catalogue


def in_catalogue(
    bundle: Bundle, source: Rows, catalogue: Source | None, *, missing: Sequence[str] = ()
) -> InCatalogue | None:
    """Return rows whose documents are in a catalogue; None if the model or the table has no such documents.

    Args:
        bundle: the tuned model.
        source: the query table.
        catalogue: the documents. None: the catalogue that the model was tuned with, if the table has its key and
            lacks a column of documents.
        missing: input columns that the tables may lack.

    Raises:
        ConfigError: the model is not one of pairs, or the catalogue must be given.
        TableError: a table cannot be read, lacks a column, or no row names a document.
    """
    config = bundle.config
    if catalogue is None and config.catalogue.key is None:
        return None
    if not config.query:
        raise ConfigError("only a model of pairs has a catalogue", do="leave the catalogue out")
    table = read_source(bundle, source)
    if catalogue is None and config.catalogue.key is not None:
        if key_columns(config.catalogue.key)[0] not in table and all(name in table for name in config.document):
            return None
        catalogue = known_catalogue(config.catalogue.path)
    assert catalogue is not None
    relevance = config.catalogue.relevance
    settings = config.catalogue.model_copy(update={"relevance": relevance if relevance in table.column_names else None})
    sides = Sides(tuple(config.query), tuple(config.document))
    items = Table.read(catalogue, read=reading_of(bundle))
    items = items.with_missing(name for name in missing if name in sides.document and name not in items)
    table = table.with_missing(name for name in missing if name in sides.query and name not in table)
    documents = Catalogue.read(items, settings, table, sides)
    return InCatalogue(table, documents.pairs(table), documents)


def read_among_negatives(
    bundle: Bundle, source: Rows, *, missing: Sequence[str], progress: Progress | None
) -> tuple[Examples, Judged | None]:
    """Read and decode rows to be measured; documents that they name as negatives are among those that are searched.

    Args:
        bundle: the tuned model.
        source: the rows.
        missing: input columns that they may lack.
        progress: wraps iterators.

    Returns:
        The rows, and their counts if there are negatives among them.
    """
    table = read_source(bundle, source)
    names = [name for name in bundle.config.negative if name in table]
    if not names:
        return read_examples(bundle, source, targets=True, missing=missing, progress=progress), None
    end, rejected = len(table) + len(table.rejected), table.rejected
    (document,) = bundle.config.document
    table.require([document])
    searched = with_negatives(table, document, names, reserved=end)
    examples = read_examples(bundle, searched, targets=True, missing=missing, progress=progress)
    rejected = [*rejected, *(item for item in examples.rejected if item.row < end)]
    return examples, Judged(None, end, rejected, [])


def known_catalogue(path: str | None) -> str:
    """Return the catalogue that a model was tuned with.

    Raises:
        ConfigError: it is no file here; an address that a model's folder names is not fetched.
    """
    if path is None or "://" in path or not Path(path).exists():
        raise ConfigError(
            "the catalogue that the model was tuned with is not here",
            came=path or "a table in memory",
            do="name it: catalogue=items.csv (in Python evaluate(..., catalogue=...))",
        )
    return path


def read_judged(bundle: Bundle, rows: InCatalogue, *, progress: Progress | None) -> tuple[Examples, Judged]:
    """Read and decode queries and the whole catalogue.

    Args:
        bundle: the tuned model.
        rows: the queries.
        progress: wraps iterators.
    """
    queries, pairs = rows.queries, rows.pairs
    forms = bundle.schema.forms()
    pairs = replace(pairs, table=pairs.table.read_as(forms))
    end = 1 + max([int(queries.rows.max(initial=-1)), *(item.row for item in queries.rejected)])
    searched = rows.catalogue.searched(pairs, np.arange(len(pairs.table)), reserved=end)
    table = searched.table.read_as(forms).with_joined(bundle.schema.joins())
    group = bundle.schema.group if bundle.schema.group in table else None
    examples = Examples(table, bundle.modalities, None, weight=None, group=group)
    examples.prepare(on_bad_cell="mask", memory=bundle.config.data.memory, progress=progress)
    rejected = [*queries.rejected, *pairs.rejected, *(item for item in examples.rejected if item.row < end)]
    notes = list(rows.catalogue.notes)
    if searched.num_unanswered:
        notes.append(f"{searched.num_unanswered:,} queries have no document of a relevance above 0: not measured.")
    return examples, Judged(searched.related, len(queries) + len(queries.rejected), rejected, notes)
