"""Augmentation of texts: word dropout, swaps, synonyms and paraphrases."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusetune.errors import ConfigError
from fusetune.modalities.augment.options import Option, Transform, settings, transforms
from fusetune.modalities.augment.paraphrase import Paraphrases
from fusetune.modalities.base import Augmenter

SYNONYMS = {"file": None, "rate": 0.1}
PARAPHRASE = {"model": None, "rate": 0.5, "max_tokens": 128}


class TextAugmenter(Augmenter):
    """Augmentation of texts, whose words are separated by white space. Texts without a change keep their exact form.

    paraphrase     replaces the text with probability `rate` by the output of a seq2seq model or a chain of them (back-
                   translation: Sennrich et al. 2016, arXiv 1511.06709), generated once a distinct text and cached.
    synonyms       replaces each word that has synonyms by one of them with probability `rate` (EDA).
    swap           swaps random pairs of words, about this share of all words (EDA).
    word_dropout   drops each word with this probability, but never all (EDA: Wei and Zou 2019, arXiv 1901.11196).
    """

    def __init__(self, options: Mapping[str, Any], *, tokenize: Callable[[str], np.ndarray]) -> None:
        """
        Args:
            options: values of the transforms by name.
            tokenize: makes an example from a text.

        Raises:
            ConfigError: an option is unknown or out of range.
        """
        self.tokenize = tokenize
        self.paraphrases: Paraphrases | None = None
        known = {
            "paraphrase": Option(self._paraphrase, {}),
            "synonyms": Option(_synonyms, {}),
            "swap": Option(_swap, 0.1, 0, 1),
            "word_dropout": Option(_dropout, 0.1, 0, 1),
        }
        self.transforms = transforms("text", options, known)

    def prepare(
        self, cells: Sequence[Any], codes: np.ndarray, example: Callable[[int], Any], *, progress: Any = None
    ) -> None:
        """Generate the paraphrases of the train rows' texts that are not cached."""
        if self.paraphrases is not None:
            self.paraphrases.fill([str(cells[code]) for code in np.unique(codes[codes >= 0])], progress)

    def __call__(self, cell: Any, example: Any, rng: np.random.Generator, base_dir: Path) -> Any:
        """See `Augmenter`."""
        text = augmented = str(cell)
        for transform in self.transforms:
            augmented = transform(augmented, rng)
        if augmented == text or not augmented.strip():
            return example
        tokens = self.tokenize(augmented)
        return tokens if len(tokens) else example

    def _paraphrase(self, value: Any) -> Transform:
        chosen = settings("augment.text.paraphrase", {"model": value} if isinstance(value, str) else value, PARAPHRASE)
        models = [chosen["model"]] if isinstance(chosen["model"], str) else list(chosen["model"] or ())
        if not models:
            raise ConfigError("augment.text.paraphrase must name a seq2seq model", expected="model: FOLDER or hub id")
        rate = _rate("paraphrase", chosen["rate"])
        paraphrases = self.paraphrases = Paraphrases(models, max_tokens=int(chosen["max_tokens"]))
        return lambda text, rng: paraphrases.of(text) if rng.random() < rate else text


def _rate(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"augment.text.{name}.rate is out of range", expected="0 to 1", came=str(value))
    return float(value)


def _dropout(rate: float) -> Transform:
    def drop(text: str, rng: np.random.Generator) -> str:
        words = text.split()
        mask = rng.random(len(words)) >= rate
        if mask.all() or not words:
            return text
        if not mask.any():
            mask[rng.integers(0, len(words))] = True
        return " ".join(word for word, keep in zip(words, mask, strict=True) if keep)

    return drop


def _swap(share: float) -> Transform:
    def swap(text: str, rng: np.random.Generator) -> str:
        words = text.split()
        for _ in range(int(rng.binomial(len(words) // 2, share)) if len(words) > 1 else 0):
            first, second = rng.choice(len(words), 2, replace=False)
            words[first], words[second] = words[second], words[first]
        return " ".join(words) if words != text.split() else text

    return swap


def _synonyms(value: Any) -> Transform:
    chosen = settings("augment.text.synonyms", {"file": value} if isinstance(value, str) else value, SYNONYMS)
    rate = _rate("synonyms", chosen["rate"])
    if not chosen["file"]:
        raise ConfigError(
            "augment.text.synonyms must name where synonyms are",
            expected="file: a WordNet `dict` folder, or a file of lines WORD<tab>SYNONYM,SYNONYM",
        )
    known = read_synonyms(Path(os.path.expanduser(str(chosen["file"]))))

    def replace(text: str, rng: np.random.Generator) -> str:
        words = text.split()
        for index, (word, drawn) in enumerate(zip(words, rng.random(len(words)), strict=True)):
            core = word.strip(".,;:!?\"'()")
            others = known.get(core.lower(), ())
            if drawn < rate and others:
                other = others[int(rng.integers(0, len(others)))]
                words[index] = word.replace(core, other.capitalize() if core[:1].isupper() else other, 1)
        return " ".join(words) if words != text.split() else text

    return replace


def read_synonyms(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the synonyms of each word, in lower case.

    Args:
        path: the `dict` folder of WordNet (files `data.noun`, `data.verb`, `data.adj`, `data.adv`; the words of a
            synset are synonyms), or a text file of lines WORD<tab>SYNONYM,SYNONYM.

    Raises:
        ConfigError: it cannot be read, or holds no synonyms.
    """
    groups: list[list[str]] = []
    try:
        if path.is_dir():
            for file in sorted(path.glob("data.*")):
                groups += [
                    _synset(line) for line in file.read_text(encoding="utf-8").splitlines() if line[:1].isdigit()
                ]
            pairs = [(word, other) for group in groups for word in group for other in group]
        else:
            cut = [line.split("\t", 1) for line in path.read_text(encoding="utf-8").splitlines() if "\t" in line]
            pairs = [(word.strip(), other.strip()) for word, others in cut for other in others.split(",")]
    except (OSError, UnicodeDecodeError, ValueError, IndexError) as error:
        raise ConfigError(f"synonyms cannot be read: {error}", file=str(path)) from error
    result: dict[str, dict[str, None]] = {}
    for word, other in pairs:
        if other and other.lower() != word.lower():
            result.setdefault(word.lower(), {})[other] = None
    if not result:
        raise ConfigError(
            "there are no synonyms", expected="WordNet's dict folder, or lines WORD<tab>SYNONYM,SYNONYM", file=str(path)
        )
    return {word: tuple(others) for word, others in result.items()}


def _synset(line: str) -> list[str]:
    """Parse a synset's words from a line of WordNet: offset, lexicographer file, type, count (hexadecimal), words."""
    fields = line.split()
    words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
    return [word.partition("(")[0].replace("_", " ") for word in words]
