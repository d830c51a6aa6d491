"""Label Studio's formats: tasks with predictions and a labelling configuration out; JSON, JSON-MIN and CSV in.

Reference: https://labelstud.io/guide/task_format, https://labelstud.io/guide/predictions,
https://labelstud.io/guide/export.
"""

from __future__ import annotations

import base64
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from fusetune.data.output_names import free_name
from fusetune.data.table import is_missing
from fusetune.errors import TableError
from fusetune.modalities.messages import chat_text

OBJECTS = {"image": "Image", "audio": "Audio"}
"""The tag that shows a column of a kind; any other is shown as text."""
SERVED = "/data/local-files/?d="
"""Where Label Studio serves files below its document root (LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT)."""
_MIME = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif", b"RIFF": "audio/wav"}


def variables(columns: Sequence[str]) -> dict[str, str]:
    """Return the name of each column in a task's data: letters, digits and _ only, as `$name` needs."""
    names: dict[str, str] = {}
    for column in columns:
        plain = re.sub(r"\W", "_", column, flags=re.ASCII).strip("_") or "column"
        names[column] = free_name(plain if not plain[0].isdigit() else f"c{plain}", names.values())
    return names


def task_of(
    row_id: tuple[str, str],
    cells: Mapping[str, Any],
    kinds: Mapping[str, str],
    *,
    base_dir: Path,
    root: Path,
    control: str,
    guesses: Sequence[tuple[str, float]] = (),
    version: str = "",
) -> dict[str, Any]:
    """Return a row as a task of Label Studio.

    Args:
        row_id: the name of the id's field, and the id.
        cells: by input column.
        kinds: of the columns.
        base_dir: the folder of relative paths.
        root: Label Studio's document root, from which it serves files.
        control: the name of the control of labels.
        guesses: labels with their probabilities, the most probable first; none gives a task without a prediction.
        version: the prediction's model version.
    """
    names = variables(list(cells))
    data: dict[str, Any] = {row_id[0]: row_id[1]}
    for column, cell in cells.items():
        data[names[column]] = _cell(cell, kinds[column], base_dir, root)
    task: dict[str, Any] = {"data": data}
    if guesses:
        label, probability = guesses[0]
        value = {"type": "choices", "from_name": control, "to_name": names[_first(cells)]}
        result = [{"id": "1", **value, "value": {"choices": [label]}}]
        task["predictions"] = [{"model_version": version, "score": round(probability, 6), "result": result}]
    return task


def config_of(columns: Mapping[str, str], labels: Sequence[str], *, control: str, row_id: str) -> str:
    """Return a labelling configuration: every column as its kind is shown, and one choice among the labels.

    Args:
        columns: the kind of each input column.
        labels: so far; empty gives a field for text, as a project's choices cannot be added while labelling.
        control: the name of the control of labels.
        row_id: the name of the id's field.
    """
    names = variables(list(columns))
    view = ElementTree.Element("View")
    for column, kind in columns.items():
        ElementTree.SubElement(view, "Header", value=column, size="6")
        ElementTree.SubElement(view, OBJECTS.get(kind, "Text"), name=names[column], value=f"${names[column]}")
    to: dict[str, Any] = {"name": control, "toName": names[_first(columns)]}
    if labels:
        choices = ElementTree.SubElement(view, "Choices", **to, choice="single", showInline="true", required="true")
        for label in labels:
            ElementTree.SubElement(choices, "Choice", value=label)
    else:
        ElementTree.SubElement(view, "TextArea", **to, maxSubmissions="1", required="true")
    view.append(ElementTree.Comment(f" the field {row_id} of each task is the row's id "))
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def read_tasks(content: Any, row_id: str, control: str, *, file: str) -> tuple[dict[str, str | None], list[str]]:
    """Read the labels in an export, JSON or JSON-MIN.

    Several annotations of a task are decided by the majority; where there is none, the row has no label yet.

    Args:
        content: the parsed file.
        row_id: the name of the id's field.
        control: the name of the control of labels.
        file: for messages.

    Returns:
        By id, the label, or None for a row that was skipped; and the ids without a majority.

    Raises:
        TableError: it is no such export.
    """
    tasks = content if isinstance(content, list) else [content]
    votes: dict[str, list[str | None]] = {}
    for number, task in enumerate(tasks):
        data = task.get("data", task) if isinstance(task, dict) else None
        if not isinstance(data, dict) or row_id not in data:
            raise TableError(
                f"a task has no {row_id}",
                expected="Label Studio's export of the tasks of this labelling, as JSON, JSON-MIN or CSV",
                came=f"a task with {', '.join(map(str, list(data)[:8]))}" if isinstance(data, dict) else "another JSON",
                file=file,
                row=number,
            )
        own = votes.setdefault(str(data[row_id]), [])
        if "data" in task:
            own += [vote for done in task.get("annotations") or [] for vote in _annotated(done, control)]
        elif (label := _choice(task.get(control))) is not None:
            own.append(label)
    return decide(votes)


def decide(votes: Mapping[str, Sequence[str | None]]) -> tuple[dict[str, str | None], list[str]]:
    """Return the label that most votes have, by row, and the rows without a majority.

    A vote of None says that the row cannot be labelled; it counts only where there is no other.
    """
    labels: dict[str, str | None] = {}
    split = []
    for row, given in votes.items():
        counts = Counter(label for label in given if label is not None).most_common(2)
        if len(counts) > 1 and counts[0][1] == counts[1][1]:
            split.append(row)
        elif given:
            labels[row] = counts[0][0] if counts else None
    return labels, split


def _annotated(done: Mapping[str, Any], control: str) -> list[str | None]:
    """Return an annotation's label; [None] if the row was skipped, [] if the annotation has none."""
    if done.get("was_cancelled"):
        return [None]
    own = [item for item in done.get("result") or [] if item.get("from_name") == control]
    values = [_choice(item.get("value")) for item in own]
    return next(([label] for label in values if label is not None), [])


def _choice(value: Any) -> str | None:
    """Return the label of a control's value: text, a list of one, or {"choices": [...]} or {"text": [...]}."""
    if isinstance(value, Mapping):
        value = value.get("choices") or value.get("text")
    if isinstance(value, list):
        value = value[0] if value else None
    return None if value is None or not str(value).strip() else str(value)


def _first(columns: Mapping[str, Any]) -> str:
    return next(iter(columns))


def document_root(cells: Iterable[Any], base_dir: Path) -> Path:
    """Return the folder that holds all files that are named in cells of media: the pool's, or one above it."""
    folders = {str(base_dir.resolve())}
    for cell in cells:
        path = cell.get("path") if isinstance(cell, dict) and not cell.get("bytes") else cell
        if isinstance(path, str) and "://" not in path and not path.startswith("data:"):
            folders.add(os.path.dirname(os.path.abspath(base_dir / path.split(";")[0].strip())))
    return Path(os.path.commonpath(folders))


def _cell(cell: Any, kind: str, base_dir: Path, root: Path) -> str:
    """Return a cell as a task's data: media as an address, anything else as text."""
    if is_missing(cell):
        return ""
    if kind not in OBJECTS:
        return chat_text(cell) or (" ".join(map(str, cell)) if isinstance(cell, list) else str(cell))
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes):
        mime = next((name for start, name in _MIME.items() if cell.startswith(start)), "application/octet-stream")
        return f"data:{mime};base64,{base64.b64encode(cell).decode()}"
    text = str(cell).split(";")[0].strip()  # of several, the first
    if "://" in text or text.startswith("data:"):
        return text
    return SERVED + quote(os.path.relpath(os.path.abspath(base_dir / text), root))
