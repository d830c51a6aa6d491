"""The pages' Python runs and their commands exist."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
import typer.main
import yaml

from fusetune.cli.main import VERBS, app
from fusetune.config import Config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def commands() -> list[list[str]]:
    lines = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("fusetune ")]


def python(page: Path) -> str:
    return "\n".join(blocks(page, "python"))


def test_python_example_comes_early():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert "```python" in lines[:30]


def test_pages_show_commands():
    assert {command[1] for command in commands()} >= {"fit", "predict", "evaluate", "report", "schema", "samples"}


@pytest.mark.parametrize("command", commands(), ids=lambda command: " ".join(command[1:4]))
def test_commands_take_these_options(command):
    verb = command[1]
    assert verb in VERBS
    known = {
        name for parameter in typer.main.get_command(app).get_command(None, verb).params for name in parameter.opts
    }
    assert {part for part in command[2:] if part.startswith("-")} <= known
    overrides = [part for part in command[2:] if "=" in part]
    assert Config().with_overrides(overrides) is not None


def test_settings_file_is_valid():
    (text,) = blocks(ROOT / "docs" / "quickstart.md", "yaml")
    config = Config.build(yaml.safe_load(text))
    assert config.text.freeze == "bottom:4"
    assert config.columns["year"].kind == "number"


def run_python(text: str, folder: Path) -> None:
    (folder / "page.py").write_text(text, encoding="utf-8")
    runpy.run_path(str(folder / "page.py"))


def test_fusion_of_the_page_keeps_the_contract(tmp_path):
    run_python(python(ROOT / "docs" / "extending.md"), tmp_path)


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.slow
def test_readme_and_quickstart_run(tmp_path, monkeypatch):
    """The pages' own code, on fewer rows and with short training."""
    import fusetune as ft

    monkeypatch.chdir(tmp_path)
    fit = ft.fit

    def quick_fit(*args, **kwargs):
        quick = {"trainer": {"epochs": 0.1, "head_epochs": 1, "trackers": []}, "report": {"bootstrap": 20}}
        return fit(*args, **kwargs, overrides=quick, progress=False)

    monkeypatch.setattr(ft, "fit", quick_fit)
    run_python(python(ROOT / "README.md").replace("1200", "120"), tmp_path)
    assert len((tmp_path / "predictions.csv").read_text(encoding="utf-8").splitlines()) == 36 + 1
    assert (tmp_path / "runs" / "tickets" / "report.html").is_file()
    run_python(python(ROOT / "docs" / "quickstart.md"), tmp_path)
