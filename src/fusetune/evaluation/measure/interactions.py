"""Recommendation without a model of content: popular items, and items that the same users chose (item-kNN).

Legend: users = rows of the train interactions, items = the catalogue, queries = histories to recommend for.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

BLOCK = 2**22
"""Similarities of items that are in memory at once, at most, while the nearest are chosen."""


def popularity(train: sparse.csr_array) -> np.ndarray:
    """Return the number of users who chose each item, (items,) float64.

    Args:
        train: (users, items), above 0 where a user chose an item.
    """
    return np.bincount(train.indices[train.data > 0], minlength=train.shape[1]).astype(np.float64)


class ItemKnn:
    """Score items by how similar they are to those in a history: the nearest neighbours of each item by cosine.

    s(i, j) = x_i · x_j / (|x_i| |x_j| + shrinkage), where x_i is item i's column of train interactions. Each item keeps
    its `neighbours` most similar others; an item's score for a history is the sum of its similarity to the history's
    items that keep it. Shrinkage lowers similarities that few common users support. Items without a score come after
    the others, the most popular first: a new user's ranking is the popular one.

    Args:
        train: (users, items), above 0 where a user chose an item.
        neighbours: how many similar items each item keeps, 1 or more.
        shrinkage: 0 or more; in the unit of |x_i| |x_j|, which for interactions of 1 is a number of users.

    Example:
        >>> train = sparse.csr_array(np.array([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]]))
        >>> knn = ItemKnn(train, neighbours=2)
        >>> knn.scores(sparse.csr_array(np.array([[1.0, 0, 0]]))).argmax()
        np.int64(1)

    Reference: Deshpande and Karypis 2004, "Item-based top-N recommendation algorithms"; the shrinkage as in Ferrari
    Dacrema et al. 2019 (arXiv:1907.06902).
    """

    def __init__(self, train: sparse.csr_array, *, neighbours: int = 20, shrinkage: float = 0.0) -> None:
        self.similarity = item_similarity(train, neighbours=neighbours, shrinkage=shrinkage)
        popular = popularity(train)
        self._fallback = popular / (popular.max(initial=0) + 1) - 1  # in [-1, 0): below every similarity

    def scores(self, history: sparse.csr_array) -> np.ndarray:
        """Return every item's score for some histories, (queries, items) float64.

        Args:
            history: (queries, items), above 0 for the items in a history; values weigh them.
        """
        summed = np.asarray((history @ self.similarity).toarray(), dtype=np.float64)
        return np.where(summed > 0, summed, self._fallback)


def item_similarity(train: sparse.csr_array, *, neighbours: int, shrinkage: float = 0.0) -> sparse.csr_array:
    """Return each item's similarity to its nearest others, (items, items) sparse; see `ItemKnn`.

    Only similarities above 0 are kept. Equal ones at the end of a row are chosen by position.
    """
    num = train.shape[1]
    columns = sparse.csr_array(train.T, dtype=np.float64)  # (items, users)
    norms = np.sqrt(np.asarray(columns.multiply(columns).sum(1)).reshape(-1))
    step = max(1, BLOCK // max(num, 1))
    blocks = []
    for start in range(0, num, step):
        common = sparse.coo_array(columns[start : start + step] @ train)  # (block, items)
        item, other = common.coords
        similar = common.data / np.maximum(norms[item + start] * norms[other] + shrinkage, 1e-12)
        real = (item + start != other) & (similar > 0)
        item, other, similar = item[real], other[real], similar[real]
        order = np.lexsort((other, -similar, item))
        item, other, similar = item[order], other[order], similar[order]
        first = np.searchsorted(item, item)
        near = np.arange(len(item)) - first < neighbours
        shape = (min(step, num - start), num)
        blocks.append(sparse.csr_array((similar[near], (item[near], other[near])), shape=shape))
    return sparse.csr_array(sparse.vstack(blocks)) if blocks else sparse.csr_array((num, num))
