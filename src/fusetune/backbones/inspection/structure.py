"""How a model is built, found by looking at it: its parts in order, what its output depends on, what it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.errors import BackboneError

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
INPUT_NAMES = {"text": ("input_ids",), "image": ("pixel_values",), "audio": ("input_values", "input_features")}


class Part(nn.Module):
    """Modules and parameters that stand together before or after the layers; a view, which owns nothing."""

    def __init__(self, modules: Sequence[nn.Module], parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.loose = nn.ParameterList(parameters)


def narrow(model: nn.Module, kind: str, *, spectrogram: bool = False) -> tuple[nn.Module, str]:
    """Return the part of a model that encodes one kind of cell, and the method that does it.

    Args:
        model: what `AutoModel` made.
        kind: "text", "image" or "audio".
        spectrogram: the sound comes as pictures.

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
    """Return the list of equal layers that holds the most parameters, the outermost of several: its path and its
    layers."""
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
    """Return the model cut from input to output: "embeddings", then each layer by its path, then "final".

    Together they hold every parameter once. A model without a list of layers is cut into its children.
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
    """Return (height, width) in patches of a picture of (height, width) pixels; None where the model cuts none.

    Patches are cut by the first convolution, whose windows then do not overlap.
    """
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or first.kernel_size != first.stride:
        return None
    return image_size[0] // first.kernel_size[0], image_size[1] // first.kernel_size[1]


def reached(output: Tensor) -> set[int]:
    """Return the ids of all tensors with gradients that an output was computed from."""
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
    """Take out a module or parameter: "none" and "identity" put that in its place, "buffer" makes it a constant."""
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
    """Take out what the output does not depend on: poolers, the other tower, mask embeddings.

    Args:
        model: changed in place.
        probe: runs the model with gradients on a small input and returns its output.

    Returns:
        What was taken out and how, for `remove` on a fresh model.
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
    """Paths of the outermost modules, and of single parameters, none of which is alive."""
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
    """Return whether the output stays the same when the module or parameter is taken out so."""
    if how == "buffer":
        return True  # a constant computes the same
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
    """Return how many tokens a text model has positions for, None where it has no limit."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and "position" in name and "relative" not in name:
            start = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - start
    text = config.get_text_config()
    return getattr(text, "max_position_embeddings", None)


def has_class_token(model: nn.Module) -> bool:
    """Return whether the first token of an image or spectrogram transformer stands for the whole."""
    names = {name.rpartition(".")[2] for name, _ in model.named_parameters()}
    return bool(names & {"cls_token", "class_embedding"})


SLACK = 2**26
"""Figures beyond those in its files that a model may have: buffers, and parts that a checkpoint leaves out."""


def check_size(config: Any, most: int) -> None:
    """Refuse a description of a model that is far larger than its weights: making it would take all memory.

    Args:
        config: transformers' settings of the model.
        most: figures in the weights' files.

    Raises:
        BackboneError: it is.
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
    """Refuse a tokenizer with ids, up to `last`, that the model has no vectors for.

    Raises:
        BackboneError: so it is.
    """
    tables = [module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)]
    if tables and last >= max(tables):
        raise BackboneError(
            "the tokenizer does not belong to these weights",
            expected=f"ids of tokens below {max(tables):,}",
            came=f"{last:,}",
            do="copy the tokenizer's files from where the model comes from",
        )
