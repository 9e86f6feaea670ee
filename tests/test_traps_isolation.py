"""A fit sees only its own model and leaves nothing behind in stores, modules, tensors or random number generators."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.constraints import positive, simplex
from pyro.infer import SVI as PyroSVI
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule, PyroParam
from torch import nn
from untouched import untouched

from pyro_em import EM, SVI, fit

f64 = partial(torch.tensor, dtype=torch.float64)
X = f64([-2.1, -1.7, -1.4, 0.2, 0.9, 1.6, 1.9, 2.4])
ADAM = partial(torch.optim.Adam, lr=0.05)
STRATEGIES = pytest.mark.parametrize("strategy", [EM(max_steps=5), SVI(optim=ADAM, max_steps=20)], ids=["em", "svi"])


def mixture(x):
    locs = pyro.param("locs", f64([-1.0, 1.5]))
    scale = pyro.param("scale", f64(0.8), constraint=positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(f64([0.4, 0.6])))
        pyro.sample("x", dist.Normal(locs[z], scale), obs=x)


class Mixture(PyroModule):
    """Two components; what makes instances differ is where they start."""

    def __init__(self, start):
        super().__init__()
        self.start = f64([-start, start])
        self.locs = PyroParam(self.start)
        self.scale = PyroParam(f64(0.8), constraint=positive)
        self.logits = nn.Parameter(f64([0.0, 0.3]))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=self.logits))
            pyro.sample("x", dist.Normal(self.locs[z], self.scale), obs=x)


def contents(module):
    """Every tensor a module holds, its identity and gradient."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: (id(p), p.tolist(), p.grad, p.requires_grad) for name, p in named}


@STRATEGIES
def test_instances_of_one_class_do_not_share_values(strategy):
    """In Pyro the second instance silently takes the first one's fitted values from the store."""
    first, second = Mixture(1.0), Mixture(3.0)
    alone = fit(Mixture(3.0), X, strategy=strategy, progress=False)
    fit(first, X, strategy=strategy, progress=False)
    after = fit(second, X, strategy=strategy, progress=False)
    assert after.history.objective.tolist() == alone.history.objective.tolist()
    torch.testing.assert_close(after.params, alone.params, atol=0, rtol=0)
    assert first.locs.tolist() == [-1.0, 1.0] and second.locs.tolist() == [-3.0, 3.0]


def test_pyro_shares_values_between_instances():
    """The trap itself."""
    first, second = Mixture(1.0), Mixture(3.0)
    optim = pyro.optim.SGD({"lr": 0.01})
    model = pyro.poutine.condition(first, {"z": torch.zeros(8, dtype=torch.long)})
    PyroSVI(model, lambda x: None, optim, Trace_ELBO()).step(X)
    pyro.poutine.trace(second).get_trace(X)
    assert second.locs.tolist() == first.locs.tolist() != [-3.0, 3.0]


@STRATEGIES
def test_modules_are_put_back(strategy):
    model = Mixture(1.0)
    model.logits.grad = torch.ones(2)
    start, before = model.start.clone(), contents(model)
    with untouched():
        result = fit(model, X, strategy=strategy, progress=False)
    assert contents(model) == before
    assert torch.equal(model.start, start) and not model.start.requires_grad
    with result.use():
        assert torch.equal(model.locs, result.params["locs"])
        assert torch.equal(model.logits, result.params["logits"])
    assert contents(model) == before


@STRATEGIES
@pytest.mark.parametrize("how", ["tensor", "lambda", "parameter", "keyword"])
def test_initial_tensors_are_copied(how, strategy):
    """Without a constraint Pyro optimises the very tensor it was given."""
    start = f64([-1.0, 1.5])
    given = nn.Parameter(start) if how == "parameter" else start

    def model(x):
        if how == "keyword":
            locs = pyro.param("locs", init_tensor=given)
        else:
            locs = pyro.param("locs", (lambda: given) if how == "lambda" else given)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(f64([0.4, 0.6])))
            pyro.sample("x", dist.Normal(locs[z], 0.8), obs=x)

    result = fit(model, X, strategy=strategy, progress=False)
    assert not torch.equal(result.params["locs"], f64([-1.0, 1.5]))
    assert given.tolist() == [-1.0, 1.5]
    assert given.requires_grad == (how == "parameter") and given.grad is None


@STRATEGIES
def test_init_tensors_are_copied(strategy):
    init = {"locs": f64([-2.0, 2.0])}
    result = fit(mixture, X, strategy=strategy, init=init, progress=False)
    again = fit(mixture, X, strategy=strategy, init=result, progress=False)
    assert init["locs"].tolist() == [-2.0, 2.0] and not init["locs"].requires_grad
    assert again.params["locs"].data_ptr() != result.params["locs"].data_ptr()
    assert not any(value.requires_grad for value in result.params.values())


@STRATEGIES
def test_a_store_with_the_same_names_is_neither_used_nor_changed(strategy):
    expected = fit(mixture, X, strategy=strategy, progress=False)
    pyro.param("locs", f64([7.0, 8.0, 9.0]))
    pyro.param("scale", f64(-3.0))
    with untouched():
        found = fit(mixture, X, strategy=strategy, progress=False)
        found.posterior()
        found.predict(num_samples=2, seed=1)
    assert found.objective == expected.objective
    torch.testing.assert_close(found.params, expected.params, atol=0, rtol=0)
    assert pyro.param("locs").tolist() == [7.0, 8.0, 9.0]


def local_latent(x):
    slope = pyro.param("slope", f64(0.7))
    with pyro.plate("data", len(x)):
        h = pyro.sample("h", dist.Normal(f64(0.0), 1.0))
        pyro.sample("x", dist.Normal(slope * h, 0.8), obs=x)


def amortised(x):
    a = pyro.param("a", lambda: torch.randn((), dtype=torch.float64))
    with pyro.plate("data", len(x)):
        pyro.sample("h", dist.Normal(a * x, 0.6))


@pytest.mark.parametrize("patience", [None, 1])
def test_fits_repeat_by_seed_whatever_came_before(patience):
    strategy = SVI(amortised, optim=ADAM, max_steps=20, batch_size=3, patience=patience)
    run = partial(fit, local_latent, X, strategy=strategy, progress=False)
    with untouched():
        first = run(seed=7)
        fit(mixture, X, strategy=EM(max_steps=2), seed=1, progress=False)
        other, second = run(seed=8), run(seed=7)
    assert first.history.objective.tolist() == second.history.objective.tolist()
    assert first.history.objective.tolist() != other.history.objective.tolist()
    torch.testing.assert_close(first.params, second.params, atol=0, rtol=0)


def test_without_a_seed_the_callers_state_decides():
    run = partial(fit, local_latent, X, strategy=SVI(amortised, optim=ADAM, max_steps=5), progress=False)
    first, same = run(), run()
    torch.rand(1)
    other = run()
    assert first.objective == same.objective != other.objective


def test_one_optimiser_object_serves_many_fits():
    """Pyro's optimisers remember the parameters of earlier fits by name; moments must not carry over."""
    optim = pyro.optim.Adam({"lr": 0.05, "betas": (0.95, 0.999)})
    strategy = SVI(optim=optim, max_steps=10)
    first, second = (fit(mixture, X, strategy=strategy, progress=False) for _ in range(2))
    assert first.history.objective.tolist() == second.history.objective.tolist()
    assert not optim.optim_objs


def test_batch_statistics_are_put_back():
    """Buffers are no parameters, so Pyro does not report them, but running the guide moves them."""
    network = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).double()

    def guide(x):
        pyro.module("network", network)
        with pyro.plate("data", len(x)):
            pyro.sample("h", dist.Normal(network(x.unsqueeze(-1)).squeeze(-1), 0.6))

    before = contents(network)
    result = fit(local_latent, X, strategy=SVI(guide, optim=ADAM, max_steps=5), progress=False)
    assert contents(network) == before
    with result.use():
        assert network[1].num_batches_tracked > 0
    assert contents(network) == before


def test_simplex_parameters_stay_apart_between_fits():
    def model(x, num):
        weights = pyro.param("weights", torch.full((num,), 1 / num), constraint=simplex)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(z - 1.0, 1.0), obs=x)

    shapes = [fit(model, X, num, strategy=EM(max_steps=1), progress=False).params["weights"].shape for num in (2, 3, 4)]
    assert shapes == [(2,), (3,), (4,)]
