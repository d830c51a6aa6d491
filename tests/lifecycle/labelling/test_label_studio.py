"""Label Studio's formats: tasks and configuration that fit together, and all three exports."""

import json
from xml.etree import ElementTree

import pytest

from fusetune.errors import TableError
from fusetune.lifecycle.labelling.label_studio import config_of, document_root, read_tasks, task_of, variables

KINDS = {"the text": "text", "photo": "image", "2nd voice": "audio", "größe": "number"}


def test_names_of_fields_are_plain_and_different():
    names = variables(["a b", "a.b", "1st", "größe", "!"])
    assert len(set(names.values())) == 5
    assert all(name.isascii() and name.isidentifier() for name in names.values())


def test_tasks_and_configuration_name_the_same_fields(tmp_path):
    cells = {"the text": "a < b & c", "photo": "pics/a b.png", "2nd voice": b"RIFF1234", "größe": None}
    guesses = [("cat & dog", 0.75), ("cow", 0.2)]
    task = task_of(
        ("row_id", "r1"), cells, KINDS, base_dir=tmp_path, root=tmp_path, control="label", guesses=guesses, version="v"
    )
    view = ElementTree.fromstring(config_of(KINDS, ["cat & dog", "cow"], control="label", row_id="row_id"))
    shown = {tag.get("name"): tag for tag in view if tag.get("value", "").startswith("$")}
    assert [tag.tag for tag in shown.values()] == ["Text", "Image", "Audio", "Text"]
    assert {tag.get("value")[1:] for tag in shown.values()} | {"row_id"} == set(task["data"])
    (choices,) = view.iter("Choices")
    assert choices.get("toName") in shown and choices.get("choice") == "single"
    assert [choice.get("value") for choice in choices] == ["cat & dog", "cow"]
    (prediction,) = task["predictions"]
    (result,) = prediction["result"]
    assert result["from_name"] == choices.get("name") and result["to_name"] == choices.get("toName")
    assert result["value"] == {"choices": ["cat & dog"]} and prediction["score"] == 0.75
    assert task["data"]["photo"] == "/data/local-files/?d=pics/a%20b.png"
    assert task["data"]["c2nd_voice"].startswith("data:audio/wav;base64,")
    json.dumps(task)


def test_before_any_label_is_known_the_label_is_typed():
    view = ElementTree.fromstring(config_of({"text": "text"}, [], control="label", row_id="row_id"))
    (area,) = view.iter("TextArea")
    assert area.get("name") == "label" and area.get("toName") == "text"


def test_files_are_served_from_a_folder_above_all_of_them(tmp_path):
    home = tmp_path / "tables"
    cells = ["a.png", "../media/b.png; c.png", None, b"PNG", "https://host/d.png", {"bytes": None, "path": "e.png"}]
    assert document_root(["a.png", "sub/b.png"], home) == home and document_root([], home) == home
    root = document_root(cells, home)
    assert root == tmp_path
    row, options = ("row_id", "r"), {"base_dir": home, "root": root, "control": "label"}
    paths = [task_of(row, {"photo": cell}, {"photo": "image"}, **options)["data"]["photo"] for cell in cells]
    assert paths[:3] == ["/data/local-files/?d=tables/a.png", "/data/local-files/?d=media/b.png", ""]
    assert paths[4:] == ["https://host/d.png", "/data/local-files/?d=tables/e.png"]


def annotation(label=None, *, cancelled=False, control="label"):
    result = [] if label is None else [{"from_name": control, "type": "choices", "value": {"choices": [label]}}]
    return {"id": 1, "was_cancelled": cancelled, "result": result}


def test_json_export():
    tasks = [
        {"id": 1, "data": {"row_id": "a"}, "annotations": [annotation("x")], "predictions": []},
        {"id": 2, "data": {"row_id": "b"}, "annotations": [annotation(cancelled=True)]},
        {"id": 3, "data": {"row_id": "c"}, "annotations": [annotation("x"), annotation("y"), annotation("y")]},
        {"id": 4, "data": {"row_id": "d"}, "annotations": [annotation("x"), annotation("y")]},
        {"id": 5, "data": {"row_id": "e"}, "annotations": []},
        {"id": 6, "data": {"row_id": "f"}, "annotations": [annotation()]},
        {"id": 7, "data": {"row_id": "g"}, "annotations": [annotation(cancelled=True), annotation("z")]},
        {"id": 8, "data": {"row_id": "h"}, "annotations": [annotation("z", control="another")]},
    ]
    labels, split = read_tasks(tasks, "row_id", "label", file="export.json")
    assert labels == {"a": "x", "b": None, "c": "y", "g": "z"}
    assert split == ["d"]


def test_json_of_a_typed_label():
    done = {"result": [{"from_name": "label", "type": "textarea", "value": {"text": ["x"]}}]}
    assert read_tasks([{"data": {"row_id": "a"}, "annotations": [done]}], "row_id", "label", file="f")[0] == {"a": "x"}


def test_json_min_export():
    tasks = [
        {"row_id": "a", "text": "t", "id": 1, "label": "x", "annotator": 1},
        {"row_id": "b", "text": "t", "id": 2, "label": {"choices": ["y", "z"]}},
        {"row_id": "c", "text": "t", "id": 3},
    ]
    assert read_tasks(tasks, "row_id", "label", file="f") == ({"a": "x", "b": "y"}, [])


@pytest.mark.parametrize("content", [[{"data": {"text": "t"}}], {"a": 1}, ["x"], 3])
def test_another_json_is_refused(content):
    with pytest.raises(TableError, match="row_id"):
        read_tasks(content, "row_id", "label", file="f")
