"""Special tokens that texts of a table spell: they are read as characters, so that no cell ends or begins a turn."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

BREAK = "\ue002"
"""A character of private use at which a text is encoded in two pieces; texts lose theirs."""


class SpecialTokens:
    """Encodes texts with special tokens, and tells those of templates from those that a cell spells.

    Turning special tokens off in a tokenizer does not suffice: SentencePiece's unigram models have them among their
    pieces, and normalisers make others of characters such as `＜`. So the ids decide, and a text is encoded in pieces,
    none of which gives a special id.

    Example:
        >>> special = SpecialTokens(tokenizer, backend, ends=[2])
        >>> backend.encode("a<|im_end|>").ids
        [81, 2]
        >>> special.encode(special.escape("a<|im_end|>"))
        [81, 44, 108, 306, 79, 486, 108, 46]
    """

    def __init__(self, tokenizer: Any, backend: Any, *, ends: Iterable[int]) -> None:
        """
        Args:
            tokenizer: a fast one of transformers.
            backend: its tokenizer of the library tokenizers, without truncation.
            ends: further ids that end a text.
        """
        self._backend = backend
        added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        ids = {*added, *tokenizer.all_special_ids, *ends} - {tokenizer.unk_token_id, None}
        # A token of one character, such as a new line, cannot be spelt in pieces.
        spelt = {number: backend.id_to_token(number) or "" for number in ids}
        self.ids = {number for number, text in spelt.items() if len(text) > 1}
        texts = sorted((re.escape(spelt[number]) for number in self.ids), key=lambda text: (-len(text), text))
        self._pattern = re.compile("|".join(texts)) if texts else None

    def encode(self, text: str) -> list[int]:
        """Return a text's ids; special tokens in it are read as such, except where `escape` broke them."""
        first, *others = text.split(BREAK)
        ids = self._ids(first)
        for piece in others:
            ids += self._continued(piece)
        return ids

    def escape(self, text: str) -> str:
        """Return a text with `BREAK` within whatever would be read as a special token."""
        pieces = [text.replace(BREAK, "\ufffd")]
        if not self._suspects(pieces[0]):
            return pieces[0]
        while True:
            broken = [part for piece in pieces for part in self._broken(piece)]
            if len(broken) == len(pieces):
                return BREAK.join(pieces)
            pieces = broken

    def count(self, text: str) -> int:
        """Return the number of special tokens that `encode` reads in a text."""
        if not self._suspects(text.replace(BREAK, "")):
            return 0
        return sum(token in self.ids for token in self.encode(text))

    def _suspects(self, text: str) -> bool:
        """Return whether a text may have special tokens, without encoding it."""
        if self._pattern is None or not text:
            return False
        if self._pattern.search(text):
            return True
        normalizer = self._backend.normalizer
        return normalizer is not None and bool(self._pattern.search(normalizer.normalize_str(_whole(text))))

    def _broken(self, piece: str) -> list[str]:
        """Return a piece in parts that end behind the first character of each special token."""
        if not self._suspects(piece):
            return [piece]
        encoding = self._backend.encode(_whole(piece), add_special_tokens=False)
        starts = {span for token, span in zip(encoding.ids, encoding.offsets, strict=True) if token in self.ids}
        cuts = sorted({start + 1 for start, end in starts if start + 1 < end})
        return [piece[at:to] for at, to in zip([0, *cuts], [*cuts, len(piece)], strict=True)]

    def _ids(self, text: str) -> list[int]:
        return list(self._backend.encode(_whole(text), add_special_tokens=False).ids) if text else []

    def _continued(self, piece: str) -> list[int]:
        """Return the ids of a piece behind another, without the space that tokenizers put before a text."""
        before = "." if piece[:1].isalnum() else "a"
        own, both = self._ids(before), self._ids(before + piece)
        if both[: len(own)] == own and not any(token in self.ids for token in both):
            return both[len(own) :]
        return self._ids(piece)


def _whole(text: str) -> str:
    """Return a text with U+FFFD for each half of a character, which tokenizers refuse."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
