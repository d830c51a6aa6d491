"""What a model that writes is compared with: rules and neighbours that give an answer without a language model.

Texts are (rows,) sequences; answers are (rows,) arrays of dtype object. A truth is a text or a list of right ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from fusetune.evaluation.measure.judge import Candidate
from fusetune.tasks.panels.written import Truth, first_of, most_frequent

CHUNK = 1 << 24
"""The most similarities that are computed at once."""
_END = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s+[^\sa-z])|[。！？]+[」』”]?|\n")
"""The end of a sentence: a mark before white space and no small letter, a Chinese or Japanese mark, or a line break."""
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:[A-ZÀ-ÞΑ-ΩА-Я]|e\.g|i\.e|al|cf|ca|vs|etc|Dr|Mr|Mrs|Ms|Prof|St|No|Fig|Eq|Sec|z\.B|d\.h)\.$"
)
"""Words with a period that ends no sentence; a single capital is an initial."""


def first_sentence(text: str) -> str:
    """Return a text's first sentence, the "lead" of a summary.

    Example:
        >>> first_sentence("We follow Smith et al. (2020). It works, e.g. here.")
        'We follow Smith et al. (2020).'
    """
    text = text.strip()
    for end in _END.finditer(text):
        sentence = text[: end.end()].strip()
        if sentence and not _ABBREVIATION.search(sentence):
            return sentence
    return text


def leads(sources: Sequence[str | None]) -> np.ndarray:
    """Return the first sentence of each source; "" for none."""
    return _answers([first_sentence(source or "") for source in sources])


def copies(sources: Sequence[str | None]) -> np.ndarray:
    """Return the sources as answers; "" for none."""
    return _answers([source or "" for source in sources])


def nearest(train_vectors: np.ndarray, vectors: np.ndarray, train: Sequence[Truth] | np.ndarray) -> np.ndarray:
    """Return the first right answer of the train row whose vector has the highest cosine, (rows,).

    A row with a zero vector, as of missing cells, has the most frequent answer. Train rows with one are no neighbours.

    Args:
        train_vectors: (train rows, dim), at least one row.
        vectors: (rows, dim).
        train: (train rows,) truths.
    """
    known = np.linalg.norm(train_vectors, axis=1) > 0
    answers = most_frequent(train, len(vectors))
    if not known.any():
        return answers
    of_train, rows = _unit(train_vectors[known]).T, _unit(vectors)
    neighbours = np.flatnonzero(known)
    step = max(CHUNK // of_train.shape[1], 1)
    for start in range(0, len(rows), step):
        best = neighbours[(rows[start : start + step] @ of_train).argmax(1)]
        for at, row in enumerate(best, start):
            if rows[at].any():
                answers[at] = first_of(train[row])
    return answers


def guesses(
    train: Sequence[Truth] | np.ndarray, sources: Mapping[str, Sequence[str | None]], num: int
) -> list[Candidate]:
    """Return the rules that need no model as systems.

    They are the most frequent train answer; the copy of the source column with the most characters; and, if most of its
    texts have several sentences, their first sentence.

    Args:
        train: (train rows,) truths.
        sources: the evaluated rows' cells of each text column that the model reads, (rows,).
        num: the number of evaluated rows.
    """
    systems = [Candidate("most frequent", "baseline", "the most frequent train answer", most_frequent(train, num))]
    if not sources or not num:
        return systems
    name = max(sources, key=lambda column: sum(len(text or "") for text in sources[column]))
    copied, lead = copies(sources[name]), leads(sources[name])
    systems.append(Candidate(f"copy of {name}", "baseline", f"the row's {name}", copied, [name]))
    if np.mean([len(first) < len(text.strip()) for first, text in zip(lead, copied, strict=True)]) >= 0.5:
        what = f"the first sentence of the row's {name}"
        systems.append(Candidate(f"first sentence of {name}", "baseline", what, lead, [name]))
    return systems


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Return rows of unit length; a zero row stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), dtype=np.float32)


def _answers(texts: Sequence[str]) -> np.ndarray:
    """Return texts as an array of dtype object."""
    answers = np.empty(len(texts), dtype=object)
    answers[:] = texts
    return answers
