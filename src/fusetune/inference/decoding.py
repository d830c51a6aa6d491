"""Decoding: a language model continues embedded prompts, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusetune.backbones.language import Embedded, LanguageModel
from fusetune.errors import BackboneError, ConfigError
from fusetune.inference.constraints import Guide


@dataclass(frozen=True)
class Decoding:
    """How answers are written.

    Attributes:
        max_tokens: most tokens of an answer, its end included.
        beams, temperature, top_p, top_k, seed, stop, choices: see `GenerationConfig`.
        grammar: of `fusetune.inference.constraints`, that answers follow; None if they are free.
    """

    max_tokens: int
    beams: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    grammar: str | None = None


@dataclass
class Step:
    """What one step of decoding gave.

    Attributes:
        rows: (rows,) int64, the prompts that were continued, by their position in the batch.
        ids: (rows,) int64, the token that each was continued with.
        log_probabilities: (rows,) float32, the model's own, of these tokens.
        ended: (rows,) bool, which tokens end their answer.
    """

    rows: np.ndarray
    ids: np.ndarray
    log_probabilities: np.ndarray
    ended: np.ndarray


@dataclass
class State:
    """A batch while it is decoded: the model's cache and what each continued row has read so far."""

    rows: Tensor
    mask: Tensor
    encoded: Any = None
    heard: Tensor | None = None
    cache: Any = None
    positions: Tensor | None = None
    done: list[int] = field(default_factory=list)

    def keep(self, chosen: Tensor) -> None:
        """Go on with some of the rows alone, (kept,) int64."""
        self.rows, self.mask = self.rows[chosen], self.mask[chosen]
        self.cache.batch_select_indices(chosen)
        if self.positions is not None:
            self.positions = self.positions[chosen]
        if self.heard is not None:
            self.heard = self.heard[chosen]
        if self.encoded is not None:
            self.encoded = type(self.encoded)(last_hidden_state=self.encoded.last_hidden_state[chosen])


def decode(
    language: LanguageModel,
    prompt: Embedded,
    decoding: Decoding,
    ids: Sequence[int],
    *,
    stopped: set[int] | None = None,
    stuck: set[int] | None = None,
) -> Iterator[Step]:
    """Continue prompts greedily, or by draws at a temperature, until each has ended or is as long as it may be.

    A row's draws depend on the seed, its id and the number of the token alone, so that a batch's answers are those of
    its rows one by one.

    Args:
        language: in evaluation mode.
        prompt: of the rows.
        decoding: without beams or choices.
        ids: (rows,) the row ids.
        stopped: rows that the caller adds to it are not continued.
        stuck: gets the rows that end as no token continues them by the grammar.

    Raises:
        BackboneError: the model's logits are NaN.
    """
    state, logits = started(language, prompt)
    ends = torch.tensor(language.end_ids, device=logits.device)
    draws = [np.random.default_rng([decoding.seed, abs(int(row))]) for row in ids] if decoding.temperature else []
    guide = None if decoding.grammar is None else Guide(language, decoding.grammar, len(ids))
    for number in range(decoding.max_tokens):
        logits, rows = logits.float(), state.rows.tolist()
        total = logits.logsumexp(-1)
        check_numbers(total)
        if language.suppressed:
            logits[:, language.suppressed] = -torch.inf
        allowed, without = (logits, []) if guide is None else guide.masked(logits, rows)
        chosen = _drawn(allowed, decoding, [draws[row] for row in rows]) if draws else allowed.argmax(-1)
        if guide is not None:
            going = [number for number, row in enumerate(rows) if row not in without]
            guide.take([rows[number] for number in going], chosen[going].tolist())
            chosen[[row in without for row in rows]] = ends[0]
            stuck = set() if stuck is None else stuck
            stuck.update(without)
        scores = logits.gather(-1, chosen.unsqueeze(-1)).squeeze(-1) - total
        ended = torch.isin(chosen, ends)
        yield Step(*(part.cpu().numpy() for part in (state.rows, chosen, scores, ended)))
        if stopped:
            ended = ended | torch.tensor([row in stopped for row in state.rows.tolist()], device=ended.device)
        rest = (~ended).nonzero().squeeze(1)
        if not len(rest) or number + 1 == decoding.max_tokens:
            return
        if len(rest) < len(ended):
            state.keep(rest)
        logits = _continued(language, state, chosen[rest])


def check_numbers(scores: Tensor) -> None:
    """Refuse scores that are NaN, by which no token can be chosen.

    Raises:
        BackboneError: some are.
    """
    if bool(scores.isnan().any()):
        raise BackboneError(
            "the language model computes NaN, so it cannot write an answer",
            expected="logits that are numbers",
            came=f"NaN for {int(scores.isnan().sum())} of {scores.numel()} answers of a batch",
            do="check its weights; take a checkpoint in float32 or bfloat16, or tune again with a lower learning rate",
        )


def started(language: LanguageModel, prompt: Embedded) -> tuple[State, Tensor]:
    """Read the prompts; return the state and the logits of the first tokens, (rows, vocabulary)."""
    model: Any = language.model
    rows = torch.arange(len(prompt.lengths), device=prompt.values.device)
    if language.seq2seq:
        encoder = model.get_encoder()
        encoded = encoder(inputs_embeds=prompt.values, attention_mask=prompt.mask)
        state = State(rows, prompt.mask, encoded=encoded)
        return state, _continued(language, state, rows.new_full((len(rows),), language.start_id))
    values, mask = prompt.at_the_end()
    options: dict[str, Any] = {}
    if language.takes_positions:
        options["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    read = Embedded(values, prompt.lengths, prompt.heard)
    out = language.run(read, attention_mask=mask, use_cache=True, logits_to_keep=1, **options)
    state = State(rows, mask, heard=prompt.heard, cache=out.past_key_values)
    state.positions = prompt.lengths - 1 if language.takes_positions else None
    return state, out.logits[:, -1]


def _continued(language: LanguageModel, state: State, ids: Tensor) -> Tensor:
    """Read a token of each row; return the logits of the next ones, (rows, vocabulary)."""
    model: Any = language.model
    if language.seq2seq:
        out = model(
            encoder_outputs=state.encoded,
            attention_mask=state.mask,
            decoder_input_ids=ids.unsqueeze(1),
            past_key_values=state.cache,
            use_cache=True,
        )
    else:
        options: dict[str, Any] = {}
        state.mask = torch.cat([state.mask, state.mask.new_ones(len(ids), 1)], 1)
        if state.positions is not None:
            state.positions = state.positions + 1
            options["position_ids"] = state.positions.unsqueeze(1)
        options |= {"attention_mask": state.mask, "past_key_values": state.cache}
        out = language.run(input_ids=ids.unsqueeze(1), heard=state.heard, use_cache=True, **options)
    state.cache = out.past_key_values
    logits: Tensor = out.logits[:, -1]
    return logits


def _drawn(logits: Tensor, decoding: Decoding, draws: Sequence[np.random.Generator]) -> Tensor:
    """Return a token a row, (rows,), drawn at the temperature among the likeliest (nucleus sampling: Holtzman et al.
    2020, arXiv 1904.09751)."""
    sorted_logits, order = (logits / decoding.temperature).sort(dim=-1, descending=True)
    if decoding.top_k:
        sorted_logits, order = sorted_logits[:, : decoding.top_k], order[:, : decoding.top_k]
    sums = sorted_logits.double().softmax(-1).cumsum(-1)  # (rows, vocabulary)
    # A token is left out if those before it make up the share; the first never is.
    within = (sums - sums.diff(dim=-1, prepend=sums.new_zeros(len(sums), 1)) < decoding.top_p).sum(-1, keepdim=True)
    total = sums.gather(-1, within - 1)
    points = torch.tensor([generator.random() for generator in draws], device=logits.device, dtype=sums.dtype)
    index = torch.searchsorted(sums, points.unsqueeze(-1) * total, right=True)
    return order.gather(-1, torch.minimum(index, within - 1)).squeeze(-1)


def beam_search(language: LanguageModel, prompt: Embedded, decoding: Decoding) -> list[list[int]]:
    """Return the ids of each row's best of `decoding.beams` beams, its end included, by transformers' search."""
    model: Any = language.model
    if language.hears:
        raise ConfigError("beams are not for models of speech", came=f"beams={decoding.beams}", do="leave them out")
    values, mask = (prompt.values, prompt.mask) if language.seq2seq else prompt.at_the_end()
    ends = language.end_ids
    start = {"decoder_start_token_id": language.start_id} if language.seq2seq else {}
    found = model.generate(
        inputs_embeds=values,
        attention_mask=mask,
        num_beams=decoding.beams,
        do_sample=False,
        max_new_tokens=decoding.max_tokens,
        eos_token_id=ends,
        pad_token_id=ends[0],
        **start,
    )
    answers = []
    for own in found.tolist():
        own = own[1:] if language.seq2seq else own
        end = next((number for number, token in enumerate(own) if token in ends), None)
        answers.append(own if end is None else own[: end + 1])
    return answers
