import pytest

from fusetune.registry import TASKS
from fusetune.tasks.classification import MulticlassTask
from fusetune.tasks.multilabel import MultilabelTask
from fusetune.tasks.regression import RegressionTask
from fusetune.testing.tasks import check_task

OPTIONS = {
    "smoothed": lambda target: MulticlassTask(target, label_smoothing=0.1, class_weights="balanced"),
    "tuned": lambda target: MultilabelTask(target, threshold="tuned", positive_weights="balanced"),
    **{
        f"{transform} {loss}": lambda target, transform=transform, loss=loss: RegressionTask(
            target, transform=transform, loss=loss, clip=loss == "mae"
        )
        for transform, loss in (("none", "mse"), ("yeo-johnson", "huber"), ("quantile", "mae"), ("standard", "mse"))
    },
}


@pytest.mark.parametrize("name", list(TASKS))
def test_every_registered_task_keeps_the_contract(name):
    assert check_task(TASKS.get(name))


@pytest.mark.parametrize("make", OPTIONS.values(), ids=OPTIONS)
def test_options_keep_the_contract(make):
    assert check_task(make)


def test_the_contract_catches_tasks_that_break_it():
    class Greedy(MulticlassTask):
        """Lets unlabelled rows into the loss."""

        def loss(self, logits, target, weights):
            target.labelled = target.labelled | True
            return super().loss(logits, target, weights)

    class Forgetful(RegressionTask):
        """Loses its scale when it is saved."""

        def state(self):
            state = super().state()
            return {**state, "transform": {**state["transform"], "mean": 0.0}}

    with pytest.raises(AssertionError, match="unlabelled rows have a part"):
        check_task(Greedy)
    with pytest.raises(AssertionError, match="after the state"):
        check_task(Forgetful)
