"""What surrounds a prompt and an answer: special tokens, or the turns of a chat template."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from fusetune.backbones.templates import ChatTemplate
from fusetune.errors import BackboneError
from fusetune.types import Message


class Tokenizes(Protocol):
    """What a frame is made from; `fusetune.backbones.language.LanguageModel` is such.

    Attributes:
        source: the user's name for the model.
        tokenizer: of transformers.
        seq2seq: whether an answer starts anew, in a decoder of its own.
        hears: whether it is the decoder of a model of speech.
        end_ids: ids that end an answer.
    """

    source: str
    seq2seq: bool
    hears: bool
    end_ids: list[int]

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return a text's ids, without special tokens."""
        ...


@dataclass(frozen=True)
class Frame:
    """What surrounds prompts and answers.

    Attributes:
        start, ending: ids before and behind a prompt's.
        before: text before an answer.
        after: ids that end an answer, the last of which is its end.
        template: of chats, of which a prompt is a user's turn; None if it is plain text.
        system: the text of the system turn, "" for none.
        answered: prompts with their answers, which each prompt begins with.
    """

    start: list[int] = field(default_factory=list)
    ending: list[int] = field(default_factory=list)
    before: str = ""
    after: list[int] = field(default_factory=list)
    template: ChatTemplate | None = None
    system: str = ""
    answered: tuple[tuple[str, str], ...] = ()

    def prompt(self, text: str) -> str:
        """Return a prompt as the model reads it.

        Raises:
            BackboneError: see `ChatTemplate.prompt`.
        """
        if self.template is None:
            return "".join(f"{prompt}{self.before or ' '}{answer}\n\n" for prompt, answer in self.answered) + text
        *opening, asked = _turns(self.system, text)
        pairs = [(Message("user", prompt), Message("assistant", answer)) for prompt, answer in self.answered]
        return self.template.prompt([*opening, *(message for pair in pairs for message in pair), asked])


def make_frame(language: Tokenizes, chat: str, system: str, *, ends_in_space: bool, spoken: str = "en") -> Frame:
    """Return the frame of a model's prompts and answers.

    Args:
        language: the model.
        chat: "yes", "no" or "auto"; see `PromptConfig`.
        system: the text of the system turn; "" for none.
        ends_in_space: whether prompts end in white space, so that none is needed before an answer.
        spoken: the language that is spoken, for a model of speech: "en".

    Raises:
        BackboneError: the tokenizer has no token that ends a text, a model of speech does not know the language, or the
            chat template cannot be used.
    """
    if not language.end_ids:
        raise BackboneError(
            "the language model's tokenizer has no token that ends a text, so answers would never end",
            expected="eos_token in tokenizer_config.json",
            do="name it there, or take another model",
        )
    if language.hears:
        return Frame(_spoken(language, spoken), [], " ", language.end_ids[:1])
    if chat != "no" and not language.seq2seq:
        template = ChatTemplate(language.tokenizer, where=language.source)
        if template.stated or chat == "yes":
            before, after = template.turn(_turns(system, "Is it right?"))
            return Frame([], [], before, _end(language, after), template, system)
    start, ending = _specials(language)
    if language.seq2seq:
        return Frame(start, ending, "", language.end_ids[:1])
    return Frame(start, [], "" if ends_in_space else " ", language.end_ids[:1])


def _spoken(language: Tokenizes, spoken: str) -> list[int]:
    """Return the ids by which Whisper is told what to do (Radford et al. 2022, arXiv 2212.04356).

    Raises:
        BackboneError: the model does not know the language.
    """
    marks = [f"<|{mark}|>" for mark in ("startoftranscript", spoken, "transcribe", "notimestamps")]
    known = language.tokenizer.get_vocab()
    marks = [mark for mark in marks if mark in known or mark == f"<|{spoken}|>"]
    if marks[1:] and f"<|{spoken}|>" not in known:
        raise BackboneError(
            f"the model of speech does not know the language {spoken!r}",
            expected="a code such as en, de or zh",
            do="name one that it knows: prompt.language=en",
            file=language.source,
        )
    return [int(known[mark]) for mark in marks if mark in known] or language.end_ids[:1]


def _turns(system: str, text: str) -> list[Message]:
    return [*([Message("system", system)] if system else []), Message("user", text)]


def _end(language: Tokenizes, after: str) -> list[int]:
    """Return the ids of the text behind an answer, up to the first special one, or with the end of a text behind it."""
    ids = language.encode(after)
    special = {*language.tokenizer.all_special_ids, *language.end_ids}
    first = next((number for number, token in enumerate(ids) if token in special), None)
    return [*ids, language.end_ids[0]] if first is None else ids[: first + 1]


def _specials(language: Tokenizes) -> tuple[list[int], list[int]]:
    """Return the special ids that the tokenizer puts before and behind a text."""
    probe: Any = language.encode("a")
    every = list(language.tokenizer("a")["input_ids"])
    for at in range(len(every) - len(probe) + 1):
        if probe and every[at : at + len(probe)] == probe:
            return every[:at], every[at + len(probe) :]
    return [], []
