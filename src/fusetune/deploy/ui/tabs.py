"""The page's tabs: a row and its answers, search, recommendations, a chat, a table, the report."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fusetune._optional import optional_import
from fusetune.data.table import Table
from fusetune.deploy.predictions import Predictions
from fusetune.deploy.rows import reading_of
from fusetune.deploy.serve.inputs import table_of
from fusetune.deploy.serve.loaded import Loaded
from fusetune.deploy.serve.media import MEDIA
from fusetune.deploy.serve.openai_chat import Answer, ChatRequest
from fusetune.deploy.serve.options import Limits
from fusetune.deploy.serve.problems import Problem
from fusetune.deploy.serve.searching import query_inputs
from fusetune.deploy.tuned import predict
from fusetune.deploy.ui.answers import explanation, panels_of
from fusetune.deploy.ui.asking import ask, refused, shown_errors, similarities
from fusetune.deploy.ui.examples import ExampleRows
from fusetune.deploy.ui.widgets import PURPOSE, Widgets
from fusetune.errors import BadCell
from fusetune.evaluation.report.write import render
from fusetune.modalities.media.cells import NO_FILES
from fusetune.modalities.messages import parse_messages
from fusetune.types import Message

gr: Any = optional_import("gradio", PURPOSE)
ONE_AT_A_TIME = {"concurrency_limit": 1, "concurrency_id": "model"}
"""Rows are computed one after the other, whoever asks."""
TABLES = [".csv", ".tsv", ".json", ".jsonl"]
"""Formats of tables that are read: those whose size in memory follows from the file's size."""
MOST_SHOWN = 2000
"""Users or items that a list offers; other ids can be typed."""


@dataclass(frozen=True)
class Shown:
    """What the tabs are made of.

    Attributes:
        model: the model.
        limits: of what is read.
        examples: rows to click at.
    """

    model: Loaded
    limits: Limits
    examples: ExampleRows


def row_tab(shown: Shown) -> None:
    """A widget a column, and the answers of a model that predicts or writes."""
    model = shown.model
    panels = panels_of(model)
    with gr.Row(equal_height=False):
        with gr.Column(scale=1):
            widgets = Widgets.of(model, model.inputs, shown.examples)
            with gr.Row():
                clear = gr.ClearButton(value="Clear")
                button = gr.Button("Predict" if not model.writes else "Write", variant="primary")
        with gr.Column(scale=1):
            truth = gr.Textbox(label="in the table", interactive=False, visible=False)
            groups = [panel.place() for panel in panels]
            note = gr.Markdown(visible=False)
            why = gr.HTML()
            with gr.Accordion("As the server answers it", open=False):
                raw = gr.JSON(show_label=False)
    outputs = [part for group in groups for part in group]
    everything = [*outputs, note, why, raw]

    def predict_row(*values: Any) -> list[Any]:
        with shown_errors():
            answered = ask(model, widgets.record(values, shown.limits), explain=True)
            row = answered.columns
            unanswered = all(row.get(panel.target) is None for panel in panels)
            if unanswered:
                raise refused(answered.error or "the model gives no answer")
            filled = [
                value
                for panel, group in zip(panels, groups, strict=True)
                for value in (panel.values(answered) if row[panel.target] is not None else [None] * len(group))
            ]
            said = gr.Markdown(value=_escaped(answered.error), visible=answered.error is not None)
            return [*filled, said, explanation(answered, model), row]

    asked = {"fn": predict_row, "inputs": list(widgets.components), "outputs": everything, **ONE_AT_A_TIME}
    button.click(**asked, api_name="predict")
    for component in widgets.components:
        if isinstance(component, gr.Textbox):
            component.submit(**asked, api_visibility="private")
        component.input(lambda: gr.Textbox(visible=False), None, truth, queue=False, api_visibility="private")
    clear.add([*widgets.components, *outputs, why, raw])
    clear.click(
        lambda: (gr.Textbox(visible=False), gr.Markdown(visible=False)), None, [truth, note], api_visibility="private"
    )
    _examples(shown, widgets, truth, asked)


def _examples(shown: Shown, widgets: Widgets, truth: Any, asked: dict[str, Any]) -> None:
    """Place the rows to click at, which fill the widgets and are answered at once."""
    examples = shown.examples
    if not examples.rows:
        return
    names = list(widgets.inputs.kinds)
    has_truth = any(examples.truth)
    components = [*_previews(widgets), *([gr.Textbox(render=False)] if has_truth else [])]
    headers = [*names, *(["in the table"] if has_truth else [])]
    samples = [
        [*(row.get(name) for name in names), *([known] if has_truth else [])]
        for row, known in zip(examples.rows, examples.truth, strict=True)
    ]
    dataset = gr.Dataset(
        components=components, samples=samples, headers=headers, label="Examples", samples_per_page=6, type="index"
    )

    def fill(index: int) -> list[Any]:
        known = examples.truth[index]
        return [*(samples[index][: len(names)]), gr.Textbox(value=known, visible=bool(known))]

    event = dataset.click(fill, dataset, [*widgets.components, truth], queue=False, api_visibility="private")
    event.then(**asked, api_visibility="private")


def _previews(widgets: Widgets) -> list[Any]:
    """Return components that show examples' cells, not placed in the page."""
    kinds = (gr.Image, gr.Audio)
    return [
        type(component)(render=False) if isinstance(component, kinds) else gr.Textbox(render=False)
        for component in widgets.components
    ]


def search_tab(shown: Shown) -> None:
    """The rows of the catalogue that are nearest to a query."""
    model = shown.model
    index = model.index
    assert index is not None
    inputs = query_inputs(model, index)
    with gr.Row(equal_height=False):
        with gr.Column(scale=1):
            widgets = Widgets.of(model, inputs, shown.examples)
            k = gr.Slider(1, 50, value=10, step=1, label="how many")
            where = gr.Textbox(label="filter", placeholder='price < 50 and colour in ["red", "blue"]', max_lines=1)
            button = gr.Button("Search", variant="primary")
        with gr.Column(scale=2):
            found = gr.Dataframe(label=f"of {len(index):,} rows", interactive=False, wrap=True)

    def search(*values: Any) -> Any:
        with shown_errors():
            *cells, num, rule = values
            record = widgets.record(cells, shown.limits)
            hits = index.search(table_of([record]), k=int(num), where=rule or None)
            return _hits(hits)

    asked = {"fn": search, "inputs": [*widgets.components, k, where], "outputs": found, **ONE_AT_A_TIME}
    button.click(**asked, api_name="search")
    for component in (*widgets.components, where):
        if isinstance(component, gr.Textbox):
            component.submit(**asked, api_visibility="private")
    if shown.examples.rows:
        names = list(inputs.kinds)
        samples = [[row.get(name) for name in names] for row in shown.examples.rows]
        dataset = gr.Dataset(
            components=_previews(widgets), samples=samples, headers=names, label="Examples", type="index"
        )
        event = dataset.click(
            lambda place: samples[place] if len(names) > 1 else samples[place][0],
            dataset,
            list(widgets.components),
            queue=False,
            api_visibility="private",
        )
        event.then(**asked, api_visibility="private")


def compare_tab(shown: Shown) -> None:
    """How near the sides of a row are, and the answer about the pair."""
    model = shown.model
    panels = panels_of(model)
    with gr.Row(equal_height=False):
        with gr.Column(scale=1):
            widgets = Widgets.of(model, model.inputs, shown.examples)
            button = gr.Button("Compare", variant="primary")
        with gr.Column(scale=1):
            groups = [panel.place() for panel in panels]
            near = gr.Dataframe(headers=["side", "side", "cosine similarity"], interactive=False, type="array")

    def compare(*values: Any) -> Any:
        with shown_errors():
            answered = ask(model, widgets.record(values, shown.limits))
            pairs = similarities(answered, list(model.bundle.model.compared))
            if not pairs:
                raise refused(answered.error or "two sides are needed to compare")
            row = answered.columns
            filled = [
                value
                for panel, group in zip(panels, groups, strict=True)
                for value in (panel.values(answered) if row[panel.target] is not None else [None] * len(group))
            ]
            return [*filled, pairs] if filled else pairs

    outputs = [*(part for group in groups for part in group), near]
    asked = {"fn": compare, "inputs": list(widgets.components), "outputs": outputs, **ONE_AT_A_TIME}
    button.click(**asked, api_name="compare")
    _examples(shown, widgets, gr.Textbox(visible=False), asked)


def recommend_tab(shown: Shown) -> None:
    """Items for a known user, or for one who likes some items."""
    model = shown.model
    interactions = model.bundle.interactions
    assert interactions is not None
    items = [key for key in interactions.items if key is not None]
    with gr.Row(equal_height=False):
        with gr.Column(scale=1):
            who = gr.Dropdown(
                list(interactions.users[:MOST_SHOWN]), value=None, label="user", allow_custom_value=True,
                info="of the train rows",
            )  # fmt: skip
            liked = gr.Dropdown(
                items[:MOST_SHOWN], value=[], multiselect=True, label="or a new user who likes", allow_custom_value=True
            )
            k = gr.Slider(1, 50, value=10, step=1, label="how many")
            button = gr.Button("Recommend", variant="primary")
        with gr.Column(scale=2):
            found = gr.Dataframe(label=f"of {len(items):,} items", interactive=False, wrap=True)

    def recommend(user: str | None, likes: list[str], num: int) -> Any:
        with shown_errors():
            if bool(user) == bool(likes):
                raise refused("name a user, or items that a new user likes")
            if user:
                return _hits(model.tuned.recommend(user_id=user, k=int(num)))
            return _hits(model.tuned.recommend(liked=likes, k=int(num)))

    button.click(recommend, [who, liked, k], found, api_name="recommend", **ONE_AT_A_TIME)


def _hits(hits: Predictions) -> dict[str, Any]:
    """Return what was found as a table.

    Raises:
        Problem: nothing was found; with the reason.
    """
    rows = hits.table.to_pylist()
    names = [name for name in hits.table.column_names if name not in ("row", "user", "error")]
    if all(row["rank"] is None for row in rows):
        raise refused(rows[0]["error"] or "nothing is found")
    if rows[0]["error"]:
        gr.Warning(_escaped(rows[0]["error"]))
    cells = [[f"{row[n]:.3f}" if isinstance(row[n], float) else row[n] for n in names] for row in rows]
    return {"headers": names, "data": cells}


def chat_tab(shown: Shown) -> None:
    """A chat with a model that was tuned on chats, which answers word by word."""
    model = shown.model
    chat = gr.Chatbot(label=model.name, height=460, buttons=[], render_markdown=False)
    with gr.Row():
        box = gr.Textbox(placeholder="Your message", show_label=False, scale=8, lines=1, max_lines=6, autofocus=True)
        button = gr.Button("Send", variant="primary", scale=1, min_width=90)
    with gr.Row():
        stop, clear = gr.Button("Stop", size="sm"), gr.Button("New chat", size="sm")

    def send(text: str, history: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        with shown_errors():
            before = [{"role": turn["role"], "content": _said(turn["content"])} for turn in history]
            body = {"messages": [*before, {"role": "user", "content": text}]}
            if not text.strip():
                raise refused("there is no message")
            pieces = Answer(model, ChatRequest.of(body, chars=shown.limits.chars))()
            turns, answer = [_turn(one["role"], one["content"]) for one in body["messages"]], ""
            yield "", turns
            for piece in pieces:
                answer += piece
                yield "", [*turns, _turn("assistant", answer)]

    asked = {"fn": send, "inputs": [box, chat], "outputs": [box, chat], **ONE_AT_A_TIME}
    writing = [button.click(**asked, api_name="chat"), box.submit(**asked, api_visibility="private")]
    stop.click(None, None, None, cancels=writing, api_visibility="private")
    clear.click(lambda: ("", []), None, [box, chat], queue=False, cancels=writing, api_visibility="private")
    if first := _openings(shown):
        dataset = gr.Dataset(
            components=[gr.Textbox(render=False)], samples=[[text] for text in first], headers=["message"],
            label="Examples", type="index",
        )  # fmt: skip
        dataset.click(lambda place: (first[place], []), dataset, [box, chat], queue=False, api_visibility="private")


def _openings(shown: Shown) -> list[str]:
    """Return the first messages of the examples' chats."""
    column = next(iter(shown.model.inputs.kinds))
    texts = []
    for row in shown.examples.rows:
        with suppress(BadCell):  # of a row that the model could not learn from either
            messages: Sequence[Message] = parse_messages(row[column], row=0, column=column)
            texts += [message.text for message in messages if message.role == "user"][:1]
    return list(dict.fromkeys(texts))


def _turn(role: str, text: str) -> dict[str, str]:
    """Return a turn as it is shown: as text, whatever tags it has."""
    return {"role": role, "content": html.escape(text, quote=False)}


def _said(content: Any) -> str:
    """Return the text of a turn that is shown, which the page sends in parts."""
    parts = content if isinstance(content, list) else [content]
    return html.unescape("".join(part if isinstance(part, str) else str(part.get("text", "")) for part in parts))


def table_tab(shown: Shown, folder: Path) -> None:
    """A table in, its predictions out."""
    model, limits = shown.model, shown.limits
    names = ", ".join(f"`{name}`" for name in model.inputs.kinds)
    files = "; pictures and sounds as base64" if any(kind in MEDIA for kind in model.inputs.kinds.values()) else ""
    gr.Markdown(f"A table with the columns {names}: {', '.join(TABLES)}, up to {limits.rows:,} rows{files}.")
    with gr.Row(equal_height=False):
        with gr.Column(scale=1):
            upload = gr.File(label="table", file_types=TABLES, height=160)
            upload.preprocess = lambda payload: payload and payload.path
            button = gr.Button("Predict", variant="primary")
        with gr.Column(scale=2):
            done = gr.File(label="predictions", interactive=False, visible=False)
            first = gr.Dataframe(label="the first rows", interactive=False, wrap=True, visible=False)

    def predict_table(path: str | None) -> tuple[Any, Any]:
        with shown_errors():
            if not path:
                raise refused("there is no table")
            if Path(path).suffix.lower() not in TABLES:
                raise refused(f"expected a table that ends in {', '.join(TABLES)}; came {Path(path).name}")
            table = Table.read(path, base_dir=NO_FILES, read=reading_of(model.bundle))
            table.source = Path(path).name
            if len(table) > limits.rows:
                text = f"there are {len(table):,} rows; at most {limits.rows:,} are answered at once"
                raise Problem(413, "too_large", text)
            table.require(model.inputs.kinds)
            model.inputs.records([table.row(number) for number in range(len(table))], limits)
            answers = predict(model.bundle, table, precision=model.precision)
            out = Path(tempfile.mkdtemp(dir=folder)) / "predictions.csv"
            answers.to_csv(out)
            head = answers.table.slice(0, 20)
            rows = [list(row.values()) for row in head.to_pylist()]
            shown_rows = {"headers": head.column_names, "data": rows}
            return gr.File(value=str(out), visible=True), gr.Dataframe(value=shown_rows, visible=True)

    button.click(predict_table, upload, [done, first], api_name="predict_table", **ONE_AT_A_TIME)


def report_tab(shown: Shown) -> None:
    """The run's report, which has no scripts and may run none."""
    results = shown.model.tuned.results
    assert results is not None
    page = Markup(
        '<iframe title="report" sandbox="" srcdoc="{}" style="width:100%;height:80vh;border:0;border-radius:6px">'
        "</iframe>"
    ).format(render(results))
    gr.HTML(str(page))


def _escaped(text: str | None) -> str:
    """Return a text as Markdown shows it, without markup."""
    return "" if text is None else str(Markup.escape(text)).replace("*", "\\*").replace("_", "\\_")
