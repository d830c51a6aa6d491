"""Inspection of a model's structure: its blocks in order, the parts that its output depends on, its inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.errors import BackboneError

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
INPUT_NAMES = {"text": ("input_ids",), "image": ("pixel_values",), "audio": ("input_values", "input_features")}


class Part(nn.Module):
    """A view of the modules and parameters before or after the layers."""

    def __init__(self, modules: Sequence[nn.Module], parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.loose = nn.ParameterList(parameters)


def narrow(model: nn.Module, kind: str, *, spectrogram: bool = False) -> tuple[nn.Module, str]:
    """Return the part of a model that encodes one kind of cell, and the name of the method that does it.

    Args:
        model: from `AutoModel`.
        kind: "text", "image" or "audio".
        spectrogram: whether sounds are encoded as images of their spectrograms.

    Raises:
        BackboneError: the model encodes something else.
    """
    offered = [name for name in INPUT_NAMES if hasattr(model, f"get_{name}_features")]
    if len(offered) > 1:
        if kind not in offered:
            raise _wrong_kind(kind, " and ".join(offered))
        return model, f"get_{kind}_features"
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()  # type: ignore[operator]
    name = str(getattr(model, "main_input_name", ""))
    wanted = INPUT_NAMES["image" if spectrogram else kind]
    if name not in wanted:
        names = [known for known, inputs in INPUT_NAMES.items() if name in inputs]
        raise _wrong_kind(kind, names[0] if names else f"{name!r}")
    return model, "forward"


def _wrong_kind(kind: str, came: str) -> BackboneError:
    return BackboneError(
        f"this model cannot encode {kind}",
        expected=f"an encoder of {kind}",
        came=f"a model that reads {came}",
        do="name another backbone for the column, or give the column the kind that this one reads",
    )


def layers(model: nn.Module) -> tuple[str, Sequence[nn.Module]] | None:
    """Return path and members of the list of equal layers with the most parameters (ties: the outermost), or None."""
    best: tuple[int, str, nn.Module] | None = None
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) < 2:
            continue
        if len({type(layer) for layer in module}) > 1:
            continue
        size = sum(parameter.numel() for parameter in module.parameters())
        if best is None or size > best[0]:
            best = (size, path, module)
    return None if best is None or best[0] == 0 else (best[1], list(best[2].children()))


def blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Split a model, from input to output, into "embeddings", each layer by its path, and "final".

    The blocks partition the parameters. A model without a list of layers is split into its children.
    """
    result = layers(model)
    if result is None:
        return _children(model)
    path, members = result
    before: tuple[list[nn.Module], list[nn.Parameter]] = ([], [])
    after: tuple[list[nn.Module], list[nn.Parameter]] = ([], [])
    module = model
    for name in path.split("."):
        before[1].extend(parameter for parameter in module.parameters(recurse=False))
        side = before
        for child_name, child in module.named_children():
            if child_name == name:
                side = after
            elif child is not None:
                side[0].append(child)
        module = module.get_submodule(name)
    inside = [(f"{path}.{number}", layer) for number, layer in enumerate(members)]
    cut = [("embeddings", Part(*before)), *inside, ("final", Part(*after))]
    return [(name, part) for name, part in cut if any(True for _ in part.parameters())]


def _children(model: nn.Module) -> list[tuple[str, nn.Module]]:
    loose = list(model.parameters(recurse=False))
    first: list[tuple[str, nn.Module]] = [("embeddings", Part([], loose))] if loose else []
    return first + [(name, child) for name, child in model.named_children() if any(True for _ in child.parameters())]


def patch_grid(model: nn.Module, image_size: tuple[int, int]) -> tuple[int, int] | None:
    """Return the (height, width) in patches of an image of (height, width) pixels; None if the model has no patches.

    The first convolution extracts patches if its windows do not overlap.
    """
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or first.kernel_size != first.stride:
        return None
    return image_size[0] // first.kernel_size[0], image_size[1] // first.kernel_size[1]


def reached(output: Tensor) -> set[int]:
    """Return the ids of all leaf tensors with gradients that an output depends on."""
    result: set[int] = set()
    seen: set[Any] = set()
    waiting: list[Any] = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            result.add(id(node.variable))
        waiting.extend(following for following, _ in node.next_functions)
    return result


def remove(model: nn.Module, path: str, how: str) -> None:
    """Remove a module or parameter: "none" and "identity" replace it, "buffer" turns it into a constant."""
    owner_path, _, name = path.rpartition(".")
    owner = model.get_submodule(owner_path)
    if how == "identity":
        setattr(owner, name, nn.Identity())
    elif how == "none":
        setattr(owner, name, None)
    else:
        value = getattr(owner, name)
        delattr(owner, name)
        owner.register_buffer(name, value.detach())


def prune(model: nn.Module, probe: Callable[[], Tensor]) -> list[tuple[str, str]]:
    """Remove modules and parameters that the output does not depend on: poolers, the other tower, mask embeddings.

    Args:
        model: changed in place.
        probe: runs the model with gradients on a small input and returns its output.

    Returns:
        The (path, how) of each removal, for `remove` on a new model.
    """
    output = probe()
    alive = reached(output)
    removed: list[tuple[str, str]] = []
    for path in _dead(model, alive):
        how = next(how for how in ("none", "identity", "buffer") if _try(model, path, how, probe, output))
        paths = [path]
        if how == "buffer":
            module = dict(model.named_modules()).get(path)
            inner = [] if module is None else [name for name, _ in module.named_parameters()]
            paths = [f"{path}.{name}" for name in inner] if inner else [path]
        for each in paths:
            remove(model, each, how)
            removed.append((each, how))
    return removed


def _dead(model: nn.Module, alive: set[int]) -> list[str]:
    """Return the paths of the outermost modules, and of single parameters, without a parameter in `alive`."""
    paths: list[str] = []
    for path, module in model.named_modules(remove_duplicate=False):
        if any(path.startswith(above + ".") for above in paths):
            continue
        parameters = list(module.parameters())
        if path and parameters and not any(id(parameter) in alive for parameter in parameters):
            paths.append(path)
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in alive:
                paths.append(f"{path}.{name}" if path else name)
    return paths


def _try(model: nn.Module, path: str, how: str, probe: Callable[[], Tensor], output: Tensor) -> bool:
    """Return whether the output stays the same if the module or parameter is removed this way."""
    if how == "buffer":
        return True  # a constant has the same value
    owner_path, _, name = path.rpartition(".")
    owner = model.get_submodule(owner_path)
    is_parameter = isinstance(getattr(owner, name), nn.Parameter)
    if isinstance(owner, nn.ModuleList | nn.Sequential) or (is_parameter and how == "identity"):
        return False
    before = getattr(owner, name)
    remove(model, path, how)
    try:
        with torch.no_grad():
            same = torch.equal(probe(), output)
    except (AttributeError, TypeError, RuntimeError, ValueError):
        same = False
    setattr(owner, name, before)
    return same


def num_positions(model: nn.Module, config: Any) -> int | None:
    """Return the number of positions of a text model, None if it has no limit."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and "position" in name and "relative" not in name:
            start = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - start
    text = config.get_text_config()
    return getattr(text, "max_position_embeddings", None)


def has_class_token(model: nn.Module) -> bool:
    """Return whether an image or spectrogram transformer has a class token."""
    names = {name.rpartition(".")[2] for name, _ in model.named_parameters()}
    return bool(names & {"cls_token", "class_embedding"})


SLACK = 2**26
"""Number of values that a model may have beyond its checkpoint: buffers, and parts that the checkpoint lacks."""


def check_size(config: Any, most: int) -> None:
    """Refuse a config whose model is far larger than its checkpoint, as building it could exhaust the memory.

    Args:
        config: the transformers config.
        most: number of values in the checkpoint.

    Raises:
        BackboneError: the model is more than twice as large, apart from `SLACK`.
    """
    from transformers import AutoModel

    with torch.device("meta"):
        model: nn.Module = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)  # type: ignore[no-untyped-call]
    size = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    if size > 2 * most + SLACK:
        raise BackboneError(
            "config.json does not belong to these weights",
            expected=f"a model of about {most:,} figures",
            came=f"one of {size:,}",
        )


def check_words(model: nn.Module, last: int) -> None:
    """Check that a model has embeddings for all token ids up to `last`.

    Raises:
        BackboneError: its largest embedding table is smaller.
    """
    tables = [module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)]
    if tables and last >= max(tables):
        raise BackboneError(
            "the tokenizer does not belong to these weights",
            expected=f"ids of tokens below {max(tables):,}",
            came=f"{last:,}",
            do="copy the tokenizer's files from where the model comes from",
        )
