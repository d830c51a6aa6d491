"""Texts that are read token by token, in pairs, or in parts: what a text column's cell becomes, and its tensors.

A cell is decoded to a table of tokens with the columns of `FIELDS`, one row a token, as a flat int32 array. Long texts
become several overlapping windows; a cell's windows (or its choices) are rows of the encoder's batch.

Legend: cells = distinct cells of a batch, windows = rows of the encoder's batch, tokens = tokens that a cell gives.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from fusetune.backbones.inputs import TextInputs
from fusetune.errors import BadCell
from fusetune.modalities.markers import mark_entities, with_tags
from fusetune.modalities.words import is_blank, words_text
from fusetune.types import TextTokens

if TYPE_CHECKING:
    from fusetune.backbones.load import Backbone

FIELDS = ("id", "type", "text", "start", "end", "window", "token")
"""Of a token: its id; its token type; which of the cell's texts it comes from, -1 for a special token; its first
character there and the one after its last; its window; which of the cell's tokens it gives, -1 for none. With
"choices" a window is a choice, and the text of its tokens is the choice's number."""
ID, TYPE, TEXT, START, END, WINDOW, TOKEN = range(len(FIELDS))
WIDTH = len(FIELDS)

Read = Literal["vector", "tokens", "answer", "choices", "markers"]
"""vector: a cell is one vector. tokens: one vector a token of the (last) text. answer: the same, after a first token
that stands for no answer. choices: one vector a choice, each read together with the texts before; blank choices have
none. markers: the vectors of two marked entities' first markers, side by side."""
OVERLAP = 4
"""Windows overlap by a part of this of their tokens."""


def rows_of(example: np.ndarray) -> np.ndarray:
    """Return a decoded cell as its table of tokens, (tokens, `WIDTH`) int32."""
    return example.reshape(-1, WIDTH)


@dataclass(frozen=True)
class Passages:
    """Reads cells of one text or of several.

    Attributes:
        backbone: a text encoder.
        read: what a cell gives.
        joined: names of the columns that a cell's texts come from; empty for a column's own text. With "choices" the
            cell is a list of these columns' texts and, at its end, of the list of choices; with "markers", of a text
            and its two entities.
        cut: the side that is cut where a pair of one vector is too long: the name of its column, or "longest".
    """

    backbone: Backbone
    read: Read = "vector"
    joined: tuple[str, ...] = ()
    cut: str = "longest"

    def texts(self, cell: Any, *, row: int, column: str) -> list[str]:
        """Return a cell's texts: one, or one a joined column; with `choices`, the choices come last, "" for blank ones.

        A list of words is one text, the words separated by single spaces.

        Raises:
            BadCell: the cell is none of these.
        """
        if self.read == "choices":
            *before, choices = cell
            texts = [words_text(part, row=row, column=column) for part in (*before, *choices)]
            if all(is_blank(text) for text in texts[len(before) :]):
                raise BadCell(row=row, column=column, value=cell, why="there is no choice", do="give one or more")
            return texts
        parts = cell if self.joined else [cell]
        if self.read == "markers" and self.joined:
            text = words_text(cell[0], row=row, column=column)
            return [with_tags(text, cell[1:], row=row, column=column)]
        return [words_text(part, row=row, column=column) for part in parts]

    def decode(self, texts: Sequence[str]) -> np.ndarray:
        """Return the table of tokens of a cell's texts, flat int32."""
        if self.read == "choices":
            return self._choices(texts[: len(self.joined)], texts[len(self.joined) :]).ravel()
        if self.read == "markers":
            return self._marked(texts[0]).ravel()
        *before, last = texts
        if self.read == "answer" and not before[0].strip():
            before[0] = "?"  # the first token stands for no answer, so it must not be the text's
        table = self._encode(self._together(before) if before else None, last, len(before))
        if self.read != "vector":
            _number(table, len(before), first=self.read == "answer")
        return table.ravel()

    def _choices(self, before: Sequence[str], choices: Sequence[str]) -> np.ndarray:
        """Return the tokens of a cell's choices, each read as a pair with the texts before; blank choices are left out.

        The last of several texts before is read beside the choice: (context, question choice), as in Radford et al.
        2018. Where a pair is too long, its longer text is cut, so that the question is read with the choice.
        """
        *context, last = before if before else [""]
        first, beside = (
            (self._together([text for text in context if not is_blank(text)]), last) if context else (last, "")
        )
        tables: list[np.ndarray] = []
        for number, choice in enumerate(choices):
            if is_blank(choice):
                continue
            second = choice if is_blank(beside) else f"{beside} {choice}"
            table = self._encode(None if is_blank(first) else first, second, 1)
            table[:, TEXT], table[:, WINDOW] = number, len(tables)
            tables.append(table)
        return np.concatenate(tables)

    def _marked(self, text: str) -> np.ndarray:
        """Return the tokens of a text with two marked entities; the tokens of their first markers are numbered.

        A text that is too long is read from a little before its first entity.

        Raises:
            LookupError: the entities are too far apart to be read together.
        """
        marked, characters = mark_entities(text)
        skipped = 0
        for _ in range(2):
            table = self._encode(None, marked[skipped:], 0)
            first, second = (_token_at(table, character - skipped) for character in characters)
            if first is not None and second is not None:
                table[first, TOKEN], table[second, TOKEN] = 0, 1
                return table
            skipped = max(min(characters) - 20, 0)
        raise LookupError(f"the entities are more than {self.backbone.max_tokens} tokens apart")

    @property
    def _tokenizer(self) -> Any:
        return self.backbone.inputs.processor

    def _tokenizer_for(self, settings: Hashable) -> Any:
        """Return a tokenizer that is called with these settings alone; see `TextInputs.tokenizer`."""
        inputs = self.backbone.inputs
        assert isinstance(inputs, TextInputs)
        return inputs.tokenizer(settings)

    @property
    def _overlap(self) -> int:
        return self.backbone.max_tokens // OVERLAP

    def _together(self, texts: Sequence[str]) -> str:
        """Return several texts as one, with the tokenizer's own separator between them."""
        separator = self._tokenizer.sep_token
        return (f" {separator} " if separator else "\n").join(texts)

    def _encode(self, first: str | None, last: str, number: int) -> np.ndarray:
        """Return the windows' tokens of a text or of a pair, (tokens, `WIDTH`).

        Args:
            first: the text before, or None.
            last: the text whose tokens are numbered.
            number: of `last` among the cell's texts.
        """
        windows = self.read in ("tokens", "answer")
        side = "longest_first"
        if self.joined and self.cut != "longest" and self.read == "vector":
            side = "only_second" if self.joined[-1] == self.cut else "only_first"
        texts = (last,) if first is None else (first, last)
        room = self.backbone.max_tokens
        if windows and first is not None:  # the text before leaves the last one half of a window at least
            (entire,) = self._tokenizer_for("entire")(first, add_special_tokens=False, verbose=False).encodings
            if len(entire.ids) > room // 2:
                first = first[: entire.offsets[room // 2 - 1][1]]
                texts = (first, last)
        truncation = ("only_second" if first is not None else "only_first") if windows else side
        stride = self._overlap // (1 if first is None else 2) if windows else 0
        encoded = self._tokenizer_for((truncation, stride, windows))(
            *texts,
            truncation=truncation,
            max_length=room,
            stride=stride,
            return_overflowing_tokens=windows,
            padding=False,
            verbose=False,
        )
        tables = []
        for window, part in enumerate(encoded.encodings):
            table = np.zeros((len(part.ids), WIDTH), dtype=np.int32)
            table[:, ID], table[:, TYPE] = part.ids, part.type_ids
            side_of = np.array([-1 if side is None else side for side in part.sequence_ids])
            table[:, TEXT] = side_of if first is None else np.where(side_of == 1, number, np.minimum(side_of, 0))
            table[:, START : END + 1] = part.offsets
            table[:, WINDOW], table[:, TOKEN] = window, -1
            tables.append(table)
        return np.concatenate(tables)

    def collate(self, examples: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """Return the encoder's tensors of some cells.

        Returns:
            `input_ids`, `attention_mask` and, if the model reads them, `token_type_ids`, (windows, longest) int64;
            `owner`, (windows,) int64, each window's cell, if a cell may have several; `select`, (cells, tokens) int64,
            the positions of a cell's tokens among those of its windows, padded, -1 for none; with "choices",
            `slot`, (windows,) int64, each window's number in its cell.
        """
        tables = [rows_of(example) for example in examples]
        windows = [np.split(table, np.flatnonzero(np.diff(table[:, WINDOW])) + 1) for table in tables]
        parts = [part for tables_of_cell in windows for part in tables_of_cell]
        owner = [cell for cell, tables_of_cell in enumerate(windows) for _ in tables_of_cell]
        tensors = self.backbone.collate_text([part[:, ID] for part in parts])
        longest = tensors["input_ids"].shape[1]
        if self.takes_types:
            types = torch.zeros_like(tensors["input_ids"])
            for row, part in enumerate(parts):
                types[row, : len(part)] = torch.from_numpy(part[:, TYPE].astype(np.int64))
            tensors["token_type_ids"] = types
        if self.read == "vector":
            return tensors
        tensors["owner"] = torch.tensor(owner)
        if self.read == "choices":
            tensors["slot"] = torch.tensor([int(part[0, WINDOW]) for part in parts])
            return tensors
        most = max(1, max(int(table[:, TOKEN].max()) + 1 for table in tables))
        select = torch.full((len(tables), most), -1, dtype=torch.int64)
        for cell, part in zip(owner, parts, strict=True):
            chosen = np.flatnonzero(part[:, TOKEN] >= 0)
            places = torch.from_numpy(part[chosen, TOKEN].astype(np.int64))
            select[cell, places] = torch.from_numpy(int(part[0, WINDOW]) * longest + chosen)
        tensors["select"] = select
        return tensors

    @property
    def takes_types(self) -> bool:
        """Whether the encoder is given token types."""
        model, tokenizer = self.backbone.model, self._tokenizer
        named = "token_type_ids" in getattr(tokenizer, "model_input_names", ())
        return named and "token_type_ids" in inspect.signature(getattr(model, self.backbone.method)).parameters

    def tokens(self, example: np.ndarray) -> np.ndarray:
        """Return what a cell's tokens stand for, (tokens, 3) int32: text, first character, the one after the last.

        A token that stands for no text, such as the first of "answer", has -1, 0, 0. With "choices" a token is a
        choice: its number among all of them, blank ones included, 0, 0.
        """
        table = rows_of(example)
        if self.read == "choices":
            firsts = np.unique(table[:, WINDOW], return_index=True)[1]
            return np.array([[number, 0, 0] for number in table[firsts, TEXT]], dtype=np.int32)
        chosen = table[table[:, TOKEN] >= 0]
        ordered = chosen[np.argsort(chosen[:, TOKEN], kind="stable")]
        spans: np.ndarray = ordered[:, TEXT : END + 1].copy()
        if self.read == "answer":
            spans[0] = (-1, 0, 0)
        return spans

    def was_cut(self, example: np.ndarray, texts: Sequence[str]) -> bool:
        """Return whether some of a cell's texts are longer than what is read of them."""
        table = rows_of(example)
        if self.read in ("tokens", "answer"):
            return False
        full = bool((np.bincount(table[:, WINDOW]) >= self.backbone.max_tokens).any())
        if self.read == "choices":
            return full
        ends = [table[table[:, TEXT] == number][:, END].max(initial=0) for number in range(len(texts))]
        return full and any(end < len(text.rstrip()) for end, text in zip(ends, texts, strict=True))


def _number(table: np.ndarray, text: int, *, first: bool) -> None:
    """Number the tokens of a text over its windows, each token once, where it has most context on both sides.

    Args:
        table: of the windows, changed in place.
        text: which of the cell's texts.
        first: whether the first special token of the first window is token 0.
    """
    before = 1 if first else 0
    if first:
        table[0, TOKEN] = 0
    windows = [np.flatnonzero((table[:, WINDOW] == w) & (table[:, TEXT] == text)) for w in np.unique(table[:, WINDOW])]
    windows = [places for places in windows if len(places)]
    starts = [0]
    for left, right in pairwise(windows):
        starts.append(starts[-1] + _shift(table[left][:, START : END + 1], table[right][:, START : END + 1]))
    ends = [start + len(places) for start, places in zip(starts, windows, strict=True)]
    for number, (start, places) in enumerate(zip(starts, windows, strict=True)):
        low = 0 if number == 0 else (start + ends[number - 1]) // 2
        high = ends[number] if number == len(windows) - 1 else (starts[number + 1] + ends[number]) // 2
        table[places[low - start : high - start], TOKEN] = np.arange(low, high) + before


def _shift(left: np.ndarray, right: np.ndarray) -> int:
    """Return how many tokens after a window's first the next window begins, given their (tokens, 2) offsets."""
    for start in range(1, len(left)):
        shared = min(len(left) - start, len(right))
        if np.array_equal(left[start : start + shared], right[:shared]):
            return start
    return len(left)


def _token_at(table: np.ndarray, character: int) -> int | None:
    """Return the index of the token that has a character of the text, or None."""
    has = (table[:, TEXT] == 0) & (table[:, START] <= character) & (table[:, END] > character)
    return int(np.flatnonzero(has)[0]) if has.any() else None


def text_tokens(spans: Sequence[np.ndarray | None], texts: Sequence[Sequence[str]]) -> TextTokens:
    """Return rows' tokens, padded, as `TextTokens`; None for a row without the text."""
    longest = max([1, *(len(part) for part in spans if part is not None)])
    padded = np.full((len(spans), longest, 3), -1, dtype=np.int32)
    padded[..., 1:] = 0
    real = np.zeros((len(spans), longest), dtype=bool)
    for row, part in enumerate(spans):
        if part is not None:
            padded[row, : len(part)], real[row, : len(part)] = part, True
    return TextTokens(padded, real, texts)
