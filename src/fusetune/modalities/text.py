"""Text columns: token ids for a language encoder."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fusetune.errors import BadCell
from fusetune.modalities.base import Augmenter, Detection
from fusetune.modalities.ngrams import Ngrams
from fusetune.modalities.on_backbone import BackboneModality
from fusetune.modalities.profile import plain, profile_cells

if TYPE_CHECKING:
    from fusetune.backbones.load import Backbone

CHARS_PER_TOKEN = 20
"""Characters a token that a long text is first truncated to, several times the average of any language."""

MAX_CHARS = 2**20
"""Characters of a text that are tokenised at most; it bounds the time for texts with very few tokens."""


def check_text(text: str, *, row: int, column: str) -> None:
    """Refuse text that cannot be encoded as UTF-8.

    Raises:
        BadCell: it holds a lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        why = f"character {error.start} is half a character (the lone surrogate {text[error.start]!a})"
        do = "write the file again as UTF-8; such halves come from cutting text between two UTF-16 units"
        raise BadCell(row=row, column=column, value=ascii(text[:120]), why=why, do=do) from error


class TextModality(BackboneModality):
    """A column of text in any language.

    The text goes to the backbone's tokenizer unchanged and is truncated to the backbone's `max_tokens`.

    Attributes:
        num_truncated: number of texts with at least `max_tokens` tokens that this object tokenised.
    """

    kind = "text"

    def __init__(self, column: str, *, backbone: Backbone) -> None:
        """
        Args:
            column: the column's name.
            backbone: the encoder, of kind "text".
        """
        super().__init__(column, backbone=backbone)
        self.num_truncated = 0

    @classmethod
    def detect(cls, values: Sequence[Any], *, base_dir: Path) -> Detection:
        """Rate the cells: strings of several words that rarely repeat."""
        seen = profile_cells(values)
        seen_as = f"{seen.num_distinct} distinct values in {seen.num} cells, {seen.words:.1f} words each"
        if seen.scalars < 0.95:
            return Detection(0.0, "the cells are not strings")
        if seen.numbers >= 0.95 or seen.booleans >= 0.5:
            return Detection(0.05, "the cells are numbers, codes or true and false")
        if seen.repeats:
            return Detection(0.3, f"{seen_as}: they repeat")
        if seen.words >= 1.5:
            return Detection(0.9 if seen.words >= 4 else 0.8, seen_as)
        return Detection(0.5, f"{seen_as}: single words")

    def decode(self, cell: Any, *, row: int, base_dir: Path) -> np.ndarray:
        """Return the token ids, (tokens,) int32, special tokens included.

        Raises:
            BadCell: it is not text, holds a lone surrogate, or has no tokens.
        """
        cell = plain(cell)
        if isinstance(cell, bool | int | float | Decimal | date | time):
            cell = str(cell)
        if not isinstance(cell, str):
            why = f"it is of type {type(cell).__name__}, not text"
            raise BadCell(row=row, column=self.column, value=cell, why=why, do="give one string")
        check_text(cell, row=row, column=self.column)
        tokens = self._tokenize(cell)
        if not len(tokens):
            do = "empty the cell if the text is missing"
            raise BadCell(row=row, column=self.column, value=cell, why="there is nothing to read in it", do=do)
        return tokens

    def _tokenize(self, text: str) -> np.ndarray:
        """Tokenise as much of a text as the backbone reads, in time proportional to `max_tokens`.

        A long text is first truncated generously at white space. If that leaves too few tokens (a page of spaces), the
        limit is doubled, so that the tokens are those of the text's first `MAX_CHARS` characters.
        """
        cut_off, text = len(text) > MAX_CHARS, text[:MAX_CHARS]
        max_tokens = self.backbone.max_tokens
        num_chars = max(max_tokens * CHARS_PER_TOKEN, 1000)
        while num_chars < len(text):
            cut = text[:num_chars]
            space = max(cut.rfind(" "), cut.rfind("\n"), cut.rfind("\t"))
            tokens = self.backbone.tokenize(cut[:space] if space > num_chars // 2 else cut)
            if len(tokens) >= max_tokens:
                self.num_truncated += 1
                return np.asarray(tokens, dtype=np.int32)
            num_chars *= 2
        tokens = self.backbone.tokenize(text)
        self.num_truncated += cut_off or len(tokens) >= max_tokens
        return np.asarray(tokens, dtype=np.int32)

    def augmenter(self, **options: Any) -> Augmenter:
        """Return a `TextAugmenter`."""
        from fusetune.modalities.augment.text import TextAugmenter

        return TextAugmenter(options, tokenize=self.backbone.tokenize)

    def size(self, example: np.ndarray) -> int:
        """Return the number of tokens."""
        return len(example)

    def learn_ngrams(self, examples: Sequence[np.ndarray]) -> None:
        """Fit the vocabulary of n-grams on the train rows' examples."""
        self.ngrams = Ngrams.fit(examples)

    def state(self) -> dict[str, Any]:
        """Return the vocabulary of n-grams, if there is one."""
        return {} if self.ngrams is None else {"ngrams": self.ngrams.state()}

    @classmethod
    def from_state(cls, column: str, state: dict[str, Any], backbone: Any = None) -> TextModality:
        """Return the modality that `state()` described, on this backbone."""
        modality = cls(column, backbone=backbone)
        modality.ngrams = Ngrams.from_state(state["ngrams"]) if "ngrams" in state else None
        return modality

    def collate(self, examples: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask`, each (examples, longest) int64."""
        return self.backbone.collate_text(examples)
