"""What a tuned model offers other tools: notebooks, the Hugging Face hub, MLflow."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Self

from fusetune.deploy.bundle import Bundle, load_bundle, move, save_bundle
from fusetune.deploy.card import write_card
from fusetune.deploy.export.mlflow_model import save_mlflow
from fusetune.deploy.hub import download, upload
from fusetune.deploy.rows import needed_columns
from fusetune.deploy.versions import folder_in_use
from fusetune.evaluation.report.notebook import html_table, run_html
from fusetune.evaluation.report.write import write_report
from fusetune.evaluation.results import RunResults, read_results

REPORT_JSON = "report.json"


class Publishing:
    """The methods of `FineTuned` for other tools.

    Attributes:
        bundle: the tuned model.
        folder: where it is saved, or None.
        results: what the run found, or None.
    """

    bundle: Bundle
    folder: Path | None
    results: RunResults | None

    def __init__(self, bundle: Bundle, *, folder: Path | None, results: RunResults | None) -> None:
        self.bundle, self.folder, self.results = bundle, folder, results

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the verdict and the comparison of the run."""
        lines = [("reads", ", ".join(needed_columns(self.bundle))), ("predicts", ", ".join(self.bundle.tasks))]
        table = html_table(("tuned model", str(self.folder or "not saved")), lines)
        return str(table) + ("" if self.results is None else run_html(self.results, self.folder))

    @classmethod
    def from_pretrained(cls, name: str | Path, *, revision: str | None = None, token: str | None = None) -> Self:
        """Load a model from a folder, or from the Hugging Face hub.

        Args:
            name: a folder, or "owner/name" on the hub. What was downloaded before is found without the hub.
            revision: a branch, tag or commit of the hub's repository.
            token: for a private repository; None takes the one of `hf auth login`.

        Raises:
            FolderError: there is no such folder or model, or it is broken or altered.

        Example:
            >>> tuned = ft.FineTuned.from_pretrained("my-team/tickets")
        """
        folder = Path(name)
        return cls.from_folder(folder if folder.is_dir() else download(str(name), revision=revision, token=token))

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Load a model from its folder, or the one in use from a folder of versions; see `fusetune.load`.

        Raises:
            FolderError: it is no model folder, or a broken or altered one.
        """
        folder = folder_in_use(folder)
        bundle = load_bundle(folder)
        move(bundle.model)
        report = folder / REPORT_JSON
        return cls(bundle, folder=folder, results=read_results(report) if report.is_file() else None)

    def push_to_hub(
        self,
        name: str,
        *,
        private: bool = True,
        report: bool = False,
        revision: str | None = None,
        message: str = "Upload a model tuned by fusetune",
        token: str | None = None,
    ) -> str:
        """Upload the model with its card to the Hugging Face hub.

        Args:
            name: "owner/name"; the repository is created if there is none.
            private: whether a new repository is private.
            report: whether to upload the report too, which shows cells of the test rows.
            revision: the branch to commit to; None for the main one.
            message: of the commit.
            token: None takes the one of `hf auth login`.

        Returns:
            The address of the commit.

        Raises:
            ConfigError: the name is no hub id, or HF_HUB_OFFLINE is set.
            StorageError: the hub refuses it or cannot be reached.

        Example:
            >>> tuned.push_to_hub("my-team/tickets")
        """
        with tempfile.TemporaryDirectory(prefix="fusetune-") as scratch:
            folder = Path(scratch)
            save_bundle(self.bundle, folder)
            write_card(self.bundle, self.results, folder)
            if report and self.results is not None:
                write_report(self.results, folder)
            return upload(folder, name, private=private, revision=revision, message=message, token=token)

    def save_mlflow(self, folder: str | Path) -> Path:
        """Write an MLflow model, which `mlflow.pyfunc.load_model` and `mlflow models serve` load.

        Args:
            folder: to write; it must not exist.

        Raises:
            MissingExtra: MLflow is not installed.
            ConfigError: the folder exists.
            StorageError: it cannot be written.
        """
        return save_mlflow(self.bundle, Path(folder))
