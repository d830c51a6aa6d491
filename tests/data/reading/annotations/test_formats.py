"""Annotation files as tools export them, read as tables."""

import json

import annotation_files as files
import pytest
from annotation_files import GOOD, Sentence
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusetune.config.config import Config
from fusetune.config.read import FileFormat, ReadConfig
from fusetune.data.reading.annotations.formats import FORMATS
from fusetune.data.reading.annotations.spans import RawSpan, SpanFault, SpanReader
from fusetune.data.table import Table
from fusetune.errors import ConfigError, TableError
from fusetune.tasks.entities.task import EntitiesTask

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(path, text, **options):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Table.read(path, read=ReadConfig(**options))


def entities(table, target, text="text"):
    """The spans of each row, as the task resolves them."""
    task = EntitiesTask(target)
    pairs = zip(table.cells(target), table.cells(text), strict=True)
    return [task.resolve(cell, about, row=row) for row, (cell, about) in enumerate(pairs)]


@st.composite
def sentences(draw):
    words = draw(st.lists(st.text("aé#😀1", min_size=1, max_size=4), min_size=1, max_size=7))
    found, index = [], 0
    while index < len(words):
        length = draw(st.integers(0, 3))
        if length:
            end = min(index + length, len(words))
            found.append((index, end, draw(st.sampled_from(["PER", "LOC"]))))
            index = end
        else:
            index += 1
    return Sentence(tuple(words), tuple(found))


TEXTS = st.lists(sentences(), min_size=1, max_size=5)
SPANS = {
    "doccano": (files.doccano, ".jsonl", "label"),
    "doccano entities": (files.doccano_entities, ".jsonl", "entities"),
    "spacy": (files.spacy, ".json", "entities"),
    "label studio": (files.label_studio, ".json", "label"),
    "label studio, utf-16": (lambda texts: files.label_studio(texts, files.utf16), ".json", "label"),
    "label studio, minimal": (files.label_studio_min, ".json", "label"),
}


@pytest.mark.parametrize("name", SPANS)
@given(texts=TEXTS)
@QUICK
def test_spans_come_back_from_each_format(tmp_path, name, texts):
    write, ending, column = SPANS[name]
    table = read(tmp_path / f"t{ending}", write([*GOOD, *texts]))
    assert table.rejected == []
    assert entities(table, column) == [sentence.spans for sentence in [*GOOD, *texts]]


@pytest.mark.parametrize("scheme", ["BIO", "IOB1", "BIOES", "BILOU", "BMEWO"])
@given(texts=TEXTS, separator=st.sampled_from(["\t", " "]), middle=st.sampled_from([(), ("NN", "B-NP")]))
@QUICK
def test_spans_come_back_from_columns_of_words(tmp_path, scheme, texts, separator, middle):
    table = read(tmp_path / "t.conll", files.conll([*GOOD, *texts], scheme, separator, middle))
    assert table.rejected == [] and table.column_names == ["tokens", "tags"]
    assert entities(table, "tags", "tokens") == [sentence.spans for sentence in [*GOOD, *texts]]


@given(texts=TEXTS)
@QUICK
def test_answers_come_back_from_squad(tmp_path, texts):
    table = read(tmp_path / "t.json", files.squad([*GOOD, *texts]))
    for sentence, answer in zip([*GOOD, *texts], table.cells("answer"), strict=True):
        assert answer["answer_start"] == [start for start, *_ in sentence.spans]
        assert answer["text"] == [sentence.text[start:end] for start, end, _ in sentence.spans]


@pytest.mark.parametrize(
    ("scheme", "title"),
    [("BIO", "BIO"), ("IOB1", "IOB1"), ("BIOES", "BIOES"), ("BILOU", "BILOU"), ("BMEWO", "BMEWO")],
)
def test_the_scheme_is_said(tmp_path, scheme, title):
    assert f"({title})" in " ".join(read(tmp_path / "t.conll", files.conll(GOOD, scheme)).notes)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", files.label_studio(GOOD), "Label Studio"),
        ("a.json", files.label_studio_min(GOOD), "Label Studio"),
        ("a.json", files.squad(GOOD), "SQuAD"),
        ("a.json", json.dumps([json.loads(line) for line in files.doccano(GOOD).splitlines()]), "doccano"),
        ("a.jsonl", files.doccano(GOOD), "doccano"),
        ("a.jsonl", files.doccano_entities(GOOD), "doccano"),
        ("a.json", files.spacy(GOOD), "spaCy"),
        ("a.json", '{"classes": ["A"], "annotations": [["Ada", {"entities": [[0, 3, "A"]]}]]}', "spaCy"),
        ("a.jsonl", '["Ada", {"entities": [[0, 3, "A"]]}]\n', "spaCy"),
        ("a.txt", files.semeval(GOOD), "SemEval"),
        ("a.txt", files.conll(GOOD), "CoNLL"),
        ("a.tsv", files.conll(GOOD, "IOB1"), "CoNLL"),
        ("a.bio", files.conll(GOOD), "CoNLL"),
        ("a.iob", "-DOCSTART- O\n\n" + files.conll(GOOD, separator=" "), "CoNLL"),
    ],
)
def test_the_format_is_found_with_the_reason(tmp_path, name, content, expected):
    table = read(tmp_path / name, content)
    assert expected in table.notes[0] and table.rejected == []
    assert len(table) >= 1


@pytest.mark.parametrize(
    ("name", "content", "columns"),
    [
        ("a.tsv", "text\tlabel\nAda\tO\nBo\tB\n", ["text", "label"]),
        ("a.tsv", "text\tgroup\nAda\tO\n\nBo\tB-1\n\nCleo\tA\n", ["text", "group"]),
        ("a.jsonl", '{"text": "Ada", "label": ["calm"]}\n', ["text", "label"]),
        ("a.json", '[{"text": "Ada", "age": 3}, {"text": "Bo"}]', ["text", "age"]),
        ("a.json", '{"text": "Ada"}\n{"text": "Bo"}\n', ["text"]),
        ("a.json", '[{"id": 1, "data": "x", "annotations": 3}]', ["id", "data", "annotations"]),
    ],
)
def test_other_tables_are_read_as_ever(tmp_path, name, content, columns):
    assert read(tmp_path / name, content).column_names == columns


def test_the_format_can_be_chosen(tmp_path):
    labels = files.conll(GOOD).replace("B-", "").replace("I-", "")
    with pytest.raises(TableError, match="conll"):
        read(tmp_path / "t.txt", labels)
    table = read(tmp_path / "t.txt", labels, format="conll")
    assert table.row(0)["tags"][:2] == ["PER", "PER"]
    assert read(tmp_path / "t.jsonl", files.doccano(GOOD), format="table").row(0)["label"][0] == [0, 12, "PER"]
    with pytest.raises(ConfigError, match="format"):
        Config.build({"data": {"read": {"format": "brat"}}})


@pytest.mark.parametrize("asked", ["xpos", 5, -6])
def test_the_column_of_tags_can_be_chosen(tmp_path, asked):
    line = "{}\t{}\t_\tNOUN\tNN\t_\t0\troot\t_\t_\n"
    content = "# text = Ada\n" + line.format(1, "Ada") + "2-3\tdu" + "\t_" * 8 + "\n" + line.format(2, "de")
    table = read(tmp_path / "t.conllu", content, tag_column=asked)
    assert table.row(0) == {"tokens": ["Ada", "de"], "tags": ["NN", "NN"]}
    with pytest.raises(ConfigError, match="tag_column"):
        read(tmp_path / "t.conllu", content, tag_column="mood")


def test_an_unknown_prefix_rejects_the_sentence_with_its_line(tmp_path):
    content = files.conll(GOOD * 2).replace("B-LOC", "X-LOC")
    table = read(tmp_path / "t.conll", content)
    assert [item.row for item in table.rejected] == [0, 2, 4, 6] and len(table) == 4
    assert "line 6" in table.rejected[0].why and "X-LOC" in table.rejected[0].why


def test_documents_are_numbered_where_there_are_many(tmp_path):
    text = "".join(f"-DOCSTART- O\n\n{files.conll(GOOD[:2], separator=' ')}\n" for _ in range(12))
    assert read(tmp_path / "t.conll", text).cells("document_id") == [str(n // 2 + 1) for n in range(24)]
    assert "document_id" not in read(tmp_path / "few.conll", text[: len(text) // 3]).column_names


def test_words_that_look_like_comments_are_words(tmp_path):
    table = read(tmp_path / "t.conll", "# id 7 of 9\n#metoo\tO\n#\tO\nAda\tB-PER\n")
    assert table.cells("tokens") == [["#metoo", "#", "Ada"]]


def test_a_file_of_words_alone_can_be_predicted(tmp_path):
    table = read(tmp_path / "t.conll", "Ada\nmet\n\nBo\n")
    assert table.column_names == ["tokens"] and table.cells("tokens") == [["Ada", "met"], ["Bo"]]
    assert read(tmp_path / "t.conll", "Ada\nmet\n", tag_column="upos").column_names == ["tokens"]


def test_label_studio_choices_relations_and_tasks_that_nobody_has_annotated(tmp_path):
    tasks = json.loads(files.label_studio(GOOD[:1]))
    results = tasks[0]["annotations"][0]["result"]
    truth = {"ground_truth": True, "result": results}
    tasks = [
        tasks[0],
        {"id": 8, "data": {"text": "Bo"}, "annotations": [{"result": [], "was_cancelled": True}]},
        {"id": 9, "data": tasks[0]["data"], "annotations": [{"result": []}, truth]},
    ]
    table = read(tmp_path / "t.json", json.dumps(tasks))
    assert table.cells("mood") == ["calm", None, "calm"] and table.cells("id") == [0, 8, 9]
    spans = [{"start": start, "end": end, "label": label} for start, end, label in GOOD[0].spans]
    assert table.cells("label") == [spans, None, spans]
    assert table.cells("relations")[0] == [{"head": spans[0], "tail": spans[1], "label": "near"}]
    assert table.cells("relations")[1] is None


def test_json_min_has_no_columns_about_the_annotator(tmp_path):
    assert read(tmp_path / "t.json", files.label_studio_min(GOOD)).column_names == ["text", "id", "mood", "label"]


def test_squad_questions_without_an_answer_and_without_any_annotation(tmp_path):
    qas = [
        {"id": "a", "question": "Who?", "is_impossible": True, "answers": [], "plausible_answers": [{"text": "Bo"}]},
        {"id": "b", "question": "When?"},
        {"id": "c", "question": "Where?", "answers": [{"text": "Rome", "answer_start": 7}] * 2},
    ]
    data = [{"title": f"t{n}", "paragraphs": [{"context": "Ada in Rome", "qas": qas}]} for n in range(12)]
    table = read(tmp_path / "t.json", json.dumps({"data": data, "version": "1.1"}))
    none = {"text": [], "answer_start": []}
    assert table.cells("answer")[:3] == [none, None, {"text": ["Rome", "Rome"], "answer_start": [7, 7]}]
    assert len(table) == 36 and table.cells("document_id")[3] == "t1"


def test_semeval_relations_and_a_test_file_without_them(tmp_path):
    table = read(tmp_path / "t.txt", files.semeval(GOOD))
    assert table.column_names == ["id", "text", "relation"]
    assert table.row(0)["text"] == "<e1>Ada Lovelace</e1> met <e2>Bo</e2> in Rome ."
    lines = [line for line in files.semeval(GOOD).splitlines() if "<e1>" in line]
    assert read(tmp_path / "u.txt", "\n".join(lines)).cells("relation") == [None] * 3


@pytest.mark.parametrize(
    ("text", "offsets", "expected"),
    [("👨🏻\u200d🚒 firemen drive firetrucks", (22, 32), "firetrucks"), ("a\r\nb Ada Bo", (4, 7), "Ada")],
)
def test_offsets_of_other_units_are_told_by_the_words_around(text, offsets, expected):
    reader, span = SpanReader(None), RawSpan(*offsets, "T")
    reader.survey(text, [span])
    (entry,) = reader.read(text, [span])
    assert text[entry["start"] : entry["end"]] == expected
    assert reader.notes()


def test_offsets_can_be_said(tmp_path):
    row = json.dumps({"text": "😀 ab", "label": [[2, 4, "T"]]})
    assert entities(read(tmp_path / "a.jsonl", row, offsets="characters"), "label") == [[(2, 4, "T")]]
    assert entities(read(tmp_path / "b.jsonl", row, offsets="utf-16"), "label") == [[(2, 3, "T")]]


def test_a_span_that_is_not_its_text_is_rejected_with_row_and_offsets(tmp_path):
    tasks = json.loads(files.label_studio(GOOD))
    tasks[2]["annotations"][0]["result"][0]["value"]["text"] = "Cleopatra"
    table = read(tmp_path / "t.json", json.dumps(tasks))
    assert len(table) == 3 and [item.row for item in table.rejected] == [2]
    assert "2 to 6" in table.rejected[0].why and "Cleopatra" in table.rejected[0].why


def test_white_space_around_a_span_is_left_out_of_it():
    assert SpanReader(None).read("a Bo .", [RawSpan(1, 5, " PER ")]) == [{"start": 2, "end": 4, "label": "PER"}]
    with pytest.raises(SpanFault, match="white space"):
        SpanReader(None).read("a  b", [RawSpan(1, 3, "PER")])


def test_notes_beside_a_table_in_its_folder_are_no_table(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    (tmp_path / "README.txt").write_text("about")
    (tmp_path / "info.json").write_text("{}")
    assert len(Table.read(tmp_path)) == 1
    (tmp_path / "a.csv").unlink(), (tmp_path / "README.txt").unlink()
    (tmp_path / "info.json").write_text(files.squad(GOOD))
    assert len(Table.read(tmp_path)) == 4


def test_a_kept_form_is_of_its_settings(tmp_path):
    path = tmp_path / "t.conll"
    path.write_text(files.conll(GOOD, middle=("NN",)))
    first = Table.read(path, cache_dir=tmp_path / "cache")
    other = Table.read(path, cache_dir=tmp_path / "cache", read=ReadConfig(tag_column=2))
    again = Table.read(path, cache_dir=tmp_path / "cache")
    assert set(other.row(0)["tags"]) == {"NN"} and first.row(0) == again.row(0) != other.row(0)


def test_every_format_can_be_named():
    assert {"table", *FORMATS} == set(FileFormat.__args__)
