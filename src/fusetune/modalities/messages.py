"""Chat cells: the forms that chats are written in, as lists of `Message`.

    OpenAI     [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}]
               or {"messages": [...]}; content may be blocks: {"type": "text", ...}, {"type": "image_url", ...}
    ShareGPT   [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi!"}]
               or {"conversations": [...], "system": "Be kind."}

A cell is such a list or object, or its JSON. Calls of tools are refused by name, as they cannot be rendered faithfully.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fusetune.errors import BadCell, shown
from fusetune.modalities.detection import Detection
from fusetune.security.untrusted import parse_json
from fusetune.types import Block, Message

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatbot", "chatgpt"), "assistant"),
}
"""The roles by the names that they have in the forms."""
TOOL_ROLES = {"tool", "function", "function_call", "function_response", "tool_call", "tool_response", "observation"}
TOOL_KEYS = ("tool_calls", "function_call", "tool_call_id")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
LISTS = ("messages", "conversations", "conversation")
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value", "text")
MAX_MESSAGES = 10_000
MIN_SHARE = 0.95
"""The least share of a sample's cells that must be chats for the column to be one."""

_TEXTS = ("text", "input_text", "output_text")
_MEDIA = {
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "audio": "audio",
    "audio_url": "audio",
    "input_audio": "audio",
}


class _Why(Exception):
    """Why a cell is no chat; its arguments are the reason and what to do."""


def parse_messages(cell: Any, *, row: int, column: str) -> list[Message]:
    """Return a cell's messages.

    Args:
        cell: in a form of this module's docstring.
        row, column: for errors.

    Raises:
        BadCell: the cell is in none of the forms, or a message has no role, a role that there is not, no content, or
            what cannot be rendered: calls of tools, reasoning beside the content, unknown types of blocks.

    Example:
        >>> parse_messages('[{"from": "human", "value": "Hello"}]', row=0, column="chat")
        [Message(role='user', content='Hello')]
    """
    try:
        return _parse(cell)
    except _Why as error:
        why, do = error.args
        raise BadCell(row=row, column=column, value=cell, why=why, do=do) from None


def last_turn(messages: Sequence[Message], *, row: int, column: str) -> tuple[list[Message], str]:
    """Return the messages before the last one, and the text of the last one, which the assistant must have written.

    Args:
        messages: of a chat.
        row, column: for errors.

    Raises:
        BadCell: nothing could be learned from the chat, or not told from what was before: the last message is not the
            assistant's, follows another of the assistant's or no user's, or has images or sounds.
    """
    *before, last = messages or [Message("user", "")]
    why = ""
    if last.role != "assistant":
        why = f"the chat ends with a message of the {last.role}, so there is no answer to learn from"
    elif last.media:
        why = f"the assistant's last message has an {last.media[0].type}, and only texts are written"
    elif not any(message.role == "user" for message in before):
        why = "no message of the user stands before the assistant's last one"
    elif before[-1].role == "assistant":
        why = "the last two messages are both the assistant's, so the last one answers nothing"
    if why:
        do = "leave out what follows the last answer, or the row"
        raise BadCell(row=row, column=column, value=[_as_dict(message) for message in messages], why=why, do=do)
    return before, last.text


def transcript(messages: Sequence[Message]) -> str:
    """Return messages as one text, for models that read a chat as text: a line each, "User: Hello".

    Images and sounds are named in brackets in their place.
    """
    return "\n".join(f"{message.role.capitalize()}: {_named(message)}" for message in messages)


def chat_text(cell: Any) -> str | None:
    """Return a cell's `transcript` if it is a chat, else None."""
    messages = _messages_or_none(cell)
    return None if messages is None else transcript(messages)


def is_chat(values: Sequence[Any]) -> Detection:
    """Rate how well a sample of a column's cells fits the kind "chat".

    Args:
        values: cells of the table, none missing.
    """
    chats = [messages for value in values if (messages := _messages_or_none(value))]
    share = len(chats) / len(values) if len(values) else 0.0
    if share < MIN_SHARE:
        return Detection(0.0, f"{share:.0%} of the sampled cells are chats")
    turns = sum(map(len, chats)) / len(chats)
    return Detection(0.99, f"chats with {turns:.1f} messages on average, in {len(chats)} of {len(values)} cells")


def _messages_or_none(value: Any) -> list[Message] | None:
    try:
        return _parse(value)
    except _Why:
        return None


def _named(message: Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return " ".join(block.value if block.type == "text" else f"({block.type})" for block in message.content)


def _as_dict(message: Message) -> dict[str, Any]:
    content = message.content
    blocks = (
        content if isinstance(content, str) else [{"type": block.type, block.type: block.value} for block in content]
    )
    return {"role": message.role, "content": blocks}


def _parse(cell: Any) -> list[Message]:
    chat = _decoded(cell)
    opening: list[Message] = []
    if isinstance(chat, Mapping):
        chat, opening = _listed(chat)
    if not isinstance(chat, list | tuple):
        raise _Why(f"it is no list of messages, but {_kind(chat)}", _FORM)
    if not chat:
        raise _Why("the list of messages is empty", "leave the cell empty, or the row out")
    if len(chat) > MAX_MESSAGES:
        raise _Why(f"it has {len(chat):,} messages, and at most {MAX_MESSAGES:,} are read", "cut it into several rows")
    messages = opening + [_message(message, place) for place, message in enumerate(chat, 1)]
    if all(message.role == "system" for message in messages):
        raise _Why("it has a system message only", "leave the row out")
    if _is_unweighted(chat[-1]):
        raise _Why("its last message has the weight 0, so nothing would be learned from it", "leave the row out")
    return messages


_FORM = 'write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'


def _decoded(cell: Any) -> Any:
    """Return a cell's list or object, decoded if it is JSON."""
    if hasattr(cell, "tolist"):  # of NumPy
        cell = cell.tolist()
    if not isinstance(cell, str):
        return cell
    if cell.lstrip()[:1] not in ("[", "{"):
        raise _Why("it is a text and no chat", _FORM)
    try:
        return parse_json(cell)
    except ValueError as error:
        raise _Why(f"it is no JSON: {error}", "write it with a JSON library; Python's repr is no JSON") from None


def _listed(chat: Mapping[str, Any]) -> tuple[Any, list[Message]]:
    """Return an object's list of messages, and the system message beside it, if any."""
    names = [name for name in LISTS if name in chat]
    if not names:
        keys = ", ".join(map(str, list(chat)[:8]))
        raise _Why(f"the object has no list of messages, only {keys or 'nothing'}", f"name the list {LISTS[0]}")
    if tools := [name for name in ("tools", "functions") if chat.get(name)]:
        raise _Why(f"it has {tools[0]}, and calls of tools cannot be rendered", "leave the row out")
    system = chat.get("system")
    if system is not None and not isinstance(system, str):
        raise _Why(f"its system message is no text, but {_kind(system)}", _FORM)
    return chat[names[0]], [Message("system", system)] if system else []


def _message(message: Any, place: int) -> Message:
    """Return the message at a place, counted from 1."""
    if not isinstance(message, Mapping):
        raise _Why(f"message {place} is no object with a role and a content, but {_kind(message)}", _FORM)
    role = _role(message, place)
    if calls := [key for key in TOOL_KEYS if message.get(key)]:
        raise _Why(f"message {place} has {calls[0]}, and calls of tools cannot be rendered", "leave the row out")
    if thoughts := [key for key in REASONING_KEYS if message.get(key)]:
        do = "put it into the content as the model is to write it, or leave it out"
        raise _Why(f"message {place} has {thoughts[0]}, which is not read", do)
    content = next((message[key] for key in CONTENT_KEYS if message.get(key) is not None), None)
    if content is None:
        raise _Why(f"message {place} ({role}) has no content", _FORM)
    blocks = _content(content, f"message {place} ({role})")
    parsed = Message(role, blocks, learned=not _is_unweighted(message))
    if role != "system" and not parsed.text.strip() and not parsed.media:
        raise _Why(f"message {place} ({role}) is empty", "leave the message out, or the row")
    return parsed


def _role(message: Mapping[str, Any], place: int) -> str:
    role = next((message[key] for key in ROLE_KEYS if message.get(key) is not None), None)
    if role is None:
        raise _Why(f"message {place} has no role", _FORM)
    name = role.strip().casefold() if isinstance(role, str) else ""
    if name in TOOL_ROLES:
        do = "leave the row out, or write what the tool said as a text of the user's"
        raise _Why(f"message {place} is of a tool ({role}), and calls of tools cannot be rendered", do)
    if name not in ROLES:
        raise _Why(f"message {place} has the role {shown(role, 40)}, which there is not", f"roles: {', '.join(ROLES)}")
    return ROLES[name]


def _is_unweighted(message: Mapping[str, Any]) -> bool:
    """Return whether a message is marked as not to be learned, as OpenAI's fine-tuning does."""
    return message.get("weight") in (0, 0.0) and message.get("weight") is not False


def _content(content: Any, where: str) -> str | tuple[Block, ...]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise _Why(f"the content of {where} is no text, but {_kind(content)}", "write it as a text")
    return tuple(_block(block, where) for block in content)


def _block(block: Any, where: str) -> Block:
    if isinstance(block, str):
        return Block("text", block)
    kind = block.get("type") if isinstance(block, Mapping) else None
    if not isinstance(kind, str):
        raise _Why(f"a block of {where} has no type", 'write {"type": "text", "text": "..."}')
    if kind in _TEXTS:
        if not isinstance(block.get("text"), str):
            raise _Why(f"a block of {where} has no text", 'write {"type": "text", "text": "..."}')
        return Block("text", block["text"])
    if kind not in _MEDIA:
        raise _Why(
            f"a block of {where} is of the type {shown(kind, 40)}, which is not read", "write a text in its place"
        )
    value = _source(block, kind)
    if not value:
        raise _Why(f"a block of {where} has the type {kind} and no path, URL or data", f"give it: {_EXAMPLE}")
    return Block(_MEDIA[kind], value)


_EXAMPLE = '{"type": "image", "path": "a.png"}'


def _source(block: Mapping[str, Any], kind: str) -> str | None:
    """Return a block's path, URL or `data:` URL, or None.

    Args:
        block: {"type": "image_url", "image_url": {"url": ...}}, {"type": "input_audio", "input_audio": {"data": ...,
            "format": ...}}, {"type": "image", "path": ...}, or {"type": "image", "source": {"media_type": ..., "data":
            ...}}.
        kind: its type.
    """
    keys = (kind, f"{_MEDIA[kind]}_url", "source", "url", "path", "base64", "data")
    value = next((block[key] for key in keys if block.get(key)), None)
    if not isinstance(value, Mapping):
        return value if isinstance(value, str) else None
    if isinstance(value.get("data"), str):
        media = value.get("media_type") or f"{_MEDIA[kind]}/{value.get('format', '')}".rstrip("/")
        return f"data:{media};base64,{value['data']}"
    named = next((value[key] for key in ("url", "path") if value.get(key)), None)
    return named if isinstance(named, str) else None


def _kind(value: Any) -> str:
    names = {"dict": "an object", "list": "a list", "str": "a text", "NoneType": "nothing", "bool": "true or false"}
    numbers = {"int": "a number", "float": "a number"}
    return (names | numbers).get(type(value).__name__, f"a {type(value).__name__}")
