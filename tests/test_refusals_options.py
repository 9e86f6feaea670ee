"""Hyperparameters of strategies and options of a fit that cannot be used are refused, and nothing changes."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from untouched import refused

from pyro_em import EM, SVI, GradientMStep, fit

X = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
BOTH = pytest.mark.parametrize("strategy", [EM(max_steps=2), SVI(max_steps=2)], ids=["em", "svi"])


def mixture(x):
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=dist.constraints.simplex)
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (partial(EM, max_steps=-1), ValueError, "max_steps.*-1"),
        (partial(EM, tol=-1e-3), ValueError, "tol.*-0.001"),
        (partial(EM, tol=float("nan")), ValueError, "tol.*nan"),
        (partial(EM, on_decrease="ignore"), ValueError, "on_decrease.*'revert'.*'ignore'"),
        (partial(EM, m_step="lbfgs"), TypeError, "m_step.*GradientMStep.*str"),
        (partial(GradientMStep, num_steps=0), ValueError, "num_steps.*0"),
        (partial(SVI, max_steps=-1), ValueError, "max_steps.*-1"),
        (partial(SVI, max_epochs=0), ValueError, "max_epochs.*0"),
        (partial(SVI, batch_size=0), ValueError, "batch_size.*0"),
        (partial(SVI, patience=0), ValueError, "patience.*0"),
        (partial(SVI, num_particles=0), ValueError, "num_particles.*0"),
        (partial(EM, 10), TypeError, "positional"),
        (partial(EM, max_steps=None), TypeError, "max_steps must be an integer; got None"),
        (partial(EM, max_steps=2.5), TypeError, "max_steps must be an integer; got 2.5"),
        (partial(EM, max_steps=True), TypeError, "max_steps must be an integer; got True"),
        (partial(EM, tol=None), TypeError, "tol must be a number of nats; got None.*tol=0"),
        (partial(EM, restarts=2.5), TypeError, "restarts must be an integer; got 2.5"),
        (partial(EM, batch_size=2.5), TypeError, "batch_size must be an integer or None; got 2.5"),
        (partial(GradientMStep, num_steps=None), TypeError, "num_steps must be an integer; got None"),
        (partial(SVI, max_steps=2.5), TypeError, "max_steps must be an integer or None; got 2.5"),
        (partial(SVI, max_epochs="3"), TypeError, "max_epochs must be an integer or None; got '3'"),
        (partial(SVI, patience=2.5), TypeError, "patience must be an integer or None; got 2.5"),
        (partial(SVI, num_particles=None), TypeError, "num_particles must be an integer; got None"),
        (partial(SVI, restarts=None), TypeError, "restarts must be an integer; got None"),
        (partial(SVI, AutoNormal), TypeError, r"got the class AutoNormal.*SVI\(AutoNormal\(model\)\)"),
        (partial(SVI, "auto"), TypeError, r"guide must be.*got 'auto'.*SVI\(AutoNormal\(model\)\)"),
    ],
)
def test_hyperparameters(make, error, match):
    with refused(error, match):
        make()


def test_integers_of_numpy_are_integers():
    one, two = np.int64(1), np.int32(2)
    EM(max_steps=two, restarts=one, batch_size=two, tol=np.float64(0.1))
    SVI(max_steps=two, max_epochs=one, batch_size=two, patience=None, num_particles=one)


@BOTH
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"init": [torch.zeros(2)]}, r"init must be starting values by name.*got list.*init=\{'name': value\}"),
        ({"init": torch.zeros(2)}, "init must be starting values by name.*got Tensor"),
        ({"callbacks": print}, r"callbacks must be a list.*got <built-in function print>.*callbacks=\[\.\.\.\]"),
        ({"callbacks": ["print"]}, "callbacks must be a list.*it holds 'print'"),
    ],
    ids=["list", "tensor", "one", "name"],
)
def test_options_of_fit(options, match, strategy):
    with refused(TypeError, match):
        fit(mixture, X, strategy=strategy, progress=False, **options)


@pytest.mark.parametrize("optim", [torch.optim.Adam([torch.zeros(1, requires_grad=True)]), "adam", 0.1])
def test_an_optimiser_of_another_fit(optim):
    match = r"optim must be.*functools\.partial\(torch\.optim\.Adam, lr=1e-3\).*got"
    with refused(TypeError, match):
        fit(mixture, X, strategy=EM(m_step=GradientMStep(optim)), progress=False)
    with refused(TypeError, match):
        fit(mixture, X, strategy=SVI(optim=optim), progress=False)


@pytest.mark.parametrize("strategy", ["em", EM, None])
def test_a_strategy_that_is_none(strategy):
    with refused(TypeError, r"strategy.*EM\(\)"):
        fit(mixture, X, strategy=strategy, progress=False)
