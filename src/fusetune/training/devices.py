"""Devices, precision and trackers, through accelerate."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import DistributedDataParallelKwargs

from fusetune._optional import optional_import
from fusetune.errors import ConfigError, nearest
from fusetune.sections import TrainerConfig


def processes() -> PartialState:
    """The processes that run this together, as torchrun or accelerate launched them; without GPUs they talk by gloo.

    Ask this before anything else of accelerate is used: what is asked first decides.
    """
    return PartialState(cpu=not torch.cuda.is_available())


def make_accelerator(settings: TrainerConfig, log_dir: Path | None, precision: str = "no") -> Accelerator:
    """Devices and trackers as the settings say.

    Args:
        settings: the trainer's.
        log_dir: where trackers write; None for no trackers.
        precision: see `fusetune.training.precision.chosen`.

    Raises:
        ConfigError: accelerate knows no tracker of a name.
        MissingExtra: a tracker that was asked for is not installed; without tensorboard, the default tracks nothing.
    """
    trackers = list(settings.trackers) if log_dir else []
    if trackers == TrainerConfig().trackers and find_spec("tensorboard") is None:
        trackers = []
    for tracker in trackers:
        if tracker not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            do = nearest(tracker, LOGGER_TYPE_TO_CLASS) or "trainer.trackers=[] tracks nothing"
            raise ConfigError(f"there is no tracker called {tracker!r}", expected=known, do=do)
        if tracker in ("tensorboard", "wandb"):
            optional_import(tracker, f"to track the run with trainer.trackers: [{tracker}]")
    AcceleratorState._reset_state()  # a process may run several fits, each with its own precision
    return Accelerator(
        mixed_precision=precision,
        log_with=trackers or None,
        project_dir=log_dir,
        # A batch without a column's cells leaves that column's encoder out of the backward pass.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
