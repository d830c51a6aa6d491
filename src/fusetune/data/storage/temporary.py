"""Temporary folders that live as long as what is read from them."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from pathlib import Path


class TemporaryFolder:
    """A temporary folder that is removed when the last object that holds this one is gone, at exit at the latest.

    A process that was forked does not remove it.
    """

    def __init__(self, prefix: str = "fusetune-table-") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=prefix))
        weakref.finalize(self, _remove, str(self.folder), os.getpid())


def _remove(folder: str, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
