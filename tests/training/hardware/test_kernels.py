"""oneDNN keeps few kernels where shapes vary, and as many as it likes where the user or convolutions say so."""

import os
from dataclasses import replace

import pytest

from fusetune import Config
from fusetune.data.schema import Schema
from fusetune.data.table import Table
from fusetune.fitting import prepared
from fusetune.training.hardware.kernels import CAPACITY, VARIABLES, limit_kernel_cache


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    for variable in VARIABLES:
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)


@pytest.mark.parametrize("kinds", [["text"], ["text", "number"], []])
def test_texts_keep_few_kernels(kinds):
    limit_kernel_cache(kinds)
    assert [os.environ[variable] for variable in VARIABLES] == [str(CAPACITY)] * 2


@pytest.mark.parametrize("kinds", [["image"], ["text", "audio"]])
def test_convolutions_keep_theirs(kinds):
    limit_kernel_cache(kinds)
    assert not set(VARIABLES) & set(os.environ)


def test_a_limit_that_is_set_stays(monkeypatch):
    monkeypatch.setenv(VARIABLES[0], "7")
    limit_kernel_cache(["text"])
    assert os.environ[VARIABLES[0]] == "7"


@pytest.mark.parametrize(("kind", "limited"), [("number", True), ("image", False)])
def test_a_fit_limits_them_by_its_columns(monkeypatch, kind, limited):
    monkeypatch.setattr(prepared, "build_modalities", lambda inputs, backbones: {})
    schema = Schema.detect(Table.from_records([{"x": 1.5, "y": 0}, {"x": 2.5, "y": 1}]), targets=["y"])
    schema.columns["x"] = replace(schema.columns["x"], kind=kind)
    prepared._modalities(Config.build({"target": "y"}), schema)
    assert (VARIABLES[0] in os.environ) == limited
