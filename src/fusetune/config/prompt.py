"""The sections `prompt` and `generation`: what a language model reads of a row, and how it writes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fusetune.config.section import Section, StrList


class PromptConfig(Section):
    """What a language model reads before it writes a row's target."""

    template: str | None = None
    """Text with columns in braces: `Translate to German: {en}`. A line is left out where all of its columns are
    missing; `{{` and `}}` are braces. Pictures and sounds are read where their columns stand. None: a line per column,
    `en: {en}`, then the target's name. Several targets have their own, as the option `template` of their tasks."""
    system: str = ""
    """What a chat template's system turn says; without one, the model's template decides."""
    chat: Literal["auto", "yes", "no"] = "auto"
    """Whether the prompt is a user's turn in the model's chat template. `auto`: if the model has one."""
    turns: Literal["last", "all"] = "last"
    """Which of the assistant's messages are learned, where the target is a chat: the last, or all, in one pass. Those
    with `"weight": 0` are never."""
    language: str = "en"
    """The language that is spoken, for a model of speech such as Whisper, by its code: `de`."""
    soft: StrList = []
    """Columns of numbers, categories or dates that enter as learned vectors rather than as words."""
    projector: Literal["mlp", "queries"] = "mlp"
    """How an encoder's vectors become those of a language model: each by a small network, or by learned queries that
    attend to them."""
    soft_tokens: Annotated[int, Field(ge=1, le=256)] = 4
    """Vectors that the language model reads of a picture, sound or soft column."""
    max_tokens: Annotated[int, Field(ge=8)] = 512
    """Longer prompts are cut within their longest cell."""
    max_answer_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longer targets are cut when they are learned, without an end, and answers when they are written. None: the
    longest train target, at most 256."""
    noise: Annotated[float, Field(ge=0)] = 0.0
    """NEFTune (arXiv 2310.05914): uniform noise on the embeddings in training, of size noise / √(tokens · width); 5 is
    usual."""

    @field_validator("chat", mode="before")
    @classmethod
    def _words(cls, value: object) -> object:
        return _word(value)


class GenerationConfig(Section):
    """How answers are written."""

    beams: Annotated[int, Field(ge=1, le=64)] = 1
    """Beams that are searched; 1 takes the likeliest token each time."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Above 0, tokens are drawn at random, by `seed`; 1 draws by the model's own probabilities."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Tokens are drawn among the likeliest that make up this share."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Tokens are drawn among so many of the likeliest; 0 for all."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of draws: a row's draws depend on it and on the row's id alone."""
    stop: StrList = []
    """Texts before which an answer ends."""
    choices: StrList = []
    """Answers to choose from, by their likelihood; nothing else is then answered."""
    regex: str = ""
    """A regular expression that a whole answer matches, in the syntax of Rust's crate regex, without look-around. An
    answer of `max_tokens` may end within it. It needs the extra `constrain`."""
    json_schema: dict[str, Any] | None = None
    """A JSON schema that an answer, which is then JSON, follows; needs the extra `constrain`."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most tokens of a written answer, its end included. None: `prompt.max_answer_tokens`, or the longest train
    target."""
    val_rows: Annotated[int, Field(ge=0)] = 64
    """Validation rows whose answers are written at each evaluation while the model is tuned; the loss is of all."""

    @field_validator("stop", "choices", mode="before")
    @classmethod
    def _words(cls, value: object) -> object:
        return [_word(part) for part in value] if isinstance(value, list | tuple) else _word(value)

    @model_validator(mode="after")
    def _fits(self) -> GenerationConfig:
        if self.temperature and self.beams > 1:
            raise ValueError("beams do not go with a temperature; leave one of them out")
        if self.choices and (self.temperature or self.beams > 1):
            raise ValueError("choices are compared by their likelihood: no beams, no temperature")
        if not self.temperature and (self.top_p < 1 or self.top_k):
            raise ValueError("top_p and top_k are of draws: set a temperature, or leave them out")
        constraints = [name for name in ("regex", "json_schema", "choices") if getattr(self, name)]
        if len(constraints) > 1:
            raise ValueError(f"{' and '.join(constraints)} are constraints: name one of them")
        if constraints and constraints != ["choices"] and (self.beams > 1 or self.stop):
            raise ValueError(f"{constraints[0]} says where an answer ends: no beams, no stop texts")
        return self


def _word(value: object) -> object:
    """Return the text of what YAML takes for a boolean or a number: it reads the words yes and no as booleans."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if isinstance(value, int | float) else value
