"""Fits whose target is written: from a table to a folder, a report and predictions."""

import csv
import json
import shutil
import wave

import numpy as np
import pytest
from PIL import Image

import fusetune as ft
from fusetune.deploy.export.transformers_folder import save_transformers
from fusetune.deploy.tuned import read_examples
from fusetune.errors import ConfigError, TableError
from fusetune.inference.token_loss import token_losses
from fusetune.models.generate import Generate
from fusetune.tasks.text.task import GenerateTask

WRITE = "tasks.out=generate"
QUICK = ["trainer.checkpoint_minutes=null", "trainer.trackers=[]", "report.bootstrap=20", "generation.val_rows=8"]


def table(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def words(rng, num):
    return " ".join(f"w{number}" for number in rng.integers(1, 9, num))


@pytest.fixture(scope="module", params=["llama_writer", "t5_writer"])
def run(request, tiny, tmp_path_factory):
    """A fit that learns a sentence, one word of which a picture tells."""
    folder = tmp_path_factory.mktemp("fit")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(92):
        colour, text = rng.integers(0, 2), words(rng, 4)
        path = folder / f"{number}.png"
        Image.new("RGB", (32, 32), (255, 0, 0) if colour else (0, 0, 255)).save(path)
        rows.append({"source": text, "photo": path.name, "out": f"w22 w23 w24 {'w20 w20' if colour else 'w21'}"})
    data, test = table(folder / "rows.csv", rows[:80]), table(folder / "test.csv", rows[80:])
    settings = [WRITE, f"text={tiny(request.param)}", "trainer.epochs=8", "trainer.batch_size=8"]
    settings += ["trainer.backbone_lr=1e-2", "trainer.evals_per_epoch=1"]
    settings += [f"image={tiny('vit')}"]
    tuned = ft.fit(data, target="out", test=test, out=str(folder / "run"), overrides=[*settings, *QUICK])
    return tuned, folder, rows[:80]


def test_text_that_differs_is_written_and_measured(run):
    tuned, folder, _ = run
    assert isinstance(tuned.bundle.model, Generate) and isinstance(tuned.bundle.tasks["out"], GenerateTask)
    report = json.loads((folder / "run" / "report.json").read_text())
    (task,) = report["tasks"]
    kinds = {system["name"]: system["kind"] for system in task["systems"]}
    assert (
        kinds["zero-shot"] == kinds["few-shot"] == "before"
        and kinds["tuned"] == "after"
        and kinds["without photo"] == "without"
    )
    assert {"most frequent", "copy of source", "nearest train row"} <= kinds.keys()
    value = {system["name"]: system["metrics"]["exact_match"]["value"] for system in task["systems"]}
    assert report["curve"]["metric"] == "log-likelihood of a token"
    assert value["tuned"] > 0.25 > value["zero-shot"]


def test_the_report_measures_the_tuned_encoders_and_not_the_frozen_features(run):
    tuned, folder, _ = run
    report = json.loads((folder / "run" / "report.json").read_text())
    used = {backbone["kind"]: backbone["how"] for backbone in report["backbones"]}
    assert used == {"image": "tuned", "text": "tuned"}
    figures = next(part["figures"] for part in report["tasks"][0]["sections"] if part["key"] == "likelihood")
    examples = read_examples(tuned.bundle, str(folder / "test.csv"), targets=True)
    losses, sizes = token_losses(tuned.bundle.model, "out", examples, examples.labelled("out"))
    assert figures["tuned_loss"] == pytest.approx(losses.sum() / sizes.sum(), rel=1e-4)


def test_a_saved_folder_answers_the_same(run):
    tuned, folder, rows = run
    before = tuned.predict(str(folder / "rows.csv")).table
    after = ft.load(folder / "run").predict(str(folder / "rows.csv")).table
    assert before.num_rows == len(rows) and before.column("out").to_pylist() == after.column("out").to_pylist()
    np.testing.assert_allclose(before["out_log_probability"], after["out_log_probability"], atol=1e-4)
    assert set(after["out_finish"].to_pylist()) <= {"end", "length"}


def test_each_row_has_an_answer_and_a_broken_picture_is_masked(run):
    tuned, folder, _ = run
    rows = [
        {"source": "w1 w2", "photo": str(folder / "0.png")},
        {"source": "", "photo": ""},
        {"source": "w3", "photo": "lost.png"},
    ]
    found = tuned.predict(rows).table
    assert found.num_rows == 3
    assert found["out"].to_pylist()[0] and found["out"].to_pylist()[2] and found["out"].to_pylist()[1] is None


def test_evaluate_measures_what_is_written(run):
    tuned, folder, _ = run
    found = tuned.evaluate(str(folder / "rows.csv"))
    metrics = found.metrics()["out"]
    assert metrics["exact_match"] > 0.25 and found.tasks[0].rows == 80
    assert not any(np.isnan(value) for value in metrics.values()) and "vqa_accuracy" not in metrics


def test_settings_that_do_not_go_with_writing_are_refused(run, tiny):
    _, folder, _ = run
    for setting, said in [
        ("objectives=[rdrop]", "rdrop"),
        ("prompt.template={sourse}", "source"),
        ("prompt.soft=[source]", "always read as words"),
        ("fusion=auto", "fusion=auto"),
        ("prompt.max_answer_tokens=95", "no room"),
        ("generation.regex=(a", "regex"),
    ]:
        settings = [WRITE, f"text={tiny('llama_writer')}", "generation.beams=1", setting]
        with pytest.raises(ConfigError, match=said):
            ft.fit(str(folder / "rows.csv"), target="out", overrides=settings)
    with pytest.raises(ConfigError, match="have it written"):
        ft.fit(str(folder / "rows.csv"), target="out", overrides=["prompt.template={source}"])


def test_written_and_chosen_targets_do_not_share_a_model(run, tiny, tmp_path):
    rng = np.random.default_rng(1)
    rows = [{"source": words(rng, 4), "out": f"{words(rng, 5)}", "label": "ab"[number % 2]} for number in range(40)]
    with pytest.raises(ConfigError, match="written"):
        ft.fit(table(tmp_path / "t.csv", rows), target=["out", "label"], overrides=[f"text={tiny('llama_writer')}"])


def test_two_targets_have_a_prompt_each(tiny, tmp_path):
    rng = np.random.default_rng(1)
    rows = [{"source": words(rng, 4), "one": words(rng, 3), "two": words(rng, 3)} for number in range(60)]
    rows = [{**row, "tone": ("w30", "w31")[at % 2], "one": f"{row['one']} w3{at % 2}"} for at, row in enumerate(rows)]
    path = table(tmp_path / "t.csv", rows)
    templates = ["tasks.one.name=generate", "tasks.one.template=w1 {tone} {source}", "tasks.two.name=generate"]
    settings = [f"text={tiny('llama_writer')}", "trainer.epochs=1", *templates, *QUICK]
    tuned = ft.fit(path, target=["one", "two"], overrides=settings, out=str(tmp_path / "run"))
    found = ft.load(tmp_path / "run").predict(path).table
    assert found["one"].to_pylist() == tuned.predict(path).table["one"].to_pylist()
    assert {"one", "two", "two_finish"} <= set(found.column_names)
    one, two = (
        {part["key"]: part["figures"] for part in task["sections"]}
        for task in json.loads((tmp_path / "run" / "report.json").read_text())["tasks"]
    )
    assert one["obedience"]["tone: the true texts"] == 1.0 and 0 <= one["obedience"]["tone: tuned"] <= 1
    assert two["obedience"]["tone: the true texts"] < 1.0  # whose texts have no tone


def test_an_empty_target_is_refused(tiny, tmp_path):
    path = table(tmp_path / "t.csv", [{"source": "w1 w2", "out": ""} for _ in range(30)])
    with pytest.raises(TableError):
        ft.fit(path, target="out", overrides=[f"text={tiny('llama_writer')}", "tasks.out=generate"])


@pytest.fixture(scope="module")
def chats(tiny, tmp_path_factory):
    """A fit whose target is a column of chats, with a model that has a chat template."""
    folder = tmp_path_factory.mktemp("chats")
    model = folder / "model"
    shutil.copytree(tiny("llama_writer"), model)
    template = (
        "{% for m in messages %}[CLS] {{ m.content }} [SEP] {% endfor %}{% if add_generation_prompt %}[CLS] {% endif %}"
    )
    (model / "chat_template.jinja").write_text(template)
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(60):
        turns = [{"role": "user", "content": words(rng, 3)}, {"role": "assistant", "content": words(rng, 2)}]
        turns += [{"role": "user", "content": words(rng, 3)}, {"role": "assistant", "content": f"w22 {words(rng, 3)}"}]
        rows.append({"messages": turns})
    path = folder / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, [*rows, {"messages": rows[0]["messages"][:1]}])))
    settings = [f"text={model}", "trainer.epochs=1", *QUICK]
    return ft.fit(str(path), target="messages", overrides=settings, out=str(folder / "run")), folder, rows


def test_chats_are_prompts_up_to_their_last_answer(chats):
    tuned, folder, rows = chats
    task, modality = tuned.bundle.tasks["messages"], tuned.bundle.modalities["prompt"]
    turns = rows[0]["messages"]
    assert task.chats and list(task.truth([turns])) == [turns[-1]["content"]]
    text = modality.text([turns])
    assert text.count("[SEP]") == 3 and turns[2]["content"] in text and turns[3]["content"] not in text
    rejected = (folder / "run" / "rejected.jsonl").read_text()
    assert "no answer to learn from" in rejected and len(rejected.splitlines()) == 1


def test_a_chat_is_answered_with_or_without_its_last_answer(chats):
    _, folder, rows = chats
    whole, asked = rows[0]["messages"], rows[0]["messages"][:-1]
    found = ft.load(folder / "run").predict([{"messages": whole}, {"messages": asked}, {"messages": "no chat"}]).table
    answers = found["messages"].to_pylist()
    assert answers[0] == answers[1] and answers[0] is not None and answers[2] is None


def test_a_chat_needs_no_template_of_its_own(chats):
    _, folder, _ = chats
    with pytest.raises(ConfigError, match="own prompts"):
        settings = [f"text={folder / 'model'}", "prompt.template=w1 {messages}"]
        ft.fit(str(folder / "chats.jsonl"), target="messages", overrides=settings)


@pytest.fixture(scope="module")
def speech(tiny, tmp_path_factory):
    """A fit of a model of speech on tones, each of which is a word."""
    folder = tmp_path_factory.mktemp("speech")
    rng, rows = np.random.default_rng(0), []
    for number in range(20):
        high = number % 2
        wave_ = np.sin(np.arange(8000) * (0.8 if high else 0.1)) * 0.5 + rng.normal(0, 0.01, 8000)
        path = folder / f"{number}.wav"
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes((wave_ * 32767).astype(np.int16).tobytes())
        rows.append({"sound": path.name, "said": "w20 w21" if high else "w22 w23 w24"})
    path = table(folder / "rows.csv", rows)
    settings = [
        f"text={tiny('whisper_writer')}",
        "tasks.said=generate",
        "trainer.epochs=4",
        "trainer.backbone_lr=1e-2",
    ]
    settings += ["trainer.evals_per_epoch=1", "trainer.batch_size=8"]
    return ft.fit(path, target="said", overrides=[*settings, *QUICK], out=str(folder / "run")), folder


def test_a_model_of_speech_writes_what_it_hears(speech):
    tuned, folder = speech
    assert tuned.bundle.model.language.hears
    found = tuned.predict(str(folder / "rows.csv")).table
    restored = ft.load(folder / "run").predict(str(folder / "rows.csv")).table
    assert restored["said"].to_pylist() == found["said"].to_pylist()
    low, high = (np.array(found["said_log_probability"])[start::2] for start in (0, 1))
    assert abs(low.mean() - high.mean()) > 3 * max(low.std(), high.std())
    used = {backbone.kind: backbone for backbone in tuned.results.backbones}
    assert used["audio"].how == "tuned" and used["text"].how == "tuned"


def test_a_model_of_speech_is_no_plain_folder(speech, tmp_path):
    with pytest.raises(ConfigError, match="speech"):
        save_transformers(speech[0].bundle, tmp_path / "plain")


def test_a_row_without_a_sound_has_no_answer(speech):
    tuned, folder = speech
    rows = [{"sound": str(folder / "0.wav")}, {"sound": str(folder / "lost.wav")}, {"sound": ""}]
    answers = tuned.predict(rows).table["said"].to_pylist()
    assert answers[0] is not None and answers[1] is None and answers[2] is None


def test_a_model_of_speech_reads_one_sound_alone(speech, tiny):
    _, folder = speech
    settings = [f"text={tiny('whisper_writer')}", "tasks.said=generate"]
    for setting, said in (("prompt.template=w1 {sound}", "one sound"), (f"audio={tiny('whisper')}", "own encoder")):
        with pytest.raises(ConfigError, match=said):
            ft.fit(str(folder / "rows.csv"), target="said", overrides=[*settings, setting])
