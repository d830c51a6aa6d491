"""Forward passes without gradients: logits of rows, and encoder outputs of distinct cells."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusetune.data.column import Column, Progress
from fusetune.data.examples import Examples
from fusetune.data.storage.feature_cache import FeatureStore
from fusetune.data.storage.mapped import PIECE_ROWS, mapped_argsort, mapped_take, mapped_zeros, pieces
from fusetune.inference.memory import retain_freed_memory, trim_memory
from fusetune.inference.stored import missing
from fusetune.models.family import Family
from fusetune.types import Tokens

TOKENS, MAX_ROWS = {"cpu": 2048, "cuda": 65_536}, {"cpu": 512, "cuda": 4096}
"""Tokens of texts that go through the model together, by kind of device; `MIN_ROWS` at least and `MAX_ROWS` at most."""
MIN_ROWS, ROWS = 8, 64


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients, the mode before restored after."""
    was_training = module.training
    module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        module.train(was_training)


def model_device(model: nn.Module) -> torch.device:
    """Where the model's parameters are."""
    return next(model.parameters()).device


def predict_logits(
    model: Family,
    examples: Examples,
    indices: np.ndarray,
    *,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Logits of rows, float32 on the CPU, in the order of `indices`.

    Args:
        model: in any mode and on any device.
        examples: prepared rows.
        indices: places in the table, at least one.
        batch_size: rows at a time, rows of like cost together; None takes as many as the processor is fastest with.
        progress: wraps the iterator over batches.
    """
    order = mapped_argsort(examples.sizes(indices))
    device = model_device(model)
    sorted_rows = mapped_take(indices, order)
    cuts = np.arange(batch_size, len(order), batch_size) if batch_size else _cuts(examples, sorted_rows, device.type)
    groups = np.split(order, cuts)
    steps: Iterator[np.ndarray] = iter(groups)
    if progress is not None:
        steps = progress(steps, "predicting", len(groups))
    made = _Logits(len(indices))
    with evaluating(model), retain_freed_memory() if len(groups) > 1 else nullcontext():
        for step in steps:
            made.put(step, model(examples.batch(indices[step]).to(device)).logits)
            trim_memory()
    return {task: made.of(task) for task in model.tasks}


class _Logits:
    """Rows' logits by task, in a file where they are many. Batches stay on the device for a while, which works on while
    the next one is made."""

    def __init__(self, rows: int) -> None:
        self.rows, self.found = rows, dict[str, np.ndarray]()
        self._places: list[np.ndarray] = []
        self._waiting: dict[str, list[Tensor]] = {}

    def put(self, places: np.ndarray, logits: Mapping[str, Tensor]) -> None:
        """A batch's."""
        self._places.append(places)
        for task, values in logits.items():
            self._waiting.setdefault(task, []).append(values.float())
        if sum(map(len, self._places)) >= PIECE_ROWS:
            self._fetch()

    def _fetch(self) -> None:
        places = np.concatenate(self._places)
        for task, chunks in self._waiting.items():
            values = torch.cat(chunks).cpu().numpy()
            if task not in self.found:
                self.found[task] = mapped_zeros((self.rows, *values.shape[1:]))
            self.found[task][places] = values
        self._places, self._waiting = [], {}

    def of(self, task: str) -> Tensor:
        """All rows'."""
        if self._places:
            self._fetch()
        return torch.from_numpy(self.found[task])


def _cuts(examples: Examples, indices: np.ndarray, device: str) -> list[int]:
    """Where to cut rows, those that cost least first, into batches: places in `indices`, rising.

    Of rows that bring nothing larger than texts as many go together as have `TOKENS` tokens with the padding: with
    fewer a processor waits for weights, with more for memory. Of others, whose pictures and sounds are large, `ROWS`.
    """
    most_tokens, most_rows = TOKENS.get(device, TOKENS["cpu"]), MAX_ROWS.get(device, MAX_ROWS["cpu"])
    encoded = [c for c in examples.columns.values() if c.modality.needs_backbone and c.features is None]
    if any(column.modality.kind != "text" for column in encoded):
        return list(range(ROWS, len(indices), ROWS))
    tokens = sum((column.costs(column.codes[indices]) for column in encoded), np.zeros(len(indices), np.int64))
    cuts, start, longest = [], 0, 0
    for place, size in enumerate(
        itertools.chain.from_iterable(tokens[piece].tolist() for piece in pieces(len(tokens)))
    ):
        rows, longest = place - start, max(longest, size)
        if rows >= most_rows or (rows >= MIN_ROWS and longest * (rows + 1) > most_tokens):
            cuts.append(place)
            start, longest = place, size
    return cuts


def encode_cells(
    model: Family,
    column: str,
    source: Column,
    *,
    batch_size: int | None = None,
    store: FeatureStore | None = None,
    together: Callable[[np.ndarray], np.ndarray] | None = None,
    progress: Progress | None = None,
) -> Tokens:
    """The encoder's output for every distinct cell of a column: (cells, tokens, dim) float32 on the CPU.

    Cells with fewer tokens than others are padded with zeros. Cells that could not be read have no real token; no row
    points at them. What the store has is not computed, and what is computed is stored. `together` gives the cells, in
    order, that are computed `batch_size` at a time (None: 64, on a GPU 256), from those that would be; groups that the
    store has are left out.
    """
    device = model_device(model)
    batch_size = batch_size or (64 if device.type == "cpu" else 256)
    good = source.good()
    known, digests = np.zeros(len(source.cells), dtype=bool), np.zeros((0, 16), dtype=np.uint8)
    if store is not None:
        digests, lacking = missing(store, source)
        known[good] = True
        known[lacking] = False
        good = lacking if together is None else together(lacking)
    groups = [good[i : i + batch_size] for i in range(0, len(good), batch_size)]
    groups = [places for places in groups if not known[places].all()]
    steps: Iterator[np.ndarray] = iter(groups)
    if progress is not None:
        steps = progress(steps, f"encoding {column}", len(groups))
    filled = _Filled(len(source.cells), int(model.encoders[model.routes[column]].dim))  # type: ignore[arg-type]
    if store is not None:
        filled.take(np.flatnonzero(known), digests, store)
    with evaluating(model), retain_freed_memory() if len(groups) > 1 else nullcontext():
        for places in steps:
            tensors = {name: tensor.to(device) for name, tensor in source.tensors(places).items()}
            tokens = model.encode(column, tensors)
            new = np.flatnonzero(~known[places])
            values = tokens.values.masked_fill(~tokens.mask.unsqueeze(-1), 0).float().cpu()[new]
            filled.put(places[new], values, tokens.mask.cpu()[new])
            store = _keep(store, digests[places[new]] if store is not None else digests, values, tokens.mask.cpu()[new])
            trim_memory()
    _keep(store, digests[:0], torch.zeros(0), torch.zeros(0), last=True)
    return filled.tokens()


class _Filled:
    """A column's features while they are computed: (cells, tokens, dim), in a file where they are many."""

    def __init__(self, cells: int, dim: int) -> None:
        self.values, self.mask = mapped_zeros((cells, 1, dim)), mapped_zeros((cells, 1), bool)

    def _widen(self, tokens: int) -> None:
        """Have space for cells of so many tokens."""
        cells, known, dim = self.values.shape
        if tokens > known:
            values, mask = mapped_zeros((cells, tokens, dim)), mapped_zeros((cells, tokens), bool)
            for piece in pieces(cells) if self.mask.any() else ():
                values[piece, :known], mask[piece, :known] = self.values[piece], self.mask[piece]
            self.values, self.mask = values, mask

    def put(self, places: np.ndarray, values: Tensor, mask: Tensor) -> None:
        """Cells' features, (cells, tokens, dim), and which tokens are real."""
        self._widen(mask.shape[1])
        self.values[places, : mask.shape[1]], self.mask[places, : mask.shape[1]] = values.numpy(), mask.numpy()

    def take(self, places: np.ndarray, digests: np.ndarray, store: FeatureStore) -> None:
        """Cells' features from the store."""
        self._widen(int(store.lengths(mapped_take(digests, places)).max(initial=1)))
        for place in places:
            rows = store.rows(digests[place].tobytes())
            self.values[place, : len(rows)], self.mask[place, : len(rows)] = rows.numpy(), True

    def tokens(self) -> Tokens:
        """All cells'."""
        return Tokens(torch.from_numpy(self.values), torch.from_numpy(self.mask))


def _keep(
    store: FeatureStore | None, digests: np.ndarray, features: Tensor, real: Tensor, *, last: bool = False
) -> FeatureStore | None:
    """Store cells' real tokens, where they stand first; gives the store, or None once it could not be written."""
    if store is None:
        return None
    try:
        for digest, values, mask in zip(digests, features, real, strict=True):
            count = int(mask.sum())
            if mask[:count].all():
                store.add(digest.tobytes(), values[:count])
        if last:
            store.flush()
    except OSError as error:
        warnings.warn(f"encoders' outputs are not kept for later runs: {error}", stacklevel=2)
        return None
    return store


def row_vectors(model: Family, examples: Examples, indices: np.ndarray, *, batch_size: int = 256) -> dict[str, Tensor]:
    """Each column's vector in the common space: (rows, dim) float32 of unit length on the CPU, zeros where absent.

    Args:
        model: in any mode and on any device.
        examples: prepared rows.
        indices: places in the table.
        batch_size: rows at a time.
    """
    device = model_device(model)
    parts: dict[str, list[Tensor]] = {column: [] for column in model.columns}
    with evaluating(model):
        for start in range(0, len(indices), batch_size):
            outputs = model(examples.batch(indices[start : start + batch_size]).to(device))
            for column, tokens in outputs.columns.items():
                parts[column].append(F.normalize(tokens.mean().float(), dim=1).cpu())
    return {column: torch.cat(chunks) for column, chunks in parts.items()}
