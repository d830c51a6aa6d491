"""Watch the tables that arrive: drift of each, tuning again on the labelled ones, a record of all of them."""

from __future__ import annotations

import glob
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from fusetune.api import load
from fusetune.config.watch import WatchConfig
from fusetune.data.table import Table
from fusetune.deploy.bundle import Bundle
from fusetune.deploy.fine_tuned import FineTuned
from fusetune.deploy.versions import current_version
from fusetune.errors import ConfigError, FolderError, UserError
from fusetune.evaluation.report.write import render_page, replace_file
from fusetune.evaluation.results import plain
from fusetune.lifecycle.drift import drift
from fusetune.lifecycle.lineage import digest, read_record
from fusetune.lifecycle.retune import open_store, retune, tuned_on
from fusetune.security.untrusted import TEXT_BYTES, read_bytes

FOLDER, RECORD, PAGE = "watch", "watch.json", "watch.html"


@dataclass
class Watched:
    """What became of one table.

    Attributes:
        file: its path.
        sha256: of its content: a table is worked on once, whatever its name.
        time: when, in ISO 8601.
        version: the version in use before.
        alarm: whether it drifted; None if it could not be compared.
        headline: of the drift report, or why there is none.
        drifted: the columns that did.
        page: the drift report's page, relative to the folder of versions; "" without one.
        tuned: the version that was tuned on it; None if none was.
        promoted: whether that version was taken into use.
        why: the reason that it was promoted or not, or that none was tuned.
    """

    file: str
    sha256: str
    time: str
    version: str
    alarm: bool | None = None
    headline: str = ""
    drifted: list[str] = field(default_factory=list)
    page: str = ""
    tuned: str | None = None
    promoted: bool = False
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        content: dict[str, Any] = plain(self)
        return content


def watch(config: WatchConfig, *, once: bool = False, progress: bool = False) -> Iterator[Watched]:
    """Yield what became of each new table, in the order of the files' times.

    Every table is compared with the held-out rows of the version in use, and a labelled one is tuned on as
    `config.retune` says. What is finished is in the record `watch/watch.json` of the folder of versions, with a page
    beside it: a table is worked on once, after a kill too. A table that cannot be read is recorded with the reason.

    Args:
        config: the settings.
        once: whether to end when no table is left; else look again every `config.every` seconds, without an end.
        progress: whether to show progress on standard error.

    Raises:
        ConfigError: another process watches this model, or the model cannot be watched.
        FolderError: the model or the record is broken.

    Example:
        >>> for table in watch(WatchConfig.from_yaml("watch.yaml"), once=True):  # doctest: +SKIP
        ...     print(table.file, table.alarm, table.why)
    """
    store = open_store(config.model)
    with _locked(store / FOLDER):
        done = _read(store / FOLDER / RECORD)
        sums: dict[tuple[str, int, int], str] = {}
        while True:
            for path in _settled(config):
                state = path.stat()
                key = (str(path), state.st_size, state.st_mtime_ns)
                if key not in sums:
                    sums[key] = digest(path)
                if any(table.sha256 == sums[key] for table in done):
                    continue
                done.append(_process(store, path, sums[key], config, progress))
                _write(store, done)
                yield done[-1]
            if once:
                return
            time.sleep(config.every)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second process from watching the same model.

    Raises:
        ConfigError: one does.
    """
    folder.mkdir(exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise ConfigError(f"another process watches {folder.parent}", do="leave it to that process") from None


def _settled(config: WatchConfig) -> list[Path]:
    """Return the files that the patterns match and that were not changed lately, the oldest first."""
    paths = {Path(path).absolute() for pattern in config.tables for path in glob.glob(pattern, recursive=True)}
    aged = sorted((path.stat().st_mtime, path) for path in paths if path.is_file() and not path.name.startswith("."))
    return [path for changed, path in aged if time.time() - changed >= config.settle]


def _process(store: Path, path: Path, sha256: str, config: WatchConfig, progress: bool) -> Watched:
    """Compare a table with the version in use, and tune on it if the settings say so."""
    version = current_version(store)
    assert version is not None
    tuned = load(store)
    result = Watched(str(path), sha256, datetime.now(UTC).isoformat(timespec="seconds"), version)
    _compare(result, store, tuned, config, progress)
    own = tuned_on(store, sha256)  # by a process that was killed before it wrote the record
    if own is None and (why := _not_tuned(result, tuned.bundle, path, config)):
        result.why = why
        return result
    try:
        if own is None:
            options = config.retune
            own = retune(
                store,
                path,
                replay=options.replay,
                margin=options.margin,
                confidence=options.confidence,
                seed=config.seed,
                overrides=options.settings,
                progress=progress,
            ).version
    except UserError as error:
        result.why = f"not tuned: {error}"
        return result
    record = read_record(store / own)
    assert record is not None
    result.tuned, result.promoted, result.why = own, bool(record["promoted"]), str(record["why"])
    return result


def _compare(result: Watched, store: Path, tuned: FineTuned, config: WatchConfig, progress: bool) -> None:
    options = config.drift
    try:
        report = drift(
            tuned,
            result.file,
            reference=options.reference,
            alpha=options.alpha,
            rows=options.rows,
            seed=config.seed,
            progress=progress,
        )
    except UserError as error:
        result.headline = f"not compared: {error}"
        return
    folder = store / FOLDER / result.sha256[:16]
    report.save(folder)
    result.alarm, result.headline, result.drifted = report.alarm, report.headline, report.drifted
    result.page = str((folder / "drift.html").relative_to(store))


def _not_tuned(result: Watched, bundle: Bundle, path: Path, config: WatchConfig) -> str:
    """Return why a table is not tuned on, or ""."""
    if config.retune.when == "never":
        return "not tuned: the settings say never"
    if config.retune.when == "drift" and not result.alarm:
        return "not tuned: no drift was found" if result.alarm is not None else "not tuned: it was not compared"
    try:
        table = Table.read(path, read=bundle.config.data.read)
    except UserError as error:
        return f"not tuned: {error}"
    lacking = [task.target for task in bundle.targets.values() if task.target not in table]
    return f"not tuned: it has no labels, the column {', '.join(lacking)}" if lacking else ""


def _read(path: Path) -> list[Watched]:
    """Return what was worked on.

    Raises:
        FolderError: the record cannot be read.
    """
    if not path.is_file():
        return []
    try:
        tables = json.loads(read_bytes(path, TEXT_BYTES))["tables"]
        return TypeAdapter(list[Watched]).validate_python(tables)
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise FolderError("the record of the tables cannot be read", came=str(error), file=str(path)) from error


def _write(store: Path, done: list[Watched]) -> None:
    content = json.dumps({"tables": [table.to_json() for table in done]}, ensure_ascii=False, indent=1)
    replace_file(store / FOLDER / RECORD, content + "\n")
    names = {table.file: os.path.basename(table.file) for table in done}
    page = render_page("watch.html.j2", tables=done[::-1], names=names, store=str(store))
    replace_file(store / FOLDER / PAGE, page)
