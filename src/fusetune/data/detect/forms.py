"""Detection of number formats (decimal mark, separators, currencies, units) and of words for missing cells."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fusetune.config.read import ReadConfig
from fusetune.data.reading.cell_forms import CellForm, missing_words
from fusetune.modalities.profile import NUMBER

NUMBERS = 0.95
"""Minimum share of numbers among the cells that are not missing."""
FEW = 20
"""Up to this many distinct amounts with a unit, such as "5 kg", are categories of sizes."""

MAX_CHARS = 60
"""Maximum length of an amount."""

MISSING_WORDS = frozenset({
    "na", "n/a", "n.a.", "n.a", "<na>", "#n/a", "#na", "#n/a n/a", "nan", "-nan", "null", "(null)", "<null>", "none",
    "nil", "nat", "?", "??", "-", "--", "---", "\u2013", "\u2014", ".", "..", "...", "\\n", "missing", "unknown",
    "not available", "#null!", "#div/0!", "#value!", "#ref!", "#num!", "#name?", "1.#ind", "1.#qnan",
})  # fmt: skip
"""Words for missing cells in columns of numbers and dates, in lower case."""

_SIGNS = "$¢£¥€₩₪₫₱₹₺₽₿฿₴"
_CODES = frozenset(re.findall("...", "USDEURGBPJPYCHFCADAUDNZDCNYINRSEKNOKDKKPLNCZKHUFBRLMXNZARKRWSGDHKDTRYRUB"))
_MONEY = {*_SIGNS, *_CODES, "%", "‰", "US$", "R$"}
_AMOUNT = re.compile(
    rf"[(]?[+\-\u2212\ufe63\uff0d]?\s*(?P<prefix>[{_SIGNS}]|US\$|R\$|(?:{'|'.join(sorted(_CODES))})(?=[\s\d]))?\s*[+\-\u2212]?"
    rf"(?P<core>\.\d+|\d(?:[\d.,'\u2019_ \u00a0\u2009\u202f]*\d)?(?:[eE][+-]?\d+)?)"
    rf"\s*(?P<suffix>%|‰|[{_SIGNS}]|[A-Za-zµμ°²³/]{{1,6}})?[)]?"
)
_FORMS = [
    (".", ""), (".", ","), (",", ""), (",", "."), (".", " "), (",", " "), (".", "'"), (",", "'"), (".", "_"),
]  # fmt: skip
_THREES = re.compile(r"[1-9]\d{0,2}[.,]\d{3}")


@dataclass(frozen=True)
class NumberGuess:
    """The detected number format of a column.

    Attributes:
        form: the format; the default one for plain numbers.
        share: share of numbers in this form, of the cells that are not words for missing ones, 0 to 1.
        missing: number of cells that are words for missing ones.
        others: examples of cells that are neither.
        certain: whether the decimal mark is unambiguous, as in "1.234,5" but not in "1,234".
        why_not: why amounts are not read as numbers (two currencies, for example), or "".
    """

    form: CellForm
    share: float
    missing: int = 0
    others: tuple[str, ...] = ()
    certain: bool = False
    why_not: str = ""


def guess_numbers(cells: Sequence[Any], read: ReadConfig, *, decimal: str | None = None) -> NumberGuess:
    """Detect the number format of a column.

    Args:
        cells: a sample, none missing.
        read: the settings, which take precedence.
        decimal: the decimal mark of the table's other columns, which decides about numbers such as "1,234".
    """
    texts = Counter(cell.strip() for cell in cells if isinstance(cell, str))
    plain = sum(isinstance(cell, int | float) and not isinstance(cell, bool) for cell in cells)
    words = {text for text in texts if _is_missing(text, read)}
    rest = {text: count for text, count in texts.items() if text not in words}
    num = sum(rest.values()) + plain
    num_missing = sum(texts[word] for word in words)
    if not num or num_missing > len(cells) / 2:
        return NumberGuess(CellForm(), 0.0, num_missing)
    amounts = {text: match for text in rest if len(text) <= MAX_CHARS and (match := _AMOUNT.fullmatch(text))}
    affixes, why_not = _affixes(amounts, rest)
    best = (CellForm(), 0.0, False)
    for mark, thousands in _FORMS:
        if read.decimal not in (None, mark) or read.thousands not in (None, thousands):
            continue
        form = CellForm(decimal=mark, thousands=thousands, affixes=affixes)
        share = (plain + sum(count for text, count in rest.items() if _reads(form, text))) / num
        if share > best[1] + 1e-9:
            best = form, share, thousands != "" or mark != "."
    form, share, certain = _ambiguous(best, amounts, read, decimal)
    form = replace(form, missing=tuple(sorted(words)))
    others = tuple(text for text in rest if not _reads(form, text))[:3]
    return NumberGuess(form, share, num_missing, others, certain, why_not)


def _is_missing(text: str, read: ReadConfig) -> bool:
    return text.casefold() in MISSING_WORDS if read.missing is None else missing_words(read.missing, text)


def _reads(form: CellForm, text: str) -> bool:
    """Return whether a text is a number in this form, not a word for a missing one."""
    if not form.is_numeric:
        return NUMBER.fullmatch(text) is not None
    return form.number(text, strict=True) is not None


def _affixes(amounts: dict[str, re.Match[str]], rest: dict[str, int]) -> tuple[tuple[str, ...], str]:
    """Return the amounts' currency or unit, and why amounts are not read as numbers, or ""."""
    money: Counter[str] = Counter()
    units: Counter[str] = Counter()
    for text, match in amounts.items():
        for affix in (match["prefix"], match["suffix"]):
            if affix:
                (money if affix in _MONEY else units)[affix] += rest[text]
    total = sum(rest.values())
    if len(money) + len(units) > 1 and (money.total() + units.total()) * 2 > total:
        return (), f"amounts in {', '.join(sorted({*money, *units})[:5])}, which are not one unit"
    if money and not units and len(money) == 1:
        return tuple(money), ""
    if units and not money and len(units) == 1 and units.total() >= NUMBERS * total and len(rest) > FEW:
        return tuple(units), ""
    return (), ""


def _ambiguous(
    best: tuple[CellForm, float, bool], amounts: dict[str, re.Match[str]], read: ReadConfig, decimal: str | None
) -> tuple[CellForm, float, bool]:
    """Decide between decimal mark and thousands separator if all cells look like "1,234" or "1.234"."""
    form, share, certain = best
    if read.decimal is not None or read.thousands is not None:
        return best
    cores = [match["core"] for match in amounts.values()]
    marked = [core for core in cores if "," in core or "." in core]
    if not marked or not all(_THREES.fullmatch(core) for core in marked):
        return best
    marks = {mark for core in marked for mark in ",." if mark in core}
    if marks == {","} and form.thousands == ",":
        return (replace(form, decimal=",", thousands=""), share, False) if decimal == "," else (form, share, False)
    if marks == {"."} and decimal == ",":
        return replace(form, decimal=",", thousands="."), share, False
    return form, share, certain and marks != {"."}
