"""At its end a fit of large data compares each argument, on the first rows, with what probing found at the start."""

from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from arguments import CASES, Case
from torch import Tensor
from torch.distributions import constraints

from pyro_em import EM, fit
from pyro_em.compiled.plan import make_plan
from pyro_em.em.checks import LARGE, look_at, prepare
from pyro_em.graph import Intervention
from pyro_em.params import ParamSpace
from pyro_em.probing import explains, probe
from pyro_em.problem import Problem
from pyro_em.rng import isolated_rng

f64 = partial(torch.tensor, dtype=torch.float64)
X = torch.cat([torch.linspace(-3, -1, 10), torch.linspace(2, 4, 10)]).double()


def explained(case: Case, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> tuple[bool, bool]:
    """Whether probing found a route for every argument, and whether these routes still hold after a change of the
    unconstrained parameters.
    """
    model, args, kwargs = case.make()
    space = ParamSpace(model, None, args, kwargs)
    problem = Problem(model, args, kwargs, space, lambda: space.start_from(case.given or {}))
    with isolated_rng(0), space.active():
        prepared = prepare(problem, look_at(problem, (args, kwargs)))
        look = prepared.inference.program, space, *prepared.data, Intervention()
        probed = probe(*look)
        space.restore(change(space.snapshot()))
        known = make_plan(probed, {}, False, ()).is_complete
        return known, explains(probed, *look)


@pytest.mark.parametrize("case", [case for case in CASES if case.refusal is None], ids=repr)
def test_routes_hold_at_other_parameters(case: Case) -> None:
    known, holds = explained(case, lambda at: {n: u + 0.1 * torch.randn_like(u) for n, u in at.items()})
    assert holds == known


def parting(x: Tensor, wider: float) -> None:
    """Becomes another model where a mean passes 1.8, by way of numpy: probing has nothing to see it by."""
    weights = pyro.param("weights", f64([0.5, 0.5]), constraint=constraints.simplex)
    locs = pyro.param("locs", f64([-0.1, 0.1]))
    scale = pyro.param("scale", f64(1.0), constraint=constraints.positive)
    factor = wider if locs.detach().numpy()[1] > 1.8 else 1.0
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], scale * factor), obs=x)


@pytest.mark.parametrize("wider", [1.0, 1.0 + 1e-6])
def test_a_millionth_is_seen_in_an_argument(wider: float) -> None:
    """It is not in the log evidence, which is level at the maximum."""
    case = Case("parting", lambda: (parting, (X, wider), {}), {})
    assert explained(case, lambda at: at | {"locs": f64([-2.0, 2.0])}) == (True, wider == 1.0)


@pytest.mark.parametrize("max_steps", [3, 30])
def test_the_objective_of_large_data_is_that_of_the_program(max_steps: int) -> None:
    copies = LARGE // len(X) + 1
    found = fit(parting, X.repeat(copies), 2.0, strategy=EM(max_steps=max_steps, tol=0), progress=False)
    weights, locs, scale = (found.params[n] for n in ("weights", "locs", "scale"))
    assert (locs[1] > 1.8) == (max_steps == 30)
    by_state = dist.Normal(locs, scale * (2.0 if locs[1] > 1.8 else 1.0)).log_prob(X.unsqueeze(-1)) + weights.log()
    by_hand = copies * by_state.logsumexp(-1).sum().item()
    assert found.objective == found.log_evidence == pytest.approx(by_hand, rel=1e-12)
