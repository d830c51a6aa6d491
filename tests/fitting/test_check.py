"""What is wrong with the settings is told at once, before a table is read."""

import pytest

from fusetune import api
from fusetune.config.config import Config
from fusetune.errors import ConfigError
from fusetune.fitting.check import check_settings


def test_options_of_all_parts_are_told_together(tmp_path):
    config = {
        "target": "label",
        "fusion": {"name": "gated", "dimm": 3, "headz": 2},
        "tasks": {"labl": "binary", "label": {"name": "multiclass", "clas_weights": "balanced"}},
        "objectives": {"contrastive": {"wieght": 1}},
        "trainer": {"trackers": ["wandbb"]},
    }
    with pytest.raises(ConfigError) as raised:
        api.fit(tmp_path / "is_never_read.csv", config=config, out=tmp_path / "m")
    assert len(raised.value.problems) == 6
    for hint in ("'dim'", "'headz'", "'label'", "'class_weights'", "'weight'", "'wandb'"):
        assert hint in str(raised.value), hint
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("fusion", ["auto", "stack", {"name": "stack", "base": "gated"}, "attention"])
def test_right_settings_pass(fusion):
    check_settings(Config.build({"target": "y", "fusion": fusion, "tasks": {"y": {"class_weights": "balanced"}}}))


def test_a_single_problem_is_told_as_it_is():
    with pytest.raises(ConfigError, match=r"^fusion \(attention\) has no setting 'dpth'"):
        check_settings(Config.build({"fusion": {"dpth": 2}}))


def test_a_worker_that_imports_the_script_does_not_fit(monkeypatch):
    """Without a main guard each spawned worker would train a model of its own first."""
    monkeypatch.setattr("fusetune.fitting.check.imports_main", lambda: True)
    with pytest.raises(ConfigError, match="__main__"):
        api.fit("none.csv", "y")
