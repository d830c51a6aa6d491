"""Forward passes without gradients: logits of rows, and encoder outputs of distinct cells."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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
"""Most tokens and rows in a batch of texts, by type of device; a batch has at least `MIN_ROWS` rows."""
MIN_ROWS, ROWS = 8, 64


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode without gradients within the context, and restore the mode afterwards.

    A language model whose frozen weights are in bf16 is run under autocast.
    """
    was_training = module.training
    module.eval()
    low = any(getattr(part, "autocasts", False) for part in module.modules())
    # an autocast that is not enabled would end one around it
    precision = torch.autocast(model_device(module).type, torch.bfloat16) if low else nullcontext()
    try:
        with torch.inference_mode(), precision:
            yield
    finally:
        module.train(was_training)


def model_device(model: nn.Module) -> torch.device:
    """Return the device of the model's parameters."""
    return next(model.parameters()).device


def predict_logits(
    model: Family,
    examples: Examples,
    indices: np.ndarray,
    *,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Compute the logits of rows.

    Args:
        model: in any mode and on any device.
        examples: prepared rows.
        indices: (rows,) positions in the table, at least one.
        batch_size: rows per batch; None chooses by the device. Rows of similar cost share a batch.
        progress: wraps the iterator over batches.

    Returns:
        By task, (rows, ...) float32 on the CPU, in the order of `indices`; (rows, tokens, logits) for a task that
        answers token by token, 0 where a row has fewer tokens.
    """
    order = mapped_argsort(examples.sizes(indices))
    device = model_device(model)
    sorted_rows = mapped_take(indices, order)
    cuts = np.arange(batch_size, len(order), batch_size) if batch_size else _cuts(examples, sorted_rows, device.type)
    groups = np.split(order, cuts)
    steps: Iterator[np.ndarray] = iter(groups)
    if progress is not None:
        steps = progress(steps, "predicting", len(groups))
    logits = _Logits(len(indices))
    with evaluating(model), retain_freed_memory() if len(groups) > 1 else nullcontext():
        for step in steps:
            logits.put(step, model(examples.batch(indices[step]).to(device)).logits)
            trim_memory()
    return {task: logits.of(task) for task in model.tasks}


def concatenate_logits(chunks: Sequence[Tensor]) -> Tensor:
    """Concatenate rows' logits, (rows, ...); (rows, tokens, logits) are padded with zeros to the most tokens."""
    if chunks[0].ndim != 3:
        return torch.cat(list(chunks))
    longest = max(chunk.shape[1] for chunk in chunks)
    return torch.cat([F.pad(chunk, (0, 0, 0, longest - chunk.shape[1])) for chunk in chunks])


class _Logits:
    """Collects the rows' logits by task, memory-mapped if there are many.

    Logits stay on the device until `PIECE_ROWS` rows are collected, so that it need not be synchronised every batch.
    """

    def __init__(self, rows: int) -> None:
        self.rows, self.collected = rows, dict[str, np.ndarray]()
        self._positions: list[np.ndarray] = []
        self._pending: dict[str, list[Tensor]] = {}

    def put(self, positions: np.ndarray, logits: Mapping[str, Tensor]) -> None:
        """Add a batch's logits; `positions` are those of its rows in the result, (batch,)."""
        self._positions.append(positions)
        for task, values in logits.items():
            self._pending.setdefault(task, []).append(values.float())
        if sum(map(len, self._positions)) >= PIECE_ROWS:
            self._fetch()

    def _fetch(self) -> None:
        positions = np.concatenate(self._positions)
        for task, chunks in self._pending.items():
            values = concatenate_logits(chunks).cpu().numpy()
            if task not in self.collected:
                self.collected[task] = mapped_zeros((self.rows, *values.shape[1:]))
            self._widen(task, values.shape[1:])
            if values.ndim == 3:
                self.collected[task][positions, : values.shape[1]] = values
            else:
                self.collected[task][positions] = values
        self._positions, self._pending = [], {}

    def _widen(self, task: str, shape: tuple[int, ...]) -> None:
        """Make room for rows of this shape, which may have more tokens than those before."""
        before = self.collected[task]
        if before.ndim == 3 and shape[0] > before.shape[1]:
            self.collected[task] = mapped_zeros((self.rows, *shape))
            self.collected[task][:, : before.shape[1]] = before

    def of(self, task: str) -> Tensor:
        """Return a task's logits of all rows."""
        if self._positions:
            self._fetch()
        return torch.from_numpy(self.collected[task])


def _cuts(examples: Examples, indices: np.ndarray, device: str) -> list[int]:
    """Cut rows, sorted by rising cost, into batches; return the positions of the cuts in `indices`.

    Batches of texts have up to `TOKENS` tokens, padding included: smaller ones are bound by loading the weights, larger
    ones by memory bandwidth. Texts that are encoded already count if the model reads each of their tokens. Batches with
    images or sounds to encode have `ROWS` rows.
    """
    most_tokens, most_rows = TOKENS.get(device, TOKENS["cpu"]), MAX_ROWS.get(device, MAX_ROWS["cpu"])
    encoded = [c for c in examples.columns.values() if c.modality.needs_backbone and c.features is None]
    if any(column.modality.kind != "text" for column in encoded):
        return list(range(ROWS, len(indices), ROWS))
    texts = [column for column in examples.columns.values() if column.modality.kind == "text"]
    by_token = [c for c in texts if c.features is not None and c.features.mask.shape[1] > 1]
    costs = [column.costs(column.codes[indices]) for column in [*encoded, *by_token]]
    tokens = sum(costs, np.zeros(len(indices), np.int64))
    cuts, start, longest = [], 0, 0
    for position, size in enumerate(
        itertools.chain.from_iterable(tokens[piece].tolist() for piece in pieces(len(tokens)))
    ):
        rows, longest = position - start, max(longest, size)
        if rows >= most_rows or (rows >= MIN_ROWS and longest * (rows + 1) > most_tokens):
            cuts.append(position)
            start, longest = position, size
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
    """Encode every distinct cell of a column.

    Args:
        model: holds the encoder.
        column: the column's name.
        source: its cells.
        batch_size: cells per batch; None takes 64, on a GPU 256.
        store: its features are used, and new ones are added to it.
        together: maps the cells that the store lacks to the cells to compute, in order; batches of which the store has
            all cells are left out.
        progress: wraps the iterator over batches.

    Returns:
        (cells, tokens, dim) float32 on the CPU, padded with zeros. Cells that could not be read have no real token; no
        row refers to them.
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
    groups = [positions for positions in groups if not known[positions].all()]
    steps: Iterator[np.ndarray] = iter(groups)
    if progress is not None:
        steps = progress(steps, f"encoding {column}", len(groups))
    features = _Features(len(source.cells), model.encoder_dim(column))
    if store is not None:
        features.load(np.flatnonzero(known), digests, store)
    with evaluating(model), retain_freed_memory() if len(groups) > 1 else nullcontext():
        for positions in steps:
            tensors = {name: tensor.to(device) for name, tensor in source.tensors(positions).items()}
            tokens = model.encode(column, tensors)
            new = np.flatnonzero(~known[positions])
            values = tokens.values.masked_fill(~tokens.mask.unsqueeze(-1), 0).float().cpu()[new]
            features.put(positions[new], values, tokens.mask.cpu()[new])
            store = _add_to_store(
                store, digests[positions[new]] if store is not None else digests, values, tokens.mask.cpu()[new]
            )
            trim_memory()
    _add_to_store(store, digests[:0], torch.zeros(0), torch.zeros(0), last=True)
    return features.tokens()


class _Features:
    """A column's features while they are computed, (cells, tokens, dim); memory-mapped if there are many."""

    def __init__(self, cells: int, dim: int) -> None:
        self.values, self.mask = mapped_zeros((cells, 1, dim)), mapped_zeros((cells, 1), bool)

    def _widen(self, tokens: int) -> None:
        """Make room for cells of `tokens` tokens."""
        cells, width, dim = self.values.shape
        if tokens > width:
            values, mask = mapped_zeros((cells, tokens, dim)), mapped_zeros((cells, tokens), bool)
            for piece in pieces(cells) if self.mask.any() else ():
                values[piece, :width], mask[piece, :width] = self.values[piece], self.mask[piece]
            self.values, self.mask = values, mask

    def put(self, positions: np.ndarray, values: Tensor, mask: Tensor) -> None:
        """Set cells' features, (cells, tokens, dim), and their mask, (cells, tokens)."""
        self._widen(mask.shape[1])
        self.values[positions, : mask.shape[1]], self.mask[positions, : mask.shape[1]] = values.numpy(), mask.numpy()

    def load(self, positions: np.ndarray, digests: np.ndarray, store: FeatureStore) -> None:
        """Load cells' features from the store."""
        self._widen(int(store.lengths(mapped_take(digests, positions)).max(initial=1)))
        for position in positions:
            rows = store.rows(digests[position].tobytes())
            self.values[position, : len(rows)], self.mask[position, : len(rows)] = rows.numpy(), True

    def tokens(self) -> Tokens:
        """Return the features of all cells."""
        return Tokens(torch.from_numpy(self.values), torch.from_numpy(self.mask))


def _add_to_store(
    store: FeatureStore | None, digests: np.ndarray, features: Tensor, real: Tensor, *, last: bool = False
) -> FeatureStore | None:
    """Store cells whose real tokens come first; return the store, or None after it could not be written."""
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
        warnings.warn(f"encoders' outputs are not stored for later runs: {error}", stacklevel=2)
        return None
    return store


def row_vectors(
    model: Family, examples: Examples, indices: np.ndarray, *, batch_size: int = 256, dim: int | None = None
) -> dict[str, Tensor]:
    """Compute the vectors of each column, or of each side, in the common space.

    Args:
        model: in any mode and on any device.
        examples: prepared rows.
        indices: (rows,) positions in the table.
        batch_size: rows per batch.
        dim: how many of a vector's first numbers are taken; None takes all.

    Returns:
        By name in `model.compared`, (rows, dim) float32 of unit length on the CPU; zeros for a row without it.
    """
    device = model_device(model)
    parts: dict[str, list[Tensor]] = {name: [] for name in model.compared}
    with evaluating(model):
        for start in range(0, len(indices), batch_size):
            outputs = model(examples.batch(indices[start : start + batch_size]).to(device))
            for name, chunks in parts.items():
                chunks.append(F.normalize(outputs.compared(name).mean().float()[:, :dim], dim=1).cpu())
    return {name: torch.cat(chunks) for name, chunks in parts.items()}


def pooled_vectors(model: Family, examples: Examples, indices: np.ndarray, *, batch_size: int = 256) -> Tensor:
    """Compute each row's vector before the heads, the fusion of its columns.

    Args:
        model: of a family with such a vector, in any mode and on any device.
        examples: prepared rows.
        indices: (rows,) positions in the table, at least one.
        batch_size: rows per batch.

    Returns:
        (rows, dim) float32 on the CPU, not normalised.
    """
    device, chunks = model_device(model), []
    with evaluating(model):
        for start in range(0, len(indices), batch_size):
            pooled = model(examples.batch(indices[start : start + batch_size]).to(device)).pooled
            assert pooled is not None, "a family whose outputs have a pooled vector"
            chunks.append(pooled.float().cpu())
    return torch.cat(chunks)
