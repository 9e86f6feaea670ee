"""What cannot be asked of a fit is refused with a sentence, whatever stands behind its posterior."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from batch_cases import data, mixture, run
from untouched import refused

from pyro_em import SVI, fit

X = data(6)


def guided(x):
    """A latent that the guide samples, and one that is summed out."""
    c = pyro.sample("c", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(c + 2.0 * z, pyro.param("scale", torch.tensor(1.0))), obs=x)


def hidden(x):
    trans = pyro.param("trans", torch.tensor([[0.7, 0.3], [0.4, 0.6]]), constraint=dist.constraints.simplex)
    emission = dist.Normal(torch.tensor([-1.0, 1.0]), 1.0)
    pyro.sample("x", dist.DiscreteHMM(torch.zeros(2), trans.log(), emission), obs=x)


@pytest.fixture(scope="module")
def exact():
    return run(mixture, X, max_steps=2)


@pytest.fixture(scope="module")
def by_guide():
    return fit(guided, X, strategy=SVI(max_steps=2), progress=False)


BOTH = pytest.mark.parametrize("which", ["exact", "by_guide"])


@BOTH
@pytest.mark.parametrize("names", [(), ("z", "z")], ids=["none", "twice"])
def test_joint_of_latents_each_once(which, names, request):
    posterior = request.getfixturevalue(which).posterior()
    with refused(ValueError, rf"A joint is one of latents by name, each once; got \[{', '.join(map(repr, names))}\]"):
        posterior.joint(*names)


def test_joint_of_the_states_of_a_discrete_hmm():
    """It said that the latent was not there, and listed it."""
    posterior = run(hidden, X, max_steps=1).posterior()
    with refused(ValueError, r"'x\.states' of a DiscreteHMM.*chain\('x\.states'\)\.pairwise"):
        posterior.joint("x.states")
    with refused(KeyError, r"No enumerated latent 'y'"):
        posterior.joint("y")
    pairs = posterior.chain("x.states").pairwise
    assert pairs.shape == (len(X) - 1, 2, 2)
    torch.testing.assert_close(pairs.sum((-1, -2)), torch.ones(len(X) - 1, dtype=torch.float64))


@BOTH
@pytest.mark.parametrize("count", [0, -1])
def test_number_of_draws(which, count, request):
    result = request.getfixturevalue(which)
    with refused(ValueError, f"num_samples must be at least 1; got {count}"):
        result.predict(num_samples=count)
    posterior = result.posterior()
    with refused(ValueError, f"num_samples must be at least 1; got {count}"):
        posterior.sample(count)
    with refused(ValueError, f"num_chains must be at least 1; got {count}"):
        result.to_arviz(num_chains=count)
    with refused(TypeError, "num_samples must be an integer; got 2.5"):
        posterior.sample(2.5)
