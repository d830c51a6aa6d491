"""`fusetune launch`."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fusetune.cli import common

PORT = 29500
"""The port at which the first machine waits for the others."""

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


class Launcher(StrEnum):
    """What starts the processes."""

    TORCHRUN = "torchrun"
    SLURM = "slurm"
    KUBERNETES = "kubernetes"


@app.command(context_settings={"ignore_unknown_options": True})
def launch(
    arguments: Annotated[
        list[str], typer.Argument(help="What `fusetune fit` is given: a table or config, settings.", show_default=False)
    ],
    to: Annotated[Launcher, typer.Option(help="What starts the processes.")] = Launcher.TORCHRUN,
    machines: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of a machine; a process each.")] = 1,
    cpus: Annotated[int, typer.Option(min=1, help="Processor cores for each GPU.")] = 8,
    memory: Annotated[int, typer.Option(min=1, help="GiB of memory of a machine.")] = 64,
    hours: Annotated[int, typer.Option(min=1, help="Slurm's limit of time.")] = 24,
    image: Annotated[str, typer.Option(help="Kubernetes: container image that has fusetune.")] = "fusetune:latest",
    name: Annotated[str, typer.Option(help="Name of the job.")] = "fusetune",
    out: Annotated[Path | None, typer.Option("--file", help="File to write; printed without it.")] = None,
) -> None:
    """Print the command or manifest that runs a fit on many GPUs or machines.

    Nothing is started. Options of fit follow --. torchrun: run what is
    printed on every machine, with HOST the name of the first. Slurm: sbatch
    FILE. Kubernetes: kubectl apply -f FILE, with Kubeflow's training
    operator; mount the table and the run's folder.

    \b
    Examples:
      fusetune launch config.yaml --gpus 8
      fusetune launch --machines 2 --gpus 8 -- train.csv --target label --out runs/two
      fusetune launch config.yaml --to slurm --machines 2 --gpus 4 --file job.sh
      fusetune launch config.yaml --to kubernetes --machines 2 --gpus 4 --file job.yaml
    """
    from fusetune.deploy.bundle import write_text

    fit = shlex.join(["-m", "fusetune", "fit", *arguments])
    if to is Launcher.TORCHRUN:
        text = torchrun(fit, machines, gpus)
    elif to is Launcher.SLURM:
        text = slurm(fit, name, machines, gpus, cpus, memory, hours)
    else:
        text = kubernetes(["-m", "fusetune", "fit", *arguments], name, machines, gpus, cpus, memory, image)
    if out is None:
        typer.echo(text.rstrip("\n"))
        return
    write_text(out, text)
    common.console().print(f"{to.value}  {out}", soft_wrap=True)


def torchrun(fit: str, machines: int, gpus: int) -> str:
    """Return the command that starts a fit on one machine, or on each of several."""
    if machines == 1:
        return f"torchrun --standalone --nproc_per_node {gpus} {fit}\n"
    where = f"--nnodes {machines} --rdzv_backend c10d --rdzv_endpoint HOST:{PORT} --rdzv_id 1"
    return f"torchrun {where} --nproc_per_node {gpus} {fit}\n"


def slurm(fit: str, name: str, machines: int, gpus: int, cpus: int, memory: int, hours: int) -> str:
    """Return a batch script with one torchrun per machine.

    A job that is preempted is queued again and goes on from its checkpoint, as Slurm's SIGTERM saves one.
    """
    return f"""#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={machines}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={gpus}
#SBATCH --cpus-per-task={gpus * cpus}
#SBATCH --mem={memory}G
#SBATCH --time={hours}:00:00
#SBATCH --requeue

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes {machines} --nproc_per_node {gpus} --rdzv_backend c10d --rdzv_id "$SLURM_JOB_ID" \\
    --rdzv_endpoint "$first:{PORT}" {fit} --resume
"""


def kubernetes(fit: list[str], name: str, machines: int, gpus: int, cpus: int, memory: int, image: str) -> str:
    """Return the manifest of a PyTorchJob of Kubeflow, one pod a machine."""
    import yaml

    def template() -> dict[str, Any]:
        container = {
            "name": "pytorch",  # the name that the operator looks for
            "image": image,
            "command": ["torchrun", *fit, "--resume"],
            "resources": {"limits": {"nvidia.com/gpu": gpus, "cpu": gpus * cpus, "memory": f"{memory}Gi"}},
        }
        return {"spec": {"containers": [container]}}

    counts = {"Master": 1} | ({"Worker": machines - 1} if machines > 1 else {})
    roles = {
        role: {"replicas": num, "restartPolicy": "OnFailure", "template": template()} for role, num in counts.items()
    }
    job = {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": name},
        "spec": {"nprocPerNode": str(gpus), "pytorchReplicaSpecs": roles},
    }
    return str(yaml.safe_dump(job, sort_keys=False))
