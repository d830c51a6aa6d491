"""Abilities: what only some tasks can do is asked for by type, and refused by name where it is lacking."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import fusetune
from fusetune import api
from fusetune.errors import ConfigError
from fusetune.registry import TASKS
from fusetune.tasks.abilities import Boosted, Divergent, Labelled, Probed, Thresholded, Writes
from fusetune.tasks.base import TargetTask
from fusetune.tasks.classes.classification import BinaryTask
from fusetune.tasks.pairs import PairTask
from fusetune.tasks.regression import RegressionTask
from fusetune.tasks.required import require
from fusetune.tasks.token_task import TokenTask

SOURCE = Path(fusetune.__file__).parent
CLASSES = [TASKS.table[name].partition(":")[2] for name in TASKS.table]


def test_no_module_outside_tasks_names_a_class_of_tasks():
    known = re.compile(r"\b(" + "|".join([*CLASSES, "LabelTask", "ClassificationTask"]) + r")\b")
    own = {"registry.py", "testing"}  # the table of names; suites build tasks to check others with
    found = [
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if path.relative_to(SOURCE).parts[0] not in {"tasks", *own} and known.search(path.read_text())
    ]
    assert not found


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in TASKS
        if issubclass(TASKS.get(name), TargetTask) and not issubclass(TASKS.get(name), TokenTask | PairTask | Writes)
    ],
)
def test_what_the_tasks_here_can_do(name):
    kind = TASKS.get(name)
    assert issubclass(kind, Probed) and issubclass(kind, Divergent) and issubclass(kind, Boosted)
    assert issubclass(kind, Labelled) == (name != "regression")
    assert issubclass(kind, Thresholded) == (name == "multilabel")


class PlainTask(TargetTask):
    """Two labels, without any ability: what a task of another sort is to everything else."""

    name, main = "plain", BinaryTask.main

    def __init__(self, target):
        super().__init__(target)
        self.inner = BinaryTask(target)

    @classmethod
    def detect(cls, values):
        return BinaryTask.detect(values)

    @property
    def labels(self):
        return self.inner.labels

    @classmethod
    def from_state(cls, target, state):
        task = cls(target)
        task.inner = BinaryTask.from_state(target, state)
        return task


def delegated(name):
    def method(self, *args, **more):
        return getattr(self.inner, name)(*args, **more)

    return method


for method in TargetTask.__abstractmethods__ - {"detect", "from_state"}:
    setattr(PlainTask, method, delegated(method))
PlainTask.decide = delegated("decide")
PlainTask.__abstractmethods__ = frozenset()


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.setattr(TASKS, "get", lambda name: PlainTask)


def test_the_lacking_task_is_named():
    tasks = {"price": RegressionTask("price"), "kind": BinaryTask("kind")}
    with pytest.raises(ConfigError, match=r"objectives.x needs labels that rows can share.*regression") as told:
        require(tasks, Labelled, where="objectives.x")
    assert "'price', regression" in str(told.value) and "'kind'" in str(told.value)
    assert require({"kind": tasks["kind"]}, Labelled, where="objectives.x") == {"kind": tasks["kind"]}


@pytest.mark.parametrize("objective", ["rdrop", "vat"])
def test_an_objective_without_its_ability_is_refused_before_training(
    objective, plain, write_csv, quick, tmp_path, monkeypatch
):
    rng = np.random.default_rng(0)
    rows = [{"x": float(value), "mark": "hi" if value > 0 else "lo"} for value in rng.normal(size=60)]
    table = write_csv(tmp_path / "t.csv", rows)
    monkeypatch.setattr("fusetune.training.stages.run_stage", lambda *a, **k: pytest.fail("it trains"))
    with pytest.raises(ConfigError, match=f"objectives.{objective} needs a divergence.*plain"):
        api.fit(
            str(table),
            target="mark",
            out=tmp_path / "m",
            config=quick | {"objectives": {objective: {}}, "tasks": {"mark": "binary"}},
            progress=False,
        )


def test_a_task_without_probe_or_trees_is_tuned_and_compared(plain, write_csv, quick, tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {"x": float(value), "words": "good day" if value > 0.5 else "bad night", "mark": "hi" if value > 0 else "lo"}
        for value in rng.normal(size=90)
    ]
    table = write_csv(tmp_path / "t.csv", rows)
    trainer = {"epochs": 0, "head_epochs": 4, "trackers": []}
    config = quick | {"tasks": {"mark": "binary"}, "trainer": trainer, "columns": {"words": {"kind": "category"}}}
    tuned = api.fit(str(table), target="mark", out=tmp_path / "m", config=config, progress=False)
    kinds = [system.kind for system in tuned.results.tasks[0].systems]
    assert "before" not in kinds and {"baseline", "after"} <= set(kinds)
    assert torch.isfinite(next(tuned.bundle.model.parameters())).all()
