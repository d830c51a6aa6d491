"""`PreferenceTask`: pairs, their encoding, DPO's loss."""

import json

import pytest
import torch
from torch.nn.functional import log_softmax, sigmoid

from fusetune.errors import BadCell, ConfigError, TableError
from fusetune.tasks.text.preference import PreferenceTask


def task(most: int = 8, **options) -> PreferenceTask:
    made = PreferenceTask("out", rejected="worse", **options)
    made.write_with(lambda text: [ord(letter) for letter in text] + [3], most)
    return made


def chat(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]


def test_values_are_both_answers_as_long_as_the_longest():
    made = task()
    made.fit([("ab", "c"), ("d", "efg")])
    assert made.max_tokens == 4
    target = made.encode([("ab", "c"), None, ("d", None), ("d", "efgh")])
    assert target.values.tolist() == [
        [[97, 98, 3, -1], [99, 3, -1, -1]],
        [[-1] * 4] * 2,
        [[-1] * 4] * 2,
        [[100, 3, -1, -1], [101, 102, 103, 104]],
    ]
    assert target.labelled.tolist() == [True, False, False, True] and target.sizes is None
    assert list(made.truth([("ab", "c"), ("d", None)])) == ["ab", "d"]


@pytest.mark.parametrize(
    ("pair", "why"),
    [
        (("ab", None), "no answer that out is preferred to"),
        ((None, "ab"), "no text"),
        (("ab", "ab"), "nothing to prefer"),
        (("a" * 9, "a" * 12), "same 8 tokens"),
        (("ab", "\ud800"), "surrogate|half"),
    ],
)
def test_pairs_of_which_nothing_can_be_learned_are_refused(pair, why):
    made = task()
    made.fit([("ab", "c" * 20)])
    made.check(("ab", "b"), row=0)
    with pytest.raises(BadCell, match=why):
        made.check(pair, row=3)


def test_a_loaded_task_takes_the_chosen_answer_alone():
    made = task(beta=0.3, sft_weight=0.5, label_smoothing=0.1)
    made.fit([("ab", "cd")])
    again = PreferenceTask.from_state("out", made.state())
    again.write_with(lambda text: [ord(letter) for letter in text] + [3], 8)
    again.check("ab", row=0)
    assert not again.encode(["ab"]).labelled[0] and list(again.truth(["ab"])) == ["ab"]
    assert (again.beta, again.sft_weight, again.rejected, again.max_tokens) == (0.3, 0.5, "worse", 3)


def test_chats_have_the_same_turns_before_both_answers():
    made = task()
    chosen, other = chat("hi", "yes"), chat("hello", "no")
    made.look([chosen] * 3)
    made.fit([(chosen, "no"), (chosen, chat("hi", "never"))])
    answers = ["no", chat("hi", "no"), json.dumps(chat("hi", "no")), [{"role": "assistant", "content": "no"}]]
    for rejected in answers:
        made.check((chosen, rejected), row=0)
        assert made.encode([(chosen, rejected)]).values[0, 1].tolist()[:3] == [110, 111, 3]
    with pytest.raises(BadCell, match="prompts differ"):
        made.check((chosen, other), row=0)


def test_options_are_checked():
    for options, why in [
        ({"rejected": None}, "rejected"),
        ({"rejected": "out"}, "rejected"),
        ({"beta": 0}, "beta"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
        ({"sft_weight": -1}, "sft_weight"),
    ]:
        with pytest.raises(ConfigError, match=why):
            PreferenceTask("out", **{"rejected": "worse", **options})
    with pytest.raises(TableError, match="no row has a rejected answer"):
        task().fit([("ab", None)])


@pytest.mark.parametrize(("smoothing", "weight"), [(0.0, 0.0), (0.2, 0.0), (0.0, 0.7)])
def test_losses_are_those_of_dpo(smoothing, weight):
    """Against the paper's equations 4 and 7, written from probabilities over a vocabulary."""
    torch.manual_seed(0)
    made = task(beta=0.4, label_smoothing=smoothing, sft_weight=weight)
    made.fit([("abc", "d"), ("ab", "efgh")])
    target = made.encode([("abc", "d"), ("ab", "efgh")])
    policy, frozen = (log_softmax(torch.randn(2, 2, 5, 128, dtype=torch.float64), -1) for _ in range(2))
    expected, sums = [], {}
    for row in range(2):
        for which in range(2):
            ids = [token for token in target.values[row, which].tolist() if token >= 0]
            for name, logits in (("policy", policy), ("frozen", frozen)):
                sums[name, which] = sum(logits[row, which, at, token] for at, token in enumerate(ids))
        ratios = [0.4 * (sums["policy", which] - sums["frozen", which]) for which in range(2)]
        loss = -(1 - smoothing) * torch.log(sigmoid(ratios[0] - ratios[1]))
        loss -= smoothing * torch.log(sigmoid(ratios[1] - ratios[0]))
        size = int((target.values[row, 0] >= 0).sum())
        expected.append(loss - weight * sums["policy", 0] / size)
    real = (target.values >= 0).unsqueeze(-1)
    of_ids = [
        torch.stack([(logits.gather(-1, target.values.clamp(min=0).unsqueeze(-1)) * real).squeeze(-1)] * 2, -1)
        for logits in (policy, frozen)
    ]
    target.reference = of_ids[1][..., 0].sum(2)
    torch.testing.assert_close(made.terms(of_ids[0], target), torch.stack(expected))
    figures = made.figures(of_ids[0], target)
    assert 0 <= figures["reward_accuracy"] <= 1
    torch.testing.assert_close(figures["reward_margin"], figures["chosen_reward"] - figures["rejected_reward"])
