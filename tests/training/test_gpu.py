"""What holds on processors holds on a GPU: the same course, going on after a stop, short memory, compiled layers."""

from __future__ import annotations

import json
import shutil
import warnings

import numpy as np
import pytest
import torch

import fusetune
from fusetune.backbones.passes import graphs
from fusetune.training import loop
from fusetune.training.checkpoints import checkpoint_manager as manager
from fusetune.training.hardware import replay

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")]


@pytest.fixture(autouse=True)
def exact():
    """float32 is float32 in convolutions, too, where cuDNN takes TF32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture(scope="module")
def still(tiny, tmp_path_factory):
    """A text encoder without a draw of dropout."""
    folder = tmp_path_factory.mktemp("gpu") / "bert"
    shutil.copytree(tiny("bert"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["hidden_dropout_prob"] = config["attention_probs_dropout_prob"] = 0.0
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def tune(still, tiny, shop_tables, tmp_path):
    """Tunes on the shop: `tune(folder, text=..., **trainer)`."""

    def run(name, *, dropout=0.0, resume=None, columns=(), text=str(still), **trainer):
        settings = {
            "text": text or tiny("bert"),
            "image": tiny("vit"),
            "columns": {column: {"role": "ignore"} for column in ("voice", *columns)},
            "fusion": {"name": "attention", "dim": 16, "dropout": dropout, "modality_dropout": dropout}
            | {"input_dropout": dropout},
            "trainer": {"epochs": 2, "head_epochs": 2, "precision": "no", "trackers": [], "patience": None, **trainer},
            "report": {"bootstrap": 0, "alone": "none"},
        }
        return fusetune.fit(
            str(shop_tables["train"]),
            target="label",
            val=str(shop_tables["val"]),
            test=str(shop_tables["test"]),
            out=tmp_path / name,
            config=settings,
            resume=resume,
            progress=False,
        )

    return run


def losses(tuned):
    return [point.val_loss for point in tuned.results.curve.points]


def weights(tuned):
    return {name: value.cpu() for name, value in tuned.bundle.model.state_dict().items()}


def test_a_fit_learns_what_it_learns_on_a_processor(tune, tmp_path, shop_tables):
    """And its predictions on both are the same."""
    tuned = tune("m")
    assert tuned.results.device == torch.cuda.get_device_name() and next(tuned.bundle.model.parameters()).is_cuda
    assert losses(tuned)[-1] < losses(tuned)[0]
    on_gpu = tuned.predict(str(shop_tables["test"]))
    again = fusetune.load(tmp_path / "m")
    assert next(again.bundle.model.parameters()).is_cuda
    again.bundle.model.cpu()
    on_processor = again.predict(str(shop_tables["test"]))
    np.testing.assert_allclose(on_processor["label_probability"], on_gpu["label_probability"], atol=1e-4)


def test_bf16_is_chosen_and_near(tune):
    full, low = tune("full"), tune("low", precision="auto")
    assert low.results.device.endswith("bf16")
    np.testing.assert_allclose(losses(low), losses(full), atol=0.05)


def test_packed_batches_made_by_processes_change_nothing(tune):
    one, two = tune("one"), tune("two", workers=2)
    np.testing.assert_allclose(losses(two), losses(one), atol=1e-5)


@pytest.fixture
def captured(monkeypatch):
    """The passes that were captured, of fits of any length."""
    made, capture = [], graphs.capture

    def noted(over, tensors, pool):
        found = capture(over, tensors, pool)
        made.append((pool, [tuple(one.shape) for one in tensors]))
        return found

    monkeypatch.setattr(graphs, "capture", noted)
    monkeypatch.setattr(replay, "WORTHWHILE", 0)
    return made


@pytest.mark.parametrize("pool", ["mean", "none"])
def test_replayed_passes_come_to_the_same(tune, captured, still, pool):
    text = {"name": str(still), "pool": pool}
    plain, replayed = (tune(str(graphs), text=text, cuda_graphs=graphs, epochs=3) for graphs in (False, True))
    print(len(captured), "captures")
    assert captured and not [said for said in replayed.results.warnings if "CUDA graphs" in said]
    np.testing.assert_allclose(losses(replayed), losses(plain), atol=1e-4)
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(replayed)[name], value, atol=2e-4, rtol=0, msg=name)


def test_replayed_passes_draw_anew(tune, captured, tmp_path):
    """Dropout in a graph: a second run is the same, and no update repeats the draws of the one before."""
    one, two = (tune(name, dropout=0.1, text=None, epochs=3) for name in ("one", "two"))
    assert captured
    assert losses(one) == losses(two)
    assert len(set(losses(one))) == len(losses(one))


def test_what_cannot_be_captured_is_told_and_launched(tune, captured, monkeypatch):
    from transformers.models.bert.modeling_bert import BertEncoder

    forward = BertEncoder.forward

    def looks(self, hidden_states, *args, **kwargs):
        float(hidden_states.sum())  # waits for the device, which a capture cannot
        return forward(self, hidden_states, *args, **kwargs)

    monkeypatch.setattr(BertEncoder, "forward", looks)
    tuned = tune("m", columns=["photo"], dropout=0.1)
    said = [said for said in tuned.results.warnings if "not replayed from CUDA graphs" in said]
    print(said)
    assert captured and len(said) == 1 and "text" in said[0] and np.isfinite(losses(tuned)).all()


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("least", [0, 100])
def test_a_run_that_was_stopped_goes_on(tune, monkeypatch, precision, least):
    monkeypatch.setattr(replay, "WORTHWHILE", least)
    settings = {"dropout": 0.1, "precision": precision, "checkpoint_minutes": 0}
    whole = tune("whole", **settings)
    updates, stop = [], manager.CheckpointManager.raise_if_signalled

    def after_some(self):
        updates.append(1)
        if len(updates) == 12:
            raise KeyboardInterrupt
        stop(self)

    monkeypatch.setattr(manager.CheckpointManager, "raise_if_signalled", after_some)
    with pytest.raises(KeyboardInterrupt):
        tune("stopped", **settings)
    monkeypatch.setattr(manager.CheckpointManager, "raise_if_signalled", stop)
    again = tune("stopped", resume=True, **settings)
    assert any("went on from update" in said for said in again.results.warnings)
    np.testing.assert_allclose(losses(again), losses(whole), atol=1e-5 if precision == "no" else 1e-3)
    equal = [torch.equal(value, weights(again)[name]) for name, value in weights(whole).items()]
    print(f"{precision} {least}: {sum(equal)} of {len(equal)} tensors are equal bit by bit")


def test_short_memory_halves_micro_batches(monkeypatch, shop_tables, tmp_path):
    """Real: the process may have a small part of the GPU, which a whole batch's activations do not fit into."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    from fusetune.testing.tiny_models import make

    folder = tmp_path / "wide"
    make("bert", folder)
    config = {"vocab_size": len(AutoTokenizer.from_pretrained(str(folder))), "num_hidden_layers": 4}
    config |= {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 4096, "max_position_embeddings": 512}
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(0)
    BertModel(BertConfig(**config), add_pooling_layer=False).save_pretrained(str(folder))
    words = np.random.default_rng(0).integers(0, 40, (256, 250))
    rows = [{"note": " ".join(f"w{word}" for word in row), "label": "yes" if row[0] > 20 else "no"} for row in words]
    settings = {
        "text": {"name": str(folder), "max_tokens": 256},
        "fusion": {"name": "concat", "dim": 16, "dropout": 0, "modality_dropout": 0, "input_dropout": 0},
        "trainer": {"epochs": 1, "head_epochs": 1, "batch_size": 128, "precision": "no", "trackers": []},
        "report": {"bootstrap": 0, "alone": "none"},
    }
    found = {}
    for name in ("whole", "halved"):
        torch.cuda.empty_cache()
        if name == "halved":
            torch.cuda.set_per_process_memory_fraction(4 * 2**30 / torch.cuda.get_device_properties(0).total_memory)
        try:
            found[name] = fusetune.fit(
                _table(rows, tmp_path),
                target="label",
                out=tmp_path / name,
                config=settings,
                progress=False,
            )
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    said = [warning for warning in found["halved"].results.warnings if "Memory ran out" in warning]
    print(said)
    assert said and not [one for one in found["whole"].results.warnings if "Memory ran out" in one]
    np.testing.assert_allclose(losses(found["halved"]), losses(found["whole"]), atol=1e-3)


def _table(rows, folder):
    path = folder / "rows.csv"
    if not path.is_file():
        lines = [f"{row['note']},{row['label']}" for row in rows]
        path.write_text("\n".join(["note,label", *lines]) + "\n")
    return str(path)


def test_an_update_waits_for_the_gpu_once(tune, monkeypatch):
    """Besides transformers' look at the mask of texts, once a pass."""
    update, waits = loop.update, []

    def watched(*args, **options):
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                losses = update(*args, **options)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        waits.append([f"{one.filename}:{one.lineno}" for one in seen if "synchroniz" in str(one.message)])
        return losses

    monkeypatch.setattr(loop, "update", watched)
    tune("m", head_epochs=0)
    found = waits[-1]
    print(found)
    assert len([where for where in found if "transformers" not in where]) <= 1


def test_compiled_layers_come_to_the_same(tune):
    plain, compiled = (tune(str(compile), compile=compile, columns=["photo"]) for compile in (False, True))
    np.testing.assert_allclose(losses(compiled), losses(plain), atol=1e-4)
    assert list(weights(plain)) == list(weights(compiled))
