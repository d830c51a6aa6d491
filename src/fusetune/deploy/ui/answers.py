"""What the page shows of an answer: a panel a target, chosen by the form of its columns in the output table."""

from __future__ import annotations

import abc
import json
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from fusetune._optional import optional_import
from fusetune.data.joins import flat_names
from fusetune.deploy.serve.loaded import Loaded
from fusetune.deploy.ui.asking import Answered, top
from fusetune.deploy.ui.widgets import PURPOSE
from fusetune.modalities.words import words_text
from fusetune.tasks.abilities import Writes
from fusetune.tasks.base import TargetTask

gr: Any = optional_import("gradio", PURPOSE)
TOP = 6
"""The labels that are shown, the likeliest first."""
SHOWN_TEXT = 2000


class AnswerPanel(abc.ABC):
    """The answers of one task.

    Attributes:
        name: the task's.
        task: the task.
        text: the column that its spans lie in, or None.
    """

    def __init__(self, name: str, task: TargetTask, text: str | None = None) -> None:
        self.name, self.task, self.text = name, task, text

    @abc.abstractmethod
    def place(self) -> list[Any]:
        """Place the panel's components in the page that is being built and return them."""

    @abc.abstractmethod
    def values(self, answered: Answered) -> list[Any]:
        """Return the components' values for a row that has an answer."""

    @property
    def target(self) -> str:
        """The target's name."""
        return self.task.target


class LabelPanel(AnswerPanel):
    """A label with its probability, and the likeliest others."""

    def place(self) -> list[Any]:
        """See `AnswerPanel.place`."""
        return [gr.Label(label=self.target, num_top_classes=TOP)]

    def values(self, answered: Answered) -> list[Any]:
        """See `AnswerPanel.values`."""
        return [top(answered.scores[self.name], self.task.labels)]


class LabelSetPanel(LabelPanel):
    """The labels that reach their thresholds, and the likeliest ones."""

    def place(self) -> list[Any]:
        """See `AnswerPanel.place`."""
        decided = gr.Textbox(label=self.target, interactive=False)
        return [decided, gr.Label(label="probabilities", num_top_classes=TOP, show_heading=False)]

    def values(self, answered: Answered) -> list[Any]:
        """See `AnswerPanel.values`."""
        decided = answered.columns[self.target]
        return ["none" if decided == "[]" else decided, *super().values(answered)]


class NumberPanel(AnswerPanel):
    """A number."""

    def place(self) -> list[Any]:
        """See `AnswerPanel.place`."""
        return [gr.Label(label=self.target)]

    def values(self, answered: Answered) -> list[Any]:
        """See `AnswerPanel.values`."""
        return [f"{answered.columns[self.target]:,.6g}"]


class SpansPanel(AnswerPanel):
    """Spans of a text, highlighted, with their scores."""

    def place(self) -> list[Any]:
        """See `AnswerPanel.place`."""
        marked = gr.HighlightedText(label=self.target, show_legend=True, combine_adjacent=False)
        return [marked, _table(["text", "label", "score"], label="spans")]

    def values(self, answered: Answered) -> list[Any]:
        """See `AnswerPanel.values`."""
        text, spans = _text_of(answered, self.text), answered.columns[self.target]
        rows = [[text[span["start"] : span["end"]], span["label"], _share(span["score"])] for span in spans]
        return [highlighted(text, spans), rows]


class ExtractedPanel(AnswerPanel):
    """A part of a text as the answer to a question, highlighted, and the best parts."""

    def place(self) -> list[Any]:
        """See `AnswerPanel.place`."""
        answer = gr.Textbox(label=self.target, interactive=False)
        marked = gr.HighlightedText(label=self.text or "where", combine_adjacent=False)
        return [answer, marked, _table(["text", "score"], label="best spans")]

    def values(self, answered: Answered) -> list[Any]:
        """See `AnswerPanel.values`."""
        row, text = answered.columns, _text_of(answered, self.text)
        start, end = row[f"{self.target}_start"], row[f"{self.target}_end"]
        spans = [] if start < 0 else [{"start": start, "end": end, "label": "answer"}]
        best = [[part["text"], _share(part["score"])] for part in row[f"{self.target}_best"]]
        best.append(["(no answer)", _share(row[f"{self.target}_no_answer"])])
        return [row[self.target] or "(no answer in the text)", highlighted(text, spans), best]


class ChoicePanel(AnswerPanel):
    """The chosen one of the row's choices."""

    def place(self) -> list[Any]:
        """See `AnswerPanel.place`."""
        return [gr.Textbox(label=self.target, interactive=False), gr.Label(label="probabilities", show_heading=False)]

    def values(self, answered: Answered) -> list[Any]:
        """See `AnswerPanel.values`."""
        row = answered.columns
        given = row[f"{self.target}_scores"]
        columns = getattr(self.task, "choice_columns", [])
        names = columns if len(columns) == len(given) else [str(place) for place in range(1, len(given) + 1)]
        scores = {name: score for name, score in zip(names, given, strict=True) if score is not None}
        return [f"{row[self.target]}: {row[f'{self.target}_text']}", scores]


class TriplesPanel(AnswerPanel):
    """Entities, highlighted, and the triples that they form."""

    def place(self) -> list[Any]:
        """See `AnswerPanel.place`."""
        marked = gr.HighlightedText(label="entities", show_legend=True, combine_adjacent=False)
        return [marked, _table(["head", "relation", "tail", "score"], label=self.target)]

    def values(self, answered: Answered) -> list[Any]:
        """See `AnswerPanel.values`."""
        text, triples = _text_of(answered, self.text), answered.columns[self.target]
        rows = [[part["head"]["text"], part["label"], part["tail"]["text"], _share(part["score"])] for part in triples]
        return [highlighted(text, answered.columns[f"{self.target}_entities"]), rows]


class TextPanel(AnswerPanel):
    """A text that the model wrote; with choices their probabilities."""

    def __init__(self, name: str, task: TargetTask, *, chooses: bool) -> None:
        super().__init__(name, task)
        self.chooses = chooses

    def place(self) -> list[Any]:
        """See `AnswerPanel.place`."""
        text = gr.Textbox(label=self.target, interactive=False, lines=3, max_lines=20, buttons=["copy"])
        end = gr.Markdown()
        return [text, end, *([gr.Label(label="probabilities", num_top_classes=TOP)] if self.chooses else [])]

    def values(self, answered: Answered) -> list[Any]:
        """See `AnswerPanel.values`."""
        row = answered.columns
        why = {"length": "cut at the longest answer"}.get(row[f"{self.target}_finish"], "ended by itself")
        note = f"log-probability {row[f'{self.target}_log_probability']:.2f}, {why}"
        return [row[self.target], note, *([json.loads(row[f"{self.target}_choices"])] if self.chooses else [])]


class OtherPanel(AnswerPanel):
    """An answer of another form, as in the output table."""

    def place(self) -> list[Any]:
        """See `AnswerPanel.place`."""
        return [gr.JSON(label=self.target)]

    def values(self, answered: Answered) -> list[Any]:
        """See `AnswerPanel.values`."""
        return [answered.columns[self.target]]


def panels_of(model: Loaded) -> list[AnswerPanel]:
    """Return a panel for each target."""
    columns, joins = model.output_columns(), model.bundle.schema.joins()
    panels = []
    for name, task in model.bundle.targets.items():
        text = task.reads
        if text in joins:  # a question and a context that are read as one: spans lie in the last
            text = list(flat_names(joins[text]))[-1]
        panels.append(_panel(name, task, text, columns))
    return panels


def _panel(name: str, task: TargetTask, text: str | None, columns: Mapping[str, str]) -> AnswerPanel:
    target = task.target
    if isinstance(task, Writes):
        return TextPanel(name, task, chooses=f"{target}_choices" in columns)
    if task.answers_spans:
        return SpansPanel(name, task, text)
    if f"{target}_best" in columns:
        return ExtractedPanel(name, task, text)
    if f"{target}_entities" in columns:
        return TriplesPanel(name, task, text)
    if f"{target}_scores" in columns:
        return ChoicePanel(name, task)
    if task.labels:
        return (LabelPanel if f"{target}_probability" in columns else LabelSetPanel)(name, task)
    return (NumberPanel if columns.get(target) in ("double", "float") else OtherPanel)(name, task)


def highlighted(text: str, spans: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a text with its spans; of spans that overlap the first and longest is marked."""
    marked: list[dict[str, Any]] = []
    for span in sorted(spans, key=lambda part: (part["start"], -part["end"])):
        if not marked or span["start"] >= marked[-1]["end"]:
            marked.append({"entity": span["label"], "start": span["start"], "end": span["end"]})
    return {"text": text, "entities": marked}


def explanation(answered: Answered, model: Loaded) -> str:
    """Return how each label's probability, or each number, changes when a column is left out, as HTML; "" for none."""
    parts = []
    for name, task in model.bundle.targets.items():
        if name not in answered.scores or not answered.without:
            continue
        scores = answered.scores[name]
        if task.labels and len(scores) == len(task.labels):
            best = int(max(range(len(scores)), key=lambda place: scores[place]))
            own, others = float(scores[best]), {c: float(s[name][best]) for c, s in answered.without.items()}
            parts.append(_bars(f"probability of {task.labels[best]}", own, others, percent=True))
        elif isinstance(scores, float) or getattr(scores, "ndim", 1) == 0:
            others = {column: float(own[name]) for column, own in answered.without.items()}
            parts.append(_bars(task.target, float(scores), others, percent=False))
    return str(Markup("").join(parts))


def _bars(what: str, own: float, without: Mapping[str, float], *, percent: bool) -> Markup:
    """Return a bar a column, to the right where the column raises a figure."""
    changes = {column: own - value for column, value in without.items()}
    widest = max(map(abs, changes.values())) or 1.0
    lines = []
    for column, change in sorted(changes.items(), key=lambda item: -abs(item[1])):
        width = 50 * abs(change) / widest
        side = "left:50%" if change >= 0 else "right:50%"
        colour = "#0b63a8" if change >= 0 else "#c2410c"
        figure = f"{change * 100:+.1f} points" if percent else f"{change:+,.4g}"
        lines.append(
            Markup(
                '<div style="display:grid;grid-template-columns:9em 1fr 7em;gap:10px;align-items:center;margin:3px 0">'
                '<span style="overflow:hidden;text-overflow:ellipsis">{}</span>'
                '<span style="position:relative;height:12px;background:color-mix(in srgb,currentColor 8%,transparent);'
                'border-radius:3px"><span style="position:absolute;top:0;bottom:0;{};width:{}%;background:{};'
                'border-radius:3px"></span></span><span style="text-align:right">{}</span></div>'
            ).format(column, Markup(side), f"{width:.1f}", colour, figure)
        )
    head = Markup("<p>What each column adds to the <b>{}</b>, {}: the change against the same row without it.</p>")
    return head.format(what, f"{own:.1%}" if percent else f"{own:,.6g}") + Markup("").join(lines)


def _table(headers: Sequence[str], *, label: str) -> Any:
    widths = ["70%", "30%"] if len(headers) == 2 else None
    return gr.Dataframe(
        headers=list(headers), label=label, interactive=False, wrap=True, type="array", column_widths=widths
    )


def _share(score: float) -> str:
    return f"{score:.3f}"


def _text_of(answered: Answered, column: str | None) -> str:
    return words_text(answered.record.get(column or ""), row=0, column=column or "")
