"""Tags of tokens: BIO, from spans and back.

Tag 0 is O; of label number n, B is 1 + 2n and I is 2 + 2n.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Span = tuple[int, int, str]
"""First character, the one after the last, label."""
BEGINS = ("B", "S", "U")
"""Prefixes of a tag at which an entity begins, whatever stands before: BIO, BIOES, BILOU."""

IGNORED = -100
"""The target of a token without a tag: padding, and entities of a label that no train row has."""


def tags_of(classes: Sequence[str]) -> list[str]:
    """Return the names of the tags."""
    return ["O", *(f"{kind}-{label}" for label in classes for kind in "BI")]


def spans_of_tags(tags: Sequence[str], words: Sequence[str], starts: Sequence[int] | None = None) -> list[Span]:
    """Return the entities of words with tags in BIO, IOB, BIOES, BILOU, or plain labels.

    As in seqeval's default mode, an I without a B before it begins an entity.

    Args:
        tags: one a word.
        words: of the text.
        starts: each word's first character; None for words separated by single spaces.
    """
    if starts is None:
        starts = np.cumsum([0, *(len(word) + 1 for word in words)])[:-1].tolist()
    spans: list[Span] = []
    start = before = ""
    first, last = -1, -1
    for word, tag, offset in zip([*words, ""], [*tags, "O"], [*starts, -1], strict=True):
        prefix, _, label = tag.partition("-") if tag[1:2] == "-" else ("" if tag in ("O", "") else "I", "", tag)
        label = "" if tag in ("O", "") else label
        if first >= 0 and (label != before or prefix in BEGINS or start in ("E", "L", "S", "U")):
            spans.append((first, last, before))
            first = -1
        if label and first < 0:
            first = offset
        last = offset + len(word)
        before, start = label, prefix
    return spans


def tag_tokens(tags: np.ndarray, tokens: np.ndarray, spans: Sequence[Span], classes: Sequence[str]) -> None:
    """Tag the tokens that spans overlap, in place.

    Args:
        tags: (tokens,) int64.
        tokens: (tokens, 3), as `TextTokens.spans`.
        spans: none overlaps another.
        classes: the labels, in order; tokens in a span of another label get `IGNORED`.
    """
    starts, ends = tokens[:, 1], tokens[:, 2]
    for start, end, label in spans:
        inside = np.flatnonzero((tokens[:, 0] >= 0) & (starts < end) & (ends > start))
        if len(inside) and label not in classes:
            tags[inside] = IGNORED
        elif len(inside):
            begin = 1 + 2 * classes.index(label)
            tags[inside] = begin + 1
            tags[inside[0]] = begin


def entities_of(
    path: np.ndarray, probabilities: np.ndarray, spans: np.ndarray, classes: Sequence[str]
) -> list[tuple[int, int, str, float]]:
    """Return the entities of tags, (start, end, label, score) each.

    Args:
        path: (tokens,) tags.
        probabilities: (tokens, tags); a score is the mean of the tokens' tags.
        spans: (tokens, 2) the tokens' characters.
        classes: the labels, in order.
    """
    entities: list[tuple[int, int, str, float]] = []
    index = 0
    while index < len(path):
        tag = path[index]
        if tag == 0:
            index += 1
            continue
        end = index + 1
        while end < len(path) and path[end] == tag + tag % 2:
            end += 1
        score = float(probabilities[np.arange(index, end), path[index:end]].mean())
        entities.append((int(spans[index, 0]), int(spans[end - 1, 1]), classes[(tag - 1) // 2], score))
        index = end
    return entities


def allowed(num_classes: int) -> np.ndarray:
    """Return which tag may follow which, (tags + 1, tags) bool; the last row is the start."""
    num = 1 + 2 * num_classes
    may = np.ones((num + 1, num), dtype=bool)
    for label in range(num_classes):
        begin, inside = 1 + 2 * label, 2 + 2 * label
        may[:, inside] = False
        may[[begin, inside], inside] = True
    return may


def best_path(
    scores: np.ndarray,
    may: np.ndarray,
    *,
    transitions: np.ndarray | None = None,
) -> np.ndarray:
    """Return the tags of the greatest sum of scores, (tokens,), of which each may follow the one before.

    Args:
        scores: (tokens, tags).
        may: (tags + 1, tags) bool, from `allowed`.
        transitions: (tags + 2, tags) scores of a tag after each other, after the start, and before the end; None: 0.

    Reference: Viterbi 1967.
    """
    if not len(scores):
        return np.zeros(0, dtype=np.int64)
    weights = np.zeros((len(may) + 1, may.shape[1])) if transitions is None else transitions
    moves = np.where(may, weights[:-1], -np.inf)
    best, back = scores[0] + moves[-1], np.zeros(scores.shape, dtype=np.int64)
    for index in range(1, len(scores)):
        reached = best[:, None] + moves[:-1]  # (before, after)
        back[index] = reached.argmax(0)
        best = reached.max(0) + scores[index]
    path = [int((best + weights[-1]).argmax())]
    for index in range(len(scores) - 1, 0, -1):
        path.append(int(back[index, path[-1]]))
    return np.array(path[::-1])
