"""Tune a model again on new rows, and put the result in use only if it gains on them and forgets little."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from fusetune.api import fit, load
from fusetune.backbones.backbone import Backbone
from fusetune.config.config import Config
from fusetune.data.reading.joined import concat
from fusetune.data.table import Table
from fusetune.deploy.bundle import Bundle
from fusetune.deploy.fine_tuned import FineTuned
from fusetune.deploy.versions import all_versions, checked_version, current_version, point_to
from fusetune.errors import ConfigError, StorageError, reason
from fusetune.evaluation.report.write import render_page, replace_file
from fusetune.evaluation.results import plain
from fusetune.lifecycle.gate import Check, check_rows
from fusetune.lifecycle.lineage import Rows, digest, first_version, read_lineage, read_record, split_new, write_record
from fusetune.lifecycle.replay import replayed
from fusetune.models.understand import Understand
from fusetune.security.model_folder import BUNDLE

LOCK = ".lock"
FIRST = "1"
LEFT_BEHIND = ("checkpoints", "logs", "*.partial", "*.lock")
"""What of a run's folder is not copied into a folder of versions."""
LEFT_OUT = ("train", "val", "test", "out", "target", "pretrain")
"""Settings of the first fit that do not hold for later ones: its encoders have been pretrained on the rows already."""


@dataclass
class Retuned:
    """What came of it.

    Attributes:
        store: the folder of versions.
        version: the new one.
        parent: the one that it was tuned from.
        promoted: whether it is in use now.
        why: in one sentence.
        checks: the gate's comparisons.
        labels: by target, the labels that the parent did not know.
        rows: the number of train rows: "old" and "new".
        notes: sentences for the user.
    """

    store: str
    version: str
    parent: str
    promoted: bool
    why: str
    checks: list[Check]
    labels: dict[str, list[str]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain data; NaN becomes None."""
        content: dict[str, Any] = plain(self)
        return content


@dataclass(frozen=True)
class _Arguments:
    """Those of `retune`."""

    replay: float
    distill: float
    margin: float
    confidence: float
    seed: int


def retune(
    folder: str | Path,
    table: str | Path,
    *,
    store: str | Path | None = None,
    replay: float = 1.0,
    distill: float = 0.0,
    margin: float = 0.01,
    confidence: float = 0.9,
    seed: int = 0,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    progress: bool = True,
) -> Retuned:
    """Tune the model in use again, on a table of new rows and on old ones, and promote it if it passes the gate.

    The encoders start from the model in use, the heads from a linear probe on all old and new train rows, so that new
    labels and categories are learned as the others. The encoders are then tuned on the new rows and a share of the old
    ones. Old and new test rows are learned by no version.

    Args:
        folder: a folder of versions, or the folder of a run, whose model then becomes version 1 of a new one.
        table: labelled new rows. They are split into train, validation and test rows.
        store: the folder of versions to make from a run; None adds "-versions" to its name.
        replay: the share of the old train rows that the encoders are tuned on again, in [0, 1], by class, half of them
            those with the largest loss. A class has at least one row.
        distill: the weight of learning without forgetting, 0 or more: the loss against what the model in use predicts
            (objective `distill`); 0 leaves it out.
        margin: the loss of the main metric on old test rows that is accepted, 0 or more.
        confidence: the share of bootstrap draws that must show a gain on new rows, and no loss above the margin on old
            ones, in (0, 1).
        seed: of the split and the draws.
        overrides: settings over those of the model in use: `["trainer.epochs=3"]`.
        progress: whether to show progress on standard error.

    Raises:
        ConfigError: the model is of pairs or writes, another process tunes here, or an argument is out of range.
        TableError: a table cannot be read, lacks a column, or has too few rows.

    Example:
        >>> result = retune("runs/tickets", "march.csv")  # doctest: +SKIP
        >>> result.promoted, result.why  # doctest: +SKIP
        (True, 'accuracy on new rows rises by 0.062; on old rows it loses no more than 0.01')

    Reference:
        Rolnick et al. 2019, Experience replay for continual learning, arXiv 1811.11682.
    """
    if not (0 <= replay <= 1 and distill >= 0 and margin >= 0 and 0 < confidence < 1):
        raise ConfigError(
            "an argument is out of range",
            expected="replay from 0 to 1, distill and margin of 0 or more, confidence between 0 and 1",
            came=f"{replay=}, {distill=}, {margin=}, {confidence=}",
        )
    path = Path(table).absolute()
    if not path.is_file():
        raise ConfigError(f"there is no file {path}", expected="a table in a file, which later versions read again")
    home = open_store(Path(folder), store)
    with _locked(home):
        sums = digest(path)
        if (version := tuned_on(home, sums)) is not None:
            raise ConfigError(
                f"version {version} was tuned on these rows already", do="give new rows, or roll back to it"
            )
        asked = _Arguments(replay, distill, margin, confidence, seed)
        return _retune(home, path, sums, asked, overrides, progress)


def tuned_on(store: Path, sha256: str) -> str | None:
    """Return the version that was tuned on a table with this SHA-256, promoted or not; None if there is none.

    Raises:
        FolderError: a record is broken.
    """
    for version in _numbered(store):
        record = read_record(store / version)
        if record is not None and record["sha256"] == sha256 and "promoted" in record:
            return version
    return None


def _retune(
    home: Path,
    path: Path,
    sums: str,
    asked: _Arguments,
    overrides: Sequence[str] | Mapping[str, Any],
    progress: bool,
) -> Retuned:
    """Tune the version in use on a table, judge the result, write its record, and promote it or not."""
    parent = current_version(home)
    assert parent is not None
    tuned = load(home / parent)
    _check_family(tuned.bundle)
    origin = first_version(home, parent)
    first = tuned if origin == parent else load(home / origin)
    old, new = read_lineage(home, parent, first), split_new(path, first, seed=asked.seed)
    again = replayed(tuned.bundle, old.train, asked.replay, seed=asked.seed)
    version = str(1 + max(int(name) for name in _numbered(home)))
    record = {"parent": parent, "table": str(path), "sha256": sums, "seed": asked.seed, "distill": asked.distill}
    record |= {"replayed": None if again is None else again.tolist(), "time": datetime.now(UTC).isoformat()}
    after, notes = _fit(home, version, tuned, old, new, again, asked.distill, overrides, progress)
    result = _judge(home, version, parent, tuned, after, old, new, asked)
    result.notes += notes
    result.rows = {"old": len(old.train if again is None else again), "new": len(new.train)}
    write_record(home / version, record | result.to_json())
    replace_file(home / version / "retune.html", render_page("retune.html.j2", result=result))
    if result.promoted:
        point_to(home, version)
    return result


def roll_back(store: str | Path, version: str | None = None) -> str:
    """Put another version in use: the parent of the one in use, or a named one; return its name.

    Raises:
        UserError: there is no such version, or the one in use has no parent.
    """
    home = Path(store)
    with _locked(home):
        current = current_version(home)
        if current is None:
            raise ConfigError(f"{home} is no folder of versions", expected="a folder that retune made", came=str(home))
        if version is None:
            record = read_record(home / current)
            if record is None:
                raise ConfigError(
                    f"version {current} is the first one", do=f"name one of {', '.join(all_versions(home))}"
                )
            version = record["parent"]
        point_to(home, checked_version(home, version))
    return version


def open_store(folder: Path, store: str | Path | None = None) -> Path:
    """Return the folder of versions; a run's folder is copied into a new one, as version 1.

    Args:
        folder: a folder of versions, or of a run.
        store: the folder of versions to make from a run; None adds "-versions" to its name.

    Raises:
        ConfigError: the folder is neither.
        StorageError: it cannot be copied.
    """
    if current_version(folder) is not None:
        return folder
    if not (folder / BUNDLE).is_file():
        raise ConfigError(f"{folder} is neither the folder of a run nor one of versions", came=str(folder))
    home = Path(store) if store is not None else folder.with_name(f"{folder.resolve().name}-versions")
    if current_version(home) is not None:
        return home
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".copy-", dir=home) as scratch:
            shutil.copytree(folder, Path(scratch) / FIRST, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
            (Path(scratch) / FIRST).rename(home / FIRST)
    except OSError as error:
        raise StorageError(f"{folder} cannot be copied to {home}: {reason(error)}") from error
    point_to(home, FIRST)
    return home


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Keep other processes from changing the folder of versions.

    Raises:
        ConfigError: one does.
    """
    try:
        with FileLock(home / LOCK, timeout=0):
            yield
    except Timeout:
        raise ConfigError(f"another process is tuning in {home}", do="wait for it") from None


def _numbered(home: Path) -> list[str]:
    """Return the versions' names that are numbers, in order."""
    return sorted((path.name for path in home.iterdir() if path.is_dir() and path.name.isdigit()), key=int)


def _check_family(bundle: Bundle) -> None:
    if not isinstance(bundle.model, Understand):
        raise ConfigError(
            "only models that predict targets are tuned again",
            came=f"a model that {'writes' if bundle.model.name == 'generate' else 'compares pairs'}",
            do="fit on the old and the new tables together, with the encoders of this model: text=FOLDER",
        )


def _fit(
    home: Path,
    version: str,
    tuned: FineTuned,
    old: Rows,
    new: Rows,
    again: np.ndarray | None,
    distill: float,
    overrides: Sequence[str] | Mapping[str, Any],
    progress: bool,
) -> tuple[FineTuned, list[str]]:
    """Tune from a version on its rows and new ones; return the model and notes."""
    assert tuned.folder is not None
    folder, bundle = tuned.folder, tuned.bundle
    settings = bundle.config.model_dump(exclude_defaults=True, mode="json")
    settings = {name: part for name, part in settings.items() if name not in LEFT_OUT}
    config = Config.build(settings).with_overrides({"columns": _kinds(bundle)})
    notes = []
    for kind in ("text", "image", "audio"):
        own = [part for part in bundle.model.encoders.values() if isinstance(part, Backbone) and part.kind == kind]
        if len(own) == 1 and own[0].pretrained:
            config = config.with_overrides({kind: {"name": str(folder.absolute())}})
        elif own:
            notes.append(
                f"The {kind} columns' encoders start anew: only one pretrained encoder a kind starts from the model."
            )
    config = config.with_overrides(overrides) if overrides else config
    train, rest = [old.train, new.train], []
    if again is not None:
        left = np.setdiff1d(np.arange(len(old.train)), again)
        train = [old.train.select(again), *([old.train.select(left)] if len(left) else []), new.train]
        rest = list(range(len(old.train.files), 2 * len(old.train.files))) if len(left) else []
    objectives = {name: part for name, part in config.objectives.items() if name != "distill"}
    if distill:
        objectives["distill"] = {"teacher": str(folder.absolute()), "weight": distill}
    config = config.model_copy(update={"objectives": objectives}).with_overrides({"data": {"probe_only": rest}})
    after = fit(
        concat(train),
        [task.target for task in bundle.targets.values()],
        val=concat([old.val, new.val]),
        test=concat([old.test, *new.tests.values()]),
        config=config,
        out=home / version,
        resume=False,
        overwrite=True,
        progress=progress,
    )
    return after, notes


def _kinds(bundle: Bundle) -> dict[str, dict[str, Any]]:
    """Return the kinds of the columns that are read as they are, so that they stay what they were."""
    columns = bundle.schema.columns.items()
    return {
        name: {"kind": spec.kind} for name, spec in columns if spec.role == "input" and not spec.options.get("join")
    }


def _judge(
    home: Path,
    version: str,
    parent: str,
    tuned: FineTuned,
    after: FineTuned,
    old: Rows,
    new: Rows,
    asked: _Arguments,
) -> Retuned:
    """Compare both models on old and on new test rows, and decide."""
    margin, confidence = asked.margin, asked.confidence
    tables: dict[str, tuple[Table, float]] = {
        "new rows": (new.test, 0.0),
        "old rows": (old.test, -margin),
    }
    checks = [
        check
        for name, (table, least) in tables.items()
        for check in check_rows(
            name, table, tuned.bundle, after.bundle, least=least, confidence=confidence, seed=asked.seed
        )
    ]
    gains = any(check.passed for check in checks if check.rows == "new rows")
    worse = [check for check in checks if check.rows == "new rows" and check.difference.value < -margin]
    lost = [check for check in checks if check.rows == "old rows" and not check.passed] + worse
    labels = {
        task.target: [label for label in task.labels if label not in tuned.bundle.targets[key].labels]
        for key, task in after.bundle.targets.items()
    }
    promoted = gains and not lost
    why = _why(checks, lost, gains, margin, confidence)
    return Retuned(str(home), version, parent, promoted, why, checks, {k: v for k, v in labels.items() if v})


def _why(checks: list[Check], lost: list[Check], gains: bool, margin: float, confidence: float) -> str:
    """Return the decision's reason."""
    new = max((check for check in checks if check.rows == "new rows"), key=lambda check: check.difference.value)
    change = f"{new.metric} of {new.target} on new rows changes by {new.difference.value:+.3f}"
    if not gains:
        return f"{change}, and in {new.probability:.0%} of draws it rises, fewer than {confidence:.0%}"
    if lost:
        first = lost[0]
        return (
            f"{change}, but that of {first.target} on {first.rows} by {first.difference.value:+.3f}; a loss of at most "
            f"{margin:g} is accepted, and {first.probability:.0%} of draws lose no more"
        )
    return f"{change}, and on old rows none loses more than {margin:g}"
