"""Chats with a language model: a tuned one, or a pretrained one as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from fusetune.backbones.frames import Frame
from fusetune.backbones.language import Embedded, LanguageModel
from fusetune.backbones.load_language import load_language
from fusetune.deploy.bundle import Bundle
from fusetune.errors import ConfigError, UserError, nearest
from fusetune.inference.conversation import Conversation
from fusetune.inference.decoding import Decoding
from fusetune.inference.predict import evaluating, model_device
from fusetune.inference.write import decoding_of, stream_prompt
from fusetune.modalities.prompt import MOST_ANSWER, PromptModality
from fusetune.models.generate import Generate
from fusetune.tasks.abilities import Writes
from fusetune.types import Message

MAX_TOKENS = 2048
"""Most tokens of a prompt, with what was said before."""


@dataclass(frozen=True)
class ChatOptions:
    """What the user says of a chat; None for what the model was tuned with.

    Attributes:
        system: the text of the system message.
        temperature: of draws; 0 takes the likeliest token each time.
        seed: of draws.
        max_tokens: most tokens of an answer.
    """

    system: str | None = None
    temperature: float | None = None
    seed: int | None = None
    max_tokens: int | None = None


class ChatSession:
    """A chat: messages in, the pieces of answers out.

    A model with a chat template reads the latest whole turns that it has room for. A model without one, or tuned with
    `prompt.chat=no`, answers each message by itself.

    Attributes:
        conversation: the messages; None if each is answered by itself.
        num_read: tokens of the last answer's prompt.
        written: ids of the last answer's tokens.

    Example:
        >>> session = ChatSession.of_bundle(tuned.bundle)
        >>> for piece in session.reply("Where is my parcel?"):
        ...     print(piece, end="", flush=True)
    """

    def __init__(
        self, language: LanguageModel, frame: Frame, decoding: Decoding, *, system: str, fill: Callable[[str], str]
    ) -> None:
        """
        Args:
            language: the model.
            frame: what surrounds its prompts.
            decoding: how it answers; without choices.
            system: the text of the system message; "" for none.
            fill: returns the text of the user's turn for a message.

        Raises:
            ConfigError: a system message is given, and the model has no chat template.
        """
        self.language, self.frame, self.decoding, self.fill = language, frame, replace(decoding, beams=1), fill
        limit = language.limit
        self.budget = MAX_TOKENS if limit is None else max(1, min(MAX_TOKENS, limit - decoding.max_tokens))
        self.conversation: Conversation | None = None
        self._turns, self.num_read, self.written = 0, 0, list[int]()
        if frame.template is not None:
            self.conversation = Conversation(frame.template, self._num_tokens, budget=self.budget, system=system)
        elif system:
            raise ConfigError("a system message needs a chat template, and the model uses none", do="leave it out")

    @classmethod
    def of_bundle(cls, bundle: Bundle, options: ChatOptions, given: Mapping[str, str]) -> ChatSession:
        """Return a chat with a tuned model, whose messages fill a column of its prompt.

        Args:
            bundle: the model.
            options: of the chat.
            given: texts of the prompt's other columns, by name.

        Raises:
            ConfigError: the model writes no text or several, chooses its answers, or its prompt has no such column, or
                several are not given.
        """
        targets = {name: task for name, task in bundle.targets.items() if isinstance(task, Writes)}
        if not isinstance(bundle.model, Generate) or len(targets) != 1:
            what = "several targets" if targets else "no text"
            raise ConfigError(
                f"this model writes {what}", expected="a model that writes one target", do="use fusetune predict"
            )
        (task,) = targets.values()
        decoding = decoding_of(bundle.config.generation, task)
        if decoding.choices:
            raise ConfigError("this model chooses among given answers", do="use fusetune predict")
        prompt = bundle.modalities[task.prompt]
        assert isinstance(prompt, PromptModality), "a task that writes has a prompt"
        fill = _filled(prompt, given)
        system = prompt.system if options.system is None else options.system
        return cls(bundle.model.language, prompt.frame, _with(decoding, options), system=system, fill=fill)

    @classmethod
    def of_pretrained(cls, source: str, options: ChatOptions) -> ChatSession:
        """Return a chat with a language model as it is.

        Args:
            source: see `load_language`.
            options: of the chat.

        Raises:
            BackboneError: the model cannot be loaded, or its chat template cannot be used.
        """
        language = load_language(source)
        frame = language.frame("auto", "", ends_in_space=False)
        most = MOST_ANSWER if language.limit is None else min(MOST_ANSWER, language.limit // 2)
        return cls(language, frame, _with(Decoding(most), options), system=options.system or "", fill=str)

    def reply(self, text: str) -> Iterator[str]:
        """Yield the pieces of the answer to a message.

        What was written before the iterator is closed, or interrupted, is kept as the answer.

        Raises:
            UserError: the message is too long, or the chat template refuses it.
        """
        turn = self.fill(self.language.escape(text))
        prompt = turn if self.conversation is None else self.conversation.ask(turn)
        written: list[str] = []
        try:
            self._turns, self.written = self._turns + 1, []
            embedded = self._embedded(prompt)
            for piece in stream_prompt(self.language, embedded, self.decoding, row=self._turns, written=self.written):
                written.append(piece)
                yield piece
        finally:
            if self.conversation is not None:
                self.conversation.add_answer(self.language.escape("".join(written)))

    @property
    def was_cut(self) -> bool:
        """Whether the last answer ended as it had as many tokens as it may have."""
        ids = self.written
        return len(ids) >= self.decoding.max_tokens and ids[-1] not in self.language.end_ids

    def recall(self, messages: Sequence[Message]) -> None:
        """Add messages of the user's and the assistant's that were exchanged before.

        Raises:
            ConfigError: the model answers each message by itself.
        """
        if self.conversation is None:
            raise ConfigError(
                "this model answers each message by itself",
                expected="one message",
                came=f"{len(messages) + 1} messages",
                do="send the last message alone",
            )
        for message in messages:
            text = self.language.escape(message.text)
            content = self.fill(text) if message.role == "user" else text
            self.conversation.messages.append(Message(message.role, content))

    def reset(self) -> None:
        """Forget what was said."""
        if self.conversation is not None:
            self.conversation.reset()

    def _ids(self, prompt: str) -> list[int]:
        return [*self.frame.start, *self.language.encode(prompt), *self.frame.ending]

    def _num_tokens(self, prompt: str) -> int:
        return len(self._ids(prompt))

    def _embedded(self, prompt: str) -> Embedded:
        ids = self._ids(prompt)
        if len(ids) > self.budget:
            expected = f"at most {self.budget:,} tokens"
            raise UserError("the message is too long for the model", expected=expected, came=f"{len(ids):,}")
        self.num_read = len(ids)
        device = model_device(self.language)
        with evaluating(self.language):
            values = self.language.embed(torch.tensor([ids or self.language.end_ids[:1]], device=device))
        return Embedded(values, torch.tensor([values.shape[1]], device=device))


def _with(decoding: Decoding, options: ChatOptions) -> Decoding:
    """Return a decoding with what the user says of it."""
    said = {name: getattr(options, name) for name in ("temperature", "seed", "max_tokens")}
    return replace(decoding, **{name: value for name, value in said.items() if value is not None})


def _filled(prompt: PromptModality, given: Mapping[str, str]) -> Callable[[str], str]:
    """Return a function that fills a prompt's template with a message and what is given of other columns.

    A model that was tuned on chats reads messages as they are.
    """
    if prompt.messages is not None:
        if given:
            raise ConfigError("this model was tuned on chats and reads no columns", do="leave --set out")
        return str
    columns = [name for name in prompt.template.columns if name not in prompt.soft]
    if unknown := [name for name in given if name not in columns]:
        raise ConfigError(
            f"the model's prompt has no column {unknown[0]!r}",
            expected=", ".join(columns),
            do=nearest(unknown[0], columns),
        )
    open_columns = [name for name in columns if name not in given]
    if len(open_columns) != 1:
        raise ConfigError(
            "a message fills one column of the prompt",
            expected="all other columns given",
            came=f"not given: {', '.join(open_columns) or 'none'}",
            do=" ".join(f"--set {name}=..." for name in open_columns[:-1]) or "leave one --set out",
        )
    absent: dict[str, str | None] = dict.fromkeys(prompt.soft)
    escaped = {name: prompt.backbone.escape(text) for name, text in given.items()}
    return lambda text: prompt.filled({**absent, **escaped, open_columns[0]: text})
