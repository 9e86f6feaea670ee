"""Models and data for fits in batches, and what it means that two fits agree."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.constraints import lower_cholesky, simplex, unit_interval
from shared.rows import chains, f64, mixture

from pyro_em import EM, fit

N = 60


def data(num=N, dims=None):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*((num,) if dims is None else (num, dims)), generator=generator, dtype=torch.float64)
    x[: num // 3] -= 2.5
    x[num // 3 :] += 1.5
    return x[torch.randperm(num, generator=generator)]


def fulls(x):
    weights = pyro.param("weights", f64([0.4, 0.6]), constraint=simplex)
    locs = pyro.param("locs", f64([[-1.0, -1.0], [1.5, 1.5]]))
    trils = pyro.param("trils", 1.5 * torch.eye(2).repeat(2, 1, 1), constraint=lower_cholesky)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(locs[z], scale_tril=trils[z]), obs=x)


def classes(x):
    weights = pyro.param("weights", f64([0.4, 0.6]), constraint=simplex)
    probs = pyro.param("probs", f64([[0.3, 0.4], [0.6, 0.8]]), constraint=unit_interval)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Bernoulli(probs[z]).to_event(1), obs=(x > 0).to(x.dtype))


CASES = {
    "mixture": (mixture, lambda: (data(),)),
    "fulls": (fulls, lambda: (data(dims=2),)),
    "classes": (classes, lambda: (data(dims=2),)),
    "chains": (chains, lambda: (data(dims=4),)),
}
each_case = pytest.mark.parametrize(("model", "make"), CASES.values(), ids=CASES)


def run(model, *args, init=None, seed=0, weights=None, **options):
    return fit(model, *args, strategy=EM(**options), init=init, seed=seed, weights=weights, progress=False)


def agree(one, other, atol=1e-8):
    torch.testing.assert_close(one.params, other.params, atol=atol, rtol=0)
    assert one.objective == pytest.approx(other.objective, abs=atol)
    assert one.log_evidence == pytest.approx(other.log_evidence, abs=atol)
