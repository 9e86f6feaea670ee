"""Networks in batches, by weights and in another order: the same fit, though L-BFGS magnifies what rounding leaves."""

from functools import cache, partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from batch_cases import agree, run
from pyro.distributions.constraints import positive, simplex
from test_batches_regressions import STEPS, N, coefficients, waits
from torch import nn

from pyro_em import GradientMStep

f64 = partial(torch.tensor, dtype=torch.float64)
ROWS = 60
LONG = {"max_steps": 25, "tol": 0}


def points(num=ROWS):
    """Two ways in which y comes about, by turns along x."""
    generator = torch.Generator().manual_seed(1)
    x, noise = torch.randn(2, num, 2, generator=generator, dtype=torch.float64)
    turn = torch.rand(num, generator=generator, dtype=torch.float64) < torch.sigmoid(3 * torch.sin(2 * x[:, 0]))
    return x, torch.where(turn, 2.0 + 0.5 * x[:, 1], -x[:, 1]) + 0.3 * noise[:, 0]


def network(width, activation=nn.Tanh):
    torch.manual_seed(width)
    return nn.Sequential(nn.Linear(2, width), activation(), nn.Linear(width, 1), nn.Flatten(0)).double()


def gated(width):
    net = network(width)

    def model(x, y):
        """Who answers is decided by a network."""
        pyro.module("net", net)
        locs = pyro.param("locs", f64([0.0, 2.0]))
        scale = pyro.param("scale", f64(1.0), constraint=positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(logits=net(x))).long()
            pyro.sample("y", dist.Normal(locs[z], scale), obs=y)

    return model


def answered(width, activation=nn.Tanh):
    nets = nn.ModuleList(network(width + i, activation) for i in range(2))

    def model(x, y):
        """Each answers by a network of its own."""
        pyro.module("nets", nets)
        weights = pyro.param("weights", f64([0.4, 0.6]), constraint=simplex)
        scale = pyro.param("scale", f64(1.0), constraint=positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            first, second = (net(x) for net in nets)
            pyro.sample("y", dist.Normal(torch.where(z == 0, first, second), scale), obs=y)

    return model


MODELS = {
    "gate": lambda: gated(4),
    "wide gate": lambda: gated(20),
    "answers": lambda: answered(3),
    "kinks": lambda: answered(6, nn.ReLU),
}
each_model = pytest.mark.parametrize("name", MODELS)


@cache
def whole(name):
    torch.set_default_dtype(torch.float64)
    return run(MODELS[name](), *points(), **LONG)


@pytest.mark.parametrize("size", [7, 59])
@each_model
def test_batches_are_the_whole(name, size):
    found = run(MODELS[name](), *points(), batch_size=size, **LONG)
    assert found.history.objective.tolist() == pytest.approx(whole(name).history.objective.tolist(), abs=1e-8)
    assert found.explain().equals(whole(name).explain())
    agree(found, whole(name))


@each_model
def test_the_order_of_rows_is_not_seen(name):
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(2))
    agree(run(MODELS[name](), *(d[order] for d in points()), **LONG), whole(name))


@each_model
def test_a_weight_is_a_repeated_row(name):
    times = 1 + torch.arange(ROWS) % 3
    repeated = (d.repeat_interleave(times, 0) for d in points())
    agree(run(MODELS[name](), *points(), weights=times, **LONG), run(MODELS[name](), *repeated, **LONG), atol=1e-10)


def test_where_the_whole_converges():
    """By the rule of the stop, and the trial climb that is its last part."""
    found, alike = (run(gated(2), *points(), **b) for b in ({"batch_size": 13}, {}))
    assert found.status is alike.status and found.n_steps == alike.n_steps
    agree(found, alike)


def test_accelerated():
    steps = {"accelerate": "squarem", "max_steps": 12, "tol": 0}
    agree(*(run(gated(4), *points(), **b, **steps) for b in ({"batch_size": 13}, {})))


def experts(x, y):
    """Lines by least squares; who answers is decided by a network."""
    slopes, levels = coefficients()
    weights, out = pyro.param("hidden", f64([0.7, -0.4, 0.2])), pyro.param("out", f64([0.5, -0.3, 0.9]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(logits=torch.tanh(x.unsqueeze(-1) * weights) @ out)).long()
        pyro.sample("y", dist.Normal(levels[z] + slopes[z] * x, 0.7), obs=y)


ADAM = GradientMStep(partial(torch.optim.Adam, lr=0.02), num_steps=2)
SHORT = GradientMStep(partial(torch.optim.LBFGS, max_iter=5, line_search_fn="strong_wolfe"))


@pytest.mark.parametrize("size", [15, N])
@pytest.mark.parametrize("m_step", [ADAM, SHORT, None], ids=["Adam", "short", "default"])
def test_experts(m_step, size):
    found, alike = (run(experts, *waits(), m_step=m_step, **b, **STEPS) for b in ({"batch_size": size}, {}))
    assert found.history.objective.tolist() == pytest.approx(alike.history.objective.tolist(), abs=1e-8)
    assert found.explain().equals(alike.explain())
    agree(found, alike)
