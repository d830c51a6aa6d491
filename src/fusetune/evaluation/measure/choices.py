"""What a task that chooses among a row's texts is compared with: rules, and cosines of frozen embeddings."""

from __future__ import annotations

import numpy as np
import torch

from fusetune.backbones.backbone import Backbone
from fusetune.evaluation.measure.judge import Candidate
from fusetune.inference.text_vectors import text_vectors
from fusetune.tasks.abilities import Choosing
from fusetune.tasks.base import TargetTask
from fusetune.training.probes.probe import SplitRows
from fusetune.types import TextTokens

SCALES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
"""What cosines may be multiplied by before the softmax; validation rows choose."""


def guesses(task: TargetTask, train: SplitRows, test: SplitRows) -> list[Candidate]:
    """Return the rules that need no model as systems; none for a task that does not choose among texts.

    Args:
        task: fitted.
        train: the rows that give rates.
        test: the rows to predict.
    """
    if not isinstance(task, Choosing):
        return []
    return [
        Candidate(guess.name, "baseline", guess.description, guess.answers)
        for guess in task.guesses(train.truth, test.truth)
    ]


def similarity(
    task: TargetTask, backbone: Backbone, val: SplitRows, test: SplitRows, device: torch.device
) -> list[Candidate]:
    """Return the choice whose frozen embedding is nearest to the context's as a system; none for other tasks.

    Args:
        task: fitted.
        backbone: a text encoder, not tuned; it is moved to the device.
        val: the rows that choose the factor of the cosines, which makes probabilities of them.
        test: the rows to predict.
        device: to compute on.
    """
    if not isinstance(task, Choosing) or task.reads is None or not backbone.pretrained:
        return []
    backbone.to(device)
    tokens, cosines = _cosines(task, backbone, test)
    if tokens is None:
        return []
    scale = 1.0
    val_tokens, val_cosines = _cosines(task, backbone, val)
    if val_tokens is not None:
        losses = {
            scale: task.evaluate(task.from_scores([scale * own for own in val_cosines], val_tokens), val.truth)[
                "log_loss"
            ]
            for scale in SCALES
        }
        scale = min(losses, key=lambda scale: losses[scale])
    what = (
        "the choice whose frozen embedding has the highest cosine with the context's; probabilities are the softmax of "
        f"{scale:g} cosines"
    )
    answers = task.from_scores([scale * own for own in cosines], tokens)
    return [Candidate("cosine of embeddings", "before", what, answers, [task.reads])]


def _cosines(task: Choosing, backbone: Backbone, split: SplitRows) -> tuple[TextTokens | None, list[np.ndarray]]:
    """Return a split's choices and, by row, their cosines with the context, (choices,), NaN for blank ones.

    A row without a context has zeros. If no row has one, there are no choices either.
    """
    assert task.reads is not None
    tokens = split.examples.tokens(task.reads, split.indices)
    rows = task.texts(tokens)
    if not any(context for context, _ in rows):
        return None, []
    texts = sorted({text for context, choices in rows for text in (context, *choices) if text.strip()})
    vectors = dict(zip(texts, text_vectors(backbone, texts), strict=True))
    cosines = []
    for context, choices in rows:
        about = vectors.get(context)
        own = [np.nan if c not in vectors else 0.0 if about is None else float(vectors[c] @ about) for c in choices]
        cosines.append(np.array(own))
    return tokens, cosines
