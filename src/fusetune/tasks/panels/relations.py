"""Texts with their two marked entities, and the true and the predicted relation below."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fusetune.modalities.markers import NAMES, without_tags
from fusetune.tasks.panels.kinds import Evidence, MarkedLine, MarkedSpan, Section
from fusetune.tasks.panels.texts import Compared, text_of, texts_section

ERRORS = ("wrong relation", "wrong direction", "missed", "invented")


def outcome_of(true: str, guess: str, none: str | None, name_of: Callable[[str], str]) -> str:
    """Return "right" or one of `ERRORS`.

    Args:
        true, guess: labels.
        none: the label of no relation, if there is one.
        name_of: returns a label without its direction.
    """
    if true == guess:
        return "right"
    if none in (true, guess):
        return "missed" if guess == none else "invented"
    return "wrong direction" if name_of(true) == name_of(guess) else "wrong relation"


def relation_texts(
    evidence: Evidence, classes: Sequence[str], none: str | None, name_of: Callable[[str], str]
) -> Section:
    """Return texts with their marked entities, and the true and the predicted relation with its probability below.

    Args:
        evidence: answers, (rows, classes) probabilities, and truth, (rows,) class indices; with tagged texts.
        classes: the labels.
        none: the label of no relation, if there is one.
        name_of: returns a label without its direction.
    """
    guesses = evidence.answers.argmax(1)
    outcomes = [
        outcome_of(classes[true], classes[guess], none, name_of)
        for true, guess in zip(evidence.truth, guesses, strict=True)
    ]

    def compared(at: int) -> Compared:
        text, spans = without_tags(text_of(evidence, at))
        marks = [
            MarkedSpan(start, end, name if kind is None else f"{name} {kind}")
            for name, (start, end, kind) in zip(NAMES, spans, strict=False)
        ]
        true, guess = int(evidence.truth[at]), int(guesses[at])
        line = MarkedLine(f"{classes[guess]}, {evidence.answers[at, guess]:.2f}", outcomes[at])
        return Compared(marks, marks, [MarkedLine(classes[true])], [line], text)

    return texts_section([{outcome} for outcome in outcomes], compared, evidence, ERRORS, "relations")
