import os
import uuid
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fusetune.data.schema import ROLES, ColumnSpec, Schema
from fusetune.data.table import Table
from fusetune.errors import SchemaError, TableError

NUM = 200


def table_of(base_dir=None, **columns):
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    return Table.from_records(rows, base_dir=base_dir)


def rng():
    return np.random.default_rng(0)


def labels():
    return rng().choice(["yes", "no"], NUM).tolist()


def roles(schema):
    return {name: spec.role for name, spec in schema.columns.items()}


def test_kinds_come_from_the_cells_with_a_reason(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    words = ["red", "green", "blue", "slow", "fast", "old", "new", "warm", "cold"]
    table = table_of(
        tmp_path,
        photo=["a.png"] * (NUM - 1) + [None],
        review=[" ".join(rng().permutation(words)) + f" {place}" for place in range(NUM)],
        price=rng().normal(size=NUM).round(3).tolist(),
        colour=rng().choice(["red", "green", "blue"], NUM).tolist(),
        label=labels(),
    )
    schema = Schema.detect(table, ["label"])
    assert {name: spec.kind for name, spec in schema.columns.items()} == {
        "photo": "image", "review": "text", "price": "number", "colour": "category", "label": "category",
    }  # fmt: skip
    assert schema.inputs == ["photo", "review", "price", "colour"]
    assert schema.targets == ["label"]
    assert all(row["reason"] for row in schema.rows())


ODD_COLUMNS = {
    "row_id": ([f"r{place % 7}{place}" for place in range(NUM)], "id"),
    "patientid": (list(range(7, 7 + NUM * 3, 3)), "id"),
    "imdb_id": (rng().permutation(10**6)[:NUM].tolist(), "id"),
    "counter": (list(range(1000, 1000 + NUM)), "id"),
    "token": ([uuid.UUID(int=int(number)).hex for number in rng().integers(1, 2**62, NUM)], "id"),
    "reference": ([f"INV-{place:06d}" for place in rng().permutation(NUM)], "id"),
    "machine": (["m1"] * NUM, "ignore"),
    "nothing": ([None] * NUM, "ignore"),
    "blank": ([""] * NUM, "ignore"),
    "split": (["train"] * 150 + ["validation"] * 25 + ["TEST"] * 25, "split"),
    "fold": (np.repeat([1, 2, 3, 4, 5], 40).tolist(), "ignore"),
    "sample_weight": (rng().uniform(size=NUM).tolist(), "weight"),
    "patient": ([f"p{place // 8}" for place in range(NUM)], "group"),
    "user_id": ((np.arange(NUM) // 5).tolist(), "group"),
    "labelCopy": ([label.upper() for label in labels()], "ignore"),
    "outcome_code": ([{"yes": 3, "no": 8}[label] for label in labels()], "ignore"),
    "detail": ([label + str(place % 4) for place, label in enumerate(labels())], "ignore"),
}


@pytest.mark.parametrize("name", ODD_COLUMNS)
def test_columns_that_are_no_inputs(name):
    cells, role = ODD_COLUMNS[name]
    schema = Schema.detect(table_of(x=rng().normal(size=NUM).tolist(), label=labels(), **{name: cells}), ["label"])
    assert schema.columns[name].role == role
    assert schema.columns[name].reason


PLAIN_COLUMNS = {
    "votes": rng().permutation(10**6)[:NUM].tolist(),
    "year": list(range(1800, 1800 + NUM)),
    "weight": rng().uniform(50, 90, NUM).tolist(),
    "temperature": [f"{number:.2f}" for number in rng().uniform(50, 90, NUM)],
    "set": (np.arange(NUM) % 3).tolist(),
    "store_id": (np.arange(NUM) % 4).tolist(),
    "speaker": (["ann", "ann", "bob"] * NUM)[:NUM],
    "only_if_present": ["x" if place % 2 else None for place in range(NUM)],
    "says": [f"they said {label} in the end, number {place}" for place, label in enumerate(labels())],
    "related": [label if place % 10 else "no" for place, label in enumerate(labels())],
    "when": [f"2020-{1 + place % 12:02d}-{1 + place // 12:02d}" for place in range(NUM)],
    "size": [f"{place / 10:.1f}kg" for place in range(NUM)],
}


@pytest.mark.parametrize("name", PLAIN_COLUMNS)
def test_columns_that_stay_inputs(name):
    table = table_of(x=rng().normal(size=NUM).tolist(), label=labels(), **{name: PLAIN_COLUMNS[name]})
    schema = Schema.detect(table, ["label"])
    assert schema.columns[name].role == "input", schema.columns[name].reason
    assert schema.warnings == []


def test_integers_that_name_things_are_categories():
    schema = Schema.detect(table_of(store_id=(np.arange(NUM) % 4).tolist(), store_size=(np.arange(NUM) % 4).tolist()))
    assert [spec.kind for spec in schema.columns.values()] == ["category", "number"]


def test_the_same_number_on_another_scale_gives_a_numeric_target_away():
    target = rng().normal(size=NUM)
    table = table_of(
        fahrenheit=(target * 1.8 + 32).tolist(),
        close=(target + rng().uniform(size=NUM)).tolist(),
        celsius=target.tolist(),
    )
    schema = Schema.detect(table, ["celsius"])
    assert roles(schema) == {"fahrenheit": "ignore", "close": "input", "celsius": "target"}
    assert "gives 'celsius' away" in schema.warnings[0]
    assert "role input" in schema.warnings[0]


def test_a_rare_class_does_not_make_columns_look_like_giveaways():
    target = ["no"] * (NUM - 2) + ["yes"] * 2
    table = table_of(colour=rng().choice(["red", "green"], NUM).tolist(), label=target)
    assert roles(Schema.detect(table, ["label"]))["colour"] == "input"


def test_the_user_may_insist():
    table = table_of(copy=labels(), row_id=list(range(NUM)), label=labels(), x=rng().normal(size=NUM).tolist())
    overrides = {"copy": {"role": "input"}, "row_id": {"role": "input", "kind": "number"}, "x": "ignore"}
    schema = Schema.detect(table, "label", overrides)
    assert roles(schema) == {"copy": "input", "row_id": "input", "label": "target", "x": "ignore"}
    assert schema.columns["row_id"].kind == "number"
    assert "used as you asked" in schema.warnings[0]
    assert Schema.detect(table, ["label"], {"x": "category"}).columns["x"].kind == "category"
    assert Schema.detect(table, [], {"label": {"role": "target"}}).targets == ["label"]


def test_overrides_that_cannot_be_are_all_named_at_once():
    table = table_of(rating=[1, 2], plot=["a", "b"])
    overrides = {"ratin": "number", "plot": {"kind": "txt", "rol": "input"}, "rating": {"role": "ignore", "options": 3}}
    with pytest.raises(SchemaError) as caught:
        Schema.detect(table, ["rating"], overrides)
    for part in ["'rating'?", "'text'?", "'role'?", "is the target and cannot", "options are a mapping"]:
        assert part in str(caught.value)
    with pytest.raises(SchemaError, match="did you mean 'ignore'"):
        Schema.detect(table, [], {"plot": "ignor"})
    with pytest.raises(SchemaError, match="both have the role group"):
        Schema.detect(table, [], {"plot": "group", "rating": "group"})
    with pytest.raises(SchemaError, match="expected a kind, a role or"):
        Schema.detect(table, [], {"plot": 3})


def test_of_two_groups_the_first_is_taken_unless_the_user_says():
    people = [f"p{place // 8}" for place in range(NUM)]
    table = table_of(patient=people, user=people[::-1], label=labels())
    assert roles(Schema.detect(table, ["label"])) == {"patient": "group", "user": "ignore", "label": "target"}
    assert roles(Schema.detect(table, ["label"], {"user": "group"}))["patient"] == "ignore"


def test_targets_that_are_not_there():
    table = table_of(rating=[1, 2], gone=[None, None])
    with pytest.raises(TableError, match=r"did you mean 'rating'\?"):
        Schema.detect(table, ["ratng"])
    with pytest.raises(TableError, match=r"column 'gone'.*no cell with a value"):
        Schema.detect(table, ["gone"])


@pytest.mark.parametrize("overrides", [{"photo": "image"}, {"photo": {"kind": "image", "role": "input"}}])
def test_media_at_urls_are_refused_with_the_reason(overrides):
    table = table_of(photo=[f"https://example.org/{place}.jpg?w=3" for place in range(30)], label=labels()[:30])
    with pytest.raises(SchemaError, match=r"(?s)column 'photo'.*not fetched.*download them"):
        Schema.detect(table, ["label"], overrides)
    assert roles(Schema.detect(table, ["label"], {"photo": {"kind": "text", "role": "ignore"}}))["photo"] == "ignore"


def test_a_column_of_urls_is_left_out_and_the_others_are_shown():
    table = table_of(photo=[f"https://example.org/{place}.jpg" for place in range(30)], label=labels()[:30])
    schema = Schema.detect(table, ["label"])
    assert roles(schema) == {"photo": "ignore", "label": "target"}
    assert "'photo'" in schema.warnings[0] and "data.read.media=[https]" in schema.warnings[0]


def test_cells_that_no_kind_reads_are_left_out():
    table = table_of(turns=[[{"who": "a"}], [{"who": "b"}]], label=["x", "y"])
    assert Schema.detect(table, ["label"]).columns["turns"].role == "ignore"


def test_a_big_column_that_is_mostly_missing_is_still_found():
    cells: list[str | None] = [None] * 50_000
    cells[1], cells[40_001] = "red", "green"
    schema = Schema.detect(table_of(colour=cells, x=list(rng().normal(size=50_000))))
    assert schema.columns["colour"].role == "input"


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8) | st.sampled_from(
    ["yes", "1", "null", "a: b", "#"]
)
SPECS = st.builds(
    lambda kind, role, reason, options: (kind, role, reason, options),
    st.sampled_from(["text", "image", "number"]),
    st.sampled_from([role for role in ROLES if role not in ("group", "split", "weight")]),
    NAMES,
    st.dictionaries(st.sampled_from(["bins", "width"]), st.integers() | NAMES, max_size=2),
)


@given(st.dictionaries(NAMES, SPECS, min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_yaml_comes_back_as_it_was(specs):
    schema = Schema({name: ColumnSpec(name, *spec) for name, spec in specs.items()})
    assert Schema.from_yaml(schema.to_yaml()).columns == schema.columns


def test_names_of_columns_are_the_text_that_is_written():
    schema = Schema.from_yaml("columns: {yes: {kind: text, role: input}, 01: {kind: number, role: target}}")
    assert list(schema.columns) == ["yes", "01"]


def test_files_come_back_as_they_were(tmp_path):
    schema = Schema({"é": ColumnSpec("é", "text", "input", "why")})
    schema.save(tmp_path / "schema.yaml")
    assert Schema.load(tmp_path / "schema.yaml").columns == schema.columns
    with pytest.raises(SchemaError, match="cannot be read"):
        Schema.load(tmp_path / "other.yaml")


BAD_YAML = [
    ("columns: [", "not YAML"),
    ("", "there are no columns"),
    ("columns: 3", "there are no columns"),
    ("columns: {a: {kind: text, role: inptu}}", "did you mean 'input'"),
    ("columns: {a: {kind: txt, role: input}}", "did you mean 'text'"),
    ("columns: {a: {kind: text}}", "needs kind and role"),
    ("columns: {a: {kind: text, role: input, optoins: {}}}", "did you mean 'options'"),
    ("columns: {a: {kind: text, role: input}, a: {kind: text, role: input}}", "the key 'a' twice"),
    ("columns: {}\ncolums: {}", "did you mean 'columns'"),
    (
        "columns: {a: {kind: text, role: group}, b: {kind: text, role: group}}",
        "only one column can have the role group",
    ),
    ("columns: !!python/object/apply:os.system ['touch {pwned}']", "not YAML"),
]


@pytest.mark.parametrize(("text", "message"), BAD_YAML)
def test_yaml_that_is_no_schema_is_refused(text, message, tmp_path):
    pwned = tmp_path / "pwned"
    with pytest.raises(SchemaError, match=message):
        Schema.from_yaml(text.replace("{pwned}", str(pwned)))
    assert not pwned.exists()


def test_a_table_that_lacks_columns_is_answered_with_all_of_them():
    schema = Schema(
        {
            "plot": ColumnSpec("plot", "text"),
            "rating": ColumnSpec("rating", "number", "target"),
            "key": ColumnSpec("key", "text", "id"),
        }
    )
    with pytest.raises(SchemaError, match=r"2 columns .*'plot' \(input\), did you mean 'plots'\?; 'rating' \(target\)"):
        schema.validate(table_of(plots=["x"], other=[1]))
    schema.validate(table_of(plot=["x"]), targets=False)
    schema.validate(table_of(plot=["x"], rating=[1], more=[2]))


DATA = Path(os.environ.get("FUSETUNE_DATA", Path(__file__).parents[3] / "shared"))
FOUND = {
    ("movies_poster_plot/train.csv", "imdb_rating"): {
        "image": "image input", "title": "text input", "plot": "text input", "year": "number input",
        "mpaa_rating": "category input", "director": "text input", "actors": "text input",
        "box_office_usd": "category ignore", "imdb_id": "category id", "imdb_rating": "number target",
    },
    ("esc10/esc10.csv", "label"): {"audio": "audio input", "fold": "number ignore", "label": "category target"},
    ("virufy_cough/coughs.csv", "corona_test"): {"audio": "audio input", "patient": "category group"},
    ("coco_caption_multilabel/train.csv", "labels"): {"image": "image input", "caption": "text input"},
    ("fsdd/train.csv", "label"): {"audio": "audio input", "text": "category ignore", "speaker": "category input"},
    ("text_trec_qc/train.csv", "coarse"): {"text": "text input", "fine": "category input"},
    ("text_qa_subjqa/grocery_train.jsonl", ()): {"id": "text id", "question": "text input"},
}  # fmt: skip


@pytest.mark.real_data
@pytest.mark.parametrize("case", FOUND, ids=lambda case: case[0])
def test_real_tables_are_understood(case):
    path = DATA / "data" / case[0]
    if not path.exists():
        pytest.skip(f"{path} is not there")
    schema = Schema.detect(Table.read(path), case[1])
    found = {name: f"{schema.columns[name].kind} {schema.columns[name].role}" for name in FOUND[case]}
    assert found == FOUND[case]


def test_a_column_name_with_a_dot_cut_at_its_dot_is_told_how_to_be_written():
    table = Table.from_records([{"text.name": str(place), "y": "ab"[place % 2]} for place in range(20)])
    with pytest.raises(SchemaError, match=r"columns='\{text\.name: KIND\}'"):
        Schema.detect(table, targets=["y"], overrides={"text": {"kind": "number"}})
