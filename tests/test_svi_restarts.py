"""Restarts of SVI: where they begin, what is kept, and that the best of them is what comes back."""

from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions.constraints import positive, simplex
from untouched import untouched

from pyro_em import EM, SVI, FitResult, Status, fit

X = torch.tensor([-9.1, -8.7, -9.4, 0.2, 0.4, -0.3, 8.9, 9.2, 8.8, 9.1], dtype=torch.float64)
ADAM = partial(torch.optim.Adam, lr=0.1)
STILL = partial(torch.optim.SGD, lr=0.0)


def fitted(model: Any, strategy: SVI, *args: Any, seed: int = 0, **options: Any) -> FitResult:
    return fit(model, *(args or (X,)), strategy=strategy, seed=seed, progress=False, **options)


def mixture(x: Tensor) -> None:
    """Its own start puts two components on one cluster."""
    weights = pyro.param("weights", torch.ones(3) / 3, constraint=simplex)
    locs = pyro.param("locs", torch.tensor([8.0, 9.0, -4.0]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


def random_mixture(x: Tensor) -> None:
    """The same with initial values that the model draws."""
    pyro.param("locs", lambda: 9 * torch.randn(3))
    mixture(x)


def finals(result: FitResult) -> list[float]:
    return result.history.groupby("restart")["objective"].last().tolist()


def test_the_best_run_is_kept_and_all_are_in_the_history() -> None:
    one = fitted(random_mixture, SVI(optim=ADAM, max_steps=150))
    best = fitted(random_mixture, SVI(optim=ADAM, max_steps=150, restarts=8))
    runs = best.history.groupby("restart")["step"].last()
    assert runs.index.tolist() == list(range(8))
    first = best.history[best.history["restart"] == 0]["objective"]
    assert first.tolist() == one.history["objective"].tolist()  # the first start is the model's own
    assert best.objective > one.objective + 10
    assert best.objective >= max(finals(best)) - 1e-6  # the objective of the last row is that before its step
    again = fit(random_mixture, X, strategy=EM(max_steps=0), init=best, progress=False)
    assert again.log_evidence == pytest.approx(best.log_evidence, abs=1e-9)
    assert best.posterior().log_evidence == pytest.approx(best.log_evidence, abs=1e-9)


def test_steps_and_status_are_those_of_the_best_run() -> None:
    result = fitted(random_mixture, SVI(optim=ADAM, patience=20, restarts=5))
    steps = result.history.groupby("restart")["step"].last()
    best = int(torch.tensor(finals(result)).argmax())
    assert steps.nunique() > 1
    assert result.n_steps == steps[best]
    assert result.status is Status.PLATEAU


def test_a_deterministic_start_is_moved() -> None:
    result = fitted(mixture, SVI(optim=STILL, max_steps=1, restarts=4))
    starts = finals(result)
    assert len({round(v, 6) for v in starts}) == 4
    assert result.objective == pytest.approx(max(starts), abs=1e-9)


def test_what_the_model_draws_is_not_moved_further() -> None:
    """All starts are draws of the model: integers here, which noise would not leave integer."""

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", lambda: torch.randint(1000, ()).double())
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 100.0), obs=x)

    result = fitted(model, SVI(optim=STILL, max_steps=1, restarts=5))
    assert len(set(finals(result))) == 5
    assert result.params["loc"].item() == int(result.params["loc"].item())


def test_fixed_parameters_and_given_ones_stay() -> None:
    result = fitted(mixture, SVI(optim=ADAM, max_steps=5, restarts=4, fixed=("weights",)))
    assert torch.equal(result.params["weights"], torch.nn.functional.softmax((torch.ones(3) / 3).log(), -1))
    locs = torch.tensor([1.0, 2.0, 3.0])
    given = fitted(mixture, SVI(optim=STILL, max_steps=1, restarts=4), init={"locs": locs})
    assert torch.equal(given.params["locs"], locs)


def test_results_repeat_by_seed_and_leave_no_trace() -> None:
    strategy = SVI(optim=ADAM, max_steps=10, restarts=3)
    with untouched():
        one = fitted(random_mixture, strategy, seed=1)
    two, other = fitted(random_mixture, strategy, seed=1), fitted(random_mixture, strategy, seed=2)
    columns = ["step", "restart", "objective"]
    assert one.history[columns].equals(two.history[columns])
    assert not one.history["objective"].equals(other.history["objective"])


class Encoder(nn.Module):
    """A network with weights that reset themselves, a number that does not, and running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.layer = nn.Linear(1, 2)
        self.shift = nn.Parameter(torch.tensor(0.25))

    def forward(self, x: Tensor) -> dist.Normal:
        loc, log_scale = self.layer(self.norm(x[:, None])).unbind(-1)
        return dist.Normal(loc + self.shift, log_scale.exp())


def factor_analysis(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(5.0), constraint=positive)
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(slope * c, 2.0), obs=x)


def test_networks_draw_their_weights_anew_and_are_put_back() -> None:
    encoder, starts = Encoder(), []

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        starts.append((encoder.layer.weight.detach().clone(), encoder.shift.item()))
        with pyro.plate("data", len(x)):
            pyro.sample("c", encoder(x))

    before = {n: v.clone() for n, v in encoder.state_dict().items()}
    result = fitted(factor_analysis, SVI(guide, optim=ADAM, max_steps=10, restarts=4))
    assert all(torch.equal(v, before[n]) for n, v in encoder.state_dict().items())
    seen = torch.stack([w for w, _ in starts])
    assert seen.abs().max() < 4  # Linear draws within (-1, 1); noise of scale one would add to it
    assert len({s for _, s in starts if s != 0.25}) > 3  # moved by noise, having no reset
    # The fitted weights belong to the fitted running statistics: those of the best run, not of the last.
    with result.use():
        torch.testing.assert_close(encoder.layer.weight.detach(), result.params["encoder$$$layer.weight"])
        assert encoder.norm.num_batches_tracked > 0


def test_running_statistics_are_those_of_the_best_run() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.tensor(1.0))
            self.register_buffer("tag", torch.tensor(0.0))

    counter = Counter()

    def model(x: Tensor) -> None:
        pyro.module("counter", counter)
        counter.tag.fill_(float(counter.loc.detach()))  # what a running statistic does: it follows the parameters
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(counter.loc, 1.0), obs=x)

    result = fitted(model, SVI(optim=STILL, max_steps=1, restarts=6))
    assert int(torch.tensor(finals(result)).argmax()) != 5
    with result.use():
        assert counter.tag.item() == result.params["counter$$$loc"].item()
    assert (counter.loc.item(), counter.tag.item()) == (1.0, 0.0)


def test_an_automatic_guide_is_that_of_the_best_run() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        scale = pyro.param("scale", lambda: 20 * torch.rand(()) + 0.5, constraint=positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, scale), obs=x)

    result = fitted(model, SVI(optim=STILL, max_steps=1, restarts=5))
    draws = result.posterior().sample(400)["loc"]
    assert draws.mean().item() == pytest.approx(result.params["AutoNormal.locs.loc"].item(), abs=0.2)
    with result.use():
        assert pyro.param("AutoNormal.locs.loc").item() == result.params["AutoNormal.locs.loc"].item()


def test_at_least_one_start() -> None:
    with pytest.raises(ValueError, match="restarts must be at least 1; got 0"):
        SVI(restarts=0)
