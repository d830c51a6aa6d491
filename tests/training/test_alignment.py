"""The closed-form alignment: canonical correlations by another library, absent columns, and its way into a model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from sklearn.cross_decomposition import CCA

from fusetune.config.section import NamedConfig
from fusetune.data.examples import Examples
from fusetune.data.table import Table
from fusetune.inference.features import encoded
from fusetune.inference.predict import row_vectors
from fusetune.modalities.number import NumberModality
from fusetune.models.build import build_model
from fusetune.tasks.retrieval import alignment_tasks
from fusetune.training import alignment
from fusetune.training.alignment import align
from fusetune.training.probes.probe import column_scales
from fusetune.types import Tokens


def one_token(values: np.ndarray) -> Tokens:
    """(cells, features) as the features of cells with one token each."""
    return Tokens(torch.from_numpy(values).float().unsqueeze(1), torch.ones(len(values), 1, dtype=torch.bool))


class Views:
    """Rows with three columns whose features share two hidden directions; `c` is missing in every third row."""

    def __init__(self, num: int = 90, noise: float = 0.05, missing: bool = True) -> None:
        rng = np.random.default_rng(3)
        hidden = rng.normal(size=(num, 2))
        records = [{name: float(row) for name in "abc"} for row in range(num)]
        for row, record in enumerate(records):
            if missing and row % 3 == 0:
                record["c"] = None
        self.columns = {name: NumberModality(name) for name in "abc"}
        self.examples = Examples(Table.from_records(records), self.columns)
        self.examples.prepare(on_bad_cell="reject")
        self.examples.fit()
        self.hidden = torch.from_numpy(hidden).float()
        self.features = {}
        for name, dim in (("a", 5), ("b", 7), ("c", 4)):
            column = self.examples.columns[name]
            values = hidden @ rng.normal(size=(2, dim)) + noise * rng.normal(size=(num, dim))
            rows = [int(np.flatnonzero(column.codes == place)[0]) for place in range(len(column.cells))]
            self.features[name] = one_token(values[rows])
        self.scales = column_scales(self.examples, self.features)

    def align(self, dim: int = 2, score=lambda found: 0.0, names="abc"):
        kept = {name: self.features[name] for name in names}
        return align(self.examples, kept, self.scales, dim, score)

    def mapped(self, found, name: str) -> torch.Tensor:
        shift, scale = self.scales[name]
        table = (self.features[name].mean() - shift) * scale / len(shift) ** 0.5
        return (table @ found.maps[name])[torch.from_numpy(self.examples.columns[name].codes).clamp(min=0)]


def test_columns_of_a_row_come_together():
    views = Views()
    found = views.align()
    a, b, c = (torch.nn.functional.normalize(views.mapped(found, name), dim=1) for name in "abc")
    there = torch.from_numpy(views.examples.columns["c"].codes >= 0)
    assert float((a * b).sum(1).mean()) > 0.95
    assert float((a * c).sum(1)[there].mean()) > 0.95
    assert float((a * b.roll(1, 0)).sum(1).mean()) < 0.5


def test_two_columns_give_the_canonical_variates(monkeypatch):
    monkeypatch.setattr(alignment, "PENALTIES", (1e-9,))
    monkeypatch.setattr(alignment, "POWERS", (0.0,))
    views = Views(noise=0.4, missing=False)
    found = views.align(names="ab")
    oracle = CCA(n_components=2, max_iter=5000, tol=1e-12)
    oracle.fit(*(views.features[name].mean().double().numpy() for name in "ab"))
    x, y = oracle.transform(*(views.features[name].mean().double().numpy() for name in "ab"))
    for name, variates in (("a", x), ("b", y)):
        mine = views.mapped(found, name).double().numpy()
        assert np.rad2deg(subspace_angles(mine - mine.mean(0), variates)).max() < 1


def test_the_best_scored_of_the_grid_is_taken():
    views = Views()
    seen = []
    found = views.align(score=lambda one: seen.append((one.penalty, one.power)) or -abs(one.penalty - 1e-2) - one.power)
    assert (found.penalty, found.power) == (1e-2, 0.0)
    assert len(seen) == len(set(seen)) == len(alignment.PENALTIES) * len(alignment.POWERS)


def test_directions_beyond_the_rows_are_zero():
    found = Views(num=12, missing=False).align(dim=20)
    assert all(torch.isfinite(weight).all() and weight.shape[1] == 20 for weight in found.maps.values())
    assert float(found.maps["a"][:, 12:].abs().max()) == 0


def test_one_column_has_nothing_to_be_aligned_with():
    views = Views()
    assert views.align(names="a") is None
    for column in "bc":
        views.examples.columns[column].codes[:] = -1
    assert views.align() is None


def test_many_rows_are_thinned_out(monkeypatch):
    monkeypatch.setattr(alignment, "MAX_ROWS", 30)
    views = Views(missing=False)
    found = views.align()
    a, b = (torch.nn.functional.normalize(views.mapped(found, name), dim=1) for name in "ab")
    assert float((a * b).sum(1).mean()) > 0.9


@pytest.mark.parametrize("power", alignment.POWERS)
def test_a_model_that_starts_from_it_gives_its_vectors(monkeypatch, power):
    monkeypatch.setattr(alignment, "POWERS", (power,))
    views = Views()
    torch.manual_seed(0)
    model = build_model(
        views.columns, alignment_tasks(dict.fromkeys("abc", "tabular")), NamedConfig(name="attention", dim=2)
    )
    widths = {name: projection.linear.in_features for name, projection in zip("abc", model.projections, strict=True)}
    rng = np.random.default_rng(0)
    views.features = {
        name: one_token(rng.normal(size=(len(views.examples.columns[name].cells), width)))
        for name, width in widths.items()
    }
    views.scales = column_scales(views.examples, views.features)
    for name, (shift, scale) in views.scales.items():
        model.set_scale(name, shift, scale)
    found = views.align()
    found.install(model)
    vectors = row_vectors(model, encoded(model, views.examples, views.features), views.examples.used)
    for name in "abc":
        there = torch.from_numpy(views.examples.columns[name].codes >= 0)
        expected = torch.nn.functional.normalize(views.mapped(found, name), dim=1)
        assert torch.allclose(vectors[name][there], expected[there], atol=1e-5)
        assert float(vectors[name][~there].abs().sum()) == 0


def test_columns_of_one_side_count_as_one_set():
    views = Views()
    found = align(
        views.examples,
        views.features,
        views.scales,
        2,
        score=lambda alignment: -alignment.penalty,
        sides={"left": ["a", "b"], "right": ["c"], "unread": ["d"]},
    )
    assert found.maps.keys() == set("abc")
    there = torch.from_numpy(views.examples.columns["c"].codes >= 0)
    left = views.mapped(found, "a") + views.mapped(found, "b")
    left, right = (torch.nn.functional.normalize(side[there], dim=1) for side in (left, views.mapped(found, "c")))
    assert float((left * right).sum(1).mean()) > 0.9
    one_side = align(
        views.examples, views.features, views.scales, 2, score=lambda _: 0.0, sides={"left": ["a", "b", "c"]}
    )
    assert one_side is None
