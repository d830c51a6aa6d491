"""`fusion: stack`: trees are grown beside the tuned network, and validation rows say what they count.

Sound, as no row's features know its own target: what trees see are the columns as they are, what encoders say that were
never tuned, and the logits of a linear model on the latter that learned on other train rows (stacked generalisation:
Wolpert 1992; a fold at a time: Breiman 1996, "Stacked Regressions"). The tuned network's own predictions and its tuned
encoders' vectors are not among them: of train rows they know the targets, of new rows they do not.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from fusetune.backbones.load import Backbone
from fusetune.config.config import Config
from fusetune.config.fusion import StackConfig
from fusetune.data.folds import fold_of
from fusetune.evaluation.decisions import StackUsed
from fusetune.evaluation.measure import systems
from fusetune.fitting.prepared import Prepared
from fusetune.inference.features import encoded
from fusetune.models.family import Family
from fusetune.tasks.abilities import Boosted, Probed
from fusetune.tasks.base import TargetTask
from fusetune.training.deadline import COMPARING
from fusetune.training.history import TrainingHistory
from fusetune.training.probe import Probe, SplitRows
from fusetune.trees.boost import Rows, grow, tree_scores
from fusetune.trees.stack import Blend, Stack, mix
from fusetune.trees.text import lightgbm
from fusetune.trees.view import Line, View, has_all

WEIGHTS = np.linspace(0, 1, 21)
"""What the trees may count."""
TINY = 1e-12


def check_stack(config: Config) -> None:
    """Stop before anything is read where a stack cannot be grown.

    Raises:
        MissingExtra: LightGBM is not installed.
    """
    if isinstance(config.fusion, StackConfig):
        lightgbm()


def as_they_are(fit: Prepared, model: Family) -> dict[str, nn.Module]:
    """Copies of the pretrained encoders that tuning may move, where trees will need them."""
    if not isinstance(fit.config.fusion, StackConfig) or not fit.config.trainer.epochs:
        return {}
    return {
        key: copy.deepcopy(encoder).cpu()
        for key, encoder in model.encoders.items()
        if isinstance(encoder, Backbone) and encoder.pretrained
    }


class Growing:
    """Grows a fit's trees once its network is tuned."""

    def __init__(
        self,
        fit: Prepared,
        model: Family,
        history: TrainingHistory,
        before: Mapping[str, nn.Module],
    ) -> None:
        """
        Args:
            fit: with its probes.
            model: tuned.
            history: how tuning went.
            before: `as_they_are`.
        """
        settings = fit.config.fusion
        assert isinstance(settings, StackConfig)
        self.fit, self.model, self.rows, self.settings = fit, model, fit.rows, settings
        self.view = View.fit(fit.examples["train"].with_target(), fit.features["train"], components=settings.components)
        self.frozen = {key: encoder for key, encoder in before.items() if _moved(encoder, model.encoders[key])}
        still = [name for name, key in model.routes.items() if key not in history.moved]
        self.known = {name: known for name, known in fit.features["val"].items() if name in still}

    def run(self) -> tuple[Stack | None, dict[str, StackUsed]]:
        """The stack, None where no task is better with trees; and per task what was found."""
        blends, used = {}, {}
        self.val = encoded(self.model, self.fit.examples["val"], self.known)
        for name, task in self.fit.targets.items():
            blend, used[name] = self._task(name, task)
            if blend is not None:
                blends[name] = blend
        return (Stack(self.view, blends, self.frozen) if blends else None), used

    def _task(self, name: str, task: TargetTask) -> tuple[Blend | None, StackUsed]:
        train, val = self.rows[name]["train"], self.rows[name]["val"].seen(self.val)
        none = StackUsed(0.0, task.main.name)
        if not isinstance(task, Boosted):
            none.said = f"No trees are grown for the task {task.name}."
            return None, none
        probe = self.fit.probes.get(name)
        if probe is not None and isinstance(task, Probed):  # one of the columns alone, as trees keep it beside them
            probe = Probe.fit(task, train, val, list(probe.scales))
        if not self.view.width and probe is None:
            none.said = "No trees are grown: no column is a number, a category or read by a pretrained encoder."
            return None, none
        if self.fit.deadline.part(COMPARING).passed():
            none.said = "No trees are grown: the time was up (trainer.minutes)."
            return None, none
        if not len(val.indices):
            none.said = "No trees are grown: no validation row has a target to weigh them by."
            return None, none
        line = Line.of(probe) if probe is not None else None
        learned = Rows(
            self._matrix(train, self._held_out(name, task) if probe is not None else None),
            train.truth,
            train.examples.weights[train.indices],
        )
        logits = line.logits(val.examples, val.indices, val.features) if line is not None else None
        watched = Rows(self._matrix(val, logits), val.truth, val.examples.weights[val.indices])
        late, seed = self.fit.deadline.part(COMPARING).passed, self.fit.config.seed
        boosters = grow(task, learned, watched, self.view.categorical, self.settings, seed=seed, late=late)
        network = systems.model_scores(self.model, name, task, val, train)
        gains = sum(np.asarray(booster.feature_importance("gain")) for booster in boosters)
        needed = self.view.needed(train.examples, np.asarray(gains))
        whole = has_all(val.examples, val.indices, needed)
        trees = network.copy()  # as `Stack.scores` predicts rows that lack what trees need
        trees[whole] = tree_scores(task, boosters, watched.matrix)[whole]
        used = weigh(task, network, trees, val.truth, watched.weights)
        used.trees = sum(booster.num_trees() for booster in boosters)
        return (Blend(used.weight, boosters, line, needed) if used.weight else None), used

    def _matrix(self, split: SplitRows, logits: np.ndarray | None) -> np.ndarray:
        return self.view.matrix(split.examples, split.indices, split.features, logits)

    def _held_out(self, name: str, task: TargetTask) -> np.ndarray:
        """Per train row, (rows, logits) of a linear model that learned on the other folds; groups stay together."""
        train, val = self.rows[name]["train"], self.rows[name]["val"].seen(self.val)
        columns = list(self.fit.probes[name].scales)
        parts = fold_of(train.examples.groups[train.indices], self.settings.folds, seed=self.fit.config.seed)
        logits: np.ndarray | None = None
        assert isinstance(task, Probed), "the task has a probe"
        for part in np.unique(parts):
            inside = np.flatnonzero(parts == part)
            others = np.flatnonzero(parts != part)
            rows = SplitRows(train.examples, train.features, train.indices[others], train.truth[others])
            found = Line.of(Probe.fit(task, rows, val, columns)).logits(
                train.examples, train.indices[inside], train.features
            )
            if logits is None:
                logits = np.zeros((len(parts), found.shape[1]), dtype=np.float32)
            logits[inside] = found
        assert logits is not None
        return logits


def weigh(task: Boosted, network: np.ndarray, trees: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> StackUsed:
    """The weight of the trees, chosen on validation rows.

    Of the weights 0, 0.05, ..., 1 under which the main metric is no worse than the network's, it is the one with the
    smallest loss (log loss; for numbers the squared error), the smaller of two as good; but 0 unless the loss falls by
    more than one standard error of its mean difference from the network's, row by row.

    Args:
        task: fitted.
        network, trees: scores, as `TargetTask.answers` gives them.
        truth: as `TargetTask.truth` gives it.
        weights: (rows,) of the rows.
    """
    sign = 1.0 if task.main.greater_is_better else -1.0

    def main(scores: np.ndarray) -> float:
        return task.main_value(task.measured(scores, truth), truth, weights)

    alone = main(network)
    before = task.row_losses(network, truth)
    best, best_loss = 0.0, mean(before, weights)
    for weight in WEIGHTS[1:]:
        scores = mix(network, trees, float(weight))
        value, loss = main(scores), mean(task.row_losses(scores, truth), weights)
        if not sign * value < sign * alone and loss < best_loss - TINY:
            best, best_loss = float(weight), loss
    gained = before - task.row_losses(mix(network, trees, best), truth)
    if mean(gained, weights) <= (mean((gained - mean(gained, weights)) ** 2, weights) / len(gained)) ** 0.5:
        best = 0.0
    used = StackUsed(best, task.main.name, alone, main(trees), main(mix(network, trees, best)))
    figures = f"the network alone {used.network:.3f}, the trees alone {used.alone:.3f}"
    if best:
        used.said = (
            f"LightGBM's trees count {best:.0%} of the prediction: on validation rows {used.metric} is"
            f" {used.together:.3f} together, {figures}."
        )
    else:
        used.said = f"Trees did not help, so none were kept: on validation rows {used.metric} is {figures}."
    return used


def mean(values: np.ndarray, weights: np.ndarray) -> float:
    """The weighted mean of (rows,); all rows count alike where every weight is 0."""
    return float(np.average(values, weights=weights if weights.sum() > 0 else None))


def _moved(before: nn.Module, after: nn.Module) -> bool:
    """Whether tuning left an encoder other than it was."""
    state = after.state_dict()
    return any(not torch.equal(value, state[name].cpu()) for name, value in before.state_dict().items())
