"""`Detection`: how sure a kind of column or a task is that a sample of cells is its own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Detection:
    """A modality's confidence that a column is of its kind.

    Attributes:
        confidence: from 0 (impossible) to 1 (certain).
        reason: a readable explanation, such as "all 200 sampled cells parse as numbers".
    """

    confidence: float
    reason: str
