"""What other EM libraries wrongly call convergence, and tolerances that they do not keep.

The headings name where it was reproduced: hmmlearn, pycave, scikit-learn, torchgmm.
"""

from functools import partial

import pytest
import torch
from shared.peers import FAST, X, every_em, mixture, run
from shared.starts import f64

from models import gaussian_mixture, poisson_mixture
from pyro_em import EM, GradientMStep, Status

# What is called convergence (hmmlearn, torchgmm, pycave) --------------------------------------------------


@every_em
def test_a_cap_is_never_convergence(em):
    result = run(mixture, X, strategy=em(max_steps=2, tol=1e6), seed=1)
    assert result.status is Status.MAX_STEPS and not result.converged


def test_a_cap_on_svi_is_never_convergence():
    for options in ({"max_steps": 3}, {"max_epochs": 3}, {"max_epochs": 2, "batch_size": 4}):
        result = run(mixture, X, strategy=FAST(**options))
        assert result.status is Status.MAX_STEPS and not result.converged


def test_a_fall_is_never_convergence():
    """The data move off after the second step, and one small update cannot make up for it."""
    moved = torch.zeros(())

    def model(x):
        mixture(x + moved)

    def move(info):
        moved.fill_(3.0 if info.step >= 2 else 0.0)

    strategy = EM(m_step=GradientMStep(partial(torch.optim.SGD, lr=1e-5)), tol=1e3, on_decrease="revert")
    result = run(model, X, strategy=strategy, callbacks=[move])
    assert result.status is Status.DECREASED and not result.converged


def test_what_converged_is_finite():
    """An inverted flag let NaN parameters pass for converged."""
    for strategy in (EM(), EM(accelerate="squarem"), FAST(max_steps=4000, patience=100)):
        result = run(mixture, X, strategy=strategy)
        assert result.converged
        assert all(torch.isfinite(v).all() for v in result.params.values())


# What a tolerance means (scikit-learn) --------------------------------------------------------------------

# The maximum to 13 digits is that of SciPy's Nelder-Mead on the log-likelihood written out.
COUNTS = (162, 267, 271, 185, 111, 61, 27, 8, 3, 1)
DEATHS = torch.arange(10).to(torch.float64).repeat_interleave(torch.tensor(COUNTS))
DEATHS_MAXIMUM = -1989.9458598830
FAITHFUL_MAXIMUM = -1130.2639602


def test_the_deaths_are_hasselblads():
    assert torch.equal(DEATHS.sort().values, poisson_mixture.load()[0].to(torch.float64).sort().values)


@pytest.mark.parametrize("accelerate", [None, "squarem"])
@pytest.mark.parametrize("tol", [1.0, 1e-1, 1e-3, 1e-6])
def test_the_deaths_to_within_the_tolerance(tol, accelerate):
    result = run(poisson_mixture.model, DEATHS, strategy=EM(tol=tol, max_steps=5000, accelerate=accelerate))
    assert result.converged
    assert -1e-9 < DEATHS_MAXIMUM - result.objective < tol


def test_a_rule_on_the_last_gain_stops_early_on_the_deaths():
    """So that the test above has teeth; the weights such a rule calls converged are the start's."""
    result = run(poisson_mixture.model, DEATHS, strategy=EM(tol=1e-6, max_steps=5000))
    objective = result.history.objective
    last_gain = int((objective.diff().iloc[1:] < 1e-3).to_numpy().argmax()) + 1
    assert DEATHS_MAXIMUM - objective.iloc[last_gain] > 0.05
    assert result.params["weights"].sort().values.tolist() == pytest.approx([0.3599, 0.6401], abs=2e-3)


@pytest.mark.parametrize("accelerate", [None, "squarem"])
@pytest.mark.parametrize("tol", [1e-1, 1e-3, 1e-6])
def test_old_faithful_to_within_the_tolerance(tol, accelerate):
    model, data = gaussian_mixture.model, gaussian_mixture.load()
    result = run(model, *data, strategy=EM(tol=tol, accelerate=accelerate))
    assert result.converged
    assert -1e-6 < FAITHFUL_MAXIMUM - result.objective < tol + 1e-7


@pytest.mark.parametrize("accelerate", [None, "squarem"])
def test_a_slow_mixture_to_within_the_tolerance(accelerate):
    """Components that overlap: weights .368/.632 and .239/.761 both passed for converged."""
    generator = torch.Generator().manual_seed(2)
    z = (torch.rand(400, generator=generator) < 0.25).to(torch.float64)
    x = 1.5 * z + torch.randn(400, generator=generator, dtype=torch.float64)
    best = run(mixture, x, strategy=EM(tol=1e-9, max_steps=20000, accelerate="squarem"), init={"scale": f64(1.5)})
    result = run(mixture, x, strategy=EM(tol=1e-2, max_steps=20000, accelerate=accelerate), init={"scale": f64(1.5)})
    assert best.converged and result.converged
    assert best.objective - result.objective < 1e-2
