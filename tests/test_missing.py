"""Missing data under masks: whatever stands in their place, the fit is that of the data that are there."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.constraints import positive, simplex, unit_interval

from pyro_em import EM, fit

f64 = partial(torch.tensor, dtype=torch.float64)


@pytest.mark.parametrize("filling", [torch.nan, torch.inf, 0.0, 1e6])
@pytest.mark.parametrize("size", [None, 30])
def test_what_a_mask_hides_sets_no_number_of_levels(filling, size):
    torch.manual_seed(0)
    y = torch.poisson(torch.cat([torch.full((40,), 3.0), torch.full((40,), 12.0)])).to(torch.float64)
    shown = torch.rand(80) > 0.2

    def model(y, shown):
        counts = pyro.param("counts", f64([3.0, 10.0]), constraint=positive)
        probs = pyro.param("probs", f64(0.5), constraint=unit_interval)
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Bernoulli(f64(0.5))).long()
            with poutine.mask(mask=shown):
                pyro.sample("y", dist.NegativeBinomial(counts[z], probs), obs=y)

    strategy = EM(max_steps=10, tol=0, batch_size=size)
    found = fit(model, torch.where(shown, y, filling), shown, strategy=strategy, progress=False)
    without = fit(model, y[shown], shown[shown], strategy=EM(max_steps=10, tol=0), progress=False)
    assert found.objective == pytest.approx(without.objective, abs=1e-8)
    assert "gradient" not in found.explain().owner.tolist()


VECTORS = {
    "dirichlet": lambda r: dist.Dirichlet(r),
    "one-hot": lambda r: dist.OneHotCategorical(r / r.sum(-1, keepdim=True)),
    "multinomial": lambda r: dist.Multinomial(5, r / r.sum(-1, keepdim=True)),
    "betas": lambda r: dist.Beta(r, 1.0).to_event(1),
    "mixtures": lambda r: dist.MixtureSameFamily(dist.Categorical(torch.ones(3)), dist.Normal(r, 1.0)),
    "category": lambda r: dist.Categorical(r / r.sum(-1, keepdim=True)),
}


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("partly", [False, True])
@pytest.mark.parametrize("filling", [torch.nan, torch.inf, -torch.inf])
def test_missing_vectors_are_as_if_dropped(name, partly, filling):
    """Whole rows that are not numbers, or rows in which one entry is none."""
    torch.manual_seed(0)
    x = VECTORS[name](f64([1.0, 2.0, 3.0])).sample((60,)).to(torch.float64)
    shown = torch.rand(60) > 0.2
    holes = x.clone()
    if partly and x.dim() > 1:
        holes[~shown, 0] = filling
    else:
        holes[~shown] = filling

    def model(x, shown):
        level = pyro.param("level", f64([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]), constraint=positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(f64(0.4))).long()
            with poutine.mask(mask=shown):
                pyro.sample("x", VECTORS[name](level[z]), obs=x)

    found = fit(model, holes, shown, strategy=EM(max_steps=3, tol=0), progress=False)
    without = fit(model, x[shown], shown[shown], strategy=EM(max_steps=3, tol=0), progress=False)
    assert found.objective == pytest.approx(without.objective, abs=1e-6)


@pytest.mark.parametrize("bare", [torch.nan, torch.inf])
@pytest.mark.parametrize("fn", [dist.Categorical, lambda p: dist.Normal(p.sum(), 1.0)])
def test_a_bare_entry_that_is_no_number_is_refused(bare, fn):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", fn(pyro.param("p", f64([0.5, 0.5]), constraint=simplex)), obs=x)

    with pytest.raises(ValueError, match="'x' observes NaN or an infinite value"):
        fit(model, f64([0.0, 1.0, bare]), strategy=EM(), progress=False)


def test_data_outside_the_support_are_named():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("wait", dist.LogNormal(pyro.param("loc", f64(0.0)), 1.0), obs=x)

    with pytest.raises(ValueError, match="'wait' gives no density"):
        fit(model, f64([0.0, 1.0, 2.0]), strategy=EM(), progress=False)


def test_missing_entries_of_several_hidden_series():
    """An entry that is missing leaves those beside it where they are."""
    torch.manual_seed(0)
    x = torch.randn(3, 6, 2, dtype=torch.float64)
    holes = x.clone()
    holes[0, 2, 1] = holes[2, 4, 0] = torch.nan
    init, moves = f64([0.4, 0.6]), f64([[0.8, 0.2], [0.3, 0.7]])
    locs = f64([[-1.0, 0.5], [1.0, -0.5]])

    def whole(x):
        with pyro.plate("series", len(x)):
            shown = ~x.isnan()[:, :, None, :]
            emission = dist.Normal(pyro.param("locs", locs), 1.0).expand([len(x), 6, 2, 2]).mask(shown).to_event(1)
            pyro.sample("x", dist.DiscreteHMM(init.log(), moves.log(), emission), obs=x)

    def by_hand(x):
        emission = dist.Normal(locs, 1.0).log_prob(x.nan_to_num()[:, :, None, :])
        emission = torch.where(x.isnan()[:, :, None, :], 0.0, emission).sum(-1)
        at = init.log().expand(len(x), 2)
        for t in range(6):
            at = torch.logsumexp(at.unsqueeze(-1) + moves.log(), 1) + emission[:, t]
        return float(at.logsumexp(-1).sum())

    found = fit(whole, holes, strategy=EM(max_steps=0), progress=False)
    assert found.log_evidence == pytest.approx(by_hand(holes), abs=1e-9)


def test_missing_entries_of_mixtures_are_masked_one_by_one():
    torch.manual_seed(0)
    x = torch.randn(40, 3, dtype=torch.float64)
    holes = torch.where(torch.rand(40, 3) > 0.2, x, torch.nan)

    def model(x):
        loc = pyro.param("loc", f64([-1.0, 1.0]))
        with pyro.plate("data", len(x)):
            component = (
                dist.Normal(loc.unsqueeze(-1), 1.0).expand([len(x), 2, 3]).mask(~x.isnan()[:, None, :]).to_event(1)
            )
            pyro.sample(
                "x", dist.MixtureSameFamily(dist.Categorical(f64([0.3, 0.7]).expand(len(x), 2)), component), obs=x
            )

    seen = dist.Normal(f64([-1.0, 1.0]).unsqueeze(-1), 1.0).log_prob(holes.nan_to_num().unsqueeze(1))
    seen = torch.where(holes.isnan().unsqueeze(1), 0.0, seen).sum(-1) + f64([0.3, 0.7]).log()
    found = fit(model, holes, strategy=EM(max_steps=0), progress=False)
    assert found.log_evidence == pytest.approx(float(seen.logsumexp(-1).sum()), abs=1e-9)


def test_missing_categories_under_masks_of_their_distribution():
    torch.manual_seed(0)
    x = torch.randint(0, 3, (50, 4)).to(torch.float64)
    holes = torch.where(torch.rand(50, 4) > 0.2, x, torch.nan)

    def model(x):
        probs = pyro.param("probs", f64([[0.2, 0.3, 0.5], [0.5, 0.3, 0.2]]), constraint=simplex)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(f64(0.4))).long()
            fn = dist.Categorical(probs[z].unsqueeze(-2)).expand([*z.shape[:-1], len(x), 4])
            pyro.sample("x", fn.mask(~x.isnan()).to_event(1), obs=x)

    found = fit(model, holes, strategy=EM(max_steps=3, tol=0), progress=False)
    assert found.history.objective.is_monotonic_increasing
    table = f64([[0.2, 0.3, 0.5], [0.5, 0.3, 0.2]]).log()[:, holes.nan_to_num().long()]
    table = torch.where(holes.isnan(), 0.0, table).sum(-1) + f64([0.6, 0.4]).log().unsqueeze(-1)
    assert found.history.objective[0] == pytest.approx(float(table.logsumexp(0).sum()), abs=1e-9)


def test_counts_that_are_wider_than_their_observation():
    """A mask over plates that the data repeat along."""
    torch.manual_seed(0)
    y, shown = torch.poisson(torch.full((30, 1), 4.0)).to(torch.float64), torch.rand(30, 4) > 0.3

    def model(y, shown):
        counts = pyro.param("counts", f64([3.0, 10.0]), constraint=positive)
        with pyro.plate("data", len(y), dim=-2):
            z = pyro.sample("z", dist.Bernoulli(f64(0.5))).long()
            with pyro.plate("copies", 4, dim=-1), poutine.mask(mask=shown):
                pyro.sample("y", dist.NegativeBinomial(counts[z], f64(0.4)), obs=y)

    found = fit(model, y, shown, strategy=EM(max_steps=4, tol=0), progress=False)
    assert found.history.objective.is_monotonic_increasing
    table = dist.NegativeBinomial(f64([3.0, 10.0]), f64(0.4)).log_prob(y)  # (30, 2), the same for each copy
    evidence = (table * shown.sum(-1, keepdim=True) + f64([0.5, 0.5]).log()).logsumexp(-1).sum()
    assert found.history.objective[0] == pytest.approx(float(evidence), abs=1e-9)


@pytest.mark.parametrize("bare", [torch.nan, torch.inf])
@pytest.mark.parametrize("size", [None, 7000])
def test_a_bare_hole_far_down_in_large_data_is_found(bare, size):
    """Of many rows, the first are looked at before the start."""
    x = torch.arange(30_000, dtype=torch.float64) % 7
    x[25_000] = bare

    def model(x):
        loc = pyro.param("loc", f64([1.0, 5.0]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(f64(0.5))).long()
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

    with pytest.raises(ValueError, match="argument 0 holds NaN or infinite values in 1 rows, the first in row 25000"):
        fit(model, x, strategy=EM(batch_size=size), progress=False)
