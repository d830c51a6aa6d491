"""`fusion: stack`: train boosted trees beside the tuned network, and choose their weight on validation rows.

No feature of a train row may depend on the row's own target. So the trees read the columns, the outputs of untuned
encoders, and out-of-fold logits of a linear model on these outputs (stacked generalisation: Wolpert 1992; Breiman 1996,
"Stacked Regressions"). They do not read the tuned network's predictions or its encoders' outputs, which have been
trained on the train rows' targets.
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
from fusetune.training.probes.probe import Probe, SplitRows
from fusetune.trees.boost import Rows, grow, tree_scores
from fusetune.trees.stack import Blend, Stack, mix
from fusetune.trees.text import lightgbm
from fusetune.trees.view import LinearLogits, TreeFeatures, rows_with_columns

WEIGHTS = np.linspace(0, 1, 21)
"""The weights of the trees to choose from."""
TINY = 1e-12


def check_stack(config: Config) -> None:
    """Check that `fusion: stack` can run, before any table is read.

    Raises:
        MissingExtra: LightGBM is not installed.
    """
    if isinstance(config.fusion, StackConfig):
        lightgbm()


def untuned_encoders(fit: Prepared, model: Family) -> dict[str, nn.Module]:
    """Return copies of the pretrained encoders that tuning may change, by key, if trees will need them."""
    if not isinstance(fit.config.fusion, StackConfig) or not fit.config.trainer.epochs:
        return {}
    return {
        key: copy.deepcopy(encoder).cpu()
        for key, encoder in model.encoders.items()
        if isinstance(encoder, Backbone) and encoder.pretrained
    }


class StackFit:
    """Train a fit's trees, after its network was tuned.

    Args:
        fit: with its probes.
        model: the tuned model.
        history: the training history.
        before: from `untuned_encoders`.
    """

    def __init__(
        self,
        fit: Prepared,
        model: Family,
        history: TrainingHistory,
        before: Mapping[str, nn.Module],
    ) -> None:
        settings = fit.config.fusion
        assert isinstance(settings, StackConfig)
        self.fit, self.model, self.rows, self.settings = fit, model, fit.rows, settings
        self.view = TreeFeatures.fit(
            fit.examples["train"].with_target(), fit.features["train"], components=settings.components
        )
        self.frozen = {key: encoder for key, encoder in before.items() if _moved(encoder, model.encoders[key])}
        unchanged = [name for name, key in model.routes.items() if key not in history.moved]
        self.known = {name: known for name, known in fit.features["val"].items() if name in unchanged}

    def run(self) -> tuple[Stack | None, dict[str, StackUsed]]:
        """Return the stack, None if trees improve no task; and by task the record of the decision."""
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
        if probe is not None and isinstance(task, Probed):  # on the columns only, without the probe's extra blocks
            probe = Probe.fit(task, train, val, list(probe.scales))
        if not self.view.width and probe is None:
            none.said = "No trees are grown: no column is a number, a category or read by a pretrained encoder."
            return None, none
        if self.fit.deadline.part(COMPARING).passed():
            none.said = "No trees are grown: the time was up (trainer.minutes)."
            return None, none
        if not len(val.indices):
            none.said = "No trees are grown: no validation row has a target to choose their weight by."
            return None, none
        line = LinearLogits.of(probe) if isinstance(probe, Probe) else None
        train_rows = Rows(
            self._matrix(train, self._held_out(name, task) if probe is not None else None),
            train.truth,
            train.examples.weights[train.indices],
        )
        logits = line.logits(val.examples, val.indices, val.features) if line is not None else None
        val_rows = Rows(self._matrix(val, logits), val.truth, val.examples.weights[val.indices])
        late, seed = self.fit.deadline.part(COMPARING).passed, self.fit.config.seed
        boosters = grow(task, train_rows, val_rows, self.view.categorical, self.settings, seed=seed, late=late)
        network = systems.model_scores(self.model, name, task, val, train)
        gains = sum(np.asarray(booster.feature_importance("gain")) for booster in boosters)
        needed = self.view.needed(train.examples, np.asarray(gains))
        complete = rows_with_columns(val.examples, val.indices, needed)
        trees = network.copy()  # as in `Stack.scores`, for rows that lack a column that the trees need
        trees[complete] = tree_scores(task, boosters, val_rows.matrix)[complete]
        used = choose_weight(task, network, trees, val.truth, val_rows.weights)
        used.trees = sum(booster.num_trees() for booster in boosters)
        return (Blend(used.weight, boosters, line, needed) if used.weight else None), used

    def _matrix(self, split: SplitRows, logits: np.ndarray | None) -> np.ndarray:
        return self.view.matrix(split.examples, split.indices, split.features, logits)

    def _held_out(self, name: str, task: TargetTask) -> np.ndarray:
        """Return out-of-fold logits of a linear model, (rows, logits), for the train rows; a group is in one fold."""
        train, val = self.rows[name]["train"], self.rows[name]["val"].seen(self.val)
        columns = list(self.fit.probes[name].scales)
        folds = fold_of(train.examples.groups[train.indices], self.settings.folds, seed=self.fit.config.seed)
        logits: np.ndarray | None = None
        assert isinstance(task, Probed), "the task has a probe"
        for fold in np.unique(folds):
            inside = np.flatnonzero(folds == fold)
            outside = np.flatnonzero(folds != fold)
            rows = SplitRows(train.examples, train.features, train.indices[outside], train.truth[outside])
            fold_logits = LinearLogits.of(Probe.fit(task, rows, val, columns)).logits(
                train.examples, train.indices[inside], train.features
            )
            if logits is None:
                logits = np.zeros((len(folds), fold_logits.shape[1]), dtype=np.float32)
            logits[inside] = fold_logits
        assert logits is not None
        return logits


def choose_weight(
    task: Boosted, network: np.ndarray, trees: np.ndarray, truth: np.ndarray, weights: np.ndarray
) -> StackUsed:
    """Choose the weight of the trees on validation rows.

    Of the weights 0, 0.05, ..., 1 for which the main metric is no worse than the network's, take the one with the
    lowest loss (log loss, or squared error for numbers); of equal ones the smallest. But take 0 unless the loss falls
    by more than one standard error of the mean difference over rows.

    Args:
        task: fitted.
        network, trees: (rows, ...) answers, from `TargetTask.answers`.
        truth: (rows, ...) from `TargetTask.truth`.
        weights: (rows,) row weights.
    """
    sign = 1.0 if task.main.greater_is_better else -1.0

    def main(scores: np.ndarray) -> float:
        return task.main_value(task.measured(scores, truth), truth, weights)

    network_value = main(network)
    before = task.row_losses(network, truth)
    best, best_loss = 0.0, mean(before, weights)
    for weight in WEIGHTS[1:]:
        scores = mix(network, trees, float(weight))
        value, loss = main(scores), mean(task.row_losses(scores, truth), weights)
        if not sign * value < sign * network_value and loss < best_loss - TINY:
            best, best_loss = float(weight), loss
    gain = before - task.row_losses(mix(network, trees, best), truth)
    if mean(gain, weights) <= (mean((gain - mean(gain, weights)) ** 2, weights) / len(gain)) ** 0.5:
        best = 0.0
    used = StackUsed(best, task.main.name, network_value, main(trees), main(mix(network, trees, best)))
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
    """Return the weighted mean of (rows,) values; the plain mean if all weights are 0."""
    return float(np.average(values, weights=weights if weights.sum() > 0 else None))


def _moved(before: nn.Module, after: nn.Module) -> bool:
    """Return whether tuning changed an encoder's weights."""
    state = after.state_dict()
    return any(not torch.equal(value, state[name].cpu()) for name, value in before.state_dict().items())
