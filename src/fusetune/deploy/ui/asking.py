"""What the page asks of the model: a row's answers, all labels' probabilities, and those without a column."""

from __future__ import annotations

import html
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from fusetune._optional import optional_import
from fusetune.data.column import Progress
from fusetune.data.examples import Examples
from fusetune.deploy.bundle import Bundle
from fusetune.deploy.outputs import OUTPUTS, TargetColumns
from fusetune.deploy.serve.inputs import Record, table_of
from fusetune.deploy.serve.loaded import Loaded
from fusetune.deploy.serve.problems import Problem
from fusetune.deploy.tuned import predict_parts
from fusetune.deploy.ui.widgets import PURPOSE
from fusetune.errors import UserError
from fusetune.models.understand import Understand

gr: Any = optional_import("gradio", PURPOSE)
MAX_EXPLAINED = 16
"""The most columns of a row whose part in an answer is computed."""


@dataclass(frozen=True)
class Answered:
    """What a model says of a row.

    Attributes:
        record: the row's cells.
        columns: by name, the row of the output table, as `FineTuned.predict` gives it.
        scores: by task, the answer before it is decided on, as (labels,) probabilities; none of a model that compares
            or writes.
        without: by column that the row has, the same without it; empty for a row with a single cell.
    """

    record: Record
    columns: dict[str, Any]
    scores: dict[str, Any]
    without: dict[str, dict[str, Any]]

    @property
    def error(self) -> str | None:
        """Why the row has no prediction, or which cells were ignored."""
        error: str | None = list(self.columns.values())[-1]
        return error


class _Scores(TargetColumns):
    """The columns of predictions, with the scores that they are made from."""

    def __init__(self) -> None:
        self.by_row: dict[int, dict[str, Any]] = {}

    def scores(self, bundle: Bundle, examples: Examples, progress: Progress | None) -> dict[str, np.ndarray]:
        """Return each task's scores and remember those of each row."""
        scores = super().scores(bundle, examples, progress)
        for place, row in enumerate(examples.table.rows[examples.used].tolist()):
            self.by_row[row] = {name: values[place] for name, values in scores.items()}
        return scores


def ask(model: Loaded, record: Record, *, explain: bool = False) -> Answered:
    """Return what a model says of a row.

    Args:
        model: the model.
        record: the row's cells.
        explain: whether to predict it without each of its columns too.

    Raises:
        UserError: the row cannot be read.
    """
    present = [name for name in model.inputs.kinds if record.get(name) is not None]
    can = explain and isinstance(model.bundle.model, Understand) and 1 < len(present) <= MAX_EXPLAINED
    left_out = present if can else []
    records = [record, *({**record, name: None} for name in left_out)]
    output = _Scores() if isinstance(model.bundle.model, Understand) else OUTPUTS[model.bundle.model.name]
    (part,) = predict_parts(model.bundle, table_of(records), precision=model.precision, output=output)
    by_row = output.by_row if isinstance(output, _Scores) else {}
    without = {name: by_row.get(number, {}) for number, name in enumerate(left_out, start=1)}
    columns = part.table.slice(0, 1).to_pylist()[0]
    return Answered(record, columns, by_row.get(0, {}), {name: own for name, own in without.items() if own})


@contextmanager
def shown_errors() -> Iterator[None]:
    """Show a mistake's sentence in the page; of a failure of ours say that the terminal has the reason."""
    try:
        yield
    except Problem as problem:
        raise _shown(problem.message) from None
    except UserError as error:
        raise _shown(Problem.of(error).message) from None
    except Exception as error:
        traceback.print_exception(error, file=sys.stderr)
        raise _shown("the model failed; the reason is in the terminal of fusetune ui") from None


def refused(message: str) -> Problem:
    """Return the problem of what is asked for in the page."""
    return Problem(422, "refused", message)


def _shown(message: str) -> Exception:
    """Return the error that shows a sentence; it is shown as text, whatever it quotes."""
    error: Exception = gr.Error(html.escape(message, quote=False), duration=None, print_exception=False)
    return error


def similarities(answered: Answered, sides: Sequence[str]) -> list[list[Any]]:
    """Return the cosine similarity of each two sides that a row has."""
    vectors = {side: np.asarray(answered.columns[f"{side}_vector"] or [], dtype=np.float64) for side in sides}
    present = [side for side in sides if vectors[side].any()]
    units = {side: vectors[side] / np.linalg.norm(vectors[side]) for side in present}
    return [[one, other, f"{units[one] @ units[other]:.3f}"] for one, other in combinations(present, 2)]


def top(scores: Sequence[float], labels: Sequence[str]) -> dict[str, float]:
    """Return probabilities by label."""
    return {label: float(score) for label, score in zip(labels, scores, strict=True)}
