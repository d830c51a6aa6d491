"""Re-rank what a search found: a second model reads the query and each of the nearest documents together.

The re-ranker is a model folder of its own within the folder of the model of pairs:

    reranker/              bundle.json, model.safetensors, report.html and what else a model folder has
    reranker/rerank.json   which columns it reads, how many documents, whether validation rows prefer it, and the
                           SHA-256 of the weights whose searches it re-ranks

Reference: Nogueira and Cho 2019, "Passage Re-ranking with BERT" (arXiv 1901.04085).
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusetune.deploy.bundle import Bundle, load_bundle, move, write_text
from fusetune.deploy.tuned import predict_proba
from fusetune.errors import StorageError
from fusetune.security.model_folder import weights_hash
from fusetune.security.untrusted import read_json, reading

RERANKER, SETTINGS, FORMAT = "reranker", "rerank.json", 1
RELEVANT, NOT_RELEVANT = "yes", "no"
"""The labels of the re-ranker's target."""


@dataclass
class Reranker:
    """Reads a query and a document together, and says how probably the document is a right answer.

    Attributes:
        bundle: the model.
        query, document: the column of either side.
        depth: how many of the nearest documents it reads.
        preferred: whether validation rows prefer its order; a search then takes it by default.
        seconds: duration of the last `probabilities`.
    """

    bundle: Bundle
    query: str
    document: str
    depth: int
    preferred: bool
    seconds: float = 0.0

    def probabilities(self, queries: Sequence[Any], documents: Sequence[Any]) -> np.ndarray:
        """Return how probably each document is a right answer to the query beside it, (pairs,); nan if unreadable."""
        start = time.perf_counter()
        (task,) = self.bundle.targets.values()
        pairs = [{self.query: query, self.document: doc} for query, doc in zip(queries, documents, strict=True)]
        known = predict_proba(self.bundle, pairs, None) if pairs else None
        self.seconds = time.perf_counter() - start
        return np.zeros(0) if known is None else known[:, list(task.labels).index(RELEVANT)]

    def order(self, queries: Sequence[Any], documents: Sequence[Sequence[Any]]) -> tuple[np.ndarray, np.ndarray]:
        """Return for each query the order of its documents, and their probabilities in this order.

        The first `depth` documents are sorted by falling probability; those that cannot be read come after the others,
        and the documents beyond the depth follow as they are.

        Args:
            queries: (queries,) cells.
            documents: (queries, documents) cells, the nearest first.

        Returns:
            (queries, documents) int64, (queries, documents) float64, nan beyond the depth.
        """
        width = max(map(len, documents), default=0)
        order = np.tile(np.arange(width), (len(queries), 1))
        relevance = np.full((len(queries), width), np.nan)
        read = min(self.depth, width)
        asked = [query for query in queries for _ in range(read)]
        found = self.probabilities(asked, [cell for row in documents for cell in row[:read]])
        if read:
            missing = np.array([[cell is None for cell in row[:read]] for row in documents], dtype=bool)
            found = np.where(missing, np.nan, found.reshape(len(queries), read))
            first = np.argsort(-np.nan_to_num(found, nan=-1.0), axis=1, kind="stable")
            order[:, :read], relevance[:, :read] = first, np.take_along_axis(found, first, 1)
        return order, relevance


def save_reranker(reranker: Reranker, folder: Path, model: Path) -> None:
    """Write `rerank.json` into a re-ranker's folder.

    Args:
        reranker: it.
        folder: with its model.
        model: the folder of the model of pairs.

    Raises:
        StorageError: it cannot be written.
    """
    settings = {"query": reranker.query, "document": reranker.document, "depth": reranker.depth}
    content = {"format": FORMAT, **settings, "preferred": reranker.preferred, "model": weights_hash(model)}
    write_text(folder / SETTINGS, json.dumps(content, indent=1, ensure_ascii=False))


def load_reranker(model: Path) -> Reranker | None:
    """Load the re-ranker in a model's folder; None if there is none, or one of other weights than the model's.

    Raises:
        FolderError: it is damaged.
    """
    folder = model / RERANKER
    if not (folder / SETTINGS).is_file():
        return None
    with reading("the re-ranker cannot be read", file=folder, do="delete the folder, and fit again with rerank=true"):
        content = read_json(folder / SETTINGS)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']}, not {FORMAT}")
        if content["model"] != weights_hash(model):
            return None
        query, document, depth = str(content["query"]), str(content["document"]), int(content["depth"])
        bundle = load_bundle(folder)
    move(bundle.model)
    return Reranker(bundle, query, document, depth, bool(content["preferred"]))


def copy_reranker(source: Path, target: Path) -> None:
    """Copy the re-ranker of a model's folder, if it has one of its own weights, to another folder of the same model.

    Raises:
        StorageError: it cannot be written.
    """
    reranker = load_reranker(source)
    if reranker is None or source.resolve() == target.resolve():
        return
    try:
        shutil.copytree(source / RERANKER, target / RERANKER, dirs_exist_ok=True)
    except OSError as error:
        raise StorageError(f"the re-ranker cannot be written to {target}: {error}") from error
    save_reranker(reranker, target / RERANKER, target)
