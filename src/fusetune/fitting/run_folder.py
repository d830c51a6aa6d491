"""The folder of a run: one run at a time has it, and a run that was stopped is gone on with there.

    checkpoints/
        .lock             held by the run
        run.json          the settings, and what the run depends on: tables, encoders, versions, threads
        tune/, alone-…/   the checkpoints of each training
        trained.json      how training went, once the tuned model is saved

All of it goes once the report is written.
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
from fusetune.training.checkpoint_manager import CheckpointManager
from fusetune.training.hardware.devices import processes

FOLDER, LOCK, RUN = "checkpoints", ".lock", "run.json"
ANEW = "begin anew with --no-resume"
TRAINED = "trained"
"""What the run remembers once its tuned model is saved."""
FREE = {"out", "report", "data.cache", "data.cache_gib", "data.memory", "trainer.workers", "trainer.trackers"}
FREE |= {"trainer.checkpoint_minutes", "trainer.skip_nonfinite"}
"""Settings that may be others when a run is gone on with: they do not change its weights."""


class RunFolder:
    """A run's folder, claimed while this object is entered.

    Attributes:
        finished: whether the run was asked to go on and had come to its end.
        said: what is different from when the run began, in sentences.
    """

    def __init__(self, folder: Path, config: Config, *, resume: bool | None = None, overwrite: bool = False) -> None:
        """
        Args:
            folder: made where there is none.
            config: the run's settings.
            resume: True goes on with a run that was stopped, or begins one; False begins anew and deletes what such a
                run left; None begins one where there is none to go on with.
            overwrite: whether a finished model in the folder may be replaced.
        """
        self.folder, self.config, self.resume, self.overwrite = folder, config, resume, overwrite
        self.place = folder / FOLDER
        self.finished = False
        self.said: list[str] = []
        self._lock: FileLock | None = None

    def __enter__(self) -> RunFolder:
        """
        Raises:
            ConfigError: it is a file, another run has it, it has a run that was stopped and nobody said what of it,
                that run had other settings, or it has a finished model that may not be replaced.
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
        self.finished = self.resume is True and not self._kept() and self._is_finished()
        return self

    def __exit__(self, *raised: object) -> None:
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None
            with contextlib.suppress(OSError):  # there are checkpoints, or another run was quicker
                if not self._kept():
                    shutil.rmtree(self.place)
                self.folder.rmdir()  # goes where nothing is in it

    def _claim(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"{self.folder} is a file", expected="a folder for the model", do="give another as --out")
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            for path in (self.place, self.place / LOCK):  # what it leads to would be emptied
                if path.is_symlink() or (path.name == LOCK and path.exists() and not path.is_file()):
                    raise FolderError(f"{path} is a link or no file", do="delete it, or give another folder as --out")
            lock = FileLock(self.place / LOCK, timeout=0)
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
        if self._kept() and self.resume is None:
            raise ConfigError(
                f"{self.folder} has a run that was stopped",
                do="--resume goes on with it (in Python resume=True); --no-resume deletes its checkpoints and begins "
                "anew; --out names another folder",
            )
        if not (self.resume is True and (self._kept() or self._is_finished())):
            self._check_overwrite()
        if self.resume:
            self._look()
        known = self._read()
        if self.resume and known is not None:
            self._compare_settings(known)
        else:
            for path in self.place.iterdir():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif path.name != LOCK:  # decisions of a run before
                    path.unlink()
            write_text(self.place / RUN, json.dumps({"settings": self._settings(), "facts": None}, indent=1))

    def _check_overwrite(self) -> None:
        """Refuse a folder with a finished model.

        Raises:
            ConfigError: it has one, and `overwrite` is off.
        """
        if not self.overwrite:
            refuse_overwrite(self.folder)

    def _look(self) -> None:
        """Refuse a run's folder with files that no run leaves there.

        Raises:
            FolderError: there are.
        """
        for name in walk(self.place):
            path = self.place / name
            if path.suffix not in (".json", ".safetensors") and path.name != LOCK and not path.name.startswith("."):
                raise FolderError(
                    f"{path} is no file of a run", do="delete it, or begin anew with --no-resume", file=str(self.place)
                )

    def _kept(self) -> bool:
        return any(self.place.glob("*/[0-9]*-*")) or (self.place / f"{TRAINED}.json").is_file()

    def _is_finished(self) -> bool:
        if not (self.folder / BUNDLE).is_file() or not (self.folder / CONFIG).is_file():
            return False
        before = _flat(settings_of(Config.from_yaml(self.folder / CONFIG)))
        return not _differing(before, _flat(self._settings()))

    def _settings(self) -> dict[str, Any]:
        return settings_of(self.config)

    def _read(self) -> dict[str, Any] | None:
        try:
            found = read_json(self.place / RUN)
            return found if isinstance(found, dict) and "settings" in found else None
        except (OSError, ValueError):
            return None

    def _compare_settings(self, known: Mapping[str, Any]) -> None:
        with reading(f"{RUN} cannot be read", file=self.place, do=ANEW):
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
        """Keeps the state of one training.

        Args:
            kind: what it is: "tune", "alone", "single".
            names: tells it from others of the kind.
        """
        which = f"-{zlib.crc32(repr(list(names)).encode()):08x}" if names else ""
        minutes = self.config.trainer.checkpoint_minutes
        manager = CheckpointManager(self.place / f"{kind}{which}", minutes, processes=processes().num_processes)
        if manager.checkpoints is not None:
            self.said += manager.checkpoints.warnings
        return manager

    def check(self, tables: Mapping[str, str], encoders: Mapping[str, str]) -> None:
        """Compare what the run depends on with what it was when it began, or write it down.

        Args:
            tables: by split, the fingerprint of its rows.
            encoders: by key, the fingerprint of its weights.

        Raises:
            TableError: a table or an encoder is another.
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
                write_text(self.place / RUN, json.dumps({"settings": self._settings(), "facts": now}, indent=1))
            return
        with reading(f"{RUN} cannot be read", file=self.place, do=ANEW):
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
                self.said.append(
                    f"The run began with {name} {before['others'].get(name)} and went on with {value}: its weights are "
                    "not, bit by bit, those of a run that was never stopped."
                )

    def recall(self, name: str) -> Any:
        """What `remember` wrote, or None."""
        path = self.place / f"{name}.json"
        if not self.resume or not path.is_file():
            return None
        with reading("what the run decided cannot be read", file=path, do=ANEW):
            return read_json(path)

    def remember(self, name: str, value: Any) -> None:
        """Keep a decision that a run that goes on has to take over."""
        if processes().is_main_process:
            write_text(self.place / f"{name}.json", json.dumps(value))

    def finish(self) -> None:
        """Delete the checkpoints: the model is saved and its report written."""
        gone = self.folder / f".{FOLDER}-{os.getpid()}"
        with contextlib.suppress(OSError):
            self.place.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def refuse_overwrite(folder: Path) -> None:
    """Refuse to write a model into a folder that has one.

    Raises:
        ConfigError: it has one.
    """
    if (folder / BUNDLE).is_file():
        raise ConfigError(
            f"{folder} has a finished model",
            do="give another folder as --out (in Python out=), or replace the model with --overwrite (overwrite=True)",
        )


def interrupted(folder: Path) -> Config | None:
    """The settings of the run that was stopped in a folder, None where there is none.

    Raises:
        ConfigError: they cannot be read.
    """
    path = folder / FOLDER / RUN
    if not path.is_file():
        return None
    with reading("the settings of the run cannot be read", file=path, do=ANEW, error=ConfigError):
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
    counted = [name for name in names if not any(name == free or name.startswith(f"{free}.") for free in FREE)]
    return [name for name in counted if before.get(name) != now.get(name)]
