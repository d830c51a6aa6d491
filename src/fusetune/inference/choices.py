"""The likelihoods of a closed set of answers: each prompt is read once, and every answer continues it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from fusetune.backbones.language import CHUNK, Embedded, LanguageModel
from fusetune.inference.decoding import State, started

TOKENS = 2**14
"""Most positions, of prompts and choices, whose states are held together."""


def choice_scores(language: LanguageModel, prompt: Embedded, ids: Tensor) -> Tensor:
    """Return the log-likelihood of each choice behind each prompt, (rows, choices) float32.

    Args:
        language: in evaluation mode.
        prompt: of the rows.
        ids: (choices, tokens) int64, each with its end, −1 behind it.
    """
    state, logits = started(language, prompt)
    rows, longest = len(prompt.lengths), ids.shape[1]
    size = TOKENS // (rows * (prompt.values.shape[1] + longest))
    if language.seq2seq or not language.plain_head:
        size = min(size, CHUNK // (rows * longest * language.vocabulary))
    parts = []
    size = max(1, size)
    for some in (ids[start : start + size] for start in range(0, len(ids), size)):
        follows = _following(language, state, some)
        first = logits.float().log_softmax(-1)[:, some[:, 0].clamp(min=0)]  # (rows, choices)
        parts.append(first.masked_fill(some[:, 0] < 0, 0) + follows)
    return torch.cat(parts, 1)


def _following(language: LanguageModel, state: State, ids: Tensor) -> Tensor:
    """Return the log-likelihood of the choices' tokens behind the first, (rows, choices)."""
    rows, num = len(state.rows), len(ids)
    if ids.shape[1] == 1:
        return torch.zeros(rows, num, device=ids.device)
    owner = torch.arange(rows, device=ids.device).repeat_interleave(num)
    inputs, answer = ids[:, :-1].repeat(rows, 1), ids[:, 1:].repeat(rows, 1)  # (rows · choices, tokens − 1)
    if language.seq2seq:
        scores = _decoder_scores(language, state, owner, inputs, answer)
    else:
        scores = _continued_scores(language, state, owner, inputs, answer)
    return scores.sum(1).view(rows, num)


def _decoder_scores(language: LanguageModel, state: State, owner: Tensor, inputs: Tensor, answer: Tensor) -> Tensor:
    start = inputs.new_full((len(inputs), 1), language.start_id)
    encoded = type(state.encoded)(last_hidden_state=state.encoded.last_hidden_state[owner])
    out = language.model(
        encoder_outputs=encoded,
        attention_mask=state.mask[owner],
        decoder_input_ids=torch.cat([start, inputs.clamp(min=0)], 1),
        use_cache=False,
    )
    return language.of_logits(out.logits[:, 1:], answer)[..., 0]


def _continued_scores(language: LanguageModel, state: State, owner: Tensor, inputs: Tensor, answer: Tensor) -> Tensor:
    cache = copy.deepcopy(state.cache)
    cache.batch_select_indices(owner)
    options: dict[str, Any] = {"attention_mask": torch.cat([state.mask[owner], (inputs >= 0).to(state.mask.dtype)], 1)}
    if state.positions is not None:
        steps = torch.arange(1, inputs.shape[1] + 1, device=inputs.device)
        options["position_ids"] = state.positions[owner].unsqueeze(1) + steps
    options |= {"input_ids": inputs.clamp(min=0), "past_key_values": cache, "use_cache": True}
    if language.plain_head:
        base: Any = language.model.base_model
        return language.of_hidden(base(**options).last_hidden_state, answer)[..., 0]
    heard = None if state.heard is None else state.heard[owner]
    return language.of_logits(language.run(heard=heard, **options).logits, answer)[..., 0]
