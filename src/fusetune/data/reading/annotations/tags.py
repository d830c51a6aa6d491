"""Tags of words in column files: which scheme they are in, and where they contradict it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

BEGINS, INSIDE, ENDS, SINGLE = "B", "IM", "EL", "SUW"
"""The prefixes of an entity's first word, of the next ones, of the last one, and of the only one."""
PREFIXES = BEGINS + INSIDE + ENDS + SINGLE
TAG = re.compile(rf"O|[{PREFIXES}]-\S.*")
OUTSIDE = ("O", "_")
_SAME = {"M": "I", "W": "S"}
"""Prefixes of BMEWO, as BIOES writes them."""


class TagFault(ValueError):
    """A tag that cannot be read."""


def are_tags(cells: Iterable[str]) -> bool:
    """Return whether at least 95 of 100 cells are tags with a prefix or O, at least one of them with a prefix."""
    counts = _kinds(cells)
    return counts["tag"] > 0 and counts["other"] <= 0.05 * counts.total()


def have_prefixes(cells: Iterable[str]) -> bool:
    """Return whether most of the cells that are not O have a known prefix, so that the others are faults."""
    counts = _kinds(cells)
    return counts["tag"] > counts["other"]


def _kinds(cells: Iterable[str]) -> Counter[str]:
    return Counter("O" if cell in OUTSIDE else "tag" if TAG.fullmatch(cell) else "other" for cell in cells)


class TagReader:
    """Checks the tags of sentences, and counts what tells the scheme."""

    def __init__(self, prefixed: bool) -> None:
        """
        Args:
            prefixed: whether tags have a prefix, as B-person; else each is a label as it is.
        """
        self.prefixed = prefixed
        self.prefixes: Counter[str] = Counter()
        self.begun_inside = self.begun_beside = self.unclosed = 0

    def read(self, tags: Sequence[str]) -> list[str]:
        """Return a sentence's tags in BIO, BIOES or BILOU, or as labels.

        Raises:
            TagFault: a tag has no prefix that is known; its arguments are the word's index and the reason.
        """
        if not self.prefixed:
            return ["O" if tag in OUTSIDE else tag for tag in tags]
        result, before, label_before = [], "O", ""
        for index, tag in enumerate(tags):
            if tag in OUTSIDE:
                tag = "O"
            elif not TAG.fullmatch(tag):
                raise TagFault(
                    index, f"the tag {tag!r:.40} is not O and does not begin with one of {', '.join(PREFIXES)}"
                )
            prefix, label = (tag, "") if tag == "O" else (tag[0], tag[2:])
            self._count(prefix, label, before, label_before)
            result.append(tag if prefix not in _SAME else f"{_SAME[prefix]}-{label}")
            before, label_before = prefix, label
        self._count("O", "", before, label_before)
        return result

    def _count(self, prefix: str, label: str, before: str, label_before: str) -> None:
        self.prefixes[prefix] += 1
        going = before in BEGINS + INSIDE
        joins = going and label == label_before
        if prefix in INSIDE + ENDS and not joins:
            self.begun_inside += 1
        if prefix in BEGINS and not (before != "O" and label == label_before):
            self.begun_beside += 1
        if going and not (joins and prefix in INSIDE + ENDS):
            self.unclosed += 1

    @property
    def scheme(self) -> str:
        """The scheme of the tags that were read."""
        used = set(self.prefixes)
        if not self.prefixed:
            return "labels without a scheme"
        if used & set("MW"):
            return "BMEWO"
        if used & set("LU"):
            return "BILOU"
        if used & set("ES"):
            return "BIOES"
        if not self.begun_inside:
            return "BIO"
        if "B" not in used:
            return "IO"
        return "IOB1" if not self.begun_beside else "BIO"

    def notes(self) -> list[str]:
        """Return remarks on tags that contradict the scheme."""
        scheme, notes = self.scheme, []
        if self.begun_inside and scheme in ("BIO", "BIOES", "BILOU", "BMEWO"):
            notes.append(
                f"entities that begin with a tag of a word inside, read as if of the first: {self.begun_inside}"
            )
        if self.unclosed and scheme in ("BIOES", "BILOU", "BMEWO"):
            notes.append(f"entities that do not end with a tag of a last word, read as if they did: {self.unclosed}")
        return notes
