"""A stack as files: LightGBM's text, and tensors; never a pickle.

stack/T-B.txt            booster B of the T-th task, as LightGBM writes it
stack/view.safetensors   principal components and linear models
stack/frozen.safetensors encoders as they were before tuning, where it moved them
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from fusetune.models.family import Family
from fusetune.tasks.abilities import Boosted
from fusetune.tasks.base import TargetTask
from fusetune.trees.stack import Blend, Stack
from fusetune.trees.text import read_trees
from fusetune.trees.view import Axes, Line, View

FOLDER, VIEW, FROZEN = "stack", "view.safetensors", "frozen.safetensors"


def save_stack(stack: Stack | None, folder: Path) -> dict[str, Any] | None:
    """Write a stack's files into a model folder, in place of those of another; gives what `load_stack` needs as JSON.

    Raises:
        OSError, SafetensorError: a file cannot be written.
    """
    place = folder / FOLDER
    shutil.rmtree(place, ignore_errors=True)
    if stack is None:
        return None
    place.mkdir()
    tensors: dict[str, Tensor] = {}
    tasks = []
    for index, one in enumerate(stack.view.axes.values()):
        tensors |= {f"axes.{index}.mean": torch.from_numpy(one.mean), f"axes.{index}.axes": torch.from_numpy(one.axes)}
    for number, (name, blend) in enumerate(stack.blends.items()):
        for at, booster in enumerate(blend.boosters):
            (place / f"{number}-{at}.txt").write_text(booster.model_to_string(), encoding="utf-8", newline="")
        columns = None
        if blend.line is not None:
            columns = list(blend.line.scales)
            tensors |= {f"line.{number}.weight": torch.from_numpy(blend.line.weight)}
            tensors |= {f"line.{number}.bias": torch.from_numpy(blend.line.bias)}
            for index, (shift, scale) in enumerate(blend.line.scales.values()):
                tensors |= {f"line.{number}.{index}.shift": shift, f"line.{number}.{index}.scale": scale}
        said = {"name": name, "weight": blend.weight, "boosters": len(blend.boosters)}
        tasks.append({**said, "line": columns, "needed": blend.needed})
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, place / VIEW)
    if stack.frozen:
        save_model(nn.ModuleDict(stack.frozen), str(place / FROZEN))
    mode = (place / "0-0.txt").stat().st_mode  # as the umask wants it; safetensors makes files for their owner alone
    for path in place.iterdir():
        path.chmod(mode)
    view = stack.view
    return {
        "numbers": view.numbers,
        "categories": view.categories,
        "axes": list(view.axes),
        "tasks": tasks,
        "frozen": list(stack.frozen),
    }


def load_stack(content: Mapping[str, Any] | None, folder: Path, model: Family, tasks: Mapping[str, TargetTask]) -> Any:
    """The stack that `save_stack` wrote, or None where there was none.

    Args:
        content: what `save_stack` gave.
        folder: the model folder, its files' SHA-256 checked.
        model: the folder's.
        tasks: the folder's.

    Raises:
        MissingExtra: LightGBM is not installed.
        KeyError, TypeError, ValueError, RuntimeError, SafetensorError, OSError: the files are not a stack's.
    """
    if content is None:
        return None
    place = folder / FOLDER
    tensors = load_file(place / VIEW)
    axes = {
        name: Axes(tensors[f"axes.{index}.mean"].numpy(), tensors[f"axes.{index}.axes"].numpy())
        for index, name in enumerate(content["axes"])
    }
    view = View(content["numbers"], content["categories"], axes)
    blends = {}
    for number, said in enumerate(content["tasks"]):
        line = _line(tensors, number, said["line"]) if said["line"] is not None else None
        task = tasks[said["name"]]
        if not isinstance(task, Boosted) or int(said["boosters"]) != task.num_boosters:
            raise ValueError(f"the trees of {said['name']!r} are not those of its task")
        width = view.width + (len(line.bias) if line is not None else 0)
        many = task.trees_per_round
        paths = [place / f"{number}-{at}.txt" for at in range(int(said["boosters"]))]
        boosters = [read_trees(path.read_bytes().decode("utf-8"), width, many) for path in paths]
        blends[said["name"]] = Blend(float(said["weight"]), boosters, line, list(said["needed"]))
    frozen = nn.ModuleDict({key: copy.deepcopy(model.encoders[key]) for key in content["frozen"]})
    if content["frozen"]:
        load_model(frozen, str(place / FROZEN))
    return Stack(view, blends, dict(frozen.eval().items()))


def _line(tensors: Mapping[str, Tensor], number: int, columns: list[str]) -> Line:
    scales = {
        name: (tensors[f"line.{number}.{index}.shift"], tensors[f"line.{number}.{index}.scale"])
        for index, name in enumerate(columns)
    }
    return Line(scales, tensors[f"line.{number}.weight"].numpy(), tensors[f"line.{number}.bias"].numpy())
