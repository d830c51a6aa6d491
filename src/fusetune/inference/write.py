"""Write the answers of rows: prompts of like length together, equal ones once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fusetune.backbones.language import Embedded, LanguageModel
from fusetune.config.prompt import GenerationConfig
from fusetune.data.column import Progress
from fusetune.data.examples import Examples
from fusetune.errors import ConfigError
from fusetune.inference.choices import choice_scores
from fusetune.inference.constraints import grammar_of
from fusetune.inference.decoding import Decoding, Step, beam_search, check_numbers, decode
from fusetune.inference.memory import retain_freed_memory, trim_memory
from fusetune.inference.predict import evaluating, model_device
from fusetune.modalities.prompt import PromptModality
from fusetune.models.generate import Generate
from fusetune.tasks.abilities import Writes
from fusetune.types import Batch

TOKENS, ROWS = {"cpu": 4096, "cuda": 65_536}, {"cpu": 64, "cuda": 512}
"""Most tokens, of prompts and answers, and rows that are decoded together, by type of device."""
END, LENGTH, STOP, CHOICE, STUCK = "end", "length", "stop", "choice", "stuck"
"""Why an answer ends: by itself, as it was as long as it may be, at a stop text, as it is one of the choices, or as no
token of the vocabulary continues it by the constraint."""


@dataclass
class Written:
    """Rows' answers.

    Attributes:
        texts: (rows,) of dtype object.
        log_probabilities: (rows,) float32: of the answer's tokens, summed; of a choice, among the choices.
        finish: (rows,) of dtype object: "end", "length", "stop", "choice" or "stuck".
        choices: (rows, choices) float32, the log-probability of each choice among them; no choices if answers are free.
    """

    texts: np.ndarray
    log_probabilities: np.ndarray
    finish: np.ndarray
    choices: np.ndarray

    @classmethod
    def empty(cls, rows: int, *, choices: int = 0) -> Written:
        """Return room for the answers of rows."""
        scores = np.zeros((rows, choices), dtype=np.float32)
        return cls(np.empty(rows, dtype=object), np.zeros(rows, dtype=np.float32), np.empty(rows, dtype=object), scores)

    def take(self, rows: np.ndarray) -> Written:
        """Return the answers of some rows, (rows,) int64."""
        return Written(self.texts[rows], self.log_probabilities[rows], self.finish[rows], self.choices[rows])


def decoding_of(settings: GenerationConfig, task: Writes) -> Decoding:
    """Return how a task's answers are written by the settings.

    Raises:
        ConfigError: a constraint is invalid.
    """
    own = settings.model_dump(include={"beams", "temperature", "top_p", "top_k", "seed"})
    return Decoding(
        settings.max_tokens or task.max_tokens,
        stop=tuple(settings.stop),
        choices=tuple(settings.choices),
        grammar=grammar_of(settings.regex, settings.json_schema),
        **own,
    )


def write(
    model: Generate,
    name: str,
    task: Writes,
    examples: Examples,
    indices: np.ndarray,
    decoding: Decoding,
    *,
    progress: Progress | None = None,
) -> Written:
    """Write the answers of rows, in their order.

    Rows with equal cells are answered once, unless answers are drawn. The answers do not depend on which rows share a
    batch, up to the rounding of sums.

    Args:
        model: in any mode and on any device.
        name: the task's name in the model.
        task: fitted.
        examples: prepared rows.
        indices: (rows,) positions in the table.
        decoding: how they are written.
        progress: wraps the iterator over batches.

    Raises:
        ConfigError: the model has no positions for so long an answer.
    """
    _check_room(model, task, examples, decoding)
    indices = np.asarray(indices, dtype=np.int64)
    if not len(indices):
        return Written.empty(0, choices=len(decoding.choices))
    if not (heard := _heard(model, examples, indices)).all():
        result = Written.empty(len(indices), choices=len(decoding.choices))
        result.log_probabilities[:], result.choices[:] = np.nan, np.nan
        some = write(model, name, task, examples, indices[heard], decoding, progress=progress)
        _put(result, np.flatnonzero(heard), some)
        return result
    keys = np.stack([column.codes[indices] for column in examples.columns.values()], 1)
    first, inverse = np.arange(len(indices)), np.arange(len(indices))
    if not decoding.temperature:
        _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    distinct = indices[first]
    result, device = Written.empty(len(distinct), choices=len(decoding.choices)), model_device(model)
    behind = decoding.max_tokens
    if decoding.choices:
        behind = task.candidates(decoding.choices).values.numel()
    groups = list(_groups(examples.sizes(distinct), behind, decoding.beams, device.type))
    steps: Iterator[np.ndarray] = iter(groups)
    if progress is not None:
        steps = progress(steps, "writing", len(groups))
    with evaluating(model), retain_freed_memory():
        for group in steps:
            batch = _without_targets(examples.batch(distinct[group]).to(device))
            _put(result, group, _written(model, name, task, batch, decoding))
            trim_memory()
    return result.take(inverse.reshape(-1))


def _heard(model: Generate, examples: Examples, indices: np.ndarray) -> np.ndarray:
    """Return which rows can be answered, (rows,) bool: by a model of speech those with a sound, by others all."""
    if not model.language.hears:
        return np.ones(len(indices), dtype=bool)
    has = [examples.columns[name].codes[indices] >= 0 for name in model.columns]
    return np.asarray(np.all(has, axis=0))


def _check_room(model: Generate, task: Writes, examples: Examples, decoding: Decoding) -> None:
    """Refuse answers that are longer than the model has positions behind the longest prompt that it may read.

    Raises:
        ConfigError: they are.
    """
    language, modality = model.language, examples.columns[task.prompt].modality
    if language.limit is None:
        return
    assert isinstance(modality, PromptModality)
    room = language.limit - (0 if language.seq2seq else modality.max_tokens)
    if decoding.max_tokens > room:
        raise ConfigError(
            "the language model has no positions for so long an answer",
            expected=f"at most {room} tokens behind a prompt of {modality.max_tokens}",
            came=f"max_tokens={decoding.max_tokens}",
            do="lower generation.max_tokens, or tune with a lower prompt.max_tokens",
        )


def _groups(sizes: np.ndarray, behind: int, beams: int, device: str) -> Iterator[np.ndarray]:
    """Yield the rows of each batch, (rows,) int64, from the longest prompts to the shortest.

    Args:
        sizes: of the prompts.
        behind: tokens behind a prompt.
        beams: continuations of each.
        device: its type.
    """
    order = np.argsort(-sizes, kind="stable")
    tokens, rows = TOKENS.get(device, TOKENS["cpu"]), ROWS.get(device, ROWS["cpu"])
    start = 0
    while start < len(order):
        width = (int(sizes[order[start]]) + behind) * beams
        num = max(1, min(rows, tokens // max(width, 1)))
        yield order[start : start + num]
        start += num


def _without_targets(batch: Batch) -> Batch:
    batch.targets = {}
    return batch


def _put(result: Written, at: np.ndarray, part: Written) -> None:
    result.texts[at], result.finish[at] = part.texts, part.finish
    result.log_probabilities[at], result.choices[at] = part.log_probabilities, part.choices


def _written(model: Generate, name: str, task: Writes, batch: Batch, decoding: Decoding) -> Written:
    """Return the answers of a batch."""
    prompt = model.read(name, batch)
    if decoding.choices:
        return _chosen(model, task, prompt, decoding)
    if decoding.beams > 1:
        answers = beam_search(model.language, prompt, decoding)
        scores = _scores(model, prompt, answers)
        return _finished(model, answers, scores, decoding, [False] * len(answers))
    return _decoded(model, prompt, decoding, batch.rows.tolist())


def _decoded(model: Generate, prompt: Embedded, decoding: Decoding, rows: Sequence[int]) -> Written:
    """Return the answers of greedy decoding, or of draws."""
    ids: list[list[int]] = [[] for _ in rows]
    scores, stopped, stuck = np.zeros(len(rows), dtype=np.float32), set[int](), set[int]()
    for step in decode(model.language, prompt, decoding, rows, stopped=stopped, stuck=stuck):
        _collect(step, ids, scores)
        if decoding.stop:
            texts = {row: model.language.decode(ids[row]) for row in step.rows.tolist()}
            stopped |= {row for row, text in texts.items() if any(stop in text for stop in decoding.stop)}
    result = _finished(model, ids, scores, decoding, [row in stopped for row in range(len(rows))])
    result.finish[sorted(stuck)] = STUCK
    return result


def _collect(step: Step, ids: list[list[int]], scores: np.ndarray) -> None:
    for row, token in zip(step.rows.tolist(), step.ids.tolist(), strict=True):
        ids[row].append(token)
    scores[step.rows] += step.log_probabilities


def _finished(
    model: Generate, ids: Sequence[Sequence[int]], scores: np.ndarray, decoding: Decoding, stopped: Sequence[bool]
) -> Written:
    """Return the texts of ids, cut before a stop text."""
    result = Written.empty(len(ids))
    result.log_probabilities[:] = scores
    for row, own in enumerate(ids):
        text = model.language.decode(own)
        cuts = [at for stop in decoding.stop if (at := text.find(stop)) >= 0]
        result.texts[row] = (text[: min(cuts)] if cuts else text).strip()
        ended = bool(own) and own[-1] in model.language.end_ids
        result.finish[row] = STOP if stopped[row] or cuts else END if ended else LENGTH
    return result


def _scores(model: Generate, prompt: Embedded, answers: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the log-probabilities of answers, (rows,) float32."""
    padded = np.full((len(answers), max(1, *map(len, answers))) if answers else (0, 1), -1, dtype=np.int64)
    for row, own in enumerate(answers):
        padded[row, : len(own)] = own
    scores = model.language.log_likelihoods(prompt, torch.from_numpy(padded).to(prompt.values.device))
    sums = scores[..., 0].sum(1)
    check_numbers(sums)
    return np.asarray(sums.cpu().numpy())


def _chosen(model: Generate, task: Writes, prompt: Embedded, decoding: Decoding) -> Written:
    """Return the likeliest of the choices for each row, and its log-probability among them."""
    ids, rows = task.candidates(decoding.choices).values.to(prompt.values.device), len(prompt.lengths)
    sums = choice_scores(model.language, prompt, ids)
    check_numbers(sums)
    scores = sums.log_softmax(1).cpu().numpy()
    best = scores.argmax(1)
    result = Written.empty(rows, choices=len(decoding.choices))
    result.choices[:] = scores
    result.texts[:] = [decoding.choices[index] for index in best]
    result.log_probabilities[:] = scores[np.arange(rows), best]
    result.finish[:] = CHOICE
    return result


def stream(
    model: Generate, name: str, task: Writes, examples: Examples, decoding: Decoding, *, index: int = 0
) -> Iterator[str]:
    """Return an iterator over the pieces of one row's answer, as they are written; together they are the answer.

    Beams and choices give the answer as one piece.

    Args:
        model: in any mode and on any device.
        name: the task's name in the model.
        task: fitted.
        examples: prepared rows.
        decoding: how it is written.
        index: the row's position in the table.

    Raises:
        ConfigError: the model has no positions for so long an answer.
    """
    _check_room(model, task, examples, decoding)
    if decoding.beams > 1 or decoding.choices:
        return iter(write(model, name, task, examples, np.array([index]), decoding).texts.tolist())
    return _pieces(model, name, examples, index, decoding)


def _pieces(model: Generate, name: str, examples: Examples, index: int, decoding: Decoding) -> Iterator[str]:
    """Yield the pieces of a row's answer."""
    batch = _without_targets(examples.batch(np.array([index])).to(model_device(model)))
    with evaluating(model):
        prompt = model.read(name, batch)
    yield from stream_prompt(model.language, prompt, decoding, row=int(batch.rows[0]))


def stream_prompt(
    language: LanguageModel, prompt: Embedded, decoding: Decoding, *, row: int, written: list[int] | None = None
) -> Iterator[str]:
    """Yield the pieces of the answer to one prompt as they are written; together they are the answer.

    Args:
        language: in any mode and on any device.
        prompt: of one row.
        decoding: without beams or choices.
        row: the row's id, by which draws differ.
        written: gets the ids of the answer's tokens as they are written.
    """
    ids: list[int] = [] if written is None else written
    yielded, stopped, held = "", set[int](), max([0, *(len(stop) - 1 for stop in decoding.stop)])
    steps = decode(language, prompt, decoding, [row], stopped=stopped)
    while True:
        with evaluating(language):  # not while the caller has a piece
            step = next(steps, None)
        if step is not None:
            ids.append(int(step.ids[0]))
        text = language.decode(ids).strip()
        cuts = [at for stop in decoding.stop if (at := text.find(stop)) >= 0]
        if cuts:
            stopped.add(0)
            text = text[: min(cuts)].rstrip()
        elif step is not None:  # what may be part of a stop text, or half a character, waits
            text = text[: len(text) - held].rstrip("\ufffd")
        if text.startswith(yielded) and len(text) > len(yielded):
            yield text[len(yielded) :]
            yielded = text
        if step is None:
            return
