"""`ChatTemplate`: a chat's messages as the text that a language model was trained on, by its own template.

A template is a jinja2 program in the model's folder, written by a stranger. transformers renders it in a sandbox; here
that happens in a process of its own with limits on processor time and memory (`fusetune.backbones.template_worker`),
since a loop or a product inside the sandbox cannot be stopped from within the same process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fusetune.errors import BackboneError, shown
from fusetune.types import Message

MAX_TEMPLATE = 2**17
"""Largest template in characters; the longest in use have about 20,000."""
MAX_WRITTEN, GROWTH = 2**17, 8
"""Largest rendered chat: this many characters, and this many more for each character of the messages."""
SECONDS = 2.0
"""Processor time for one chat; most take less than a thousandth of a second."""
MEMORY = 2**28
"""Memory in bytes that rendering may take."""
PATIENCE = 120.0
"""Seconds on the clock after which the process is given up, however little processor time it had."""

PLAIN = (
    "{% for message in messages %}"
    "{% if message['content'] is not string %}"
    "{{ raise_exception('images and sounds have no place in the plain template') }}"
    "{% endif %}"
    "{{ message['role'] | capitalize + ': ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""The template of folders that have none: a line for each message, the assistant's with the tokenizer's end token.

    System: Answer briefly.
    User: What is the capital of France?
    Assistant: Paris</s>
"""

Chat = Sequence[Message]


class ChatTemplate:
    """Renders chats with a tokenizer's chat template, or with `PLAIN` if the tokenizer has none.

    Templates are equal if they have the same text and the same special tokens. They may be copied, pickled and used by
    several threads and forked processes. All templates of a process share one rendering process, which starts with the
    first chat and ends with the last template.

    Attributes:
        template: the template's text.
        stated: whether it is the tokenizer's own.
        where: the model's folder or hub id, for errors.

    Example:
        >>> template = ChatTemplate(tokenizer, where="llama")
        >>> template.prompt([Message("user", "Hello")])
        '<|im_start|>user\\nHello<|im_end|>\\n<|im_start|>assistant\\n'
        >>> template.answer([Message("user", "Hello")], "Hi!")
        'Hi!<|im_end|>\\n'
    """

    def __init__(self, tokenizer: Any, *, where: str) -> None:
        """
        Args:
            tokenizer: of transformers.
            where: the model's folder or hub id, for errors.

        Raises:
            BackboneError: the template is no text, or too long.
        """
        self.where = where
        own = getattr(tokenizer, "chat_template", None)
        if isinstance(own, Mapping):
            own = own.get("default")
            if own is None:
                names = ", ".join(map(str, tokenizer.chat_template))
                raise self._error("the tokenizer has several chat templates, and none is the default", came=names)
        if own is not None and not isinstance(own, str):
            raise self._error("the chat template is no text", came=shown(own))
        if own is not None and len(own) > MAX_TEMPLATE:
            limit = f"at most {MAX_TEMPLATE:,} characters"
            raise self._error("the chat template is too long", expected=limit, came=f"{len(own):,} characters")
        self.stated = bool(own)
        self.template: str = own or PLAIN
        tokens = getattr(tokenizer, "special_tokens_map", {})
        self._tokens: dict[str, Any] = json.loads(json.dumps(tokens, default=str))
        self._key = hashlib.sha256(json.dumps(self.state(), sort_keys=True).encode()).hexdigest()
        self._sandbox: _Sandbox | None = None

    def prompt(self, messages: Chat) -> str:
        """Return a chat's text up to where the assistant's next turn begins.

        Raises:
            BackboneError: the template refuses the messages, leaves out an image or a sound, or exceeds a limit.
        """
        return self._rendered((messages, True))[0]

    def answer(self, messages: Chat, text: str) -> str:
        """Return what follows `prompt(messages)` when the assistant answers `text`, with the text that ends its turn.

        It is found by rendering the chat with the answer and without it: the first must continue the second.

        Raises:
            BackboneError: it does not, the template changes the answer, or one of the reasons of `prompt`.
        """
        return self.split(messages, text)[1]

    def split(self, messages: Chat, text: str) -> tuple[str, str]:
        """Return `prompt(messages)` and `answer(messages, text)`, which takes no longer than the second alone."""
        prompt, answered = self._rendered((messages, True), ([*messages, Message("assistant", text)], False))
        if not answered.startswith(prompt):
            common = next(place for place, pair in enumerate(zip_longest(prompt, answered)) if pair[0] != pair[1])
            raise self._error(
                "the chat template writes another text before an answer than where it asks for one, so the answer's "
                "tokens cannot be told from the prompt's",
                expected=f"…{shown(prompt[max(0, common - 20) :], 60)}",
                came=f"…{shown(answered[max(0, common - 20) :], 60)}",
                do="take a model with another chat template",
            )
        answer = answered[len(prompt) :]
        if not text.strip() or text.strip() not in answer:
            raise self._error(
                "the chat template does not write the answer as it is", expected=shown(text), came=shown(answer)
            )
        return prompt, answer

    def pieces(self, messages: Chat, answers: Sequence[int], before: str) -> list[str]:
        """Return `prompt(messages)` cut where some of the assistant's messages begin and end.

        Every second piece is such a message: what the template writes before an answer, then its text. What asks for an
        answer must be the beginning of the chat with it and all that follows, as it was when the answer was written.

        Args:
            messages: of the chat, whose texts have no white space around them.
            answers: the positions of the assistant's messages, ascending, from 1.
            before: what the template writes before an answer; see `turn`.

        Raises:
            BackboneError: the template writes earlier turns in another way, such as without their reasoning; or one of
                the reasons of `prompt`.

        Example:
            >>> chat = [Message("user", "Hello"), Message("assistant", "Hi!"), Message("user", "Bye")]
            >>> template.pieces(chat, [1], "")
            ['<|im_start|>user\\nHello<|im_end|>\\n<|im_start|>assistant\\n', 'Hi!',
            '<|im_end|>\\n<|im_start|>user\\nBye<|im_end|>\\n<|im_start|>assistant\\n']
        """
        prompts = self._rendered(*((messages[:at], True) for at in answers), (messages, True))
        result, start = list[str](), 0
        for at, prompt, longer in zip(answers, prompts, prompts[1:], strict=False):
            answer = before + messages[at].text
            if not longer.startswith(prompt + answer):
                raise self._error(
                    "the chat template writes earlier turns in another way than when they were answered, so not all of "
                    "the assistant's messages can be learned in one pass",
                    expected=f"…{shown((prompt + answer)[-60:], 80)}",
                    came=f"…{shown(longer[len(prompt) : len(prompt) + len(answer) + 20], 80)}",
                    do="learn the last message alone: prompt.turns=last; or leave the reasoning out of the messages",
                )
            result += [prompt[start:], answer]
            start = len(prompt + answer)
        return [*result, prompts[-1][start:]]

    def turn(self, messages: Chat) -> tuple[str, str]:
        """Return what the template writes before and after an answer within `answer(messages, ...)`.

        The first token of the second text is the one that a model tuned on this template ends its turns with.

        Raises:
            BackboneError: one of the reasons of `answer`.
        """
        before, _, after = self.answer(messages, _PROBE).partition(_PROBE)
        return before, after

    def state(self) -> dict[str, Any]:
        """Return what rendering depends on, as JSON: the template and the special tokens."""
        return {"template": self.template, "tokens": self._tokens}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChatTemplate) and self.state() == other.state()

    def __hash__(self) -> int:
        return hash(self.template)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sandbox": None}

    def _rendered(self, *chats: tuple[Chat, bool]) -> list[str]:
        """Render chats, each with whether the assistant's next turn is asked for."""
        for messages, _ in chats:
            if not messages:
                raise self._error("a chat without messages cannot be rendered")
        requests = [(_as_dicts(messages), asked) for messages, asked in chats]
        with_media = [index for index, (messages, _) in enumerate(chats) if any(turn.media for turn in messages)]
        bare = [(_as_dicts(_without_media(chats[index][0])), chats[index][1]) for index in with_media]
        if self._sandbox is None:
            self._sandbox = _shared_sandbox()
        try:
            texts = self._sandbox.render(self._key, self.state(), requests + bare)
        except _Refused as error:
            raise self._refused(str(error), chats[0][0], media=bool(with_media)) from None
        except _Stopped as error:
            do = "do not use this model, or take one whose chat template you know"
            raise self._error("the chat template was stopped, and is not run again", came=str(error), do=do) from None
        for index, text in zip(with_media, texts[len(chats) :], strict=True):
            if texts[index] == text:
                what = "the chat template writes nothing for an image or a sound of the messages"
                raise self._error(what, do="put it into a column of its own, or leave it out of the chat")
        if "" in texts:
            raise self._error("the chat template writes nothing", came=f"messages of {_roles(chats[0][0])}")
        return texts[: len(chats)]

    def _refused(self, why: str, messages: Chat, *, media: bool) -> BackboneError:
        what, do = "the chat template fails", "take a model whose chat template works"
        if why.startswith("TemplateError"):  # raised by the template itself, on purpose
            what, do = "the chat template refuses the messages", "check the messages' roles and order"
        elif media:
            do = "put images and sounds into columns of their own, if the template has no place for them"
        return self._error(what, came=f"{why}, for messages of {_roles(messages)}", do=do)

    def _error(self, what: str, **parts: str) -> BackboneError:
        return BackboneError(what, **parts, file=self.where)  # type: ignore[arg-type]


_PROBE = "Yes, I think that is right."


def _as_dicts(messages: Chat) -> list[dict[str, Any]]:
    """Return messages as templates expect them; of images and sounds they see that there is one."""
    return [{"role": message.role, "content": _content(message)} for message in messages]


def _content(message: Message) -> Any:
    if isinstance(message.content, str) or not message.media:
        return message.text
    return [
        {"type": "text", "text": block.value} if block.type == "text" else {"type": block.type}
        for block in message.content
    ]


def _without_media(messages: Chat) -> Chat:
    """Return messages without their images and sounds, in blocks, as templates may write blocks in another way."""
    return [
        message
        if isinstance(message.content, str)
        else replace(message, content=tuple(block for block in message.content if block.type == "text"))
        for message in messages
    ]


def _roles(messages: Chat) -> str:
    roles = [message.role for message in messages[:6]]
    return ", ".join(roles) + (f" and {len(messages) - 6} more" if len(messages) > 6 else "")


class _Refused(Exception):
    """The template raised an error for these messages; its argument is the reason."""


class _Stopped(Exception):
    """The process ended or was ended, for lack of time or memory; its argument is the reason."""


class _Sandbox:
    """A process that renders templates, started when it is first needed, ended with this object."""

    def __init__(self) -> None:
        self._stopped: dict[str, str] = {}
        self.forget()
        _sandboxes.add(self)

    def forget(self) -> None:
        """Leave the process to the process that started it, of which this one is a fork."""
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._known: set[str] = set()

    def render(self, key: str, program: dict[str, Any], chats: list[tuple[list[dict[str, Any]], bool]]) -> list[str]:
        """Render chats.

        Args:
            key: tells templates apart.
            program: `ChatTemplate.state()`.
            chats: messages, and whether the assistant's next turn is asked for.

        Raises:
            _Refused, _Stopped
        """
        with self._lock:
            if key in self._stopped:
                raise _Stopped(self._stopped[key])
            if self._connection is None:
                self._connection = self._start()
            request = json.dumps({"key": key, "chats": chats, **({} if key in self._known else program)}).encode()
            self._known.add(key)
            try:
                answer = _exchange(self._connection, request, len(chats))
            except (OSError, EOFError, ValueError) as error:
                self._finalize()
                self._connection = None
                self._stopped[key] = _why_ended(self._process.returncode, error)
                raise _Stopped(self._stopped[key]) from None
        if "error" in answer:
            raise _Refused(answer["error"])
        return list(map(str, answer["texts"]))

    def _start(self) -> Connection:
        ours, theirs = socket.socketpair()
        limits = {"seconds": SECONDS, "memory": MEMORY, "chars": MAX_WRITTEN, "growth": GROWTH}
        script = Path(__file__).with_name("template_worker.py")
        with theirs:
            # -P: this folder's modules are not to be taken for others of their names. A session of its own: Ctrl-C is
            # for this process to handle.
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(script), str(theirs.fileno()), json.dumps(limits)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        connection = Connection(ours.detach())
        self._finalize = weakref.finalize(self, _end, self._process, connection, os.getpid())
        self._known = set()
        return connection


def _exchange(connection: Connection, request: bytes, num: int) -> dict[str, Any]:
    """Send a request for `num` chats and return the answer."""
    connection.send_bytes(request)
    if not connection.poll(PATIENCE):
        raise TimeoutError
    limit = 12 * (MAX_WRITTEN * num + GROWTH * len(request))  # JSON has up to 12 bytes for a character
    answer = json.loads(connection.recv_bytes(limit))
    if not isinstance(answer, dict):
        raise ValueError
    return answer


def _why_ended(code: int | None, error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer in {PATIENCE:g} seconds"
    if code == -signal.SIGPROF:
        return f"one chat took more than {SECONDS:g} seconds of processor time"
    return f"its process ended with the exit status {code}"


def _end(process: subprocess.Popen[bytes], connection: Connection, owner: int) -> None:
    connection.close()
    if os.getpid() != owner:
        return
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1)
    if process.returncode is None:
        process.kill()
        process.wait()


_sandboxes: weakref.WeakSet[_Sandbox] = weakref.WeakSet()
_sharing = threading.Lock()


def _shared_sandbox() -> _Sandbox:
    """Return this process's sandbox, a new one if no template holds one."""
    with _sharing:
        return next(iter(_sandboxes), None) or _Sandbox()


def _after_fork() -> None:
    global _sharing
    _sharing = threading.Lock()
    for sandbox in list(_sandboxes):
        sandbox.forget()


os.register_at_fork(after_in_child=_after_fork)
