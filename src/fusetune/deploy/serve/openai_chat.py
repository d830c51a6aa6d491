"""OpenAI's `/v1/chat/completions`, with streams of server-sent events, for models that write."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fusetune.deploy.chat import ChatSession
from fusetune.deploy.serve.bodies import json_object
from fusetune.deploy.serve.loaded import Loaded
from fusetune.deploy.serve.problems import Problem
from fusetune.deploy.serve.service import Service
from fusetune.deploy.serve.strict_json import dump
from fusetune.deploy.serve.web import Request, Response, StreamingResponse, json_response
from fusetune.types import Message

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_IGNORED = ("user", "metadata", "store", "parallel_tool_calls", "service_tier")
"""Parameters without an influence on the answer."""
_NEUTRAL = {"n": 1, "logprobs": False, "presence_penalty": 0, "frequency_penalty": 0, "tools": [], "logit_bias": {}}
"""Parameters that are read with this value alone."""
_GENERATION = {"temperature": float, "top_p": float, "seed": int, "max_tokens": int, "max_completion_tokens": int}


@dataclass
class ChatRequest:
    """A request for an answer.

    Attributes:
        system: the text of the system message; None for that of the tuning.
        history: messages before the last.
        text: the user's last message.
        columns: texts of the prompt's other columns.
        generation: settings of how the answer is written.
        stream: whether it is sent piece by piece.
        usage: whether a stream ends with the numbers of tokens.
    """

    system: str | None
    history: list[Message]
    text: str
    columns: dict[str, str] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    stream: bool = False
    usage: bool = False

    @classmethod
    def of(cls, body: Mapping[str, Any], *, chars: int) -> ChatRequest:
        """Return the request that a body has.

        Raises:
            Problem: 422, it is another; 413, a message is longer than `chars` characters.
        """
        messages = _messages(body.get("messages"), chars)
        opening = [message for message in messages if message.role == "system"]
        rest = messages[len(opening) :]
        if any(message.role == "system" for message in rest) or not rest or rest[-1].role != "user":
            raise _wrong("messages are those of the system first, and the last is the user's")
        system = "\n".join(message.text for message in opening) if opening else None
        stream, options = body.get("stream") or False, body.get("stream_options") or {}
        if not isinstance(stream, bool) or not isinstance(options, dict):
            raise _wrong("stream is true or false, and stream_options an object")
        columns = body.get("columns") or {}
        if not isinstance(columns, dict) or not all(isinstance(text, str) for text in columns.values()):
            raise _wrong("columns are texts by the name of their column")
        usage = options.get("include_usage") is True
        return cls(system, rest[:-1], rest[-1].text, columns, _generation(body), stream, usage)


class Answer:
    """An answer while it is written, by the worker's thread."""

    def __init__(self, model: Loaded, asked: ChatRequest) -> None:
        self.model, self.asked = model, asked
        self.session: ChatSession | None = None

    def __call__(self) -> Iterator[str]:
        """Return the pieces of the answer.

        Raises:
            UserError: the request does not go with the model.
        """
        asked = self.asked
        session = self.model.tuned.chat(system=asked.system, given=asked.columns, **asked.generation)
        if asked.history:
            session.recall(asked.history)
        self.session = session
        return session.reply(asked.text)

    @property
    def finish(self) -> str:
        """Why the answer ended, in OpenAI's words."""
        return "length" if self.session is not None and self.session.was_cut else "stop"

    @property
    def usage(self) -> dict[str, int]:
        """The numbers of tokens."""
        read = 0 if self.session is None else self.session.num_read
        written = 0 if self.session is None else len(self.session.written)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


async def chat_completions(request: Request, service: Service) -> Response:
    """Return the model's answer to the messages of a chat."""
    body = await json_object(request, service.options.limits)
    name = body.get("model")
    if name is not None and not isinstance(name, str):
        raise _wrong("model is a text")
    model = service.model(name)
    if not model.writes:
        raise _wrong("this model writes no text; see /predict and /v1/embeddings")
    asked = ChatRequest.of(body, chars=service.options.limits.chars)
    request.state.log = {"rows": 1, "version": model.version}
    answer = Answer(model, asked)
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model.name}
    pieces = service.write(answer)
    first = await anext(pieces, None)  # what is wrong with the request is known before a stream begins
    if asked.stream:
        events = _events(head, answer, first, pieces)
        return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
    text = (first or "") + "".join([piece async for piece in pieces])
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": answer.finish}
    return json_response({**head, "object": "chat.completion", "choices": [choice], "usage": answer.usage})


async def _events(
    head: Mapping[str, Any], answer: Answer, first: str | None, pieces: AsyncIterator[str]
) -> AsyncIterator[bytes]:
    """Yield the server-sent events of an answer: a chunk a piece, why it ended, and the end."""

    def event(delta: Mapping[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return _data({**head, "object": "chat.completion.chunk", "choices": [choice]})

    yield event({"role": "assistant", "content": first or ""})
    try:
        async for piece in pieces:
            yield event({"content": piece})
    except Problem as problem:
        yield _data(problem.body)
    else:
        yield event({}, answer.finish)
        if answer.asked.usage:
            yield _data({**head, "object": "chat.completion.chunk", "choices": [], "usage": answer.usage})
    yield b"data: [DONE]\n\n"


def _data(value: Any) -> bytes:
    return b"data: " + dump(value) + b"\n\n"


def _messages(value: Any, chars: int) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise _wrong("messages is a list of messages, {role, content}")
    messages = []
    for number, entry in enumerate(value):
        role = _ROLES.get(str(entry.get("role"))) if isinstance(entry, dict) else None
        text = _content(entry.get("content")) if isinstance(entry, dict) else None
        if role is None or text is None:
            raise _wrong(f"message {number} is none of {', '.join(_ROLES)} with a text as its content")
        messages.append(Message(role, text))
    if sum(len(message.text) for message in messages) > chars:
        raise Problem(413, "too_large", f"the messages have more than {chars:,} characters")
    return messages


def _content(value: Any) -> str | None:
    """Return a message's text, which may be in parts; None for anything else."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return None
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in value]
    return "".join(map(str, texts)) if texts and all(isinstance(text, str) for text in texts) else None


def _generation(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's settings of how the answer is written, by their names in `GenerationConfig`.

    Raises:
        Problem: 422, one is of another type, or would have an effect that there is not.
    """
    known = ("model", "messages", "stream", "stream_options", "columns", "stop", "response_format")
    settings: dict[str, Any] = {}
    for name, value in body.items():
        if name in known or name in _IGNORED or value is None:
            continue
        if name in _NEUTRAL:
            if value != _NEUTRAL[name]:
                raise _wrong(f"{name} is read with the value {_NEUTRAL[name]!r} alone")
        elif name in _GENERATION:
            wanted = _GENERATION[name]
            if isinstance(value, bool) or not isinstance(value, int if wanted is int else int | float):
                raise _wrong(f"{name} is no {'whole number' if wanted is int else 'number'}")
            settings["max_tokens" if name == "max_completion_tokens" else name] = value
        else:
            raise _wrong(f"there is no parameter {name[:80]!a}")
    if (stop := body.get("stop")) is not None:
        texts: Sequence[Any] = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise _wrong("stop is a text or a list of texts")
        settings["stop"] = list(texts)
    return settings | _format(body.get("response_format"))


def _format(value: Any) -> dict[str, Any]:
    """Return the setting of a `response_format`."""
    kind = value.get("type") if isinstance(value, dict) else None
    if value is None or kind == "text":
        return {}
    schema = value.get("json_schema") if kind == "json_schema" else None
    if isinstance(schema, dict) and isinstance(schema.get("schema"), dict):
        return {"json_schema": schema["schema"]}
    raise _wrong('response_format is {"type": "text"} or {"type": "json_schema", "json_schema": {"schema": {...}}}')


def _wrong(message: str) -> Problem:
    return Problem(422, "invalid_request", message)
