"""The process that renders a chat template for `fusetune.backbones.templates`; run as a script, never imported.

A chat template is a program of whoever made the model's folder. transformers renders it in jinja2's sandbox, which
keeps it from calling Python but lets it run for ever and allocate without bound. Here it has a limit on processor time
and memory, both kept by the operating system, and it can open no file, no socket and start no process.

It imports nothing of fusetune, so that it starts in a second and holds 60 MB. Requests are JSON,
{"key": ..., "chats": [[messages, add_generation_prompt], ...]}, a template's first one with "template" and "tokens";
each is answered by {"texts": [...]} or {"error": reason}.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

TODAY = datetime(2024, 7, 26)
"""What templates that write today's date are given, so that a table has the same prompts on any day. It is the date
that the templates of Llama 3 write where they cannot ask for one."""


WARM_UP = r"""{% macro shout(text, n=2) %}{{ text | upper }}{% endmacro %}{% set ns = namespace(x=1) %}
{%- for m in messages if m.role %}{% set ns.x = ns.x + 1 %}{{ loop.index }}{{ shout(m.role) + '\n\u00e9' + "\"" }}
{%- generation %}{{ m['content'] | trim | replace('H', 'h') | tojson(indent=2) }}{% endgeneration %}{% continue %}
{%- endfor %}{{ strftime_now('%d %B %Y %H:%M') }}{{ '%s' % ns.x }}{{ '{}'.format(1.5) }}{{ dict(a=1) | items | list }}
{{- messages[1:] | map(attribute='role') | join(',') }}{{ lipsum(1) }}{{ 'a' is string }}"""
BROKEN = "{{ raise_exception('no') }}"
"""Rendered before files are out of reach, so that what Python and jinja2 import on first use is there."""


class Calendar(datetime):
    """A `datetime` whose present is `TODAY`."""

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        """Return `TODAY`."""
        return TODAY.replace(tzinfo=tz)


def serve(connection: Connection, limits: dict[str, Any]) -> None:
    """Answer requests until the other end closes."""
    try:
        from jinja2 import TemplateError
        from transformers.utils import chat_template_utils

        chat_template_utils.datetime = Calendar  # type: ignore[attr-defined]
        render: Any = chat_template_utils.render_jinja_template
        for template in (WARM_UP, BROKEN):
            with contextlib.suppress(TemplateError):
                render(conversations=[[{"role": "user", "content": "Hello"}]], chat_template=template)
    except Exception as error:
        connection.recv_bytes()
        connection.send_bytes(_failure(f"transformers cannot render chat templates: {error}"))
        return
    _confine(limits["memory"])
    programs: dict[str, dict[str, Any]] = {}
    while True:
        try:
            request = json.loads(connection.recv_bytes())
        except EOFError:
            return
        program = programs.setdefault(request["key"], request)
        try:
            texts = [_rendered(render, program, limits, messages, asked) for messages, asked in request["chats"]]
            answer = json.dumps({"texts": texts}).encode()
        except Exception as error:  # what a template raises may be of any class
            answer = _failure(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
        connection.send_bytes(answer)


def _rendered(
    render: Any, program: dict[str, Any], limits: dict[str, Any], messages: list[dict[str, Any]], asked: bool
) -> str:
    with _seconds(limits["seconds"]):
        (text,), _ = render(
            conversations=[messages],
            chat_template=program["template"],
            add_generation_prompt=asked,
            **program["tokens"],
        )
    longest = limits["chars"] + limits["growth"] * len(json.dumps(messages))
    if len(text) > longest:
        raise ValueError(f"it writes {len(text):,} characters, and at most {longest:,} are taken for these messages")
    return str(text)


def _failure(why: str) -> bytes:
    return json.dumps({"error": why[:1000]}).encode()


@contextlib.contextmanager
def _seconds(limit: float) -> Iterator[None]:
    """End this process when the context takes more than `limit` seconds of processor time, also inside of C code."""
    signal.setitimer(signal.ITIMER_PROF, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _confine(memory: int) -> None:
    """Limit the memory to `memory` bytes more than now, and refuse files, sockets and processes."""
    import resource

    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    limits = {"RLIMIT_NOFILE": 0, "RLIMIT_FSIZE": 0, "RLIMIT_NPROC": 0, "RLIMIT_CORE": 0}
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limits["RLIMIT_AS"] = pages * resource.getpagesize() + memory
    for name, value in reversed(limits.items()):  # reading the size needs a file
        with contextlib.suppress(AttributeError, ValueError, OSError):  # not every system has every limit
            resource.setrlimit(getattr(resource, name), (value, value))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        serve(Connection(int(sys.argv[1])), json.loads(sys.argv[2]))
