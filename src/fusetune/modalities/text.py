"""Text columns: token ids for a language encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fusetune.errors import BadCell, ConfigError
from fusetune.modalities.base import Augmenter, Detection
from fusetune.modalities.messages import is_chat, parse_messages, transcript
from fusetune.modalities.ngrams import NGRAM_KEYS, Ngrams, fit_ngrams, keys_by_part
from fusetune.modalities.on_backbone import BackboneModality
from fusetune.modalities.passages import ID, WIDTH, Passages, Read, rows_of
from fusetune.modalities.profile import plain, profile_cells
from fusetune.modalities.words import MAX_CHARS, check_text, is_blank, lists_of_words, read_text, tokenize_start

if TYPE_CHECKING:
    from fusetune.backbones.load import Backbone


class TextModality(BackboneModality):
    """A column of text in any language.

    The text goes to the backbone's tokenizer unchanged and is truncated to the backbone's `max_tokens`.

    Attributes:
        num_truncated: number of texts with at least `max_tokens` tokens that this object tokenised.
    """

    kind = "text"

    def __init__(
        self,
        column: str,
        *,
        backbone: Backbone,
        read: Read = "vector",
        join: Sequence[str | Sequence[str]] = (),
        cut: str = "longest",
        chat: bool = False,
    ) -> None:
        """
        Args:
            column: the column's name.
            backbone: the encoder, of kind "text".
            read: what a cell gives: one vector, or one a token, an answer's token or a choice; see
                `fusetune.modalities.passages`.
            join: the columns that a cell's texts come from, if it has several; choices as a list at the end.
            cut: the column whose text is cut if they are too long together; "longest" cuts the longer one.
            chat: whether cells are chats, which are read as their transcripts; see `fusetune.modalities.messages`.
        """
        super().__init__(column, backbone=backbone)
        self.num_truncated = 0
        self.passages = Passages(backbone, read, tuple(name for name in join if isinstance(name, str)), cut)
        self.read, self.join, self.chat = read, list(join), chat

    @classmethod
    def detect(cls, values: Sequence[Any], *, base_dir: Path) -> Detection:
        """Rate the cells: strings of several words that rarely repeat, lists of words, or chats."""
        chats = is_chat(values)
        if chats.confidence:
            return chats
        if lists_of_words(values) and len({len(value) for value in values}) > 1:  # labels have fixed places
            return Detection(0.7, f"lists of words, {np.mean([len(value) for value in values]):.1f} each")
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
        if self.by_passages:
            return self._passage(cell, row=row)
        text = read_text(self._text_of(plain(cell), row=row), row=row, column=self.column)
        tokens = self._tokenize(text)
        if not len(tokens):
            do = "empty the cell if the text is missing"
            raise BadCell(row=row, column=self.column, value=cell, why="there is nothing to read in it", do=do)
        return tokens

    @property
    def by_passages(self) -> bool:
        """Whether cells are read token by token, or several texts together."""
        return self.read != "vector" or bool(self.join)

    def _passage(self, cell: Any, *, row: int) -> np.ndarray:
        """The table of tokens of a cell, flat int32; see `fusetune.modalities.passages`."""
        texts = self.texts(cell, row=row)
        for text in texts:
            check_text(text, row=row, column=self.column)
        if all(map(is_blank, texts)):
            do = "empty the cell if the text is missing"
            raise BadCell(row=row, column=self.column, value=cell, why="there is nothing to read in it", do=do)
        try:
            example = self.passages.decode(texts)
        except (LookupError, ValueError) as error:  # entities that are not marked, or too far apart
            do = "mark the two entities as <e1>...</e1> and <e2>...</e2>, near enough to be read together"
            raise BadCell(row=row, column=self.column, value=cell, why=str(error), do=do) from error
        self.num_truncated += self.passages.was_cut(example, texts)
        return example

    @property
    def joined(self) -> int:
        """See `Modality.joined`: two marked entities are two vectors."""
        return 2 if self.read == "markers" else 1

    def texts(self, cell: Any, *, row: int) -> list[str]:
        """A cell's texts: one, or several that are read together.

        Raises:
            BadCell: it is not text.
        """
        cell = self._text_of(cell, row=row)
        return [text[:MAX_CHARS] for text in self.passages.texts(cell, row=row, column=self.column)]

    def _text_of(self, cell: Any, *, row: int) -> Any:
        """Return a chat's transcript; in a column without chats, the cell itself."""
        if not self.chat or self.join:
            return cell
        return transcript(parse_messages(cell, row=row, column=self.column))

    def tokens(self, example: np.ndarray) -> np.ndarray:
        """What the tokens of an example stand for, (tokens, 3) int32; see `TextTokens.spans`."""
        return self.passages.tokens(example)

    def _tokenize(self, text: str) -> np.ndarray:
        """Return the token ids of as much of a text as the backbone reads, (tokens,) int32."""
        tokens, cut_off = tokenize_start(text, self.backbone.tokenize, self.backbone.max_tokens)
        self.num_truncated += cut_off
        return tokens

    def augmenter(self, **options: Any) -> Augmenter:
        """Return a `TextAugmenter`."""
        if self.by_passages or self.chat:
            raise ConfigError(
                "a chat, or a text that is read token by token or together with another, cannot be augmented",
                column=self.column,
                do=f"set columns.{self.column}.augment=none, or leave out augment.text",
            )
        from fusetune.modalities.augment.text import TextAugmenter

        return TextAugmenter(options, tokenize=self.backbone.tokenize)

    def size(self, example: np.ndarray) -> int:
        """Return the number of tokens."""
        return len(example) // WIDTH if self.by_passages else len(example)

    def learn_ngrams(self, examples: Sequence[np.ndarray]) -> None:
        """Fit the vocabularies of n-grams on the train rows' examples."""
        self.ngrams = fit_ngrams([self.token_ids(example) for example in examples], self.backbone.detokenize)

    def token_ids(self, example: np.ndarray) -> np.ndarray:
        """Return the token ids of an example, (tokens,) int32, for its n-grams."""
        return rows_of(example)[:, ID] if self.by_passages else example

    def state(self) -> dict[str, Any]:
        """Return how cells are read and the vocabularies of n-grams; the backbone holds its own options."""
        state: dict[str, Any] = {NGRAM_KEYS[part]: vocabulary.state() for part, vocabulary in self.ngrams.items()}
        if self.by_passages:
            state |= {"read": self.read, "join": self.join, "cut": self.passages.cut}
        return state | ({"chat": True} if self.chat else {})

    @classmethod
    def from_state(cls, column: str, state: dict[str, Any], backbone: Any = None) -> TextModality:
        """Return the modality that `state()` described, on this backbone."""
        options = {name: value for name, value in state.items() if name not in NGRAM_KEYS.values()}
        modality = cls(column, backbone=backbone, **options)
        keys_of = keys_by_part(modality.backbone.detokenize)
        modality.ngrams = {
            part: Ngrams.from_state(state[key], keys_of[part]) for part, key in NGRAM_KEYS.items() if key in state
        }
        return modality

    def collate(self, examples: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, each (examples, longest) int64, and what `Passages.collate` adds."""
        if self.by_passages:
            return self.passages.collate(examples)
        return self.backbone.collate_text(examples)
