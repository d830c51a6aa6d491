"""The n-grams of a batch's texts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fusetune.data.column import Column


def ngram_tensors(columns: Mapping[str, Column], indices: np.ndarray) -> dict[str, dict[str, Tensor]]:
    """Return `Batch.ngrams` of some rows; augmented cells have the n-grams of the original ones.

    Args:
        columns: by name.
        indices: (rows,) positions in the table.
    """
    result: dict[str, dict[str, Tensor]] = {}
    for name, column in columns.items():
        codes = column.codes[indices]
        for part, vocabulary in column.modality.ngrams.items():
            distinct, inverse = np.unique(codes[codes >= 0], return_inverse=True)
            vectors = [vocabulary.vector(text) for text in column.token_ids(distinct)]
            most = max([1, *(len(ids) for ids, _ in vectors)])
            ids, values = np.zeros((len(codes), most), np.int64), np.zeros((len(codes), most), np.float32)
            for index, number in zip(np.flatnonzero(codes >= 0), inverse, strict=True):
                own = vectors[number]
                ids[index, : len(own[0])], values[index, : len(own[1])] = own
            tensors = {f"{part}_ids": torch.from_numpy(ids), f"{part}_values": torch.from_numpy(values)}
            result.setdefault(name, {}).update(tensors)
    return result
