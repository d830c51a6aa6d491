"""What labelling came to, on the rows that were drawn at random: accuracy, gain over random labelling, when to stop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import ndtri
from sklearn.metrics import cohen_kappa_score

from fusetune.data.folds import fold_of
from fusetune.evaluation.measure.compare import interval
from fusetune.evaluation.results import Interval
from fusetune.lifecycle.labelling.pool import Pool
from fusetune.lifecycle.labelling.probe import LabelProbe
from fusetune.lifecycle.labelling.rounds import fit_probe, predicted

DRAWS = 2000
FOLDS, REPEATS = 5, 2
LEVEL = 0.95
AS_GOOD = 0.03
"""Random labelling is called as good where the interval of the gain covers 0 and ends below this."""
MIN_COMPARED = 50
"""The fewest random rows for a comparison: fewer often call a difference sure that is chance."""
WINDOW = 3
"""Rounds over which the stopping rule looks back."""
AGREEMENT = 0.99
RISE, MIN_RISE_ROWS = 0.01, 50
"""Accuracy no longer rises if its gain over the window is surely below this, on so many random rows or more."""


@dataclass
class RoundFigures:
    """A round as it looks today: labels that were corrected and random rows that came later count.

    Attributes:
        round: its number; 0 is before the first.
        labels: the labels that the probe learned from.
        accuracy: on all random rows so far.
        agreement: Cohen's κ between the predictions of the pool after this round and after the one before; NaN for
            the first.
    """

    round: int
    labels: int
    accuracy: Interval
    agreement: float


@dataclass
class Gain:
    """Rows that were chosen against rows at random.

    Attributes:
        labels: that each of the two probes learned from, besides those that were there before.
        rows: the random rows that both were measured on.
        chosen, random: their accuracies.
        difference: chosen minus random, with its interval over the rows that were measured on and learned from.
    """

    labels: int
    rows: int
    chosen: float
    random: float
    difference: Interval

    @property
    def verdict(self) -> str:
        """ "better", "worse", "as good" or "open"."""
        if self.difference.low > 0:
            return "better"
        if self.difference.high < 0:
            return "worse"
        return "as good" if self.difference.high < AS_GOOD else "open"

    @property
    def sentence(self) -> str:
        """What it means."""
        ends = f"{self.difference.value:+.3f} [{self.difference.low:+.3f}, {self.difference.high:+.3f}]"
        facts = f"accuracy {ends} on {self.rows:,} random rows, with {self.labels:,} labels each"
        if self.verdict == "better":
            return f"Choosing rows is better than drawing them at random: {facts}."
        if self.verdict == "worse":
            return f"Random rows are better here: {facts}. Take --strategy random."
        if self.verdict == "as good":
            return f"Random rows are as good here: {facts}."
        return f"Too few random rows tell whether choosing rows is better than drawing them at random: {facts}."


@dataclass
class Measured:
    """The figures of all rounds.

    Attributes:
        rounds: from round 0 or the first with a probe.
        gain: None with too few labels.
        probe: of all labels so far; None before there are two different ones.
    """

    rounds: list[RoundFigures] = field(default_factory=list)
    gain: Gain | None = None
    probe: LabelProbe | None = None
    correct: list[np.ndarray] = field(default_factory=list)


def measure(
    pool: Pool,
    before: Mapping[int, str],
    rounds: Sequence[Mapping[int, str]],
    random: Mapping[int, str],
    *,
    seed: int,
) -> Measured:
    """Measure a probe of the labels up to each round on the random rows, which no probe learns from.

    Args:
        pool: the rows.
        before: labels before the first round, by position.
        rounds: each round's labels of chosen rows, in the order in which they were chosen.
        random: the labels of random rows.
        seed: of folds and draws.
    """
    result = Measured()
    rows, truth = np.asarray(list(random), dtype=np.int64), np.asarray(list(random.values()))
    labels: dict[int, str] = {}
    last: np.ndarray | None = None
    for number, new in enumerate([before, *rounds]):
        labels |= new
        probe = fit_probe(pool, labels, seed=seed)
        if probe is None:
            continue
        result.probe = probe
        answers = predicted(probe, pool.open)
        agreement = math.nan if last is None else _kappa(last, answers)
        correct = predicted(probe, rows) == truth if len(rows) else np.zeros(0, dtype=bool)
        result.correct.append(correct)
        result.rounds.append(RoundFigures(number, len(labels), wilson(int(correct.sum()), len(rows)), agreement))
        last = answers
    chosen = {row: label for new in rounds for row, label in new.items()}
    result.gain = gain(pool, before, chosen, random, seed=seed)
    return result


def gain(
    pool: Pool, before: Mapping[int, str], chosen: Mapping[int, str], random: Mapping[int, str], *, seed: int
) -> Gain | None:
    """Compare a probe of the first chosen rows with probes of as many random rows, on other random rows.

    The random rows are split into folds; each is predicted by probes of the others, several times with other folds. The
    variance of the difference is that over the measured rows, plus that over the chosen rows by the jackknife that
    leaves out a fold of them (Efron & Tibshirani 1993, ch. 11).

    Args:
        pool: the rows.
        before: labels that both learn from, too.
        chosen: labels of chosen rows, in the order in which they were chosen.
        random: the labels of random rows.
        seed: of folds and draws.

    Returns:
        None with fewer than `MIN_COMPARED` random rows, with fewer chosen ones than a probe of random rows would learn
        from, or without two different labels.
    """
    rows, truth = np.asarray(list(random), dtype=np.int64), np.asarray(list(random.values()))
    num = len(rows) - -(-len(rows) // FOLDS)
    if len(rows) < MIN_COMPARED or len(chosen) < num:
        return None
    probe = fit_probe(pool, {**before, **dict(list(chosen.items())[:num])}, seed=seed)
    if probe is None:
        return None
    own = (predicted(probe, rows) == truth).astype(np.float64)
    theirs = np.zeros(len(rows))
    for repeat in range(REPEATS):
        folds = fold_of(np.full(len(rows), -1, dtype=np.int64), FOLDS, seed=seed + repeat)
        for fold in range(int(folds.max()) + 1):
            held = folds == fold
            some = np.random.default_rng([seed, repeat, fold]).permutation(np.flatnonzero(~held))[:num]
            other = fit_probe(pool, {**before, **{int(rows[at]): str(truth[at]) for at in some}}, seed=seed)
            if other is None:
                return None
            theirs[held] += (predicted(other, rows[held]) == truth[held]) / REPEATS
    difference = own - theirs
    spread = _learning_variance(pool, before, list(chosen.items())[:num], rows, truth, seed)
    value, variance = float(difference.mean()), float(difference.var(ddof=1)) / len(rows) + spread
    half = float(ndtri(0.5 + LEVEL / 2)) * math.sqrt(variance)
    found = Interval(value, value - half, value + half)
    return Gain(num, len(rows), float(own.mean()), float(theirs.mean()), found)


def _learning_variance(
    pool: Pool,
    before: Mapping[int, str],
    chosen: Sequence[tuple[int, str]],
    rows: np.ndarray,
    truth: np.ndarray,
    seed: int,
) -> float:
    """Return the jackknife's variance of the accuracy of a probe over the rows that it learned from."""
    folds = fold_of(np.full(len(chosen), -1, dtype=np.int64), FOLDS, seed=seed)
    accuracies = []
    for fold in range(FOLDS):
        some = dict(one for one, own in zip(chosen, folds, strict=True) if own != fold)
        probe = fit_probe(pool, {**before, **some}, seed=seed)
        accuracies.append(0.0 if probe is None else float(np.mean(predicted(probe, rows) == truth)))
    return (FOLDS - 1) * float(np.var(accuracies))


def stop_reason(measured: Measured, agreement: float = AGREEMENT) -> str | None:
    """Return why labelling can stop; None if it should go on.

    It can if the predictions of the pool have hardly changed over the last rounds (Bloodgood & Vijay-Shanker 2009), or
    if the accuracy on the random rows surely rose by less than `RISE`.

    Args:
        measured: the figures of all rounds.
        agreement: the least mean κ of the last `WINDOW` rounds.
    """
    figures = measured.rounds
    if len(figures) <= WINDOW:
        return None
    kappa = float(np.mean([one.agreement for one in figures[-WINDOW:]]))
    if kappa >= agreement:
        return f"the predictions of the pool have settled: mean κ {kappa:.3f} over the last {WINDOW} rounds"
    now, then = measured.correct[-1], measured.correct[-1 - WINDOW]
    if len(now) >= MIN_RISE_ROWS:
        difference = now.astype(np.float64) - then
        rise = interval(float(difference.mean()), _means(difference, 0))
        if rise.high < RISE:
            return (
                f"the accuracy no longer rises: {rise.value:+.3f} [{rise.low:+.3f}, {rise.high:+.3f}] "
                f"over the last {WINDOW} rounds, on {len(now):,} random rows"
            )
    return None


def wilson(correct: int, rows: int, level: float = 0.95) -> Interval:
    """Return a share with its score interval (Wilson 1927), which holds for few rows, too; NaN without rows."""
    if not rows:
        return Interval(math.nan, math.nan, math.nan)
    z = float(ndtri(0.5 + level / 2))
    share = correct / rows
    centre = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    return Interval(share, max(centre - half, 0.0), min(centre + half, 1.0))


def _means(values: np.ndarray, seed: int) -> np.ndarray:
    """Return the mean of values drawn with replacement, (DRAWS,)."""
    rng = np.random.default_rng(seed)
    return np.asarray([values[rng.integers(len(values), size=len(values))].mean() for _ in range(DRAWS)])


def _kappa(first: np.ndarray, second: np.ndarray) -> float:
    """Return Cohen's κ; 1 for predictions that are the same, also if they are all one label."""
    return 1.0 if np.array_equal(first, second) else float(cohen_kappa_score(first, second))
