"""What a task saves: its options and what it learned, attributes of the same names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def state_of(task: object, options: Iterable[str], learned: Iterable[str]) -> dict[str, Any]:
    """Return a task's options, under `options`, and the attributes that it learned."""
    return {
        "options": {name: getattr(task, name) for name in options},
        **{name: getattr(task, name) for name in learned},
    }


def restored(task: T, learned: Iterable[str], state: Mapping[str, Any]) -> T:
    """Set the attributes that a task learned to those of its state, and return the task.

    Raises:
        KeyError: the state lacks one.
    """
    for name in learned:
        setattr(task, name, state[name])
    return task
