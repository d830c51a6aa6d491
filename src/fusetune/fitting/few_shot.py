"""An untuned language model with some answered train rows in its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fusetune.data.column import Column
from fusetune.data.examples import Examples
from fusetune.modalities.prompt import PromptModality
from fusetune.tasks.abilities import Writes
from fusetune.tasks.panels.written import first_of
from fusetune.training.probes.probe import SplitRows

MOST_TOKENS = 512
"""Most tokens of the answered rows, and most positions that a model without a limit of its own is taken to know."""
DRAWN = 200
"""Train rows among which the answered ones are chosen: those that are not longer than most."""


def with_answered_rows(
    examples: Examples, rows: np.ndarray, task: Writes, train: SplitRows, *, num: int, answer_tokens: int, seed: int
) -> tuple[Examples, int] | None:
    """Return rows whose prompts begin with answered train rows, and the number of these.

    Args:
        examples: prepared rows.
        rows: (rows,) positions in the table of those that are to be answered.
        task: fitted.
        train: the train rows that have the target.
        num: the most answered rows; fewer if no more fit into the model's positions, with prompt and answer.
        answer_tokens: most tokens of an answer.
        seed: of the choice.

    Returns:
        None if not one fits, or if prompts are chats or heard.
    """
    column = examples.columns[task.prompt]
    modality = column.modality
    assert isinstance(modality, PromptModality)
    if task.chats or modality.backbone.hears or not len(train.indices) or not len(rows):
        return None
    language, longest = modality.backbone, int(column.costs(column.codes[rows]).max())
    room = (language.limit or MOST_TOKENS) - longest - (0 if language.seq2seq else answer_tokens)
    pairs = _pairs(modality, task, train, num, seed)
    for size in range(len(pairs), 0, -1):
        shown, tokens = modality.with_answered(pairs[:size])
        if tokens <= min(room, MOST_TOKENS):
            shown.max_tokens = tokens + longest
            replaced = Column(shown, examples.table, task.prompt)
            replaced.decode_all(2**30, None)
            replaced.codes[list(replaced.unread())] = -1
            return examples.reading(examples.table, {**examples.columns, task.prompt: replaced}), size
    return None


def _pairs(modality: PromptModality, task: Writes, train: SplitRows, num: int, seed: int) -> Sequence[tuple[Any, str]]:
    """Return the cells of the prompts and the answers of some train rows, drawn among the shorter half."""
    drawn = np.random.default_rng(seed).permutation(len(train.indices))[:DRAWN]
    column, rows = train.examples.columns[task.prompt], train.indices[drawn]
    answers = [first_of(train.truth[at]) for at in drawn]
    lengths = column.costs(column.codes[rows]) + np.array([len(modality.answer(text)) for text in answers])
    chosen = np.flatnonzero((lengths <= np.median(lengths)) & (column.codes[rows] >= 0))[:num]
    cells = train.examples.table.cells(task.prompt, rows[chosen])
    return [(cell, answers[at]) for cell, at in zip(cells, chosen, strict=True)]
