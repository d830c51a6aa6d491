"""The folder of a run: one run at a time writes to it, and a stopped run is resumed from it.

    checkpoints/
        .lock             locked by the run
        run.json          the settings, and what the run depends on: tables, encoders, versions, threads
        tune/, alone-…/   the checkpoints of each training
        trained.json      the training history, once the tuned model is saved

`checkpoints/` is deleted when the report is written.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from fusetune.config.config import Config
from fusetune.config.paths import rebased
from fusetune.deploy.bundle import versions, write_text
from fusetune.errors import ConfigError, FolderError, StorageError, TableError, reason, shown
from fusetune.security.model_folder import BUNDLE, CONFIG
from fusetune.security.untrusted import read_json, reading, walk
from fusetune.training.checkpoints.checkpoint_manager import CheckpointManager
from fusetune.training.hardware.devices import processes

FOLDER, LOCK, RUN = "checkpoints", ".lock", "run.json"
RESTART = "begin anew with --no-resume"
TRAINED = "trained"
"""Name of the decision that is stored when the tuned model is saved."""
RESUMABLE = {"out", "report", "data.cache", "data.cache_gib", "data.memory", "trainer.workers", "trainer.trackers"}
RESUMABLE |= {"trainer.checkpoint_minutes", "trainer.skip_nonfinite", "trainer.minutes"}
"""Settings that may change when a run is resumed: they do not affect its weights, or only when training stops."""


class RunFolder:
    """A run's folder, locked within the context of this object.

    Args:
        folder: created if it does not exist.
        config: the run's settings.
        resume: True resumes a stopped run, or begins one if there is none; False deletes a stopped run's state and
            begins anew; None begins a run, and refuses a folder with a stopped one.
        overwrite: whether a finished model in the folder may be replaced.

    Attributes:
        finished: whether the run to resume was already finished.
        state_folder: the folder with the run's state.
        notes: sentences on what has changed since the run began.
    """

    def __init__(self, folder: Path, config: Config, *, resume: bool | None = None, overwrite: bool = False) -> None:
        self.folder, self.config, self.resume, self.overwrite = folder, config, resume, overwrite
        self.state_folder = folder / FOLDER
        self.finished = False
        self.notes: list[str] = []
        self._lock: FileLock | None = None

    def __enter__(self) -> RunFolder:
        """
        Raises:
            ConfigError: it is a file, another run writes to it, it has a stopped run and `resume` is None, that run had
                other settings, or it has a finished model that may not be replaced.
            StorageError: it cannot be written.
        """
        state = processes()
        if state.is_main_process:
            try:
                self._claim()
            except BaseException:
                self._release()
                raise
        state.wait_for_everyone()
        self.finished = self.resume is True and not self._has_state() and self._is_finished()
        return self

    def __exit__(self, *raised: object) -> None:
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None
            with contextlib.suppress(OSError):  # there are checkpoints, or another run took the folder
                if not self._has_state():
                    shutil.rmtree(self.state_folder)
                self.folder.rmdir()  # succeeds only if it is empty

    def _claim(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"{self.folder} is a file", expected="a folder for the model", do="give another as --out")
        try:
            self.state_folder.mkdir(parents=True, exist_ok=True)
            for path in (self.state_folder, self.state_folder / LOCK):  # a link's target would be deleted
                if path.is_symlink() or (path.name == LOCK and path.exists() and not path.is_file()):
                    raise FolderError(f"{path} is a link or no file", do="delete it, or give another folder as --out")
            lock = FileLock(self.state_folder / LOCK, timeout=0)
            lock.acquire()
            self._lock = lock
        except Timeout:
            raise ConfigError(
                f"another run is writing to {self.folder}",
                do="wait for it, stop it, or give another folder as --out",
            ) from None
        except OSError as error:
            raise StorageError(
                f"the folder {self.folder} cannot be made or written: {reason(error)}\n  Do: name another as --out"
            ) from error
        if self._has_state() and self.resume is None:
            raise ConfigError(
                f"{self.folder} has a run that was stopped",
                do="--resume goes on with it (in Python resume=True); --no-resume deletes its checkpoints and begins "
                "anew; --out names another folder",
            )
        if not (self.resume is True and (self._has_state() or self._is_finished())):
            self._check_overwrite()
        if self.resume:
            self._check_files()
        known = self._read()
        if self.resume and known is not None:
            self._compare_settings(known)
        else:
            for path in self.state_folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif path.name != LOCK:  # decisions of an earlier run
                    path.unlink()
            write_text(self.state_folder / RUN, json.dumps({"settings": self._settings(), "facts": None}, indent=1))

    def _check_overwrite(self) -> None:
        """Refuse a folder with a finished model.

        Raises:
            ConfigError: it has a finished model, and `overwrite` is False.
        """
        if not self.overwrite:
            refuse_overwrite(self.folder)

    def _check_files(self) -> None:
        """Refuse files that no run writes.

        Raises:
            FolderError: there is such a file.
        """
        for name in walk(self.state_folder):
            path = self.state_folder / name
            if path.suffix not in (".json", ".safetensors") and path.name != LOCK and not path.name.startswith("."):
                raise FolderError(
                    f"{path} is no file of a run",
                    do="delete it, or begin anew with --no-resume",
                    file=str(self.state_folder),
                )

    def _has_state(self) -> bool:
        return any(self.state_folder.glob("*/[0-9]*-*")) or (self.state_folder / f"{TRAINED}.json").is_file()

    def _is_finished(self) -> bool:
        if not (self.folder / BUNDLE).is_file() or not (self.folder / CONFIG).is_file():
            return False
        before = _flat(settings_of(Config.from_yaml(self.folder / CONFIG)))
        return not _differing(before, _flat(self._settings()))

    def _settings(self) -> dict[str, Any]:
        return settings_of(self.config)

    def _read(self) -> dict[str, Any] | None:
        try:
            state = read_json(self.state_folder / RUN)
            return state if isinstance(state, dict) and "settings" in state else None
        except (OSError, ValueError):
            return None

    def _compare_settings(self, known: Mapping[str, Any]) -> None:
        with reading(f"{RUN} cannot be read", file=self.state_folder, do=RESTART):
            before = _flat(rebased(known["settings"], Path.cwd()))
        now = _flat(self._settings())
        differing = _differing(before, now)
        if differing:
            name = differing[0]
            raise ConfigError(
                f"the run in {self.folder} was begun with other settings: {', '.join(differing[:5])}",
                expected=f"{name}={shown(before.get(name))}",
                came=f"{name}={shown(now.get(name))}",
                do=f"`fusetune fit {self.folder} --resume` takes the settings it was begun with; --no-resume begins "
                "anew",
            )

    def manager(self, kind: str, names: Iterable[str] = ()) -> CheckpointManager:
        """Return the checkpoint manager of one training.

        Args:
            kind: of the training: "tune", "alone", "single".
            names: distinguish it from others of its kind, such as the names of its columns.
        """
        which = f"-{zlib.crc32(repr(list(names)).encode()):08x}" if names else ""
        minutes = self.config.trainer.checkpoint_minutes
        manager = CheckpointManager(self.state_folder / f"{kind}{which}", minutes, processes=processes().num_processes)
        if manager.checkpoints is not None:
            self.notes += manager.checkpoints.warnings
        return manager

    def check(self, tables: Mapping[str, str], encoders: Mapping[str, str]) -> None:
        """Check that tables and encoders are those with which the run began; a new run stores their fingerprints.

        Args:
            tables: by split, the fingerprint of its rows.
            encoders: by key, the fingerprint of its weights.

        Raises:
            TableError: the rows of a table or the weights of an encoder have changed.
        """
        state = processes()
        now: dict[str, dict[str, Any]] = {
            "tables": dict(tables),
            "encoders": dict(encoders),
            "others": {**versions(), "threads": torch.get_num_threads(), "device": str(state.device.type)},
        }
        known = self._read() or {}
        before = known.get("facts")
        state.wait_for_everyone()
        if before is None:
            if state.is_main_process:
                write_text(self.state_folder / RUN, json.dumps({"settings": self._settings(), "facts": now}, indent=1))
            return
        with reading(f"{RUN} cannot be read", file=self.state_folder, do=RESTART):
            before = {part: dict(before[part]) for part in now}
        for part, what in (("tables", "the {} rows are"), ("encoders", "the backbone {} is")):
            for name, fingerprint in now[part].items():
                if before[part].get(name) != fingerprint:
                    raise TableError(
                        f"{what.format(name)} not what the run in {self.folder} was begun with",
                        do="bring back what it was, or begin anew with --no-resume",
                    )
        for name, value in now["others"].items():
            if before["others"].get(name) != value:
                self.notes.append(
                    f"The run began with {name} {before['others'].get(name)} and was resumed with {value}: its weights "
                    "may differ in the last digits from those of a run that was never stopped."
                )

    def load_decision(self, name: str) -> Any:
        """Return what `save_decision` stored under this name, or None if the run is not resumed or stored nothing."""
        path = self.state_folder / f"{name}.json"
        if not self.resume or not path.is_file():
            return None
        with reading("what the run decided cannot be read", file=path, do=RESTART):
            return read_json(path)

    def save_decision(self, name: str, value: Any) -> None:
        """Store a decision, as JSON, that a resumed run must reuse."""
        if processes().is_main_process:
            write_text(self.state_folder / f"{name}.json", json.dumps(value))

    def finish(self) -> None:
        """Delete the run's state, after the model and its report were written."""
        removed = self.folder / f".{FOLDER}-{os.getpid()}"
        with contextlib.suppress(OSError):
            self.state_folder.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)


def refuse_overwrite(folder: Path) -> None:
    """Refuse to write a model into a folder that has one.

    Raises:
        ConfigError: it has a finished model.
    """
    if (folder / BUNDLE).is_file():
        raise ConfigError(
            f"{folder} has a finished model",
            do="give another folder as --out (in Python out=), or replace the model with --overwrite (overwrite=True)",
        )


def interrupted(folder: Path) -> Config | None:
    """Return the settings of the stopped run in a folder, or None if there is none.

    Raises:
        ConfigError: they cannot be read.
    """
    path = folder / FOLDER / RUN
    if not path.is_file():
        return None
    with reading("the settings of the run cannot be read", file=path, do=RESTART, error=ConfigError):
        return Config.build(read_json(path)["settings"], origin=str(path))


def settings_of(config: Config) -> dict[str, Any]:
    """Return a run's settings as JSON, with absolute paths."""
    return config.with_absolute_paths().model_dump(mode="json")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    names = sorted(before.keys() | now.keys())
    counted = [name for name in names if not any(name == free or name.startswith(f"{free}.") for free in RESUMABLE)]
    return [name for name in counted if before.get(name) != now.get(name)]
