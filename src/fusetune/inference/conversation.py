"""A conversation with a language model: its messages, cut by whole turns to what the model can read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fusetune.backbones.templates import ChatTemplate
from fusetune.errors import UserError
from fusetune.types import Message


def last_turns(messages: Sequence[Message], size: Callable[[Sequence[Message]], int], budget: int) -> list[Message]:
    """Return the latest messages that fit a budget, with the system messages that the chat begins with.

    The chat is cut before one of the user's messages, so that what is kept begins with a whole turn: the user's message
    and the answers to it.

    Args:
        messages: of a chat.
        size: the size of messages, such as the number of tokens of their prompt.
        budget: the largest size.

    Raises:
        UserError: the last turn alone is too large.

    Example:
        >>> chat = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
        >>> last_turns(chat, len, 2)
        [Message(role='user', content='c')]
    """
    first = next((place for place, message in enumerate(messages) if message.role != "system"), len(messages))
    opening = list(messages[:first])
    needed = 0
    for start in [first, *(at for at in range(first + 1, len(messages)) if messages[at].role == "user")]:
        kept = [*opening, *messages[start:]]
        needed = size(kept)
        if needed <= budget:
            return kept
    raise UserError(
        "the last message is too long for the model",
        expected=f"at most {budget:,} tokens" + (", with the system message" if opening else ""),
        came=f"{needed:,}",
        do="shorten it",
    )


class Conversation:
    """The messages of a conversation, of which the model reads the latest whole turns that it has room for.

    Attributes:
        messages: those that the model still reads.
        num_forgotten: number of messages that were cut.

    Example:
        >>> talk = Conversation(template, lambda text: len(tokenizer(text)["input_ids"]), budget=1024)
        >>> prompt = talk.ask("Hello")
        >>> talk.add_answer(write(prompt))
    """

    def __init__(
        self, template: ChatTemplate, num_tokens: Callable[[str], int], *, budget: int, system: str = ""
    ) -> None:
        """
        Args:
            template: renders the messages.
            num_tokens: returns the number of tokens of a text.
            budget: most tokens of a prompt.
            system: the text of the system message; "" for none.
        """
        self.template, self.num_tokens, self.budget = template, num_tokens, budget
        self._opening = [Message("system", system)] if system else []
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages: list[Message] = list(self._opening)
        self.num_forgotten = 0

    def ask(self, text: str) -> str:
        """Add a message of the user's and return the prompt of the answer.

        Raises:
            UserError: the message is too long; it is not added.
            BackboneError: the template refuses it; it is not added. See `ChatTemplate.prompt`.
        """
        messages = [*self.messages, Message("user", text)]
        kept = last_turns(messages, lambda part: self.num_tokens(self.template.prompt(part)), self.budget)
        prompt = self.template.prompt(kept)
        self.num_forgotten += len(messages) - len(kept)
        self.messages = kept
        return prompt

    def add_answer(self, text: str) -> None:
        """Add the assistant's answer to the last message. An empty one takes that message back, as there is no turn."""
        if text.strip():
            self.messages.append(Message("assistant", text))
        else:
            self.messages.pop()
