"""Abilities that only some tasks have. Code that needs one checks `isinstance(task, Probed)`, never a task's class.

| ability | a task that has it | used by |
| --- | --- | --- |
| `Probed` | can be learned by a linear model on fixed features | the frozen probe, modalities alone |
| `Divergent` | has a divergence between two predictions | R-Drop, VAT |
| `Categorical` | answers with one of several classes, by softmax | pseudo-labels |
| `Labelled` | has labels that rows can share | supervised contrastive loss |
| `Boosted` | can be learned by gradient-boosted trees | `fusion: stack` |
| `Choosing` | chooses among texts of the row | the baselines of a report |
| `DetectedInTable` | is found by other columns than the target's | the choice of a task |
| `Distilled` | can be compared with a teacher's answers | distillation |
| `Exported` | has answers that an exported model computes | `fusetune export` |
| `ShowsChange` | answers that people compare before and after tuning | the report |
| `ShowsText` | answers once a row about parts of a text | the panels of a report |
| `Summed` | has metrics of sums of counts | fast bootstrap intervals |
| `Writes` | is answered by a language model that writes | the generate family |
| `Prefers` | has pairs of answers, the first of which is to be preferred | the same, for its loss and its report |
| `Thresholded` | tunes decision thresholds on validation rows | the fit, after tuning |
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor, nn

from fusetune.modalities.base import Detection
from fusetune.tasks.base import LinearModel, LinearPath, TargetTask
from fusetune.tasks.panels.kinds import ChangedRows
from fusetune.types import Target, TextTokens

if TYPE_CHECKING:
    from fusetune.data.table import Table


class Ability(TargetTask):
    """Base class of abilities.

    Attributes:
        ability: a description for error messages, such as "a divergence between two predictions".
    """

    ability: ClassVar[str]


class Probed(Ability):
    """A task that a linear model on fixed features can learn."""

    ability = "a linear model on fixed features"

    @abc.abstractmethod
    def linear_path(self, features: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> LinearPath:
        """Return linear models on fixed features under the same penalties for all rows, from strong to weak.

        Args:
            features: (rows, features), on comparable scales.
            truth: (rows, ...) as `TargetTask.truth` returns it.
            weights: (rows,) of the rows, 0 or more.
        """

    @abc.abstractmethod
    def linear_score(self, scores: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
        """Return what the penalty is chosen by on held-out rows, larger is better; the second number breaks ties.

        Args:
            scores: (rows, ...) as `TargetTask.answers` returns them.
            truth: (rows, ...) as `TargetTask.truth` returns it.
        """

    def linear(
        self,
        features: np.ndarray,
        truth: np.ndarray,
        val_features: np.ndarray,
        val_truth: np.ndarray,
        weights: np.ndarray | None = None,
    ) -> LinearModel:
        """Fit a regularised linear model on fixed features, with the penalty chosen on the validation rows.

        Args:
            features: (rows, features) of the train rows, on comparable scales.
            truth: (rows, ...) as `TargetTask.truth` returns it.
            val_features, val_truth: the same for the validation rows; may be empty.
            weights: (rows,) weights of the train rows, 0 or more.
        """
        path = self.linear_path(features, truth, weights)
        if not len(val_truth):
            return path.at(path.default)
        return path.best(lambda model: self.linear_score(model.scores(val_features), val_truth))


class Divergent(Ability):
    """A task that has a divergence between two predictions."""

    ability = "a divergence between two predictions"

    @abc.abstractmethod
    def divergence(self, logits: Tensor, other: Tensor, real: Tensor | None = None) -> Tensor:
        """Return the divergence of two predictions for the same rows, (batch,): 0 if they are equal, else above 0.

        For probabilities it is KL(logits || other) in nats, averaged over a row's labels, thresholds or tokens if it
        has several, as in the loss. For numbers it is the squared difference on the learned scale. Gradients flow into
        both.

        Args:
            logits, other: (batch, ...) each; for a task with `reads`, (batch, tokens, logits).
            real: (batch, tokens) bool, the real tokens, for a task with `reads`, else None; without any it is 0.
        """


class Categorical(Ability):
    """A task whose answer is one of several classes: its logits are (batch, classes), its probabilities their softmax,
    and its encoded target is class indices, (batch,) int64."""

    ability = "one answer among several classes"


class Distilled(Ability):
    """A task that can learn from what a teacher, another model of the same target, answers for a row."""

    ability = "answers that a teacher's can be compared with"

    @abc.abstractmethod
    def reference(self, teacher: TargetTask, answers: np.ndarray) -> np.ndarray:
        """Return a teacher's answers in this task's form, (rows, values) float32; NaN for what it does not know.

        Args:
            teacher: the teacher's task, fitted.
            answers: (rows, ...) as `teacher.answers` returns them.

        Raises:
            ConfigError: the two tasks have nothing to compare.
        """

    @abc.abstractmethod
    def distillation(self, logits: Tensor, reference: Tensor, temperature: float) -> Tensor:
        """Return each row's loss against a teacher's answers, (batch,): least where both predict alike.

        Args:
            logits: (batch, ...), the student's.
            reference: (batch, values) from `reference`; what is NaN is not compared, and a row of NaN has the loss 0.
            temperature: T, above 0; probabilities are those of logits / T, and their loss is multiplied by T².
        """


class Exported(Ability):
    """A task whose answers are computed inside an exported model."""

    ability = "answers that an exported model computes"

    @abc.abstractmethod
    def answer_module(self) -> nn.Module:
        """Build a module from logits, (rows, ...), to float32 answers, equal to `TargetTask.answers` up to rounding."""

    @abc.abstractmethod
    def output_form(self) -> dict[str, Any]:
        """Return how answers become the output table's columns, as JSON; see `fusetune.tasks.output_columns`."""


class Labelled(Ability):
    """A task whose rows can share labels: its encoded target is class indices, (batch,) int64, or a 0/1 matrix,
    (batch, labels)."""

    ability = "labels that rows can share"


class Thresholded(Ability):
    """A task whose decision thresholds are tuned on validation rows.

    `measured` contains the decisions, so that every system of a comparison is measured by thresholds of its own:
    `metrics` applies none.
    """

    ability = "thresholds"

    @abc.abstractmethod
    def tune(self, answers: np.ndarray, truth: np.ndarray) -> None:
        """Choose the thresholds on validation rows, if the task's options ask for it.

        Args:
            answers: (rows, ...) as `TargetTask.answers` returns them.
            truth: (rows, ...) as `TargetTask.truth` returns it.
        """


class Boosted(Ability):
    """A task that gradient-boosted trees can learn: with one booster or several."""

    ability = "boosted trees"

    @property
    @abc.abstractmethod
    def num_boosters(self) -> int:
        """The number of boosters, at least 1."""

    @property
    def trees_per_round(self) -> int:
        """The number of trees that a booster grows per round: 1, or the number of classes."""
        return 1

    @abc.abstractmethod
    def boosting(self, truth: np.ndarray, booster: int) -> tuple[dict[str, Any], np.ndarray]:
        """Return LightGBM's parameters of a booster's objective, and the labels that it learns, (rows,).

        Args:
            truth: (rows, ...) as `TargetTask.truth` returns it; may have no rows.
            booster: 0 to `num_boosters` - 1.
        """

    @abc.abstractmethod
    def boosted_logits(self, raw: Sequence[np.ndarray]) -> np.ndarray:
        """Convert the boosters' raw scores to logits in the form of the task's head.

        Args:
            raw: per booster (rows,), or (rows, trees_per_round) if it grows several trees per round.
        """

    @abc.abstractmethod
    def row_losses(self, answers: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Return a proper score per row, (rows,), lower is better.

        It is the log loss in nats for probabilities, the squared error for numbers.

        Args:
            answers: (rows, ...) as `TargetTask.answers` returns them.
            truth: (rows, ...) as `TargetTask.truth` returns it.
        """


@dataclass(frozen=True)
class Guess:
    """Answers that need no model: a name, a description, and (rows, ...) as `TargetTask.answers` returns them."""

    name: str
    description: str
    answers: np.ndarray


class Choosing(Ability):
    """A task that chooses one of several texts that the row brings."""

    ability = "a choice among texts of the row"

    @abc.abstractmethod
    def example(self, values: Sequence[Any]) -> str:
        """Return a row with its choices and the right one, for people to see how targets are read.

        Args:
            values: targets as `resolve` returns them, of which the task is fitted.

        Raises:
            TableError: as `fit`.
        """

    @abc.abstractmethod
    def guesses(self, train: np.ndarray, truth: np.ndarray) -> list[Guess]:
        """Return answers by rules that look at the choices alone, such as the longest one.

        Args:
            train: (rows,) the truth of train rows, for rates.
            truth: (rows,) of the rows to answer; only their choices are used.
        """

    @abc.abstractmethod
    def texts(self, tokens: TextTokens) -> list[tuple[str, list[str]]]:
        """Return each row's text before the choices, and its choices, "" for blank ones."""

    @abc.abstractmethod
    def from_scores(self, scores: Sequence[np.ndarray], tokens: TextTokens) -> np.ndarray:
        """Return the answers whose logits are these.

        Args:
            scores: by row (choices,), NaN for blank ones.
            tokens: the rows' choices.
        """


class ShowsText(Ability):
    """A task with one answer a row about parts of a text, which its panels show.

    Attributes:
        shows: the text column, once `reading` has chosen it.
    """

    ability = "a text that its panels show"
    shows: str | None = None


class ShowsChange(Ability):
    """A task whose answers before and after tuning are shown side by side."""

    ability = "answers that are shown before and after tuning"

    @abc.abstractmethod
    def changed(
        self, before: tuple[np.ndarray, np.ndarray], after: tuple[np.ndarray, np.ndarray], truth: np.ndarray, num: int
    ) -> ChangedRows:
        """Return the rows whose answers tuning changed most for the better and for the worse, and some at random.

        Args:
            before: answers of the pretrained model, (rows, ...), and what `Task.measured` returns for them.
            after: the same of the tuned model.
            truth: (rows, ...).
            num: the most rows.
        """


class Summed(Ability):
    """A task whose `metrics` depend on the weighted sums of the measured counts only, never on single rows or truths:
    the metrics of all rows are those of one row that has the sums of their counts."""

    ability = "metrics of sums of counts"


class Writes(Ability):
    """A task that a language model answers by writing text.

    Attributes:
        prompt: the column of the rows' prompts, once the fit has made it.
        template: the task's own template of a prompt, or None.
        max_tokens: most tokens of an answer, its end included; 0 before `fit`.
        chats: whether cells are chats, whose last turn, the assistant's, is the answer and the others the prompt.
    """

    ability = "answers that a language model writes"
    prompt: str
    template: str | None
    max_tokens: int
    chats: bool = False

    @abc.abstractmethod
    def look(self, values: Sequence[Any]) -> None:
        """Find out from a sample of the target's cells whether they are chats."""

    @abc.abstractmethod
    def write_with(self, encode: Callable[[str], list[int]], most: int, *, fixed: bool = False) -> None:
        """Take the language model's tokenizer: call it before `fit` and `encode`.

        Args:
            encode: returns the ids of an answer, its end included.
            most: most tokens of an answer, which it may have although no train row's has so many if that is `fixed`.
        """

    @abc.abstractmethod
    def learn_turns(self, earlier: Callable[[Any], list[int]] | None) -> None:
        """Learn a chat's earlier answers, too: `earlier` returns their ids, and −2 − id of what is read in between."""

    @abc.abstractmethod
    def candidates(self, texts: Sequence[str]) -> Target:
        """Encode texts as `encode` does cells, whichever they are."""


class Prefers(Writes):
    """A task of pairs of answers, (rows, 2, answer tokens), the first of which a language model learns to prefer."""

    ability = "pairs of answers"

    @abc.abstractmethod
    def pair_losses(self, log_probabilities: Tensor, sizes: Tensor, reference: Tensor) -> Tensor:
        """Return each row's loss, (rows,), given the answers' log-probabilities and numbers of tokens, (rows, 2)."""

    @abc.abstractmethod
    def rewards(self, log_probabilities: Tensor, reference: Tensor) -> Tensor:
        """Return how much likelier than before tuning each answer is, times the task's β, (rows, 2)."""

    @abc.abstractmethod
    def figures(self, logits: Tensor, target: Target) -> dict[str, Tensor]:
        """Return what is logged of a batch beside its loss, by name; scalars."""


class DetectedInTable(Ability):
    """A task that is found by other columns of the table beside the target."""

    ability = "columns beside the target that tell it"

    @classmethod
    @abc.abstractmethod
    def detect_in(cls, table: Table, target: str) -> Detection:
        """Return how well a table's columns fit this task; the target has values."""
