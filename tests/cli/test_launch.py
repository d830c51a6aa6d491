"""`fusetune launch`: the commands parse, and name what was asked."""

import shlex
import subprocess

import pytest
import yaml
from typer.testing import CliRunner

from fusetune.cli.main import app

FIT = ["-m", "fusetune", "fit", "train.csv", "--target", "a b", "trainer.epochs=3"]


def launch(*options: str) -> str:
    done = CliRunner().invoke(app, ["launch", *options, "--", "train.csv", "--target", "a b", "trainer.epochs=3"])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_one_machine():
    assert shlex.split(launch("--gpus", "4")) == ["torchrun", "--standalone", "--nproc_per_node", "4", *FIT]


def test_several_machines():
    words = shlex.split(launch("--gpus", "4", "--machines", "2"))
    assert words[:3] == ["torchrun", "--nnodes", "2"] and words[-len(FIT) :] == FIT
    assert "HOST:29500" in words


def test_torchrun_knows_the_options():
    from torch.distributed.run import parse_args

    for machines in ("1", "2"):
        parsed = parse_args(shlex.split(launch("--machines", machines, "--gpus", "2"))[1:])
        assert (parsed.nproc_per_node, parsed.training_script, parsed.module) == ("2", "fusetune", True)
        assert parsed.training_script_args == FIT[2:]


def test_slurm_script(tmp_path):
    script = launch("--to", "slurm", "--machines", "2", "--gpus", "4", "--cpus", "6", "--hours", "5", "--name", "mine")
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).returncode == 0
    asked = dict(
        line.removeprefix("#SBATCH --").split("=") for line in script.splitlines() if "=" in line and "#S" in line
    )
    assert asked == {
        "job-name": "mine",
        "nodes": "2",
        "ntasks-per-node": "1",
        "gpus-per-node": "4",
        "cpus-per-task": "24",
        "mem": "64G",
        "time": "5:00:00",
    }
    command = script.partition("srun ")[2].replace("\\\n", " ")
    assert shlex.split(command)[-len(FIT) - 1 :] == [*FIT, "--resume"]


@pytest.mark.parametrize(("machines", "workers"), [(1, None), (3, 2)])
def test_kubernetes_manifest(tmp_path, machines, workers):
    path = tmp_path / "job.yaml"
    launch("--to", "kubernetes", "--machines", str(machines), "--gpus", "2", "--image", "i:1", "--file", str(path))
    roles = yaml.safe_load(path.read_text())["spec"]["pytorchReplicaSpecs"]
    assert {name: role["replicas"] for name, role in roles.items()} == {"Master": 1} | (
        {"Worker": workers} if workers else {}
    )
    for role in roles.values():
        (container,) = role["template"]["spec"]["containers"]
        assert container["command"] == ["torchrun", *FIT, "--resume"]
        assert (container["image"], container["resources"]["limits"]["nvidia.com/gpu"]) == ("i:1", 2)
