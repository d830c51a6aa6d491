"""Mined negatives: what is found and left out, what batches have of it, and runs that end and are gone on with."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from scipy import sparse
from torch import multiprocessing

from fusetune.config.section import NamedConfig
from fusetune.data.examples import Examples
from fusetune.data.table import Table
from fusetune.errors import ConfigError
from fusetune.inference.retrieval import hard_negatives
from fusetune.modalities.category import CategoryModality
from fusetune.modalities.number import NumberModality
from fusetune.models.build import build_model
from fusetune.objectives.contrastive import ContrastiveObjective
from fusetune.objectives.total import Total
from fusetune.tasks.retrieval import pair_tasks
from fusetune.testing.objectives import make_parts
from fusetune.training import loop
from fusetune.training.checkpoints.checkpoint_manager import CheckpointManager
from fusetune.training.learner import Learner
from fusetune.training.loop import run_stage
from fusetune.training.mining import Miner
from fusetune.training.optim import no_decay, param_groups
from fusetune.training.stage import Stage

ROWS = 40


def make(**settings) -> tuple[Learner, Examples]:
    """Pairs of a number and a document of two columns; rows 0 and 1 ask the same, 2 and 3 are of one group."""
    rng = np.random.default_rng(0)
    records = []
    for row in range(ROWS):
        x = float(rng.normal())
        records.append({"x": x, "y": round(2 * x, 1), "c": "uvw"[row % 3], "g": None})
    records[1]["x"] = records[0]["x"]
    records[2]["g"] = records[3]["g"] = "together"
    records[5]["x"] = None
    modalities = {"x": NumberModality("x", bins=4), "y": NumberModality("y", bins=4), "c": CategoryModality("c")}
    examples = Examples(Table.from_records(records), modalities, group="g")
    examples.prepare(on_bad_cell="reject")
    examples.fit()
    torch.manual_seed(0)
    options = {"mine": 2, **settings}
    tasks = pair_tasks(["x"], ["y", "c"], mined=options["mine"])
    fusion = NamedConfig.model_validate({"name": "concat", "dim": 8, "modality_dropout": 0.0, "tied": False})
    model = build_model(modalities, tasks, fusion, dropout=0.1)
    objective = ContrastiveObjective(model, {}, **options)
    objective.fit(examples)
    return Learner(model, Total({}, [objective])), examples


def test_the_nearest_that_are_neither_right_nor_too_near():
    documents = torch.nn.functional.normalize(
        torch.tensor([[1.0, 0], [1, 0.1], [1, 0.5], [1, 1], [0, 1], [-1, 0]]), dim=1
    )
    queries = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, -1.0]])
    own, right = (
        torch.tensor([1, 1, 4]),
        sparse.csr_array(np.array([[0, 1, 0, 0, 0, 0]] * 2 + [[0, 0, 0, 0, 1, 0]], bool)),
    )
    nearest, too_near = hard_negatives(queries, documents, own, right, num=2, margin=0.95)
    assert nearest[0].tolist() == [2, 3] and too_near[0] == 1  # 0 is nearer than the right answer, 1
    nearest, too_near = hard_negatives(queries, documents, own, right, num=4, margin=0.5)
    assert nearest[0].tolist() == [4, 5, -1, -1] and too_near[0] == 3
    assert nearest[2].tolist() == [-1] * 4 and too_near[2] == 5  # the right answer is the farthest one
    nearest, too_near = hard_negatives(queries, documents, own, right, num=9, margin=None)
    assert nearest[0].tolist() == [0, 2, 3, 4, 5, -1, -1, -1, -1] and not too_near.any()


def test_batches_have_the_documents_of_other_rows_and_no_right_answers():
    learner, examples = make(mine_margin=None)
    miner = Miner.of(learner, examples, Accelerator(cpu=True))
    train = miner.mine(0)
    document = np.stack([examples.columns[name].codes for name in ("y", "c")], 1)
    for row in range(ROWS):
        found = [other for other in miner.rows[:, row] if other >= 0]
        assert len(found) == (0 if row == 5 else 2)
        right = {0: (0, 1), 1: (0, 1), 2: (2, 3), 3: (2, 3)}.get(row, (row,))
        assert not any((document[other] == document[own]).all() for other in found for own in right)
    batch = train.batch(np.arange(ROWS))
    assert torch.equal(batch.codes["mined 2: y"][7], batch.codes["y"][miner.rows[1, 7]])
    model, (objective,) = learner.model.eval(), learner.objective.objectives
    outputs = model(batch)
    first = outputs.negatives["mined 1"].mean()
    wanted = outputs.sides["document"].mean()[torch.from_numpy(miner.rows[0])]
    assert torch.allclose(first[[0, 7]], wanted[[0, 7]], atol=1e-6) and first[5].abs().sum() == 0
    told = float(objective(model, batch, outputs)["contrastive"].detach())
    plain = examples.batch(np.arange(ROWS))
    assert told > float(objective(model, plain, model(plain))["contrastive"].detach())
    assert float(objective.figures["mined"]) == pytest.approx(2.0)
    assert sorted(model.columns) == ["c", "x", "y"] and "78 for 39 train rows" in miner.summary("head")


def test_they_follow_from_the_weights_alone():
    mined = []
    for seed in (1, 2):
        learner, examples = make()
        torch.manual_seed(seed)
        miner = Miner.of(learner.train(), examples, Accelerator(cpu=True))
        state = torch.get_rng_state()
        miner.mine(0)
        assert torch.equal(state, torch.get_rng_state()) and learner.model.training
        mined.append(miner)
    assert np.array_equal(mined[0].rows, mined[1].rows)
    restored = Miner.of(make()[0], examples, Accelerator(cpu=True))
    restored.load(mined[0].state())
    assert np.array_equal(restored.rows, mined[0].rows) and restored.summary("tune") == mined[0].summary("tune")


def _process(rank: int, folder: str, sent) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}", rank=rank, world_size=2)
    learner, examples = make()
    miner = Miner.of(learner, examples, SimpleNamespace(num_processes=2, process_index=rank, device="cpu"))
    miner.mine(0)
    sent.put(miner.rows)
    torch.distributed.destroy_process_group()


def test_two_processes_share_the_work_and_mine_what_one_does(tmp_path):
    context = multiprocessing.get_context("fork")
    sent = context.SimpleQueue()
    processes = [context.Process(target=_process, args=(rank, str(tmp_path / "sync"), sent)) for rank in range(2)]
    for process in processes:
        process.start()
    mined = [sent.get() for _ in processes]
    for process in processes:
        process.join(60)
    learner, examples = make()
    alone = Miner.of(learner, examples, Accelerator(cpu=True))
    alone.mine(0)
    assert np.array_equal(mined[0], mined[1]) and np.array_equal(mined[0], alone.rows)


def test_when_they_are_due():
    learner, examples = make(mine_every=2)
    miner = Miner.of(learner, examples, Accelerator(cpu=True))
    assert [miner.next_time(done, 5) for done in (0, 3)] == [0, 3]
    miner.mined_at = 0
    assert [miner.next_time(done, 5) for done in (0, 3, 9, 10, 11)] == [10, 10, 10, 10, 20]
    miner.mined_at = 10
    assert miner.next_time(10, 5) == 20


class Killed(BaseException):
    """The process ends here."""


def train(folder, monkeypatch, *, ends: int = 0) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Return the weights after four epochs of three updates, and after which updates negatives were mined."""
    learner, examples = make(mine_every=2)
    manager = CheckpointManager(folder, 0)
    groups = param_groups([(0.1, learner.parameters())], weight_decay=0.0, undecayed=no_decay(learner))
    given = Stage("s", 4, groups, optimizer="sgd", batch_size=16)
    begun, mined, update, mine = [], [], loop.update, Miner.mine

    def counted(*args, **kwargs):
        begun.append(1)
        if len(begun) == ends:
            raise Killed
        return update(*args, **kwargs)

    def noted(self, done):
        mined.append(done)
        return mine(self, done)

    monkeypatch.setattr(loop, "update", counted)
    monkeypatch.setattr(Miner, "mine", noted)
    try:
        run_stage(learner, given, examples, lambda: (1.0, 0.0, {}), Accelerator(cpu=True), [], manager=manager)
    except Killed:
        pass
    else:
        assert any("hard negatives were mined" in note for note in given.notes)
    return {name: value.clone() for name, value in learner.state_dict().items()}, mined


@pytest.mark.parametrize("ends", [5, 7, 8])
def test_a_run_that_ends_is_gone_on_with_bit_by_bit(tmp_path, monkeypatch, ends):
    with monkeypatch.context() as patched:
        whole, mined = train(tmp_path / "whole", patched)
    assert mined == [0, 6]
    with monkeypatch.context() as patched:
        train(tmp_path / "parts", patched, ends=ends)
    with monkeypatch.context() as patched:
        parts, again = train(tmp_path / "parts", patched)
    assert again == ([] if ends == 8 else [6])
    assert all(torch.equal(parts[name], value) for name, value in whole.items())


def test_without_pairs_nothing_is_mined():
    model, tasks, _ = make_parts()
    with pytest.raises(ConfigError, match=r"mine finds documents for queries(.|\n)*--query and --document"):
        ContrastiveObjective(model, tasks, mine=1)
