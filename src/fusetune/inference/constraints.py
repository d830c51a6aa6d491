"""Constraints on what a language model writes: a regular expression, or a JSON schema, by llguidance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from fusetune._optional import optional_import
from fusetune.backbones.language import LanguageModel
from fusetune.errors import BackboneError, ConfigError

PURPOSE = "to write by a regular expression or a JSON schema"
_tokenizers: WeakKeyDictionary[LanguageModel, Any] = WeakKeyDictionary()
"""llguidance's tokenizers, which take a second to make."""


def grammar_of(regex: str, json_schema: dict[str, Any] | None) -> str | None:
    """Return llguidance's grammar of the answers that are allowed; None if all are.

    Answers may begin with a space, which tokens of words have.

    Args:
        regex: of the whole answer; "" for none. Look-around and back references are not supported.
        json_schema: of the answer, which is JSON; None for none.

    Raises:
        ConfigError: the regular expression or the schema is invalid.
        MissingExtra: llguidance is not installed.
    """
    if not regex and json_schema is None:
        return None
    matcher: Any = optional_import("llguidance", PURPOSE).LLMatcher
    if regex:
        grammar = matcher.grammar_from_regex(f" ?(?:{regex})")
        what, expected = "generation.regex is no regular expression", "one of Rust's regex, without look-around"
    else:
        text = json.dumps(json_schema)
        grammar = matcher.grammar_from_lark(f'start: " "? answer\nanswer: %json {text}')
        what, expected = "generation.json_schema is no JSON schema", "one of JSON Schema, as llguidance supports it"
    if problem := matcher.validate_grammar(grammar):
        lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
        why = next((line for line in lines if line.startswith("error:")), lines[0]).removeprefix("error: ")
        raise ConfigError(what, expected=expected, came=f"{regex or json.dumps(json_schema)[:200]}: {why}")
    return str(grammar)


class Guide:
    """What the answers of a batch may continue with.

    Args:
        language: the model that writes.
        grammar: of `grammar_of`.
        rows: number of answers.

    Raises:
        BackboneError: it is not known which text each of the model's tokens stands for.
    """

    def __init__(self, language: LanguageModel, grammar: str, rows: int) -> None:
        self._first = optional_import("llguidance", PURPOSE).LLMatcher(_tokenizer(language), grammar)
        self._matchers = [self._first.deep_copy() for _ in range(rows)]
        self._ids: list[list[int]] = [[] for _ in range(rows)]

    def masked(self, logits: Tensor, rows: Sequence[int]) -> tuple[Tensor, list[int]]:
        """Return the logits of rows, (rows, vocabulary), −∞ for tokens that are not allowed; and the rows that no token
        of the vocabulary continues, whose logits stay."""
        allowed, stuck = torch.ones(logits.shape, dtype=torch.bool), []
        for number, row in enumerate(rows):
            own = self._allowed(row, logits.shape[1])
            if own.any():
                allowed[number] = torch.from_numpy(own)
            else:
                stuck.append(row)
        return logits.masked_fill(~allowed.to(logits.device), -torch.inf), stuck

    def _allowed(self, row: int, size: int) -> np.ndarray:
        """Return which tokens may follow in a row, (size,) bool."""
        matcher = self._matchers[row]
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")[:size]
        own = np.zeros(size, dtype=bool)
        if not matcher.is_error():
            own[: len(bits)] = bits
        if not own.any():  # bytes that must follow have no token of their own; longer ones that begin so are tried
            matcher = self._matchers[row] = self._first.deep_copy()
            matcher.consume_tokens(self._ids[row])
            own[:] = [matcher.validate_tokens([token]) == 1 for token in range(size)]
        return own

    def take(self, rows: Sequence[int], ids: Sequence[int]) -> None:
        """Continue the answers of rows with a token each."""
        for row, token in zip(rows, ids, strict=True):
            self._ids[row].append(int(token))
            self._matchers[row].consume_token(int(token))


def _tokenizer(language: LanguageModel) -> Any:
    """Return llguidance's tokenizer of a language model."""
    if language not in _tokenizers:
        hf: Any = optional_import("llguidance.hf", PURPOSE)
        try:
            tokenizer = hf.from_tokenizer(language.tokenizer, language.vocabulary, list(language.end_ids))
        except ValueError:  # it knows tokenizers of bytes alone
            tokenizer = _from_table(language)
        _tokenizers[language] = tokenizer
    return _tokenizers[language]


class _Table:
    """A tokenizer as llguidance's `TokenizerWrapper` expects it: the bytes of each token."""

    def __init__(self, language: LanguageModel) -> None:
        vocabulary, special = language.tokenizer.get_vocab(), {*language.tokenizer.all_special_ids, *language.end_ids}
        names = {number: name for name, number in vocabulary.items()}
        spelled = _spelling(language)
        special |= {number for number in range(language.vocabulary) if number not in names}
        self.tokens = [
            f"<{number}>".encode() if number in special else spelled(names[number]).encode()
            for number in range(language.vocabulary)
        ]
        self.special_token_ids = sorted(special)
        self.eos_token_id, self.bos_token_id = language.end_ids[0], None
        ids = {token: number for number, token in enumerate(self.tokens) if number not in special}
        self._ids, self._longest = ids, max(map(len, ids))

    def __call__(self, text: bytes) -> list[int]:
        """Return tokens that spell the text, the longest that fits each time, as far as there are any.

        The language model's own tokenizer changes texts: it adds spaces, or takes capitals away.
        """
        tokens, start = [], 0
        while start < len(text):
            ends = range(min(len(text), start + self._longest), start, -1)
            end = next((end for end in ends if text[start:end] in self._ids), None)
            if end is None:
                break
            tokens.append(self._ids[text[start:end]])
            start = end
        return tokens


def _spelling(language: LanguageModel) -> Any:
    """Return a function from a token's name to its text, by the tokenizer's decoder.

    Raises:
        BackboneError: the decoder is none of those that are known.
    """
    decoder = json.loads(language.tokenizer.backend_tokenizer.to_str())["decoder"]
    kind = None if decoder is None else decoder["type"]
    if kind is None:
        return lambda name: " " + name
    if kind == "Metaspace":
        return lambda name: name.replace(decoder["replacement"], " ")
    if kind == "WordPiece":
        prefix = decoder["prefix"]
        return lambda name: name.removeprefix(prefix) if name.startswith(prefix) else " " + name
    raise BackboneError(
        "it is not known which text each token of this language model stands for, so answers cannot be constrained",
        expected="a tokenizer of bytes, sentence pieces, word pieces or words",
        came=f"a decoder of type {kind}",
        do="leave out generation.regex and generation.json_schema, or take another language model",
        file=language.source,
    )


def _from_table(language: LanguageModel) -> Any:
    module: Any = optional_import("llguidance", PURPOSE)
    return module.LLTokenizer(module.TokenizerWrapper(_Table(language)), eos_token=list(language.end_ids))
