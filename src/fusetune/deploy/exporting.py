"""What a tuned model offers for other runtimes: exports to ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusetune.data.table import Source
from fusetune.deploy.bundle import Bundle
from fusetune.deploy.export.onnx import save_onnx


class Exporting:
    """The methods of `FineTuned` for exports.

    Attributes:
        bundle: the tuned model.
    """

    bundle: Bundle

    def save_onnx(
        self, folder: str | Path, *, variants: Sequence[str] = (), check: Source | None = None
    ) -> dict[str, Any]:
        """Write the model as a folder that `fusetune.runtime` runs without torch, and check it on real rows.

        Args:
            folder: to write; a folder of this name is replaced.
            variants: "float16", "int8"; float32 is always written.
            check: a table whose rows are compared; None takes the validation or train rows that the run's settings
                name.

        Returns:
            For each variant its size, speed, metrics and largest difference from this model.

        Raises:
            ConfigError: the model has a column or task that cannot be exported, a variant is unknown, or there are no
                rows to check it on.
            MissingExtra: the extra `export` is not installed.
            ExportError: the float32 graph answers otherwise than the model.
            StorageError: the folder cannot be written.

        Example:
            >>> tuned.save_onnx("exported", variants=["int8"])  # doctest: +SKIP
        """
        return save_onnx(self.bundle, Path(folder), variants=variants, check=check)
