"""`fusetune doctor`: what it finds wrong with an installation."""

import json
import subprocess
from importlib import metadata
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from fusetune.cli import doctor
from fusetune.cli.main import app


def by_name(checks) -> dict[str, doctor.Check]:
    return {check.name: check for check in checks}


def test_this_installation_is_sound():
    done = CliRunner().invoke(app, ["doctor", "--json"])
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert done.exit_code == 0, [check for check in checks.values() if check["status"] == "problem"]
    assert {"python", "torch", "device", "memory", "hub cache", "models", "extras"} <= checks.keys()
    assert "minilm" in checks["models"]["detail"]


def test_old_and_missing_packages_are_problems(monkeypatch):
    versions = {"torch": "2.1.0"}

    def version(name: str) -> str:
        if name == "pillow":
            raise metadata.PackageNotFoundError(name)
        return versions.get(name) or real(name)

    real = metadata.version
    monkeypatch.setattr(doctor.metadata, "version", version)
    checks = by_name(doctor._packages())
    assert (checks["torch"].status, checks["torch"].do) == ("problem", "pip install 'torch>=2.10'")
    assert checks["pillow"].detail == "not installed"
    assert checks["numpy"].status == "ok"


def test_a_package_that_does_not_fit_torch_is_a_problem(monkeypatch):
    monkeypatch.setattr(doctor, "BESIDE_TORCH", ("json",))
    failed = SimpleNamespace(returncode=1, stderr="Traceback\nRuntimeError: operator torchvision::nms does not exist\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    (check,) = doctor._beside_torch()
    assert (
        check.status == "problem" and "operator torchvision::nms" in check.detail and "pip uninstall json" in check.do
    )


def test_a_driver_without_a_cuda_build_is_a_problem(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert doctor._device().status == "problem"


def test_a_cache_that_cannot_be_written_is_a_problem(monkeypatch):
    monkeypatch.setenv("FUSETUNE_CACHE", "/tmp/features")
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert by_name(doctor._folders())["feature cache"].status == "problem"


def test_missing_extras_are_named(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "wandb" else object())
    installed, lacking = doctor._extras()
    assert "wandb" not in installed.detail and lacking.do.startswith("pip install 'fusetune[wandb]'")


def test_problems_give_exit_code_1(monkeypatch):
    monkeypatch.setattr(doctor, "examine", lambda: iter([doctor.Check("torch", "problem", "too old", "update")]))
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1 and "→ update" in done.stdout and "1 problem" in done.stdout


@pytest.mark.parametrize("words", ["fusetune pre", "fusetune lau"])
def test_shell_completion_knows_the_verbs(words):
    environment = {"_FUSETUNE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "1"}
    done = CliRunner().invoke(app, [], prog_name="fusetune", env=environment)
    assert done.stdout.split() == ["predict" if words.endswith("pre") else "launch"]
