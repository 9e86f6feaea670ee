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


@pytest.mark.parametrize("filling", [torch.nan, 0.0, 1e6])
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
def test_missing_vectors_are_as_if_dropped(name, partly):
    """Whole rows of NaN, or rows in which one entry is."""
    torch.manual_seed(0)
    x = VECTORS[name](f64([1.0, 2.0, 3.0])).sample((60,)).to(torch.float64)
    shown = torch.rand(60) > 0.2
    holes = x.clone()
    if partly and x.dim() > 1:
        holes[~shown, 0] = torch.nan
    else:
        holes[~shown] = torch.nan

    def model(x, shown):
        level = pyro.param("level", f64([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]), constraint=positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(f64(0.4))).long()
            with poutine.mask(mask=shown):
                pyro.sample("x", VECTORS[name](level[z]), obs=x)

    found = fit(model, holes, shown, strategy=EM(max_steps=3, tol=0), progress=False)
    without = fit(model, x[shown], shown[shown], strategy=EM(max_steps=3, tol=0), progress=False)
    assert found.objective == pytest.approx(without.objective, abs=1e-6)


def test_a_bare_nan_among_categories_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Categorical(pyro.param("p", f64([0.5, 0.5]), constraint=simplex)), obs=x)

    with pytest.raises(ValueError, match="'x' observes NaN that no mask hides"):
        fit(model, f64([0.0, 1.0, torch.nan]), strategy=EM(), progress=False)


def test_data_outside_the_support_are_named():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("wait", dist.LogNormal(pyro.param("loc", f64(0.0)), 1.0), obs=x)

    with pytest.raises(ValueError, match="'wait' gives no density"):
        fit(model, f64([0.0, 1.0, 2.0]), strategy=EM(), progress=False)
