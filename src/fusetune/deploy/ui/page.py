"""The page of a model: a header, and the tabs that its family has."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from markupsafe import Markup

from fusetune._optional import optional_import
from fusetune.data.table import Table
from fusetune.deploy.fine_tuned import FineTuned
from fusetune.deploy.outputs import OUTPUTS
from fusetune.deploy.serve.loaded import Loaded, LoadModel, load_version
from fusetune.deploy.serve.options import LOOPBACK, Limits, ServeOptions
from fusetune.deploy.tuned import Precision
from fusetune.deploy.ui import tabs
from fusetune.deploy.ui.examples import example_rows
from fusetune.deploy.ui.tabs import Shown
from fusetune.deploy.ui.widgets import PURPOSE
from fusetune.deploy.versions import current_version
from fusetune.evaluation.report.verdict import verdict
from fusetune.modalities.prompt import PromptModality

gr: Any = optional_import("gradio", PURPOSE)
MAX_WAITING = 64
"""Rows that wait for the model; further ones are refused."""


Examples = Callable[[FineTuned], Table | None]
"""Returns rows to click at, or None."""


def load_page(options: ServeOptions, load: LoadModel, examples: Examples) -> Any:
    """Load a model and return its page as `gradio.Blocks`.

    Args:
        options: what the user decided.
        load: loads a model's folder.
        examples: rows to click at; asked for only if no other machine reaches the page.

    Raises:
        UserError: the model cannot be loaded.
    """
    precision = cast(Precision, options.precision)
    model = load_version(load, options.folder, name=options.name, precision=precision)
    rows = examples(model.tuned) if options.access.host in LOOPBACK else None
    return build_page(model, version=current_version(options.folder), examples=rows, limits=options.limits)


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
    home = page_folder()
    targets = [task.target for task in model.bundle.targets.values()]
    rows = example_rows(examples, model.inputs, targets, home)
    shown = Shown(model, limits or Limits(), rows)
    title = model.name + (f", version {version}" if version else "")
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(_header(model, version))
        with gr.Tabs():
            for label, place in _tabs(model, home):
                with gr.Tab(label):
                    place(shown)
    page.queue(max_size=MAX_WAITING)
    return page


def page_folder() -> Path:
    """Return a new folder for a page's files, where Gradio serves them from."""
    utils: Any = optional_import("gradio.utils", PURPOSE)
    cache = Path(utils.get_upload_folder())
    cache.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="page-", dir=cache))


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
