"""How likely a language model holds the true answers: losses of rows, pairs of answers, and what the report shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fusetune.data.examples import Examples
from fusetune.evaluation.measure.compare import Draws, draw_all
from fusetune.evaluation.measure.judge import EvaluatedRows
from fusetune.inference.token_loss import answer_scores
from fusetune.models.generate import Generate
from fusetune.tasks.abilities import Prefers, Writes
from fusetune.tasks.panels.kinds import Cell, Head, Section, TablePanel

MOST = 50.0
"""The largest loss whose perplexity is computed."""


@dataclass(frozen=True)
class Likelihoods:
    """A model's log-probabilities of rows' answers.

    Attributes:
        scores: (rows, answers), of each answer, summed over its tokens. Of pairs, the chosen and the rejected one.
        sizes: (rows, answers), the answers' numbers of tokens.
    """

    scores: np.ndarray
    sizes: np.ndarray

    def mean_loss(self, weights: np.ndarray, rows: np.ndarray | None = None) -> float:
        """Return the mean −log p of the first answers' tokens over some rows, (rows,) indices, or over all."""
        rows = np.arange(len(self.scores)) if rows is None else rows
        return weighted_mean(-self.scores[rows, 0], self.sizes[rows, 0], weights[rows])


def weighted_mean(losses: np.ndarray, sizes: np.ndarray, weights: np.ndarray) -> float:
    """Return Σ weight · loss / Σ weight · size, of (rows,) each; NaN without any."""
    total = float((sizes * weights).sum())
    return float((losses * weights).sum()) / total if total else float("nan")


def likelihoods(model: Generate, name: str, examples: Examples, rows: np.ndarray) -> Likelihoods:
    """Return a model's log-probabilities of rows' answers; see `answer_scores`."""
    return Likelihoods(*answer_scores(model, name, examples, rows))


def references(model: Generate, name: str, examples: Examples) -> Tensor:
    """Return the log-probabilities of the labelled rows' pairs of answers, (rows of the table, 2) float32.

    Other rows have 0.
    """
    rows = examples.labelled(name)
    result = torch.zeros(len(examples.rows), 2)
    if len(rows):
        result[rows] = torch.from_numpy(answer_scores(model, name, examples, rows)[0]).float()
    return result


def losses_and_metrics(
    task: Writes, own: Likelihoods, reference: Tensor | None, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Return what is minimised and logged of validation rows.

    Args:
        task: fitted.
        own: the model's.
        reference: of pairs, the log-probabilities before tuning, (rows, 2); None for other targets.
        weights: (rows,).

    Returns:
        Each row's loss and its term in the denominator, (rows,) each, and the metrics by name.
    """
    if not isinstance(task, Prefers) or reference is None:
        loss = own.mean_loss(weights)
        return -own.scores[:, 0], own.sizes[:, 0], {"loss": loss, "perplexity": float(np.exp(min(loss, MOST)))}
    scores, sizes = torch.from_numpy(own.scores).float(), torch.from_numpy(own.sizes)
    losses, ones = task.pair_losses(scores, sizes, reference).double().numpy(), np.ones(len(own.scores))
    measured = _pair_measures(task, own, reference)
    metrics = {name: weighted_mean(measured[:, at], ones, weights) for at, name in enumerate(MEASURES)}
    return (
        losses,
        ones,
        {"loss": weighted_mean(losses, ones, weights), **metrics, "chosen_loss": own.mean_loss(weights)},
    )


MEASURES = ("preference_accuracy", "preference_accuracy_by_token", "reward_accuracy", "reward_margin")


def _pair_measures(task: Prefers, own: Likelihoods, reference: Tensor) -> np.ndarray:
    """Return the `MEASURES` of each row, (rows, measures); a tie is half right."""
    by_token = own.scores / np.maximum(own.sizes, 1)
    rewards = task.rewards(torch.from_numpy(own.scores).float(), reference).double().numpy()
    margins = [pair[:, 0] - pair[:, 1] for pair in (own.scores, by_token, rewards)]
    return np.stack([*((np.sign(margin) + 1) / 2 for margin in margins), margins[2]], 1)


def likelihood_section(systems: Mapping[str, Likelihoods | None]) -> Section:
    """Return the loss and the perplexity of the test rows' targets, by system."""
    rows: list[list[Cell]] = []
    figures: dict[str, float] = {}
    for name, own in systems.items():
        if own is not None:
            loss = own.mean_loss(np.ones(len(own.scores)))
            rows.append([name, loss, float(np.exp(min(loss, MOST)))])
            figures[f"{name}_loss"] = loss
    heads = [Head("system"), Head("−log p of a token", "number"), Head("perplexity", "number")]
    notes = ["Of the true answers' tokens, given the prompt and the tokens before."]
    return Section("likelihood", "Likelihood of the true answers", [TablePanel(heads, rows)], notes, figures)


def preference_section(
    task: Prefers, before: Likelihoods, after: Likelihoods, rows: EvaluatedRows, *, num: int, seed: int
) -> Section:
    """Return how often the chosen answer is preferred to the rejected one, before and after tuning.

    Args:
        task: fitted.
        before, after: of the evaluated rows.
        rows: the evaluated rows.
        num, seed: of the bootstrap.
    """
    reference = torch.from_numpy(before.scores).float()
    measured = {
        name: _pair_measures(task, own, reference) for name, own in (("before tuning", before), ("tuned", after))
    }
    draws = draw_all(
        _averages, measured, np.zeros(len(before.scores)), num=num, seed=seed, weights=rows.weights, groups=rows.groups
    )
    heads = [Head("system"), Head("prefers the chosen answer", "share"), Head("95 %")]
    heads += [Head("the same by token", "share"), Head("reward margin", "number"), Head("margin above 0", "share")]
    heads += [Head("log p of chosen", "number"), Head("of rejected", "number")]
    table, figures = list[list[Cell]](), dict[str, float]()
    for (name, drawn), own in zip(draws.items(), (before, after), strict=True):
        intervals = drawn.intervals(0.95)
        accuracy, tuned = intervals["preference_accuracy"], name == "tuned"
        rewards = [drawn.value["reward_margin"], drawn.value["reward_accuracy"]] if tuned else [None, None]
        means = own.scores.mean(0).tolist() if len(own.scores) else [None, None]
        by_token = drawn.value["preference_accuracy_by_token"]
        span = f"{accuracy.low:.1%} to {accuracy.high:.1%}" if np.isfinite(accuracy.low) else ""
        table.append([name, accuracy.value, span, by_token, *rewards, *means])
        figures |= {f"{name.split()[0]}_{key}": value for key, value in drawn.value.items()}
    notes = _preference_notes(draws, before, after)
    return Section("preference", "Preferences", [TablePanel(heads, table)], notes, figures)


def _averages(measured: np.ndarray, truth: np.ndarray, weights: np.ndarray | None) -> dict[str, float]:
    means = np.average(measured, axis=0, weights=weights) if len(measured) else np.full(len(MEASURES), np.nan)
    return dict(zip(MEASURES, means.tolist(), strict=True))


def _preference_notes(draws: Mapping[str, Draws], before: Likelihoods, after: Likelihoods) -> list[str]:
    notes = [
        "A pair counts as right if the model holds the chosen answer likelier than the rejected one, and as half right "
        "if equally likely. Sums over tokens favour short answers, means by token do not.",
        "A reward is β · (log p − log p before tuning); the margin is the chosen answer's minus the rejected one's.",
    ]
    gain = draws["tuned"].minus(draws["before tuning"], 0.95)["preference_accuracy"]
    if np.isfinite(gain.low):
        notes.append(f"Tuning changed the share by {gain.value:+.1%} ({gain.low:+.1%} to {gain.high:+.1%}).")
    if len(before.scores) and after.scores[:, 0].mean() < before.scores[:, 0].mean():
        notes.append(
            "The chosen answers became less likely, too, if less so than the rejected ones, as DPO allows: "
            "the option sft_weight adds their likelihood to the loss."
        )
    return notes
