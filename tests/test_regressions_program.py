"""Where the tensors of a fit and the program part ways, what is reported is what the program says."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.constraints import positive, simplex

from pyro_em import EM, fit

f64 = partial(torch.tensor, dtype=torch.float64)
fit = partial(fit, progress=False)
X = torch.cat([torch.linspace(-3, -1, 10), torch.linspace(2, 4, 10)]).double()


def parting(x):
    """Becomes another model where a mean passes 1.8, by way of numpy: probing has nothing to see it by."""
    weights = pyro.param("weights", f64([0.5, 0.5]), constraint=simplex)
    locs = pyro.param("locs", f64([-0.1, 0.1]))
    scale = pyro.param("scale", f64(1.0), constraint=positive)
    wider = 2.0 if locs.detach().numpy()[1] > 1.8 else 1.0
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], scale * wider), obs=x)


def by_hand(params):
    wider = 2.0 if params["locs"][1] > 1.8 else 1.0
    by_state = dist.Normal(params["locs"], params["scale"] * wider).log_prob(X.unsqueeze(-1)) + params["weights"].log()
    return by_state.logsumexp(-1).sum().item()


@pytest.mark.parametrize("max_steps", [3, 30])
def test_the_objective_is_that_of_the_parameters_in_place(max_steps):
    found = fit(parting, X, strategy=EM(max_steps=max_steps, tol=0))
    assert (found.params["locs"][1] > 1.8) == (max_steps == 30)
    assert found.objective == found.log_evidence == pytest.approx(by_hand(found.params), abs=1e-9)


def test_a_fit_goes_on_by_the_program_from_where_its_tensors_end():
    found = fit(parting, X, strategy=EM())
    assert found.converged
    assert found.objective == pytest.approx(by_hand(found.params), abs=1e-9)
    assert found.params["scale"].item() == pytest.approx(0.3191, abs=1e-3)  # half of that of either cluster
