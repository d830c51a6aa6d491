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
    """The processes that run this together, as torchrun or accelerate launched them; without GPUs they talk by gloo.

    Ask this before anything else of accelerate is used: what is asked first decides.
    """
    return PartialState(cpu=not torch.cuda.is_available())


def release(accelerator: Accelerator) -> None:
    """Let go of what an accelerator prepared.

    Its own way has Python look at all objects for cycles, which takes 0.4 s. That is needed only where a module was
    wrapped for several processes: what wrapped it still answers to its gradients.
    """
    if accelerator.num_processes > 1:
        accelerator.free_memory()
    _private.forget_prepared(accelerator)


def check_trackers(trackers: Sequence[str]) -> None:
    """Refuse trackers that cannot be used.

    Raises:
        ConfigError: accelerate knows no tracker of a name.
        MissingExtra: one is not installed.
    """
    for tracker in trackers:
        if tracker not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            do = nearest(tracker, LOGGER_TYPE_TO_CLASS) or "trainer.trackers=[] tracks nothing"
            raise ConfigError(f"there is no tracker called {tracker!r}", expected=known, do=do)
        if tracker in ("tensorboard", "wandb"):
            optional_import(tracker, f"to track the run with trainer.trackers: [{tracker}]")


def make_accelerator(settings: TrainerConfig, log_dir: Path | None, precision: str = "no") -> Accelerator:
    """Devices and trackers as the settings say.

    Args:
        settings: the trainer's.
        log_dir: where trackers write; None for no trackers.
        precision: see `fusetune.training.hardware.precision.choose_precision`.

    Raises:
        ConfigError: accelerate knows no tracker of a name, or was launched to spread parameters over processes.
        MissingExtra: a tracker that was asked for is not installed; without tensorboard, the default tracks nothing.
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
        # A batch without a column's cells leaves that column's encoder out of the backward pass.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def choose_threads() -> int:
    """Have torch compute with as many threads as this process has cores to itself; the number.

    OMP_NUM_THREADS decides where it is set, and a number that is lower already stays. Torch itself counts the machine's
    cores, of which a container may have few, and which processes launched together share.
    """
    if not os.environ.get("OMP_NUM_THREADS"):
        share = num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if torch.get_num_threads() > max(1, share):
            torch.set_num_threads(max(1, share))
    return torch.get_num_threads()


def num_cores(root: Path = Path("/sys")) -> int:
    """The physical cores that this process may run on, at most what its control group grants it.

    Args:
        root: where the kernel says so.
    """
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    siblings = [root / f"devices/system/cpu/cpu{one}/topology/thread_siblings_list" for one in usable]
    cores = len({_read(path) or str(path) for path in siblings})
    group = root / "fs/cgroup"
    found = _read(group / "cpu.max").split()  # version 2; else version 1
    found = found or [_read(group / "cpu" / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    if len(found) == 2 and all(part.isdigit() for part in found):
        cores = min(cores, math.ceil(int(found[0]) / int(found[1])))
    return max(1, cores)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
