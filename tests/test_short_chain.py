"""E-steps of short chains on arrays, against the same chains by tensors."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from chain_models import MODELS, K, free, holes, law, numbers

import pyro_em.compiled.short_chain as short
from pyro_em import EM, fit


def masked(x):
    """Elements that are missing each on its own."""
    init, trans, locs = law("init", K), law("trans", K, K), free("locs", K, 2)
    with pyro.plate("sequences", x.shape[0]):
        z = None
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[z]))
            seen = dist.Normal(locs[z], 0.7).mask(~x[:, t].isnan()).to_event(1)
            pyro.sample(f"x_{t}", seen, obs=x[:, t].nan_to_num())


def onehot(x):
    """States that some data exclude, and a site as a whole."""
    init, trans = law("init", K), law("trans", K, K)
    probs = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5], [0.0, 0.4, 0.6]], dtype=torch.float64)
    probs = pyro.param("probs", probs, constraint=dist.constraints.simplex)
    z = None
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[z]))
        pyro.sample(f"x_{t}", dist.Categorical(probs[z]), obs=x[t])


ALL = {
    **MODELS,
    "masked": (masked, (torch.where(numbers(4, 9, 2, seed=2) > 1, torch.nan, numbers(4, 9, 2)),)),
    "holes": (masked, (holes(),)),
    "onehot": (onehot, (torch.tensor([2, 0, 1, 1, 0, 2, 1, 2]),)),
}
ARRAYS = {"series", "ragged", "missing", "masked", "holes", "left_to_right", "with_priors", "matrices", "onehot"}


PLATED = [name for name, (_, data) in ALL.items() if data[0].dim() > 1 and name != "matrices"]
CASES = [(name, None) for name in ALL] + [(name, (1.0, 0.0, 2.5, 0.3)) for name in PLATED]


@pytest.mark.parametrize(("name", "weights"), CASES)
def test_arrays_say_what_tensors_say(name, weights, monkeypatch):
    model, data = ALL[name]
    weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    strategy = EM(max_steps=4, tol=0)
    used = []
    expect = short.ShortChain.expect
    monkeypatch.setattr(short.ShortChain, "expect", lambda self, *a: used.append(self) or expect(self, *a))
    found = fit(model, *data, strategy=strategy, weights=weights, progress=False)
    assert bool(used) == (name in ARRAYS)
    monkeypatch.setattr(short, "MOST", 0)
    other = fit(model, *data, strategy=strategy, weights=weights, progress=False)
    torch.testing.assert_close(found.params, other.params, rtol=1e-11, atol=1e-13)
    assert found.history.objective.tolist() == pytest.approx(other.history.objective.tolist(), rel=1e-12)


def test_nan_is_not_impossible():
    """Of tables: a parameter that is not a number must not pass for a probability of zero."""
    coefficients, out = torch.tensor([float("nan"), -1e30, 2.0], dtype=torch.float64).numpy(), torch.zeros(3).double()
    index = torch.arange(3).reshape(1, 3).numpy()
    ones, base = torch.ones(1, 3).double().numpy(), torch.zeros(3).double().numpy()
    short.fill_table(coefficients, index, ones, base, out.numpy())
    assert out[0].isnan() and out[1:].tolist() == [-torch.inf, 2.0]
    rows = torch.zeros(2, 3).double()
    short.fill_emission(coefficients, index, torch.ones(1, 2).double().numpy(), rows.numpy())
    assert rows[:, 0].isnan().all() and rows[:, 1:].tolist() == [[-torch.inf, 2.0]] * 2
