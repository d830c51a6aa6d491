"""Masked language modelling: the masks of transformers' collator, the loss of its models, sums over micro-batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, DataCollatorForLanguageModeling

from fusetune.backbones.load import load_backbone
from fusetune.data.examples import Examples
from fusetune.data.table import Table
from fusetune.modalities.text import TextModality
from fusetune.models.encoders import Encoders
from fusetune.objectives.masked import MaskedLanguageModelling, mask_tokens, num_chosen

TEXTS = ["w1 w2 w3 w4 w5 w6 w7", "w8 w9", "w10 w11 w12 w13 w14", "w8 w9", "w2 w20 w21 w22"]


@pytest.fixture
def parts(tiny):
    """Return a function that makes a model, its objective, and examples of `TEXTS`."""

    def make(name="bert_mlm", *, share=0.3, weight=None):
        encoder = load_backbone(tiny(name), "text")
        modality = TextModality("note", backbone=encoder)
        rows = [{"note": text, "w": str(number + 1)} for number, text in enumerate(TEXTS)]
        examples = Examples(Table.from_records(rows), {"note": modality}, weight=weight)
        examples.prepare(on_bad_cell="reject")
        examples.fit()
        model = Encoders({encoder.key: encoder}, {"note": encoder.key}, passes=0)
        return model.eval(), MaskedLanguageModelling(model, ["note"], share=share).eval(), examples

    return make


def test_masks_are_distributed_as_those_of_transformers(tiny):
    tokenizer = load_backbone(tiny("bert_mlm"), "text").processor
    torch.manual_seed(0)
    ids = torch.randint(4, 44, (4000, 22))
    ids[:, 0], ids[:, -1] = 2, 3  # [CLS] and [SEP]
    maskable = torch.ones_like(ids, dtype=torch.bool)
    maskable[:, [0, -1]] = False
    changed, chosen = mask_tokens(ids, maskable, share=0.15, mask_id=44, num_tokens=45)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15, return_tensors="pt")
    special = (~maskable[0]).long().tolist()
    theirs = collator([{"input_ids": row, "special_tokens_mask": special} for row in ids.tolist()])
    their_chosen = theirs["labels"] != -100

    def shares(new, where):
        return [
            float(where.sum() / maskable.sum()),
            float((new[where] == 44).float().mean()),
            float((new[where] == ids[where]).float().mean()),
            float(((new[where] != 44) & (new[where] != ids[where])).float().mean()),
        ]

    ours = shares(changed, chosen)
    assert ours == pytest.approx(shares(theirs["input_ids"], their_chosen), abs=0.02)
    assert ours == pytest.approx([0.15, 0.8 + 0.1 / 45, 0.1 + 0.1 / 45, 0.1 * 43 / 45], abs=0.015)
    assert not chosen[~maskable].any() and torch.equal(changed[~chosen], ids[~chosen])
    by_place = chosen[:, 1:-1].float().mean(0)
    assert by_place.min() > 0.12 and by_place.max() < 0.18, "every place is as likely"
    kept = changed[chosen & (changed != 44)]
    assert len(kept.unique()) > 40


def test_every_text_has_a_chosen_token_and_the_number_follows_from_its_length():
    maskable = torch.arange(12) < torch.tensor([[0], [1], [3], [10], [12]])
    assert num_chosen(maskable, 0.15).tolist() == [0, 1, 1, 2, 2]
    _, chosen = mask_tokens(torch.full((5, 12), 7), maskable, share=0.15, mask_id=1, num_tokens=9)
    assert chosen.sum(1).tolist() == [0, 1, 1, 2, 2]


def test_the_loss_is_that_of_transformers_for_the_same_masks(parts, tiny):
    model, objective, examples = parts()
    batch = examples.batch([0, 1, 2, 4])
    theirs = AutoModelForMaskedLM.from_pretrained(tiny("bert_mlm")).eval()
    tensors = batch.inputs["note"]
    special = torch.tensor([0, 1, 2, 3, 44])
    maskable = tensors["attention_mask"].bool() & ~torch.isin(tensors["input_ids"], special)
    torch.manual_seed(5)
    changed, chosen = mask_tokens(tensors["input_ids"], maskable, share=0.3, mask_id=44, num_tokens=45)
    labels = tensors["input_ids"].masked_fill(~chosen, -100)
    torch.manual_seed(5)
    (ours,) = objective(model, batch, model(batch)).values()
    want = theirs(input_ids=changed, attention_mask=tensors["attention_mask"], labels=labels).loss
    assert float(ours.detach()) == pytest.approx(float(want.detach()), abs=1e-5)
    ours.backward()
    assert all(p.grad is not None for p in [*model.parameters(), *objective.parameters()])


def test_losses_of_micro_batches_add_up_by_the_numbers_of_chosen_tokens(parts):
    model, objective, examples = parts(weight="w")
    assert objective.counts(examples.batch(range(5))).tolist() == [2 * 1, 1 * 2, 2 * 3, 1 * 4, 1 * 5]

    def loss(rows):  # all tokens of a text are chosen, so that only the replacement is random
        torch.manual_seed(0)
        batch = examples.batch(rows)
        return float(objective(model, batch, model(batch))["mlm"].detach()), float(objective.counts(batch).sum())

    alone = [loss([row]) for row in (1, 3)]  # two rows of one text
    torch.manual_seed(0)
    together, size = loss([1, 3])
    assert size == alone[0][1] + alone[1][1]
    assert together == pytest.approx(sum(value * count for value, count in alone) / size, abs=1e-5)


def test_rows_without_text_or_weight_give_no_loss_but_a_gradient(parts):
    model, objective, examples = parts(weight="w")
    batch = examples.batch([0, 1])
    batch.weights = torch.zeros(2)
    loss = objective(model, batch, model(batch))["mlm"]
    loss.backward()
    assert float(loss.detach()) == 0
    empty = examples.batch([0])
    empty.inputs["note"], empty.cells["note"] = {}, torch.tensor([-1])
    assert float(objective(model, empty, model(empty))["mlm"]) == 0 and objective.counts(empty).tolist() == [0]


def test_a_new_head_learns_the_frequencies_of_the_train_rows(parts):
    _, objective, examples = parts("bert_with_mask")
    objective.fit(examples)
    (head,) = objective.heads
    ids = np.concatenate([examples.columns["note"].example(cell) for cell in range(4)])
    want = (np.bincount(ids, minlength=45) + 1) / (len(ids) + 45)
    assert head.bias.detach().exp().tolist() == pytest.approx(want.tolist(), rel=1e-4)
