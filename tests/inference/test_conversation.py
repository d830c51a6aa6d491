"""A conversation is cut by whole turns to what the model can read."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fusetune.backbones.templates import ChatTemplate
from fusetune.errors import BackboneError, UserError
from fusetune.inference.conversation import Conversation, last_turns
from fusetune.types import Message

SYSTEM = Message("system", "Be kind.")
STRICT = """{% for m in messages %}{% if m.content == 'rude' %}{{ raise_exception('No.') }}{% endif -%}
{{ m.role[0] ~ m.content }} {% endfor %}{% if add_generation_prompt %}a{% endif %}"""


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str) -> Message:
    return Message("assistant", text)


def conversation(budget: int, system: str = "") -> Conversation:
    template = ChatTemplate(SimpleNamespace(chat_template=STRICT, special_tokens_map={}), where="FOLDER")
    return Conversation(template, lambda text: len(text.split()), budget=budget, system=system)


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        (9, [SYSTEM, user("1"), assistant("2"), assistant("3"), user("4"), assistant("5"), user("6")]),
        (6, [SYSTEM, user("4"), assistant("5"), user("6")]),
        (4, [SYSTEM, user("4"), assistant("5"), user("6")]),
        (3, [SYSTEM, user("6")]),
        (2, [SYSTEM, user("6")]),
    ],
)
def test_whole_turns_are_cut(budget: int, kept: list[Message]) -> None:
    chat = [SYSTEM, user("1"), assistant("2"), assistant("3"), user("4"), assistant("5"), user("6")]
    assert last_turns(chat, len, budget) == kept


def test_a_turn_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"(?s)too long.*at most 1 tokens, with the system message.*Came: 2"):
        last_turns([SYSTEM, user("1"), assistant("2"), user("3")], len, 1)


def test_a_chat_that_the_assistant_begins() -> None:
    assert last_turns([assistant("1"), user("2")], len, 2) == [assistant("1"), user("2")]
    assert last_turns([assistant("1"), user("2")], len, 1) == [user("2")]


def test_a_conversation() -> None:
    talk = conversation(budget=6, system="S")
    assert talk.ask("1") == "sS u1 a"
    talk.add_answer("2")
    assert talk.ask("3") == "sS u1 a2 u3 a"
    talk.add_answer("4")
    assert talk.num_forgotten == 0
    assert talk.ask("5") == "sS u3 a4 u5 a" and talk.num_forgotten == 2
    talk.reset()
    assert talk.ask("6") == "sS u6 a" and talk.num_forgotten == 0


def test_what_is_refused_is_not_remembered() -> None:
    talk = conversation(budget=4)
    talk.ask("1")
    talk.add_answer("2")
    before = list(talk.messages)
    with pytest.raises(UserError, match="too long"):
        talk.ask("many more words than there is room for")
    with pytest.raises(BackboneError, match="No"):
        talk.ask("rude")
    assert talk.messages == before
    talk.ask("3")
    talk.add_answer(" ")
    assert talk.messages == before, "a message without an answer is no turn"
