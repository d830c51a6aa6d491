"""The pages' Python runs, their commands and settings exist, and settings.md is fresh."""

import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from datetime import date
from pathlib import Path

import pytest
import typer.main
import yaml

from fusetune import registry
from fusetune.cli.main import VERBS, app
from fusetune.config.config import Config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TASKS = sorted((ROOT / "docs" / "tasks").glob("*.md"))


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


@pytest.fixture
def plug_ins(monkeypatch):
    """The parts that docs/extending.md registers, by name; none is loaded."""
    (text,) = blocks(ROOT / "docs" / "extending.md", "toml")
    groups = tomllib.loads(text)["project"]["entry-points"]
    for table in (registry.MODALITIES, registry.FUSIONS, registry.TASKS, registry.OBJECTIVES):
        monkeypatch.setattr(table, "_table", {**table.table, **groups.get(f"fusetune.{table.kind}", {})})


@pytest.mark.parametrize("command", commands(), ids=lambda command: " ".join(command[1:4]))
def test_commands_take_these_options(command, plug_ins):
    verb = command[1]
    assert verb in VERBS
    options = typer.main.get_command(app).get_command(None, verb).params
    known = {name for option in options for name in (*option.opts, *option.secondary_opts)}
    assert {part for part in command[2:] if part.startswith("-")} <= known
    settings = any(option.name == "settings" for option in options)  # key=value arguments
    overrides = [part for part in command[2:] if settings and "=" in part]
    assert Config().with_overrides(overrides) is not None


def test_settings_file_is_valid():
    (text,) = blocks(ROOT / "docs" / "quickstart.md", "yaml")
    config = Config.build(yaml.safe_load(text))
    assert config.text.freeze == "bottom:4"
    assert config.columns["year"].kind == "number"


def run_python(text: str, folder: Path) -> None:
    (folder / "page.py").write_text(text, encoding="utf-8")
    runpy.run_path(str(folder / "page.py"))


@pytest.fixture
def quick_fit(monkeypatch, tmp_path):
    """`ft.fit` with short training, in a folder of the test."""
    import fusetune as ft

    monkeypatch.chdir(tmp_path)
    fit = ft.fit
    quick = {"trainer": {"epochs": 0.1, "head_epochs": 1, "trackers": []}, "report": {"bootstrap": 20}}
    monkeypatch.setattr(ft, "fit", lambda *args, **kwargs: fit(*args, **kwargs, overrides=quick, progress=False))


@pytest.mark.parametrize(
    "page", [ROOT / "docs" / "tables.md", ROOT / "docs" / "methods" / "choosing.md", *TASKS], ids=lambda page: page.stem
)
def test_pages_python_runs(page, quick_fit, tmp_path):
    run_python(python(page), tmp_path)


def test_settings_page_is_fresh():
    made = runpy.run_path(str(ROOT / "docs" / "make_settings.py"))["page"]()
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == made, "run: python docs/make_settings.py"


def test_settings_named_in_the_pages_exist():
    """Settings in running text, such as `trainer.epochs`; names in capitals stand for the user's own."""
    known = re.findall(r"`([\w.]+)`", (ROOT / "docs" / "settings.md").read_text(encoding="utf-8"))
    for kind in ("text", "image", "audio"):
        known += [name.replace("KIND", kind, 1) for name in known if name.startswith("KIND.")]
    for page in PAGES:
        named = re.findall(
            r"`((?:trainer|report|data|text|image|audio|fusion)\.(?!html|json)\w+)", page.read_text(encoding="utf-8")
        )
        assert set(named) <= {*known, "fusion.name", "fusion.scale"}, page.name


def inline_settings() -> set[str]:
    """Every `key=value` in running text, such as `trainer.epochs=0`."""
    codes = [code for page in PAGES for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", page.read_text(encoding="utf-8"))]
    words = [word for code in codes for word in code.split(" ") if code.count("=") == len(code.split(" "))]
    return {word for word in words if re.split(r"[.=]", word)[0] in Config.model_fields}


def test_settings_with_values_in_the_pages_are_valid(plug_ins):
    found = inline_settings()
    assert len(found) >= 20
    for setting in found:
        assert Config().with_overrides([setting]) is not None


@pytest.fixture
def plug_in(tmp_path):
    """The module of extending.md, installed as far as entry points tell, its tests, a table, a way to run Python."""
    page = ROOT / "docs" / "extending.md"
    *parts, tests = blocks(page, "python")
    (text,) = blocks(page, "toml")
    project = tomllib.loads(text)["project"]
    (tmp_path / "my_parts.py").write_text("\n".join(parts), encoding="utf-8")
    (tmp_path / "test_my_parts.py").write_text(tests, encoding="utf-8")
    installed = tmp_path / "my_parts-0.1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1.0\n")
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {place}\n" for name, place in points.items())
        for group, points in project["entry-points"].items()
    ]
    (installed / "entry_points.txt").write_text("\n".join(groups))
    days = [f"2026-{month:02}-{day:02}" for month in range(1, 6) for day in range(1, 28)]
    busy = ["busy" if date.fromisoformat(day).weekday() < 5 else "calm" for day in days]
    lines = "".join(f"{day},{place % 7},{label}\n" for place, (day, label) in enumerate(zip(days, busy, strict=True)))
    (tmp_path / "days.csv").write_text("day,noise,shop\n" + lines)

    def run(*arguments):
        path = os.pathsep.join([str(tmp_path), str(ROOT / "src"), os.environ["PYTHONPATH"]])
        env = os.environ | {"PYTHONPATH": path}
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_parts_of_the_page_keep_their_contracts(plug_in):
    """Of the example targets FocalTask takes those of text; one test a rule runs for each of the five parts."""
    shown = plug_in("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_parts.py")
    assert int(re.search(r"(\d+) passed", shown)[1]) > 100


def test_parts_of_the_page_work_as_a_plug_in(plug_in, tmp_path):
    """Used by name, to the end of a fit with its report, alone and with trees beside the network."""
    use = """
import fusetune as ft
import my_parts
losses, forward = [], my_parts.ActivationPenalty.forward
def watched(self, *args):
    found = forward(self, *args)
    losses.extend(found.values())
    return found
my_parts.ActivationPenalty.forward = watched
fusion = {"name": "average", "scale": 2.0}
settings = {
    "tasks": {"shop": {"name": "focal", "gamma": 1.0}},
    "objectives": {"activation": {"weight": 0.001}},
    "trainer": {"epochs": 0, "head_epochs": 1, "trackers": []},
    "report": {"bootstrap": 20, "slices": ["day"]},
}
for folder, chosen in ("model", fusion), ("stacked", {"name": "stack", "base": fusion, "rounds": 5}):
    tuned = ft.fit("days.csv", target="shop", config=settings | {"fusion": chosen}, out=folder, progress=False)
    assert tuned.bundle.schema.columns["day"].kind == "weekday"
    assert ft.load(folder).predict("days.csv")["shop"] == tuned.predict("days.csv")["shop"]
    assert losses and all(loss.requires_grad for loss in losses), "the objective is not minimised"
    losses.clear()
    print(tuned.results.tasks[0].first("after").metrics["accuracy"].value)
"""
    scores = [float(line) for line in plug_in("-c", use).split()]
    assert len(scores) == 2 and min(scores) > 0.8
    for folder in ("model", "stacked"):
        assert "average" in (tmp_path / folder / "report.html").read_text(encoding="utf-8")


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.slow
def test_readme_and_quickstart_run(quick_fit, tmp_path):
    """The pages' own code, on fewer rows and with short training."""
    run_python(python(ROOT / "README.md").replace("1200", "120"), tmp_path)
    assert len((tmp_path / "predictions.csv").read_text(encoding="utf-8").splitlines()) == 36 + 1
    assert (tmp_path / "runs" / "tickets" / "report.html").is_file()
    run_python(python(ROOT / "docs" / "quickstart.md"), tmp_path)


def test_contributing_names_what_there_is():
    """Files, `make` targets and packages."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([\w-]+)", text, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for path in re.findall(r"`(tests/[\w/]+(?:\.py)?|docs/\w+\.py)`", text):
        assert (ROOT / path).exists(), path
    (table,) = re.findall(r"(?m)^\| package \|.*\n(?:\|.*\n)+", text)
    named = {name for line in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    there = {path.stem for path in (ROOT / "src" / "fusetune").iterdir() if not path.name.startswith("__")} - {"py"}
    assert named == there
