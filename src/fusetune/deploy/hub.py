"""Upload a tuned model to the Hugging Face hub, and download one."""

from __future__ import annotations

import re
from pathlib import Path

from fusetune.backbones.hub.source import offline, short_name
from fusetune.config.paths import cache_folder
from fusetune.errors import ConfigError, FolderError, StorageError

HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def upload(folder: Path, name: str, *, private: bool, revision: str | None, message: str, token: str | None) -> str:
    """Upload a folder as a model repository, which is created if there is none.

    Args:
        folder: all its files are uploaded.
        name: "owner/name".
        private: whether a new repository is private.
        revision: the branch; None for the main one.
        message: of the commit.
        token: None takes the one of `hf auth login`.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: the name is no hub id, or HF_HUB_OFFLINE is set.
        StorageError: the hub refuses it or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    if not HUB_ID.fullmatch(name):
        raise ConfigError("this is no name on the hub", expected="owner/name", came=name)
    if offline():
        raise ConfigError("HF_HUB_OFFLINE is set, so nothing can be uploaded", do="unset it")
    hub = HfApi(token=token)
    try:
        hub.create_repo(name, private=private, exist_ok=True, repo_type="model")
        if revision is not None:
            hub.create_branch(name, branch=revision, exist_ok=True)
        commit = hub.upload_folder(repo_id=name, folder_path=folder, revision=revision, commit_message=message)
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StorageError(
            f"the hub did not take {name}: {why}; check the name, the network, and hf auth login"
        ) from error
    return str(commit)


def download(name: str, *, revision: str | None, token: str | None) -> Path:
    """Return the local folder of a model on the hub, downloading what is missing or has changed.

    Raises:
        FolderError: the hub has no such model or cannot be reached, and it was not downloaded before.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    if not HUB_ID.fullmatch(name):
        raise FolderError(
            f"there is no folder {name!r}, and this is no name on the hub", expected="a folder, or owner/name"
        )
    folder = cache_folder() / "hub" / f"{short_name(name)}-{short_name(revision or 'main')}"
    try:
        path = snapshot_download(name, revision=revision, token=token, local_dir=folder, local_files_only=offline())
    except (HfHubHTTPError, OSError, ValueError) as error:
        state = "HF_HUB_OFFLINE is set" if offline() else "the hub did not give it"
        raise FolderError(
            f"{name!r} is neither a folder nor downloaded, and {state}",
            came=str(error).splitlines()[0] if str(error) else type(error).__name__,
            do="check the name; for a private model run: hf auth login",
        ) from error
    return Path(path)
