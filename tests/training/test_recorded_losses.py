"""Losses of a few seeded steps, recorded: a change that only moves code leaves them as they are.

Where a change is meant to move them, say so in its message and record what `losses` gives now.
"""

import pytest
import torch

from fusetune.objectives.total import Total
from fusetune.registry import OBJECTIVES
from fusetune.testing.objectives import ROWS, make_parts

RECORDED = {
    "none": [3.70777, 2.76996, 2.57224, 2.07703, 1.93589],
    "contrastive": [10.59684, 9.24177, 8.81867, 8.10723, 7.71533],
    "supcon": [5.2245, 4.61447, 4.12682, 3.71715, 3.59545],
    "mixup": [7.3551, 5.00148, 4.03511, 3.92905, 3.38854],
    "rdrop": [3.83483, 3.04015, 2.53465, 2.39177, 2.03546],
    "unimodal": [4.78151, 4.11341, 3.50961, 3.37802, 3.14744],
    "semi": [4.09882, 3.30773, 2.93335, 2.64139, 2.40889],
    "vat": [3.7126, 2.94797, 2.48916, 2.12314, 1.91311],
}


def losses(name: str) -> list[float]:
    """The total of five steps of plain gradient descent, with the task losses and one objective, or without any."""
    model, tasks, examples = make_parts(dropout=0.1)
    torch.manual_seed(0)
    objectives = [] if name == "none" else [OBJECTIVES.get(name)(model, tasks)]
    total, batch = Total(tasks, objectives), examples.batch(range(ROWS))
    optimizer = torch.optim.SGD([*model.parameters(), *total.parameters()], lr=0.01)
    found = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = torch.stack(list(total(model.train(), batch, model(batch)).values())).sum()
        loss.backward()
        optimizer.step()
        found.append(round(loss.item(), 5))
    return found


@pytest.mark.parametrize("name", RECORDED)
def test_losses_are_the_recorded_ones(name):
    assert losses(name) == pytest.approx(RECORDED[name], rel=2e-4)
