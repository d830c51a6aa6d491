"""The folder of a labelling: which rows each round asks for, the files that a person fills, and all labels ever given.

rounds.json         what was chosen and why: a round counts once it is in here
labels.jsonl        every label that was read, appended and never rewritten; the last one of a row counts
round-1.csv, ...    the rows of a round; a person writes labels into the last column
round-1.tasks.json  the same as tasks of Label Studio; labelling.xml is the project's labelling configuration
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fusetune.errors import ConfigError, FolderError, StorageError, reason
from fusetune.evaluation.report.write import replace_file
from fusetune.security.untrusted import TEXT_BYTES, parse_json, read_bytes, read_json

ROUNDS, LABELS, LOCK = "rounds.json", "labels.jsonl", ".lock"
FORMAT = 1


@dataclass
class Batch:
    """The rows that a round asks for.

    Attributes:
        strategy: by which `chosen` were chosen.
        chosen: ids, in the order in which they were chosen.
        random: ids of the rows drawn at random, which measure and teach nothing.
        shown: ids of both, in the order of the files.
        why: by id, why the row is asked for.
        guesses: by id of a chosen row, the probe's most probable labels with their probabilities.
    """

    strategy: str
    chosen: list[str]
    random: list[str]
    shown: list[str]
    why: dict[str, str] = field(default_factory=dict)
    guesses: dict[str, list[tuple[str, float]]] = field(default_factory=dict)


@dataclass
class LabelFolder:
    """The state of a labelling.

    Attributes:
        path: the folder.
        target: the column of labels.
        seed: of all draws.
        reserved: ids of the rows that are never chosen, in the order in which they are drawn at random.
        size: the number of distinct rows of the pool when it was drawn from.
        row_id, control: the names of the column of ids, and of the control of labels in Label Studio.
        batches: the rounds, the first is round 1.
    """

    path: Path
    target: str
    seed: int
    reserved: list[str]
    size: int
    row_id: str
    control: str
    batches: list[Batch] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> LabelFolder | None:
        """Return the state in a folder; None if no labelling began there.

        Raises:
            FolderError: it cannot be read.
        """
        file = path / ROUNDS
        if not file.is_file():
            return None
        try:
            content = read_json(file)
            batches = [
                Batch(**{**batch, "guesses": {key: [(str(a), float(b)) for a, b in some] for key, some in guesses}})
                for batch in content["rounds"]
                for guesses in [batch["guesses"].items()]
            ]
            names = ("target", "seed", "reserved", "size", "row_id", "control")
            return cls(path=path, batches=batches, **{name: content[name] for name in names})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FolderError(
                "the record of the rounds cannot be read",
                came=f"{type(error).__name__}: {error}",
                do=f"put an earlier copy of it back; the labels are in {LABELS}",
                file=str(file),
            ) from None

    def save(self) -> None:
        """Write the record, under a temporary name first.

        Raises:
            StorageError: it cannot be written.
        """
        content = {name: getattr(self, name) for name in ("target", "seed", "reserved", "size", "row_id", "control")}
        rounds = [vars(batch) for batch in self.batches]
        text = json.dumps({"format": FORMAT, **content, "rounds": rounds}, ensure_ascii=False, indent=1)
        replace_file(self.path / ROUNDS, text)

    @property
    def asked(self) -> dict[str, int]:
        """The round that asks for each id, from 1."""
        return {row: number for number, batch in enumerate(self.batches, 1) for row in batch.shown}

    @property
    def random(self) -> list[str]:
        """The ids that were drawn at random, of all rounds."""
        return [row for batch in self.batches for row in batch.random]

    def csv_file(self, number: int) -> Path:
        """Return the file of a round."""
        return self.path / f"round-{number}.csv"

    def tasks_file(self, number: int) -> Path:
        """Return the file of a round's tasks for Label Studio."""
        return self.path / f"round-{number}.tasks.json"

    def write_csv(self, number: int, columns: Mapping[str, Sequence[Any]]) -> None:
        """Write a round's file, unless it is there: a person may have filled it.

        Args:
            number: of the round.
            columns: by name, the cells of its rows in the order of `Batch.shown`, without the ids and the labels.

        Raises:
            StorageError: it cannot be written.
        """
        if self.csv_file(number).exists():
            return
        batch, text = self.batches[number - 1], io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([self.row_id, *columns, "why", self.target])
        for row, *cells in zip(batch.shown, *columns.values(), strict=True):
            writer.writerow([row, *cells, batch.why.get(row, ""), ""])
        replace_file(self.csv_file(number), text.getvalue())

    @property
    def log(self) -> LabelLog:
        """All labels that were ever read."""
        return LabelLog(self.path / LABELS)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from changing a folder.

    Raises:
        ConfigError: one does.
        StorageError: the folder cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with FileLock(path / LOCK, timeout=0):
            yield
    except Timeout:
        raise ConfigError(f"another process labels in {path}", do="wait for it") from None
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {reason(error)}") from error


@dataclass(frozen=True)
class Given:
    """A label as it was read.

    Attributes:
        row: the row's id.
        label: None if the person could not label the row.
        file: the file's name that it was read from.
    """

    row: str
    label: str | None
    file: str


class LabelLog:
    """A file to which labels are appended; nothing in it is ever changed.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[Given] = []
        self._torn = self._open = False
        try:
            lines = read_bytes(path, TEXT_BYTES).split(b"\n") if path.exists() else []
        except (OSError, ValueError) as error:
            raise FolderError("the labels cannot be read", came=str(error), file=str(path)) from None
        for number, line in enumerate(lines):
            if not line.strip():
                continue
            try:
                entry = parse_json(line)
                self.entries.append(Given(str(entry["row"]), entry["label"], str(entry["file"])))
                self._open = number == len(lines) - 1
            except (ValueError, KeyError, TypeError):
                if number < len(lines) - 1:
                    raise FolderError(
                        "a line of the labels cannot be read",
                        do="correct the line, or delete it",
                        file=str(path),
                        row=number,
                    ) from None
                self._torn = True  # killed while it wrote the last line: its label is read from the round's file again

    @property
    def labels(self) -> dict[str, str | None]:
        """The last label of each row; None for a row that could not be labelled."""
        return {entry.row: entry.label for entry in self.entries}

    def add(self, given: Sequence[Given]) -> tuple[list[Given], list[tuple[Given, str | None]]]:
        """Append the labels that a file did not have when it was read before.

        Returns:
            Those that are new, and those of them that change a row's label, with the label before.

        Raises:
            StorageError: they cannot be written.
        """
        known = {(entry.row, entry.file): entry.label for entry in self.entries}
        new = [one for one in given if known.get((one.row, one.file), "") != one.label]
        labels = self.labels
        changed = [(one, labels[one.row]) for one in new if one.row in labels and labels[one.row] != one.label]
        if new:
            self._append(new)
            self.entries += new
        return new, changed

    def _append(self, new: Sequence[Given]) -> None:
        time = datetime.now(UTC).isoformat(timespec="seconds")
        lines = [json.dumps(vars(one) | {"time": time}, ensure_ascii=False) + "\n" for one in new]
        try:
            if self._torn:
                os.truncate(self.path, self.path.read_bytes().rfind(b"\n") + 1)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(("\n" if self._open else "") + "".join(lines))
                file.flush()
                os.fsync(file.fileno())
            self._torn = self._open = False
        except OSError as error:
            raise StorageError(f"{self.path} cannot be written: {reason(error)}") from error
