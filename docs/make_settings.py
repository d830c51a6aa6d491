"""Writes docs/settings.md from the settings' own docstrings: run it after a change of a section."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Sequence
from pathlib import Path

from fusetune.config import (
    adversarial,
    attack,
    backbone,
    catalogue,
    columns,
    config,
    data,
    fusion,
    pretrain,
    prompt,
    read,
    report,
    rerank,
    text,
    trainer,
)
from fusetune.modalities.prompt import PromptModality
from fusetune.models.build import options_of
from fusetune.registry import FUSIONS, MODALITIES, OBJECTIVES, TASKS, Registry
from fusetune.tasks.match import MatchTask

PAGE = Path(__file__).with_name("settings.md")
HEAD = """# Settings

Written by `docs/make_settings.py` from the modules in `src/fusetune/config` and the parts' own docstrings.

On the command line a setting is `key=value`, in YAML and Python it is nested: `trainer.epochs=8` is
`trainer: {epochs: 8}`. A section may be given as its name alone: `fusion=gated`, `image=../models/mobilenet-v2`.
An unknown key is answered with the nearest right one.
"""
SECTIONS = {
    "Config": ("The run", ""),
    "BackboneConfig": ("Backbones", "KIND."),
    "TextConfig": ("Texts", "text."),
    "PretrainConfig": ("Self-supervised tuning", "pretrain."),
    "PromptConfig": ("Prompts of language models", "prompt."),
    "GenerationConfig": ("Writing", "generation."),
    "CatalogueConfig": ("Documents in a table of their own", "catalogue."),
    "RerankConfig": ("Re-ranking", "rerank."),
    "ColumnConfig": ("Columns", "columns.NAME."),
    "AutoConfig": ("Choosing the fusion", "fusion."),
    "StackConfig": ("Trees beside the network", "fusion."),
    "TrainerConfig": ("Training", "trainer."),
    "AdversarialConfig": ("Adversarial training", "trainer.adversarial."),
    "ReportConfig": ("The report", "report."),
    "AttackConfig": ("Attacks", "report.attack."),
    "DataConfig": ("Data", "data."),
    "ReadConfig": ("Reading tables", "data.read."),
}
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Setting, type (if given), default and meaning as Markdown."""
    heads = ["setting", "takes", "default", "meaning"] if len(rows[0]) == 4 else ["setting", "default", "meaning"]
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    return "\n".join([*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)])


def words(text: str) -> str:
    """A docstring as one line."""
    return re.sub(r"\s+", " ", text).strip()


def capitalised(text: str) -> str:
    """A text with a first letter in upper case, unless that is a symbol such as λ."""
    return text[:1].upper() + text[1:] if text[:1].isascii() else text


def takes(annotation: ast.expr) -> str:
    """An annotation for people: choices or a type, with its range."""
    source = ast.unparse(annotation)
    bounds = [
        f"{SIGNS[keyword.arg]} {ast.unparse(keyword.value).replace('2 ** 32', '2³²')}"
        for call in ast.walk(annotation)
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg in SIGNS
    ]
    choices = [
        part.value
        for node in ast.walk(annotation)
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal"
        for part in ast.walk(node.slice)
        if isinstance(part, ast.Constant)
    ]
    if choices or "OnBadCell" in source:
        names = {"": "none", " ": "space"}
        return ", ".join(f"`{names.get(name, name)}`" for name in choices or ("reject", "mask"))
    for name, shown in (
        ("Role", "a role"),
        ("NamedConfig", "a name, options"),
        ("FusionConfig", "a name, options"),
        ("Neural", "a name, options"),
        ("Config", "a section"),
        ("Rerank", "true, a section"),
        ("Pretrain", "a name, a section"),
        ("Columns", "per name: a section"),
    ):
        if name in source:
            return f"per name: {shown}" if source.startswith("dict") else shown
    if "list[Any]" in source:
        return "a list"
    kind = re.search(r"list\[\w+\]|StrList|\w*float|\bint\b|bool|str", source)
    shown = {"float": "number", "int": "whole number", "bool": "true, false", "str": "text", "StrList": "texts"}
    return " ".join([shown.get(kind[0], "numbers") if kind else source, ", ".join(bounds)]).strip()


def fields(section: ast.ClassDef, prefix: str) -> list[tuple[str, str, str, str]]:
    """A section's settings; each must have a docstring."""
    rows = []
    for field, after in zip(section.body, [*section.body[1:], ast.Pass()], strict=True):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        name = field.target.id
        said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        assert said, f"{section.name}.{name} has no docstring"
        value = "None" if field.value is None else ast.unparse(field.value)
        default = {"None": "", "{}": "", "[]": ""}.get(value, "" if "Config" in value else f"`{value}`")
        default = "`attention`" if name in ("fusion", "base") else default.replace("'", "")
        rows.append((f"`{prefix}{name}`", takes(field.annotation), default, words(str(after.value.value))))
    return rows


def options(part: type, prefix: str, *taken: str) -> list[tuple[str, str, str]]:
    """The keyword settings of a part's constructor, described by the Args of the class's docstring or its own."""
    docs = [inspect.getdoc(part) or "", inspect.getdoc(part.__init__) or ""]
    args = next((doc.partition("Args:\n")[2].partition("\n\n")[0] for doc in docs if "Args:\n" in doc), "")
    said = {found[1]: words(found[2]) for found in re.finditer(r"^    (\w+): ((?:.|\n {5,})*)", args, re.M)}
    signature = inspect.signature(part).parameters
    rows = []
    for name in options_of(part, *taken):
        default = signature[name].default
        shown = "" if default is None or default is inspect.Parameter.empty else f"`{str(default).lower()}`"
        rows.append((f"`{prefix}{name}`", shown, capitalised(said[name])))
    return rows


def parts(title: str, registry: Registry, prefix: str, *taken: str) -> str:
    """The options of every part of a registry."""
    found = [f"## {title}"]
    for name in registry:
        if issubclass(registry.get(name), MatchTask | PromptModality):  # no column's, so that no setting names it
            continue
        rows = options(registry.get(name), prefix, *taken)
        found.append(f"### {name}\n\n" + (table(rows) if rows else "No options."))
    return "\n\n".join(found)


def page() -> str:
    """The whole page."""
    modules = (
        config,
        catalogue,
        rerank,
        pretrain,
        backbone,
        text,
        prompt,
        columns,
        attack,
        adversarial,
        report,
        fusion,
        trainer,
        data,
        read,
    )
    sources = [ast.parse(Path(inspect.getfile(module)).read_text(encoding="utf-8")) for module in modules]
    classes = {node.name: node for source in sources for node in source.body if isinstance(node, ast.ClassDef)}
    found = [HEAD.rstrip()]
    for name, (title, prefix) in SECTIONS.items():
        said = "`KIND` is `text`, `image` or `audio`. " if prefix == "KIND." else ""
        found.append(f"## {title}\n\n{said}{words(ast.get_docstring(classes[name]) or '')}")
        found.append(table(fields(classes[name], prefix)))
    found.append(parts("Options of columns", MODALITIES, "columns.NAME.", "backbone"))
    found.append(
        parts("Options of fusions", FUSIONS, "fusion.", "columns", "dim")
        + "\n\n### every fusion\n\n"
        + table(
            [
                ("`fusion.dim`", "`128`", "Features of every token in the fusion."),
                ("`fusion.input_dropout`", "`0.1`", "Dropout on the encoders' outputs."),
                ("`fusion.tied`", "`false`", "Of pairs only: whether columns of one encoder share a projection."),
            ]
        )
    )
    found.append(parts("Options of tasks", TASKS, "tasks.TARGET."))
    found.append(parts("Options of objectives", OBJECTIVES, "objectives.NAME."))
    return "\n\n".join(found) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
