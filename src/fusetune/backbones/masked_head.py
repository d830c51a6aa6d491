"""The head that predicts masked tokens from an encoder's hidden states, as transformers' `...ForMaskedLM` models have
it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusetune.backbones.backbone import Backbone
from fusetune.backbones.hub.source import quiet, resolve
from fusetune.backbones.tuned import is_tuned
from fusetune.backbones.word_embeddings import word_embeddings
from fusetune.errors import ConfigError


class _HiddenStates(nn.Module):
    """Stands in for the encoder inside a masked language model: returns hidden states that were computed before."""

    def __init__(self) -> None:
        super().__init__()
        self.values: Tensor | None = None

    def forward(self, *args: Any, **options: Any) -> Any:
        """Return the hidden states, whatever the inputs."""
        from transformers.modeling_outputs import BaseModelOutput

        assert self.values is not None
        return BaseModelOutput(last_hidden_state=self.values)


class _TiedDecoder(nn.Module):
    """Logits of the vocabulary by the encoder's word embeddings, which are not this module's own parameter."""

    def __init__(self, table: Callable[[], Tensor], bias: Tensor | None) -> None:
        super().__init__()
        self._table, self.bias = table, bias

    def forward(self, values: Tensor) -> Tensor:
        """Map (..., features) to (..., vocabulary)."""
        return F.linear(values, self._table(), self.bias)


class MaskedHead(nn.Module):
    """Predict the tokens at masked positions.

    The head is that of the model's class in transformers. Its weights are those of the checkpoint if it has them. Else
    they are random, and the output layer is the encoder's word embeddings, with a bias.

    Args:
        encoder: of text, with a mask token.

    Raises:
        ConfigError: the tokenizer has no mask token, or the model has no head for masked tokens.

    Attributes:
        mask_id: the id of the mask token.
        num_tokens: of the vocabulary.
        special: (special tokens,) int64, the ids that are never masked.
        is_new: whether the weights are random.
    """

    def __init__(self, encoder: Backbone) -> None:
        super().__init__()
        tokenizer: Any = encoder.processor
        if getattr(tokenizer, "mask_token_id", None) is None:
            raise ConfigError(
                f"pretrain.name=mlm: the tokenizer of {encoder.source} has no mask token",
                expected="an encoder that was pretrained by masked language modelling, as BERT and RoBERTa",
                came=type(encoder.model).__name__,
                do="take pretrain.name=simcse, which needs none, or another text backbone",
            )
        self.mask_id = int(tokenizer.mask_token_id)
        special = {*tokenizer.all_special_ids, *encoder.tokenize("").tolist()}  # those of an empty text, too
        self.register_buffer("special", torch.tensor(sorted(special)), persistent=False)
        self.model, self.is_new = _language_model(encoder)
        self.hidden = _HiddenStates()
        decoder = self.model.get_output_embeddings()
        self.num_tokens = min(len(tokenizer), int(decoder.weight.shape[0]))
        self.bias: Tensor | None = decoder.bias
        if decoder.weight is self.model.get_input_embeddings().weight:
            table = word_embeddings(encoder)
            path = next(name for name, part in self.model.named_modules() if part is decoder)
            owner, _, name = path.rpartition(".")
            setattr(self.model.get_submodule(owner), name, _TiedDecoder(lambda: table.weight, decoder.bias))
        setattr(self.model, self.model.base_model_prefix, self.hidden)

    special: Tensor

    @torch.no_grad()
    def set_frequencies(self, counts: Tensor) -> None:
        """Start a new head's bias as the logarithm of the tokens' frequencies, so that it need not be learned.

        Args:
            counts: (vocabulary,) how often each token occurs in the train rows; one is added to each.
        """
        if self.is_new and self.bias is not None:
            smoothed = counts.to(self.bias) + 1
            self.bias[: len(smoothed)].copy_((smoothed / smoothed.sum()).log())

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the logits, (positions, vocabulary), from hidden states, (positions, features)."""
        self.hidden.values = hidden.unsqueeze(0)
        ids = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
        logits: Tensor = self.model(input_ids=ids).logits
        self.hidden.values = None
        return logits.squeeze(0)


def _language_model(encoder: Backbone) -> tuple[Any, bool]:
    """Return the masked language model of an encoder's class, and whether its head is random.

    Raises:
        ConfigError: transformers has none for this model.
    """
    from transformers import AutoModelForMaskedLM

    options: dict[str, Any] = {"trust_remote_code": False, "dtype": torch.float32}
    try:
        with quiet():
            if is_tuned(encoder.source):
                return AutoModelForMaskedLM.from_config(encoder.config, **options), True  # type: ignore[no-untyped-call]
            model, info = AutoModelForMaskedLM.from_pretrained(
                str(resolve(encoder.source).folder),
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
    except (ValueError, KeyError) as error:
        raise ConfigError(
            f"pretrain.name=mlm: transformers has no head for masked tokens of {encoder.source}",
            came=f"model_type {getattr(encoder.config, 'model_type', None)!r}",
            do="take pretrain.name=simcse, which needs none, or another text backbone",
        ) from error
    base = f"{model.base_model_prefix}."
    decoder = model.get_output_embeddings().weight
    is_tied = decoder is model.get_input_embeddings().weight
    own = {name: weight for name, weight in model.named_parameters() if not name.startswith(base)}
    lost = [own[name] for name in info["missing_keys"] if name in own and not (is_tied and own[name] is decoder)]
    return model, any(weight.ndim > 1 for weight in lost)
