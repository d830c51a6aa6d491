"""The page of a model: a header, and the tabs that its family has."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fusetune._optional import optional_import
from fusetune.data.table import Table
from fusetune.deploy.outputs import OUTPUTS
from fusetune.deploy.serve.loaded import Loaded
from fusetune.deploy.serve.options import Limits
from fusetune.deploy.ui import tabs
from fusetune.deploy.ui.examples import example_rows
from fusetune.deploy.ui.tabs import Shown
from fusetune.deploy.ui.widgets import PURPOSE
from fusetune.evaluation.report.verdict import verdict
from fusetune.modalities.prompt import PromptModality

gr: Any = optional_import("gradio", PURPOSE)
MAX_WAITING = 64
"""Rows that wait for the model; further ones are refused."""


def build_page(
    model: Loaded, *, version: str | None = None, examples: Table | None = None, limits: Limits | None = None
) -> Any:
    """Return the page as `gradio.Blocks`.

    Args:
        model: the model.
        version: its name in a folder of versions; None for a model that is in none.
        examples: rows to click at, with the model's columns; None for none.
        limits: of what is read.
    """
    home = Path(tempfile.mkdtemp(prefix="page-", dir=_cache()))
    targets = [task.target for task in model.bundle.targets.values()]
    rows = example_rows(examples, model.inputs, targets, home)
    shown = Shown(model, limits or Limits(), rows)
    with gr.Blocks(title=f"{model.name} – fusetune", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(_header(model, version))
        with gr.Tabs():
            for label, place in _tabs(model, home):
                with gr.Tab(label):
                    place(shown)
    page.queue(max_size=MAX_WAITING)
    return page


def _cache() -> str:
    """Return the folder that Gradio serves files from, which is made if need be."""
    utils: Any = optional_import("gradio.utils", PURPOSE)
    folder: str = utils.get_upload_folder()
    Path(folder).mkdir(parents=True, exist_ok=True)
    return folder


def _tabs(model: Loaded, home: Path) -> list[tuple[str, Any]]:
    """Return the tabs of a model by label."""
    bundle = model.bundle
    found: list[tuple[str, Any]] = []
    if bundle.interactions is not None:
        found.append(("Recommend", tabs.recommend_tab))
    elif model.index is not None:
        found.append(("Search", tabs.search_tab))
    if model.writes and any(isinstance(m, PromptModality) and m.messages for m in bundle.modalities.values()):
        found.append(("Chat", tabs.chat_tab))
    elif model.matches and bundle.interactions is None:
        found.append(("Compare", tabs.compare_tab))
    elif not model.matches:
        found.append(("Write" if model.writes else "Predict", tabs.row_tab))
    if not model.matches:
        found.append(("Table", lambda shown: tabs.table_tab(shown, home)))
    if model.tuned.results is not None:
        found.append(("Report", tabs.report_tab))
    return found


def _header(model: Loaded, version: str | None) -> str:
    """Return the model's name, version and what it does, with its report's verdict, as HTML."""
    does = Markup.escape(OUTPUTS[model.bundle.model.name].title(model.bundle).replace("`", ""))
    results = model.tuned.results
    lines = [] if results is None else [verdict(task).headline for task in results.tasks]
    page = Markup('<h1 style="margin:0 0 2px">{} <small style="opacity:.6">{}</small></h1><p>{}.</p>')
    verdicts = Markup("").join(Markup('<p style="opacity:.75;margin:2px 0">{}</p>').format(line) for line in lines)
    return str(page.format(model.name, f"version {version}" if version else "", does) + verdicts)
