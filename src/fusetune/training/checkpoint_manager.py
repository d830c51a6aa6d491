"""A training that can be stopped at any moment and gone on with: when its state is kept, and what that holds."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from fusetune.data.storage.mapped import pieces
from fusetune.errors import FolderError, Interrupted
from fusetune.security.untrusted import read_json, reading
from fusetune.training.callbacks import Callback
from fusetune.training.checkpoint import Checkpoints

State = dict[str, Any]

PARTS = {
    "stage": "name of the stage",
    "precision": "precision",
    "done": "place in the order of the rows",
    "checked": "last evaluation",
    "accumulate": "size of the micro-batches",
    "weights": "weights",
    "optimizer": "optimiser's state",
    "scheduler": "scheduler's state",
    "scaler": "gradient scaler's state",
    "processes": "generators' states",
    "watchers": "best step, early stopping, moving average and learning curve",
    "outer": "earlier stages",
    "sums": "sums since the last evaluation",
}
"""What a state in the middle of a stage must have, and what each part is called in an error."""
ENDED = {"stage": "name of the stage", "weights": "weights", "history": "training history"}
END = "end"
END_SECONDS = 60.0
"""A training that took less is not worth keeping when it is over: it is done again."""
SHARE = 0.05
"""Of the time, which writing checkpoints may take."""


class CheckpointManager:
    """Keeps one training's state on disk now and then, and when it is told to stop.

    Attributes:
        saved: the newest state that was found, until the training has gone past it; None for a training that begins.
        outer: gives what the stages' surroundings add to a state.
        checking: whether nothing is under way that a stop would spoil.
    """

    def __init__(self, folder: Path | None = None, minutes: float | None = None, *, processes: int = 1) -> None:
        """
        Args:
            folder: of this training's checkpoints; None keeps nothing.
            minutes: between two of them; 0 for one an update, None for none.
            processes: that train together.

        Raises:
            FolderError: what is there cannot be gone on with.
        """
        self.minutes, self.folder = minutes, folder
        self.checkpoints = Checkpoints(folder) if folder is not None and minutes is not None else None
        self.saved: State | None = self.checkpoints.newest() if self.checkpoints is not None else None
        self.outer: Callable[[], State] = dict
        self.checking, self.signal = False, 0
        self._began = self._last = time.monotonic()
        self._cost = 0.0
        if self.saved is not None:
            with self.reading():
                self._check(self.saved, processes)

    def reading(self) -> AbstractContextManager[None]:
        """Where what was kept is used: what does not fit this run is a `FolderError`."""
        do = "start anew with --no-resume"
        return reading("the checkpoint does not fit this run", file=self.folder or "", do=do)

    def _check(self, saved: State, processes: int) -> None:
        where = str(self.folder)
        parts = ENDED if saved.get("stage") == END else PARTS
        if lost := [said for part, said in parts.items() if part not in saved]:
            raise FolderError(
                f"the checkpoint lacks the {', the '.join(lost)}", file=where, do="start anew with --no-resume"
            )
        if parts is PARTS and saved["precision"] not in ("no", "bf16", "fp16"):
            raise ValueError(f"there is no precision {saved['precision']!r}")
        if parts is PARTS and len(saved["processes"]) != processes:
            raise FolderError(
                "the run was started with another number of processes",
                expected=f"{len(saved['processes'])}, as then",
                came=str(processes),
                do="launch it as it was launched, or start anew with --no-resume",
                file=where,
            )

    def take(self, stage: str) -> State | None:
        """The saved state of this stage, once."""
        if self.saved is None or self.saved["stage"] != stage:
            return None
        saved, self.saved = self.saved, None
        return saved

    def is_past(self, stage: str) -> bool:
        """Whether the saved state is of a later stage than this one."""
        return self.saved is not None and self.saved["stage"] != stage

    def due(self, accelerator: Accelerator) -> bool:
        """Whether to save now: for the time that has passed, or because a signal came; the same in all processes."""
        if self.checkpoints is None or self.minutes is None:
            return False
        passed = time.monotonic() - self._last
        flags = [float(passed >= max(60 * self.minutes, self._cost / SHARE if self.minutes else 0)), float(self.signal)]
        if accelerator.num_processes > 1:
            both = accelerator.reduce(torch.tensor(flags, device=accelerator.device), "sum").tolist()
            self.signal = self.signal or (int(signal.SIGTERM) if both[1] else 0)
            flags = both
        return any(flags)

    def save(self, state: State, accelerator: Accelerator | None = None) -> None:
        """Write a state; the first process does, the others wait.

        Raises:
            StorageError: it cannot be written.
        """
        if self.checkpoints is None:
            return
        start = time.monotonic()
        if accelerator is None or accelerator.is_main_process:
            self.checkpoints.save(state)
        if accelerator is not None:
            accelerator.wait_for_everyone()
        self._last = time.monotonic()
        self._cost = self._last - start

    def end(self, state: State, accelerator: Accelerator) -> None:
        """Write what a training came to, where it took long: see `ENDED`."""
        if self.minutes == 0 or time.monotonic() - self._began >= END_SECONDS:
            self.save({"stage": END, **state}, accelerator)

    def stop(self) -> None:
        """Stop if a signal came.

        Raises:
            Interrupted: so it is.
        """
        if self.signal:
            raise Interrupted(self.signal, saved=self.checkpoints is not None)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """SIGINT and SIGTERM wait for the update to end, and end an evaluation at once; a second one acts at once."""
        if self.checkpoints is None or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def note(number: int, frame: FrameType | None) -> None:
            self.signal = number
            restore()
            if self.checking:
                self.stop()

        for number in before:
            signal.signal(number, note)
        try:
            yield
        finally:
            restore()

    @contextmanager
    def may_stop(self, processes: int) -> Iterator[None]:
        """Inside, nothing is under way that a stop would spoil; several processes stop together, later."""
        self.checking = processes == 1
        try:
            yield
        finally:
            self.checking = False

    def places(self, name: str, found: np.ndarray) -> np.ndarray:
        """The cells that a step computes, as the run began it: cells computed together keep their last digits.

        Args:
            name: of the step.
            found: (cells,) what it would compute now, in order.
        """
        if self.folder is None:
            return found
        path = self.folder / "places" / f"{name}.json"
        if path.is_file():
            with self.reading():
                kept = np.asarray(read_json(path), dtype=np.int64)
                if kept.ndim != 1 or not np.isin(found, kept).all() or (kept < 0).any():
                    raise ValueError(f"{path.name} holds other cells")
            return kept
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("w", encoding="utf-8") as file:
            for number, piece in enumerate(pieces(len(found))):
                file.write((", " if number else "[") + json.dumps(found[piece].tolist())[1:-1])
            file.write("]")
        partial.replace(path)
        return found


def generators(device: torch.device) -> State:
    """The states of all the generators that training draws from."""
    name, keys, *rest = np.random.get_state()
    state: State = {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": random.getstate(),
    }
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state()
    return state


def set_generators(state: Mapping[str, Any], device: torch.device) -> None:
    """Put the generators back."""
    torch.set_rng_state(state["torch"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["device"])


def of_all_processes(own: State, accelerator: Accelerator) -> list[State]:
    """Each process's part of a state."""
    return list(gather_object([own])) if accelerator.num_processes > 1 else [own]


def watched(watchers: Sequence[Callback]) -> State:
    """What the watchers know, by their class."""
    return {type(watcher).__name__: state for watcher in watchers if (state := watcher.state()) is not None}


def watch_on(watchers: Sequence[Callback], state: Mapping[str, Any]) -> None:
    """Let the watchers know what they knew.

    Raises:
        FolderError: the state of one is missing.
    """
    for watcher in watchers:
        if watcher.state() is None:
            continue
        if type(watcher).__name__ not in state:
            raise FolderError(f"the checkpoint lacks the state of {type(watcher).__name__}")
        watcher.load(state[type(watcher).__name__])


def moving(module: nn.Module) -> dict[str, Tensor]:
    """All that training changes: trainable parameters and buffers, by name."""
    trained = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    return trained | dict(module.named_buffers())
