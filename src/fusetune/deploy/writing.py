"""What a tuned model that writes offers beside predictions: other settings, streams, chats, and a plain folder."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack

from fusetune.config.config import Config
from fusetune.config.data import OnBadCell
from fusetune.deploy.bundle import Bundle
from fusetune.deploy.chat import ChatOptions, ChatSession
from fusetune.deploy.export.transformers_folder import save_transformers
from fusetune.deploy.predictions import Predictions
from fusetune.deploy.rows import Rows
from fusetune.deploy.tuned import predict, read_examples
from fusetune.errors import ConfigError, TableError, nearest
from fusetune.inference.write import decoding_of, stream
from fusetune.models.generate import Generate
from fusetune.tasks.abilities import Writes
from fusetune.training.progress import track


class Generation(TypedDict, total=False):
    """Settings of how answers are written, as in `GenerationConfig`; those left out are the run's."""

    beams: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop: Sequence[str]
    choices: Sequence[str]
    regex: str
    json_schema: dict[str, Any] | None
    max_tokens: int | None


class Writing:
    """The methods of `FineTuned` for models that write.

    Attributes:
        bundle: the tuned model.
    """

    bundle: Bundle

    def with_generation(self, **generation: Unpack[Generation]) -> Self:
        """Return this model with other settings of how answers are written; it shares the weights.

        Args:
            generation: see `GenerationConfig`; those left out stay.

        Raises:
            ConfigError: the model does not write, or a setting is wrong or does not go with another.

        Example:
            >>> tuned.with_generation(beams=4).predict_to("new.csv", "answers.csv")
        """
        _writer(self.bundle)
        asked: dict[str, Any] = dict(generation)
        for name in asked.keys() & {"stop", "choices"}:
            asked[name] = [asked[name]] if isinstance(asked[name], str) else list(asked[name] or ())
        settings = {**self.bundle.config.generation.model_dump(), **asked}
        config = Config.build({"generation": settings}, origin="the settings of writing")
        other = copy.copy(self)
        update = {"generation": config.generation}
        other.bundle = dataclasses.replace(self.bundle, config=self.bundle.config.model_copy(update=update))
        return other

    def write(
        self,
        rows: Rows,
        *,
        on_bad_cell: OnBadCell = "mask",
        missing_columns: Sequence[str] = (),
        progress: bool = False,
        **generation: Unpack[Generation],
    ) -> Predictions:
        """Write an answer for every row of a table, in order.

        Args:
            rows, on_bad_cell, missing_columns, progress: as in `FineTuned.predict`.
            generation: see `with_generation`.

        Returns:
            For each target its answer; `TARGET_log_probability`, the sum over the answer's tokens; and
            `TARGET_finish`, why it ends: "end", "length", "stop", "choice", or "stuck" where no token
            goes on by the constraint; with choices `TARGET_choices`, the probability of each as JSON. Last `error`.

        Raises:
            TableError: the table cannot be read or lacks a column.
            ConfigError: see `with_generation`.

        Example:
            >>> tuned.write([{"en": "A dog runs."}], beams=4)["de"]
            ['Ein Hund rennt.']
        """
        bundle = self.with_generation(**generation).bundle
        bar = track if progress else None
        return predict(bundle, rows, on_bad_cell=on_bad_cell, missing=missing_columns, progress=bar)

    def stream(
        self,
        row: Rows,
        *,
        target: str | None = None,
        missing_columns: Sequence[str] = (),
        **generation: Unpack[Generation],
    ) -> Iterator[str]:
        """Return an iterator over the pieces of one row's answer, each as soon as it is written.

        With beams or choices the answer is one piece.

        Args:
            row: a dictionary, or what else `write` takes, with one row.
            target: which target, if the model writes several.
            missing_columns: as in `FineTuned.predict`.
            generation: see `with_generation`.

        Raises:
            TableError: there are several rows, or none; or a cell cannot be read.
            ConfigError: see `with_generation`; or the target is not named.

        Example:
            >>> for piece in tuned.stream({"en": "A dog runs."}):
            ...     print(piece, end="", flush=True)
        """
        bundle = self.with_generation(**generation).bundle
        name = _named(bundle, target)
        examples = read_examples(bundle, row, targets=False, on_bad_cell="reject", missing=missing_columns)
        if problems := [*examples.table.rejected, *examples.rejected]:
            what = problems[0]
            raise TableError("the row cannot be read", came=what.why, column=what.column)
        if len(examples.table) != 1:
            raise TableError("an answer is streamed for one row", came=f"{len(examples.table)} rows", do="call write")
        task, model = bundle.targets[name], bundle.model
        assert isinstance(task, Writes) and isinstance(model, Generate)
        return stream(model, name, task, examples, decoding_of(bundle.config.generation, task))

    def chat(
        self, *, system: str | None = None, given: Mapping[str, str] | None = None, **generation: Unpack[Generation]
    ) -> ChatSession:
        """Return a chat, whose messages fill a column of the model's prompt.

        Args:
            system: the text of the system message; None for that of the tuning.
            given: texts of the prompt's other columns, by name.
            generation: see `with_generation`; beams are left out.

        Raises:
            ConfigError: see `ChatSession.of_bundle` and `with_generation`.

        Example:
            >>> session = tuned.chat()
            >>> "".join(session.reply("Where is my parcel?"))
            'It arrives tomorrow.'
        """
        return ChatSession.of_bundle(self.with_generation(**generation).bundle, ChatOptions(system), given or {})

    def save_transformers(self, folder: str | Path) -> list[str]:
        """Write the language model as a plain folder of transformers, its adapter merged; this model stays as it is.

        Args:
            folder: to write.

        Returns:
            Sentences on what the folder lacks: the encoders of columns that enter as vectors.

        Raises:
            ConfigError: the model does not write.
            StorageError: it cannot be written.
        """
        _writer(self.bundle)
        return save_transformers(self.bundle, Path(folder))


def _writer(bundle: Bundle) -> Generate:
    """Return the model that writes.

    Raises:
        ConfigError: it does not.
    """
    if not isinstance(bundle.model, Generate):
        tasks: Mapping[str, Any] = bundle.targets
        raise ConfigError(
            "this model does not write",
            expected="a model that was tuned with a language model: tasks.TARGET=generate",
            came=", ".join(f"{name}, {task.name}" for name, task in tasks.items()) or "a model without a target",
            do="call predict",
        )
    return bundle.model


def _named(bundle: Bundle, target: str | None) -> str:
    """Return the task of a target.

    Raises:
        ConfigError: there is no such target, or there are several and none is named.
    """
    by_target = {task.target: name for name, task in bundle.targets.items()}
    if target is None and len(by_target) == 1:
        return next(iter(by_target.values()))
    if target not in by_target:
        raise ConfigError(
            "an answer is streamed for one target",
            expected=f"target={' or '.join(map(repr, by_target))}",
            came=f"target={target!r}",
            do=nearest(target, by_target) if target else None,
        )
    return by_target[target]
