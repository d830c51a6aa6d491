"""A dry run goes through every stage of a fit, and leaves nothing behind."""

from __future__ import annotations

import json
import math

import fusetune as ft
from fusetune.cli.main import main


def settings(tiny, **trainer):
    return {
        "text": {"name": tiny("bert")},
        "image": {"name": tiny("vit")},
        "audio": {"name": tiny("wav2vec2")},
        "fusion": {"name": "attention", "dim": 16},
        "trainer": {"trackers": [], **trainer},
    }


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_every_stage_is_estimated_and_nothing_is_written(tiny, shop_tables, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FUSETUNE_CACHE", str(tmp_path / "cache"))
    tables = {"val": shop_tables["val"], "test": shop_tables["test"]}
    before = files(shop_tables["train"].parent)
    short = ft.dry_run(
        shop_tables["train"], "label", **tables, config=settings(tiny, epochs=1, head_epochs=2), progress=False
    )
    assert [stage.name for stage in short.stages][-6:] == [
        "encode with frozen backbones",
        "fit linear probes",
        "head",
        "tune",
        "save",
        "compare and measure",
    ]
    assert all(math.isfinite(stage.seconds) and stage.seconds > 0 for stage in short.stages)
    assert short.peak_mb > 50 and any("label" in line for line in short.inferred)
    assert not files(tmp_path) and files(shop_tables["train"].parent) == before
    head = ft.dry_run(shop_tables["train"], "label", **tables, config=settings(tiny, epochs=0), progress=False)
    assert "tune" not in [stage.name for stage in head.stages]


def test_the_command_prints_it(tiny, shop_tables, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [
        f"{kind}.name={value['name']}" for kind, value in settings(tiny).items() if kind in ("text", "image", "audio")
    ]
    arguments = ["fit", str(shop_tables["train"]), "-t", "label", "--dry-run", "trainer.head_epochs=1", *words]
    for more in ([], ["--json"]):
        monkeypatch.setattr("sys.argv", ["fusetune", *arguments, *more])
        try:
            main()
        except SystemExit as stop:
            assert not stop.code
        shown = capsys.readouterr().out
        if more:
            told = json.loads(shown)
            assert told["seconds"] > 0 and {stage["name"] for stage in told["stages"]} >= {"head", "tune"}
        else:
            assert "MB" in shown and "tune" in shown
    assert not files(tmp_path)
