"""`LanguageModel`: a pretrained model that writes, with its tokenizer: a decoder, or an encoder with a decoder."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fusetune.backbones.backbone import Backbone
from fusetune.backbones.frames import Frame, make_frame
from fusetune.backbones.inputs import TextInputs
from fusetune.backbones.inspection.structure import Part
from fusetune.backbones.special_tokens import SpecialTokens
from fusetune.errors import BackboneError
from fusetune.types import Tokens

CHUNK = 2**24
"""Most logits, positions times vocabulary, that are computed at a time."""


@dataclass
class Embedded:
    """What a language model reads before it writes.

    Attributes:
        values: (batch, tokens, dim), its input vectors, real ones first.
        lengths: (batch,) int64, the number of real ones of each row, at least 1.
        heard: (batch, frames, dim), what the encoder of a model that hears gave for the rows' sounds; None for others.
    """

    values: Tensor
    lengths: Tensor
    heard: Tensor | None = None

    def repeated(self, num: int) -> Embedded:
        """Return each row `num` times, one after the other."""
        heard = None if self.heard is None else self.heard.repeat_interleave(num, 0)
        return Embedded(self.values.repeat_interleave(num, 0), self.lengths.repeat_interleave(num), heard)

    def without_last(self, num: Tensor) -> Embedded:
        """Return each row without its last vectors, of which it has more than `num`, (batch,) int64."""
        return Embedded(self.values, self.lengths - num, self.heard)

    @property
    def mask(self) -> Tensor:
        """(batch, tokens) int64, 1 where a vector is real."""
        return (torch.arange(self.values.shape[1], device=self.values.device) < self.lengths[:, None]).long()

    def at_the_end(self) -> tuple[Tensor, Tensor]:
        """Return the vectors and the mask with the padding before them, as decoders are continued."""
        width = self.values.shape[1]
        at = torch.arange(width, device=self.values.device) - (width - self.lengths)[:, None]  # (batch, tokens)
        index = at.clamp(min=0).unsqueeze(-1).expand(-1, -1, self.values.shape[2])
        return self.values.gather(1, index), (at >= 0).long()


class LanguageModel(Backbone):
    """A language model with its head.

    It reads vectors (`embed`) and gives the log-likelihoods of what follows them. The adapter, freezing, learning rates
    and files are those of other backbones.

    Attributes:
        seq2seq: whether it is an encoder with a decoder, which starts an answer anew.
        hears: whether it is the decoder of a speech model, which reads the states of that model's encoder, too. The
            encoder itself is the backbone of the column of sounds.
        suppressed: ids that are never written, as the model's settings say.
        limit: most positions of a prompt with its answer; None without a limit.
        end_ids: ids that end an answer: the tokenizer's, the model's and those of frames.
        causal: whether what follows a token cannot change its logits, so that padding at the right needs no mask.
        special: the special tokens and how texts that spell them are encoded.
        autocasts: whether passes are under autocast, also without gradients, as frozen weights are in bf16.
        plain_head: whether the logits are the output embeddings' of the last hidden state, without anything between.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        tokenizer: Any,
        max_tokens: int,
        limit: int | None,
        config: Any,
        hears: bool = False,
        **named: Any,
    ) -> None:
        """
        Args:
            model: with a head; from `AutoModelForCausalLM` or `AutoModelForSeq2SeqLM`.
            tokenizer: a fast one.
            max_tokens: most tokens of a prompt.
            limit, hears: see the attributes.
            config: the model's.
            named: `source`, `key` and `fingerprint`; see `Backbone`.
        """
        inputs = TextInputs(tokenizer, max_tokens)
        super().__init__(model, inputs=inputs, kind="text", pool="none", pretrained=True, config=config, **named)
        self.limit = limit
        self.hears = hears
        self.autocasts = False
        self.seq2seq = bool(getattr(config, "is_encoder_decoder", False)) and not hears
        self.suppressed = list(getattr(getattr(model, "generation_config", None), "suppress_tokens", None) or [])
        embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
        self.dim = int(embedding.weight.shape[1])
        self.vocabulary = int(embedding.weight.shape[0])
        backend = inputs.tokenizer("whole").backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        self.end_ids = self._known_ends()
        self.special = SpecialTokens(tokenizer, backend, ends=self.end_ids)
        self.causal, self.plain_head = (hears, False) if self.seq2seq or hears else _tried(model)
        # Positions of a prompt begin at 0 behind the padding, where the model takes them as an argument.
        self._takes = set(inspect.signature(model.forward).parameters)
        self.takes_positions = self._named("position_ids") in self._takes

    # ---- texts and ids

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self.processor

    def encode(self, text: str) -> list[int]:
        """Return a text's token ids, without special tokens around it; those in it are read as such.

        Texts that a template's special tokens surround are to be escaped first: see `escape`.
        """
        return self.special.encode(text)

    def escape(self, text: str) -> str:
        """Return a cell's text such that `encode` reads the special tokens that it spells as characters."""
        return self.special.escape(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def frame(self, chat: str, system: str, *, ends_in_space: bool, spoken: str = "en") -> Frame:
        """Return what surrounds prompts and answers; see `make_frame`."""
        frame = make_frame(self, chat, system, ends_in_space=ends_in_space, spoken=spoken)
        self.end_ids = list(dict.fromkeys([*self.end_ids, *frame.after[-1:]]))
        return frame

    def _known_ends(self) -> list[int]:
        """Return the ids that end a text: the tokenizer's and the model's."""
        generation = getattr(self.model, "generation_config", None)
        known = [self.tokenizer.eos_token_id, getattr(generation, "eos_token_id", None)]
        known.append(getattr(self.config, "eos_token_id", None))
        flat = [token for item in known for token in (item if isinstance(item, list) else [item])]
        return list(dict.fromkeys(int(token) for token in flat if token is not None))

    @property
    def start_id(self) -> int:
        """The id with which the decoder of an encoder-decoder starts."""
        names = ("decoder_start_token_id", "bos_token_id")
        known = [*(getattr(self.config, name, None) for name in names), self.tokenizer.pad_token_id, 0]
        return int(next(token for token in known if token is not None))

    # ---- from ids to log-likelihoods

    def embed(self, ids: Tensor) -> Tensor:
        """Return the input embeddings of ids, (batch, tokens) int64: (batch, tokens, dim)."""
        embedding: Any = self.model.get_input_embeddings()  # type: ignore[operator]
        values: Tensor = embedding(ids)
        return values.float()  # what layers add to them is summed in float32

    def _named(self, argument: str) -> str:
        """Return the name of an argument of the decoder's."""
        return f"decoder_{argument}" if self.hears else argument

    def run(self, prompt: Embedded | None = None, *, heard: Tensor | None = None, **arguments: Any) -> Any:
        """Run a decoder with its head; return the model's output.

        Args:
            prompt: what is read; or `input_ids` among the arguments.
            heard: see `Embedded`.
            arguments: of the model, under the names that decoders give them; those that it does not take are left out.
        """
        if prompt is not None:
            arguments, heard = {"inputs_embeds": prompt.values, **arguments}, prompt.heard
        common = ("past_key_values", "use_cache")
        named = {key if key in common else self._named(key): value for key, value in arguments.items()}
        if heard is not None:
            named["encoder_outputs"] = (heard,)
        known = {key: value for key, value in named.items() if key in self._takes}
        return self.model(**known)

    def log_likelihoods(self, prompt: Embedded, answer: Tensor) -> Tensor:
        """Return the log-probability of each token of the answers, and the mean over the vocabulary there.

        Args:
            prompt: of the rows.
            answer: (batch, answer tokens) int64, −1 behind a row's answer. A decoder may read tokens within it that are
                not the answer's, such as those of a user's turn: −2 − id.

        Returns:
            (batch, answer tokens, 2) float32, 0 where there is no id of the answer.
        """
        if self.seq2seq:
            return self.of_logits(self._decoded(prompt, answer), answer)
        values, first = self._joined(prompt, answer)
        options = {} if self.causal else {"attention_mask": self._joined_mask(prompt, answer, values)}
        at = first.unsqueeze(1) + torch.arange(answer.shape[1], device=answer.device)  # (batch, answer tokens)
        at = at.clamp(max=values.shape[1] - 1)
        if not self.plain_head:
            logits = self.run(Embedded(values, prompt.lengths, prompt.heard), use_cache=False, **options).logits
            return self.of_logits(logits.gather(1, at.unsqueeze(-1).expand(-1, -1, logits.shape[2])), answer)
        base: Any = self.model.base_model
        hidden = base(inputs_embeds=values, use_cache=False, **options).last_hidden_state
        hidden = hidden.gather(1, at.unsqueeze(-1).expand(-1, -1, hidden.shape[2]))  # (batch, answer tokens, dim)
        return self.of_hidden(hidden, answer)

    def _joined(self, prompt: Embedded, answer: Tensor) -> tuple[Tensor, Tensor]:
        """Return each row's prompt and, right behind it, its answer, (batch, tokens, dim), padded at the right; and the
        position of each prompt's last vector, (batch,)."""
        following = self.embed(torch.where(answer < -1, -2 - answer, answer).clamp(min=0))
        width, lengths = prompt.values.shape[1], prompt.lengths
        total = int((lengths + (answer != -1).sum(1)).max())
        at = torch.arange(total, device=answer.device).expand(len(answer), -1)  # (batch, tokens)
        behind = (at - lengths[:, None] + width).clamp(max=width + answer.shape[1] - 1)
        index = torch.where(at < lengths[:, None], at, behind)
        both = torch.cat([prompt.values, following.to(prompt.values.dtype)], 1)
        return both.gather(1, index.unsqueeze(-1).expand(-1, -1, both.shape[2])), lengths - 1

    def _joined_mask(self, prompt: Embedded, answer: Tensor, values: Tensor) -> Tensor:
        ends = prompt.lengths + (answer != -1).sum(1)
        return (torch.arange(values.shape[1], device=values.device) < ends[:, None]).long()

    def _decoded(self, prompt: Embedded, answer: Tensor) -> Tensor:
        """Return the decoder's logits for the answers, (batch, answer tokens, vocabulary)."""
        start = answer.new_full((len(answer), 1), self.start_id)
        decoder_ids = torch.cat([start, answer[:, :-1].clamp(min=0)], 1)
        out = self.model(
            inputs_embeds=prompt.values, attention_mask=prompt.mask, decoder_input_ids=decoder_ids, use_cache=False
        )
        logits: Tensor = out.logits
        return logits

    def of_hidden(self, hidden: Tensor, answer: Tensor) -> Tensor:
        """Return `log_likelihoods` from the last hidden states, (batch, answer tokens, dim), of real tokens alone."""
        head: Any = self.model.get_output_embeddings()  # type: ignore[operator]
        real = answer >= 0
        states, ids = hidden[real], answer[real]  # (tokens, dim), (tokens,)
        size = max(1, CHUNK // self.vocabulary)

        def chunk(states: Tensor, ids: Tensor) -> Tensor:
            return _scores(head(states), ids)

        saves = torch.is_grad_enabled() and len(states) > size
        starts = range(0, len(states), size)
        pieces = [(states[start : start + size], ids[start : start + size]) for start in starts]
        parts = [checkpoint(chunk, *piece, use_reentrant=False) if saves else chunk(*piece) for piece in pieces]
        scores = torch.cat(parts) if parts else hidden.new_zeros(0, 2)
        return hidden.new_zeros(*answer.shape, 2, dtype=torch.float32).masked_scatter(
            real.unsqueeze(-1).expand(-1, -1, 2), scores
        )

    def of_logits(self, logits: Tensor, answer: Tensor) -> Tensor:
        """Return `log_likelihoods` from (batch, answer tokens, vocabulary)."""
        scores = _scores(logits, answer.clamp(min=0))
        return scores.masked_fill((answer < 0).unsqueeze(-1), 0)

    def forward(self, **inputs: Tensor) -> Tokens:  # type: ignore[override]
        """Refuse: a language model that writes is called by `log_likelihoods`."""
        raise NotImplementedError("a language model that writes encodes no cells")

    # ---- training and files

    def blocks(self) -> list[tuple[str, nn.Module]]:
        """See `Backbone.blocks`; a tied head belongs to the embeddings."""
        seen: set[int] = set()
        result = []
        for name, block in super().blocks():
            parts = [block] if not isinstance(block, Part) else [*block.parts]
            new = [part for part in parts if any(id(p) not in seen for p in part.parameters())]
            loose = [p for p in block.loose if id(p) not in seen] if isinstance(block, Part) else []
            seen |= {id(p) for p in block.parameters()}
            if new or loose:
                result.append((name, block if not isinstance(block, Part) else Part(new, loose)))
        return result

    def describe(self) -> dict[str, Any]:
        """See `Backbone.describe`."""
        return {
            **super().describe(),
            "writes": True,
            "hears": self.hears,
            "limit": self.limit,
            "tied": tied(self.model),
        }

    def save(self, folder: Path) -> None:
        """See `Backbone.save`; with the settings by which the model writes."""
        super().save(folder)
        if (generation := getattr(self.model, "generation_config", None)) is not None:
            generation.save_pretrained(str(folder))


def tied(model: Any) -> bool:
    """Return whether a model's head has the weights of its embeddings; true without a head."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return head is None or getattr(head, "weight", None) is embedding.weight


def _scores(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the log-probability of ids and the mean over the vocabulary, (..., 2) float32."""
    logits = logits.float()
    total = logits.logsumexp(-1)
    chosen = logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return torch.stack([chosen - total, logits.mean(-1) - total], -1)


@torch.no_grad()
def _tried(model: Any) -> tuple[bool, bool]:
    """Return whether a decoder is causal, and whether its head is plain, by its logits for a few ids.

    Raises:
        BackboneError: they are NaN.
    """
    device = next(model.parameters()).device
    size = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(1, 9, device=device).remainder(size).unsqueeze(0)
    was_training = model.training
    model.eval()
    logits = model(input_ids=ids, use_cache=False).logits
    if bool(logits.isnan().any()):
        do = "check its weights; take a checkpoint in float32 or bfloat16"
        raise BackboneError("the language model computes NaN", expected="logits that are numbers", came="NaN", do=do)
    fewer = model(input_ids=ids[:, :5], use_cache=False).logits
    causal = torch.allclose(logits[:, :5], fewer, rtol=1e-3, atol=1e-3)
    head, base = model.get_output_embeddings(), model.base_model
    plain = False
    if head is not None and base is not model:
        hidden = base(input_ids=ids, use_cache=False).last_hidden_state
        plain = torch.allclose(head(hidden), logits, rtol=1e-4, atol=1e-4)
    model.train(was_training)
    return causal, plain
