"""Every fusion, objective and task says what it needs and shows a use, and the shown uses are right."""

import doctest
import re
import sys

import pytest

from fusetune.registry import FUSIONS, OBJECTIVES, TASKS

SECTIONS = {
    "fusion": ("Args", "Inputs", "Requires", "Relations", "Example", "Reference"),
    "objective": ("Args", "Inputs", "Requires", "Relations", "Example", "Reference"),
    "task": ("Args", "Loss", "Answers", "Requires", "Relations", "Example", "Reference"),
}
PARTS = [
    pytest.param(table, name, id=f"{table.kind} {name}") for table in (FUSIONS, OBJECTIVES, TASKS) for name in table
]


@pytest.mark.parametrize(("table", "name"), PARTS)
def test_a_parts_docstring_has_its_sections(table, name):
    text = table.get(name).__doc__
    headings = re.findall(r"^    (\w+):", text, re.M)
    assert [heading for heading in headings if heading in SECTIONS[table.kind]] == list(SECTIONS[table.kind])


@pytest.mark.parametrize(("table", "name"), PARTS)
def test_its_examples_run(table, name):
    part = table.get(name)
    tests = doctest.DocTestFinder(recurse=False).find(part, globs=vars(sys.modules[part.__module__]).copy())
    results = [doctest.DocTestRunner().run(test) for test in tests]
    assert sum(result.attempted for result in results) > 1 and not any(result.failed for result in results)
