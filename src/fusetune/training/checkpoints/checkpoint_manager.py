"""When checkpoints are saved, what state they hold, and how signals stop a run."""

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
from fusetune.training.checkpoints.checkpoint import Checkpoints

State = dict[str, Any]

STATE_PARTS = {
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
"""Keys that a state saved within a stage must have, and what an error calls each."""
END_PARTS = {"stage": "name of the stage", "weights": "weights", "history": "training history"}
END = "end"
_KEYS = {"BestSteps": "Kept"}
"""Keys of callbacks' states in checkpoints, where they are not the class's name."""
END_SECONDS = 60.0
"""A finished training is saved only if it took at least so many seconds; a shorter one is repeated on resume."""
MAX_TIME_SHARE = 0.05
"""Largest share of the running time that writing checkpoints may take."""


class CheckpointManager:
    """Saves one training's state periodically and when a signal comes, and holds the state to resume from.

    Args:
        folder: of this training's checkpoints; None saves none.
        minutes: between two checkpoints; 0 saves one an update, None saves none.
        processes: number of processes that train together.

    Raises:
        FolderError: the saved state is damaged or does not fit this run.

    Attributes:
        saved: the newest saved state, until the training has passed it; None for a training that starts afresh.
        outer_state: returns the part of the state that lies outside the stages.
        checking: whether a signal may interrupt at once, as no update is being made.
    """

    def __init__(self, folder: Path | None = None, minutes: float | None = None, *, processes: int = 1) -> None:
        self.minutes, self.folder = minutes, folder
        self.checkpoints = Checkpoints(folder) if folder is not None and minutes is not None else None
        self.saved: State | None = self.checkpoints.newest() if self.checkpoints is not None else None
        self.outer_state: Callable[[], State] = dict
        self.checking, self.signal = False, 0
        self._began = self._last = time.monotonic()
        self._cost = 0.0
        if self.saved is not None:
            with self.reading():
                self._check(self.saved, processes)

    def reading(self) -> AbstractContextManager[None]:
        """Return a context in which errors from a state that does not fit this run become a `FolderError`."""
        do = "start anew with --no-resume"
        return reading("the checkpoint does not fit this run", file=self.folder or "", do=do)

    def _check(self, saved: State, processes: int) -> None:
        where = str(self.folder)
        parts = END_PARTS if saved.get("stage") == END else STATE_PARTS
        if missing := [label for part, label in parts.items() if part not in saved]:
            raise FolderError(
                f"the checkpoint lacks the {', the '.join(missing)}", file=where, do="start anew with --no-resume"
            )
        if parts is STATE_PARTS and saved["precision"] not in ("no", "bf16", "fp16"):
            raise ValueError(f"there is no precision {saved['precision']!r}")
        if parts is STATE_PARTS and len(saved["processes"]) != processes:
            raise FolderError(
                "the run was started with another number of processes",
                expected=f"{len(saved['processes'])}, as then",
                came=str(processes),
                do="launch it as it was launched, or start anew with --no-resume",
                file=where,
            )

    def pop(self, stage: str) -> State | None:
        """Return the saved state if it is of this stage, and forget it; else None."""
        if self.saved is None or self.saved["stage"] != stage:
            return None
        saved, self.saved = self.saved, None
        return saved

    def is_past(self, stage: str) -> bool:
        """Whether the saved state is of a later stage than this one."""
        return self.saved is not None and self.saved["stage"] != stage

    def due(self, accelerator: Accelerator) -> bool:
        """Return whether to save now, because enough time has passed or a signal came; the same in all processes."""
        if self.checkpoints is None or self.minutes is None:
            return False
        passed = time.monotonic() - self._last
        flags = [
            float(passed >= max(60 * self.minutes, self._cost / MAX_TIME_SHARE if self.minutes else 0)),
            float(self.signal),
        ]
        if accelerator.num_processes > 1:
            both = accelerator.reduce(torch.tensor(flags, device=accelerator.device), "sum").tolist()
            self.signal = self.signal or (int(signal.SIGTERM) if both[1] else 0)
            flags = both
        return any(flags)

    def save(self, state: State, accelerator: Accelerator | None = None) -> None:
        """Write a state from the main process; the others wait for it.

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

    def save_end(self, state: State, accelerator: Accelerator) -> None:
        """Write the final state of a training that took at least `END_SECONDS`; see `END_PARTS`."""
        if self.minutes == 0 or time.monotonic() - self._began >= END_SECONDS:
            self.save({"stage": END, **state}, accelerator)

    def raise_if_signalled(self) -> None:
        """Stop the run if a signal was received.

        Raises:
            Interrupted: a signal was received.
        """
        if self.signal:
            raise Interrupted(self.signal, saved=self.checkpoints is not None)

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM: the first lets the update finish or ends an evaluation; a second acts at once."""
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
                self.raise_if_signalled()

        for number in before:
            signal.signal(number, note)
        try:
            yield
        finally:
            restore()

    @contextmanager
    def interruptible(self, processes: int) -> Iterator[None]:
        """Let a signal interrupt at once inside the context. Several processes stop together, at the next update."""
        self.checking = processes == 1
        try:
            yield
        finally:
            self.checking = False

    def step_cells(self, name: str, cells: np.ndarray) -> np.ndarray:
        """Return the cells that a step computes, in the order in which the run first computed them.

        The order is stored: which cells share a batch changes the last digits of the results, and a resumed run must
        reproduce them.

        Args:
            name: of the step.
            cells: (cells,) int64, what the step would compute now, in order.

        Raises:
            FolderError: the stored order lacks some of these cells.
        """
        if self.folder is None:
            return cells
        path = self.folder / "places" / f"{name}.json"
        if path.is_file():
            with self.reading():
                stored = np.asarray(read_json(path), dtype=np.int64)
                if stored.ndim != 1 or not np.isin(cells, stored).all() or (stored < 0).any():
                    raise ValueError(f"{path.name} holds other cells")
            return stored
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("w", encoding="utf-8") as file:
            for number, piece in enumerate(pieces(len(cells))):
                file.write((", " if number else "[") + json.dumps(cells[piece].tolist())[1:-1])
            file.write("]")
        partial.replace(path)
        return cells


def rng_states(device: torch.device) -> State:
    """Return the RNG states of torch, numpy, Python and the device."""
    name, keys, *rest = np.random.get_state()
    state: State = {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": random.getstate(),
    }
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state()
    return state


def set_rng_states(state: Mapping[str, Any], device: torch.device) -> None:
    """Restore the RNG states that `rng_states` returned."""
    torch.set_rng_state(state["torch"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["device"])


def gather_states(state: State, accelerator: Accelerator) -> list[State]:
    """Gather each process's state, in order of the processes."""
    return list(gather_object([state])) if accelerator.num_processes > 1 else [state]


def callback_states(callbacks: Sequence[Callback]) -> State:
    """Return the states of the callbacks that have one, by the name of the class."""
    return {_key(callback): state for callback in callbacks if (state := callback.state()) is not None}


def load_callback_states(callbacks: Sequence[Callback], state: Mapping[str, Any]) -> None:
    """Restore the callbacks' states.

    Raises:
        FolderError: a callback's state is missing.
    """
    for callback in callbacks:
        if callback.state() is None:
            continue
        if _key(callback) not in state:
            raise FolderError(f"the checkpoint lacks the state of {_key(callback)}")
        callback.load(state[_key(callback)])


def _key(callback: Callback) -> str:
    """Return the key of a callback's state in a checkpoint: its class, or the name that checkpoints know it by."""
    name = type(callback).__name__
    return _KEYS.get(name, name)


def trainable_state(module: nn.Module) -> dict[str, Tensor]:
    """Return what training changes, by name: trainable parameters and all buffers."""
    trained = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    return trained | dict(module.named_buffers())
