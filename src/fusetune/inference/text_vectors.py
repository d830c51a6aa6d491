"""Embeddings of single texts by a text backbone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fusetune.backbones.backbone import Backbone
from fusetune.inference.predict import evaluating, model_device

BATCH = 64
"""Texts of a batch; texts of similar length share one."""


def text_vectors(backbone: Backbone, texts: Sequence[str]) -> Tensor:
    """Return the texts' pooled embeddings, (texts, dim) float32 of unit length, on the CPU.

    Args:
        backbone: a text encoder.
        texts: one or more, not blank.
    """
    tokens = [backbone.tokenize(text) for text in texts]
    order = sorted(range(len(texts)), key=lambda index: len(tokens[index]))
    vectors = torch.zeros(len(texts), backbone.dim)
    with evaluating(backbone):
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            inputs = backbone.collate_text([tokens[index] for index in some])
            encoded = backbone(**{name: values.to(model_device(backbone)) for name, values in inputs.items()})
            vectors[some] = F.normalize(encoded.mean().float(), dim=1).cpu()
    return vectors
