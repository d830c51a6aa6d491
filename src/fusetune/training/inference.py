"""Forward passes without gradients: logits of rows, and encoder outputs of distinct cells."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusetune.data.examples import Examples, Progress
from fusetune.data.store import Store
from fusetune.models.understand import Understand
from fusetune.training.memory import kept_memory, settle
from fusetune.training.stored import missing
from fusetune.types import Tokens

TOKENS = 2048
"""Tokens of texts that go through the model together, unless `MIN_ROWS` have more or `MAX_ROWS` less."""
MIN_ROWS, ROWS, MAX_ROWS = 8, 64, 512


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
    model: Understand,
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
    order = np.argsort(examples.sizes(indices), kind="stable")
    cuts = np.arange(batch_size, len(order), batch_size) if batch_size else _cuts(examples, indices[order])
    groups = np.split(order, cuts)
    steps: Iterator[np.ndarray] = iter(groups)
    if progress is not None:
        steps = progress(steps, "predicting", len(groups))
    device = model_device(model)
    parts: dict[str, list[Tensor]] = {task: [] for task in model.tasks}
    with evaluating(model), kept_memory() if len(groups) > 1 else nullcontext():
        for step in steps:
            outputs = model(examples.batch(indices[step]).to(device))
            for task, logits in outputs.logits.items():
                parts[task].append(logits.float().cpu())
            settle()
    back = torch.from_numpy(np.argsort(order))
    return {task: torch.cat(chunks)[back] for task, chunks in parts.items()}


def _cuts(examples: Examples, indices: np.ndarray) -> list[int]:
    """Where to cut rows, those that cost least first, into batches: places in `indices`, rising.

    Of rows that bring nothing larger than texts as many go together as have `TOKENS` tokens with the padding: with
    fewer the processor waits for weights, with more for memory. Of others, whose pictures and sounds are large, `ROWS`.
    """
    encoded = [c for c in examples.columns.values() if c.modality.needs_backbone and c.features is None]
    if any(column.modality.kind != "text" for column in encoded):
        return list(range(ROWS, len(indices), ROWS))
    tokens = [sum(column.size(int(column.codes[index])) for column in encoded) for index in indices]
    cuts, start, longest = [], 0, 0
    for place, size in enumerate(tokens):
        rows, longest = place - start, max(longest, size)
        if rows >= MAX_ROWS or (rows >= MIN_ROWS and longest * (rows + 1) > TOKENS):
            cuts.append(place)
            start, longest = place, size
    return cuts


def encode_cells(
    model: Understand,
    examples: Examples,
    column: str,
    *,
    batch_size: int = 64,
    store: Store | None = None,
    together: Callable[[np.ndarray], np.ndarray] | None = None,
    progress: Progress | None = None,
) -> Tokens:
    """The encoder's output for every distinct cell of a column: (cells, tokens, dim) float32 on the CPU.

    Cells with fewer tokens than others are padded with zeros. Cells that could not be read have no real token; no row
    points at them. What the store has is not computed, and what is computed is stored. `together` gives the cells, in
    order, that are computed `batch_size` at a time, from those that would be; groups that the store has are left out.
    """
    source = examples.columns[column]
    good = np.asarray([place for place in range(len(source.cells)) if place not in source.bad], dtype=np.int64)
    good = good[np.argsort([-source.size(int(place)) for place in good], kind="stable")]  # most tokens first
    digests: list[bytes] = []
    known: set[int] = set()
    if store is not None:
        digests, lacking = missing(store, source)
        known = set(good.tolist()) - set(lacking.tolist())
        good = lacking if together is None else together(lacking)
    groups = [good[i : i + batch_size] for i in range(0, len(good), batch_size)]
    groups = [places for places in groups if not known.issuperset(places.tolist())]
    steps: Iterator[np.ndarray] = iter(groups)
    if progress is not None:
        steps = progress(steps, f"encoding {column}", len(groups))
    device = model_device(model)
    dim = int(model.encoders[model.routes[column]].dim)  # type: ignore[arg-type]
    longest = max([1, *(len(store.rows(digests[place])) for place in known)]) if store is not None else 1
    features = torch.zeros(len(source.cells), longest, dim)
    real = torch.zeros(len(source.cells), longest, dtype=torch.bool)
    for place in known:
        assert store is not None
        rows = store.rows(digests[place])
        features[place, : len(rows)], real[place, : len(rows)] = rows, True
    with evaluating(model), kept_memory() if len(groups) > 1 else nullcontext():
        for places in steps:
            tensors = {name: tensor.to(device) for name, tensor in source.tensors(places).items()}
            tokens = model.encode(column, tensors)
            num, new = tokens.values.shape[1], [at for at, place in enumerate(places) if int(place) not in known]
            chosen = torch.from_numpy(places[new])
            longer = num - features.shape[1]
            if longer > 0:
                features, real = F.pad(features, (0, 0, 0, longer)), F.pad(real, (0, longer))
            features[chosen, :num] = tokens.values.masked_fill(~tokens.mask.unsqueeze(-1), 0).float().cpu()[new]
            real[chosen, :num] = tokens.mask.cpu()[new]
            store = _keep(store, [digests[place] for place in places[new] if digests], features[chosen], real[chosen])
            settle()
    _keep(store, [], features, real, last=True)
    return Tokens(features.clone(), real.clone())  # a tensor made in inference mode could not enter a training step


def _keep(
    store: Store | None, digests: list[bytes], features: Tensor, real: Tensor, *, last: bool = False
) -> Store | None:
    """Store cells' real tokens, where they stand first; gives the store, or None once it could not be written."""
    if store is None:
        return None
    try:
        for digest, values, mask in zip(digests, features, real, strict=False):
            count = int(mask.sum())
            if mask[:count].all():
                store.add(digest, values[:count])
        if last:
            store.flush()
    except OSError as error:
        warnings.warn(f"encoders' outputs are not kept for later runs: {error}", stacklevel=2)
        return None
    return store


def row_vectors(
    model: Understand, examples: Examples, indices: np.ndarray, *, batch_size: int = 256
) -> dict[str, Tensor]:
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
