"""Semi-supervised learning, by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fusetune.deploy.tuned import read_examples
from fusetune.errors import ConfigError
from fusetune.objectives.semi import METHODS, SemiSupervised
from fusetune.objectives.thresholds import SelfAdaptiveThreshold
from fusetune.objectives.total import learning_without_target
from fusetune.testing.objectives import ROWS, ObjectiveContract, make_parts
from fusetune.training.averaging import teachers_of


class MeanTeacher(SemiSupervised):
    """Its own default, as the contract builds objectives by their class."""

    def __init__(self, model, tasks, *, weight=1.0):
        super().__init__(model, tasks, method="mean_teacher", weight=weight)


@pytest.mark.parametrize("make", [MeanTeacher])
class TestMeanTeacher(ObjectiveContract):
    pass


def parts(**options):
    model, tasks, examples = make_parts()
    return model.train(), tasks, examples.batch(range(ROWS)), SemiSupervised(model, tasks, **options).train()


def test_pseudo_label_is_the_cross_entropy_of_confident_rows_alone():
    model, _, batch, objective = parts(method="pseudo_label", threshold=0.6)
    outputs = model(batch)
    logs = outputs.logits["k"].log_softmax(1)
    best = logs.max(1).values
    confident = best.exp() >= 0.6
    assert 0 < confident.sum() < ROWS
    found = objective(model, batch, outputs)["semi"]
    assert found.item() == pytest.approx((-best * confident).mean().item(), rel=1e-5)
    assert objective.figures["k/used"].item() == pytest.approx(confident.float().mean().item())
    assert not objective.perturbs_inputs


def test_fixmatch_learns_the_weak_views_label_on_the_strong_view():
    model, _, batch, objective = parts(method="fixmatch", threshold=0.4, noise=0.5)
    outputs = model(batch)
    torch.manual_seed(3)
    found = objective(model, batch, outputs)["semi"]
    torch.manual_seed(3)
    strong = model(objective._strong(model, batch)).logits["k"]
    q = outputs.logits["k"].softmax(1)
    wanted = F.cross_entropy(strong, q.argmax(1), reduction="none") * (q.max(1).values >= 0.4)
    assert found.item() == pytest.approx(wanted.mean().item(), rel=1e-5)
    assert not torch.allclose(strong, outputs.logits["k"])


def test_the_label_gets_no_gradient():
    model, _, batch, objective = parts(method="pseudo_label", threshold=0.01)
    outputs = model(batch)
    logits = outputs.logits["k"]
    logits.retain_grad()
    objective(model, batch, outputs)["semi"].backward()
    hard = F.one_hot(logits.argmax(1), logits.shape[1])
    assert torch.allclose(logits.grad, (logits.softmax(1) - hard).detach() / ROWS, atol=1e-6)


def test_self_adaptive_thresholds_follow_confidence_and_classes():
    threshold = SelfAdaptiveThreshold(3, decay=0.9)
    assert threshold.of(torch.arange(3)).tolist() == pytest.approx([1 / 3] * 3)
    first = torch.tensor([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1]])
    threshold.observe(first[:1], torch.ones(1))
    before = threshold.of(torch.arange(3)).clone()
    threshold.observe(first[1:], torch.ones(1))
    assert torch.equal(before, threshold.of(torch.arange(3))), "it is constant within an update"
    threshold.end_update()
    assert threshold.of(torch.arange(3)).tolist() == pytest.approx([0.7, 0.7 * 0.2 / 0.7, 0.7 * 0.1 / 0.7])
    threshold.observe(torch.tensor([[0.0, 1.0, 0.0]]), torch.ones(1))
    threshold.start_update()  # that update was not made
    threshold.observe(torch.tensor([[0.0, 1.0, 0.0]]), torch.ones(1))
    threshold.end_update()
    confidence, rates = 0.9 * 0.7 + 0.1, [0.63, 0.9 * 0.2 + 0.1, 0.09]
    assert threshold.of(torch.arange(3)).tolist() == pytest.approx([confidence * r / max(rates) for r in rates])
    threshold.end_update()  # nothing was observed
    assert threshold.updates == 2


def test_micro_batches_move_thresholds_as_one_batch_does():
    model, tasks, examples = make_parts()
    buffers = []
    for groups in ([range(ROWS)], [range(10), range(10, ROWS)]):
        objective = SemiSupervised(model, tasks).train()
        objective.start_update()
        for rows in groups:
            batch = examples.batch(rows)
            objective(model.eval(), batch, model(batch))
        objective.end_update()
        buffers.append(dict(objective.named_buffers()))
    assert buffers[0].keys() == buffers[1].keys() and buffers[0]
    for name, value in buffers[0].items():
        assert torch.allclose(value, buffers[1][name], atol=1e-6), name


def test_the_teacher_is_the_moving_average_of_the_weights():
    model, tasks, batch, objective = parts(method="mean_teacher", decay=0.5, noise=0.0)
    model.eval()
    (teacher,) = teachers_of(model, [objective])
    assert objective(model, batch, model(batch))["semi"].item() == pytest.approx(0, abs=1e-6)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for head in model.heads:
            head.weight.add_(torch.linspace(-1, 1, head.weight.numel()).view_as(head.weight))
    teacher.on_update(1, {}, 0.0, {})
    name = next(key for key in teacher.values if key.startswith("heads.0") and key.endswith("weight"))
    share = 1 - 2 / 11  # the average's warm-up
    assert torch.allclose(objective.teacher[name], start[name].lerp(model.state_dict()[name], share))
    outputs = model(batch)
    found = objective(model, batch, outputs)["semi"]
    with torch.no_grad():
        other, *_ = make_parts()
        other.load_state_dict({**model.state_dict(), **teacher.values})
        taught = other.eval()(batch).logits
    wanted = sum(tasks[name].divergence(taught[name], outputs.logits[name]).mean() for name in tasks)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-4) and found.item() > 1e-4
    assert all(p.grad is None for p in model.parameters())


def test_without_other_methods_no_average_is_kept():
    model, _, _, objective = parts()
    assert teachers_of(model, [objective]) == []


def test_a_task_without_classes_is_named():
    model, tasks, _ = make_parts()
    numbers = {"y": tasks["y"]}
    for method in METHODS:
        if method == "mean_teacher":
            SemiSupervised(model, numbers, method=method)
            continue
        with pytest.raises(ConfigError, match="regression"):
            SemiSupervised(model, numbers, method=method)
    assert "'y'" in SemiSupervised(model, tasks).warnings[0]


@pytest.mark.parametrize(
    "options", [{"method": "fixmach"}, {"threshold": 1.0}, {"cutoff": 1.0}, {"noise": -0.1}, {"decay": 1.0}]
)
def test_settings_out_of_range(options):
    model, tasks, _ = make_parts()
    with pytest.raises(ConfigError, match=next(iter(options))):
        SemiSupervised(model, tasks, **options)


def test_it_learns_from_rows_without_a_target():
    assert learning_without_target({"semi": {}, "mixup": {}}) == ["semi"]


def test_the_strong_view_drops_words_and_adds_noise(fitted, shop_tables):
    examples = read_examples(fitted.bundle, str(shop_tables["test"]), targets=True)
    batch, model = examples.batch(examples.used[:8]), fitted.bundle.model
    model.eval()
    with torch.no_grad():
        plain = model(batch).logits["label"]
        for cutoff, noise in ((0.0, 0.0), (0.99, 0.0), (0.0, 0.5)):
            objective = SemiSupervised(model, fitted.bundle.targets, method="fixmatch", cutoff=cutoff, noise=noise)
            torch.manual_seed(0)
            view = model(objective._strong(model, batch)).logits["label"]
            assert torch.allclose(view, plain, atol=1e-5) == (cutoff == noise == 0)
