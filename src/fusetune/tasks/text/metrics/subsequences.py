"""Edit distances and longest common subsequences, with a column of the table in the bits of one integer.

Python's integers have any number of bits, so that a step of these algorithms treats all symbols of the longer sequence
at once: a comparison takes as many steps as the shorter sequence has symbols.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

MAX_SYMBOLS = 10_000
"""Longer sequences are compared in parts of so many symbols, so that time grows with length, not with its square."""


def positions(symbols: Iterable[Hashable]) -> dict[Hashable, int]:
    """Return for each symbol the integer whose bit i is 1 if the symbol stands at position i."""
    masks: dict[Hashable, int] = {}
    bit = 1
    for symbol in symbols:
        masks[symbol] = masks.get(symbol, 0) | bit
        bit <<= 1
    return masks


def edit_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Return the fewest insertions, deletions and substitutions of symbols that turn one sequence into the other.

    Sequences of more than `MAX_SYMBOLS` symbols, beside equal ends, are cut into parts at the same positions, and the
    parts' distances are added: an upper bound.

    Example:
        >>> edit_distance("kitten", "sitting")
        3

    Reference: Myers 1999, "A Fast Bit-Vector Algorithm for Approximate String Matching", in the form of Hyyrö 2003.
    """
    start, end = 0, 0
    shorter = min(len(first), len(second))
    while start < shorter and first[start] == second[start]:
        start += 1
    while end < shorter - start and first[-1 - end] == second[-1 - end]:
        end += 1
    first, second = first[start : len(first) - end], second[start : len(second) - end]
    return sum(
        _distance(first[at : at + MAX_SYMBOLS], second[at : at + MAX_SYMBOLS])
        for at in range(0, max(len(first), len(second)), MAX_SYMBOLS)
    )


def _distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    long, short = (first, second) if len(first) >= len(second) else (second, first)
    if not short:
        return len(long)
    masks, full, last = positions(long), (1 << len(long)) - 1, 1 << (len(long) - 1)
    rises, falls, distance = full, 0, len(long)  # down the table's column: where it grows by 1, where it shrinks by 1
    for symbol in short:
        equal = masks.get(symbol, 0)
        diagonal = ((((equal & rises) + rises) ^ rises) | equal | falls) & full
        right_rises, right_falls = falls | (full & ~(diagonal | rises)), diagonal & rises
        distance += bool(right_rises & last) - bool(right_falls & last)
        right_rises = (right_rises << 1 | 1) & full
        rises, falls = ((right_falls << 1) & full) | (full & ~(diagonal | right_rises)), right_rises & diagonal
    return distance


def common_length(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Return the length of the longest common subsequence.

    Example:
        >>> common_length("abcde", "badxe")
        3

    Reference: Hyyrö 2004, "Bit-parallel LCS-length computation revisited".
    """
    long, short = (first, second) if len(first) >= len(second) else (second, first)
    masks, full = positions(long), (1 << len(long)) - 1
    level = full
    for symbol in short:
        equal = level & masks.get(symbol, 0)
        level = ((level + equal) | (level - equal)) & full
    return len(long) - level.bit_count()


def common_indices(first: Sequence[Hashable], second: Sequence[Hashable]) -> list[int]:
    """Return the indices in `first` of a longest common subsequence, from the last to the first.

    Of several, the one that is found by going back through the table of lengths from its end, towards the start of
    `first` wherever that loses nothing, as ROUGE does.

    Example:
        >>> common_indices("abcde", "badxe")
        [4, 3, 0]
    """
    masks, full = positions(second), (1 << len(second)) - 1
    levels = [full]  # bit j is 0 where the length grows with symbol j of `second`
    for symbol in first:
        equal = levels[-1] & masks.get(symbol, 0)
        levels.append(((levels[-1] + equal) | (levels[-1] - equal)) & full)
    left, before = len(second) - levels[-1].bit_count(), full
    chosen, row = [], len(first)
    while left:
        row -= 1
        equal, end = masks.get(first[row], 0) & before, before.bit_length()
        matches = equal.bit_length() == end
        if matches or end - (levels[row] & before).bit_count() < left:
            chosen.append(row)
            left -= 1
            before = (1 << (equal.bit_length() - 1)) - 1
    return chosen
