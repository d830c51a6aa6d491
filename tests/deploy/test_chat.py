"""Chats with a tiny model: the turns that it reads, what is forgotten, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import fusetune as ft
from fusetune.backbones.load_language import load_language
from fusetune.cli.main import app
from fusetune.deploy import chat as chats
from fusetune.deploy.chat import ChatOptions, ChatSession
from fusetune.errors import ConfigError, UserError
from fusetune.modalities.prompt import PromptModality
from fusetune.types import Message

MARKS = "{'system': 'w1', 'user': 'w2', 'assistant': 'w3'}[m.role]"
TEMPLATE = (
    "{% for m in messages %}{{ " + MARKS + " ~ ' ' ~ m.content ~ ' [SEP] ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'w3 ' }}{% endif %}"
)
SHORT = ChatOptions(max_tokens=6)


@pytest.fixture(scope="module")
def talker(tiny: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a chat template, whose answers depend on what it reads."""
    folder: Path = tmp_path_factory.mktemp("talker") / "model"
    shutil.copytree(tiny("llama_writer"), folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    model: Any = load_language(str(folder)).model
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_process(talker: Path) -> Iterator[None]:
    """A chat that keeps the process that renders templates for the whole module."""
    kept = ChatSession.of_pretrained(str(talker), SHORT)
    yield
    del kept


def say(session: ChatSession, text: str) -> str:
    return "".join(session.reply(text))


def test_answers_are_those_of_transformers_to_the_whole_chat(talker: Path) -> None:
    session = ChatSession.of_pretrained(str(talker), ChatOptions(system="w9", max_tokens=6))
    language, messages = session.language, [Message("system", "w9")]
    for text in ("w4 w5", "w6", "w7 w8"):
        messages.append(Message("user", text))
        marks = {"system": "w1", "user": "w2", "assistant": "w3"}
        prompt = " ".join(f"{marks[message.role]} {message.text} [SEP]" for message in messages)
        ids = torch.tensor([language.encode(f"{prompt} w3 ")])
        found: Any = language.model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=6,
            do_sample=False,
            eos_token_id=language.end_ids,
            pad_token_id=0,
        )
        expected = language.decode(found[0, ids.shape[1] :].tolist()).strip()
        assert say(session, text) == expected and expected
        messages.append(Message("assistant", expected))
    assert session.conversation is not None and session.conversation.messages == messages


def test_early_turns_are_forgotten_and_too_long_messages_refused(talker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chats, "MAX_TOKENS", 20)
    session = ChatSession.of_pretrained(str(talker), SHORT)
    assert session.conversation is not None
    for number in range(4):
        say(session, f"w{number + 4} w4 w4")
    assert session.conversation.num_forgotten > 0
    assert session.conversation.messages[0].role == "user"
    before = list(session.conversation.messages)
    with pytest.raises(UserError, match="too long"):
        say(session, "w5 " * 30)
    assert session.conversation.messages == before
    session.reset()
    assert session.conversation.messages == []


def test_an_answer_that_is_cut_short_is_kept_as_it_is(talker: Path) -> None:
    session = ChatSession.of_pretrained(str(talker), ChatOptions(max_tokens=20))
    whole = say(session, "w4")
    session.reset()
    pieces = session.reply("w4")
    first = next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert session.conversation is not None and whole.startswith(first) and first != whole
    assert session.conversation.messages == [Message("user", "w4"), Message("assistant", first)]


def test_draws_depend_on_the_seed_and_the_turn(talker: Path) -> None:
    def answers(seed: int) -> list[str]:
        session = ChatSession.of_pretrained(str(talker), ChatOptions(temperature=1.0, seed=seed, max_tokens=6))
        return [(session.reset(), say(session, "w4"))[1] for _ in range(4)]  # type: ignore[func-returns-value]

    assert answers(0) == answers(0) != answers(1)
    assert len(set(answers(0))) > 1


@pytest.mark.parametrize("name", ["llama_writer", "t5_writer"])
def test_without_a_template_each_message_stands_alone(name: str, tiny: Callable[[str], str]) -> None:
    session = ChatSession.of_pretrained(tiny(name), SHORT)
    assert session.conversation is None
    assert say(session, "w4 w5") == say(session, "w4 w5")
    with pytest.raises(UserError, match="too long"):
        say(session, "w5 " * 3000)
    with pytest.raises(ConfigError, match="needs a chat template"):
        ChatSession.of_pretrained(tiny(name), ChatOptions(system="w1"))


@pytest.fixture(scope="module")
def run(talker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model tuned on prompts of two columns."""
    folder: Path = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    rows = [{"tone": f"w{30 + n % 4} w4", "ask": " ".join(f"w{k}" for k in rng.integers(4, 20, 3))} for n in range(40)]
    (folder / "rows.jsonl").write_text(
        "\n".join(json.dumps({**row, "out": " ".join(row["ask"].split()[::-1])}) for row in rows)
    )
    settings = ["tasks.out=generate", f"text={talker}", "prompt.template=w20 {ask} w21 {tone}", "prompt.system=w9"]
    settings += [
        "trainer.epochs=1",
        "report.alone=none",
        "report.bootstrap=0",
        "trainer.trackers=[]",
        "generation.val_rows=2",
    ]
    ft.fit(str(folder / "rows.jsonl"), target="out", out=str(folder / "model"), overrides=settings)
    return folder / "model"


def test_a_tuned_model_reads_messages_as_it_was_tuned(run: Path) -> None:
    session = ChatSession.of_bundle(ft.load(run).bundle, SHORT, {"tone": "w30"})
    say(session, "w5")
    assert session.conversation is not None
    assert session.conversation.messages[:2] == [Message("system", "w9"), Message("user", "w20 w5 w21 w30")]
    other = ChatSession.of_bundle(ft.load(run).bundle, ChatOptions(system="w8"), {"tone": "w30"})
    say(other, "w5")
    assert other.conversation is not None and other.conversation.messages[0] == Message("system", "w8")


def test_a_tuned_model_offers_chats(run: Path) -> None:
    tuned, given = ft.load(run), {"tone": "w30"}
    session = tuned.chat(given=given, max_tokens=6)
    assert say(session, "w5") == say(ChatSession.of_bundle(tuned.bundle, SHORT, given), "w5")


def test_columns_of_the_prompt_are_checked(run: Path) -> None:
    bundle = ft.load(run).bundle
    for given, why in [
        ({}, "--set ask=|--set tone="),
        ({"tune": "a"}, "tone"),
        ({"tone": "a", "ask": "b"}, "leave one"),
    ]:
        with pytest.raises(ConfigError, match=why):
            ChatSession.of_bundle(bundle, SHORT, given)


def test_a_model_tuned_on_chats_reads_messages_as_they_are(talker: Path) -> None:
    language = load_language(str(talker))
    prompt = PromptModality("prompt", backbone=language, template="", join=["turns"], messages="turns")
    assert chats._filled(prompt, {})("w4 {w5}") == "w4 {w5}"
    with pytest.raises(ConfigError, match="leave --set out"):
        chats._filled(prompt, {"turns": "w4"})


class TestVerb:
    def invoke(self, *arguments: str, text: str, code: int = 0) -> Any:
        done = CliRunner().invoke(app, ["chat", *arguments], input=text)
        assert done.exit_code == code, done.output
        return done

    def test_pieces_are_the_answer(self, talker: Path) -> None:
        expected = say(ChatSession.of_pretrained(str(talker), SHORT), "w4 w5")
        assert self.invoke(str(talker), "--max-tokens", "6", text="w4 w5\n").stdout == expected + "\n"

    def test_json_lines_and_commands(self, run: Path) -> None:
        text = "w5\nw6\n\n/reset\nw5\n" + "w5 " * 200 + "\n/quit\nw7\n"
        done = self.invoke(str(run), "--set", "tone=w30", "--json", text=text)
        first, second, again, long = map(json.loads, done.stdout.splitlines())
        assert (first["message"], first["error"]) == ("w5", None) and second["message"] == "w6"
        assert again == first, "what was said is forgotten"
        assert "too long" in long["error"] and not long["answer"]

    def test_mistakes(self, run: Path, tmp_path: Path) -> None:
        assert "--set" in self.invoke(str(run), text="", code=2).stderr
        assert "COLUMN=VALUE" in self.invoke(str(run), "--set", "tone", text="", code=2).stderr
        assert "no backbone folder" in self.invoke(str(tmp_path / "lost"), text="", code=2).stderr
