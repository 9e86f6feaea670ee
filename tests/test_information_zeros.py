"""Probabilities that stay at zero are constants: neither counted as parameters nor with errors of their own."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from shared.information import draws, fitted
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import simplex

from pyro_em.diagnostics.freedom import Freedom, free_dimensions
from pyro_em.params import Leaf

# Five series: their states by time, and noise.
PATHS = [
    [0, 0, 0, 1, 1, 1, 2, 2],
    [0, 0, 2, 2, 2, 2, 2, 2],
    [0, 1, 1, 1, 2, 2, 2, 2],
    [0, 0, 0, 0, 0, 2, 2, 2],
    [0] * 8,
]
X = torch.tensor([0.0, 3.0, -3.0])[torch.tensor(PATHS)].double() + draws(5, 8)
ROWS = {2: [[0.5, 0.5], [0.0, 1.0]], 3: [[0.8, 0.1, 0.1], [0.0, 0.9, 0.1], [0.0, 0.0, 1.0]]}


def observe(x: Tensor, trans: Tensor) -> None:
    locs = pyro.param("locs", torch.tensor([0.0, 3.0, -3.0])[: len(trans)])
    z: Any = 0
    with pyro.plate("series", len(x)):
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(trans[z]))
            pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[:, t])


def with_zeros(x: Tensor, states: int) -> None:
    observe(x, pyro.param("trans", torch.tensor(ROWS[states]), constraint=simplex))


def with_constants(x: Tensor, states: int) -> None:
    """The same, each row a parameter over the states that may follow, the last row a constant."""
    rows = []
    for i, row in enumerate(ROWS[states][:-1]):
        found = pyro.param(f"row{i}", torch.tensor(row[i:]), constraint=simplex)
        rows.append(torch.cat([torch.zeros(i), found]))
    observe(x, torch.stack([*rows, torch.tensor(ROWS[states][-1])]))


@pytest.mark.parametrize("states", [2, 3])
def test_as_if_zeros_were_written_as_constants(states: int) -> None:
    x = X if states == 3 else X.abs()
    one, other = fitted(with_zeros, x, states), fitted(with_constants, x, states)
    assert one.num_params == other.num_params == {2: 3, 3: 6}[states]
    assert one.aic == pytest.approx(other.aic, abs=1e-8)
    assert one.log_evidence - one.num_params == pytest.approx(-one.aic / 2, abs=1e-9)
    expected = torch.zeros(states, states)
    for i in range(states - 1):
        expected[i, i:] = other.stderr()[f"row{i}"]
    assert torch.equal(one.stderr()["trans"] == 0, expected == 0)
    torch.testing.assert_close(one.stderr()["trans"], expected, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(one.stderr()["locs"], other.stderr()["locs"], rtol=1e-5, atol=1e-9)
    labels = [f"trans[0,{i}]" for i in range(states)]
    found = one.confint().loc[labels], one.vcov().loc[labels, "locs[0]"]
    labels = [f"row0[{i}]" for i in range(states)]
    np.testing.assert_allclose(found[0], other.confint().loc[labels], rtol=1e-5)
    np.testing.assert_allclose(found[1], other.vcov().loc[labels, "locs[0]"], rtol=1e-5, atol=1e-9)


def test_intervals_of_constants_are_points() -> None:
    bounds = fitted(with_zeros, X, 3).confint()
    assert bounds.loc["trans[1,0]"].tolist() == [0.0, 0.0]
    assert bounds.loc["trans[2,2]"].tolist() == [1.0, 1.0]
    assert not bounds.isna().any(axis=None)


def test_free_directions_leave_zeros_alone() -> None:
    zeros = torch.tensor([[False, True, False, False], [True, True, True, False], [False] * 4])
    u = draws(3, 4)
    leaf = Leaf("p", u, constraints.simplex, zeros)
    freedom = Freedom(leaf)
    assert free_dimensions(leaf) == freedom.size == 2 + 0 + 3
    assert not freedom.basis[zeros].any()
    jacobian = torch.autograd.functional.jacobian(lambda v: v.masked_fill(zeros, -torch.inf).softmax(-1), u)
    slope = torch.block_diag(*freedom.slope)
    jacobian = jacobian.reshape(12, 12)
    torch.testing.assert_close(slope @ slope.mT, jacobian @ jacobian.mT)
    table = freedom.scattered(torch.arange(1.0, 6.0))
    assert torch.equal(freedom.gathered(table), torch.arange(1.0, 6.0))
