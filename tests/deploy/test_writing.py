"""What a tuned model that writes offers: answers by other settings, streams, and every other verb."""

import csv
import json

import numpy as np
import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

import fusetune as ft
from fusetune.cli.main import app
from fusetune.errors import ConfigError, TableError

QUICK = ["trainer.checkpoint_minutes=null", "trainer.trackers=[]", "report.bootstrap=20", "generation.val_rows=4"]


def words(rng, num):
    return " ".join(f"w{number}" for number in rng.integers(1, 20, num))


def fit(folder, backbone, *settings):
    rng = np.random.default_rng(0)
    rows = [{"source": words(rng, 4), "size": int(rng.integers(0, 5)), "out": words(rng, 5)} for _ in range(60)]
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    overrides = ["tasks.out=generate", f"text={backbone}", "trainer.epochs=1", "trainer.backbone_lr=1e-2", *QUICK]
    table, out = str(folder / "rows.csv"), str(folder / "run")
    return ft.fit(table, target="out", out=out, overrides=[*overrides, *settings], progress=False)


@pytest.fixture(scope="module")
def tuned(tiny, tmp_path_factory):
    return fit(tmp_path_factory.mktemp("writing"), tiny("llama_writer"), "report.zero_shot=false")


@pytest.fixture(scope="module")
def rows(tuned):
    return str(tuned.folder.parent / "rows.csv")


def test_as_predict_without_settings(tuned, rows):
    assert tuned.write(rows).table.equals(tuned.predict(rows).table)


def test_settings_change_the_answers_and_leave_the_model(tuned, rows):
    before = tuned.predict(rows)["out"]
    assert tuned.write(rows, temperature=2.0, seed=1)["out"] != before
    drawn = tuned.write(rows, temperature=2.0, top_k=5, top_p=0.9, seed=1)["out"]
    assert drawn == tuned.with_generation(temperature=2.0, top_k=5, top_p=0.9, seed=1).predict(rows)["out"]
    assert all(len((text or "").split()) <= 2 for text in tuned.write(rows, max_tokens=2)["out"])
    assert set(tuned.write(rows, choices=["w1", "w2 w3"])["out"]) <= {"w1", "w2 w3"}
    assert set(tuned.write(rows, choices=("w1",))["out_finish"]) == {"choice"}
    word = before[0].split()[-1]
    assert all(word not in text.split() for text in tuned.write(rows, stop=word)["out"])
    assert tuned.predict(rows)["out"] == before


def test_rows_in_are_rows_out_and_errors_stand_beside(tuned):
    found = tuned.write([{"source": "w1", "size": 2}, {"source": "", "size": None}, {"source": "w2", "size": "x"}])
    assert len(found) == 3 and found["out"][1] is None
    assert found.table.column_names[-1] == "error"


def test_answers_of_beams_are_at_least_as_likely(tuned, rows):
    greedy, beams = tuned.write(rows), tuned.write(rows, beams=6)
    mean = [np.mean(found["out_log_probability"]) for found in (greedy, beams)]
    assert mean[1] >= mean[0] - 1e-3


def test_evaluate_writes_by_the_settings(tuned, rows):
    chosen = tuned.with_generation(choices=["w1 w1"]).evaluate(rows).metrics()["out"]
    assert chosen["exact_match"] == 0 and chosen != tuned.evaluate(rows).metrics()["out"]


@pytest.mark.parametrize("how", [{}, {"temperature": 1.5, "seed": 3}, {"beams": 3}, {"choices": ["w1", "w2"]}])
def test_a_stream_is_the_answer(tuned, how):
    row = {"source": "w3 w4 w5", "size": 1}
    assert "".join(tuned.stream(row, **how)) == tuned.write([row], **how)["out"][0]


def test_a_stream_is_of_one_readable_row(tuned, rows):
    with pytest.raises(TableError, match="60 rows"):
        tuned.stream(rows)
    with pytest.raises(TableError):
        tuned.stream({"source": "", "size": ""})
    with pytest.raises(TableError, match="size"):
        tuned.stream({"source": "w1"})
    assert "".join(tuned.stream({"source": "w1"}, missing_columns=["size"]))
    with pytest.raises(ConfigError, match="did you mean 'out'"):
        tuned.stream({"source": "w1", "size": 1}, target="ou")


@pytest.mark.parametrize(
    "how",
    [
        {"beams": 0},
        {"beams": 2, "temperature": 1.0},
        {"top_p": 0.5},
        {"temperature": -1},
        {"max_tokens": 0},
        {"max_tokens": 90},
        {"beems": 2},
    ],
)
def test_wrong_settings_are_named(tuned, how):
    for write in (tuned.write, tuned.stream):
        with pytest.raises(ConfigError):
            write({"source": "w1", "size": 1}, **how)


def test_choices_have_probabilities(tuned, rows):
    found = tuned.write(rows, choices=["w1", "w2 w3 w4", "w5 w6"])
    for answer, score, cell in zip(found["out"], found["out_log_probability"], found["out_choices"], strict=True):
        shares = json.loads(cell)
        assert max(shares, key=shares.get) == answer and sum(shares.values()) == pytest.approx(1, abs=1e-4)
        assert np.log(shares[answer]) == pytest.approx(score, abs=1e-3)


def test_answers_follow_an_expression(tuned, rows):
    pytest.importorskip("llguidance")
    found = tuned.write(rows, regex="w7 (w8|w9)")
    assert set(found["out"]) <= {"w7 w8", "w7 w9"} and set(found["out_finish"]) == {"end"}
    for how in ({"regex": "(a"}, {"json_schema": {"type": "objct"}}, {"regex": "a", "beams": 2}):
        with pytest.raises(ConfigError):
            tuned.write(rows, **how)


def test_what_a_model_that_writes_cannot_do_is_said(tuned, rows):
    for call in (tuned.embed, tuned.index, tuned.predict_proba, tuned.recommend):
        with pytest.raises(ConfigError):
            call(rows)
    with pytest.raises(ConfigError, match="generate"):
        tuned.index()
    with pytest.raises(ConfigError, match="--to transformers"):
        tuned.save_sentence_transformer("st")
    assert "source" in repr(tuned) and "prompt" not in repr(tuned)


class TestCommand:
    def run(self, *arguments, code=0):
        done = CliRunner().invoke(app, list(map(str, arguments)))
        assert done.exit_code == code, done.output
        return done

    def test_a_row_is_answered(self, tuned):
        asked = ("generate", tuned.folder, "--set", "source=w1 w2", "--set", "size=3")
        answer = tuned.write([{"source": "w1 w2", "size": "3"}])
        assert self.run(*asked).stdout.strip() == answer["out"][0]
        (line,) = self.run(*asked, "--json").stdout.splitlines()
        assert json.loads(line)["out"] == answer["out"][0]
        assert self.run(*asked, "--choice", "w7", "--choice", "w7 w8").stdout.strip() in {"w7", "w7 w8"}
        assert self.run(*asked, "--regex", "w7( w8)?").stdout.strip() in {"w7", "w7 w8"}
        assert self.run(*asked[:-2], "--missing-columns", "size").stdout.strip()

    def test_a_table_is_answered(self, tuned, rows, tmp_path):
        how = ("--temperature", 1.5, "--seed", 2, "--max-tokens", 3)
        self.run("generate", tuned.folder, rows, "-o", tmp_path / "o.jsonl", *how)
        lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
        assert [line["out"] for line in lines] == tuned.write(rows, temperature=1.5, seed=2, max_tokens=3)["out"]
        assert self.run("generate", tuned.folder, rows).stdout.count("\n") == 61

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ([], "--set COLUMN=VALUE"),
            (["--set", "source"], "names no column"),
            (["--set", "source=a", "--set", "source=b"], "twice"),
            (["--set", "sorce=w1"], "did you mean 'source'"),
            (["--set", "source=w1"], "--missing-columns size"),
            (["--set", "source=w1", "--set", "size=1", "--beams", "2", "--temperature", "1"], "beams"),
            (["--set", "source=w1", "--set", "size=1", "-o", "x.xlsx"], ".csv"),
        ],
    )
    def test_mistakes(self, tuned, arguments, said):
        assert said in self.run("generate", tuned.folder, *arguments, code=2).stderr

    def test_a_plain_folder_of_transformers(self, tuned, tmp_path):
        found = json.loads(self.run("merge", tuned.folder, "--out", tmp_path / "a", "--json").stdout)
        assert found["format"] == "transformers" and found["bytes"] > 0 and found["notes"] == []
        assert "not empty" in self.run("merge", tuned.folder, "--out", tmp_path / "a", code=2).stderr
        self.run("export", tuned.folder, "--to", "transformers", "--out", tmp_path / "b")
        weights = [load_file(tmp_path / name / "model.safetensors") for name in "ab"]
        assert all(value.equal(weights[1][name]) for name, value in weights[0].items())
        said = self.run("merge", tuned.folder, "--out", tmp_path / "c", "--to", "fusetune", code=2).stderr
        assert "adapter" in said
