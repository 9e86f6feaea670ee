"""Alike sites evaluated together have the densities that they have one by one."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_em.graph import build
from pyro_em.graph.alike import kind_of, stacked
from pyro_em.graph.program import Program
from pyro_em.graph.trace import Intervention

BATCH, COUNT = (3, 2), 5


def f64(*shape: int) -> Tensor:
    return 0.3 + 0.6 * torch.rand(shape, dtype=torch.float64)


def root(*shape: int) -> Tensor:
    return torch.diag_embed(f64(*shape))


class Own(dist.Normal):
    """A user's distribution, of which nothing is known."""


TOGETHER = {
    "Normal": lambda: dist.Normal(f64(*BATCH), f64(*BATCH)),
    "LogNormal": lambda: dist.LogNormal(f64(*BATCH), f64(*BATCH)),
    "Categorical": lambda: dist.Categorical(f64(*BATCH, 4)),
    "Categorical by logits": lambda: dist.Categorical(logits=f64(*BATCH, 4)),
    "Categorical with zeros": lambda: dist.Categorical(f64(*BATCH, 4) * torch.tensor([1.0, 0.0, 1.0, 1.0])),
    "OneHotCategorical": lambda: dist.OneHotCategorical(f64(*BATCH, 4)),
    "Bernoulli": lambda: dist.Bernoulli(f64(*BATCH)),
    "Bernoulli by logits": lambda: dist.Bernoulli(logits=f64(*BATCH)),
    "Binomial": lambda: dist.Binomial(5, f64(*BATCH)),
    "Multinomial": lambda: dist.Multinomial(5, f64(*BATCH, 4)),
    "Poisson": lambda: dist.Poisson(f64(*BATCH)),
    "Exponential": lambda: dist.Exponential(f64(*BATCH)),
    "Geometric": lambda: dist.Geometric(f64(*BATCH)),
    "Gamma": lambda: dist.Gamma(f64(*BATCH), f64(*BATCH)),
    "Beta": lambda: dist.Beta(f64(*BATCH), f64(*BATCH)),
    "Dirichlet": lambda: dist.Dirichlet(f64(*BATCH, 4)),
    "NegativeBinomial": lambda: dist.NegativeBinomial(f64(*BATCH), f64(*BATCH)),
    "StudentT": lambda: dist.StudentT(f64(*BATCH), f64(*BATCH), f64(*BATCH)),
    "ZeroInflatedPoisson": lambda: dist.ZeroInflatedPoisson(f64(*BATCH), gate=f64(*BATCH)),
    "MultivariateNormal": lambda: dist.MultivariateNormal(f64(*BATCH, 4), scale_tril=root(*BATCH, 4)),
    "Independent": lambda: dist.Normal(f64(*BATCH), f64(*BATCH)).to_event(1),
    "expanded": lambda: dist.Normal(f64(2), f64(2)).expand(BATCH).to_event(1),
    "masked": lambda: dist.Normal(f64(*BATCH), f64(*BATCH)).mask(f64(*BATCH) > 0.6).to_event(1),
    "a mixture": lambda: dist.MixtureSameFamily(
        dist.Categorical(f64(*BATCH, 4)), dist.StudentT(3.0, f64(*BATCH, 4), f64(*BATCH, 4))
    ),
}
APART = {
    "a user's own": lambda: Own(f64(*BATCH), f64(*BATCH)),
    "one scale_tril for a batch": lambda: dist.MultivariateNormal(f64(2, 2), scale_tril=root(2)),
    "a transform": lambda: dist.TransformedDistribution(
        dist.Normal(f64(*BATCH), f64(*BATCH)), [dist.transforms.AffineTransform(f64(*BATCH), 2.0)]
    ),
    "a chain": lambda: dist.DiscreteHMM(f64(*BATCH, 2), f64(2, 2), dist.Normal(f64(*BATCH, 1, 2), 1.0), duration=4),
    "a Delta": lambda: dist.Delta(f64(*BATCH)),
}


def site(fn, *sample: int):
    return {
        "name": "x",
        "fn": fn,
        "value": fn.sample(sample),
        "args": (),
        "kwargs": {},
        "mask": None,
        "is_observed": True,
        "infer": {},
    }


@pytest.mark.parametrize("sample", [(), (4, 1)], ids=["alone", "over more dimensions"])
@pytest.mark.parametrize("make", TOGETHER.values(), ids=TOGETHER)
def test_a_stack_has_the_densities_of_its_sites(make, sample):
    pyro.set_rng_seed(0)
    sites = [site(make(), *sample) for _ in range(COUNT)]
    kinds = {kind_of(s) for s in sites}
    assert len(kinds) == 1 and None not in kinds
    one = stacked(sites)
    expected = torch.stack([build.site_log_prob(s) for s in sites])
    torch.testing.assert_close(build.site_log_prob(one), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("make", APART.values(), ids=APART)
def test_what_is_not_known_to_stack_is_left_alone(make):
    pyro.set_rng_seed(0)
    assert kind_of(site(make())) is None


def test_sites_of_other_shapes_are_of_another_kind():
    one, other = site(dist.Normal(f64(3), 1.0)), site(dist.Normal(f64(3), 1.0), 2)
    assert kind_of(one) != kind_of(other)
    assert kind_of(one) != kind_of({**one, "is_observed": False})
    assert kind_of(site(dist.Normal(f64(1), 1.0))) != kind_of(site(dist.Normal(f64(), 1.0)))
    assert kind_of({**one, "mask": torch.tensor(True)}) is None
    assert kind_of(site(dist.Binomial(3, f64(2)))) == kind_of(site(dist.Binomial(3, f64(2))))


def test_missing_data_are_left_to_each_site():
    sites = [site(dist.Normal(f64(3), 1.0)) for _ in range(COUNT)]
    sites[2]["value"][1] = torch.nan
    assert stacked(sites) is None


def graphs(model, monkeypatch):
    """The factor graph with alike sites together, and one by one."""
    found = build.structure(Program(model, 1).trace((), {}, Intervention()), frozenset())
    together = build.graph_of(found, frozenset())
    monkeypatch.setattr(build, "FEW", len(found.sites))
    return together, build.graph_of(found, frozenset())


@pytest.mark.parametrize("states", [1, 3])
def test_graphs_are_the_same(states, monkeypatch):
    """Two rows of coupled chains, whose sites have their latents at either of two dimensions; scaled, and observed in
    rows that some steps do not share.
    """
    pyro.set_rng_seed(0)
    weights, locs = f64(states, states), f64(states, states)

    def model():
        rows = pyro.plate("rows", 2, dim=-1)
        y = z = torch.tensor(0)
        for t in pyro.markov(range(14)):
            with rows:
                y = pyro.sample(f"y_{t}", dist.Categorical(weights[y]))
                z = pyro.sample(f"z_{t}", dist.Categorical(weights[z]))
                with poutine.scale(scale=2.0 if t % 2 else 1.0):
                    pyro.sample(f"x_{t}", dist.Normal(locs[y, z], 1.0 + t), obs=f64(2))
            pyro.sample(f"w_{t}", dist.Normal(0.0, 1.0).expand([2]).to_event(1), obs=f64(2))

    together, apart = graphs(model, monkeypatch)
    for one, other in zip(together.factors, apart.factors, strict=True):
        assert (one.name, one.plates, one.scope, one.scale) == (other.name, other.plates, other.scope, other.scale)
        torch.testing.assert_close(one.table, other.table, rtol=1e-14, atol=1e-14)


def test_a_distribution_that_is_not_what_it_holds_is_evaluated_alone(monkeypatch):
    """One whose density mixes the elements of its batch."""
    monkeypatch.setattr(dist.Normal, "log_prob", lambda self, value: value - self.loc - self.loc.max())
    locs = f64(20)

    def model():
        for t in range(20):
            pyro.sample(f"x_{t}", dist.Normal(locs[t], 1.0), obs=f64())

    together, apart = graphs(model, monkeypatch)
    assert all(torch.equal(a.table, b.table) for a, b in zip(together.factors, apart.factors, strict=True))
