"""The model card, README.md of a model folder."""

from __future__ import annotations

import math
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from fusetune.backbones.load import Backbone
from fusetune.deploy.bundle import Bundle, versions, write_text
from fusetune.deploy.hub import HUB_ID
from fusetune.deploy.outputs import OUTPUTS, cell_text
from fusetune.evaluation.decisions import FusionChoice, ReadingChoice
from fusetune.evaluation.report.verdict import verdict
from fusetune.evaluation.results import RunResults


def write_card(bundle: Bundle, results: RunResults | None, folder: Path) -> Path:
    """Write README.md into the folder.

    Raises:
        StorageError: it cannot be written.
    """
    path = folder / "README.md"
    write_text(path, card(bundle, results))
    return path


def card(bundle: Bundle, results: RunResults | None) -> str:
    """Return the card as Markdown: usage, inputs, predictions, metrics and versions."""
    output = OUTPUTS[bundle.model.name]
    lines = ["---", metadata(bundle, results).to_yaml(), "---", ""]
    lines += [f"# {output.title(bundle)}", "", "Made with fusetune; load it with the commands below.", ""]
    lines += ["## Use", "", "```sh", "fusetune predict . new.csv --out predictions.csv", "```", ""]
    lines += ["```python", "import fusetune as ft", "", 'tuned = ft.load(".")', 'tuned.predict("new.csv").to_pandas()']
    lines += ["```", "", "## Reads", "", "| column | kind | encoder |", "| --- | --- | --- |"]
    for name, modality in bundle.modalities.items():
        encoder = bundle.model.encoders[modality.encoder_key]
        source = encoder.source if isinstance(encoder, Backbone) else "learned here"
        lines.append(f"| {cell_text(name)} | {modality.kind} | {cell_text(source)} |")
    lines += ["", "A cell may be missing; the model then predicts from the others.", "", "## Predicts", ""]
    lines += output.details(bundle)
    if results is not None:
        lines += ["", "## How well", ""]
        for measured in results.tasks:
            summary = verdict(measured)
            lines += (
                [summary.headline, ""]
                + ([f"{summary.use} {summary.next_step}", ""] if summary.use else [])
                + [f"- {note}" for note in summary.notes]
                + [""]
            )
            lines += [f"| {measured.target}: system | {measured.metric} |", "| --- | --- |"]
            for system in measured.systems:
                value = measured.main(system)
                span = f" [{value.low:.3f}, {value.high:.3f}]" if value.known else ""
                lines.append(f"| {cell_text(system.name)} | {value.value:.3f}{span} |")
            lines.append("")
        lines += [f"On {measured.rows} {measured.split} rows; see `report.html`." for measured in results.tasks]
        lines += ["", "## Self-supervised tuning", "", results.pretraining.said] if results.pretraining else []
        lines += _choice(results.reading, "Texts") if results.reading is not None else []
        lines += _choice(results.choice, "Fusion") if results.choice is not None else []
        if warnings := [*(warning for task in results.tasks for warning in task.warnings), *results.warnings]:
            lines += ["", "## Know before use", ""] + [f"- {warning}" for warning in warnings]
    lines += ["", "## Made with", "", f"Train rows' SHA-256: `{bundle.fingerprint}`", ""]
    lines += [f"- {name} {number}" for name, number in versions().items()]
    return "\n".join(lines) + "\n"


PIPELINES = {
    ("text", "classes"): "text-classification",
    ("image", "classes"): "image-classification",
    ("audio", "classes"): "audio-classification",
    ("table", "classes"): "tabular-classification",
    ("table", "regression"): "tabular-regression",
    ("text", "entities"): "token-classification",
    ("prompt", "generate"): "text-generation",
}
"""The hub's names of tasks, by the columns' only kind and the task; models of several kinds or tasks have none."""
CLASSES = ("binary", "multiclass", "multilabel", "ordinal")
TABULAR = ("number", "category", "date")


def metadata(bundle: Bundle, results: RunResults | None) -> ModelCardData:
    """Return what the hub reads of a card: task, base models, metrics."""
    kinds = {"table" if modality.kind in TABULAR else modality.kind for modality in bundle.modalities.values()}
    names = {"classes" if task.name in CLASSES else task.name for task in bundle.tasks.values()}
    only = (min(kinds), min(names)) if len(kinds) == len(names) == 1 else ("", "")
    sources = {encoder.source for encoder in bundle.model.encoders.values() if isinstance(encoder, Backbone)}
    measured = [
        EvalResult(
            task_type=PIPELINES.get(only, task.name),
            dataset_type="table",
            dataset_name=f"{task.rows} {task.split} rows",
            metric_type=task.metric,
            metric_name=f"{task.target} {task.metric}",
            metric_value=round(value, 4),
        )
        for task in (results.tasks if results is not None else ())
        if (after := task.first("after")) is not None and math.isfinite(value := task.main(after).value)
    ]
    return ModelCardData(
        library_name="fusetune",
        pipeline_tag=PIPELINES.get(only),
        base_model=sorted(source for source in sources if HUB_ID.fullmatch(source)) or None,
        tags=sorted({"fusetune", *(modality.kind for modality in bundle.modalities.values())}),
        model_name=f"fusetune {', '.join(task.target for task in bundle.tasks.values())}" if measured else None,
        eval_results=measured or None,
    )


def _choice(choice: FusionChoice | ReadingChoice, what: str) -> list[str]:
    """Return the section on how the fusion, or the reading of two texts, was chosen."""
    lines = [
        "",
        f"## {what}",
        "",
        choice.said,
        "",
        f"| {what.lower()} | {choice.metric} | seconds | |",
        "| --- | --- | --- | --- |",
    ]
    return lines + [f"| {' | '.join(cell_text(cell) for cell in row)} |" for row in choice.rows()]
