"""Chat templates: equal to transformers' rendering, and whatever a hostile one does ends in a named error."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from fusetune.backbones import templates
from fusetune.backbones.load_language import load_language
from fusetune.backbones.templates import ChatTemplate
from fusetune.errors import BackboneError
from fusetune.types import Block, Message

CHATML = """{% for message in messages %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""
ALTERNATING = """{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate') }}{% endif %}
{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}
{%- else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"""
THINKING = """{% for m in messages %}{{ '<' + m.role + '>' }}{% if m.role == 'assistant' and loop.last -%}
{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{{ m.content }}</s>{% endfor -%}
{% if add_generation_prompt %}<assistant>{% endif %}"""
PICTURES = """{% for m in messages %}{{ m.role }}:{% if m.content is string %}{{ m.content }}{% else %}
{%- for part in m.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}{% endif %};
{%- endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""
NO_PREFIX = (
    "{% for m in messages %}{{ m.role ~ m.content }}{% endfor %}{% if add_generation_prompt %}<think>{% endif %}"
)

ASKED = [Message("user", "What is 2 + 2?")]
TALK = [Message("user", "Hello"), Message("assistant", "Hi!"), Message("user", "How are you?")]


def tokenizer(template: Any) -> Any:
    made: Any = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"a": 0, "</s>": 1, "<s>": 2}, "a")), eos_token="</s>", bos_token="<s>"
    )
    made.chat_template = template
    return made


def chat_template(template: Any = CHATML) -> ChatTemplate:
    return ChatTemplate(tokenizer(template), where="FOLDER")


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    """A template that keeps the rendering process for the whole module."""
    kept = chat_template()
    kept.prompt(ASKED)
    yield


@pytest.mark.parametrize("messages", [ASKED, TALK], ids=["asked", "talk"])
@pytest.mark.parametrize("template", [CHATML, ALTERNATING, THINKING, PICTURES, templates.PLAIN])
def test_equals_transformers(template: str, messages: list[Message]) -> None:
    own = chat_template(template)
    chat = [{"role": message.role, "content": message.content} for message in messages]
    theirs = own_tokenizer = tokenizer(template)
    asked = own_tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert own.prompt(messages) == asked
    answered = theirs.apply_chat_template([*chat, {"role": "assistant", "content": "Fine."}], tokenize=False)
    assert asked + own.answer(messages, "Fine.") == answered
    assert own.split(messages, "Fine.") == (asked, own.answer(messages, "Fine."))


def test_what_stands_around_an_answer() -> None:
    assert chat_template().turn(ASKED) == ("", "<|im_end|>\n")
    assert chat_template(ALTERNATING).turn(ASKED) == (" ", " </s>")
    assert chat_template(THINKING).turn(ASKED) == ("<think>\n\n</think>\n\n", "</s>")


def test_a_tokenizer_without_a_template_gets_the_plain_one() -> None:
    own = chat_template(None)
    assert not own.stated
    assert own.prompt([Message("system", "Be kind."), *TALK]) == (
        "System: Be kind.\nUser: Hello\nAssistant: Hi!</s>\nUser: How are you?\nAssistant:"
    )
    assert own.answer(TALK, "Well.") == " Well.</s>\n"
    with pytest.raises(BackboneError, match="refuses the messages"):
        own.prompt([Message("user", (Block("image", "a.png"),))])


def test_a_template_whose_answer_does_not_continue_its_prompt_is_refused() -> None:
    with pytest.raises(BackboneError, match="cannot be told from the prompt's"):
        chat_template(NO_PREFIX).answer(ASKED, "4")
    with pytest.raises(BackboneError, match="as it is"):
        chat_template("{% for m in messages %}{{ m.content | upper }}{% endfor %}").answer(ASKED, "four")
    with pytest.raises(BackboneError, match="as it is"):
        chat_template().answer(ASKED, " \n")


def test_a_template_says_no() -> None:
    with pytest.raises(BackboneError, match=r"(?s)FOLDER: .*refuses.*must alternate.*user, user"):
        chat_template(ALTERNATING).prompt([*ASKED, *ASKED])
    with pytest.raises(BackboneError, match="without messages"):
        chat_template().prompt([])


def test_media_are_written_or_refused() -> None:
    picture = Message("user", (Block("text", "What is it?"), Block("image", "a.png")))
    texts = Message("user", (Block("text", "one"), Block("text", "two")))
    assert chat_template(PICTURES).prompt([picture]) == "user:What is it?<image>;assistant:"
    assert "<|im_start|>user\none\ntwo<|im_end|>" in chat_template().prompt([texts])
    with pytest.raises(BackboneError, match="columns of their own"):
        chat_template().prompt([picture])
    silent = "{% for m in messages %}{{ m.role }}{% endfor %}"
    with pytest.raises(BackboneError, match="writes nothing for an image"):
        chat_template(silent).prompt([picture])


def test_today_is_the_same_on_any_day() -> None:
    assert chat_template("{{ strftime_now('%d %b %Y') }}").prompt(ASKED) == "26 Jul 2024"


def test_templates_are_compared_copied_and_pickled() -> None:
    own = chat_template()
    own.prompt(ASKED)
    for other in (copy.deepcopy(own), pickle.loads(pickle.dumps(own)), chat_template()):
        assert other == own and hash(other) == hash(own)
        assert other.prompt(TALK) == own.prompt(TALK)
    assert own != chat_template(THINKING)
    other = tokenizer(CHATML)
    other.eos_token = "<s>"
    assert own != ChatTemplate(other, where="FOLDER")


def test_named_templates() -> None:
    assert chat_template({"default": CHATML, "tool_use": "x"}) == chat_template()
    with pytest.raises(BackboneError, match=r"(?s)none is the default.*tool_use, rag"):
        chat_template({"tool_use": "x", "rag": "y"})
    with pytest.raises(BackboneError, match="is no text"):
        chat_template(5)
    with pytest.raises(BackboneError, match="too long"):
        chat_template("x" * (templates.MAX_TEMPLATE + 1))


DEEP = "(" * 5000 + "1" + ")" * 5000
FAILS = {
    "range": "{% for i in range(10**9) %}x{% endfor %}",
    "product": "{{ 'a' * 10**10 }}",
    "large": "{{ 'a' * 10**7 }}",
    "list": "{{ ([0] * 10**10) | length }}",
    "doubling": "{% set n=namespace(x='ab') %}{% for i in range(60) %}{% set n.x=n.x~n.x %}{% endfor %}{{ n.x }}",
    "printf": "{{ '%10000000000d' % 1 }}",
    "format": "{{ '{:10000000000d}'.format(1) }}",
    "center": "{{ 'a' | center(10**10) }}",
    "batch": "{% for a in messages | batch(10**10, 'x') %}{{ a | length }}{% endfor %}",
    "macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "recursion": "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "brackets": "{{ " + DEEP + " }}",
    "blocks": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "class": "{{ messages.__class__.__base__.__subclasses__() }}",
    "mro": "{{ ''.__class__.__mro__ }}",
    "globals": "{{ strftime_now.__globals__['__builtins__'] }}",
    "popen": "{{ cycler.__init__.__globals__.os.popen('touch CANARY').read() }}",
    "attr": "{{ (''|attr('__class__')).__mro__ }}",
    "namespace": "{% set n=namespace() %}{% set n.__class__='x' %}",
    "change": "{{ messages.append(1) }}",
    "file": "{% include '/etc/passwd' %}",
    "module": "{% import 'os' as os %}{{ os.getcwd() }}",
    "undefined": "{{ foo.bar }}",
    "syntax": "{% for %}",
    "unclosed": "{{ 'a",
    "nothing": "{{ '' }}",
    "spaces": "{# nothing #}",
}


@pytest.mark.parametrize("name", FAILS)
def test_a_hostile_template_fails_by_name(name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BackboneError, match=r"FOLDER: the chat template (fails|writes nothing)"):
        chat_template(FAILS[name]).prompt(ASKED)
    assert not list(tmp_path.iterdir())
    assert chat_template().prompt(ASKED).endswith("assistant\n"), "the process serves other templates"


def test_a_hostile_template_of_a_language_model_is_refused_unless_it_is_not_used(tiny: Any, tmp_path: Any) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny("llama_writer"), folder)
    (folder / "chat_template.jinja").write_text("{{ messages.__class__.__base__ }}")
    language = load_language(str(folder))
    with pytest.raises(BackboneError, match=f"{folder}.*the chat template fails"):
        language.frame("auto", "", ends_in_space=False)
    assert language.frame("no", "", ends_in_space=False).template is None


FOREVER = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
POWER = "{{ 3**(messages | length * 2 * 10**8) % 10 }}"


@pytest.mark.parametrize("loop", [FOREVER, POWER], ids=["jinja", "C"])
def test_a_template_that_does_not_end_is_stopped_and_not_run_again(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "SECONDS", 0.3)
    monkeypatch.setattr(templates, "_sandboxes", set())
    own = chat_template("{% if 'w7' in messages[0].content %}" + loop + "{% endif %}hello")
    assert own.prompt(ASKED) == "hello"
    with pytest.raises(BackboneError, match=r"(?s)stopped.*0\.3 seconds of processor time"):
        own.prompt([Message("user", "w7")])
    began = time.process_time()
    with pytest.raises(BackboneError, match="stopped"):
        own.prompt(ASKED)
    assert time.process_time() - began < 0.2


def test_a_process_that_gives_no_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "PATIENCE", 0.0)
    monkeypatch.setattr(templates, "_sandboxes", set())
    with pytest.raises(BackboneError, match="no answer"):
        chat_template().prompt(ASKED)


def test_the_process_ends_with_the_last_template(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "_sandboxes", templates.weakref.WeakSet())
    own = chat_template()
    own.prompt(ASKED)
    sandbox: Any = own._sandbox
    process = sandbox._process
    assert process.poll() is None
    del own, sandbox
    assert process.poll() is not None


def test_threads_and_forks() -> None:
    own = chat_template()
    expected = own.prompt(TALK)
    written: list[str] = []
    threads = [threading.Thread(target=lambda: written.extend(own.prompt(TALK) for _ in range(20))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert written == [expected] * 80
    child = os.fork()
    if not child:
        status = 1
        try:
            status = int(own.prompt(TALK) != expected)
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert own.prompt(TALK) == expected
