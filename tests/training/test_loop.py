"""One stage of training: updates, accumulation, clipping, checks, stopping, and what a bad loss does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from fusetune.config.section import NamedConfig
from fusetune.data.examples import Examples
from fusetune.data.table import Table
from fusetune.errors import NonFiniteLoss, RunError
from fusetune.modalities.category import CategoryModality
from fusetune.modalities.number import NumberModality
from fusetune.models.build import build_model
from fusetune.objectives.balance import build_balance
from fusetune.objectives.total import Total
from fusetune.registry import OBJECTIVES
from fusetune.tasks.classes.classification import MulticlassTask
from fusetune.tasks.regression import RegressionTask
from fusetune.testing.objectives import make_parts
from fusetune.training.callbacks import Callback
from fusetune.training.checkpoints.checkpoint_manager import CheckpointManager
from fusetune.training.dropout import QuickDropout
from fusetune.training.learner import Learner
from fusetune.training.loop import run_stage, sampler_of
from fusetune.training.optim import no_decay, param_groups
from fusetune.training.stage import Stage
from fusetune.training.updates.update import loss_shares, plain


class Watch(Callback):
    """Keeps what it is told."""

    def __init__(self):
        self.losses, self.checks, self.stages, self.lrs = [], [], [], []

    def on_stage(self, name, num_updates, done):
        self.stages.append((name, num_updates))

    def on_update(self, step, losses, lr, figures):
        self.losses.append(losses)
        self.lrs.append(lr)

    def on_check(self, check):
        self.checks.append(check)


def make(rows: int = 48, *, weighted: bool = False) -> tuple[Learner, Examples]:
    """Two tasks, each with unlabelled rows; no dropout."""
    rng = np.random.default_rng(0)
    records = []
    for place in range(rows):
        x = float(rng.normal())
        record = {"x": x, "c": "uvw"[place % 3], "k": "abc"[int(np.digitize(x, [-0.5, 0.5]))], "y": 2 * x + 1}
        record["w"] = float(rng.uniform(0, 3)) if weighted else 1.0
        if weighted and place % 3 == 0:
            record["y"] = None
        if weighted and place % 7 == 0:
            record["k"] = None
        records.append(record)
    modalities = {"x": NumberModality("x", bins=4), "c": CategoryModality("c")}
    tasks = {"k": MulticlassTask("k"), "y": RegressionTask("y")}
    examples = Examples(Table.from_records(records), modalities, tasks, weight="w")
    examples.prepare(on_bad_cell="reject")
    examples.fit()
    torch.manual_seed(0)
    model = build_model(modalities, tasks, NamedConfig(name="concat", dim=8, modality_dropout=0.0), dropout=0.0)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return Learner(model, Total(tasks)), examples


def stage(learner: Learner, **changes) -> Stage:
    groups = param_groups(
        [(changes.pop("lr", 0.1), learner.parameters())], weight_decay=0.0, undecayed=no_decay(learner)
    )
    return Stage(**({"name": "s", "epochs": 1, "groups": groups, "optimizer": "sgd", "batch_size": 16} | changes))


def run(learner, examples, given: Stage, scores=(), watch=None):
    """Run a stage; checks get these scores in turn, then 0."""
    queue = iter(scores)
    watch = watch or Watch()
    step = run_stage(learner, given, examples, lambda: (1.0, next(queue, 0.0), {}), Accelerator(cpu=True), [watch])
    return step, watch


def weights(learner: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in learner.state_dict().items()}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("accumulate", [2, 4, 5])
def test_accumulating_makes_the_same_updates(weighted, accumulate):
    results, losses = [], []
    for parts in (1, accumulate):
        learner, examples = make(weighted=weighted)
        _, watch = run(learner, examples, stage(learner, accumulate=parts, clip=None, schedule="constant", warmup=0.0))
        results.append(weights(learner))
        losses.append([sum(found.values()) for found in watch.losses])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, atol=2e-5, rtol=1e-4, msg=name)


def test_an_update_is_the_optimizers_on_the_whole_batch():
    learner, examples = make(16, weighted=True)
    other, _ = make(16, weighted=True)
    run(learner, examples, stage(learner, clip=None, schedule="constant", warmup=0.0))
    loss, _, _ = other(examples.batch(examples.used))
    loss.backward()
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    for name, value in weights(other).items():
        torch.testing.assert_close(weights(learner)[name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_shares_sum_to_one_by_task():
    learner, examples = make(weighted=True)
    parts = [examples.batch([0, 1, 2]), examples.batch([3, 4]), examples.batch([5])]
    shares = loss_shares(learner, parts, Accelerator())
    for name in ("k", "y", ""):
        assert sum(share[name] for share in shares) == pytest.approx(1)
    weights = examples.weights[:6]
    assert shares[0][""] == pytest.approx(weights[:3].sum() / weights.sum())
    neither = loss_shares(learner, [examples.batch([0]), examples.batch([3])], Accelerator())
    assert neither[0]["y"] == 0.0, "neither row has it"


def test_clipping_bounds_an_update():
    learner, examples = make(16)
    before = weights(learner)
    run(learner, examples, stage(learner, lr=1.0, clip=0.01, schedule="constant", warmup=0.0))
    moved = math.sqrt(sum(float(((value - before[name]) ** 2).sum()) for name, value in weights(learner).items()))
    assert 0.005 < moved <= 0.0101


def test_counts_of_updates_checks_and_the_schedule():
    learner, examples = make()
    given = stage(learner, epochs=4, warmup=0.25, schedule="linear", evals_per_epoch=3)
    step, watch = run(learner, examples, given)
    assert (step, watch.stages) == (12, [("s", 12)])
    assert [check.step for check in watch.checks] == list(range(1, 13))
    assert watch.checks[-1].epoch == pytest.approx(4)
    assert np.argmax(watch.lrs) == 3 and watch.lrs[0] == 0 and max(watch.lrs) == pytest.approx(0.1)
    assert watch.checks[0].train_loss == pytest.approx(sum(watch.losses[0].values()))


def test_part_of_an_epoch():
    learner, examples = make()
    assert run(learner, examples, stage(learner, epochs=1 / 3))[0] == 1


def test_early_stopping_ends_the_stage_and_not_the_count():
    learner, examples = make()
    given = stage(learner, epochs=10, patience=2)
    step, watch = run(learner, examples, given, [0.5, 0.6, 0.1, 0.2])
    assert step == 4 * 3 and len(watch.checks) == 4


def test_rows_are_reshuffled_every_epoch_and_repeat_with_the_seed():
    found = []
    for seed in (0, 0, 1):
        learner, examples = make()
        seen = []
        real = examples.batch
        examples.batch = lambda places, *, epoch, seen=seen, real=real: seen.append(sorted(places)) or real(places)
        run(learner, examples, stage(learner, epochs=2, seed=seed))
        found.append(seen)
    assert found[0] == found[1] != found[2]
    assert found[0][:3] != found[0][3:]
    for epoch in (found[0][:3], found[0][3:]):
        assert sorted(place for batch in epoch for place in batch) == list(range(48))


@pytest.mark.parametrize(("name", "by_cost"), [(None, True), ("rdrop", True), ("contrastive", False)])
def test_rows_that_an_objective_compares_are_not_sorted_by_length(name, by_cost):
    model, tasks, examples = make_parts()
    learner = Learner(model, Total(tasks, [OBJECTIVES.get(name)(model, tasks)] if name else []))
    assert sampler_of(learner, stage(learner), examples, Accelerator(cpu=True)).by_cost == by_cost


def test_frozen_parameters_do_not_move():
    learner, examples = make()
    learner.model.fusion.requires_grad_(False)
    before = weights(learner)
    run(learner, examples, stage(learner, optimizer="adamw", lr=0.1))
    for name, value in weights(learner).items():
        if name.startswith("model.fusion"):
            assert torch.equal(value, before[name]), name
    assert not torch.equal(weights(learner)["model.heads.0.weight"], before["model.heads.0.weight"])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_is_not_finite_names_rows_and_changes_nothing(accumulate):
    learner, examples = make(8)
    examples.weights[5] = np.nan
    before = weights(learner)
    with pytest.raises(NonFiniteLoss, match=r"(?s)loss became NaN.*update 1 of stage 's'.*rows \[.*5.*Do: lower"):
        run(learner, examples, stage(learner, accumulate=accumulate))
    assert all(torch.equal(value, before[name]) for name, value in weights(learner).items())
    assert all(parameter.grad is None for parameter in learner.parameters())


def test_a_gradient_that_is_not_finite_too():
    learner, examples = make(8)
    learner.model.heads[1].weight.register_hook(lambda grad: grad * math.inf)
    before = weights(learner)
    with pytest.raises(NonFiniteLoss, match="gradient became NaN"):
        run(learner, examples, stage(learner))
    assert all(torch.equal(value, before[name]) for name, value in weights(learner).items())


def test_no_unclipped_gradient_check_is_lost():
    learner, examples = make(8)
    learner.model.heads[1].weight.register_hook(lambda grad: grad * math.nan)
    with pytest.raises(NonFiniteLoss, match="gradient"):
        run(learner, examples, stage(learner, clip=None))


def test_worker_processes_change_nothing():
    results = []
    for workers in (0, 1):
        learner, examples = make()
        run(learner, examples, stage(learner, workers=workers, accumulate=2))
        results.append(weights(learner))
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


class Spoiled:
    """Gives every `every`-th update a gradient that is not finite."""

    def __init__(self, every: int):
        self.every, self.calls = every, 0

    def __call__(self, learner, micro_batches, accelerator):
        losses = plain(learner, micro_batches, accelerator)
        self.calls += 1
        if self.calls % self.every == 0:
            next(p for p in learner.parameters() if p.grad is not None).grad.fill_(math.nan)
        return losses


def test_updates_that_are_not_finite_are_left_out_up_to_a_number():
    learner, examples = make()
    given = stage(learner, epochs=2, skip=2, gradients=Spoiled(3))  # the third and the sixth of six
    with pytest.warns(UserWarning, match="An update was skipped: the gradient became NaN"):
        step, watch = run(learner, examples, given)
    assert step == 6 and len(watch.losses) == 4
    assert [note.split("at ")[1].split(";")[0] for note in given.notes] == [
        "update 3 of stage 's'",
        "update 6 of stage 's'",
    ]
    assert all(value.isfinite().all() for value in weights(learner).values())


def test_more_are_an_error_that_counts_them():
    learner, examples = make()
    given = stage(learner, epochs=2, skip=1, gradients=Spoiled(2))
    with (
        pytest.warns(UserWarning),
        pytest.raises(NonFiniteLoss, match=r"(?s)update 4 of.*skip_nonfinite=1 such updates"),
    ):
        run(learner, examples, given)


def test_a_left_out_update_changes_no_weight_buffer_or_balance():
    learner, examples = make()
    learner.objective.balance = balance = build_balance("dwa", learner.model, learner.objective.tasks.tasks, examples)
    before, own = weights(learner), balance.process_state()
    with pytest.warns(UserWarning):
        run(learner, examples, stage(learner, epochs=1 / 3, skip=1, gradients=Spoiled(1)))
    assert balance.process_state() is own
    for name, value in weights(learner).items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True, msg=name)


class Short:
    """Memory that is short for micro-batches of more rows than `most`."""

    def __init__(self, most: int, error: Exception):
        self.most, self.error = most, error

    def __call__(self, learner, micro_batches, accelerator):
        losses = plain(learner, micro_batches, accelerator)
        if max(map(len, micro_batches)) > self.most:  # with gradients computed and draws taken
            raise self.error
        return losses


OUT_OF_MEMORY = {
    "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
    "python": MemoryError("no memory"),
}


@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
def test_where_memory_is_short_smaller_micro_batches_make_the_same_updates(error):
    found = []
    for gradients, accumulate in ((Short(5, error), 1), (plain, 4)):
        learner, examples = make()
        for module in learner.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.3  # the draws of a pass that failed are taken back
        given = stage(learner, gradients=gradients, accumulate=accumulate, optimizer="adamw", lr=0.01)
        if accumulate == 1:
            with pytest.warns(UserWarning, match=r"Memory ran out at update 1 .*trainer.accumulate=4"):
                run(learner, examples, given)
            assert [note.split("made of ")[1].split(" (")[0] for note in given.notes] == [
                "2 micro-batches",
                "4 micro-batches",
            ]
        else:
            run(learner, examples, given)
        found.append(weights(learner))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_where_memory_is_short_for_one_row_it_is_said():
    learner, examples = make(8)
    with (
        pytest.warns(UserWarning),
        pytest.raises(RunError, match=r"(?s)1 rows a micro-batch: CUDA out of memory.*Do: "),
    ):
        run(learner, examples, stage(learner, batch_size=2, gradients=Short(0, OUT_OF_MEMORY["gpu"])))


def test_other_errors_are_not_taken_for_it():
    learner, examples = make(8)
    with pytest.raises(RuntimeError, match="a defect"):
        run(learner, examples, stage(learner, gradients=Short(0, RuntimeError("a defect"))))


def test_weights_that_are_not_finite_are_not_kept(tmp_path):
    learner, examples = make()
    given = stage(learner, epochs=1, lr=1e38, clip=None, optimizer="sgd", schedule="constant", warmup=0.0)
    kept = CheckpointManager(tmp_path, 0)
    with pytest.raises(NonFiniteLoss, match=r"became NaN or infinite (by|at) update"):
        run_stage(learner, given, examples, lambda: (1.0, 0.0, {}), Accelerator(cpu=True), [], manager=kept)
    for saved in tmp_path.glob("*/tensors.safetensors"):
        assert all(value.isfinite().all() for value in load_file(saved).values())


def test_dropout_draws_quickly_in_updates_alone():
    learner, examples = make()

    def drops():
        return [module for module in learner.model.modules() if isinstance(module, nn.Dropout)]

    class Kinds(Watch):
        def on_update(self, *told):
            super().on_update(*told)
            inside.update(map(type, drops()))

    inside: set[type] = set()
    before = drops()
    run(learner, examples, stage(learner), watch=Kinds())
    assert before and inside == {QuickDropout}
    assert drops() == before and all(type(module) is nn.Dropout for module in before)
