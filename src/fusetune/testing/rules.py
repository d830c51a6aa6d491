"""Run a contract suite without pytest."""

from __future__ import annotations

import inspect
import unittest
from typing import Any

import torch


class Contract:
    """Base of the suites: every `test_*` method is one rule, and its docstring says which.

    Methods take the thing under test as arguments, which pytest fills from `pytest.mark.parametrize` or from fixtures
    of the derived class.
    """

    def setup_method(self) -> None:
        """Seed torch before every rule; pytest calls it too."""
        torch.manual_seed(0)


def rules_of(contract: type[Contract]) -> list[str]:
    """Return the names of a suite's rules in the order of definition, base classes first."""
    classes = reversed(contract.__mro__)
    return list(dict.fromkeys(name for cls in classes for name in vars(cls) if name.startswith("test_")))


def broken_rules(contract: type[Contract], **arguments: Any) -> dict[str, str]:
    """Run all rules of a suite and return the broken ones with their messages.

    A rule is broken if it raises any exception except `unittest.SkipTest`, which means that it does not apply.

    Args:
        contract: the suite.
        arguments: arguments of the rules, each passed to the rules that have a parameter of that name.
    """
    broken = {}
    for name in rules_of(contract):
        suite = contract()
        rule = getattr(suite, name)
        taken = inspect.signature(rule).parameters
        suite.setup_method()
        try:
            rule(**{key: value for key, value in arguments.items() if key in taken})
        except unittest.SkipTest:
            continue
        except Exception as error:
            broken[name] = str(error) or type(error).__name__
    return broken


def check(contract: type[Contract], **arguments: Any) -> None:
    """Run all rules of a suite.

    Raises:
        AssertionError: rules are broken; the message lists all of them.
    """
    broken = broken_rules(contract, **arguments)
    if broken:
        lines = [f"{name}: {message}" for name, message in broken.items()]
        raise AssertionError(f"{len(broken)} rules of {contract.__name__} are broken\n  " + "\n  ".join(lines))
