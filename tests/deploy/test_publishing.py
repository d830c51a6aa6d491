"""Upload to the hub and download, with the hub's client replaced: nothing leaves this machine."""

import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError

from fusetune import FineTuned
from fusetune.deploy.card import card
from fusetune.errors import ConfigError, FolderError, StorageError


class Hub:
    """The part of `HfApi` that uploads, with repositories in a folder."""

    root: Path
    calls: list[tuple]

    def __init__(self, token=None) -> None:
        self.calls.append(("token", token))

    def create_repo(self, name, **options):
        self.calls.append(("create_repo", name, options["private"]))

    def create_branch(self, name, **options):
        self.calls.append(("create_branch", name, options["branch"]))

    def upload_folder(self, *, repo_id, folder_path, revision, commit_message):
        if repo_id == "other/forbidden":
            raise OSError("403 Forbidden\nmore")
        shutil.copytree(folder_path, self.root / repo_id)
        return f"https://hub/{repo_id}"


@pytest.fixture
def hub(monkeypatch, tmp_path) -> type[Hub]:
    Hub.root, Hub.calls = tmp_path / "hub", []

    def snapshot_download(name, *, revision, token, local_dir, local_files_only):
        if not (Hub.root / name).is_dir():
            raise LocalEntryNotFoundError("not here")
        return shutil.copytree(Hub.root / name, local_dir, dirs_exist_ok=True)

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("FUSETUNE_CACHE", str(tmp_path / "cache"))
    return Hub


ROWS = [{"note": "a lamp", "price": 3.0, "plan": "free", "photo": None, "voice": None}]


def test_what_is_pushed_predicts_the_same(fitted, hub):
    assert fitted.push_to_hub("me/shop") == "https://hub/me/shop"
    assert hub.calls == [("token", None), ("create_repo", "me/shop", True)]
    again = FineTuned.from_pretrained("me/shop")
    np.testing.assert_array_equal(again.predict_proba(ROWS), fitted.predict_proba(ROWS))


def test_rows_of_the_tables_stay_here_unless_asked(fitted, hub):
    fitted.push_to_hub("me/without")
    fitted.push_to_hub("me/with", report=True, revision="v2", private=False, token="t")
    names = {
        repository: {path.name for path in (hub.root / "me" / repository).iterdir()}
        for repository in ("without", "with")
    }
    assert names["with"] - names["without"] == {"report.html", "report.json"}
    assert "rejected.jsonl" not in names["with"]
    assert hub.calls[-3:] == [("token", "t"), ("create_repo", "me/with", False), ("create_branch", "me/with", "v2")]
    assert FineTuned.from_pretrained("me/with").results is not None


def test_a_folder_needs_no_hub(fitted, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    assert FineTuned.from_pretrained(fitted.folder).folder == fitted.folder


@pytest.mark.parametrize("name", ["shop", "a/b/c", "me/shop; rm"])
def test_names_that_are_none(fitted, hub, name):
    with pytest.raises(ConfigError, match="no name on the hub"):
        fitted.push_to_hub(name)
    with pytest.raises(FolderError, match="no name on the hub"):
        FineTuned.from_pretrained(name)


def test_refusals_say_what_to_do(fitted, hub, monkeypatch):
    with pytest.raises(StorageError, match="403 Forbidden; check"):
        fitted.push_to_hub("other/forbidden")
    with pytest.raises(FolderError, match="the hub did not give it"):
        FineTuned.from_pretrained("me/nowhere")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE"):
        fitted.push_to_hub("me/shop")


def test_the_hub_reads_the_cards_metadata(fitted):
    data = ModelCard(card(fitted.bundle, fitted.results)).data
    assert data.library_name == "fusetune"
    assert data.base_model is None  # backbones are folders of this machine
    assert set(data.tags) == {"fusetune", "text", "image", "audio", "number", "category"}
    (result,) = data.eval_results
    assert (result.metric_type, result.dataset_name) == ("accuracy", "20 test rows")
    assert 0 <= result.metric_value <= 1
