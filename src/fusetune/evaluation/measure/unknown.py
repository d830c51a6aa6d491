"""Labels of evaluated rows that no train row has."""

from __future__ import annotations

from collections import Counter

from fusetune.data.examples import PIECE, Examples
from fusetune.errors import unmatched
from fusetune.tasks.base import TargetTask, target_tasks


def unknown_labels(examples: Examples, split: str = "") -> list[str]:
    """Return a sentence for each target of which some rows have labels that no train row has.

    Such labels, which only a task with several labels a row can have, count in no metric.

    Args:
        examples: prepared rows with their targets checked.
        split: the rows' split, for the sentence.
    """
    messages = []
    for name, task in target_tasks(examples.tasks).items():
        if type(task).unknown is TargetTask.unknown:
            continue
        counts: Counter[str] = Counter()
        rows = examples.labelled(name)
        for start in range(0, len(rows), PIECE):
            counts.update(task.unknown(examples.targets[name].take(rows[start : start + PIECE])))
        if counts:
            labels = [label for label, _ in counts.most_common()]
            of = f"{split} rows have" if split else "Rows have"
            messages.append(
                f"{of} {len(counts)} labels of {task.target!r} that no train row has; they count in no metric: "
                f"{unmatched(labels, task.labels)}"
            )
    return messages
