"""Contrastive learning between columns: the identities at λ = ½, masks, absences, collapse, processes, settings."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from pytorch_metric_learning.losses import SupConLoss
from torch import multiprocessing
from torch.nn import functional as F
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from fusetune.errors import ConfigError
from fusetune.objectives.contrastive import ContrastiveObjective
from fusetune.objectives.gather import gather_rows
from fusetune.objectives.total import build_objectives
from fusetune.testing.objectives import ROWS, make_parts
from fusetune.types import Tokens

FORMS = ["infonce", "decoupled", "sigmoid", "supcon", "align_uniform"]
EVERY_FORM = [*FORMS, "triplet"]


def make(**settings) -> ContrastiveObjective:
    model, tasks, _ = make_parts()
    return ContrastiveObjective(model, tasks, **{"columns": ["x", "z"], "projection": "none", **settings}).double()


def vectors(rows: int = 12, dim: int = 5, *, seed: int = 0, groups=None, codes=None, grad: bool = False) -> dict:
    rng = torch.Generator().manual_seed(seed)
    x, y = (F.normalize(torch.randn(rows, dim, generator=rng, dtype=torch.float64), dim=1) for _ in "xy")
    own = torch.arange(rows)
    return {
        "vector/x": x.requires_grad_(grad),
        "vector/z": y.requires_grad_(grad),
        "code/x": own if codes is None else torch.tensor(codes),
        "code/z": own + 100,
        "group": torch.full((rows,), -1) if groups is None else torch.tensor(groups),
        "weight": torch.ones(rows, dtype=torch.float64),
    }


def loss(objective: ContrastiveObjective, given: dict) -> float:
    return float(objective.of_vectors(given)["contrastive"].detach())


def test_half_of_infonce_is_half_of_clips_loss():
    given = vectors()
    logits = given["vector/x"] @ given["vector/z"].T / 0.07
    assert loss(make(form="infonce"), given) == pytest.approx(float(image_text_contrastive_loss(logits)) / 2, abs=1e-6)


def test_half_of_decoupled_is_half_of_dcl_with_and_without_the_own_column():
    given = vectors()
    x, y = given["vector/x"], given["vector/z"]
    for within in (False, True):
        total = 0.0
        for one, other in ((x, y), (y, x)):
            for i in range(len(x)):
                others = [j for j in range(len(x)) if j != i]
                terms = [float(one[i] @ other[j]) / 0.07 for j in others]
                terms += [float(one[i] @ one[j]) / 0.07 for j in others] if within else []
                total += -float(one[i] @ other[i]) / 0.07 + math.log(sum(map(math.exp, terms)))
        wanted = total / len(x) / 2 / 2
        assert loss(make(form="decoupled", within=within), given) == pytest.approx(wanted, abs=1e-6)


def test_half_of_sigmoid_is_half_of_siglips_loss():
    given = vectors()
    logits = given["vector/x"] @ given["vector/z"].T * 10 - 10
    signs = 2 * torch.eye(len(logits), dtype=torch.float64) - 1
    wanted = float(-F.logsigmoid(signs * logits).sum(1).mean())
    assert loss(make(form="sigmoid"), given) == pytest.approx(wanted / 2, abs=1e-6)


@pytest.mark.parametrize("groups", [None, [0, 0, 0, 1, 1, 2, 2, 2, 3, 4, 5, 6]])
def test_half_of_supcon_is_half_of_the_metric_learning_librarys(groups):
    given = vectors(groups=groups)
    both = torch.cat([given["vector/x"], given["vector/z"]])
    labels = torch.arange(12) if groups is None else torch.tensor(groups)
    wanted = SupConLoss(temperature=0.07)(both, torch.cat([labels, labels]))
    assert loss(make(form="supcon"), given) == pytest.approx(float(wanted) / 2, abs=1e-6)


def test_align_uniform_is_the_papers_code():
    given = vectors()
    x, y = given["vector/x"], given["vector/z"]

    def uniform(v):
        return torch.pdist(v, p=2).pow(2).mul(-2).exp().mean().log()

    for lam in (0.5, 0.3):
        wanted = lam * (x - y).norm(dim=1).pow(2).mean() + (1 - lam) * (uniform(x) + uniform(y)) / 2
        assert loss(make(form="align_uniform", lam=lam), given) == pytest.approx(float(wanted), abs=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_lambda_weighs_pull_against_push(form):
    given = vectors()
    pull, push = loss(make(form=form, lam=1), given), loss(make(form=form, lam=0), given)
    assert loss(make(form=form, lam=0.7), given) == pytest.approx(0.7 * pull + 0.3 * push, abs=1e-9)
    objective = make(form=form)
    loss(objective, given)
    assert float(objective.figures["L_s"]) == pytest.approx(pull) and float(objective.figures["L_d"]) == pytest.approx(
        push
    )


@pytest.mark.parametrize("form", ["infonce", "decoupled", "sigmoid"])
@pytest.mark.parametrize("mask", ["groups", "codes"])
def test_equal_cells_and_one_group_are_no_negatives(form, mask):
    """A similarity is in the loss only if its two vectors' mixed second derivative is not zero."""
    given = vectors(**{mask: [7, 7, *range(10, 20)]}, grad=True)
    objective = make(form=form, lam=0, **({"within": False} if form == "decoupled" else {}))
    value = objective.of_vectors(given)["contrastive"]
    (first,) = torch.autograd.grad(value, given["vector/x"], create_graph=True)
    (mixed,) = torch.autograd.grad(first[0].sum(), given["vector/z"])
    assert mixed[1].abs().max() < 1e-15 < 1e-6 < mixed[5].abs().max()


@pytest.mark.parametrize("mask", ["groups", "codes"])
def test_uniformity_leaves_equal_cells_and_groups_out(mask):
    ids = [7, 7, 7, 8, 8, *range(10, 17)]
    given = vectors(**{mask: ids})
    wanted = 0.0
    for name in ("vector/x", "vector/z"):
        v = given[name]
        pairs = [
            math.exp(-2 * float((v[i] - v[j]) @ (v[i] - v[j])))
            for i in range(12)
            for j in range(12)
            if ids[i] != ids[j]
        ]
        wanted += math.log(sum(pairs) / len(pairs)) / 2
    assert loss(make(form="align_uniform", lam=0), given) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("form", EVERY_FORM)
def test_rows_that_lack_a_column_take_no_part(form):
    given, cut = vectors(), vectors()
    given["code/x"][[2, 7]] = -1
    given["vector/x"][[2, 7]] = 0.0
    keep = [row for row in range(12) if row not in (2, 7)]
    cut = {name: value[keep] for name, value in given.items()}
    assert loss(make(form=form), given) == pytest.approx(loss(make(form=form), cut), abs=1e-12)


@pytest.mark.parametrize("form", EVERY_FORM)
def test_nothing_to_tell_apart_costs_nothing_and_can_be_differentiated(form):
    objective = make(form=form)
    for given in (
        vectors(1, grad=True),
        vectors(4, groups=[3, 3, 3, 3], grad=True),
        vectors(0, grad=True),
    ):
        found = objective.of_vectors(given)["contrastive"]
        assert found.item() == 0
        found.backward()
        assert given["vector/x"].grad.abs().sum() == 0


def distances(first, second):
    return 1 - F.cosine_similarity(first, second, dim=-1)


def test_half_of_the_hardest_triplet_loss_is_that_of_torch():
    given, margin = vectors(9), 0.7
    total = 0.0
    for anchors, others in (("vector/x", "vector/z"), ("vector/z", "vector/x")):
        x, z = given[anchors], given[others]
        nearest = (x @ z.T - 9 * torch.eye(9)).argmax(1)
        loss_of = torch.nn.TripletMarginWithDistanceLoss(distance_function=distances, margin=margin)
        total += float(loss_of(x, z, z[nearest])) / 2
    objective = make(form="triplet", margin=margin, triplets="hard")
    assert loss(objective, given) == pytest.approx(total / 2, abs=1e-9) and total > 0.1
    assert loss(make(form="triplet", margin=1e-9, triplets="hard"), {**given, "vector/z": given["vector/x"]}) == 0


def test_half_of_the_semi_hard_triplet_loss_is_that_of_sentence_transformers():
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    given, margin = vectors(9), 0.4
    given["vector/z"] = F.normalize(given["vector/x"] + 0.5 * given["vector/z"], dim=1)
    cosine = lambda rows: 1 - F.normalize(rows, dim=1) @ F.normalize(rows, dim=1).T  # noqa: E731
    oracle = losses.BatchSemiHardTripletLoss(torch.nn.Identity(), distance_metric=cosine, margin=margin)
    wanted = oracle.batch_semi_hard_triplet_loss(
        torch.arange(9).repeat(2), torch.cat([given["vector/x"], given["vector/z"]])
    )
    objective = make(form="triplet", margin=margin, within=True)
    assert loss(objective, given) == pytest.approx(float(wanted) / 2, abs=1e-9)
    assert float(objective.figures["L_s"] + objective.figures["L_d"]) == pytest.approx(float(wanted), abs=1e-9)


@pytest.mark.parametrize("form", EVERY_FORM)
def test_cut_vectors_are_compared_besides(form):
    given = vectors(9)
    cut = [{**given, **{n: F.normalize(given[n][:, :d], dim=1) for n in ("vector/x", "vector/z")}} for d in (5, 3, 2)]
    wanted = [loss(make(form=form), some) for some in cut]
    objective = make(form=form, dims=[2, 3, 2])
    assert objective.dims == (3, 2) and loss(objective, given) == pytest.approx(sum(wanted) / 3, abs=1e-9)
    assert len({round(value, 6) for value in wanted}) == 3


def test_right_answers_of_other_rows_are_no_negatives():
    """Row (0, 5) is no row of the batch, but a train row: query 0 and document 5 belong together."""
    from fusetune.objectives.contrastive_rows import RelatedPairs

    queries, documents = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([4, 5, 5, 6, 7])
    known = RelatedPairs(queries, documents)
    assert known.contain(torch.tensor([0, 1, 2]), torch.tensor([4, 5, 7])).tolist() == [
        [False, True, False],
        [False, True, False],
        [False, False, False],  # of these pairs, the rows themselves know
    ]
    assert len(RelatedPairs(queries, documents, every=True)) == 4
    given = vectors(3, codes=None)
    given["code/x"], given["code/z"] = torch.tensor([0, 1, 2]), torch.tensor([4, 5, 7])
    objective = make(form="infonce")
    apart = loss(objective, given)
    objective.related = {("x", "z"): known}
    x, z, scale = given["vector/x"], given["vector/z"], float(objective.scale().detach())
    total = 0.0
    for anchors, others in ((x, z), (z, x)):
        logits = scale * anchors @ others.T
        logits[0, 1] = logits[1, 0] = -torch.inf
        total += float((logits.logsumexp(1) - logits.diagonal()).mean()) / 2
    assert loss(objective, given) == pytest.approx(total / 2, abs=1e-9) and apart != pytest.approx(total / 2, abs=1e-3)


def test_the_pairs_are_all_or_those_with_the_anchor():
    model, tasks, _ = make_parts()
    every = ContrastiveObjective(model, tasks)
    assert every.pairs == [("x", "z"), ("x", "c"), ("z", "c")]
    assert ContrastiveObjective(model, tasks, anchor="z").pairs == [("x", "z"), ("z", "c")]
    assert ContrastiveObjective(model, tasks, columns=["x"], anchor="c").pairs == [("c", "x")]


def train(form: str, lam: float, *, related: bool = True, **settings) -> tuple[float, float]:
    """Linear maps of two columns by gradient descent: the mean cosine of matches, and of the others."""
    objective = make(form=form, lam=lam, **settings)
    rng = torch.Generator().manual_seed(3)
    x, y = (torch.randn(48, 6, generator=rng, dtype=torch.float64) for _ in "xy")
    y = x @ torch.randn(6, 6, generator=rng, dtype=torch.float64) if related else y
    ones = torch.ones(48, 1, dtype=torch.float64)
    x, y = torch.cat([x, ones], 1), torch.cat([y, ones], 1)
    maps = [torch.randn(7, 4, generator=rng, dtype=torch.float64).requires_grad_() for _ in "xy"]
    optimizer = torch.optim.Adam(maps, lr=0.1)
    given = vectors(48)
    for _ in range(300):
        optimizer.zero_grad()
        found = [F.normalize(values @ part, dim=1) for values, part in zip((x, y), maps, strict=True)]
        objective.of_vectors({**given, "vector/x": found[0], "vector/z": found[1]})["contrastive"].backward()
        optimizer.step()
    cosines = (found[0] @ found[1].T).detach()
    own = float(cosines.diagonal().mean())
    return own, float((cosines.sum() - cosines.diagonal().sum()) / (48 * 47))


@pytest.mark.parametrize(
    ("form", "lam", "said"),
    [(form, 1.0, "one point") for form in FORMS] + [("align_uniform", 0.9, "one point")],
)
def test_a_lambda_that_collapses_does_so_and_is_warned_about(form, lam, said):
    assert any(said in warning for warning in make(form=form, lam=lam).warnings)
    assert train(form, lam, related=False)[1] > 0.9


@pytest.mark.parametrize("form", FORMS)
def test_the_default_lambda_does_not_collapse_nor_warn(form):
    assert make(form=form).warnings == []
    own, others = train(form, 0.5)
    assert own > 0.8 and others < 0.2


def test_what_else_goes_wrong_with_a_small_lambda_is_warned_about():
    assert any("opposites" in said for said in make(form="decoupled", lam=0.2, within=False).warnings)
    assert train("decoupled", 0.2, within=False)[0] < -0.9
    assert any("pushed away" in said for said in make(form="infonce", lam=0.3).warnings)
    assert train("infonce", 0.3)[0] < train("infonce", 0.5)[0] - 0.1
    assert any("nothing is pulled" in said for said in make(lam=0).warnings)


def test_the_temperature_is_learned_within_bounds():
    objective = make(form="infonce", temperature=0.01)
    assert float(1 / objective.scale().detach()) == pytest.approx(0.01)
    optimizer = torch.optim.SGD(objective.parameters(), lr=1.0)
    given = vectors(6)
    given["vector/z"] = given["vector/x"].clone()  # perfect matches want a colder softmax
    for _ in range(5):
        optimizer.zero_grad()
        objective.of_vectors(given)["contrastive"].backward()
        optimizer.step()
    assert 0.0099 < float(1 / objective.scale().detach()) <= 0.0101
    assert not list(make(form="infonce", learn_temperature=False).parameters())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"form": "infonse"}, "form is unknown(.|\n)*infonce"),
        ({"lambda": 1.5}, "lambda is out of range"),
        ({"columns": ["x", "q"]}, "names 'q', which is no input column"),
        ({"columns": "x"}, "two or more input columns"),
        ({"form": "sigmoid", "within": True}, "within does not go with form=sigmoid"),
        ({"form": "align_uniform", "temperature": 0.1}, "temperature does not go with form=align_uniform"),
        ({"dims": [4], "projection": "linear"}, "dims cuts the vectors that are searched"),
        ({"dims": [0], "projection": "none"}, r"dims is out of range(.|\n)*from 1 to"),
        ({"margin": 0.1}, "margin does not go with form=decoupled"),
        ({"form": "triplet", "triplets": "soft"}, "triplets is unknown(.|\n)*semihard"),
        ({"form": "triplet", "temperature": 0.1}, "temperature does not go with form=triplet"),
        ({"bias": 1.0}, "bias does not go with form=decoupled"),
        ({"temperature": 5.0}, "temperature is out of range"),
        ({"projection": "lin"}, "projection is unknown(.|\n)*linear"),
        ({"lamda": 0.5}, "no setting 'lamda'"),
    ],
)
def test_wrong_settings(settings, said):
    model, tasks, _ = make_parts()
    with pytest.raises(ConfigError, match=said):
        build_objectives(model, tasks, {"contrastive": settings})


def test_lambda_goes_by_its_name():
    model, tasks, _ = make_parts()
    assert build_objectives(model, tasks, {"contrastive": {"lambda": 0.25}})[0].lam == 0.25


def test_the_vectors_are_the_mean_real_tokens_of_unit_length_and_cells_that_are_absent_have_no_code():
    model, tasks, examples = make_parts()
    objective = ContrastiveObjective(model, tasks, projection="none")
    batch = examples.batch(range(ROWS))
    outputs = model.eval()(batch)
    found = objective.vectors(batch, outputs)
    for column in ("x", "z", "c"):
        tokens: Tokens = outputs.columns[column]
        here = tokens.mask.any(1)
        assert torch.equal(found[f"code/{column}"] >= 0, here) and bool(here.all()) == (column == "x")
        wanted = F.normalize(tokens.mean()[here], dim=1)
        assert torch.allclose(found[f"vector/{column}"][here], wanted, atol=1e-6)


def split(given: dict, sizes: list[int]) -> list[dict]:
    starts = np.cumsum([0, *sizes])
    return [{name: value[a:b] for name, value in given.items()} for a, b in itertools.pairwise(starts)]


def _process(rank: int, folder: str, form: str, sizes: list[int], sent) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}", rank=rank, world_size=len(sizes))
    objective = make(form=form)
    part = split(vectors(sum(sizes), groups=GROUPS[: sum(sizes)]), sizes)[rank]
    leaves = {name: part[name].clone().requires_grad_() for name in ("vector/x", "vector/z")}
    value = objective.of_vectors(gather_rows({**part, **leaves}))["contrastive"]
    value.backward()
    own = [p.grad for p in objective.parameters()]
    for gradient in own:  # as data parallelism does
        torch.distributed.all_reduce(gradient)
        gradient /= len(sizes)
    total = value.detach().clone()
    torch.distributed.all_reduce(total)
    sent.put(
        (
            rank,
            float(total) / len(sizes),
            [leaf.grad.numpy() / len(sizes) for leaf in leaves.values()],
            [g.numpy() for g in own],
        )
    )
    torch.distributed.destroy_process_group()


GROUPS = [0, -1, 1, -1, 0, -1, -1, 1, -1, -1, 2, -1, -1]


@pytest.mark.parametrize("form", EVERY_FORM)
@pytest.mark.parametrize("sizes", [[6, 6], [4, 9]])
def test_two_processes_have_the_gradient_of_one(form, sizes, tmp_path):
    context = multiprocessing.get_context("fork")
    sent = context.SimpleQueue()
    processes = [
        context.Process(target=_process, args=(rank, str(tmp_path / "sync"), form, sizes, sent)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    found = sorted(sent.get() for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    objective = make(form=form)
    given = vectors(sum(sizes), groups=GROUPS[: sum(sizes)], grad=True)
    value = objective.of_vectors(given)["contrastive"]
    value.backward()
    for _, seen, _, own in found:
        assert seen == pytest.approx(float(value.detach()), rel=1e-9)
        for gradient, parameter in zip(own, objective.parameters(), strict=True):
            np.testing.assert_allclose(gradient, parameter.grad.numpy(), rtol=1e-6, atol=1e-12)
    for place, name in enumerate(("vector/x", "vector/z")):
        together = np.concatenate([part[2][place] for part in found])
        np.testing.assert_allclose(together, given[name].grad.numpy(), rtol=1e-6, atol=1e-12)
