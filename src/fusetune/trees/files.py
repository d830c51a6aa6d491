"""Save and load a stack as LightGBM's text and safetensors; no pickles.

stack/T-B.txt            booster B of the T-th task, in LightGBM's format
stack/view.safetensors   principal components and linear models
stack/frozen.safetensors untuned copies of the encoders that tuning changed
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
from fusetune.trees.text import load_booster
from fusetune.trees.view import LinearLogits, PrincipalComponents, TreeFeatures

FOLDER, VIEW, FROZEN = "stack", "view.safetensors", "frozen.safetensors"


def save_stack(stack: Stack | None, folder: Path) -> dict[str, Any] | None:
    """Write a stack into a model folder, replacing an earlier one; return the JSON data that `load_stack` needs.

    Raises:
        OSError, SafetensorError: a file cannot be written.
    """
    directory = folder / FOLDER
    shutil.rmtree(directory, ignore_errors=True)
    if stack is None:
        return None
    directory.mkdir()
    tensors: dict[str, Tensor] = {}
    tasks = []
    for index, components in enumerate(stack.view.axes.values()):
        tensors |= {
            f"axes.{index}.mean": torch.from_numpy(components.mean),
            f"axes.{index}.axes": torch.from_numpy(components.axes),
        }
    for number, (name, blend) in enumerate(stack.blends.items()):
        for booster_index, booster in enumerate(blend.boosters):
            (directory / f"{number}-{booster_index}.txt").write_text(
                booster.model_to_string(), encoding="utf-8", newline=""
            )
        columns = None
        if blend.line is not None:
            columns = list(blend.line.scales)
            tensors |= {f"line.{number}.weight": torch.from_numpy(blend.line.weight)}
            tensors |= {f"line.{number}.bias": torch.from_numpy(blend.line.bias)}
            for index, (mean, scale) in enumerate(blend.line.scales.values()):
                tensors |= {f"line.{number}.{index}.shift": mean, f"line.{number}.{index}.scale": scale}
        entry = {"name": name, "weight": blend.weight, "boosters": len(blend.boosters)}
        tasks.append({**entry, "line": columns, "needed": blend.needed})
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / VIEW)
    if stack.frozen:
        save_model(nn.ModuleDict(stack.frozen), str(directory / FROZEN))
    mode = (directory / "0-0.txt").stat().st_mode  # by the umask; safetensors' files are for their owner only
    for path in directory.iterdir():
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
    """Load the stack that `save_stack` wrote; return None if there was none.

    Args:
        content: the return value of `save_stack`.
        folder: the model folder, whose files' SHA-256 have been checked.
        model: the folder's model.
        tasks: the folder's tasks.

    Raises:
        MissingExtra: LightGBM is not installed.
        KeyError, TypeError, ValueError, RuntimeError, SafetensorError, OSError: the files are not those of a stack.
    """
    if content is None:
        return None
    directory = folder / FOLDER
    tensors = load_file(directory / VIEW)
    axes = {
        name: PrincipalComponents(tensors[f"axes.{index}.mean"].numpy(), tensors[f"axes.{index}.axes"].numpy())
        for index, name in enumerate(content["axes"])
    }
    view = TreeFeatures(content["numbers"], content["categories"], axes)
    blends = {}
    for number, entry in enumerate(content["tasks"]):
        line = _line(tensors, number, entry["line"]) if entry["line"] is not None else None
        task = tasks[entry["name"]]
        if not isinstance(task, Boosted) or int(entry["boosters"]) != task.num_boosters:
            raise ValueError(f"the trees of {entry['name']!r} are not those of its task")
        width = view.width + (len(line.bias) if line is not None else 0)
        trees_per_round = task.trees_per_round
        paths = [directory / f"{number}-{booster_index}.txt" for booster_index in range(int(entry["boosters"]))]
        boosters = [load_booster(path.read_bytes().decode("utf-8"), width, trees_per_round) for path in paths]
        blends[entry["name"]] = Blend(float(entry["weight"]), boosters, line, list(entry["needed"]))
    frozen = nn.ModuleDict({key: copy.deepcopy(model.encoders[key]) for key in content["frozen"]})
    if content["frozen"]:
        load_model(frozen, str(directory / FROZEN))
    return Stack(view, blends, dict(frozen.eval().items()))


def _line(tensors: Mapping[str, Tensor], number: int, columns: list[str]) -> LinearLogits:
    scales = {
        name: (tensors[f"line.{number}.{index}.shift"], tensors[f"line.{number}.{index}.scale"])
        for index, name in enumerate(columns)
    }
    return LinearLogits(scales, tensors[f"line.{number}.weight"].numpy(), tensors[f"line.{number}.bias"].numpy())
