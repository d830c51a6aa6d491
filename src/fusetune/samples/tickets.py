"""`make_tickets`: support tickets with a message, a screenshot, a voice note, a number and a category."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fusetune.errors import ConfigError, StorageError, reason
from fusetune.samples import messages, rule, screens, voices
from fusetune.samples.rule import COLUMNS, LABELS, POINTS
from fusetune.samples.splits import split_rows

TARGET = "priority"

HOURS = ((0.2, 6.0), (18.0, 96.0))
"""Range of `waiting_hours` at each level, log-uniform; any threshold in (6, 18] separates the levels."""

PLANS = (("free", "starter", "student"), ("business", "enterprise"))
"""Categories of `plan` at each level, equally likely within a level."""

_NUM_COLUMNS = len(COLUMNS)
_SCREENSHOT, _VOICE = "screenshots/{:06d}.png", "voices/{:06d}.wav"


@dataclass(frozen=True)
class Tickets:
    """Support tickets with their ground truth.

    The label depends on five hidden factors. Each column shows exactly one of them. The factors are attributes here
    and appear in no file that `write` makes.

    Attributes:
        num_rows: rows of all splits together.
        seed: of all random draws; row i of a seed is the same for every `num_rows`.
        missing: probability that a cell is missing.
        label_noise: probability that a label is flipped.
        splits: maps a table's name to its range of rows; the ranges are contiguous.
        factors: `(rows, 5)` int64, the level of each hidden factor, in the order of `rule.COLUMNS`.
        present: `(rows, 5)` bool, False where the cell is missing.
        labels: `(rows,)` int64, indices into `rule.LABELS`, label noise included.
        path: the folder that holds the files, None before `write`.
    """

    num_rows: int
    seed: int
    missing: float
    label_noise: float
    splits: Mapping[str, range]
    factors: np.ndarray
    present: np.ndarray
    labels: np.ndarray
    path: Path | None = None

    @property
    def ceilings(self) -> dict[frozenset[str], float]:
        """The expected accuracy of the Bayes-optimal predictions, for every non-empty set of columns."""
        return rule.ceilings(missing=self.missing, label_noise=self.label_noise)

    @property
    def tables(self) -> dict[str, Path]:
        """The CSV file of each split.

        Raises:
            ConfigError: the tickets have not been written.
        """
        if self.path is None:
            raise ConfigError("these tickets are not written yet", do="call write(folder) and use the value it returns")
        return {name: self.path / f"{name}.csv" for name in self.splits}

    def best_labels(self, columns: Iterable[str] = COLUMNS, *, split: str | None = None) -> list[str]:
        """Return the Bayes-optimal prediction of each row from these columns.

        Args:
            columns: the columns to predict from.
            split: a name in `splits`, None for all rows.
        """
        rows = self._rows(split)
        best = rule.best_labels(self.factors[rows], self.present[rows], columns, label_noise=self.label_noise)
        return [LABELS[k] for k in best]

    def best_accuracy(self, columns: Iterable[str] = COLUMNS, *, split: str | None = None) -> float:
        """Return the accuracy of `best_labels` on the rows of a split.

        Unlike `ceilings`, it has the sampling noise of these rows, as a model's accuracy on them has. Compare the two.
        """
        rows = self._rows(split)
        best = rule.best_labels(self.factors[rows], self.present[rows], columns, label_noise=self.label_noise)
        return float(np.mean(best == self.labels[rows]))

    def cells(self, row: int) -> dict[str, str]:
        """Return a row of the CSV file, column to text; "" where the cell is missing, the target last."""
        levels = self.factors[row]
        values = (
            messages.write_message(levels[0], self._rng(row, 0)),
            _SCREENSHOT.format(row),
            _VOICE.format(row),
            _hours(levels[3], self._rng(row, 3)),
            _plan(levels[4], self._rng(row, 4)),
        )
        columns = zip(COLUMNS, values, self.present[row], strict=True)
        cells = {column: value if present else "" for column, value, present in columns}
        return cells | {TARGET: LABELS[self.labels[row]]}

    def media(self, row: int) -> Iterator[tuple[str, bytes]]:
        """Yield the row's files as (relative path, bytes); missing cells have none."""
        if self.present[row, 1]:
            screen = screens.draw_screen(self.factors[row, 1], self._rng(row, 1))
            yield _SCREENSHOT.format(row), screens.png_bytes(screen)
        if self.present[row, 2]:
            sound = voices.speak(self.factors[row, 2], self._rng(row, 2))
            yield _VOICE.format(row), voices.wav_bytes(sound)

    def write(self, folder: Path | str) -> Tickets:
        """Write the tables, `screenshots/`, `voices/` and a `README.md` with the ceilings.

        Existing files of these names are overwritten. Paths in the tables are relative to the tables.

        Args:
            folder: created if it does not exist.

        Returns:
            These tickets with `path` set.

        Raises:
            StorageError: a file could not be written.
        """
        written = dataclasses.replace(self, path=Path(folder))
        try:
            for name in ("screenshots", "voices"):
                (Path(folder) / name).mkdir(parents=True, exist_ok=True)
            for row in range(self.num_rows):
                for relative, data in self.media(row):
                    (Path(folder) / relative).write_bytes(data)
            for name, file in written.tables.items():
                file.write_bytes(self._csv(self.splits[name]).encode())
            (Path(folder) / "README.md").write_bytes(self.readme().encode())
        except OSError as error:
            raise StorageError(f"the tickets cannot be written to {folder}: {reason(error)}") from error
        return written

    def readme(self) -> str:
        """Return the folder's README as Markdown: the columns, the labelling rule and the ceilings."""
        return _readme(self)

    def _csv(self, rows: range) -> str:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, [*COLUMNS, TARGET], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.cells(row) for row in rows)
        return buffer.getvalue()

    def _rows(self, split: str | None) -> slice:
        if split is None:
            return slice(None)
        if split not in self.splits:
            raise ConfigError(f"there is no split {split!r}", expected=", ".join(self.splits))
        rows = self.splits[split]
        return slice(rows.start, rows.stop)

    def _rng(self, row: int, column: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, row, 1 + column])


def make_tickets(
    n: int = 2000,
    seed: int = 0,
    folder: Path | str | None = None,
    *,
    missing: float = 0.0,
    label_noise: float = 0.05,
    splits: Mapping[str, float] | None = None,
) -> Tickets:
    """Generate support tickets whose best reachable accuracy is known for every set of columns.

    Columns: `message` (text), `screenshot` (PNG), `voice` (WAV), `waiting_hours` (number), `plan` (category) and the
    target `priority` (normal, high). Each column shows one hidden factor, whose level is worth some points
    (`rule.POINTS`). The sum of the points decides the label, which is then flipped with probability `label_noise`.

    Args:
        n: number of rows, at least 1.
        seed: 0 or more. The same seed gives the same files, byte for byte, with the same numpy and pillow.
        folder: where to write them; None generates them without writing.
        missing: probability in [0, 1) that a cell is missing. A row that would lose all its cells keeps its message.
        label_noise: probability in [0, 1/2] that a label is flipped.
        splits: table names with their shares of the rows, which sum to 1, such as {"train": 0.7, "test": 0.3}; each
            becomes `<name>.csv`. None makes one table, `tickets.csv`.

    Raises:
        ConfigError: an argument is out of range.
        StorageError: a file could not be written.

    Example:
        >>> tickets = make_tickets(1000, seed=1, folder="tickets", splits={"train": 0.8, "test": 0.2})
        >>> round(tickets.ceilings[frozenset({"message"})], 3)
        0.726
    """
    if n < 1 or seed < 0:
        raise ConfigError(
            "cannot make these tickets", expected="n of 1 or more, seed of 0 or more", came=f"n={n}, seed={seed}"
        )
    rule.check_missing(missing)
    rule.check_noise(label_noise)
    uniform = np.empty(n)
    present = np.empty((n, _NUM_COLUMNS), dtype=bool)
    flipped = np.empty(n, dtype=bool)
    for row in range(n):
        rng = np.random.default_rng([seed, row, 0])
        uniform[row] = rng.random()
        flipped[row] = rng.random() < label_noise
        present[row] = rng.random(_NUM_COLUMNS) >= missing
    present[~present.any(axis=1), COLUMNS.index("message")] = True
    factors = rule.draw_levels(uniform)
    labels = rule.clean_labels(factors)
    labels = np.where(flipped, 1 - labels, labels)
    tickets = Tickets(
        n, seed, missing, label_noise, split_rows(n, splits or {"tickets": 1.0}), factors, present, labels
    )
    return tickets if folder is None else tickets.write(folder)


def _hours(level: int, rng: np.random.Generator) -> str:
    low, high = np.log(HOURS[level])
    return f"{np.exp(rng.uniform(low, high)):.2f}"


def _plan(level: int, rng: np.random.Generator) -> str:
    return PLANS[level][int(rng.integers(len(PLANS[level])))]


def _readme(tickets: Tickets) -> str:
    tables = "\n".join(f"- `{name}.csv`: {len(rows)} rows" for name, rows in tickets.splits.items())
    meanings = {
        "message": messages.LEVELS,
        "screenshot": screens.LEVELS,
        "voice": voices.LEVELS,
        "waiting_hours": tuple(f"{low:g} to {high:g}" for low, high in HOURS),
        "plan": tuple(" or ".join(names) for names in PLANS),
    }
    levels = {column: zip(meanings[column], POINTS[column], strict=True) for column in COLUMNS}
    factors = "\n".join(
        f"| `{column}` | {'; '.join(f'{meaning}: {points}' for meaning, points in levels[column])} |"
        for column in COLUMNS
    )
    ceilings = "\n".join(
        f"| {', '.join(column for column in COLUMNS if column in chosen)} | {accuracy:.4f} |"
        for chosen, accuracy in tickets.ceilings.items()
    )
    return f"""# Support tickets, generated by fusetune

`make_tickets(n={tickets.num_rows}, seed={tickets.seed}, missing={tickets.missing}, \
label_noise={tickets.label_noise})`. Nothing here is real.

{tables}

The target is `{TARGET}` ({", ".join(LABELS)}). Each column shows one hidden factor, which no other column shows. The
points of all columns are added: from {rule.HIGH_FROM} points on, the label is high. The first level of a column is
drawn as often as all its other levels together, and sums of {min(rule.CLOSE)} to {max(rule.CLOSE)} are drawn \
{rule.CLOSE_SHARE} times as often as other sums. A label is then flipped with probability {tickets.label_noise}, and a \
cell is missing with probability {tickets.missing}.

| column | level: points |
| --- | --- |
{factors}

Best reachable accuracy of every set of columns (the majority class alone reaches \
{rule.posterior((), label_noise=tickets.label_noise).max():.4f}):

| columns | accuracy |
| --- | --- |
{ceilings}
"""
