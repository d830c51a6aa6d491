"""Save the tuned model as soon as training ends, so that an error in the comparison or the report does not lose it.

`trained.json`, beside the checkpoints, holds the training history. A resumed run that finds it loads the saved model
and only makes the comparison and the report.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from fusetune.deploy.bundle import Bundle, load_bundle, save_bundle
from fusetune.deploy.card import write_card
from fusetune.errors import FusetuneError, Interrupted, ReportError, UserError
from fusetune.evaluation.decisions import StackUsed
from fusetune.evaluation.results import Phase
from fusetune.fitting.run_folder import FOLDER, RESTART, TRAINED, RunFolder
from fusetune.security.untrusted import reading
from fusetune.tasks.base import Task
from fusetune.training.hardware.devices import processes
from fusetune.training.history import TrainingHistory


@dataclass
class Trained:
    """The result of training that the report needs.

    Attributes:
        bundle: the saved model.
        history: the training history.
        stacked: by task, the weight of its trees.
        phases: duration and peak memory of the steps so far.
        val_scores: by task, the model's scores of the labelled validation rows; empty for a loaded model.
    """

    bundle: Bundle
    history: TrainingHistory
    stacked: dict[str, StackUsed]
    phases: list[Phase]
    val_scores: dict[str, np.ndarray] = field(default_factory=dict)


def save_trained(run: RunFolder, trained: Trained) -> None:
    """Write the model folder, without metrics, and `trained.json` into the run's folder.

    Raises:
        StorageError: a file cannot be written.
    """
    if not processes().is_main_process:
        return
    for stale in ("report.html", "report.json"):
        (run.folder / stale).unlink(missing_ok=True)
    save_bundle(trained.bundle, run.folder)
    write_card(trained.bundle, None, run.folder)
    state = {
        "history": trained.history.to_state(),
        "stacked": {name: asdict(used) for name, used in trained.stacked.items()},
        "phases": [asdict(phase) for phase in trained.phases],
    }
    run.save_decision(TRAINED, state)


def load_trained(run: RunFolder, tasks: Mapping[str, Task]) -> Trained | None:
    """Load the model that a stopped run saved, on this process's device; return None if training had not ended.

    Raises:
        FolderError: the model folder or `trained.json` is damaged.
    """
    state = run.load_decision(TRAINED)
    if state is None:
        return None
    bundle = load_bundle(run.folder)
    for name, task in bundle.tasks.items():
        task.main = tasks[name].main  # a folder does not hold the user's functions
    bundle.model.to(processes().device)
    with reading("how the training went cannot be read", file=run.folder, do=RESTART):
        history = TrainingHistory.from_state(state["history"])
        stacked = {name: StackUsed(**used) for name, used in state["stacked"].items()}
        phases = [Phase(**phase) for phase in state["phases"]]
    return Trained(bundle, history, stacked, phases)


def unreported(folder: Path) -> bool:
    """Return whether a run saved its model in this folder but stopped before writing its report."""
    return (folder / FOLDER / f"{TRAINED}.json").is_file()


@contextmanager
def reporting(folder: Path) -> Iterator[None]:
    """Turn failures within the context into a `ReportError` that names the saved model and how to repeat the report."""
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        if isinstance(error, UserError):
            raise error.with_advice(_advice(folder)) from None
        text = str(error).strip() or "no message"
        cause = text if isinstance(error, FusetuneError) else f"{type(error).__name__}: {text}"
        raise ReportError(
            f"the model is tuned and saved, but its report could not be made: {cause}\n  Do: {_advice(folder)}"
        ) from error


def _advice(folder: Path) -> str:
    return (
        f"The model in {folder} is complete and predicts. `fusetune report {folder}` makes the report again without"
        " training the model anew."
    )
