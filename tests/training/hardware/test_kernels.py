"""oneDNN keeps few kernels where shapes vary, and as many as it likes where the user or convolutions say so."""

import os

import pytest

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
