"""The contract of tasks that answer token by token, or choice by choice."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any

from fusetune.tasks.base import TargetTask
from fusetune.tasks.reading import Reading

if TYPE_CHECKING:
    from fusetune.data.schema import Schema


class TokenTask(TargetTask):
    """A task that answers about the tokens of a text, `reads`: its head, targets and logits have an axis of tokens.

    `encode` and `answers` are given the rows' `TextTokens`. The model's logits are 0 where a token is not real, and a
    row without the text has no real token. A row's terms are sums over its tokens, and `Target.sizes` their number.
    """

    @abc.abstractmethod
    def reading(self, schema: Schema) -> Reading:
        """See `TargetTask.reading`."""

    def resolve(self, value: Any, cell: Any, *, row: int) -> Any:
        """Return a target's cell in the form that `fit`, `check`, `encode` and `truth` take.

        Called for a task with `reads` only, whose target may refer to the text: tags of its words, an answer in it.

        Args:
            value: the target's cell, not missing; of the row with this id.
            cell: the row's cell of the column `reads`.

        Raises:
            BadCell: the value does not fit the cell.
        """
        return value
