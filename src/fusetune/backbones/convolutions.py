"""Convolutional encoders on a processor: frozen batch norms are folded into convolutions, tensors lie channels-last.

Both give the same vectors and gradients up to rounding, and leave parameters, their names and saved files as they are.
`benchmarks/pictures.py` measures what they save.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TOLERANCE = 1e-4
"""Largest difference, relative to the largest magnitude, that counts as rounding."""


class FoldedConvolution:
    """The `forward` of a convolution that applies the frozen batch norm after it, by scaling its weights.

    A batch norm in evaluation mode is the map `scale · x + shift` with constants of its running statistics. Scaling the
    weights costs nothing beside scaling the activations, and nothing of the norm's input is kept for the backward pass.
    Gradients reach the weights of both modules.
    """

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        """
        Args:
            convolution: computes what the norm reads, and nobody else does.
            norm: with running statistics.
        """
        self.convolution, self.norm = convolution, norm

    def folds(self) -> bool:
        """Return whether the norm is applied here: on a processor, while it keeps its running statistics."""
        return not self.norm.training and self.convolution.weight.device.type == "cpu"

    def __call__(self, values: Tensor) -> Tensor:
        """(rows, channels in, height, width) to (rows, channels out, height, width)."""
        conv, norm = self.convolution, self.norm
        if not self.folds():
            return type(conv).forward(conv, values)
        assert norm.running_mean is not None and norm.running_var is not None
        scale = torch.rsqrt(norm.running_var + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight
        mean = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
        shift = -mean * scale if norm.bias is None else norm.bias - mean * scale
        weight = conv.weight * scale.view(-1, 1, 1, 1)
        return F.conv2d(values, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)


class FoldedNorm:
    """The `forward` of a batch norm that a convolution applies already, whenever it does."""

    def __init__(self, folded: FoldedConvolution) -> None:
        self.folded = folded

    def __call__(self, values: Tensor) -> Tensor:
        """(rows, channels, height, width), unchanged where the convolution applied the norm."""
        norm, folded = self.folded.norm, self.folded
        if folded.folds() and folded.convolution.__dict__.get("forward") is folded:
            return values
        return type(norm).forward(norm, values)


def fold_batch_norms(backbone: Any, inputs: dict[str, Tensor]) -> int:
    """Fold an encoder's batch norms into the convolutions before them wherever the vectors stay the same.

    Which norm follows which convolution, and that nothing else reads the convolution's output, is learned from one pass
    with its graph of gradients.

    Args:
        backbone: a `Backbone` in evaluation mode, on the CPU.
        inputs: its tensors of a cell, as `collate` gives them, without `owner`.

    Returns:
        How many were folded.
    """
    if not any(_is_norm(module) for module in backbone.model.modules()):
        return 0
    pairs, plain = _pairs(backbone, inputs)
    for convolution, norm in pairs:
        folded = FoldedConvolution(convolution, norm)
        convolution.forward, norm.forward = folded, FoldedNorm(folded)
    if not pairs:
        return 0
    with torch.no_grad():
        values = backbone.hidden_states(**inputs)[0]
    if float((values - plain).abs().max()) > TOLERANCE * max(float(plain.abs().max()), 1e-6):
        unfold_batch_norms(backbone)
        return 0
    return len(pairs)


def unfold_batch_norms(backbone: Any) -> None:
    """Undo `fold_batch_norms`."""
    for module in backbone.model.modules():
        if isinstance(module.__dict__.get("forward"), FoldedConvolution | FoldedNorm):
            del module.forward


def _is_convolution(module: nn.Module) -> bool:
    """Whether a module is a plain convolution over pictures; subclasses that compute otherwise are not."""
    return (
        isinstance(module, nn.Conv2d)
        and type(module).forward is nn.Conv2d.forward
        and module.padding_mode == "zeros"
        and "forward" not in module.__dict__
    )


def _is_norm(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.BatchNorm2d)
        and type(module).forward is nn.BatchNorm2d.forward
        and module.running_mean is not None
        and "forward" not in module.__dict__
    )


def _pairs(backbone: Any, inputs: dict[str, Tensor]) -> tuple[list[tuple[Any, Any]], Tensor]:
    """Return convolutions with the norms that alone read their outputs, and the encoder's hidden states."""
    outputs: list[tuple[nn.Module, Tensor, Any]] = []
    reads: list[tuple[nn.Module, Tensor, Any]] = []

    def note_output(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        outputs.append((module, output, output.grad_fn))

    def note_input(module: nn.Module, args: tuple[Any, ...]) -> None:
        reads.append((module, args[0], args[0].grad_fn))

    handles = []
    for module in backbone.model.modules():
        if _is_convolution(module):
            handles.append(module.register_forward_hook(note_output))
        elif _is_norm(module):
            handles.append(module.register_forward_pre_hook(note_input))
    try:
        with torch.enable_grad():
            given = {
                name: tensor.clone().requires_grad_() if tensor.is_floating_point() else tensor
                for name, tensor in inputs.items()
            }
            values, _, own = backbone.hidden_states(**given)
    finally:
        for handle in handles:
            handle.remove()
    readers = _readers([values] if own is None else [values, own])
    times = Counter(id(module) for module, _, _ in (*outputs, *reads))
    made = {id(output): (module, node) for module, output, node in outputs}
    pairs = []
    for norm, value, node in reads:
        convolution, made_by = made.get(id(value), (None, None))
        if convolution is None or made_by is not node:  # changed in place in between
            continue
        if times[id(convolution)] == times[id(norm)] == readers[node] == 1:
            pairs.append((convolution, norm))
    return pairs, values.detach()


def _readers(outputs: list[Tensor]) -> Counter[Any]:
    """Count, for each node of a graph of gradients, the nodes that read what it computed; the outputs' count too."""
    counts: Counter[Any] = Counter()
    waiting, seen = [output.grad_fn for output in outputs], set()
    counts.update(waiting)
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        following = [after for after, _ in node.next_functions]
        counts.update(following)
        waiting.extend(following)
    return counts


def is_convolutional(model: nn.Module) -> bool:
    """Return whether a model computes mainly by convolutions with overlapping windows, which run faster channels-last.

    A transformer that cuts a picture into patches by one convolution is not.
    """
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    overlapping = any(
        size > step for conv in convolutions for size, step in zip(conv.kernel_size, conv.stride, strict=True)
    )
    size = sum(parameter.numel() for parameter in model.parameters())
    return overlapping and 2 * sum(conv.weight.numel() for conv in convolutions) > size


def channels_last(values: Tensor) -> Tensor:
    """Return a tensor of pictures, (rows, channels, height, width), on a processor with its channels innermost."""
    if values.ndim != 4 or values.device.type != "cpu":
        return values
    return values.contiguous(memory_format=torch.channels_last)
