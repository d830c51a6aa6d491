"""The container and the manifests: their form, and that they name options and paths that there are."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from fusetune.cli.main import app

ROOT = Path(__file__).parents[3]
INSTRUCTIONS = {
    *(
        "ARG",
        "CMD",
        "COPY",
        "ENTRYPOINT",
        "ENV",
        "EXPOSE",
        "FROM",
        "HEALTHCHECK",
        "RUN",
        "STOPSIGNAL",
        "USER",
        "WORKDIR",
    ),
}
MANIFESTS = ["kubernetes.yaml", "kserve.yaml"]


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, each with its arguments."""
    text = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines()
    parts = [line.partition(" ") for line in joined]
    return [(name, rest.strip()) for name, _, rest in parts]


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "deploy" / name).read_text(encoding="utf-8")))


def containers(name: str) -> list[dict[str, Any]]:
    found = []
    for document in documents(name):
        spec = document["spec"].get("template", {}).get("spec") or document["spec"].get("predictor", {})
        found += spec.get("containers", [])
    return found


def check_arguments(arguments: list[str]) -> None:
    command = typer.main.get_command(app).get_command(None, "serve")
    with command.make_context("serve", list(arguments), resilient_parsing=False) as context:
        assert context.params["host"] == "0.0.0.0" and context.params["folder"]


def test_instructions_are_those_of_docker_and_in_order():
    names = [name for name, _ in instructions()]
    assert set(names) <= INSTRUCTIONS and names[:2] == ["ARG", "FROM"]
    known = {"PATH", "PWD"}
    for name, rest in instructions():
        used = set(re.findall(r"\$\{?(\w+)\}?", rest))
        assert used <= known, f"{name} uses {used - known}, which no ARG or ENV sets"
        if name in ("ARG", "ENV"):
            known |= {part.partition("=")[0] for part in shlex.split(rest)}
        if name in ("CMD", "ENTRYPOINT"):
            assert all(isinstance(part, str) for part in json.loads(rest))


def test_the_container_runs_without_rights_and_copies_what_there_is():
    last = max(number for number, (name, _) in enumerate(instructions()) if name == "FROM")
    final = instructions()[last:]
    assert [rest for name, rest in final if name == "USER"] == ["10001"]
    for name, rest in instructions():
        if name == "COPY" and not rest.startswith("--from"):
            assert all((ROOT / part).exists() for part in rest.split()[:-1]), rest


def test_the_command_of_the_container():
    by_name = dict(instructions())
    assert json.loads(by_name["ENTRYPOINT"]) == ["fusetune", "serve"]
    check_arguments(json.loads(by_name["CMD"]))


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_name_options_and_paths_that_there_are(name):
    assert all({"apiVersion", "kind", "metadata", "spec"} <= document.keys() for document in documents(name))
    (container,) = containers(name)
    check_arguments(container["args"])
    from fusetune.deploy.serve.guard import OPEN

    probes = [container[key]["httpGet"] for key in container if key.endswith("Probe")]
    assert probes and {probe["path"] for probe in probes} <= set(OPEN)
    ports = {value for port in container["ports"] for value in (port["name"], port["containerPort"])}
    assert {probe["port"] for probe in probes} <= ports
    assert f"--port={container['ports'][0]['containerPort']}" in container["args"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_run_without_rights(name):
    (container,) = containers(name)
    own = container["securityContext"]
    assert (
        own["readOnlyRootFilesystem"] and not own["allowPrivilegeEscalation"] and own["capabilities"]["drop"] == ["ALL"]
    )
    document = documents(name)[0]["spec"]
    pod = document.get("predictor") or document["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 10001
    assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}
    assert any("secretKeyRef" in entry.get("valueFrom", {}) for entry in container["env"])
