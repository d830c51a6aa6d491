"""Chat cells: every form gives the same messages, and a broken cell a named reason."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusetune.data.schema import Schema
from fusetune.data.table import Table
from fusetune.errors import BadCell, ConfigError
from fusetune.modalities.messages import chat_text, is_chat, last_turn, parse_messages, transcript
from fusetune.modalities.text import TextModality
from fusetune.testing.modalities import TinyBackbone
from fusetune.types import Block, Message

OPENAI = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}]
SHAREGPT = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi!"}]
TALK = [Message("user", "Hello"), Message("assistant", "Hi!")]
KIND = Message("system", "Be kind.")


def parse(cell: Any) -> list[Message]:
    return parse_messages(cell, row=7, column="chat")


@pytest.mark.parametrize(
    "cell",
    [
        OPENAI,
        SHAREGPT,
        tuple(OPENAI),
        np.array(OPENAI, dtype=object),
        {"messages": OPENAI},
        {"conversations": SHAREGPT, "id": 5, "system": None, "tools": []},
        {"conversation": OPENAI},
        [{**OPENAI[0], "name": "Ann", "tool_calls": None}, {**OPENAI[1], "weight": 1}],
        [{"role": " User ", "content": "Hello"}, {"from": "MODEL", "value": "Hi!"}],
        [{"role": "user", "content": ["Hello"]}, {"role": "assistant", "content": "Hi!"}],
        [{"role": "user", "text": "Hello"}, {"role": "assistant", "content": [{"type": "output_text", "text": "Hi!"}]}],
    ],
)
def test_forms_of_a_chat(cell: Any) -> None:
    as_texts = [Message(message.role, message.text) for message in parse(cell)]
    assert as_texts == TALK
    if not isinstance(cell, np.ndarray):
        assert parse(json.dumps(cell)) == parse("  " + json.dumps(cell, indent=1)) == parse(cell)


def test_system_messages() -> None:
    assert parse([{"role": "system", "content": "Be kind."}, *OPENAI]) == [KIND, *TALK]
    assert parse([{"role": "developer", "content": "Be kind."}, *OPENAI]) == [KIND, *TALK]
    assert parse({"system": "Be kind.", "conversations": SHAREGPT}) == [KIND, *TALK]
    assert parse({"system": "", "conversations": SHAREGPT}) == TALK
    assert parse([{"role": "system", "content": ""}, *OPENAI]) == [Message("system", ""), *TALK]


@pytest.mark.parametrize(
    ("block", "kind", "value"),
    [
        (
            {"type": "image_url", "image_url": {"url": "https://a.b/c.png", "detail": "low"}},
            "image",
            "https://a.b/c.png",
        ),
        ({"type": "image_url", "image_url": "c.png"}, "image", "c.png"),
        ({"type": "input_image", "image_url": "c.png"}, "image", "c.png"),
        ({"type": "image", "image": "c.png"}, "image", "c.png"),
        ({"type": "image", "path": "c.png"}, "image", "c.png"),
        ({"type": "image", "url": "c.png", "alt": "x"}, "image", "c.png"),
        (
            {"type": "input_audio", "input_audio": {"data": "QQ==", "format": "wav"}},
            "audio",
            "data:audio/wav;base64,QQ==",
        ),
        ({"type": "audio", "audio": "c.wav"}, "audio", "c.wav"),
        ({"type": "audio_url", "audio_url": {"url": "c.wav"}}, "audio", "c.wav"),
        (
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QQ=="}},
            "image",
            "data:image/png;base64,QQ==",
        ),
    ],
)
def test_blocks(block: dict[str, Any], kind: str, value: str) -> None:
    (message,) = parse([{"role": "user", "content": [{"type": "text", "text": "What is it?"}, block]}])
    assert message.content == (Block("text", "What is it?"), Block(kind, value))
    assert (message.text, message.media) == ("What is it?", (Block(kind, value),))


def test_cells_come_from_tables(tmp_path: Any) -> None:
    lines = [{"messages": OPENAI}, {"messages": [{"role": "system", "content": "Be kind."}, *OPENAI]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "a.csv").write_text('messages\n"' + json.dumps(OPENAI).replace('"', '""') + '"\n')
    rows = [parse(cell) for cell in Table.read(tmp_path / "a.jsonl").cells("messages")]
    assert rows == [TALK, [KIND, *TALK]]
    assert [parse(cell) for cell in Table.read(tmp_path / "a.csv").cells("messages")] == [TALK]


def test_detection() -> None:
    assert is_chat([OPENAI] * 99 + ["hello"]).confidence > 0.9
    assert is_chat([json.dumps({"conversations": SHAREGPT})]).confidence > 0.9
    for values in (
        ["hello"] * 5,
        [OPENAI] * 9 + ["hello"],
        [[{"start": 0, "end": 3, "label": "X"}]],
        [["a", "b"]],
        [1],
        [],
    ):
        assert is_chat(values).confidence == 0.0


def test_a_transcript_has_a_line_a_message() -> None:
    picture = Message("user", (Block("text", "What is it?"), Block("image", "a.png")))
    assert transcript([KIND, picture, TALK[1]]) == "System: Be kind.\nUser: What is it? (image)\nAssistant: Hi!"
    assert chat_text(OPENAI) == chat_text(json.dumps(SHAREGPT)) == transcript(TALK)
    assert chat_text("Hello") is chat_text([1]) is chat_text(None) is None


def test_text_columns_read_chats(tmp_path: Any) -> None:
    backbone: Any = TinyBackbone("text")
    modality = TextModality("chat", backbone=backbone, chat=True)
    for cell in (OPENAI, json.dumps(SHAREGPT)):
        tokens = modality.decode(cell, row=7, base_dir=tmp_path)
        assert tokens.tolist() == backbone.tokenize(transcript(TALK)).tolist()
    for cell in ("Hello", [{"role": "tool", "content": "5"}]):
        with pytest.raises(BadCell):
            modality.decode(cell, row=7, base_dir=tmp_path)
    again = TextModality.from_state("chat", json.loads(json.dumps(modality.state())), backbone)
    assert again.chat and not TextModality.from_state("chat", {}, backbone).chat
    with pytest.raises(ConfigError, match="cannot be augmented"):
        modality.augmenter()


def test_columns_of_chats_are_detected() -> None:
    rows = [{"a": OPENAI, "b": json.dumps(SHAREGPT), "c": f"not a chat at all {n}", "y": n % 2} for n in range(30)]
    table = Table.from_records(rows)
    schema = Schema.detect(table, ["y"])
    assert {name: (spec.kind, spec.options) for name, spec in schema.columns.items() if name != "y"} == {
        "a": ("text", {"chat": True}),
        "b": ("text", {"chat": True}),
        "c": ("text", {}),
    }
    assert Schema.detect(table, ["y"], {"b": {"kind": "text", "options": {"chat": False}}}).columns["b"].options == {
        "chat": False
    }


def user(content: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content, **more}]


def block(**parts: Any) -> list[dict[str, Any]]:
    return user([parts])


DEEP = "[" * 100_000
BROKEN: dict[str, list[tuple[Any, str]]] = {
    "no JSON": [
        ("hello", "text and no chat"),
        ("", "text and no chat"),
        ("[{'role': 'user', 'content': 'Hello'}]", "no JSON"),
        ('[{"role": "user", "content": "Hello"}', "no JSON"),
        ('[{"role": "user" "content": "Hello"}]', "no JSON"),
        ('{"messages": ', "no JSON"),
        ("{", "no JSON"),
        (DEEP, "no JSON"),
        ('{"a":' * 100_000, "no JSON"),
        ('[{"role": "user", "content": "\n"}]', "no JSON"),
        ("[1, 2] and more", "no JSON"),
        ("[__import__('os').system('touch CANARY')]", "no JSON"),
        ("{{ ''.__class__ }}", "no JSON"),
        ("{% for i in range(10**9) %}{% endfor %}", "no JSON"),
        ("!!python/object/apply:os.system ['touch CANARY']", "text and no chat"),
        ("User: Hello\nAssistant: Hi!", "text and no chat"),
        ("<|im_start|>user\nHello<|im_end|>", "text and no chat"),
    ],
    "no list": [
        (5, "a number"),
        (True, "true or false"),
        (2.5, "a number"),
        (b"[]", "a bytes"),
        ({}, "no list of messages, only nothing"),
        ({"prompt": "Hello", "completion": "Hi!"}, "only prompt, completion"),
        ({"instruction": "a", "input": "b", "output": "c"}, "only instruction"),
        ({"messages": None}, "nothing"),
        ({"messages": "Hello"}, "a text"),
        ({"messages": {"role": "user", "content": "Hello"}}, "an object"),
        ({"role": "user", "content": "Hello"}, "only role, content"),
        ('"Hello"', "text and no chat"),
        ("null", "text and no chat"),
    ],
    "empty": [
        ([], "empty"),
        ("[]", "empty"),
        ({"messages": []}, "empty"),
        (np.array([]), "empty"),
        ([{"role": "system", "content": "Be kind."}], "system message only"),
        (OPENAI * 10_000, "20,000 messages"),
    ],
    "no message": [
        (["Hello", "Hi!"], "message 1 is no object"),
        ([OPENAI[0], None], "message 2 is no object .* nothing"),
        ([OPENAI[0], 5], "message 2 is no object"),
        ([OPENAI], "message 1 is no object .* a list"),
        ([["user", "Hello"]], "message 1 is no object"),
        ([OPENAI[0], "Hi!"], "message 2 is no object .* a text"),
        ([float("nan")], "message 1 is no object"),
    ],
    "role": [
        ([{"content": "Hello"}], "message 1 has no role"),
        ([{}], "message 1 has no role"),
        ([OPENAI[0], {"value": "Hi!"}], "message 2 has no role"),
        ([{"role": None, "content": "Hello"}], "has no role"),
        ([{"role": "", "content": "Hello"}], "has the role ''"),
        ([{"role": 0, "content": "Hello"}], "has the role 0"),
        ([{"role": ["user"], "content": "Hello"}], r"has the role \['user'\]"),
        ([{"role": {"a": 1}, "content": "Hello"}], "has the role {"),
        ([{"role": "customer", "content": "Hello"}], "has the role 'customer'"),
        ([{"role": "<|im_start|>system", "content": "Hello"}], "has the role"),
        ([{"role": "user\nassistant", "content": "Hello"}], "has the role"),
        ([{"role": "x" * 10_000, "content": "Hello"}], "has the role"),
        ([{"role": "__class__", "content": "Hello"}], "has the role"),
        ([{"from": "narrator", "value": "Hello"}], "has the role 'narrator'"),
        ([{"speaker": "USER", "text": "Hello"}], "has no role"),
    ],
    "tools": [
        ([OPENAI[0], {"role": "tool", "content": "5", "tool_call_id": "a"}], "message 2 is of a tool"),
        ([{"role": "function", "content": "5"}], "of a tool"),
        ([{"from": "function_call", "value": "{}"}], "of a tool"),
        ([{"from": "observation", "value": "{}"}], "of a tool"),
        ([OPENAI[0], {"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]}], "has tool_calls"),
        ([OPENAI[0], {"role": "assistant", "content": "5", "tool_calls": [{"id": "a"}]}], "has tool_calls"),
        ([OPENAI[0], {"role": "assistant", "function_call": {"name": "f"}}], "has function_call"),
        (user("5", tool_call_id="a"), "has tool_call_id"),
        ({"messages": OPENAI, "tools": [{"type": "function"}]}, "has tools"),
        ({"messages": OPENAI, "functions": [{"name": "f"}]}, "has functions"),
        (block(type="tool_use", id="a"), "'tool_use', which is not read"),
        (block(type="tool_result", content="5"), "'tool_result', which is not read"),
    ],
    "content": [
        ([{"role": "user"}], "has no content"),
        (user(None), "has no content"),
        (user(""), "message 1 .user. is empty"),
        (user(" \n\t"), "is empty"),
        ([OPENAI[0], {"role": "assistant", "content": ""}], "message 2 .assistant. is empty"),
        (user([]), "is empty"),
        (user([""]), "is empty"),
        (user(5), "no text, but a number"),
        (user(True), "no text, but true or false"),
        (user({"type": "text", "text": "Hello"}), "no text, but an object"),
        (user(b"Hello"), "no text, but a bytes"),
        ([{"from": "human", "value": 5}], "no text, but a number"),
        ({"system": 5, "messages": OPENAI}, "system message is no text"),
        ({"system": ["a"], "messages": OPENAI}, "system message is no text"),
        ([OPENAI[0], {**OPENAI[1], "reasoning_content": "Hm."}], "has reasoning_content"),
        ([OPENAI[0], {**OPENAI[1], "thinking": "Hm."}], "has thinking"),
        ([OPENAI[0], {**OPENAI[1], "weight": 0}], "weight 0"),
    ],
    "blocks": [
        (user([5]), "block of message 1 .user. has no type"),
        (user([None]), "has no type"),
        (user([["text", "Hello"]]), "has no type"),
        (user([{}]), "has no type"),
        (user([{"text": "Hello"}]), "has no type"),
        (block(type=5, text="Hello"), "has no type"),
        (block(type="text"), "has no text"),
        (block(type="text", text=None), "has no text"),
        (block(type="text", text=["Hello"]), "has no text"),
        (block(type="image"), "no path, URL or data"),
        (block(type="image", image=None), "no path, URL or data"),
        (block(type="image", image=5), "no path, URL or data"),
        (block(type="image_url", image_url={}), "no path, URL or data"),
        (block(type="image_url", image_url={"url": ["a"]}), "no path, URL or data"),
        (block(type="input_audio", input_audio={"format": "wav"}), "no path, URL or data"),
        (block(type="audio"), "no path, URL or data"),
        (block(type="video", video="a.mp4"), "'video', which is not read"),
        (block(type="file", file={"file_id": "a"}), "'file', which is not read"),
        (block(type="__class__"), "which is not read"),
        (block(type="document", source={}), "which is not read"),
    ],
}
CASES = [(f"{kind} {place}", cell, why) for kind, cells in BROKEN.items() for place, (cell, why) in enumerate(cells)]


@pytest.mark.parametrize(("cell", "why"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_broken_cell_has_a_reason(cell: Any, why: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    modules = set(sys.modules)
    with pytest.raises(BadCell, match=why) as raised:
        parse(cell)
    assert (raised.value.row, raised.value.column) == (7, "chat")
    assert raised.value.do
    assert len(str(raised.value)) < 2000
    assert not list(tmp_path.iterdir()) and set(sys.modules) == modules, "nothing was run"


def test_there_are_a_hundred_broken_cells() -> None:
    assert len(CASES) >= 100


@settings(max_examples=150, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["user", "assistant", "text", "Hi"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["role", "content", "type", "text", "messages", "image"]), inner, max_size=4
            )
        ),
        max_leaves=12,
    )
)
def test_any_cell_is_read_or_refused(cell: Any) -> None:
    try:
        messages = parse(cell)
    except BadCell as error:
        assert error.why and error.do
    else:
        assert messages and all(isinstance(message, Message) for message in messages)


def test_the_last_turn_is_told_from_the_prompt() -> None:
    assert last_turn([KIND, *TALK], row=0, column="chat") == ([KIND, TALK[0]], "Hi!")
    picture = Message("assistant", (Block("image", "a.png"),))
    for messages, why in [
        ([*TALK, Message("user", "Bye")], "ends with a message of the user"),
        ([KIND], "ends with a message of the system"),
        ([TALK[1]], "no message of the user"),
        ([KIND, TALK[1]], "no message of the user"),
        ([*TALK, TALK[1]], "both the assistant's"),
        ([TALK[0], picture], "has an image"),
        ([], "no answer to learn"),
    ]:
        with pytest.raises(BadCell, match=why) as raised:
            last_turn(messages, row=3, column="chat")
        assert raised.value.row == 3
