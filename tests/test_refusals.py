"""Models that cannot be fitted exactly are refused: the message names the site and the way out, and nothing changes.

Every model here runs in plain Pyro, and many would be fitted there without a word to a wrong answer.
"""

import resource
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.constraints import positive
from shared.refusals import BOTH, refuse, two_weights

from pyro_em import SVI

# Latents that no finite sum covers ------------------------------------------------------------------------


def test_continuous_latent_in_a_data_plate():
    def model(x):
        scale = pyro.param("scale", torch.tensor(1.0), constraint=positive)
        with pyro.plate("data", len(x)):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(mu, scale), obs=x)

    refuse(model, r"'mu' is Normal.*strategy=SVI\(guide\).*out of plate 'data'")


@pytest.mark.parametrize("size", [None, 3])
def test_unbounded_discrete_latent(size):
    def model(x):
        rate = pyro.param("rate", torch.tensor(1.0), constraint=positive)
        if size is None:
            n = pyro.sample("n", dist.Poisson(rate))
        with pyro.plate("data", len(x)):
            if size is not None:
                n = pyro.sample("n", dist.Poisson(rate))
            pyro.sample("x", dist.Normal(n, 1.0), obs=x)

    refuse(model, r"'n'.*Poisson.*truncate it to a Categorical.*SVI\(guide\)")
    refuse(model, r"\['n'\].*SVI\(guide\)", strategy=SVI())


def test_vector_of_bernoullis():
    def model(x):
        probs = pyro.param("probs", torch.full((2,), 0.3), constraint=dist.constraints.unit_interval)
        with pyro.plate("data", len(x)):
            on = pyro.sample("on", dist.Bernoulli(probs).to_event(1))
            pyro.sample("x", dist.Normal(on.sum(-1), 1.0), obs=x)

    refuse(model, r"'on'.*Bernoulli.*event shape \(2,\).*pyro\.plate")
    refuse(model, r"\['on'\].*SVI\(guide\)", strategy=SVI())


@BOTH
def test_binomial_with_unequal_counts(strategy):
    def model(x):
        p = pyro.param("p", torch.tensor(0.3), constraint=dist.constraints.unit_interval)
        with pyro.plate("data", len(x)):
            n = pyro.sample("n", dist.Binomial(torch.tensor([2.0, 3.0, 4.0]), p))
            pyro.sample("x", dist.Normal(n, 1.0), obs=x)

    refuse(model, r"Binomial.*'n'.*total_count.*one common", strategy=strategy)


def test_nothing_to_sum_and_nothing_to_maximise():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    refuse(model, "no latent.*no parameter.*pyro.param")
    refuse(model, "no parameter.*pyro.param", strategy=SVI())


def test_imputed_value_that_another_site_uses():
    def model(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(two_weights()))
            value = pyro.sample("x", dist.Normal(loc + z, 1.0), obs=x, obs_mask=torch.tensor([True, False, True]))
            pyro.sample("y", dist.Normal(value, 1.0), obs=x)

    refuse(model, r"'y'.*imputed by obs_mask \(\['x_unobserved'\]\)")
    refuse(model, r"'y'.*imputed by obs_mask \(\['x_unobserved'\]\)", strategy=SVI())


# Structures that have no exact sum ------------------------------------------------------------------------


@BOTH
def test_crossed_plates(strategy):
    def model(x):
        rows, columns = pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 3, dim=-1)
        with rows:
            a = pyro.sample("a", dist.Categorical(two_weights()))
        with columns:
            b = pyro.sample("b", dist.Categorical(two_weights()))
        with rows, columns:
            pyro.sample("x", dist.Normal((a + b).to(x.dtype), 1.0), obs=x.expand(3, 3))

    refuse(model, r"x: .*'b' in plates \['columns'\]; 'a' in plates \['rows'\].*SVI\(guide\)", strategy=strategy)


@BOTH
def test_scale_per_datum(strategy):
    def model(x):
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=torch.tensor([1.0, 2.0, 3.0])):
                z = pyro.sample("z", dist.Categorical(two_weights()))
            pyro.sample("x", dist.Normal(z.to(x.dtype), 1.0), obs=x)

    refuse(model, r"poutine.scale.*'x'.*scalar.*around all sites in that plate", strategy=strategy)


def test_global_latent_over_a_subsampled_plate():
    def model(x):
        z = pyro.sample("z", dist.Categorical(two_weights()))
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            pyro.sample("x", dist.Normal(z.to(x.dtype), 1.0), obs=x[rows])

    refuse(model, r"'z'.*one common scale.*inside that plate")


def test_global_latent_and_minibatches():
    def model(x):
        z = pyro.sample("z", dist.Categorical(two_weights()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z.to(x.dtype), 1.0), obs=x)

    refuse(model, r"'z'.*one common scale.*inside that plate", strategy=SVI(batch_size=2))


@pytest.fixture
def little_memory():
    """Allocations of more than a gigabyte fail, so that a table made by mistake costs the machine nothing."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@BOTH
@pytest.mark.parametrize(("num", "states", "before"), [(10, 30, 0), (6, 200, 0), (6, 200, 60)])
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux to limit memory")
def test_a_table_too_large_is_refused_before_it_is_made(num, states, before, strategy, little_memory):
    """All latents meet in one density, which the model itself would broadcast to one entry per joint state; after a
    loop that is long, and harmless.
    """

    def model(x):
        p = pyro.param("p", torch.full((states,), 1 / states), constraint=dist.constraints.simplex)
        for t in pyro.markov(range(before)):
            pyro.sample(f"loop_{t}", dist.Categorical(p))
        total = 0.0
        for i in range(num):
            total = total + pyro.sample(f"z_{i}", dist.Categorical(p))
        pyro.sample("x", dist.Normal(total, 1.0), obs=x[0])

    refuse(model, r"z_.*entries.*SVI\(guide\)", strategy=strategy)


@BOTH
def test_a_table_too_large_for_the_sum(strategy):
    """Every density is small; it is summing out one of 30 latents, all coupled in pairs, that would need the table."""

    def model(x):
        z = [pyro.sample(f"z_{i}", dist.Bernoulli(pyro.param("p", torch.tensor(0.3)))) for i in range(30)]
        for i in range(30):
            for j in range(i):
                pyro.sample(f"x_{i}_{j}", dist.Normal(z[i] * z[j], 1.0), obs=x[0])

    refuse(model, r"z_.*1\.07e\+09 entries, more than the limit.*SVI\(guide\)", strategy=strategy)


@BOTH
def test_a_long_loop_without_markov(strategy):
    def model(x):
        z = torch.tensor(0)
        trans = pyro.param("trans", torch.tensor([[0.7, 0.3], [0.2, 0.8]]), constraint=dist.constraints.simplex)
        for t in range(80):
            z = pyro.sample(f"z_{t}", dist.Categorical(trans[z]))

    refuse(model, r"64 dimensions.*pyro\.markov", strategy=strategy)
