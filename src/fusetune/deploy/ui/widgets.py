"""A widget for each column of a model's rows, and their values as a row of a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusetune._optional import optional_import
from fusetune.deploy.serve.inputs import Inputs, Record
from fusetune.deploy.serve.loaded import Loaded
from fusetune.deploy.serve.options import Limits
from fusetune.deploy.ui.examples import ExampleRows
from fusetune.errors import TableError
from fusetune.modalities.category import CategoryModality
from fusetune.security.untrusted import parse_json, read_bytes

PURPOSE = "to show a page"
gr: Any = optional_import("gradio", PURPOSE)

MAX_CHOICES = 1000
"""The most values of a category that a list offers; others can be typed."""
SHORT = 60
"""Characters: a column whose cells are longer in the mean has a box of several lines."""


def file_bytes(payload: Any) -> bytes | None:
    """Return the bytes of an uploaded file, which the page's server has bounded and has put into its own folder."""
    if payload is None or not payload.path:
        return None
    path = Path(payload.path)
    return read_bytes(path, path.stat().st_size)


@dataclass(frozen=True)
class Widgets:
    """The widgets of some columns.

    Attributes:
        inputs: the columns.
        components: a Gradio component a column, in order.
        lists: columns whose cells are lists or objects, typed as JSON.
    """

    inputs: Inputs
    components: Sequence[Any]
    lists: frozenset[str] = frozenset()

    @classmethod
    def of(cls, model: Loaded, inputs: Inputs, examples: ExampleRows) -> Widgets:
        """Place a widget for each column in the page that is being built.

        Args:
            model: the model.
            inputs: the columns.
            examples: rows, by which it is known how long texts are, and which columns are lists.
        """
        components = []
        for name, kind in inputs.kinds.items():
            cells = [row[name] for row in examples.rows if row.get(name) is not None]
            components.append(_component(model, name, kind, cells))
        return cls(inputs, components, examples.lists)

    def record(self, values: Sequence[Any], limits: Limits) -> Record:
        """Return the widgets' values as a row of a request, an empty widget as a missing cell.

        Raises:
            Problem: a cell is refused; the sentence is that of the server.
            UserError: a list is no JSON.
        """
        row = {name: None if value == "" else value for name, value in zip(self.inputs.kinds, values, strict=True)}
        row |= {name: _number(row[name]) for name, kind in self.inputs.kinds.items() if kind == "number"}
        row |= {name: _parsed(text, name) for name in self.lists if isinstance(text := row.get(name), str)}
        (record,) = self.inputs.records([row], limits)
        return record


def _number(value: Any) -> Any:
    """Return a number that is typed as Python has it; anything else as it is, for the model to read or refuse."""
    try:
        return float(value) if isinstance(value, str) and value.isascii() else value
    except ValueError:
        return value


def _parsed(text: str, column: str) -> Any:
    """Return the value of JSON."""
    try:
        return parse_json(text)
    except ValueError as error:
        raise TableError(
            "the cell is no JSON", expected='a list, as ["one", "two"]', came=str(error), column=column
        ) from None


def _component(model: Loaded, name: str, kind: str, cells: Sequence[Any]) -> Any:
    """Return a column's widget."""
    if kind == "image":
        sources = ["upload", "clipboard", "webcam"]
        return _of_files(gr.Image(label=name, sources=sources, height=260, buttons=["fullscreen"]))
    if kind == "audio":
        return _of_files(gr.Audio(label=name, sources=["upload", "microphone"], buttons=[]))
    if kind == "number":  # gr.Number sends 0 for an empty field, which is no missing cell
        return gr.Textbox(label=name, placeholder="a number", max_lines=1)
    modality = model.bundle.modalities.get(name)
    if isinstance(modality, CategoryModality):
        choices = sorted(modality.vocabulary[:MAX_CHOICES])
        return gr.Dropdown(choices, value=None, label=name, allow_custom_value=True)
    if kind == "date":
        return gr.Textbox(label=name, placeholder="2026-11-29 or 2026-11-29 08:30", max_lines=1)
    long = kind in ("text", "prompt") and (not cells or sum(len(str(cell)) for cell in cells) / len(cells) > SHORT)
    return gr.Textbox(label=name, lines=3 if long else 1, max_lines=12)


def _of_files(component: Any) -> Any:
    """Have a component give the bytes of its file, which are decoded within limits later, as those of a request."""
    component.preprocess = file_bytes
    return component
