"""`LayerMean`: an encoder whose tokens are the mean over its layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fusetune.backbones.backbone import Backbone
from fusetune.backbones.inspection.structure import layers
from fusetune.backbones.passes.choice import choose
from fusetune.types import Tokens


class LayerMean:
    """A view of an encoder whose tokens are the mean over its layers' outputs; it is pooled as the encoder is.

    Only layers whose outputs have the shape of the last one's tokens count, (rows, tokens, dim). An encoder without
    such layers, such as a convolutional network, gives its own output. A pooling by the model's own vector, which is
    defined for the last layer only, becomes the mean over tokens.

    Args:
        encoder: pretrained.

    Attributes:
        num_layers: the number of layers that counted in the last batch; 1 where only the output did.

    Reference:
        Garbas et al. 2024, TransformerRanker, arXiv 2409.05997.
    """

    def __init__(self, encoder: Backbone) -> None:
        found = layers(encoder.model)
        self._encoder, self._layers = encoder, [] if found is None else list(found[1])
        self.pool = encoder.pool if encoder.pool in ("cls", "last") else "mean"
        self.num_layers = 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def __call__(self, *, owner: Tensor | None = None, **inputs: Tensor) -> Tokens:
        """Encode cells to one vector each, (cells, 1, dim); the arguments are those of `Backbone.forward`."""
        view: Any = self
        tokens = choose(view, inputs)(view, inputs)
        vectors = tokens.values[:, 0]  # (parts, dim)
        if owner is not None:
            cells = int(owner.max()) + 1
            total = vectors.new_zeros(cells, vectors.shape[1]).index_add(0, owner, vectors)
            vectors = total / torch.bincount(owner, minlength=cells).to(vectors.dtype).unsqueeze(1)
        return Tokens(vectors.unsqueeze(1), torch.ones(len(vectors), 1, dtype=torch.bool, device=vectors.device))

    def hidden_states(self, **inputs: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run the model once; return the mean of its layers' outputs, the mask, and no vector of its own."""
        outputs: list[Tensor] = []

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple | list) else output
            if isinstance(first, Tensor):
                outputs.append(first)

        hooks = [layer.register_forward_hook(keep) for layer in self._layers]
        try:
            values, mask, own = self._encoder.hidden_states(**inputs)
        finally:
            for hook in hooks:
                hook.remove()
        alike = [output for output in outputs if output.shape == values.shape]
        self.num_layers = max(1, len(alike))
        if not alike:
            return values, mask, own if self._encoder.pool == "own" else None
        return torch.stack(alike).mean(0), mask, None

    def as_tokens(self, values: Tensor, mask: Tensor, own: Tensor | None) -> Tokens:
        """Pool the results of `hidden_states`, without scaling vectors to unit length."""
        if own is not None:
            vector = own
        elif self.pool == "cls":
            vector = values[:, 0]
        elif self.pool == "last":
            vector = values[torch.arange(len(values), device=values.device), mask.sum(1) - 1]
        else:
            vector = Tokens(values, mask).mean()
        return Tokens(vector.unsqueeze(1), torch.ones(len(vector), 1, dtype=torch.bool, device=vector.device))
