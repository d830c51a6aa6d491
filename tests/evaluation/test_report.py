"""The report of every kind of task: whole, self-contained, safe with hostile text, and the same as its JSON."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from fusetune.errors import FolderError, StorageError
from fusetune.evaluation.report.comparison import comparison, learning, narrow_comparison
from fusetune.evaluation.report.panels import draw
from fusetune.evaluation.report.svg import Scale, figure, signed
from fusetune.evaluation.report.write import render, terminal_table, write_report
from fusetune.evaluation.results import (
    CurvePoint,
    LearningCurve,
    RunResults,
    TaskResult,
    from_json,
    read_results,
    to_json,
)
from fusetune.tasks.panels.classes import confused_pairs
from fusetune.tasks.panels.kinds import HeatmapPanel

Make = Callable[..., TaskResult]
MakeRun = Callable[..., RunResults]
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Collects tags and what they point to, and checks that they are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action", "data")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


@pytest.mark.parametrize(
    ("kind", "classes", "words"),
    [
        ("binary", 2, ["Reliability", "ROC", "Confusion matrix"]),
        ("multiclass", 10, ["Reliability", "ROC", "Most frequent confusions"]),
        ("multiclass", 31, ["The 15 classes with the lowest F1, of 31", "31 classes in the order"]),
        ("multilabel", 5, ["Reliability", "Precision and recall"]),
        ("ordinal", 5, ["Confusion matrix"]),
        ("regression", 0, ["Predicted against true", "Spread of errors"]),
    ],
)
def test_every_kind_of_task_has_its_report(kind: str, classes: int, words: list[str], task: Make, run: MakeRun) -> None:
    html = render(run(task(kind, 150, classes=classes)))
    page = parsed(html)
    for word in [
        *words,
        "Tuning",
        "frozen probe",
        "By slice",
        "The worst errors",
        "trained from scratch",
        "best: step",
    ]:
        assert word.lower() in html.lower()
    assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
    assert all(link.startswith(("#", "data:image/jpeg;base64,", "data:audio/wav;base64,")) for link in page.links)
    assert not re.search(r"https?://", html) and "@import" not in html and "url(" not in html
    assert "<script" not in html and "&lt;script&gt;" in html
    for svg in re.findall(r"<svg.*?</svg>", html, re.S):
        assert ElementTree.fromstring(svg.replace("&nbsp;", " ")).find("title") is not None


def test_two_tasks_share_a_page(task: Make, run: MakeRun) -> None:
    html = render(run(task("binary", 100), task("regression", 100)))
    assert html.count('class="verdict') == 2 and 'id="task2"' in html
    names = re.findall(r' id="([^"]+)"', html)
    assert len(names) == len(set(names))


def test_a_run_with_nothing_in_it_renders() -> None:
    empty = RunResults("", "0", "", "", 0, "cpu", 1, [TaskResult("binary", "y", "accuracy", True, 0, [])])
    parsed(render(empty))
    assert "There is no verdict" in render(empty)


def test_undefined_figures_and_odd_characters_render(task: Make, run: MakeRun) -> None:
    results = run(task("multiclass", 60, classes=3))
    for system in results.tasks[0].systems:
        for name in system.metrics:
            system.metrics[name].value = system.metrics[name].low = math.nan
    results.curve = LearningCurve([CurvePoint(1)])
    results.title = "a\x00b\ud800 ]]> {{ 7 * 7 }} <b>"
    results.tasks[0].labels[0] = "\ud800<x>\x1b"
    html = render(results)
    parsed(html)
    html.encode("utf-8")
    assert "{{ 7 * 7 }}" in html and "<b>" not in html.split("<body>")[1].split("</h1>")[0]


def test_files_are_written_and_read_again(task: Make, run: MakeRun, tmp_path: Path) -> None:
    results = run(task("multiclass", 60, classes=3))
    paths = write_report(results, tmp_path / "new" / "folder")
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == ["report.html", "report.json"]
    content = json.loads(paths["json"].read_text(), parse_constant=lambda name: pytest.fail(name))
    assert content["tasks"][0]["systems"][0]["kind"] == "baseline"
    assert to_json(read_results(paths["json"])) == to_json(results)
    assert render(read_results(paths["json"])).count("<svg") == render(results).count("<svg")


def test_nan_is_null_and_comes_back(run: MakeRun) -> None:
    results = run()
    assert math.isnan(results.phases[2].peak_mb)
    results.peak_mb = np.float32("inf")  # type: ignore[assignment]
    text = to_json(results)
    assert json.loads(text)["phases"][2]["peak_mb"] is None and json.loads(text)["peak_mb"] is None
    assert math.isnan(from_json(text).phases[2].peak_mb)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"title": 3}', "\x00"])
def test_what_is_no_report_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(FolderError, match=r"report\.json"):
        read_results(tmp_path / "report.json")
    with pytest.raises(FolderError):
        read_results(tmp_path / "none.json")


def test_a_folder_that_cannot_be_written_is_said(run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        write_report(run(), tmp_path / "file")


def test_the_terminal_table_has_all_systems_and_takes_markup_as_text(task: Make, run: MakeRun) -> None:
    results = run(task("binary", 100))
    results.tasks[0].systems[0].name = "[bold]odd[/wrong]"
    console = Console(file=io.StringIO(), width=120)
    console.print(terminal_table(results, path=Path("runs/report.html")))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[bold]odd[/wrong]" in text and "tuned" in text and "accuracy [95% interval]" in text
    assert "runs/report.html" in text and "100 test rows" in text


def test_many_classes_are_drawn_as_a_map_of_the_most_frequent() -> None:
    cells = [[index, index, 3] for index in range(300)] + [[0, 1, 2], [299, 4, 1]]
    labels = [f"<{index}>" for index in range(300)]
    picture = draw(HeatmapPanel(labels, cells))
    assert picture.count("<rect") <= 203 and "&lt;0&gt;" in picture
    assert confused_pairs(cells, labels)[0] == ["<0>", "<1>", 2, 0.4]


def test_the_comparison_shows_every_system_once(task: Make) -> None:
    picture = comparison(task("regression", 60))
    for name in ("majority", "frozen probe", "message", "photo", "voice", "tuned"):
        assert picture.count(f">{name}</text>") == 1


def test_the_learning_curve_leaves_out_what_was_not_measured() -> None:
    points = [CurvePoint(step, train_loss=1 / step) for step in (1, 2, 3)]
    assert len(learning(LearningCurve(points, 3, "accuracy"))) == 1
    points[1].val_metric = 0.5
    assert len(learning(LearningCurve(points, 3, "accuracy"))) == 2


def test_marks_of_the_learning_curve_stand_where_stages_begin_one_below_the_other() -> None:
    points = [CurvePoint(step, train_loss=1.0, stage="head" if step < 40 else "tune") for step in (0, 30, 40, 41)]
    (picture,) = learning(LearningCurve(points, 41, "accuracy"))
    root = ElementTree.fromstring(str(picture))
    texts = {"".join(one.itertext()): one for one in root.iter() if one.tag.endswith("text")}
    tune, kept = texts["tune"], texts["best: step 41"]
    assert abs(float(tune.get("y", "")) - float(kept.get("y", ""))) >= 11  # their size
    ticks = {float(name): float(one.get("x", "")) for name, one in texts.items() if name in ("0", "20", "40")}
    at = ticks[0] + (ticks[40] - ticks[0]) * 30 / 40
    assert abs(abs(float(tune.get("x", "")) - at) - 5) < 1  # beside the line at the last step before


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.8804, "0.880"),
        (-0.5, "−0.500"),
        (0, "0.000"),
        (12.345, "12.35"),
        (1234.5, "1,234"),
        (0.00012, "0.00012"),
        (math.nan, "–"),
    ],
)
def test_figures(value: float, text: str) -> None:
    assert figure(value) == text


def test_differences_show_their_signs() -> None:
    assert signed([0.07, -0.001, 0.0]) == ["+0.070", "−0.001", "0.000"]


@pytest.mark.parametrize("ends", [(0, 1), (0.81, 0.88), (-1e6, 1e6), (5, 5), (math.nan, 1), (1e-9, 2e-9)])
def test_ticks_are_round_and_within(ends: tuple[float, float]) -> None:
    scale = Scale(*ends, 0, 100)
    assert 1 <= len(scale.ticks) <= 7
    assert all(scale.low - 1e-9 * abs(scale.low) <= tick <= scale.high * (1 + 1e-9) for tick in scale.ticks)
    assert len({scale.label(tick) for tick in scale.ticks}) == len(scale.ticks)


EARLIER = sorted((Path(__file__).parent / "reports").glob("*.json"))
"""Reports as earlier versions wrote them."""


@pytest.mark.parametrize("path", EARLIER, ids=lambda path: path.stem)
def test_reports_of_earlier_versions_are_drawn(path: Path) -> None:
    content = json.loads(path.read_text())
    results = read_results(path)
    html = render(results)
    parsed(html)
    for before, task in zip(content["tasks"], results.tasks, strict=True):
        keys = {section.key for section in task.sections}
        if content["format"] == 1:
            wanted = {"per_class": "classes", "roc": "curves", "fit": "numbers", "calibration": "calibration"}
            assert keys >= {key for part, key in wanted.items() if before.get(part)}
            assert ("confusion" in keys) == bool((before.get("confusion") or {}).get("cells"))
        for section in task.sections:
            assert section.title in html
        if before.get("calibration"):
            calibration = next(section for section in task.sections if section.key == "calibration")
            assert calibration.figures["ece"] == before["calibration"]["ece"]
    assert from_json(to_json(results)).format == 2


def test_all_but_six_of_the_worst_errors_are_folded(task: Make, run: MakeRun) -> None:
    results = run(task("multiclass", 200, classes=5))
    assert len(results.tasks[0].errors) > 6
    html = render(results)
    before, _, folded = html.partition(f"{len(results.tasks[0].errors) - 6} more")
    assert before.count("<article") == 6 and folded.count("<article") == len(results.tasks[0].errors) - 6


def test_both_layouts_of_the_comparison_show_every_system(task: Make) -> None:
    judged = task("multiclass", 100, classes=3)
    wide, narrow = comparison(judged), narrow_comparison(judged)
    for system in judged.systems:
        assert f">{system.name}</text>" in wide and f">{system.name}</text>" in narrow
    width = float(re.search(r'viewBox="0 0 (\d+)', narrow).group(1))  # type: ignore[union-attr]
    assert width <= 390


def test_what_a_user_asks_for_is_in_the_report(task: Make, run: MakeRun) -> None:
    results = run(task("multilabel", 100, classes=4))
    results.folder = "runs/genres"
    results.backbones[0].licence = "apache-2.0"
    html = render(results)
    assert "fusetune predict runs/genres" in html and 'ft.load("runs/genres")' in html
    assert "apache-2.0" in html and "Learning rate" in html and "mean average precision of the labels" in html
    assert "2 h 03 min" in html  # the phases together
