"""The model folder's files and what is shown while a saved model works."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fusetune.deploy import fine_tuned


def test_weights_are_as_readable_as_the_other_files(fitted):
    modes = {path.name: path.stat().st_mode for path in fitted.folder.iterdir() if path.is_file()}
    assert modes["model.safetensors"] == modes["bundle.json"] == modes["report.html"]


@pytest.mark.parametrize("asked", [True, False])
def test_progress_is_shown_where_it_is_asked_for(fitted, shop_tables, monkeypatch, asked):
    seen: list[str] = []

    def track(steps: Iterator[Any], what: str, total: int) -> Iterator[Any]:
        found = list(steps)
        assert len(found) == total
        seen.append(what)
        return iter(found)

    monkeypatch.setattr(fine_tuned, "track", track)
    fitted.predict(shop_tables["test"], progress=asked)
    predicting = ["reading note", "reading photo", "reading voice", "reading price", "reading plan", "predicting"]
    assert seen == (predicting if asked else [])
    fitted.evaluate(shop_tables["test"], progress=asked)
    assert seen == (predicting * 2 if asked else [])
