"""The verdict says what the figures say, in each case that can arise."""

from __future__ import annotations

import math
import re

import pytest

from fusetune.evaluation.report.verdict import gain, verdict
from fusetune.evaluation.results import Interval, SystemResult, TaskResult


def system(name: str, kind: str, value: float, difference: tuple[float, float, float] | None = None) -> SystemResult:
    gap = {} if difference is None else {"accuracy": Interval(*difference)}
    return SystemResult(name, kind, "", {"accuracy": Interval(value, value - 0.02, value + 0.02)}, gap)  # type: ignore[arg-type]


def result(*systems: SystemResult, rows: int = 1821, greater: bool = True, **more: object) -> TaskResult:
    return TaskResult("binary", "label", "accuracy", greater, rows, list(systems), **more)  # type: ignore[arg-type]


def without(part: str, columns: list[str], *difference: float) -> SystemResult:
    hidden = system(f"without {part}", "without", 0.88, difference)  # type: ignore[arg-type]
    hidden.columns = columns
    return hidden


BASE = system("majority", "baseline", 0.5, (0.38, 0.36, 0.4))
AFTER = system("tuned", "after", 0.88)


def before(*difference: float) -> SystemResult:
    return system("frozen probe", "before", 0.81, difference)  # type: ignore[arg-type]


def test_tuning_helped() -> None:
    said = verdict(result(BASE, before(0.07, 0.05, 0.09), AFTER))
    assert said.headline == (
        "Tuning raised accuracy from 0.810 (frozen probe) to 0.880 [0.860, 0.900] on 1,821 test rows;"
        " difference +0.070 [+0.050, +0.090]."
    )
    assert said.tone == "good" and said.notes == []


@pytest.mark.parametrize(
    ("difference", "words", "tone"),
    [
        ((0.01, -0.02, 0.04), "did not clearly help", "unsure"),
        ((-0.07, -0.09, -0.05), "Tuning made the model worse", "bad"),
        ((0.07, math.nan, math.nan), "too few rows or groups for an interval", "unsure"),
        ((7e-10, -1e-8, 1e-8), "Tuning changed nothing: accuracy is 0.880", "unsure"),
    ],
)
def test_tuning_did_not_help(difference: tuple[float, float, float], words: str, tone: str) -> None:
    said = verdict(result(BASE, before(*difference), AFTER))
    assert words in said.headline and said.tone == tone


def test_where_less_is_better_a_fall_is_a_gain() -> None:
    said = verdict(result(before(-0.07, -0.09, -0.05), AFTER, greater=False))
    assert said.headline.startswith("Tuning lowered accuracy (lower is better) from") and said.tone == "good"
    assert gain(result(greater=False), before(0.07, 0.05, 0.09)) == "worse"


def test_no_better_than_guessing_is_said_and_never_good() -> None:
    guess = system("majority", "baseline", 0.87, (0.01, -0.01, 0.03))
    said = verdict(result(guess, before(0.07, 0.05, 0.09), AFTER))
    assert said.tone == "bad" and any("not clearly better than the baseline" in note for note in said.notes)


def test_modalities_that_carry_add_or_lack() -> None:
    photo = system("photo", "alone", 0.5, (0.38, 0.3, 0.4))
    text = system("text", "alone", 0.8, (0.08, 0.05, 0.1))
    notes = " ".join(verdict(result(BASE, before(0.07, 0.05, 0.09), photo, text, AFTER)).notes)
    assert "“text” reaches 0.800, the best" in notes
    assert "Not clearly better than the baseline: “photo”" in notes
    for gap, words in (
        ((0.01, -0.01, 0.03), "nearly as good"),
        ((-0.05, -0.07, -0.03), "is better (0.800) than all together"),
    ):
        notes = " ".join(
            verdict(result(BASE, before(0.07, 0.05, 0.09), system("text", "alone", 0.8, gap), photo, AFTER)).notes
        )
        assert words in notes
    notes = " ".join(verdict(result(BASE, photo, AFTER)).notes)
    assert "No modality alone is clearly better" in notes


def test_a_hidden_modality_that_changes_nothing_is_named() -> None:
    hidden, used = without("audio", ["voice"], 0.0, -0.01, 0.01), without("text", ["note"], 0.1, 0.05, 0.15)
    assert any("little use of “voice”" in note for note in verdict(result(BASE, hidden, used, AFTER)).notes)


SAME, GAIN, LOSS = (0.0, -0.01, 0.01), (0.1, 0.05, 0.15), (-0.04, -0.06, -0.02)
UNKNOWN = (0.1, math.nan, math.nan)


def test_modalities_that_stand_in_for_each_other_are_not_called_unused() -> None:
    parts = {"image": ["photo"], "text": ["title", "plot"]}
    alone = [system("image alone", "alone", 0.87, SAME), system("text alone", "alone", 0.8, GAIN)]
    for one, columns in zip(alone, parts.values(), strict=True):
        one.columns = columns
    hidden = [without(part, columns, *SAME) for part, columns in parts.items()]
    notes = " ".join(verdict(result(BASE, *alone, *hidden, AFTER)).notes)
    assert "nearly as good" in notes and "can replace" in notes and "little use" not in notes
    hidden[1] = without("text", parts["text"], *GAIN)
    notes = " ".join(verdict(result(BASE, *alone, *hidden, AFTER)).notes)
    assert "can replace “photo”" in notes and "little use" not in notes


def test_a_modality_that_harms_is_named_and_advised_against() -> None:
    hidden = [without("text", ["note"], *LOSS), without("image", ["photo"], *GAIN)]
    said = verdict(result(BASE, before(0.07, 0.05, 0.09), *hidden, AFTER))
    assert any("“note”" in note and "better" in note for note in said.notes)
    assert "“note”" in said.next_step and "photo" not in said.next_step


@pytest.mark.parametrize(
    ("against_guess", "against_probe", "rows", "use", "tone"),
    [
        (GAIN, GAIN, 1821, "Use it", "good"),
        (GAIN, SAME, 1821, "The model can be used", "unsure"),
        (GAIN, LOSS, 1821, "Do not use it", "bad"),
        (SAME, GAIN, 1821, "Do not use it", "bad"),
        (LOSS, GAIN, 1821, "Do not use it", "bad"),
        (SAME, SAME, 40, "These rows cannot tell", "unsure"),
        ((0.3, math.nan, math.nan), (0.1, math.nan, math.nan), 8, "These rows cannot tell", "unsure"),
    ],
)
def test_one_sentence_says_whether_to_use_it_and_one_what_next(against_guess, against_probe, rows, use, tone) -> None:
    guess = system("constant guess", "baseline", 0.5, against_guess)
    said = verdict(result(guess, before(*against_probe), AFTER, rows=rows))
    assert said.use.startswith(use) and said.tone == tone
    assert said.next_step.endswith(".")
    if rows < 100:
        assert said.headline.startswith("These rows cannot tell") and "fusetune evaluate" in said.next_step


def test_few_rows_say_nothing_of_what_is_made_use_of() -> None:
    hidden = [without("text", ["note"], *SAME), without("image", ["photo"], *GAIN)]
    notes = " ".join(verdict(result(BASE, before(*SAME), *hidden, AFTER, rows=40)).notes)
    assert "too few to tell" in notes and "little use" not in notes


def test_rows_that_are_train_rows_too_are_in_the_headline() -> None:
    systems = BASE, before(0.07, 0.05, 0.09), AFTER
    some, many = (verdict(result(*systems, shared=shared)) for shared in (20, 900))
    assert "20 of these rows (1%) have the same inputs as a train row" in some.headline and some.tone == "good"
    assert "900 of these rows (49%)" in many.headline and many.tone == "unsure" and "Do not rely" in many.use


def test_a_before_that_does_not_see_all_columns_says_so_in_the_headline() -> None:
    probe, after = before(0.07, 0.05, 0.09), system("tuned", "after", 0.88)
    probe.columns, after.columns = ["note"], ["note", "photo"]
    assert "0.810 (frozen probe, without “photo”)" in verdict(result(BASE, probe, after)).headline
    probe.columns = ["note", "photo"]
    assert "without" not in verdict(result(BASE, probe, after)).headline


def test_encoders_that_were_not_changed_are_not_called_tuned() -> None:
    said = verdict(result(BASE, before(0.07, 0.05, 0.09), AFTER, encoders_unchanged=True))
    assert "as pretrained" in said.headline and "Tuning" not in said.headline


def test_few_rows_are_said_to_be_few() -> None:
    said = verdict(result(BASE, before(0.07, 0.05, 0.09), AFTER, rows=38))
    assert any("38 test rows are few" in note for note in said.notes)


@pytest.mark.parametrize("systems", [(), (BASE,), (SystemResult("tuned", "after", "", {}),)])
def test_without_figures_there_is_no_verdict(systems: tuple[SystemResult, ...]) -> None:
    assert "There is no verdict" in verdict(result(*systems)).headline


def test_the_tuned_model_by_itself() -> None:
    assert (
        verdict(result(AFTER)).headline == "The tuned model reaches accuracy 0.880 [0.860, 0.900] on 1,821 test rows."
    )


@pytest.mark.parametrize("rows", [8, 40, 1821])
@pytest.mark.parametrize("against_guess", [GAIN, SAME, LOSS, UNKNOWN])
@pytest.mark.parametrize("against_probe", [GAIN, SAME, LOSS, UNKNOWN])
@pytest.mark.parametrize("against_alone", [GAIN, SAME, LOSS])
@pytest.mark.parametrize("hidden", [GAIN, SAME, LOSS])
def test_no_two_sentences_advise_differently(against_guess, against_probe, against_alone, hidden, rows) -> None:
    guess, alone = system("constant guess", "baseline", 0.5, against_guess), system("text", "alone", 0.8, against_alone)
    alone.columns = ["note"]
    systems = guess, before(*against_probe), alone, without("text", ["note"], *hidden), AFTER
    said = verdict(result(*systems, rows=rows))
    rest = " ".join([said.headline, *said.notes, said.next_step])
    assert not re.search(r"\b(do not )?use (it|the model)\b|leave out the other|better model", rest, re.I)
    kinds = {"Use it": "good", "The model can be used": "unsure", "Do not use it": "bad", "These rows cannot": "unsure"}
    assert [tone for words, tone in kinds.items() if said.use.startswith(words)] == [said.tone]
    assert said.use.count(".") == said.next_step.count(".") - said.next_step.count("trainer.") == 1
    if rows < 100:
        assert "no clear difference" not in said.use and "nearly as good" not in rest and "little use" not in rest


def test_a_modality_that_is_better_alone_is_advised() -> None:
    alone = system("text alone", "alone", 0.9, LOSS)
    alone.columns = ["note"]
    said = verdict(result(BASE, before(*GAIN), alone, AFTER))
    assert said.use.startswith("Do not use it") and "text alone" in said.use and "“note”" in said.next_step


def test_a_rule_that_needs_no_model_may_be_better() -> None:
    rule = system("BM25", "baseline", 0.95, (-0.07, -0.09, -0.05))
    said = verdict(result(BASE, rule, before(0.07, 0.05, 0.09), AFTER))
    assert said.tone == "bad" and said.use == "Do not use it: BM25, which needs no model, is better."
    as_good = system("BM25", "baseline", 0.88, (0.0, -0.01, 0.01))
    assert verdict(result(BASE, as_good, before(0.07, 0.05, 0.09), AFTER)).tone == "good"
