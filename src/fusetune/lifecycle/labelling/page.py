"""The page in which a person labels the rows of a round, one after the other; each label is saved at once."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from fusetune._optional import optional_import
from fusetune.data.schema import Schema
from fusetune.data.table import Table
from fusetune.deploy.ui.asking import refused, shown_errors
from fusetune.deploy.ui.examples import widget_values
from fusetune.deploy.ui.page import page_folder
from fusetune.deploy.ui.widgets import PURPOSE
from fusetune.errors import ConfigError, FolderError, SchemaError, TableError
from fusetune.evaluation.report.write import replace_file
from fusetune.lifecycle.labelling.folder import Batch, LabelFolder, locked
from fusetune.lifecycle.labelling.reading import CANNOT
from fusetune.lifecycle.labelling.writing import CONFIG
from fusetune.security.untrusted import TEXT_BYTES, read_bytes

gr: Any = optional_import("gradio", PURPOSE)
MAX_BUTTONS = 30
"""The most labels with a button each; further ones are typed."""
KEYS = """() => {
  document.addEventListener("keydown", event => {
    if (/INPUT|TEXTAREA/.test(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
    const named = {ArrowLeft: "back", ArrowRight: "next", "0": "cannot"}[event.key];
    const id = named || (/^[1-9]$/.test(event.key) ? "label-" + event.key : null);
    const button = id && document.getElementById(id);
    if (button) { event.preventDefault(); button.click(); }
  });
}"""
"""Keys press the buttons of the same name; see `KEYS_HELP`."""
KEYS_HELP = (
    "Keys: 1 to 9 give a label, 0 says that none can be given, ← and → go to other rows. Each label is saved at once."
)


@dataclass
class RoundFile:
    """The file of a round, read again before every change, as a person may fill it elsewhere too.

    Attributes:
        folder: the labelling.
        number: the round's.
    """

    folder: LabelFolder
    number: int

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder.csv_file(self.number)

    @property
    def batch(self) -> Batch:
        """The rows that it asks for."""
        return self.folder.batches[self.number - 1]

    def read(self) -> list[list[str]]:
        """Return the file's cells, the header first.

        Raises:
            TableError: it cannot be read, or has no columns of ids and labels.
        """
        try:
            text = read_bytes(self.path, TEXT_BYTES).decode("utf-8-sig")
            rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
        except (OSError, ValueError, csv.Error) as error:
            raise TableError("the round's file cannot be read", came=str(error), file=str(self.path)) from None
        if not rows or self.folder.row_id not in rows[0] or self.folder.target not in rows[0]:
            expected = f"the columns {self.folder.row_id} and {self.folder.target}"
            raise TableError("the round's file has lost a column", expected=expected, file=str(self.path))
        return rows

    def labels(self) -> dict[str, str]:
        """Return the labels in the file by the row's id, "" for none."""
        head, *rows = self.read()
        row_id, target = head.index(self.folder.row_id), head.index(self.folder.target)
        return {row[row_id]: row[target].strip() for row in rows if len(row) > max(row_id, target)}

    def fill(self, row: str, label: str) -> None:
        """Write a row's label into the file, which is replaced at once.

        Raises:
            TableError: the file cannot be read, or lacks the row.
            ConfigError: `fusetune label` is reading it.
            StorageError: it cannot be written.
        """
        with locked(self.folder.path):
            head, *rows = self.read()
            row_id, target = head.index(self.folder.row_id), head.index(self.folder.target)
            own = [cells for cells in rows if len(cells) > max(row_id, target) and cells[row_id] == row]
            if not own:
                raise TableError(f"the round's file has no row {row}", file=str(self.path))
            for cells in own:
                cells[target] = label
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([head, *rows])
            replace_file(self.path, text.getvalue())


def label_page(path: Path, *, media: Path | None = None) -> Any:
    """Return the page of a labelling's last round as `gradio.Blocks`.

    Args:
        path: the folder that `fusetune label` wrote.
        media: the folder that paths of pictures and sounds start from; None: the folder around the labelling.

    Raises:
        ConfigError: no labelling began in the folder.
        FolderError: its record is broken.
        TableError: the round's file cannot be read.
    """
    folder = LabelFolder.read(path)
    if folder is None or not folder.batches:
        raise ConfigError(f"{path} has no round to label", do="choose rows: fusetune label RUN POOL --out FOLDER")
    file = RoundFile(folder, len(folder.batches))
    table = Table.read(file.path, base_dir=media or path.resolve().parent)
    kinds = _kinds(table, [folder.row_id, folder.target, "why"])
    places = {str(row): place for place, row in enumerate(table.cells(folder.row_id))}
    home, labels = page_folder(), known_labels(folder)

    @cache
    def cells_of(row: str) -> list[Any]:
        return list(
            (widget_values(table, places[row], kinds, home) if row in places else dict.fromkeys(kinds)).values()
        )

    def row_at(place: int) -> list[Any]:
        """Return what is shown of the row at a place of the round."""
        with shown_errors():
            row, given = file.batch.shown[place], file.labels()
            left = sum(not given.get(other) for other in file.batch.shown)
            state = f"### Round {file.number}, row {place + 1} of {len(file.batch.shown)}: {left} without a label\n\n"
            state += KEYS_HELP if left else "The round is done: run the same `fusetune label` command again."
            return [place, state, *cells_of(row), _suggestion(file.batch, row), given.get(row, "")]

    with gr.Blocks(title=f"Labelling of {folder.target}", analytics_enabled=False) as page:
        place, state = gr.State(0), gr.Markdown()
        with gr.Row(equal_height=False):
            with gr.Column(scale=3):
                cells = [_cell(name, kind) for name, kind in kinds.items()]
            with gr.Column(scale=2):
                suggestion = gr.Markdown()
                label = gr.Textbox(label=folder.target, interactive=False)
                pressed = _buttons(labels)
                other = gr.Textbox(label="another label", placeholder="type it, then Enter", max_lines=1)
                with gr.Row():
                    back = gr.Button("← back", elem_id="back", size="sm")
                    onward = gr.Button("next →", elem_id="next", size="sm")
        shown = [place, state, *cells, suggestion, label]

        def give(at: int, text: str) -> list[Any]:
            with shown_errors():
                if not text.strip():
                    raise refused("there is no label")
                file.fill(file.batch.shown[at], text.strip())
                return row_at(_next(file, at))

        for button, text in pressed:
            button.click(lambda at, text=text: give(at, text), place, shown, api_visibility="private", **_ORDER)
        typed = other.submit(give, [place, other], shown, api_name="label", **_ORDER)
        typed.success(lambda: "", None, other, api_visibility="private")
        last = len(file.batch.shown) - 1
        back.click(lambda at: row_at(max(at - 1, 0)), place, shown, api_visibility="private", **_ORDER)
        onward.click(lambda at: row_at(min(at + 1, last)), place, shown, api_visibility="private", **_ORDER)
        page.load(lambda: row_at(_next(file, -1)), None, shown, api_name="row")
        page.load(None, None, None, js=KEYS)
    page.queue(max_size=64)
    return page


_ORDER = {"concurrency_limit": 1, "concurrency_id": "label"}
"""Labels are written in the order in which they are given."""


def _next(file: RoundFile, place: int) -> int:
    """Return the next place without a label, from the beginning again after the last; the same where there is none."""
    shown, given = file.batch.shown, file.labels()
    order = [*range(place + 1, len(shown)), *range(max(place, 0))]
    return next((other for other in order if not given.get(shown[other])), max(place, 0))


def _buttons(labels: Sequence[str]) -> list[tuple[Any, str]]:
    """Place a button for each label, and one for a row that cannot be labelled."""
    pressed = []
    with gr.Row():
        for number, label in enumerate(labels[:MAX_BUTTONS], start=1):
            text = f"{number}  {label}" if number <= 9 else label
            pressed.append((gr.Button(text, elem_id=f"label-{number}", variant="primary", min_width=120), label))
    pressed.append((gr.Button("0  cannot be labelled", elem_id="cannot", size="sm"), CANNOT))
    return pressed


def _cell(name: str, kind: str) -> Any:
    if kind == "image":
        return gr.Image(label=name, interactive=False, height=340, buttons=["fullscreen"])
    if kind == "audio":
        return gr.Audio(label=name, interactive=False, buttons=[])
    return gr.Textbox(label=name, interactive=False, max_lines=16)


def _suggestion(batch: Batch, row: str) -> str:
    """Return what the probe says of a row; nothing of a random row, which measures it."""
    guesses = ", ".join(f"{label} {probability:.0%}" for label, probability in batch.guesses.get(row, []))
    return f"Suggested: {guesses}" if guesses else ""


def _kinds(table: Table, others: Sequence[str]) -> dict[str, str]:
    """Return the columns that are shown with their kinds: pictures and sounds as such, all others as texts."""
    names = [name for name in table.column_names if name not in others]
    try:
        found = {name: spec.kind for name, spec in Schema.detect(table).columns.items()}
    except SchemaError:
        found = {}
    return {name: found[name] if found.get(name) in ("image", "audio") else "text" for name in names}


def known_labels(folder: LabelFolder) -> list[str]:
    """Return the labels that a person chooses from: those of the labelling configuration, and those given since.

    Raises:
        FolderError: the configuration cannot be read.
    """
    path = folder.path / CONFIG
    try:
        root = ElementTree.fromstring(read_bytes(path, TEXT_BYTES)) if path.is_file() else None
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise FolderError("the labelling configuration cannot be read", came=str(error), file=str(path)) from None
    named = [] if root is None else [choice.get("value") or "" for choice in root.iter("Choice")]
    given = [label for label in folder.log.labels.values() if label is not None]
    return [label for label in dict.fromkeys([*named, *given]) if label]
