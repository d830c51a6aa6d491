"""Small tables for tests of tasks that answer token by token, and the prepared rows of one."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusetune.backbones.backbone import Backbone
from fusetune.backbones.load import load_backbone
from fusetune.data.examples import Examples
from fusetune.data.schema import ColumnSpec, Schema
from fusetune.data.table import Table
from fusetune.errors import UserError
from fusetune.fitting.reading import read_for_tasks
from fusetune.modalities.text import TextModality
from fusetune.tasks.token_head import with_shared
from fusetune.tasks.token_task import TokenTask
from fusetune.testing.tiny_models import make as make_model
from fusetune.types import Target, TextTokens

TARGET = "target"
DIM = 8
WINDOW, LONGEST = 12, 32
"""Tokens of a window in which no example text fits, and tokens of one in which each does."""
MakeTokenTask = Callable[[str], TokenTask]
"""`make(target)`: the class, or a `functools.partial` of it."""


@dataclass(frozen=True)
class TokenTable:
    """Rows that a token task can be fitted on.

    Attributes:
        columns: by name, the cells of the text columns, and of the target under the name "target". Every row has a
            value of each, texts differ in length, and the longest has 16 to 24 words.
        bad: rows, as {column: cell}, whose target does not fit their text.
    """

    columns: Mapping[str, Sequence[Any]]
    bad: Sequence[Mapping[str, Any]] = ()

    def __len__(self) -> int:
        return len(self.columns[TARGET])

    def records(self) -> list[dict[str, Any]]:
        """Return the rows as dictionaries."""
        return [{name: cells[row] for name, cells in self.columns.items()} for row in range(len(self))]


def example_tables(rows: int = 24) -> dict[str, TokenTable]:
    """Return tables with targets in several forms: tags of words, spans of a text, answers in a context, choices.

    Args:
        rows: number of rows of each table, 12 or more.
    """
    texts, places = _texts(rows)
    words = [text.split(" ") for text in texts]
    names = ["person" if number % 2 else "town" for number in range(rows)]
    starts = [len(" ".join([*own[:at], ""])) for own, at in zip(words, places, strict=True)]
    tags, spans, answers = [], [], []
    for own, at, start, name in zip(words, places, starts, names, strict=True):
        end = start + len(" ".join(own[at : at + 2]))
        prefixes = {at: f"B-{name}", at + 1: f"I-{name}"}
        tags.append([prefixes.get(place, "O") for place in range(len(own))])
        spans.append([{"start": start, "end": end, "label": name}])
        answers.append((" ".join(own[at : at + 2]), start))
    tags[0], spans[0] = ["O"] * len(words[0]), []
    questions = [f"w{number % 3} ?" for number in range(rows)]
    context = {"question": questions, "context": texts}
    silent = [number % 4 == 3 for number in range(rows)]
    squad = [
        {"text": [] if none else [text], "answer_start": [] if none else [start]}
        for none, (text, start) in zip(silent, answers, strict=True)
    ]
    columns_of_starts = [("", -1) if none else answer for none, answer in zip(silent, answers, strict=True)]
    wrong = {"question": "w0 ?", "context": "w1 w2"}
    return {
        "tags of words": TokenTable({"words": words, TARGET: tags}, [{"words": ["w1", "w2"], TARGET: ["O"]}]),
        "spans of a text": TokenTable(
            {"text": texts, TARGET: spans},
            [{"text": "w1", TARGET: [{"start": 0, "end": 9, "label": "town"}]}, {"text": "w1", TARGET: "town"}],
        ),
        "answers with starts": TokenTable(
            {**context, TARGET: squad}, [{**wrong, TARGET: {"text": ["w2"], "answer_start": [0]}}]
        ),
        "answers and a column of starts": TokenTable(
            {
                **context,
                TARGET: [text for text, _ in columns_of_starts],
                f"{TARGET}_start": [start for _, start in columns_of_starts],
            },
            [{**wrong, TARGET: "w2", f"{TARGET}_start": 0}],
        ),
        **_triples(texts, words),
        **_choices(texts, words),
    }


def _triples(texts: Sequence[str], words: Sequence[Sequence[str]]) -> dict[str, TokenTable]:
    """Return tables with two or three entities a row and relations between them, as one cell and as lists of triples.

    Args:
        texts: the rows' texts.
        words: the same, word by word.
    """
    cells: list[dict[str, Any]] = []
    for row, own in enumerate(words):
        starts = np.cumsum([0, *(len(word) + 1 for word in own)])[:-1].tolist()
        places = sorted({0, len(own) - 1, row % len(own)})
        entities = [
            {"start": starts[at], "end": starts[at] + len(own[at]), "label": "town" if (row + at) % 3 else "person"}
            for at in places
        ]
        head, tail = (0, len(places) - 1) if row % 2 else (len(places) - 1, 0)
        relations = [{"head": head, "tail": tail, "label": "in" if row % 3 else "near"}]
        cells.append({"entities": entities, "relations": relations if row else []})
    ends = [
        [{**r, "head": c["entities"][r["head"]], "tail": c["entities"][r["tail"]]} for r in c["relations"]]
        for c in cells
    ]
    one, far = {"start": 0, "end": 2, "label": "town"}, {"start": 0, "end": 9, "label": "town"}
    wrong = [
        {"entities": [one], "relations": [{"head": 0, "tail": 1, "label": "in"}]},
        {"entities": [far], "relations": []},
    ]
    return {
        "entities and relations": TokenTable(
            {"text": texts, TARGET: cells}, [{"text": "w1 w2", TARGET: cell} for cell in wrong]
        ),
        "triples": TokenTable(
            {"text": texts, TARGET: ends},
            [{"text": "w1 w2", TARGET: [{"head": one, "tail": far, "label": "in"}]}, {"text": "w1", TARGET: "in"}],
        ),
    }


def _choices(texts: Sequence[str], words: Sequence[Sequence[str]]) -> dict[str, TokenTable]:
    """Return tables with 2 to 4 choices a row: in columns, answered by letters, and in lists, answered by their texts.

    Args:
        texts: the rows' contexts.
        words: the same, word by word.
    """
    choices = [
        [f"w{number}" + f" w{(row + number) % 40}" * (number % 2) for number in range(2 + row % 3)]
        for row in range(len(texts))
    ]
    choices[0], choices[1] = [words[0][0], words[1][0] + " w39"], ["w1", "w2 w3", "w4", "w5"]
    rights = [row % 2 if row % 5 else len(own) - 1 for row, own in enumerate(choices)]
    columns = {
        f"option{letter}": [own[place] if place < len(own) else None for own in choices]
        for place, letter in enumerate("ABCD")
    }
    wrong = {"context": "w1", "optionA": "w2", "optionB": "w3", "optionC": None, "optionD": None}
    return {
        "choices in columns": TokenTable(
            {"context": texts, **columns, TARGET: ["ABCD"[right] for right in rights]},
            [{**wrong, TARGET: "C"}, {**wrong, TARGET: "yes"}, {**wrong, "optionB": "w2", TARGET: "A"}],
        ),
        "choices in lists": TokenTable(
            {"context": texts, "choices": choices, TARGET: [own[at] for own, at in zip(choices, rights, strict=True)]},
            [{"context": "w1", "choices": ["w2", "w3"], TARGET: "w4"}, {"context": "w1", "choices": [], TARGET: "w4"}],
        ),
    }


def _texts(rows: int) -> tuple[list[str], list[int]]:
    """Return texts of 3 to 20 words, and for each the place of a word that another follows."""
    rng = np.random.default_rng(0)
    texts, places = [], []
    for row in range(rows):
        num = 20 if row == 1 else int(rng.integers(3, 21))
        texts.append(" ".join(f"w{number}" for number in rng.integers(0, 40, num)))
        places.append(int(rng.integers(0, num - 1)))
    return texts, places


@functools.cache
def _backbone(max_tokens: int) -> Backbone:
    with tempfile.TemporaryDirectory() as folder:
        return load_backbone(str(make_model("bert", Path(folder) / "bert")), "text", max_tokens=max_tokens)


class TokenCase:
    """A token task, fitted on the rows of a table.

    Attributes:
        task: the fitted task; `reads` is the column that it answers about.
        examples: the prepared rows.
        rows: (rows,) their positions.
    """

    def __init__(
        self,
        make: MakeTokenTask,
        records: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int = LONGEST,
        task: TokenTask | None = None,
    ) -> None:
        """
        Args:
            make: `make(target)` builds the task.
            records: rows as {column: cell}; columns of numbers are no texts.
            max_tokens: of a window of the text.
            task: a fitted task to use; None to build one and fit it on the rows.

        Raises:
            UserError: the task does not read these columns, or cannot be fitted on them.
        """
        own = make(TARGET) if task is None else task
        names = dict.fromkeys(name for record in records for name in record)
        specs = {
            name: ColumnSpec(
                name,
                "number" if any(isinstance(record.get(name), int | float) for record in records) else "text",
                "target" if name == TARGET else "input",
            )
            for name in names
        }
        schema = read_for_tasks(Schema(specs), {TARGET: own})
        assert own.reads is not None, "the task's reading says that it does not answer by token"
        table = Table.from_records([dict(record) for record in records]).with_joined(schema.joins())
        modality = TextModality(own.reads, backbone=_backbone(max_tokens), **schema.columns[own.reads].options)
        self.task, self.rows = own, np.arange(len(records))
        self.examples = Examples(table, {own.reads: modality}, {TARGET: own})
        self.examples.prepare(on_bad_cell="reject")
        if task is None:
            own.fit(self.values)

    @property
    def reads(self) -> str:
        """The column that the task answers about."""
        assert self.task.reads is not None
        return self.task.reads

    @property
    def values(self) -> list[Any]:
        """The target's cells as `resolve` returns them; None for an unlabelled row and for one that is refused."""
        return self.examples.targets[TARGET].take(self.rows)

    @property
    def cells(self) -> list[Any]:
        """The cells of the column that the task answers about."""
        return self.examples.table.cells(self.reads, self.rows)

    @property
    def truth(self) -> np.ndarray:
        """The labelled rows' truth."""
        return self.task.truth([value for value in self.values if value is not None])

    def tokens(self, rows: np.ndarray | None = None) -> TextTokens:
        """Return the tokens of some rows, or of all, with their texts."""
        return self.examples.tokens(self.reads, self.rows if rows is None else rows)

    def encode(self, rows: np.ndarray | None = None) -> Target:
        """Return the encoded targets of some rows, or of all."""
        return self.examples.encode(TARGET, self.rows if rows is None else rows)

    def features(self) -> Tensor:
        """Return random features of the tokens, (rows, tokens, `DIM`), 0 at padding."""
        real = torch.from_numpy(self.tokens().real)
        values = torch.randn(*real.shape, DIM, generator=torch.Generator().manual_seed(0))
        return values.masked_fill(~real.unsqueeze(2), 0)

    def logits(self, *, seed: int = 0, scale: float = 1.0) -> Tensor:
        """Return the logits of an untrained head as the model gives them: 0 at padding, after any shared rows.

        Args:
            seed: of the head.
            scale: of the logits.
        """
        torch.manual_seed(seed)
        head = self.task.build_head(DIM)
        logits = head(self.features()).masked_fill(~torch.from_numpy(self.tokens().real).unsqueeze(2), 0)
        return scale * with_shared(head, logits)

    def answers(self, logits: Tensor | None = None) -> np.ndarray:
        """Return the task's answers for all rows, by default for the logits of an untrained head."""
        return self.task.answers((self.logits() if logits is None else logits).detach(), self.tokens())

    def learned_logits(self, *, steps: int = 60) -> Tensor:
        """Return logits at which the task's loss is next to 0, (rows, tokens, logits), found by gradient descent."""
        target, weights = self.encode(), torch.ones(len(self.rows))
        logits = torch.zeros_like(self.logits()).requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=0.5)
        for _ in range(steps):
            optimizer.zero_grad()
            torch.autograd.backward(self.task.loss(logits, target, weights))
            optimizer.step()
        return logits.detach()

    def main(self, answers: np.ndarray, truth: np.ndarray | None = None) -> float:
        """Return the main metric of the labelled rows' answers, with the sign by which more is better."""
        value = self.task.evaluate(answers, self.truth if truth is None else truth)[self.task.main.name]
        return value if self.task.main.greater_is_better else -value


def token_case(make: MakeTokenTask, table: TokenTable, **options: Any) -> TokenCase:
    """Return a task, fitted on a table's rows; see `TokenCase` for the options."""
    return TokenCase(make, table.records(), **options)


def usable_tables(make: MakeTokenTask) -> dict[str, TokenTable]:
    """Return those of the `example_tables` that a task reads and whose targets it takes.

    Args:
        make: `make(target)` builds a task.
    """
    usable = {}
    for name, table in example_tables().items():
        try:
            case = token_case(make, table)
        except UserError:
            continue
        if all(value is not None for value in case.values):
            usable[name] = table
    return usable
