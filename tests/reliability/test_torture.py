"""Real processes, killed, starved and signalled at moments of chance; `make torture` runs them all."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stopping import settings, weights

pytestmark = [pytest.mark.slow, pytest.mark.torture]

AT_A_WRITE = """
import os, signal, sys
from pathlib import Path
from fusetune.training.checkpoints import checkpoint
number, part, real = [0], sys.argv.pop(1), {"save_file": checkpoint.save_file, "rename": Path.rename}
def die():
    number[0] += 1
    if number[0] == 4:
        os.kill(os.getpid(), signal.SIGKILL)
def save_file(tensors, path):
    if part == "half a file":
        Path(path).write_bytes(b"half")
        die()
    real["save_file"](tensors, path)
    if part == "before the manifest":
        die()
def rename(self, to):
    if part == "before the rename" and self.name.startswith(".partial"):
        die()
    made = real["rename"](self, to)
    if part == "after the rename" and self.name.startswith(".partial"):
        die()
    return made
checkpoint.save_file, Path.rename = save_file, rename
from fusetune.cli.main import main
main()
"""
"""Ends the process at the fourth checkpoint."""


def command(*words: str, before: tuple[str, ...] = ("-m", "fusetune")) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, *before, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(process: subprocess.Popen[str], code: int = 0, seconds: float = 600) -> str:
    _, said = process.communicate(timeout=seconds)
    assert process.returncode == code, said
    return said


def training(folder: Path, process: subprocess.Popen[str], checkpoints: int = 1, seconds: float = 120) -> None:
    """Wait until the run has written so many checkpoints."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        found = [int(path.name[:8]) for path in folder.glob("checkpoints/*/[0-9]*-*")]
        if found and max(found) >= checkpoints:
            return
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint in time: {process.communicate()[1] if process.poll() is not None else ''}")


def prepared(base: dict[str, Any], case: str, home: Path, **trainer: Any) -> tuple[Path, dict[str, str], float]:
    """The file of a case's settings, the weights of the run that nothing happened to, and its seconds."""
    config = settings(base, case, home)
    config["trainer"] |= trainer
    path = home / "c.yaml"
    path.write_text(json.dumps(config))
    start = time.monotonic()
    finished(command("fit", str(path), "-o", str(home / "whole")))
    return path, weights(home / "whole"), time.monotonic() - start


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("case", ["augmented", "sam, vat, mixup"])
def test_killed_at_moments_of_chance(base, tmp_path, case, workers, tried):
    config, expected, seconds = prepared(base, case, tmp_path, workers=workers)
    rng, kills, ends = np.random.default_rng([workers, len(case)]), 0, 0
    while kills < 5 or not ends:
        out = tmp_path / f"parts{ends}"
        process = command("fit", str(config), "-o", str(out), "--resume")
        try:
            process.communicate(timeout=float(rng.uniform(0.4, 1.1)) * seconds if kills < 5 else 600)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0
        ends += 1
        assert weights(out) == expected
    tried(f"SIGKILL at a random moment ({case}, {workers} workers)", survived=True, times=kills)


@pytest.mark.parametrize("part", ["half a file", "before the manifest", "before the rename", "after the rename"])
def test_killed_while_a_checkpoint_is_written(base, tmp_path, part, tried):
    config, expected, _ = prepared(base, "partly frozen", tmp_path)
    words = ("fit", str(config), "-o", str(tmp_path / "parts"))
    finished(command(part, *words, before=("-c", AT_A_WRITE)), code=-signal.SIGKILL)
    finished(command(*words, "--resume"))
    assert weights(tmp_path / "parts") == expected
    tried(f"SIGKILL inside a checkpoint's write: {part}", survived=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("workers", [0, 2])
def test_told_to_stop(base, tmp_path, number, code, workers, tried):
    long = {"epochs": 30, "patience": None, "checkpoint_minutes": 60}
    config, expected, _ = prepared(base, "augmented", tmp_path, workers=workers, **long)
    out = tmp_path / "parts"
    process = command("fit", str(config), "-o", str(out))
    while (
        not (out / "checkpoints" / "run.json").is_file()
        or '"facts": null' in (out / "checkpoints" / "run.json").read_text()
    ):
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()[1]
    time.sleep(4)
    start = time.monotonic()
    process.send_signal(number)
    said = finished(process, code, seconds=60)
    assert time.monotonic() - start < 10
    assert "a checkpoint was written" in said
    finished(command("fit", str(out), "--resume"))
    assert weights(out) == expected
    tried(f"{signal.Signals(number).name} ({workers} workers)", survived=True)


def test_a_killed_worker(base, tmp_path, tried):
    config, expected, _ = prepared(base, "workers", tmp_path)
    out = tmp_path / "parts"
    process = command("fit", str(config), "-o", str(out))
    training(out, process)
    children: list[int] = []
    while process.poll() is None and not children:
        listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
        children = [int(word) for word in listed.stdout.split()]
    for child in children:
        os.kill(child, signal.SIGKILL)
    start = time.monotonic()
    said = finished(process, code=1, seconds=120)
    assert time.monotonic() - start < 30
    assert re.search(r"a process that makes batches was killed.*rows last requested: \[", said, re.S), said
    assert "Traceback" not in said
    finished(command("fit", str(config), "-o", str(out), "--resume"))
    assert weights(out) == expected
    tried("SIGKILL of a worker", survived=True)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root may make a disk that is soon full")
def test_a_full_disk(base, tmp_path, tried):
    config, expected, _ = prepared(base, "partly frozen", tmp_path)
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    words = ("fit", str(config), "-o", str(disk / "run"))
    try:
        said = finished(command(*words), code=1)
        assert re.search(r"checkpoint of [\d,]+ bytes cannot be written to .*disk/run.*bytes are free", said, re.S), (
            said
        )
        assert "Traceback" not in said
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        finished(command(*words, "--resume"))
        assert weights(disk / "run") == expected
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    tried("a disk that is full", survived=True)


def test_two_processes_are_killed(base, tmp_path, tried):
    torchrun = Path(sys.executable).with_name("torchrun")
    base |= {name: {**base[name], "freeze": "all"} for name in ("image", "audio")}
    config = tmp_path / "c.yaml"
    config.write_text(json.dumps(settings(base, "augmented", tmp_path) | {"augment": {"text": {"word_dropout": 0.2}}}))
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "fusetune")
    assert torchrun.exists()
    finished(command("fit", str(config), "-o", str(tmp_path / "whole"), before=launch))
    out = tmp_path / "parts"
    for checkpoints in (3, 9):
        process = command("fit", str(config), "-o", str(out), "--resume", before=launch)
        training(out, process, checkpoints)
        subprocess.run(["pkill", "-KILL", "-P", str(process.pid)], check=True)
        process.kill()
        process.communicate()
    finished(command("fit", str(config), "-o", str(out), "--resume", before=launch))
    assert weights(out) == weights(tmp_path / "whole")
    tried("SIGKILL of two processes that train together", survived=True, times=2)
