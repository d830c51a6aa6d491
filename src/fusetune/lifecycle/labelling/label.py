"""Active learning in rounds: read what was labelled, measure, choose the rows to label next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusetune.api import load
from fusetune.data.output_names import free_name
from fusetune.data.table import Source
from fusetune.deploy.fine_tuned import FineTuned
from fusetune.errors import ConfigError
from fusetune.evaluation.report.cells import show_cell
from fusetune.lifecycle.labelling.folder import Batch, LabelFolder, locked
from fusetune.lifecycle.labelling.label_studio import variables
from fusetune.lifecycle.labelling.measure import AGREEMENT, Measured, measure, stop_reason
from fusetune.lifecycle.labelling.pool import Pool, read_pool
from fusetune.lifecycle.labelling.probe import LabelProbe
from fusetune.lifecycle.labelling.query import COLD, NEEDS_MODEL
from fusetune.lifecycle.labelling.reading import read_all, refusal, settle_labels
from fusetune.lifecycle.labelling.result import PAGE, SHOWN, AskedRow, Labelling
from fusetune.lifecycle.labelling.rounds import AUTO, check_strategy, choose_rows, settled
from fusetune.lifecycle.labelling.writing import labelled_file, media_root, write_files
from fusetune.training.hardware.devices import choose_threads
from fusetune.training.progress import track

RESERVED, MAX_RESERVED = 0.25, 1000
"""The largest share of a pool, and the most rows, that are drawn at random for measuring."""
REASONS = {
    "typical": "typical of rows without a label",
    "coreset": "far from all labelled rows",
    "random": "drawn at random",
}


def label(
    pool: Source,
    model: FineTuned | str | Path | None = None,
    *,
    out: str | Path,
    target: str | None = None,
    labels: Sequence[str] = (),
    imports: Sequence[str | Path] = (),
    strategy: str = AUTO,
    count: int = 50,
    random_share: float = 0.2,
    rounds: int | None = None,
    agreement: float = AGREEMENT,
    partial: bool = False,
    new_labels: bool = False,
    go_on: bool = False,
    seed: int = 0,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    progress: bool = False,
) -> Labelling:
    """Read the labels that were given so far, measure what they are worth, and choose the rows to label next.

    The same call does every round. It reads the labels in the folder's files, fits a linear probe on the outputs of the
    pretrained encoders, measures it on rows that were drawn at random and that it never learns from, and writes the
    next rows, unless rows of the last round have no label yet, or labelling can stop. It changes no file that a person
    fills in, and a label that was read once is never lost.

    Args:
        pool: rows without labels. Those with the target are labelled already. Rows may be added later.
        model: a tuned model, or its folder, whose rows count as labels and whose encoders are read as they were before
            tuning. None: the settings' encoders, and no label but those of the pool.
        out: the folder of the labelling.
        target: the column of labels; needed without a model.
        labels: the labels that are accepted. None given: those of the model, or any without a model.
        imports: exports of Label Studio (JSON, JSON-MIN, CSV) or tables with the ids and the labels.
        strategy: "auto", or one of `fusetune.lifecycle.labelling.query.STRATEGIES`.
        count: rows a round, random ones among them, 5 or more.
        random_share: the share of them that is drawn at random, in [0, 1). With 0 at the first call nothing is
            measured in any.
        rounds: the most rounds; None sets no limit.
        agreement: the mean κ between rounds' predictions from which on labelling can stop, in (0, 1].
        partial: whether to choose the next rows although some of the last round have no label.
        new_labels: whether to accept labels that the model, or `labels`, does not have.
        go_on: whether to choose the next rows although labelling can stop.
        seed: of all draws; that of the first call counts.
        overrides: settings of columns and encoders, without a model: ["image=FOLDER"].
        progress: whether to show progress on standard error.

    Raises:
        ConfigError: an argument is out of range, the target is not one of several labels, another process labels in the
            folder, or the folder belongs to another target.
        TableError: a table or an export cannot be read, or has labels that are not known.
        FolderError: the folder's record is broken.

    Example:
        >>> state = ft.label("pool.csv", "runs/tickets", out="labelling")  # doctest: +SKIP
        >>> state.round, state.missing, state.files["rows"]  # doctest: +SKIP
        (1, 50, 'labelling/round-1.csv')

    Reference:
        Settles 2009, Active learning literature survey; Bloodgood & Vijay-Shanker 2009 (stopping), arXiv 1409.5165.
    """
    check_strategy(strategy)
    if count < 5 or not 0 <= random_share < 1 or not 0 < agreement <= 1 or (rounds is not None and rounds < 1):
        raise ConfigError(
            "an argument is out of range",
            expected="count of 5 or more, 0 <= random_share < 1, 0 < agreement <= 1, rounds of 1 or more",
            came=f"{count=}, {random_share=}, {agreement=}, {rounds=}",
        )
    choose_threads()
    home = Path(out)
    with locked(home):
        tuned = load(model) if isinstance(model, str | Path) else model
        rows = read_pool(pool, tuned, target, overrides=overrides, progress=track if progress else None)
        notes = list(rows.notes)
        folder = _open(home, rows, seed, random_share > 0, notes)
        write_files(folder, rows, _all_labels(folder, rows, labels))  # those that a killed process did not write
        _import(folder, rows, [Path(path) for path in imports], labels, new_labels, notes)
        state = _State(folder, rows, notes)
        measured = state.measure()
        missing, new = state.missing, False
        waiting = bool(missing) and not partial
        stop = None if waiting else _stop(state, measured, rounds, agreement)
        if not waiting and (stop is None or (go_on and len(state.open))):
            batch = state.choose(measured.probe, strategy, count, random_share)
            folder.batches.append(batch)
            folder.save()
            missing, new = batch.shown, True
        write_files(folder, rows, _all_labels(folder, rows, labels))
        result = state.result(measured, missing, new, stop)
        result.save()
    return result


def _open(home: Path, pool: Pool, seed: int, measures: bool, notes: list[str]) -> LabelFolder:
    """Return the state of a folder, or a new one, which reserves a random sample of the pool if it is to be measured.

    Raises:
        ConfigError: the folder belongs to another target.
    """
    folder = LabelFolder.read(home)
    if folder is None:
        num = min(int(RESERVED * len(pool.open)), MAX_RESERVED) if measures else 0
        drawn = np.random.default_rng(seed).permutation(pool.open)[:num]
        fields = [*pool.table.column_names, *variables(pool.inputs).values(), pool.target]
        row_id, control = free_name("row_id", fields), free_name("label", fields)
        reserved = [pool.id_of(row) for row in drawn]
        folder = LabelFolder(home, pool.target, seed, reserved, len(pool.positions), row_id, control)
        folder.save()
    if folder.target != pool.target:
        raise ConfigError(
            f"{home} holds a labelling of another column",
            expected=folder.target,
            came=pool.target,
            do="give another folder: --out",
        )
    if (more := len(pool.positions) - folder.size) > 0:
        notes.append(f"The pool has {more:,} more rows than at first: the random rows are a sample without them.")
    if gone := sum(row not in pool.positions for row in folder.asked):
        notes.append(f"{gone} rows that were asked for are not in the pool any more: their labels are kept, not used.")
    return folder


def _known(folder: LabelFolder, pool: Pool, labels: Sequence[str]) -> list[str]:
    """Return the labels so far: those that were named, the model's, those of the pool, and those that were given."""
    given = [label for label in folder.log.labels.values() if label is not None]
    return list(dict.fromkeys([*labels, *pool.labels, *pool.given.values(), *given]))


def _all_labels(folder: LabelFolder, pool: Pool, labels: Sequence[str]) -> list[str]:
    return sorted(_known(folder, pool, labels))


def _import(
    folder: LabelFolder, pool: Pool, imports: Sequence[Path], labels: Sequence[str], new_labels: bool, notes: list[str]
) -> None:
    """Read labels from the rounds' files and from imports, and record them.

    Raises:
        TableError: a file cannot be read, or has labels that are not known; all others are recorded.
    """
    log, refused, unknown = folder.log, [], 0
    closed = bool(labels or pool.labels) and not new_labels
    known = _known(folder, pool, labels)
    for given in read_all(folder, imports, notes):
        accepted, not_known = settle_labels(given, known, closed=closed, notes=notes)
        refused += not_known
        known = list(dict.fromkeys([*known, *(one.label for one in accepted if one.label is not None)]))
        here = [one for one in accepted if one.row in pool.positions or one.row in folder.asked]
        unknown += len(accepted) - len(here)
        _, changed = log.add(here)
        if changed:
            one, before = changed[0]
            notes.append(f"{len(changed)} labels were changed by {one.file}: {one.row} from {before} to {one.label}, …")
    if unknown:
        notes.append(f"{unknown} rows of the files are not in the pool: their labels are not used.")
    if refused:
        raise refusal(refused, known)


def _stop(state: _State, measured: Measured, rounds: int | None, agreement: float) -> str | None:
    """Return why labelling can stop, or None."""
    if not len(state.open):
        return "every row of the pool has been asked for"
    if rounds is not None and len(state.folder.batches) >= rounds:
        return f"the limit of {rounds} rounds is reached"
    return stop_reason(measured, agreement)


class _State:
    """The labels of a pool: those to learn from and those to measure on.

    Args:
        folder: the rounds and labels.
        pool: the rows.
        notes: sentences for the user.
    """

    def __init__(self, folder: LabelFolder, pool: Pool, notes: list[str]) -> None:
        self.folder, self.pool, self.notes = folder, pool, notes
        given = folder.log.labels
        self.skipped = {row for row, one in given.items() if one is None}
        places = pool.positions
        own = {places[row]: one for row, one in given.items() if one is not None and row in places}
        self.labels = {**pool.given, **own}
        held = {places[row] for row in folder.reserved if row in places}
        self.random = {row: self.labels[row] for row in self._places(folder.random) if row in self.labels}
        self.learned = {row: one for row, one in self.labels.items() if row not in held}
        asked = self._places(folder.asked)
        self.open = np.setdiff1d(pool.open, [*asked, *held, *self.labels]).astype(np.int64)

    def _places(self, ids: Sequence[str] | Mapping[str, int]) -> list[int]:
        return [self.pool.positions[row] for row in ids if row in self.pool.positions]

    @property
    def missing(self) -> list[str]:
        """The ids of the last round without a label, in the order of its file."""
        if not self.folder.batches:
            return []
        places = self.pool.positions
        asked = [row for row in self.folder.batches[-1].shown if row in places and row not in self.skipped]
        return [row for row in asked if places[row] not in self.labels]

    def measure(self) -> Measured:
        """Return the figures of all rounds."""
        rounds = [self._places(batch.chosen) for batch in self.folder.batches]
        chosen = {row for rows in rounds for row in rows}
        before = {row: one for row, one in self.learned.items() if row not in chosen}
        by_round = [{row: self.learned[row] for row in rows if row in self.learned} for rows in rounds]
        earlier = self._places([row for batch in self.folder.batches[:-1] for row in batch.random])
        if lost := sum(row not in self.random for row in earlier):
            self.notes.append(f"{lost} random rows have no label. If they are the hard ones, the accuracy is too high.")
        return measure(self.pool, before, by_round, self.random, seed=self.folder.seed)

    def choose(self, probe: LabelProbe | None, strategy: str, count: int, share: float) -> Batch:
        """Return the rows of the next round."""
        folder, number = self.folder, len(self.folder.batches)
        drawn = set(folder.random)
        left = [row for row in folder.reserved if row not in drawn and row in self.pool.positions]
        left = [row for row in left if self.pool.positions[row] not in self.labels]
        random = left[: round(share * count)]
        name = settled(strategy, self.learned)
        if name in NEEDS_MODEL and probe is None:
            name = COLD
        seed = folder.seed * 1000 + number
        rows = choose_rows(self.pool, probe, self.learned, self.open, name, max(count - len(random), 1), seed=seed)
        chosen = [self.pool.id_of(row) for row in rows]
        why = {row: "random, for measuring" for row in random}
        guesses: dict[str, list[tuple[str, float]]] = {}
        scores = None if probe is None else probe.probabilities(rows)
        for at, row in enumerate(chosen):
            if probe is not None and scores is not None:
                top = np.argsort(-scores[at])[:2]
                guesses[row] = [(probe.labels[index], float(scores[at, index])) for index in top]
            doubt = ", ".join(f"{one} {probability:.0%}" for one, probability in guesses.get(row, []))
            why[row] = REASONS.get(name, f"{name}: {doubt}")
        shown = [str(row) for row in np.random.default_rng(seed).permutation([*chosen, *random])]
        return Batch(name, chosen, random, shown, why, guesses)

    def result(self, measured: Measured, missing: Sequence[str], new: bool, stop: str | None) -> Labelling:
        """Return what is shown to the user."""
        folder, number = self.folder, len(self.folder.batches)
        names, counts = np.unique(list(self.labels.values()), return_counts=True)
        files = {"page": folder.path / PAGE, "labelled": labelled_file(folder, self.pool)}
        batch = folder.batches[-1] if folder.batches else None
        if batch is not None:
            files |= {"rows": folder.csv_file(number), "tasks": folder.tasks_file(number)}
        if (root := media_root(self.pool)) is not None:
            files["media"] = root
        asked = [
            AskedRow(row, batch.why.get(row, "") if batch else "", self._cells(row) if at < SHOWN else [])
            for at, row in enumerate(missing)
        ]
        return Labelling(
            folder=str(folder.path),
            target=folder.target,
            round=number,
            strategy=batch.strategy if batch else "",
            missing=len(missing),
            labels={str(name): int(num) for name, num in zip(names, counts, strict=True)},
            num_random=len(self.random),
            rounds=measured.rounds,
            gain=measured.gain,
            stop=stop,
            asked=asked,
            new=new,
            files={name: str(path) for name, path in files.items()},
            notes=self.notes,
        )

    def _cells(self, row: str) -> list[Any]:
        pool = self.pool
        place = pool.positions[row] - pool.first
        return [
            show_cell(name, pool.kinds[name], pool.table.cells(name, [place])[0], base_dir=pool.table.base_dir)
            for name in pool.inputs
        ]
