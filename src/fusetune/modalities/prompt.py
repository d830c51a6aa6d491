"""The prompt of a language model: a row's cells in a template, as token ids with places for learned vectors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fusetune.backbones.special_tokens import BREAK
from fusetune.errors import BackboneError, BadCell, ConfigError
from fusetune.modalities.base import Detection
from fusetune.modalities.messages import chat_text, last_turn, parse_messages
from fusetune.modalities.on_backbone import BackboneModality
from fusetune.modalities.template import Template
from fusetune.modalities.words import MAX_CHARS, check_text, is_blank
from fusetune.types import Message

if TYPE_CHECKING:
    from fusetune.backbones.language import LanguageModel

OPEN, CLOSE = "\ue000", "\ue001"
"""Characters of private use around the number of a soft column, in a rendered prompt; cells lose theirs."""
_PLACE = re.compile(f"{OPEN}([0-9]+){CLOSE}")
_MARKS = {ord(mark): "\ufffd" for mark in (OPEN, CLOSE, BREAK)}
SOFT = 4096
"""An id below 0 is a place for a vector: −1 − (SOFT · column + number of the column's vector)."""
MOST_ANSWER, SHORTEST = 256, 8
"""Most tokens of an answer if the user does not say otherwise, and least of a prompt."""
MOST_CHATS = 2**16
"""Chats whose ids are kept in memory, where all of the assistant's messages are learned."""
CUTS = 12
"""How often a prompt that is too long is cut and rendered again, at most."""


class PromptModality(BackboneModality):
    """The text that a language model reads of a row: a template that the row's cells fill.

    A cell is a list of the cells of the columns in the template, then, with soft columns, a list of which of these the
    row has. Its example is the prompt's token ids, (tokens,) int32; those below 0 are places of soft columns' vectors.

    Attributes:
        num_truncated: number of prompts that were longer than `max_tokens`.
    """

    kind = "prompt"
    backbone: LanguageModel

    def __init__(
        self,
        column: str,
        *,
        backbone: LanguageModel,
        template: str = "",
        messages: str | None = None,
        turns: str = "last",
        join: Sequence[Any],
        soft: Sequence[str] = (),
        soft_tokens: int = 4,
        system: str = "",
        language: str = "en",
        chat: str = "auto",
        max_tokens: int = 512,
        answer_tokens: int | None = None,
        projector: str = "mlp",
        noise: float = 0.0,
    ) -> None:
        """
        Args:
            column: the column's name.
            backbone: the language model.
            template: see `Template`; "" where the prompt is a chat.
            messages: the column of chats, each of which is a prompt up to the assistant's last turn; None if the prompt
                is a template's.
            turns: which of the assistant's messages are learned, "last" or "all"; see `PromptConfig`.
            join: names of the columns whose cells a cell has, then `{"present": soft}` if there are soft columns.
            soft: names of the columns that enter as vectors.
            soft_tokens: vectors of each.
            system, language, chat: see `PromptConfig`.
            max_tokens: most tokens of a prompt; fewer if the model has no room for an answer behind so many.
            answer_tokens: most tokens of an answer; None: 256, or half of the model's positions.
            projector, noise: see `PromptConfig`.

        Raises:
            ConfigError: the model has no room for so long an answer.
        """
        super().__init__(column, backbone=backbone)
        template, system = _unmarked(template), _unmarked(system)
        self.messages, self.turns = messages, turns
        self._turn_ids: dict[bytes, np.ndarray] = {}
        self.template, self.soft, self.soft_tokens = Template(template), list(soft), soft_tokens
        self.system, self.chat = system, chat
        self.answer_tokens, self.most_answer_tokens = answer_tokens, _room(backbone, answer_tokens)
        limit = None if backbone.seq2seq or backbone.limit is None else backbone.limit - self.most_answer_tokens
        self.max_tokens = max_tokens if limit is None else min(max_tokens, limit)
        self.projector, self.noise, self.parts = projector, noise, list(join)
        self.join = [name for name in join if isinstance(name, str)]
        self.num_truncated = 0
        chat = chat if messages is None else "yes"
        if turns == "all" and (messages is None or backbone.seq2seq or backbone.hears):
            raise ConfigError(
                "all of the assistant's messages are learned of chats, by a decoder",
                came="no chats" if messages is None else f"{backbone.source}, an encoder with a decoder",
                do="leave out prompt.turns, or name a decoder such as text=smollm2",
            )
        self.language = language
        self.frame = backbone.frame(chat, system, ends_in_space=template[-1:].isspace(), spoken=language)

    @classmethod
    def detect(cls, values: Sequence[Any], *, base_dir: Path) -> Detection:
        """Return 0: prompts are made, not found in tables."""
        return Detection(0.0, "prompts are made of other columns")

    def decode(self, cell: Any, *, row: int, base_dir: Path) -> np.ndarray:
        """Return the token ids of a row's prompt, (tokens,) int32.

        Raises:
            BadCell: a cell holds half a character, everything is blank, or a chat cannot be read.
        """
        if self.turns == "all":
            ids = self._marked(cell, row=row)
            return np.where(ids < 0, -2 - ids, ids)
        if self.messages is not None:
            return np.asarray(self._chat(self._before(cell, row=row)), dtype=np.int32)
        cells, present = self._cells(cell, row=row)
        return np.asarray(self._encode(cells, present), dtype=np.int32)

    def text(self, cell: Any, *, row: int = 0) -> str:
        """Return a row's prompt as the language model reads it, with the names of soft columns in angle brackets."""
        if self.messages is not None:
            return self._asked(self._before(cell, row=row)).replace(BREAK, "")
        cells, present = self._cells(cell, row=row)
        rendered = self._rendered(cells, present).replace(BREAK, "")
        return _PLACE.sub(lambda match: f"<{self.soft[int(match[1])]}>", rendered)

    def _before(self, cell: Any, *, row: int) -> list[Message]:
        """Return a chat's messages before the assistant's last turn, which a chat that is to be answered lacks."""
        assert self.messages is not None
        entry = cell[0] if isinstance(cell, list) and len(cell) == 1 else cell
        messages = parse_messages(entry, row=row, column=self.messages)
        if messages and messages[-1].role == "assistant":
            messages = last_turn(messages, row=row, column=self.messages)[0]
        if media := next((message.media[0] for message in messages if message.media), None):
            why, do = f"a message has an {media.type}", "give it as a column of its own, named in a template"
            raise BadCell(row=row, column=self.messages, value=cell, why=why, do=do)
        for message in messages:
            check_text(message.text, row=row, column=self.messages)
        return [replace(message, content=self._given(message.text)) for message in messages]

    def earlier_turns(self, cell: Any) -> list[int]:
        """Return the end of a chat's prompt, from the assistant's first message that is learned on.

        Returns:
            The ids of these messages, and −2 − id for the other tokens; none without such a message.
        """
        ids = self._marked(cell, row=0)
        learned = np.flatnonzero(ids >= 0)
        return ids[max(int(learned[0]), 1) :].tolist() if len(learned) else []

    def _marked(self, cell: Any, *, row: int) -> np.ndarray:
        """Return a chat's ids before its last answer, (tokens,) int32, −2 − id where the token is not learned.

        Raises:
            BadCell: it is no chat, or the template changes earlier turns.
        """
        entry = cell[0] if isinstance(cell, list) and len(cell) == 1 else cell
        key = blake2b(repr(entry).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if key not in self._turn_ids:
            messages = self._before(cell, row=row)
            try:
                ids = np.asarray(self._fitting(messages, self._chat_turns), dtype=np.int32)
            except BackboneError as error:
                why, do = error.args[0].splitlines()[0], "learn the last message alone: prompt.turns=last"
                raise BadCell(row=row, column=str(self.messages), value=cell, why=why, do=do) from None
            if len(self._turn_ids) >= MOST_CHATS:
                self._turn_ids.clear()
            self._turn_ids[key] = ids
        return self._turn_ids[key]

    def _chat_turns(self, messages: Sequence[Message]) -> list[int]:
        """Return a chat's ids, −2 − id where the token is not part of a message of the assistant's that is learned."""
        assert self.frame.template is not None, "a chat's frame has a template"
        messages = [replace(message, content=message.text.strip()) for message in self._told(messages)]
        roles = [message.role for message in messages]
        answers = [
            at
            for at, message in enumerate(messages)
            if message.role == "assistant" and message.learned and "user" in roles[:at] and roles[at - 1] != "assistant"
        ]
        first, *others = self.frame.template.pieces(messages, answers, self.frame.before)
        ids, end = [-2 - token for token in self._ids(first)], self.frame.after
        for answer, context in zip(others[::2], others[1::2], strict=True):
            between = self.backbone.encode(context)
            if between[: len(end)] != end:
                raise BackboneError("the chat template does not end the assistant's messages with an end token")
            ids += [*self.backbone.encode(answer), *end, *(-2 - token for token in between[len(end) :])]
        return ids

    def _told(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Return a chat with the system message of the settings, if it has none."""
        has_system = not self.system or messages[0].role == "system"
        return messages if has_system else [Message("system", self.system), *messages]

    def _asked(self, messages: Sequence[Message]) -> str:
        """Return a chat's text up to where the assistant answers."""
        assert self.frame.template is not None, "a chat's frame has a template"
        return self.frame.template.prompt(self._told(messages))

    def _chat(self, messages: list[Message]) -> list[int]:
        """Return a chat's ids, at most `max_tokens`: the oldest turns that do not fit are left out."""
        return self._fitting(messages, lambda part: self._ids(self._asked(part)))

    def _fitting(self, messages: list[Message], encode: Callable[[Sequence[Message]], list[int]]) -> list[int]:
        """Return the ids of a chat's latest turns that fit into `max_tokens`, by a function that encodes messages."""
        ids = encode(messages)
        self.num_truncated += len(ids) > self.max_tokens
        while len(ids) > self.max_tokens:
            users = [number for number, message in enumerate(messages) if message.role == "user"]
            if len(users) < 2:
                break
            messages = [message for message in messages[: users[0]] if message.role == "system"] + messages[users[1] :]
            ids = encode(messages)
        return ids[-self.max_tokens :]

    def _cells(self, cell: Any, *, row: int) -> tuple[dict[str, str | None], list[str]]:
        """Return the cells as words, by column, and the soft columns that the row has."""
        entries = cell if isinstance(cell, list) else [cell]
        cells = {name: words_of(value) for name, value in zip(self.join, entries, strict=False)}
        for name, text in cells.items():
            if text is not None:
                check_text(text, row=row, column=name)
                cells[name] = self._given(text)
        here = entries[len(self.join)] if self.soft and len(entries) > len(self.join) else []
        present = [name for name, has in zip(self.soft, here, strict=False) if has]
        if not present and all(text is None for text in cells.values()):
            do = "empty the cells if the row is missing"
            raise BadCell(row=row, column=self.column, value=cell, why="there is nothing to read in it", do=do)
        return cells, present

    def _rendered(self, cells: Mapping[str, str | None], present: Sequence[str]) -> str:
        """Return the prompt as text, with places for the soft columns."""
        places = {name: f"{OPEN}{self.soft.index(name)}{CLOSE}" for name in present}
        absent = dict.fromkeys(self.soft)
        return self.frame.prompt(self.filled({**absent, **cells, **places}))

    def filled(self, cells: Mapping[str, str | None]) -> str:
        """Return the template with escaped cells, which make no special tokens with what stands beside them, either."""
        text, special = self.template.fill(cells), self.backbone.special
        if num := special.count(text):
            bare = self.template.fill({name: cell and BREAK for name, cell in cells.items()})
            if num > special.count(bare):
                apart = {name: cell and f"{BREAK}{cell}{BREAK}" for name, cell in cells.items()}
                return self.template.fill(apart)
        return text

    def with_answered(self, pairs: Sequence[tuple[Any, str]]) -> tuple[PromptModality, int]:
        """Return a copy whose prompts begin with answered ones, and the tokens that these take.

        Args:
            pairs: cells of prompts, without soft columns' vectors, and their answers.
        """
        shown, absent = copy(self), dict.fromkeys(self.soft)
        answered = ((self.filled({**absent, **self._cells(cell, row=0)[0]}), self._given(text)) for cell, text in pairs)
        shown.frame = replace(self.frame, answered=tuple(answered))
        return shown, len(shown._ids(shown.frame.prompt("a"))) - len(self._ids(self.frame.prompt("a")))

    def _given(self, text: str) -> str:
        """Return a text of the table as it goes into a prompt or an answer: it marks no places and ends no turns."""
        return self.backbone.escape(_unmarked(text))

    def _encode(self, cells: Mapping[str, str | None], present: Sequence[str]) -> list[int]:
        """Return the prompt's ids, at most `max_tokens`: the longest cell is cut until they fit."""
        cells, ids = dict(cells), self._ids(self._rendered(cells, present))
        was_long = len(ids) > self.max_tokens
        for _ in range(CUTS):
            longest = max(cells, key=lambda name: len(cells[name] or ""), default=None)
            text = cells[longest] if longest is not None else None
            if len(ids) <= self.max_tokens or not text:
                break
            assert longest is not None
            tokens = self.backbone.encode(text)
            keep = max(0, len(tokens) - (len(ids) - self.max_tokens) - 1)
            cells[longest] = self._given(self.backbone.decode(tokens[:keep])) if keep else ""
            ids = self._ids(self._rendered(cells, present))
        self.num_truncated += was_long
        return ids if len(ids) <= self.max_tokens else ids[-self.max_tokens :]

    def _ids(self, text: str) -> list[int]:
        """Return the ids of a rendered prompt, with those of soft columns' places."""
        ids = list(self.frame.start)
        for index, part in enumerate(_PLACE.split(text)):
            if index % 2:
                num = 0 if self.backbone.hears else self.soft_tokens  # what is heard is read beside the prompt
                ids += [-1 - (SOFT * int(part) + number) for number in range(num)]
            elif part:
                ids += self.backbone.encode(part)
        return [*ids, *self.frame.ending]

    def answer(self, text: str) -> list[int]:
        """Return the token ids of an answer, its end included."""
        return [*self.backbone.encode(self.frame.before + self._given(text)), *self.frame.after]

    def size(self, example: np.ndarray) -> int:
        """Return the number of tokens."""
        return len(example)

    def collate(self, examples: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask`, (examples, longest) int64, padded at the right."""
        longest = max(len(ids) for ids in examples)
        ids = torch.zeros((len(examples), longest), dtype=torch.int64)
        mask = torch.zeros((len(examples), longest), dtype=torch.int64)
        for row, example in enumerate(examples):
            ids[row, : len(example)] = torch.from_numpy(np.asarray(example, dtype=np.int64))
            mask[row, : len(example)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def state(self) -> dict[str, Any]:
        """Return the template and how it is read."""
        return {
            "template": self.template.text,
            "messages": self.messages,
            "turns": self.turns,
            "join": self.parts,
            "soft": self.soft,
            "soft_tokens": self.soft_tokens,
            "system": self.system,
            "language": self.language,
            "chat": self.chat,
            "max_tokens": self.max_tokens,
            "answer_tokens": self.answer_tokens,
            "projector": self.projector,
            "noise": self.noise,
        }


def _room(language: LanguageModel, asked: int | None) -> int:
    """Return the most tokens of an answer: those asked for, or `MOST_ANSWER` or half of the model's positions.

    Raises:
        ConfigError: the model has fewer positions, 8 of which are for a prompt.
    """
    if language.limit is None:
        return asked or MOST_ANSWER
    if asked is not None and asked > language.limit - SHORTEST:
        raise ConfigError(
            "prompt.max_answer_tokens leaves no room for a prompt",
            expected=f"at most {language.limit - SHORTEST} for this language model",
            came=str(asked),
        )
    return asked or min(MOST_ANSWER, language.limit // 2)


def words_of(cell: Any) -> str | None:
    """Return a cell as words, None for a missing one: lists with commas, chats by turn, whole numbers as such."""
    if isinstance(cell, list | dict) and (chat := chat_text(cell)) is not None:
        return _unmarked(chat[:MAX_CHARS])
    if isinstance(cell, list | tuple):
        return ", ".join(text for part in cell if (text := words_of(part)) is not None) or None
    if cell is None or (isinstance(cell, str) and is_blank(cell)):
        return None
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float | Decimal) and math.isfinite(cell) and cell == int(cell) and abs(float(cell)) < 2**53:
        return str(int(cell))
    return str(cell)[:MAX_CHARS]


def _unmarked(text: str) -> str:
    """Return a text without the characters that mark places of vectors and breaks."""
    return text.translate(_MARKS)
