"""Pairs of answers, one preferred to the other, by which a language model is tuned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fusetune.data.table import is_missing
from fusetune.errors import BadCell, ConfigError, TableError
from fusetune.modalities.base import Detection
from fusetune.modalities.messages import last_turn, parse_messages
from fusetune.modalities.words import check_text
from fusetune.tasks.abilities import Prefers
from fusetune.tasks.state import restored, state_of
from fusetune.tasks.text.task import LEARNED, GenerateTask, padded, references
from fusetune.types import Message, Target, TextTokens

OPTIONS = ("rejected", "template", "beta", "label_smoothing", "sft_weight")


class PreferenceTask(GenerateTask, Prefers):
    """Text that a language model writes, learned from pairs: the target's answer is preferred to another column's.

    A cell is a pair. Each of the two is a text, a list of texts, the first of which is learned, or a chat, whose last
    turn is the answer.

    Args:
        rejected: the column of the answers that the target's are preferred to.
        template: of the prompt, as `Translate to German: {en}`; None for that of the settings.
        beta: β > 0, the strength of the pull towards the model before tuning.
        label_smoothing: ε in [0, 0.5): the share of pairs that are taken to be the wrong way round.
        sft_weight: α ≥ 0, the weight of the chosen answer's mean −log-likelihood of a token.

    Loss: −(1 − ε) · log σ(m) − ε · log σ(−m) + α · (−log p(chosen) / its tokens), with the margin m = β · (Δ(chosen) −
    Δ(rejected)) and Δ(answer) = log p(answer | prompt) − the same before tuning. The mean over rows.

    Answers: as of `GenerateTask`; the truth is the chosen answer.

    Requires: a language model that writes, columns of words for its prompt, or chats.

    Relations: `generate` learns the target alone. DPO starts best from a model that was tuned by it.

    Example:
        >>> task = PreferenceTask("answer", rejected="worse", beta=1.0)
        >>> before = torch.tensor([[-10.0, -10.0]])
        >>> task.pair_losses(torch.tensor([[-9.0, -11.0]]), torch.tensor([[4, 4]]), before)
        tensor([0.1269])

    Reference: Rafailov et al. 2023 (arXiv 2305.18290), DPO; Mitchell 2023, "A note on DPO with noisy preferences", the
    label smoothing; Pang et al. 2024 (arXiv 2404.19733), the term of the chosen answer's likelihood.
    """

    name = "preference"

    def __init__(
        self,
        target: str,
        *,
        rejected: str | None = None,
        template: str | None = None,
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        sft_weight: float = 0.0,
    ) -> None:
        """
        Args:
            target: the column of the chosen answers.

        For the other arguments see the class.

        Raises:
            ConfigError: an option is missing or out of range.
        """
        super().__init__(target, template=template, label_smoothing=label_smoothing)
        where = f"tasks.{target}"
        if not rejected or rejected == target:
            what = f"{where}.rejected names the column of the answers that are not preferred"
            raise ConfigError(what, came="nothing" if not rejected else "the target", do=f"{where}.rejected=COLUMN")
        if not 0 < beta < math.inf:
            raise ConfigError(f"{where}.beta is a strength", expected="a number above 0, such as 0.1", came=str(beta))
        if label_smoothing >= 0.5:
            what = f"{where}.label_smoothing is a share of pairs"
            raise ConfigError(what, expected="from 0 to below 0.5", came=str(label_smoothing))
        if not 0 <= sft_weight < math.inf:
            what = f"{where}.sft_weight is a weight in the loss"
            raise ConfigError(what, expected="a number from 0", came=str(sft_weight))
        self.rejected = self.second = rejected
        self.beta, self.sft_weight = beta, sft_weight

    @classmethod
    def detect(cls, values: Sequence[Any]) -> Detection:
        """Return 0: which answers are preferred cannot be told from the cells."""
        return Detection(0.0, "pairs of answers are never guessed")

    def _texts(self, value: Any, *, row: int = 0) -> list[str]:
        """Return the chosen right answers of a pair, or of a cell alone; see `GenerateTask`."""
        return super()._texts(value[0] if isinstance(value, tuple) else value, row=row)

    def _rejected_text(self, pair: Any, *, row: int = 0) -> str:
        """Return the rejected answer of a pair; "" without one.

        Raises:
            BadCell: it is no answer to the same prompt.
        """
        chosen, cell = pair if isinstance(pair, tuple) else (pair, None)
        if is_missing(cell):
            return ""
        if self.chats and not isinstance(cell, str | int | float):
            return self._rejected_turn(chosen, cell, row=row)
        if self.chats and isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
            return self._rejected_turn(chosen, cell, row=row)
        return (references(cell) or [""])[0]

    def _rejected_turn(self, chosen: Any, cell: Any, *, row: int) -> str:
        """Return the last turn of a rejected chat, whose other turns, if there are any, are the chosen one's."""
        messages = parse_messages(cell, row=row, column=self.rejected)
        if len(messages) == 1 and messages[0].role == "assistant":
            return messages[0].text.strip()
        before, answer = last_turn(messages, row=row, column=self.rejected)
        asked = last_turn(parse_messages(chosen, row=row, column=self.target), row=row, column=self.target)[0]
        if _said(before) != _said(asked):
            why = f"the turns before its last answer are not those of {self.target}, so the prompts differ"
            raise BadCell(row=row, column=self.rejected, value=cell, why=why, do="give both chats the same beginning")
        return answer.strip()

    def _pair(self, value: Any) -> tuple[list[int], list[int]]:
        """Return the ids of the chosen and of the rejected answer, cut to `max_tokens`; none if one is missing."""
        chosen = (self._readable(value) or [""])[0]
        try:
            rejected = self._rejected_text(value)
        except BadCell:
            rejected = ""
        if not chosen or not rejected:
            return [], []
        first, second = (self._tokens(text)[: self.max_tokens] for text in (chosen, rejected))
        return ([], []) if first == second else (first, second)

    def fit(self, values: Sequence[Any]) -> None:
        """Find the main metric and the longest answer, of the chosen and the rejected ones.

        Raises:
            TableError: no cell has a text, or no row a pair.
        """
        super().fit(values)
        rejected = []
        for value in values:
            try:
                rejected.append(self._rejected_text(value))
            except BadCell:
                continue
        lengths = [len(self._tokens(text)) for text in rejected if text]
        if not lengths:
            do = f"name another column: tasks.{self.target}.rejected=COLUMN"
            raise TableError("no row has a rejected answer", do=do, column=self.rejected)
        if not self._fixed:
            self.max_tokens = min(max(self.max_tokens, *lengths), self._most)
        if num := sum(length > self.max_tokens for length in lengths):
            self.choice += f"; {num:,} rejected answers have more than {self.max_tokens} tokens and are cut"

    def check(self, value: Any, *, row: int) -> None:
        """See `TargetTask.check`: refuse pairs of which nothing can be learned.

        The cell alone, of a table that lacks the second column, is measured by what is written.
        """
        super().check(value, row=row)
        if not isinstance(value, tuple):
            return
        rejected, own = self._rejected_text(value, row=row), value[1]
        if not rejected:
            why, do = f"the row has no answer that {self.target} is preferred to", "give one, or empty both cells"
            raise BadCell(row=row, column=self.rejected, value=own, why=why, do=do)
        check_text(rejected, row=row, column=self.rejected)
        if not self._pair(value)[0]:
            same = self._tokens(self._texts(value, row=row)[0]) == self._tokens(rejected)
            why = f"it is the answer of {self.target}, so there is nothing to prefer"
            if not same:
                why = f"both answers begin with the same {self.max_tokens} tokens, to which they are cut"
            do = "leave the row out" if same else "raise prompt.max_answer_tokens"
            raise BadCell(row=row, column=self.rejected, value=own, why=why, do=do)

    def encode(self, values: Sequence[Any], tokens: TextTokens | None = None) -> Target:
        """See `TargetTask.encode`: values are the ids of chosen and rejected answers, (rows, 2, answer tokens)."""
        pairs = [self._pair(value) for value in values]
        flat = padded([ids for pair in pairs for ids in pair]).values
        return Target(flat.view(len(pairs), 2, -1), torch.tensor([bool(first) for first, _ in pairs]))

    def terms(self, logits: Tensor, target: Target) -> Tensor:
        """See `TargetTask.terms`.

        Args:
            logits: (batch, 2, answer tokens, 2) of `Generate.forward`: 0 behind an answer.
            target: of the same rows, with the log-probabilities before tuning as its reference.
        """
        assert target.reference is not None, "the answers' log-probabilities before tuning are given"
        sizes = (target.values >= 0).sum(2)
        return self.pair_losses(logits[..., 0].sum(2), sizes, target.reference)

    def pair_losses(self, log_probabilities: Tensor, sizes: Tensor, reference: Tensor) -> Tensor:
        """See `Prefers.pair_losses`."""
        rewards = self.rewards(log_probabilities, reference)
        margin, share = rewards[:, 0] - rewards[:, 1], self.label_smoothing
        losses: Tensor = -(1 - share) * logsigmoid(margin) - share * logsigmoid(-margin)
        if self.sft_weight:
            losses = losses - self.sft_weight * log_probabilities[:, 0] / sizes[:, 0].clamp(min=1)
        return losses

    def rewards(self, log_probabilities: Tensor, reference: Tensor) -> Tensor:
        """See `Prefers.rewards`."""
        return self.beta * (log_probabilities - reference.to(log_probabilities.dtype))

    def figures(self, logits: Tensor, target: Target) -> dict[str, Tensor]:
        """See `Prefers.figures`: the margin, the rewards and the share of pairs with a positive margin."""
        rows = target.labelled
        if target.reference is None or not bool(rows.any()):
            return {}
        rewards = self.rewards(logits[rows][..., 0].sum(2), target.reference[rows])
        margins = rewards[:, 0] - rewards[:, 1]
        return {
            "reward_margin": margins.mean(),
            "reward_accuracy": (margins > 0).float().mean(),
            "chosen_reward": rewards[:, 0].mean(),
            "rejected_reward": rewards[:, 1].mean(),
        }

    def state(self) -> dict[str, Any]:
        """See `Task.state`."""
        return state_of(self, OPTIONS, LEARNED)

    @classmethod
    def from_state(cls, target: str, state: dict[str, Any]) -> PreferenceTask:
        """Restore a task from its `state()`."""
        return restored(cls(target, **state["options"]), LEARNED, {"chats": False, **state})


def _said(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [(message.role, message.text.strip()) for message in messages]
