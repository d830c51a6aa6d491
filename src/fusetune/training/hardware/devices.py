"""Devices, precision and trackers, through accelerate."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import DistributedDataParallelKwargs

from fusetune import _private
from fusetune._optional import optional_import
from fusetune.config.trainer import TrainerConfig
from fusetune.errors import ConfigError, nearest


def processes() -> PartialState:
    """Return the processes that torchrun or accelerate launched together; without GPUs they communicate by gloo.

    Call this before any other use of accelerate, as its first use decides about the backend.
    """
    return PartialState(cpu=not torch.cuda.is_available())


def release(accelerator: Accelerator) -> None:
    """Release the models and optimisers that an accelerator prepared.

    `Accelerator.free_memory` also runs the garbage collector, which takes 0.4 s. That is needed only if a module was
    wrapped for several processes, since the wrapper's gradient hooks must go.
    """
    if accelerator.num_processes > 1:
        accelerator.free_memory()
    _private.forget_prepared(accelerator)


def check_trackers(trackers: Sequence[str]) -> None:
    """Check that trackers can be used.

    Raises:
        ConfigError: accelerate has no tracker of a name.
        MissingExtra: a tracker is not installed.
    """
    for tracker in trackers:
        if tracker not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            do = nearest(tracker, LOGGER_TYPE_TO_CLASS) or "trainer.trackers=[] tracks nothing"
            raise ConfigError(f"there is no tracker called {tracker!r}", expected=known, do=do)
        if tracker in ("tensorboard", "wandb"):
            optional_import(tracker, f"to track the run with trainer.trackers: [{tracker}]")


def make_accelerator(settings: TrainerConfig, log_dir: Path | None, precision: str = "no") -> Accelerator:
    """Build the accelerator: devices, mixed precision and trackers.

    Args:
        settings: the trainer's.
        log_dir: folder that trackers write to; None for no trackers.
        precision: see `fusetune.training.hardware.precision.choose_precision`.

    Raises:
        ConfigError: accelerate has no tracker of a name, or was launched with FSDP, DeepSpeed or Megatron.
        MissingExtra: a requested tracker is not installed; without tensorboard, the default tracks nothing.
    """
    trackers = list(settings.trackers) if log_dir else []
    if trackers == TrainerConfig().trackers and find_spec("tensorboard") is None:
        trackers = []
    check_trackers(trackers)
    for launched in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{launched}", "false").lower() in ("true", "1"):
            raise ConfigError(
                f"accelerate's settings ask for {launched}, which is not used here",
                expected="data parallelism (DDP), with trainer.shard=true where parameters are to be spread (FSDP2)",
                do="launch with torchrun, or answer no where accelerate config asks for it",
            )
    _private.forget_precision()  # a process may run several fits, each with its own precision
    return Accelerator(
        mixed_precision=precision,
        log_with=trackers or None,
        project_dir=log_dir,
        # If no row of a batch has a column, its encoder takes no part in the backward pass.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def choose_threads() -> int:
    """Limit torch's threads to this process's share of the cores; return their number.

    OMP_NUM_THREADS takes precedence, and a lower number is left unchanged. Torch's default counts all cores of the
    machine, although a container may have fewer and processes launched together share them.
    """
    if not os.environ.get("OMP_NUM_THREADS"):
        share = num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if torch.get_num_threads() > max(1, share):
            torch.set_num_threads(max(1, share))
    return torch.get_num_threads()


def num_cores(root: Path = Path("/sys")) -> int:
    """Return the number of physical cores that this process may use, limited by its control group's quota.

    Args:
        root: the mount point of sysfs.
    """
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    siblings = [root / f"devices/system/cpu/cpu{number}/topology/thread_siblings_list" for number in usable]
    cores = len({_read(path) or str(path) for path in siblings})
    group = root / "fs/cgroup"
    quota = _read(group / "cpu.max").split()  # version 2; else version 1
    quota = quota or [_read(group / "cpu" / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    if len(quota) == 2 and all(part.isdigit() for part in quota):
        cores = min(cores, math.ceil(int(quota[0]) / int(quota[1])))
    return max(1, cores)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
