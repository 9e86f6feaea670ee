"""Where the gradient owns a few sites of a long model, the M-step runs the model no further than those."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from chain_models import MODELS
from pyro_style import music
from torch import Tensor
from torch.distributions import constraints

from models import poisson_hmm
from pyro_em import EM, fit
from pyro_em.em.part import Part

X = torch.tensor([2.0, 7.0, 9.0, 1.0, 0.0, 3.0, 8.0, 12.0, 6.0, 1.0], dtype=torch.float64)


def late(x: Tensor) -> None:
    """What the gradient owns is in the middle; a clamp keeps it from tensors."""
    trans = pyro.param("trans", torch.tensor([[0.8, 0.2], [0.3, 0.7]]), constraint=constraints.simplex)
    locs = pyro.param("locs", torch.tensor([1.0, 8.0]))
    shift = pyro.param("shift", torch.tensor(0.3))
    z = torch.tensor(0)
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(trans[z]))
        loc = locs[z] + (shift.clamp(max=4.0) if t in (3, 5) else 0.0)
        pyro.sample(f"x_{t}", dist.Normal(loc, 2.0), obs=x[t])


def tones(x: Tensor) -> None:
    chords = (x.reshape(2, 5, 1) > torch.tensor([1.0, 5.0])).to(x)
    music.raftery(chords, torch.tensor([5, 4]), 2)


CASES: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "stationary": MODELS["stationary"],
    "poisson": (poisson_hmm.stationary, (X,)),
    "late": (late, (X,)),
    "tones": (tones, (X,)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_part_of_q_is_climbed_as_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, args = CASES[name]
    strategy = EM(max_steps=4, tol=0)
    by_part = fit(model, *args, strategy=strategy, progress=False)
    assert "gradient" in set(by_part.explain()["owner"])
    monkeypatch.setattr(Part, "of", lambda *_: None)
    by_whole = fit(model, *args, strategy=strategy, progress=False)
    assert by_part.objective > by_part.history["objective"].iloc[0] + 1e-3
    assert by_part.objective == pytest.approx(by_whole.objective, abs=1e-5)


def test_runs_end_at_the_last_site_that_needs_them() -> None:
    """A stationary start needs the first site only."""
    begun, ended = 0, 0

    def counted(x: Tensor) -> None:
        nonlocal begun, ended
        begun += 1
        poisson_hmm.stationary(x)
        ended += 1

    fit(counted, X, strategy=EM(max_steps=0), progress=False)
    of_start = begun
    assert begun == ended
    fit(counted, X, strategy=EM(max_steps=6, tol=0), progress=False)
    assert begun - ended > 12  # an M-step takes a few runs of L-BFGS
    # Beside the start, one whole run for each E-step, and a few that hold the first M-step's part against the whole.
    assert ended - 2 * of_start <= 6 + 4


def test_a_part_that_gains_what_the_whole_does_not_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = EM(max_steps=4, tol=0)
    right = Part.q

    def wrong(self: Part, weights: Any, stats: Any) -> Callable[[], Tensor]:
        q = right(self, weights, stats)
        return lambda: -q()

    monkeypatch.setattr(Part, "q", wrong)
    spoilt = fit(poisson_hmm.stationary, X, strategy=strategy, progress=False)
    monkeypatch.setattr(Part, "of", lambda *_: None)
    whole = fit(poisson_hmm.stationary, X, strategy=strategy, progress=False)
    assert spoilt.objective == pytest.approx(whole.objective, abs=1e-9)


def test_a_model_that_was_stopped_leaves_nothing_behind() -> None:
    """Plates and chains that a run did not leave by themselves are left all the same."""
    fit(poisson_hmm.stationary, X.reshape(2, 5), strategy=EM(max_steps=3, tol=0), progress=False)
    assert pyro.poutine.runtime._PYRO_STACK == []
    assert pyro.poutine.runtime._DIM_ALLOCATOR._stack == []
    again = fit(poisson_hmm.stationary, X.reshape(2, 5), strategy=EM(max_steps=3, tol=0), progress=False)
    assert again.history["objective"].is_monotonic_increasing
