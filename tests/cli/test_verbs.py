"""What each verb asks of the parts behind it, and what it prints."""

import json
import math
import sys
import types
from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner

import fusetune
from fusetune.cli import common
from fusetune.cli.main import app
from fusetune.evaluation.results import Interval, RunResults, SystemResult, TaskResult, to_json

runner = CliRunner()


def results(*names: str) -> RunResults:
    systems = [
        SystemResult("majority", "baseline", "the commonest class", {"accuracy": Interval(0.4)}),
        SystemResult("text alone", "alone", "sees text", {"accuracy": Interval(0.5)}, columns=["message"]),
        SystemResult("tuned", "after", "the tuned model", {"accuracy": Interval(0.8, 0.7, 0.9)}, columns=list(names)),
    ]
    task = TaskResult("multiclass", "priority", "accuracy", True, 90, systems, labels=["low", "high"])
    return RunResults("Run", "0", "2026-01-01T00:00:00", "fusetune fit", 0, "cpu", 1, [task])


class Api(types.ModuleType):
    """Stands in for fusetune.api: it writes down how it was called."""

    def __init__(self) -> None:
        super().__init__("fusetune.api")
        self.calls: list[tuple[str, tuple, dict]] = []
        self.columns = ["message", "plan"]

    def fit(self, *args, **kwargs):
        self.calls.append(("fit", args, kwargs))
        return types.SimpleNamespace(results=results(*self.columns), folder=Path(kwargs["out"]))

    def load(self, folder):
        from fusetune.deploy.predictions import Predictions, write

        made = pa.table({"row": [0, 1], "priority": ["low", None], "error": [None, "column 'a': it is cut off"]})

        def predict_to(table, out, **kwargs):
            self.calls.append(("predict", (folder, table), kwargs))
            return write([Predictions(made)], out, Path(out).suffix.lower())

        def evaluate(table, **kwargs):
            self.calls.append(("evaluate", (folder, table), kwargs))
            found = {"rows_in": 2, "metric": math.nan}
            kind = type("Evaluation", (), {"to_json": lambda self: found, "__str__": lambda self: "2 rows [in]"})
            kind.tasks = results("a").tasks
            return kind()

        return types.SimpleNamespace(predict_to=predict_to, evaluate=evaluate)


@pytest.fixture
def api(monkeypatch, tmp_path):
    made = Api()
    monkeypatch.setitem(sys.modules, "fusetune.api", made)
    monkeypatch.setattr(fusetune, "api", made, raising=False)
    monkeypatch.chdir(tmp_path)
    return made


def run(*arguments: str, code: int = 0):
    done = runner.invoke(app, list(arguments))
    assert done.exit_code == code, done.output
    return done


class TestFit:
    def test_table(self, api):
        done = run("fit", "a.csv", "--target", "priority", "--val", "v.csv", "--test", "t.csv", "trainer.epochs=2")
        (_, (train,), asked) = api.calls[0]
        config = asked.pop("config")
        assert train == ["a.csv"]
        assert config.trainer.epochs == 2
        assert asked == {
            "target": ["priority"],
            "val": "v.csv",
            "test": "t.csv",
            "out": Path("runs/priority"),
            "resume": None,
            "overwrite": False,
            "progress": True,
        }
        assert "tuned" in done.stdout
        assert str(Path("runs/priority/report.html")) in done.stdout

    def test_config_file_with_settings_over_it(self, api, tmp_path):
        (tmp_path / "c.yaml").write_text("train: a.csv\ntarget: rating\ntrainer: {epochs: 2, lr: 0.1}\n")
        run("fit", str(tmp_path / "c.yaml"), "trainer.epochs=3", "fusion=gated")
        (_, (train,), asked) = api.calls[0]
        config = asked["config"]
        assert train is None
        assert asked["out"] == Path("runs/rating")
        assert (config.train, config.target) == ([str(tmp_path / "a.csv")], ["rating"])
        assert (config.trainer.epochs, config.trainer.lr, config.fusion.name) == (3, 0.1, "gated")

    def test_out_of_the_config_is_kept(self, api, tmp_path):
        (tmp_path / "c.yaml").write_text("out: here\n")
        run("fit", "a.csv", "-t", "b", "--config", str(tmp_path / "c.yaml"))
        run("fit", "a.csv", "-t", "b", "out=there")
        run("fit", "a.csv", "-t", "b", "out=there", "--out", "elsewhere")
        assert [str(asked["out"]) for _, _, asked in api.calls] == [str(tmp_path / "here"), "there", "elsewhere"]

    def test_schema_file(self, api):
        run("fit", "a.csv", "-t", "b", "--schema", "s.yaml")
        assert api.calls[0][2]["config"].schema_file == "s.yaml"

    @pytest.mark.parametrize(
        ("targets", "folder"), [(["a", "b"], "a-b"), (["../../x"], "x"), (["é/ü"], "é_ü"), (["??"], "model")]
    )
    def test_folder_is_named_after_the_targets(self, api, targets, folder):
        run("fit", "a.csv", *(part for target in targets for part in ("-t", target)))
        assert api.calls[0][2]["out"] == Path("runs") / folder

    def test_json_is_the_report_and_nothing_else(self, api):
        done = run("fit", "a.csv", "-t", "priority", "--json")
        assert json.loads(done.stdout)["tasks"][0]["target"] == "priority"

    @pytest.mark.parametrize(
        ("rank", "as_json", "shown"), [("0", False, True), ("1", False, False), ("0", True, False)]
    )
    def test_progress_is_for_people_in_the_first_process(self, monkeypatch, rank, as_json, shown):
        monkeypatch.setenv("RANK", rank)
        assert common.shows_progress(as_json) is shown

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["a.csv", "b.csv"], "'b.csv' is no setting"),
            (["c.yaml", "--config", "d.yaml"], "two files of settings"),
            (["nowhere.yaml"], "nowhere.yaml"),
            (["a.csv", "trainer.epocs=3"], "did you mean 'epochs'?"),
            (["a.csv", "fusions=gated"], "did you mean 'fusion'?"),
        ],
    )
    def test_mistakes(self, api, arguments, said):
        assert said in run("fit", *arguments, code=2).stderr
        assert api.calls == []


class TestPredict:
    def test_bad_cells(self, api):
        run("predict", "m", "new.csv", "--on-bad-cell", "reject")
        assert api.calls[0][2]["on_bad_cell"] == "reject"
        assert "mask" in run("predict", "m", "new.csv", "--on-bad-cell", "keep", code=2).stderr

    @pytest.mark.parametrize("name", ["o.csv", "o.CSV", "o.jsonl", "o.parquet"])
    def test_writes_the_table(self, api, tmp_path, name):
        done = run("predict", "m", "new.csv", "--out", name)
        assert api.calls == [
            (
                "predict",
                (Path("m"), "new.csv"),
                {"on_bad_cell": "mask", "precision": "float32", "missing_columns": [], "progress": True},
            )
        ]
        assert (tmp_path / name).stat().st_size > 0
        assert done.stdout.split() == ["2", "rows,", "1", "of", "them", "with", "an", "error:", name]

    def test_a_folder_that_is_not_there_is_said_before_the_rows_are_predicted(self, api):
        assert "its folder is not there" in run("predict", "m", "new.csv", "-o", "nowhere/o.csv", code=2).stderr
        assert api.calls == []

    def test_prints_csv(self, api):
        lines = run("predict", "m", "new.csv").stdout.splitlines()
        assert lines[0] == '"row","priority","error"'
        assert len(lines) == 3

    def test_prints_json_lines(self, api):
        lines = run("predict", "m", "new.csv", "--json").stdout.splitlines()
        assert [json.loads(line)["priority"] for line in lines] == ["low", None]

    def test_json_with_a_file_counts(self, api):
        assert json.loads(run("predict", "m", "n.csv", "-o", "o.csv", "--json").stdout) == {
            "out": "o.csv",
            "rows": 2,
            "errors": 1,
        }

    @pytest.mark.parametrize(("out", "said"), [("o.xlsx", "--out o.csv"), ("new.csv", "would overwrite")])
    def test_mistakes(self, api, out, said):
        assert said in run("predict", "m", "new.csv", "--out", out, code=2).stderr
        assert api.calls == []


class TestEvaluate:
    def test_prints(self, api):
        done = run("evaluate", "m", "t.csv", "--slices", "country", "-s", "plan")
        asked = {"slices": ["country", "plan"], "precision": "float32", "missing_columns": [], "progress": True}
        asked |= {"catalogue": None}
        assert api.calls == [("evaluate", (Path("m"), "t.csv"), asked)]
        assert done.stdout == "2 rows [in]\n"

    def test_what_a_lower_precision_loses_is_said(self, api):
        done = run("evaluate", "m", "t.csv", "--precision", "bf16")
        assert [asked.get("precision") for _, _, asked in api.calls] == ["bf16", None]
        assert done.stdout.splitlines()[1:] == ["priority: accuracy 0.4000 in float32, 0.4000 in bf16"]

    def test_json_has_no_nan(self, api):
        assert json.loads(run("evaluate", "m", "t.csv", "--json").stdout) == {"rows_in": 2, "metric": None}


class TestMistakenFolders:
    @pytest.fixture
    def model(self, tmp_path):
        (tmp_path / "runs" / "m").mkdir(parents=True)
        for name in ("bundle.json", "report.json"):
            (tmp_path / "runs" / "m" / name).write_text("{}")
        (tmp_path / "t.csv").write_text("a,b\n1,2\n")
        return tmp_path / "runs" / "m"

    @pytest.mark.parametrize("verb", ["predict", "evaluate"])
    def test_swapped_arguments(self, api, model, tmp_path, verb):
        table = tmp_path / "t.csv"
        assert f"write {model} {table}" in run(verb, str(table), str(model), code=2).stderr
        assert "is a model folder" in run(verb, str(model), str(model), code=2).stderr
        assert api.calls == []

    @pytest.mark.parametrize("verb", ["fit", "schema"])
    def test_a_model_in_the_place_of_a_table(self, api, model, verb):
        assert "is a model folder" in run(verb, str(model), "-t", "y", code=2).stderr
        assert api.calls == []

    def test_a_folder_of_runs_has_no_report(self, model):
        told = run("report", str(model.parent), code=2).stderr
        assert "has no report" in told and str(model) in told and "Errno" not in told
        assert "no such folder" in run("report", "nowhere", code=2).stderr


class TestReport:
    def test_writes_the_html_again(self, tmp_path):
        (tmp_path / "report.json").write_text(to_json(results()), encoding="utf-8")
        done = run("report", str(tmp_path))
        assert "priority" in done.stdout
        assert str(tmp_path / "report.html") in done.stdout
        assert "priority" in (tmp_path / "report.html").read_text(encoding="utf-8")

    def test_json(self, tmp_path):
        (tmp_path / "report.json").write_text(to_json(results()), encoding="utf-8")
        assert json.loads(run("report", str(tmp_path), "--json").stdout) == json.loads(to_json(results()))

    def test_no_report(self, tmp_path):
        assert "report.json" in run("report", str(tmp_path), code=2).stderr
        assert not (tmp_path / "report.html").exists()


class TestDemo:
    def test_tunes_on_the_sample_and_shows_the_ceilings(self, api, tmp_path):
        api.columns = ["message", "screenshot", "voice", "waiting_hours", "plan"]
        done = run("demo", "--rows", "100", "--seed", "3", "--out", "d")
        (_, (train,), asked) = api.calls[0]
        assert (train, asked["test"], asked["out"]) == (
            Path("d/table/train.csv"),
            Path("d/table/test.csv"),
            Path("d/model"),
        )
        assert asked["overrides"] == ["seed=3", "trainer.epochs=2"]
        assert (tmp_path / train).is_file()
        assert "best reachable" in done.stdout

    def test_json_is_the_report_and_nothing_else(self, api):
        assert json.loads(run("demo", "--rows", "100", "--json").stdout)["tasks"]


class TestSamples:
    def test_list(self):
        assert run("samples").stdout.startswith("tickets  ")
        assert list(json.loads(run("samples", "--json").stdout)) == ["tickets", "posts", "shop"]

    def test_writes_tables_and_readme(self, tmp_path):
        out = str(tmp_path / "t")
        done = run("samples", "tickets", "--rows", "10", "--test", "0.3", "--out", out, "--json")
        tables = json.loads(done.stdout)
        assert {name: len(Path(path).read_text().splitlines()) - 1 for name, path in tables.items()} == {
            "train": 7,
            "test": 3,
        }
        assert (tmp_path / "t" / "README.md").is_file()

    def test_one_table(self, tmp_path):
        done = run("samples", "tickets", "--rows", "3", "--test", "0", "--out", str(tmp_path / "t"))
        assert done.stdout.split()[:2] == ["3", "rows"]
        assert not (tmp_path / "t" / "test.csv").exists()

    def test_unknown_name(self):
        assert "did you mean 'tickets'?" in run("samples", "tickts", code=2).stderr


class TestSchema:
    @pytest.fixture
    def table(self, tmp_path):
        rows = "".join(f"{i % 7 + 0.5},{'ab'[i % 2]},{i % 3}\n" for i in range(40))
        (tmp_path / "t.csv").write_text("price,shop,stars\n" + rows, encoding="utf-8")
        return str(tmp_path / "t.csv")

    def test_shows_kind_role_and_reason(self, table):
        lines = run("schema", table, "--target", "stars").stdout.splitlines()
        row = next(line for line in lines if "price" in line)
        assert "number" in row
        assert any("stars" in line and "target" in line for line in lines)

    def test_writes_yaml_that_fit_takes(self, table, tmp_path):
        from fusetune.config.config import Config
        from fusetune.data.schema import Schema

        out = tmp_path / "schema.yaml"
        run("schema", table, "-t", "stars", "-o", str(out))
        assert Schema.load(out).targets == ["stars"]
        config = Config().with_overrides({"schema_file": str(out)})
        assert config.schema_overrides()["price"]["kind"] == "number"

    def test_json(self, table):
        found = json.loads(run("schema", table, "-t", "stars", "--json").stdout)
        assert found["columns"]["stars"]["role"] == "target"
        assert found["warnings"] == []

    def test_prompt_of_a_written_target(self, tmp_path):
        rows = [
            {
                "en": f"word{i} and {i} others here",
                "de": f"wort{i} und {i} andere hier",
                "n": i % 7 + 0.5 if i else None,
            }
            for i in range(40)
        ]
        (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        asked = ("schema", str(tmp_path / "t.jsonl"), "-t", "de", "tasks.de=generate")
        lines = [line.strip() for line in run(*asked).stdout.splitlines()]
        assert lines[-2:] == ["en: word0 and 0 others here", "de:"]
        given = (*asked, "prompt.template=To German, {n} times: {en}", "prompt.soft=[n]", "--json")
        task = json.loads(run(*given).stdout)["tasks"]["de"]
        assert task["prompt"] == "To German,  times: word0 and 0 others here"
        assert "did you mean 'en'" in run(*asked, "prompt.template={enn}", code=2).stderr

    def test_misspelt_target(self, table):
        assert "stars" in run("schema", table, "-t", "star", code=2).stderr

    @pytest.fixture
    def quiz(self, tmp_path):
        rows = "".join(f"which {i}?,it is {i},no {i},{i % 2}\n" for i in range(40))
        (tmp_path / "quiz.csv").write_text("question,choice1,choice2,right\n" + rows, encoding="utf-8")
        return str(tmp_path / "quiz.csv")

    def test_shows_what_is_read_together_and_an_example(self, quiz):
        shown = run("schema", quiz, "-t", "right").stdout
        assert "task    right: choice (choice1, choice2" in shown
        assert "reads   question; choices: choice1, choice2" in shown
        assert "example A: it is 0 | B: no 0; right is A" in shown and "index counted from 0" in shown

    def test_the_task_of_the_settings_is_shown(self, quiz):
        asked = ["tasks.right.name=choice", "tasks.right.choices=[choice2,choice1]"]
        task = json.loads(run("schema", quiz, *asked, "-t", "right", "--json").stdout)["tasks"]["right"]
        assert task["task"] == "choice" and task["reads"].endswith("choice2, choice1")
        wrong = ["tasks.right.name=choice", "tasks.right.choices=[choice3,choice1]"]
        assert "choice3" in run("schema", quiz, *wrong, "-t", "right", code=2).stderr
        other = json.loads(run("schema", quiz, "tasks.right=multiclass", "-t", "right", "--json").stdout)
        assert other["tasks"]["right"] == {"task": "multiclass", "reason": "as the settings say"}


class TestBackbones:
    @pytest.fixture
    def models(self, tmp_path):
        from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

        config = ViTConfig(
            hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8
        )
        ViTModel(config).save_pretrained(tmp_path / "vit")
        ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
        (tmp_path / "old").mkdir()
        (tmp_path / "old" / "config.json").write_text('{"model_type": "bert"}')
        (tmp_path / "old" / "pytorch_model.bin").write_bytes(b"x")
        return tmp_path

    def test_folder_of_models(self, models, monkeypatch):
        vit, old = json.loads(run("backbones", str(models), "--json").stdout)
        assert (Path(vit["name"]).name, vit["kinds"]) == ("vit", ["image"])
        assert (Path(old["name"]).name, old["refused"]) == ("old", "pytorch_model.bin may run code when it is loaded")
        monkeypatch.chdir(models)
        shown = run("backbones", ".").stdout
        assert "│ vit " in shown
        assert "cannot be used" in shown

    def test_describes_a_model_for_the_kinds_it_reads(self, models):
        (found,) = json.loads(run("backbones", str(models / "vit"), "--json").stdout)
        assert (found["kind"], found["dim"], found["image_size"]) == ("image", 8, [16, 16])
        assert sum(block["parameters"] for block in found["blocks"]) == found["parameters"]
        assert found["fingerprint"] in run("backbones", str(models / "vit"), "--kind", "image").stdout

    def test_wrong_kind(self, models):
        assert "cannot encode text" in run("backbones", str(models / "vit"), "--kind", "text", code=2).stderr

    def test_unsafe_weights(self, models):
        assert "safetensors" in run("backbones", str(models / "old"), code=2).stderr

    def test_list_without_a_cache(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
        found = json.loads(run("backbones", "--json").stdout)
        assert [one["name"] for one in found if one["name"] != "smollm2"] == ["minilm", "", ""]
        only = json.loads(run("backbones", "--kind", "audio", "--json").stdout)
        assert [one["kinds"] for one in only] == [["audio"]]


def test_schema_shows_what_a_fit_would_read(tmp_path):
    """A column of starts tells where the answer is: no input. Lists of words are shown as words."""
    lines = [
        {"question": f"who {n} ?", "context": f"it was Ada {n} .", "answer": "Ada", "start": 7, "words": ["a", f"b{n}"]}
        for n in range(30)
    ]
    table = tmp_path / "t.jsonl"
    table.write_text("\n".join(map(json.dumps, lines)))
    done = runner.invoke(app, ["schema", str(table), "-t", "answer", "tasks.answer=answer", "--json"])
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert shown["columns"]["start"]["role"] == "ignore" and shown["row"]["words"] == "a b0"
    assert shown["columns"]["context"]["role"] == "input"


class TestSettingsSchema:
    def test_is_written_for_editors(self, tmp_path):
        out = tmp_path / "s.json"
        run("schema", "--settings", "-o", str(out))
        assert json.loads(out.read_text())["properties"]["trainer"]
        assert json.loads(run("schema", "--settings").stdout) == json.loads(out.read_text())

    def test_needs_a_table_or_the_flag(self):
        assert "there is no table" in run("schema", code=2).stderr
        assert "leave out the table" in run("schema", "t.csv", "--settings", code=2).stderr
