"""Recommendation: rank a catalogue's items for a user, without those that the user knows."""

from __future__ import annotations

from collections.abc import Sequence

from fusetune.tasks.base import Metric
from fusetune.tasks.match import Side
from fusetune.tasks.retrieval import RetrievalTask

USER, ITEM = "user", "item"
"""Names of the two sides."""


class RecommendationTask(RetrievalTask):
    """Rank the items of a catalogue for each user.

    A query is a user with interactions in the measured split; all items of these are right answers. Items of the user's
    train rows are left out of the ranking (`Search.seen`).

    Args:
        query, answer: the sides of users and of items.

    Loss: none of its own; `sampled_softmax` trains the vectors.

    Answers: see `RetrievalTask`.

    Requires: two or more users with interactions.

    Metrics: ndcg@10, and the others of `RetrievalTask`, over the whole catalogue.

    Relations: `RetrievalTask` in one direction, without known items.

    Example:
        >>> task = recommendation_tasks(["user_id"], ["item_id", "title"])["user → item"]
        >>> task.main.name, list(task.sides)
        ('ndcg@10', ['user', 'item'])

    Reference: Rendle 2022, "Item Recommendation from Implicit Feedback" (arXiv 2101.08769); Krichene and Rendle 2020,
    "On Sampled Metrics for Item Recommendation", why the whole catalogue is ranked.
    """

    name, main = "recommendation", Metric("ndcg@10")
    aligned = False
    first = ("ndcg@10", "mean_recall@10", "map@10", "mrr", "recall@10", "precision@10", "median_rank")


def recommendation_tasks(user: Sequence[str], item: Sequence[str]) -> dict[str, RecommendationTask]:
    """Return the task of recommending items to users, each side fused to one vector.

    Args:
        user, item: the columns of each side, the ids first.
    """
    task = RecommendationTask(Side(USER, tuple(user), fused=True), Side(ITEM, tuple(item), fused=True))
    return {task.target: task}
