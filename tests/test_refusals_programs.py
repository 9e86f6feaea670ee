"""Programs that do not broadcast over an enumerated dimension are refused: plain Pyro might fit them wrongly."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.constraints import simplex
from shared.refusals import BOTH, X, refuse, two_weights
from torch import nn
from untouched import refused

from pyro_em import EM, SVI, ModelError, fit


class Embedded(nn.Module):
    """A mean for x from a latent's embedding, by the layer given."""

    def __init__(self, how):
        super().__init__()
        self.how, self.table, self.out = how, nn.Embedding(3, 4), nn.Linear(4, 1)
        self.norm, self.drop, self.wide = nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(5, 1)

    def forward(self, z, x):
        h = self.table(z)
        if self.how == "cat":
            return self.wide(torch.cat([h, x.unsqueeze(-1)], -1)).squeeze(-1)
        if self.how == "norm":
            return self.out(self.norm(h)).squeeze(-1)
        if self.how == "drop":
            return self.out(self.drop(h)).squeeze(-1)
        return self.out(h).reshape(3, -1).sum(-1)  # "reshape": 3 data as well as 3 states


@BOTH
@pytest.mark.parametrize("how", ["cat", "norm", "drop", "reshape"])
def test_network_that_mixes_the_enumerated_dimension(how, strategy):
    network = Embedded(how)

    def model(x):
        pyro.module("network", network)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
            pyro.sample("x", dist.Normal(network(z, x), 1.0), obs=x)

    before = [v.clone() for v in network.state_dict().values()]
    refuse(model, r"'[xz]'.*must (broadcast|be deterministic)", strategy=strategy)
    assert all(torch.equal(a, b) for a, b in zip(before, network.state_dict().values(), strict=True))


@BOTH
@pytest.mark.parametrize("branch", [lambda z: z == 1, lambda z: z.item(), int, bool])
def test_python_control_flow_on_a_latent(branch, strategy):
    def model(x):
        z = pyro.sample("z", dist.Categorical(two_weights()))
        loc = 2.0 if branch(z) else -1.0
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    refuse(model, r"'z'.*`if`.*`int\(z\)`.*`\.item\(\)`", strategy=strategy)


@BOTH
@pytest.mark.parametrize("blur", [lambda z: (z == 1).any(), lambda z: z.max() == 1, lambda z: z.sum() == 1])
def test_control_flow_that_survives_enumeration(blur, strategy):
    """`any` over all states at once is true: no error, but a wrong table. It must not matter which state is drawn."""

    def model(x):
        z = pyro.sample("z", dist.Categorical(two_weights()))
        loc = 2.0 if blur(z) else -1.0
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    for seed in range(4):
        with refused(ModelError, "'x'.*must broadcast"):
            fit(model, X, strategy=strategy, progress=False, seed=seed)


def test_control_flow_on_a_state_that_is_hardly_ever_drawn():
    """In a long loop, one run stands for all states of all latents."""

    def model(x):
        weights = pyro.param("weights", torch.tensor([1e-12, 1 - 1e-12]), constraint=dist.constraints.simplex)
        for t in pyro.markov(range(60)):
            z = pyro.sample(f"z_{t}", dist.Categorical(weights))
            pyro.sample(f"x_{t}", dist.Normal(2.0 if (z == 1).any() else -1.0, 1.0), obs=x[0])

    refuse(model, r"'x_\d+' has another log-probability")


@BOTH
def test_undeclared_batch_dimension(strategy):
    """With as many data as states, summing over the data's axis as if it were the latent's would go unnoticed."""

    def model(x):
        z = pyro.sample("z", dist.Categorical(torch.full((3,), 1 / 3)))
        loc = pyro.param("loc", torch.tensor([-1.0, 0.0, 1.0]))
        pyro.sample("x", dist.Normal(loc[z] + torch.zeros(3), 1.0), obs=x)

    refuse(model, r"'x'.*shape \(3,\).*pyro\.plate.*\.to_event", strategy=strategy)


@BOTH
def test_undeclared_batch_dimension_inside_a_plate(strategy):
    def model(x):
        with pyro.plate("rows", 3, dim=-1):
            z = pyro.sample("z", dist.Categorical(two_weights()))
            pyro.sample("x", dist.Normal(z.to(x.dtype), 1.0), obs=x.expand(2, 3))

    refuse(model, r"'x'.*dimension -2.*\.to_event", strategy=strategy)


# Arguments on which a program does not run ----------------------------------------------------------------


def counted(x):
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=simplex)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=x)


@pytest.mark.parametrize("strategy", [EM(max_steps=1), SVI(max_steps=1)], ids=["em", "svi"])
@pytest.mark.parametrize(
    ("x", "match"),
    [
        (torch.tensor(0.3), "not run on these arguments, .* TypeError: len.. of a 0-d tensor"),
        (torch.zeros(0), "not run on these arguments, .* ZeroDivisionError: size cannot be zero"),
        (np.zeros(3), r"not run on these arguments: site 'x' observes a ndarray.*obs=torch\.as_tensor"),
    ],
    ids=["scalar", "empty", "numpy"],
)
def test_enumeration_is_not_to_blame(x, match, strategy):
    """It was, with advice on broadcasting."""
    found = fit(counted, torch.tensor([0.3, 1.9]), strategy=strategy, progress=False)
    with refused(ModelError, match):
        found.posterior(x)


def test_enumeration_is_to_blame_where_the_program_runs_without():
    def model(x):
        weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=simplex)
        z = pyro.sample("z", dist.Categorical(weights))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(2.0 if z.item() else 0.0, 1.0), obs=x)

    with refused(ModelError, r"runs by itself but not with its discrete latents enumerated.*`\.item\(\)`"):
        fit(model, torch.tensor([0.3, 1.9]), strategy=EM(), progress=False)
