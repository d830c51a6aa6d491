"""Broken annotation files: each is refused with its place, or read with every row counted; nothing else happens."""

import copy
import json
import random
import re

import annotation_files as files
import pytest
from annotation_files import GOOD

from fusetune.data.table import Table
from fusetune.errors import BadCell, TableError, TooManyRejected, UserError
from fusetune.tasks.answers.cells import gold
from fusetune.tasks.entities.task import EntitiesTask

ROWS = GOOD * 3
WRITTEN = {
    "label_studio": ("t.json", files.label_studio(ROWS)),
    "label_studio_min": ("t.json", files.label_studio_min(ROWS)),
    "squad": ("t.json", files.squad(ROWS)),
    "doccano": ("t.jsonl", files.doccano(ROWS)),
    "doccano_entities": ("t.jsonl", files.doccano_entities(ROWS)),
    "spacy": ("t.json", files.spacy(ROWS)),
    "conll": ("t.conll", files.conll(ROWS)),
    "conll2003": ("t.txt", "-DOCSTART- -X- -X- O\n\n" + files.conll(ROWS, "BIOES", " ", ("NN", "B-NP"))),
    "semeval": ("t.txt", files.semeval(ROWS)),
}
"""File name and content of a good file of each format."""
ODD = [None, True, -3, 3.7, 10**6, 10**30, "", "x", "3", "\0", "\ud83d", [], {}, [[0, 3, "PER"]], {"start": 1}, [None]]
"""What stands in the place of a value."""
FORMATTED = [name for name, (file, _) in WRITTEN.items() if file.startswith("t.json")]


def paths(value, path=()):
    """Every place in a JSON value below its rows."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from paths(child, (*path, key))


def put(value, path, new):
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


def in_json(name, draw):
    """One value of one row replaced, removed or repeated."""
    file, text = WRITTEN[name]
    lines = file.endswith(".jsonl")
    rows = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    places = [path for path in paths(rows) if name != "squad" or len(path) > 4]  # inside of a question or its paragraph
    path, act = draw.choice(places), draw.randrange(8)
    parent = rows
    for key in path[:-1]:
        parent = parent[key]
    if act == 0 and isinstance(parent, dict) and len(path) > 1:
        del parent[path[-1]]
    elif act == 1 and isinstance(parent, list) and len(path) > 1:
        parent.append(copy.deepcopy(parent[path[-1]]))
    else:
        put(rows, path, draw.choice(ODD))
    return "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)


def in_offsets(name, draw):
    """One offset beyond, before, reversed, a fraction, text; or a span twice with two labels."""
    text, act = WRITTEN[name][1], draw.randrange(6)
    pattern = r'("(?:start|end|start_offset|end_offset|answer_start)": )(\d+)|(\[)(\d+)(?=, \d+, ")'
    match = draw.choice(list(re.finditer(pattern, text)))
    number = int(match[2] or match[4])
    new = [str(number + 1), str(number - 1), "-1", "99999", f"{number}.5", f'"{number}"'][act]
    return text[: match.start()] + (match[1] or match[3]) + new + text[match.end() :]


LINES = [
    "word",
    "word\tB-PER\tmore\tcolumns\there",
    "\tB-PER",
    "word\t",
    "\t\t",
    "wor\0d\tO",
    "word X-PER",
    "word\tX-PER",
    "word\tB-",
    "word\tI-LOC",
    "word NN B-NP Q-LOC",
    "-DOCSTART- -X- O O",
    "# a comment",
    "",
    '9\t"no entities"',
    '9\t"<e1>one</e1>"\nOther',
    '9\t"<e1>a <e2>b</e1> c</e2>"\nOther',
    "Other\nOther\nOther",
]


def in_lines(name, draw):
    """One line put in, taken out, doubled or replaced."""
    lines, act = WRITTEN[name][1].split("\n"), draw.randrange(4)
    index = draw.randrange(len(lines))
    lines[index : index + (act > 0)] = [[draw.choice(LINES)], [], [lines[index]] * 2, [draw.choice(LINES)]][act]
    return "\n".join(lines)


def in_bytes(name, draw):
    """A file cut off, with bytes of another encoding, a NUL, a part doubled, a byte order mark, or other line ends."""
    data, act = WRITTEN[name][1].encode(), draw.randrange(10)
    start = draw.randrange(len(data))
    end = min(start + draw.randrange(1, 200), len(data))
    return [
        data[:start],
        data[:start] + b"\xe9" + data[start:],
        data[:start] + b"\0" + data[start:],
        data[:start] + data[start:end] + data[start:],
        data[:start] + data[end:],
        b"\xef\xbb\xbf" + data,
        data.replace(b"\n", b"\r\n"),
        WRITTEN[name][1].encode("utf-16"),
        WRITTEN[name][1].encode("utf-16-le"),
        WRITTEN[name][1].encode("latin-1", "replace"),
    ][act]


def cases():
    """240 broken files: (name of the format, kind of fault, number)."""
    for number in range(60):
        yield FORMATTED[number % len(FORMATTED)], in_json, number
        yield FORMATTED[number % len(FORMATTED)], in_offsets, number
        yield ["conll", "conll2003", "semeval"][number % 3], in_lines, number
        yield list(WRITTEN)[number % len(WRITTEN)], in_bytes, number


def check_usable(table):
    """Each row that was read is right, or its target says which row and why it is not."""
    for index in range(len(table)):
        row, number = table.row(index), int(table.rows[index])
        for target, about in (("label", "text"), ("entities", "text"), ("tags", "tokens"), ("answer", "context")):
            if row.get(target) is None or about not in row:
                continue
            try:
                if target == "answer":
                    gold(row[target], None, row[about], row=number, column=target)
                else:
                    EntitiesTask(target).resolve(row[target], row[about], row=number)
            except BadCell as error:
                assert error.row == number and error.why


def check_counted(table):
    used, lost = table.rows.tolist(), [item.row for item in table.rejected]
    assert sorted(used + lost) == list(range(len(used) + len(lost)))
    assert all(re.search(r"line \d+|element \d+", item.why) for item in table.rejected)


@pytest.mark.parametrize(
    ("name", "fault", "number"), list(cases()), ids=lambda value: getattr(value, "__name__", str(value))
)
def test_refused_with_its_place_or_counted(tmp_path, name, fault, number):
    content = fault(name, random.Random(f"{name} {fault.__name__} {number}"))
    path = tmp_path / WRITTEN[name][0]
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    try:
        table = Table.read(path)
    except TooManyRejected as error:
        assert path.name in str(error)
    except TableError as error:
        assert path.name in str(error)
        placed = re.search(r"row \d+|character \d+|byte \d+|line \d+", str(error))
        assert placed or "nothing in this" in str(error) or "empty" in str(error) or "UTF-16" in str(error)
    else:
        check_counted(table)
        check_usable(table)
        if fault in (in_json, in_offsets) and name != "squad":
            assert len(table) + len(table.rejected) in (len(ROWS), len(ROWS) + 1)


@pytest.mark.parametrize("name", WRITTEN)
def test_the_files_are_good_before(tmp_path, name):
    path = tmp_path / WRITTEN[name][0]
    path.write_text(WRITTEN[name][1])
    table = Table.read(path)
    assert table.rejected == [] and len(table) == (9 if name == "semeval" else len(ROWS))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("t.json", "[" * 200_000),
        ("t.json", '{"data": ' + "[" * 200_000),
        ("t.json", '[{"a": ' + "9" * 10_000 + ', "text": "x"}]'),
        ("t.json", '[["Ada", {"entities": [[0, 3, "A"]], "entities": []}], ["Bo", {"entities": [[0, 2, "A"]]}]]'),
        ("t.json", '[["A\\ud83dda", {"entities": [[0, 3, "A"]]}], ["Bo", {"entities": [[0, 2, "A"]]}]]'),
        ("t.json", '[["Ada", {"entities": [[0, NaN, "A"]]}], ["Bo", {"entities": [[0, 2, "A"]]}]]'),
        ("t.json", '[["Ada", {"entities": [[0, 3, "A"]]}]] and more'),
        ("t.json", "[]"),
        ("t.json", "{}"),
        ("t.json", "null"),
        ("t.json", '"text"'),
        ("t.json", ""),
        ("t.conll", "\n\n\n"),
        ("t.conll", "# only a comment\n"),
        ("t.conll", "-DOCSTART- O\n"),
        ("t.txt", "plain text\nof two lines\n"),
        ("t.json", b"PK\x03\x04zip"),
        ("t.conll", b"\x1f\x8bgzip"),
    ],
)
def test_hopeless_files(tmp_path, file, content):
    path = tmp_path / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        table = Table.read(path)
    except UserError as error:
        assert path.name in str(error)
    else:
        check_counted(table)
        assert table.rejected or file.endswith("json")
