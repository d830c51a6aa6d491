"""The model folder: save and load a tuned model in standard file formats.

model.safetensors    all weights; for a backbone with an adapter only the adapter's
bundle.json          columns, tasks, fusion, versions, the SHA-256 of each file
config.yaml          the run's settings
schema.yaml          columns, kinds, roles
backbones/KEY/       architecture and processor of each backbone, without weights
README.md            the model card
interactions.safetensors   which user had which items, of a recommendation
stack/               boosted trees beside the model, if there are any: LightGBM's text format, and tensors
report.html, report.json, rejected.jsonl, logs/
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor

from fusetune.backbones.adapters import adapter_state_dict, merge
from fusetune.backbones.load import Backbone, restore_backbone
from fusetune.config.config import Config
from fusetune.config.fusion import neural
from fusetune.config.section import NamedConfig
from fusetune.data.interactions import Interactions
from fusetune.data.schema import Schema
from fusetune.deploy.interactions_file import INTERACTIONS, load_interactions, save_interactions
from fusetune.errors import FolderError, StorageError, reason
from fusetune.modalities.base import Modality
from fusetune.modalities.ngrams import NGRAM_KEYS
from fusetune.models.build import build_model
from fusetune.models.family import Family
from fusetune.models.understand import Understand
from fusetune.registry import MODALITIES, TASKS
from fusetune.security.model_folder import BACKBONES, BUNDLE, CONFIG, FORMAT, SCHEMA, WEIGHTS, file_hash, read_folder
from fusetune.security.untrusted import read_bytes, read_json, reading, tensors_of
from fusetune.security.yaml_text import YAML_BYTES, parse_yaml
from fusetune.tasks.base import Metric, TargetTask, Task, target_tasks
from fusetune.tasks.retrieval import alignment_tasks
from fusetune.trees.files import FOLDER as STACK
from fusetune.trees.files import load_stack, save_stack
from fusetune.trees.stack import Stack

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
LIBRARIES = ("torch", "transformers", "accelerate", "safetensors", "numpy", "pyarrow", "scikit-learn", "pillow")


@dataclass
class Bundle:
    """A tuned model with everything that it needs to read a table.

    Attributes:
        model: the network.
        modalities: by input column.
        tasks: by name.
        schema: of the train table.
        config: the run's settings.
        fingerprint: SHA-256 over the used cells of the train table.
        metrics: test metrics by task.
        stack: boosted trees beside the model, or None.
        interactions: of users with items in the train rows, of a model that recommends; else None.
    """

    model: Family
    modalities: dict[str, Modality]
    tasks: dict[str, Task]
    schema: Schema
    config: Config
    fingerprint: str = ""
    metrics: dict[str, dict[str, float | None]] = field(default_factory=dict)
    stack: Stack | None = None
    interactions: Interactions | None = None

    @property
    def targets(self) -> dict[str, TargetTask]:
        """The tasks that predict a target column."""
        return target_tasks(self.tasks)


@cache
def versions() -> Mapping[str, str]:
    """Return the versions of fusetune, Python and the libraries that affect results."""
    return {"fusetune": version("fusetune"), "python": platform.python_version()} | {n: version(n) for n in LIBRARIES}


def write_text(path: Path, text: str) -> None:
    """Write a file atomically.

    Raises:
        StorageError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
        partial.replace(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {reason(error)}") from error


def save_bundle(bundle: Bundle, folder: Path) -> None:
    """Write the model's files; `bundle.json`, which lists the others, is written last.

    Raises:
        StorageError: a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part in (BACKBONES, STACK):  # those of a model that was saved here before
            if (folder / part).is_symlink():
                (folder / part).unlink()
            shutil.rmtree(folder / part, ignore_errors=True)
        for key, encoder in bundle.model.encoders.items():
            if isinstance(encoder, Backbone):
                (folder / BACKBONES / key).mkdir(parents=True, exist_ok=True)
                encoder.save(folder / BACKBONES / key)
        partial = folder / f".{WEIGHTS}.{os.getpid()}"
        partial.touch()
        mode = partial.stat().st_mode  # by the umask; safetensors gives only the owner access
        _save_weights(bundle.model, str(partial))
        partial.chmod(mode)
        partial.replace(folder / WEIGHTS)
        stack = save_stack(bundle.stack, folder)
        (folder / INTERACTIONS).unlink(missing_ok=True)
        own = [] if bundle.interactions is None else [save_interactions(bundle.interactions, folder)]
    except (OSError, SafetensorError) as error:
        raise StorageError(f"the model cannot be written to {folder}: {error}") from error
    write_text(folder / CONFIG, bundle.config.to_yaml())
    write_text(folder / SCHEMA, bundle.schema.to_yaml())
    files = [folder / WEIGHTS, folder / CONFIG, folder / SCHEMA, *own]
    files += sorted(path for part in (BACKBONES, STACK) for path in (folder / part).rglob("*") if path.is_file())
    content = {
        "format": FORMAT,
        "versions": versions(),
        "data_fingerprint": bundle.fingerprint,
        "metrics": bundle.metrics,
        "fusion": neural(bundle.config.fusion).model_dump(),
        **({"linear": bundle.model.extension()} if isinstance(bundle.model, Understand) else {}),
        "stack": stack,
        "columns": {
            name: {"kind": modality.kind, "encoder": modality.encoder_key, "state": modality.state()}
            for name, modality in bundle.modalities.items()
        },
        "tasks": {
            name: {
                "task": task.name,
                "target": task.target,
                "labels": task.labels,
                "metric": _metric_entry(task),
                **_columns_entry(task),
                "state": task.state(),
            }
            for name, task in bundle.tasks.items()
        },
        "files": {path.relative_to(folder).as_posix(): file_hash(path) for path in files},
    }
    write_text(folder / BUNDLE, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False))


def write_metrics(bundle: Bundle, folder: Path) -> None:
    """Update the metrics in the `bundle.json` of a saved model.

    Raises:
        FolderError: the folder holds no model.
        StorageError: it cannot be written.
    """
    with reading("the model folder cannot be read", file=folder, do="copy it again from where it was made"):
        content = read_json(folder / BUNDLE)
        content["metrics"] = bundle.metrics
    write_text(folder / BUNDLE, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False))


def _adapted(model: Family) -> dict[str, Backbone]:
    """Return the backbones with an adapter, by the prefix of their tensors' names."""
    return {
        f"encoders.{key}.": encoder
        for key, encoder in model.encoders.items()
        if isinstance(encoder, Backbone) and encoder.adapter is not None
    }


def _own_state(model: Family) -> dict[str, Tensor]:
    """Return the state dict without the pretrained weights of backbones that have an adapter."""
    state: dict[str, Tensor] = dict(model.state_dict())
    for start, encoder in _adapted(model).items():
        own = {f"{start}model.{name}" for name in adapter_state_dict(encoder)}
        state = {name: value for name, value in state.items() if not name.startswith(start) or name in own}
    return state


def _save_weights(model: Family, path: str) -> None:
    if _adapted(model):
        save_file({name: value.detach().clone() for name, value in _own_state(model).items()}, path)
    else:
        save_model(model, path)


def _load_weights(model: Family, path: str) -> None:
    if not _adapted(model):
        load_model(model, path)
        return
    state = load_file(path)
    if state.keys() != _own_state(model).keys():
        lost = sorted(state.keys() ^ _own_state(model).keys())
        raise ValueError(f"{WEIGHTS} holds other tensors than the model: {', '.join(lost[:3])}")
    model.load_state_dict(state, strict=False)


def merge_adapters(model: Family, stack: Stack | None = None) -> int:
    """Merge all adapters into their backbones' weights, also in a stack; return how many the model had."""
    adapted = list(_adapted(model).values())
    for encoder in stack.frozen.values() if stack is not None else ():
        if isinstance(encoder, Backbone) and encoder.adapter is not None:
            merge(encoder)
    for encoder in adapted:
        merge(encoder)
    return len(adapted)


def load_bundle(folder: Path) -> Bundle:
    """Load a model folder after verifying its files.

    Raises:
        FolderError: it is not a model folder, has a later format, or a file is missing or changed.
    """
    content = read_folder(folder)
    with reading(
        "the model folder cannot be read", file=folder, do="copy it again from where it was made, or tune again"
    ):
        config = Config.build(parse_yaml(_text(folder / CONFIG)))
        schema = Schema.from_yaml(_text(folder / SCHEMA))
        header = tensors_of(folder / WEIGHTS)
        most = sum(math.prod(shape) for _, shape in header.values())
        backbones: dict[str, Backbone] = {}
        modalities = {
            name: _restore_modality(name, entry, folder, backbones, most) for name, entry in content["columns"].items()
        }
        tasks = {name: _restore_task(entry) for name, entry in content["tasks"].items()}
        if not tasks:  # an aligned model of 0.1.0
            tasks = dict(alignment_tasks({name: modality.part_of for name, modality in modalities.items()}))
        _check_figures(content["fusion"], header)
        model = build_model(modalities, tasks, NamedConfig(**content["fusion"]))
        if extension := content.get("linear"):
            _extend(model, extension, modalities)
        _check_types(model, header)
        _load_weights(model, str(folder / WEIGHTS))
        stack = load_stack(content.get("stack"), folder, model, target_tasks(tasks))
        interactions = load_interactions(folder) if INTERACTIONS in content["files"] else None
        learned = content["data_fingerprint"], content["metrics"], stack, interactions
        model.eval()
        return Bundle(model, modalities, tasks, schema, config, *learned)


def _extend(model: Family, extension: Mapping[str, Any], modalities: Mapping[str, Modality]) -> None:
    """Extend a model's linear part by its n-grams and pairs of columns; see `Understand.extend`."""
    sources = [(str(name), part) for part, key in NGRAM_KEYS.items() for name in extension.get(key, [])]
    pairs = [(str(first), str(second)) for first, second in extension.get("pairs", [])]
    columns = getattr(model, "linear_columns", [])
    named = [*(name for name, _ in sources), *(name for pair in pairs for name in pair)]
    unknown = [name for name in named if name not in columns]
    known = [(name, part) for name, part in sources if name in modalities and part in modalities[name].ngrams]
    if not isinstance(model, Understand) or unknown or len(known) < len(sources):
        raise FolderError("the model's linear part reads n-grams or pairs of columns that it does not have")
    model.extend({(name, part): len(modalities[name].ngrams[part]) for name, part in sources}, pairs)


def _text(path: Path) -> str:
    return read_bytes(path, YAML_BYTES).decode("utf-8")


def _check_figures(fusion: Mapping[str, Any], header: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Refuse fusion settings larger than any side of the weights, as building it could exhaust the memory."""
    largest = max([1024, *(side for _, shape in header.values() for side in shape)])
    for name, value in fusion.items():
        if isinstance(value, int) and value > largest:
            raise FolderError(f"the fusion's {name} is not that of the weights", came=str(value))


def _check_types(model: Family, header: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Refuse weights of another dtype than the model's, which would be converted and change predictions."""
    for name, value in model.state_dict().items():
        wanted = _DTYPES.get(value.dtype)
        if name in header and header[name][0] != wanted:
            raise FolderError(
                f"the tensor {name} of {WEIGHTS} has another dtype than the model's",
                expected=wanted,
                came=header[name][0],
                do="copy the folder again from where it was made, or tune again",
            )


def _restore_task(entry: Mapping[str, Any]) -> Task:
    task: Task = TASKS.get(entry["task"]).from_state(entry["target"], entry["state"])
    if (entry_metric := entry.get("metric")) is not None:  # folders of 0.1.0 have none
        metric = Metric(str(entry_metric["name"]), bool(entry_metric["greater_is_better"]))
        if entry_metric.get("function"):
            task.tuned_by = metric  # measured by the task's usual metric until the function is given
        else:
            task.main = metric
    if isinstance(task, TargetTask):
        task.reads, task.second = entry.get("reads"), entry.get("second")
    return task


def _columns_entry(task: Task) -> dict[str, Any]:
    """The columns that a task reads beside the target, if any."""
    if not isinstance(task, TargetTask):
        return {}
    columns = {"reads": task.reads, "second": task.second}
    return {key: name for key, name in columns.items() if name is not None}


def _metric_entry(task: Task) -> dict[str, Any]:
    """The metric that chose the model, without the function that it may be."""
    metric = task.main if task.tuned_by is None else task.tuned_by
    entry: dict[str, Any] = {"name": metric.name, "greater_is_better": metric.greater_is_better}
    return entry | {"function": True} if metric.function is not None or metric is task.tuned_by else entry


def _restore_modality(
    name: str, entry: Mapping[str, Any], folder: Path, backbones: dict[str, Backbone], most: int
) -> Modality:
    kind = MODALITIES.get(entry["kind"])
    key, backbone = entry["encoder"], None
    if kind.needs_backbone:
        if not re.fullmatch(r"\w+", key):
            raise FolderError(f"the model folder names a backbone outside itself: {key}", file=str(folder))
        if key not in backbones:
            backbones[key] = restore_backbone(folder / BACKBONES / key, most=most)
        backbone = backbones[key]
    modality: Modality = kind.from_state(name, entry["state"], backbone)
    return modality


def move(model: Family) -> Family:
    """Move a model to the GPU if there is one, else to the CPU."""
    return model.to("cuda" if torch.cuda.is_available() else "cpu")
