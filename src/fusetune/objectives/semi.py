"""Semi-supervised learning: pseudo-labels, consistency of two views, a mean teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fusetune.backbones.word_embeddings import PERTURBATION
from fusetune.errors import ConfigError, nearest, shown
from fusetune.models.perturb import Ball
from fusetune.objectives.base import Objective, weighted_mean
from fusetune.objectives.thresholds import FixedThreshold, SelfAdaptiveThreshold, Threshold
from fusetune.tasks.abilities import Categorical, Divergent
from fusetune.tasks.required import divergence_of, require
from fusetune.types import Batch, Outputs

if TYPE_CHECKING:
    from fusetune.models.family import Family
    from fusetune.tasks.base import TargetTask

Method = Literal["freematch", "fixmatch", "pseudo_label", "mean_teacher"]
METHODS: tuple[str, ...] = get_args(Method)


class SemiSupervised(Objective):
    """Learn from rows without a target by what the model, or a moving average of it, predicts for them.

    With q = softmax of the model's logits (no gradient), ŷ = argmax q, and p' the prediction for a second, strongly
    perturbed view of the same row, the loss is the mean over the batch's rows of

        pseudo_label   1(max q ≥ τ) · −log p(ŷ), of the same view
        fixmatch       1(max q ≥ τ) · −log p'(ŷ)
        freematch      1(max q ≥ τ · m(ŷ) / max m) · −log p'(ŷ), τ = the moving average of max q, m(c) = that of q(c)
        mean_teacher   D(t, p'), t = the prediction of the moving average of the weights

    A row below the threshold counts in the mean with the loss 0. Rows with a target take part without it, as in the
    papers. The weak view is the batch itself, with the dropout of training and with `augment`, if that is set. The
    strong view drops words' embeddings (token cutoff) and adds Gaussian noise to pixels, samples, and features.

    Args:
        model: see `Objective`.
        tasks: see `Objective`. Pseudo-labels are made for `Categorical` tasks only; others learn from their targets.
        method: `freematch`, `fixmatch`, `pseudo_label` or `mean_teacher`.
        weight: factor of the loss in the total, above 0.
        threshold: τ of `fixmatch` and `pseudo_label`, in (0, 1).
        cutoff: probability in [0, 1) of dropping a word's embedding in the strong view.
        noise: size of the noise in the strong view, relative to the input's root mean square, 0 or more.
        decay: of the moving average, in (0, 1): of weights for `mean_teacher`, of thresholds for `freematch`.

    Raises:
        ConfigError: a setting is out of range, or no task has what the method needs.

    Inputs: the batch; rows need no target. One more forward and backward pass; `mean_teacher` one more forward pass on
    top; `pseudo_label` none.

    Requires: a task with one of several classes, or for `mean_teacher` tasks with a divergence.

    Relations: `vat` perturbs in the direction that changes predictions most; `rdrop` compares two dropout masks.

    Figures: the share of rows above the threshold and the mean threshold, over the batch.

    Example:
        >>> from fusetune.testing.objectives import make_parts
        >>> model, tasks, examples = make_parts()
        >>> batch = examples.batch(range(12))
        >>> losses = SemiSupervised(model, tasks)(model, batch, model(batch))
        >>> list(losses), bool(losses["semi"] > 0)
        (['semi'], True)

    Reference: Lee 2013, "Pseudo-Label"; Sohn et al. 2020, "FixMatch" (arXiv 2001.07685); Wang et al. 2023, "FreeMatch"
    (arXiv 2205.07246), equations 5 to 8, without the fairness term; Tarvainen and Valpola 2017, "Mean teachers"
    (arXiv 1703.01780); Shen et al. 2020 (arXiv 2009.13818) for token cutoff.
    """

    name = "semi"
    needs_target = False

    def __init__(
        self,
        model: Family,
        tasks: Mapping[str, TargetTask],
        *,
        method: Method = "freematch",
        weight: float = 1.0,
        threshold: float = 0.95,
        cutoff: float = 0.15,
        noise: float = 0.3,
        decay: float = 0.99,
    ) -> None:
        super().__init__(model, tasks, weight=weight)
        if method not in METHODS:
            raise ConfigError(
                "objectives.semi.method is unknown",
                expected=", ".join(METHODS),
                came=shown(method),
                do=nearest(str(method), METHODS),
            )
        for option, value, within, expected in (
            ("threshold", threshold, 0 < threshold < 1, "above 0 and below 1"),
            ("cutoff", cutoff, 0 <= cutoff < 1, "0 or more and below 1"),
            ("noise", noise, noise >= 0, "0 or more"),
            ("decay", decay, 0 < decay < 1, "above 0 and below 1"),
        ):
            if not within:
                raise ConfigError(f"objectives.semi.{option} is out of range", expected=expected, came=str(value))
        if not tasks:
            raise ConfigError("the objective semi needs predictions, and nothing is predicted", do="name a target")
        self.method, self.cutoff, self.noise = method, cutoff, noise
        self.divergent: dict[str, Divergent] = {}
        self.categorical: list[str] = []
        if method == "mean_teacher":
            self.divergent = require(tasks, Divergent, where="objectives.semi")  # type: ignore[type-abstract]
            self.teacher_decay = decay
        else:
            self.categorical = self._categorical(tasks)
        self.perturbs_inputs = method != "pseudo_label"
        self.thresholds = nn.ModuleList(
            SelfAdaptiveThreshold(len(tasks[name].labels), decay)
            if method == "freematch"
            else FixedThreshold(threshold)
            for name in self.categorical
        )

    def _categorical(self, tasks: Mapping[str, TargetTask]) -> list[str]:
        """Return the targets that pseudo-labels are made for; the others get a warning.

        Raises:
            ConfigError: there are none.
        """
        able = [name for name, task in tasks.items() if isinstance(task, Categorical)]
        if not able:
            require(tasks, Categorical, where=f"objectives.semi.method={self.method}")  # type: ignore[type-abstract]
        for name in tasks:
            if name not in able:
                kind = tasks[name].name
                self.warnings.append(f"objectives.semi makes no pseudo-labels of {name!r} ({kind}): use mean_teacher")
        return able

    def start_update(self) -> None:
        """Forget what the thresholds saw of an update that was not made."""
        for threshold in self.thresholds:
            assert isinstance(threshold, Threshold)
            threshold.start_update()

    def end_update(self) -> None:
        """Move the thresholds."""
        for threshold in self.thresholds:
            assert isinstance(threshold, Threshold)
            threshold.end_update()

    def forward(self, model: nn.Module, batch: Batch, outputs: Outputs) -> dict[str, Tensor]:
        """Return the mean loss over the batch's rows, with or without targets."""
        view = self._strong(model, batch) if self.perturbs_inputs else None
        student = outputs if view is None else model(view)
        if self.method == "mean_teacher":
            teacher = self._teach(model, batch)
            losses = divergence_of(self.divergent, teacher, student.logits, student.columns)
            return {self.name: weighted_mean(losses, batch.weights)}
        self.figures, total = {}, []
        for name, threshold in zip(self.categorical, self.thresholds, strict=True):
            assert isinstance(threshold, Threshold)
            q = outputs.logits[name].detach().float().softmax(1)  # (batch, classes)
            if self.training and torch.is_grad_enabled():
                threshold.observe(q, batch.weights)
            confidence, label = q.max(1)
            least = threshold.of(label)  # (batch,)
            used = (confidence >= least).float()
            losses = F.cross_entropy(student.logits[name].float(), label, reduction="none")
            total.append(weighted_mean(losses * used, batch.weights))
            self.figures[f"{name}/used"] = weighted_mean(used, batch.weights)
            self.figures[f"{name}/threshold"] = weighted_mean(least, batch.weights)
        return {self.name: torch.stack(total).sum()}

    def _strong(self, model: nn.Module, batch: Batch) -> Batch:
        """Return the strongly perturbed view of a batch."""
        ball = Ball(model, batch, list(batch.inputs))  # type: ignore[arg-type]
        deltas = {}
        for column, site in ball.sites.items():
            if site.name == PERTURBATION:
                drops = torch.rand(site.values.shape[:2], device=site.values.device) < self.cutoff  # (cells, tokens)
                deltas[column] = -site.values * drops.unsqueeze(-1) / ball.units[column]
            else:
                deltas[column] = self.noise * torch.randn_like(site.values)
        return ball.perturbed(deltas)

    @torch.no_grad()
    def _teach(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the logits of the averaged weights, or of the present ones before the first update."""
        outputs: Outputs = model(batch) if self.teacher is None else functional_call(model, self.teacher, (batch,))
        return outputs.logits
