"""The frame around the verbs: names and options, messages, exit codes."""

import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

import fusetune
from fusetune.cli import failures
from fusetune.cli.main import VERBS, app
from fusetune.errors import NonFiniteLoss, TableError

runner = CliRunner()
SOURCE = str(Path(fusetune.__file__).parents[1])

OPTIONS = {
    "fit": {
        "source",
        "settings",
        "--target",
        "-t",
        "--val",
        "--test",
        "--out",
        "-o",
        "--config",
        "-c",
        "--schema",
        "--json",
        "--objective",
        "--query",
        "--document",
        "--negative",
        "--user",
        "--item",
        "--resume",
        "--overwrite",
        "--dry-run",
    },
    "predict": {
        "folder",
        "table",
        "--out",
        "-o",
        "--on-bad-cell",
        "--precision",
        "--missing-columns",
        "--media",
        "--json",
    },
    "generate": {
        *("folder", "table", "--set", "--out", "-o", "--beams", "--temperature", "--top-p", "--top-k", "--seed"),
        *("--stop", "--choice", "--regex", "--json-schema", "--max-tokens", "--missing-columns", "--media", "--json"),
    },
    "evaluate": {
        "folder",
        "table",
        "settings",
        "--slices",
        "-s",
        "--precision",
        "--missing-columns",
        "--media",
        "--json",
    },
    "drift": {"folder", "table", "--reference", "--out", "-o", "--alpha", "--rows", "--seed", "--json"},
    "label": {
        *("arguments", "--out", "-o", "--target", "-t", "--labels", "--import", "-i", "--strategy"),
        *("--count", "--random-share", "--rounds", "--agreement", "--partial", "--new-labels", "--go-on", "--seed"),
        "--json",
    },
    "label-errors": {
        *("folder", "table", "--target", "-t", "--count", "--max-share", "--out", "-o", "--seed", "--json"),
    },
    "retune": {
        *(
            "folder",
            "table",
            "settings",
            "--store",
            "--replay",
            "--distill",
            "--margin",
            "--confidence",
            "--seed",
            "--json",
        ),
    },
    "rollback": {"folder", "--to", "--json"},
    "watch": {"config", "--once", "--json"},
    "embed": {"--out", "-o", "--dim", "--precision", "--missing-columns", "--media", "--json", "folder", "table"},
    "index": {"--find", "--dtype", "--dim", "--add", "--remove", "--json", "folder", "catalogue"},
    "search": {
        *("--query", "-q", "--set", "--queries", "-k", "--filter", "-f", "--catalogue", "--find", "--out", "-o"),
        *("--rerank", "--json", "folder"),
    },
    "recommend": {
        *("folder", "--users", "--user-id", "--liked", "-k", "--catalogue", "--known", "--out", "-o", "--json"),
    },
    "chat": {"source", "--system", "--set", "--temperature", "--seed", "--max-tokens", "--json"},
    "serve": {
        *("folder", "--port", "--host", "--token", "--name", "--allow-host", "--allow-origin", "--precision"),
        *("--max-delay-ms", "--batch-rows", "--queue", "--deadline-s", "--streams", "--drain-s"),
        *("--max-connections", "--max-body-mib", "--max-rows", "--max-chars", "--max-pixels", "--max-seconds"),
        *("--watch", "--watch-s", "--shadow", "--capture", "--redact"),
    },
    "ui": {
        *("folder", "--port", "--host", "--token", "--name", "--examples", "--media", "--allow-host", "--precision"),
        *("--open", "--max-body-mib", "--max-rows", "--max-chars", "--max-pixels", "--max-seconds"),
    },
    "merge": {"folder", "--out", "-o", "--to", "--overwrite", "--json"},
    "export": {"folder", "--to", "--side", "--variants", "--check", "--out", "-o", "--overwrite", "--json"},
    "report": {"folder", "--json"},
    "rank": {
        *("table", "settings", "--target", "-t", "--backbones", "-b", "--out", "-o", "--rows", "--folds", "--json"),
    },
    "search-settings": {
        *("source", "settings", "--target", "-t", "--val", "--test", "--space", "--trials", "--minutes", "--sampler"),
        *("--pruner", "--storage", "--seeds", "--out", "-o", "--json"),
    },
    "schema": {"table", "settings", "--target", "-t", "--out", "-o", "--settings", "--json"},
    "launch": {
        *("arguments", "--to", "--machines", "--gpus", "--cpus", "--memory", "--hours", "--image", "--name", "--file"),
    },
    "doctor": {"--json"},
    "demo": {"--rows", "--out", "-o", "--seed", "--json"},
    "samples": {
        *("name", "--rows", "--seed", "--test", "--missing", "--label-noise"),
        *("--out", "-o", "--json"),
    },
    "backbones": {"source", "--kind", "--json"},
}


def put_api(monkeypatch: pytest.MonkeyPatch, **functions: object) -> None:
    """Stand in for fusetune.api."""
    api = types.ModuleType("fusetune.api")
    vars(api).update(functions)
    monkeypatch.setitem(sys.modules, "fusetune.api", api)
    monkeypatch.setattr(fusetune, "api", api, raising=False)


def raises(error: BaseException):
    def function(*args: object, **kwargs: object) -> None:
        raise error

    return function


def test_verbs_are_pinned():
    assert list(VERBS) == list(OPTIONS)


@pytest.mark.parametrize("verb", OPTIONS)
def test_options_are_pinned(verb):
    command = typer.main.get_command(app).get_command(None, verb)
    assert {name for parameter in command.params for name in parameter.opts} == OPTIONS[verb]


@pytest.mark.parametrize("verb", OPTIONS)
def test_help_has_an_example(verb):
    done = runner.invoke(app, [verb, "--help"])
    assert done.exit_code == 0
    assert f"fusetune {verb}" in done.output.split("Example")[1]


def test_list_of_verbs():
    done = runner.invoke(app, ["--help"])
    assert done.exit_code == 0
    assert all(f"│ {verb} " in done.output for verb in VERBS)


def test_version():
    done = runner.invoke(app, ["--version"])
    assert (done.exit_code, done.output.strip()) == (0, f"fusetune {fusetune.__version__}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fitt", "train.csv"], "did you mean 'fit'?"),
        (["xyzzy"], "The verbs are fit, predict"),
        (["fit"], "Missing argument"),
        (["fit", "train.csv", "--tarhet", "a"], "--target"),
        (["fit", "train.csv", "--epochs", "1"], "trainer.epochs"),
        (["fit", "train.csv", "--batch-size", "1"], "trainer.batch_size"),
        (["fit", "train.csv", "--seed", "1"], "seed=VALUE"),
        (["demo", "--rows", "3"], "--rows"),
    ],
)
def test_usage_errors_exit_with_2(arguments, said):
    done = runner.invoke(app, arguments)
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.output


def test_users_mistake_exits_with_2(monkeypatch):
    error = TableError(
        "there is no column 'ratng'", expected="one of rating", came="'ratng'", do="rename", file="a.csv"
    )
    put_api(monkeypatch, fit=raises(error))
    done = runner.invoke(app, ["fit", "a.csv", "--target", "ratng"])
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "error: a.csv: there is no column 'ratng'",
        "  Expected: one of rating",
        "  Came: 'ratng'",
        "  Do: rename",
    ]


def test_users_mistake_as_json(monkeypatch):
    put_api(monkeypatch, fit=raises(TableError("it is empty", do="add rows", file="a.csv", row=3, column="[b]")))
    done = runner.invoke(app, ["fit", "a.csv", "--target", "b", "--json"])
    assert done.exit_code == 2
    error = json.loads(done.stdout)["error"]
    assert error.pop("message").startswith("a.csv, row 3, column '[b]': it is empty")
    assert error == {
        "type": "TableError", "what": "it is empty", "do": "add rows", "file": "a.csv", "row": 3, "column": "[b]"
    }  # fmt: skip


def test_failed_run_exits_with_1_without_a_log(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    put_api(monkeypatch, fit=raises(NonFiniteLoss("the loss is nan at step 3")))
    done = runner.invoke(app, ["fit", "a.csv", "--target", "b"])
    assert (done.exit_code, done.stderr) == (1, "error: the loss is nan at step 3\n")
    assert not list(tmp_path.iterdir())


def test_unforeseen_failure_exits_with_1_and_names_a_log(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    put_api(monkeypatch, fit=raises(KeyError("[red]oops")))
    done = runner.invoke(app, ["fit", "a.csv", "--target", "b", "--json"])
    (log,) = tmp_path.iterdir()
    assert done.exit_code == 1
    assert "fusetune itself failed. KeyError: '[red]oops'" in done.stderr
    assert str(log) in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["error"]["log"] == str(log)
    written = log.read_text(encoding="utf-8")
    assert "Traceback" in written
    assert fusetune.__version__ in written


def test_debug_shows_the_traceback(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    put_api(monkeypatch, fit=raises(KeyError("oops")))
    done = runner.invoke(app, ["--debug", "fit", "a.csv", "--target", "b"])
    assert done.exit_code == 1
    assert "Traceback (most recent call last)" in done.stderr


def test_out_of_memory_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    put_api(monkeypatch, fit=raises(MemoryError()))
    done = runner.invoke(app, ["fit", "a.csv", "--target", "b"])
    assert done.exit_code == 1
    assert "trainer.batch_size" in done.stderr


def test_unwritable_log_is_no_second_failure(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    put_api(monkeypatch, fit=raises(KeyError("oops")))
    done = runner.invoke(app, ["fit", "a.csv", "--target", "b"])
    assert done.exit_code == 1
    assert "--debug" in done.stderr


def test_interrupt_exits_with_130(monkeypatch):
    put_api(monkeypatch, fit=raises(KeyboardInterrupt()))
    done = runner.invoke(app, ["fit", "a.csv", "--target", "b"])
    assert (done.exit_code, done.stderr.strip()) == (130, "stopped")


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
@pytest.mark.parametrize(("number", "code_of_exit"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_of_a_real_process_shows_no_traceback(tmp_path, number, code_of_exit):
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # some runners ignore it
        "import sys, time, types; api = types.ModuleType('fusetune.api'); sys.modules['fusetune.api'] = api\n"
        "def fit(*a, **k): print('ready', flush=True); time.sleep(60)\n"
        "api.fit = fit\n"
        "from fusetune.cli.main import main; sys.argv = ['fusetune', 'fit', 'a.csv', '-t', 'b']; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([SOURCE, os.environ["PYTHONPATH"]])},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, stderr.strip()) == (code_of_exit, "stopped")


def test_only_the_first_process_prints_results(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    done = runner.invoke(app, ["samples", "--json"])
    assert (done.exit_code, done.stdout) == (0, "")


def test_module_runs_as_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "fusetune", "--version"], capture_output=True, text=True, timeout=60,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([SOURCE, os.environ["PYTHONPATH"]])},
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, f"fusetune {fusetune.__version__}")


def test_our_warnings_are_lines_and_others_are_left_alone(capsys):
    seen = []
    show = failures.show_warning(lambda *given: seen.append(given))
    show(
        UserWarning("Memory was [short]."), UserWarning, str(Path(fusetune.__file__).parent / "training" / "loop.py"), 7
    )
    show(UserWarning("theirs"), UserWarning, "/lib/torch/x.py", 8, None, None)
    assert capsys.readouterr().err == "warning: Memory was [short].\n"
    assert [given[2:] for given in seen] == [("/lib/torch/x.py", 8, None, None)]
