"""SVI: the bound that is chosen, its units under minibatches, and how a run ends."""

from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from torch import Tensor
from torch.distributions.constraints import positive, simplex
from torch.utils.data import DataLoader, TensorDataset

from pyro_em import EM, SVI, Status, fit
from pyro_em.data import open_batches
from pyro_em.problem import Problem
from pyro_em.svi.objective import PyroBound
from pyro_em.svi.summed import SummedBound

X = torch.tensor([-2.1, -1.7, -1.4, 0.2, 0.9, 1.6, 1.9, 2.4, 2.6, 3.1], dtype=torch.float64)
ADAM = partial(torch.optim.Adam, lr=0.05)


def mixture(x: Tensor) -> None:
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=simplex)
    locs = pyro.param("locs", torch.tensor([-1.0, 1.5]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], 0.8), obs=x)


def noisy_mixture(x: Tensor) -> None:
    """A finite latent z above a continuous one c: z is summed out given the guide's c."""
    locs = pyro.param("locs", torch.tensor([-1.0, 1.5]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])))
        c = pyro.sample("c", dist.Normal(locs[z], 0.7))
        pyro.sample("x", dist.Normal(c, 0.4), obs=x)


def continuous_guide(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(0.7))
    scale = pyro.param("scale", torch.tensor(0.5), constraint=positive)
    with pyro.plate("data", len(x)):
        pyro.sample("c", dist.Normal(slope * x, scale))


def class_guide(x: Tensor, **infer: Any) -> None:
    slope = pyro.param("slope", torch.tensor(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Categorical(logits=torch.stack([-slope * x, slope * x], -1)), infer=infer)


def regression(x: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 0.5), obs=y)


def start(model: Any, *args: Any, strategy: SVI) -> Any:
    """The state of a run before its first step."""
    state: list[Any] = []

    class Spy(SVI):
        def init(self, problem: Problem) -> Any:
            state.append(super().init(problem))
            return state[0]

    fit(model, *args, strategy=Spy(**{k: getattr(strategy, k) for k in ("guide", "batch_size", "elbo")}, max_steps=0))
    return state[0]


# The bound ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "guide", "kind"),
    [
        (mixture, None, SummedBound),
        (noisy_mixture, continuous_guide, SummedBound),
        (mixture, partial(class_guide, enumerate="parallel"), TraceEnum_ELBO),
        (mixture, class_guide, TraceGraph_ELBO),
    ],
)
def test_bound_fits_the_latents(model: Any, guide: Any, kind: type) -> None:
    bound = start(model, X, strategy=SVI(guide)).bound
    assert isinstance(bound.elbo if isinstance(bound, PyroBound) else bound, kind)


def test_reparameterised_guide_gets_trace_elbo() -> None:
    bound = start(regression, X, 2 * X, strategy=SVI()).bound
    assert type(bound.elbo) is Trace_ELBO
    assert start(regression, X, 2 * X, strategy=SVI(elbo=TraceGraph_ELBO())).bound.elbo.__class__ is TraceGraph_ELBO


def test_summed_bound_estimates_the_same_elbo_as_pyro() -> None:
    """With c sampled and z summed out, Pyro's TraceEnum_ELBO has the same expectation."""
    ours = fit(noisy_mixture, X, strategy=SVI(continuous_guide, max_steps=0), progress=False)
    elbo = TraceEnum_ELBO(num_particles=4000, vectorize_particles=True, max_plate_nesting=1)
    theirs = -elbo.loss(pyro.infer.config_enumerate(noisy_mixture), continuous_guide, X)
    assert ours.objective == pytest.approx(theirs, abs=1.0)


def test_guide_that_enumerates_and_one_that_samples_reach_the_same_bound() -> None:
    exact = fit(
        mixture, X, strategy=SVI(partial(class_guide, enumerate="parallel"), optim=ADAM, max_steps=150), progress=False
    )
    drawn = fit(mixture, X, strategy=SVI(class_guide, optim=ADAM, max_steps=150), seed=0, progress=False)
    assert exact.objective <= exact.log_evidence
    assert drawn.objective == pytest.approx(exact.objective, abs=0.5)


def test_unguided_finite_latents_reach_the_optimum_of_em() -> None:
    svi = fit(mixture, X, strategy=SVI(optim=ADAM), progress=False)
    em = fit(mixture, X, strategy=EM(tol=1e-6), progress=False)
    assert svi.objective == svi.log_evidence
    assert svi.objective_kind == "elbo"
    assert svi.log_evidence == pytest.approx(em.log_evidence, abs=1e-3)


def test_amortised_bound_lies_below_the_exact_evidence() -> None:
    result = fit(mixture, X, strategy=SVI(partial(class_guide, enumerate="parallel"), max_steps=0), progress=False)
    assert result.log_evidence == pytest.approx(fit(mixture, X, strategy=EM(max_steps=0)).log_evidence, abs=1e-10)
    assert result.objective < result.log_evidence - 0.1


def test_automatic_guide_finds_the_conjugate_posterior() -> None:
    y = 1.5 * X + torch.tensor([0.3, -0.2] * 5)
    result = fit(regression, X, y, strategy=SVI(optim=ADAM, max_steps=250), seed=0, progress=False)
    precision = 1 / 4 + (X @ X) / 0.25
    draws = result.posterior().sample(500)["slope"]
    assert draws.mean().item() == pytest.approx(((X @ y) / 0.25 / precision).item(), abs=0.05)
    assert draws.std().item() == pytest.approx(precision.rsqrt().item(), rel=0.3)


# Minibatches ----------------------------------------------------------------------------------------------------------


def shared_weight(x: Tensor) -> None:
    """A term outside the plate: it must not be scaled by N / b."""
    loc = pyro.param("loc", torch.tensor(0.3))
    pyro.sample("pull", dist.Normal(loc, 1.0), obs=torch.tensor(2.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
        pyro.sample("x", dist.Normal(loc * z, 1.0), obs=x)


@pytest.mark.parametrize("size", [1, 3, 4, 10])
def test_batches_average_to_the_full_objective(size: int) -> None:
    """The mean over an epoch, weighted by batch size, is the full-data objective: unbiased, in the same units."""
    state = start(shared_weight, X, strategy=SVI(batch_size=size))
    full = fit(shared_weight, X, strategy=EM(max_steps=0)).log_evidence
    with pyro.get_param_store().scope():
        assert state.data.total(state.bound.value) == pytest.approx(full, abs=1e-10)


def test_short_last_batch_pulls_no_harder() -> None:
    """Under plain gradient ascent the steps of an epoch add up to one that weighs every row alike."""
    sgd = partial(torch.optim.SGD, lr=1e-6)
    starts = torch.tensor([-1.0, 1.5])
    batched = fit(mixture, X, strategy=SVI(optim=sgd, batch_size=4, max_epochs=1), seed=0, progress=False)
    whole = fit(mixture, X, strategy=SVI(optim=sgd, max_steps=1), progress=False)
    moved = (batched.params["locs"] - starts) / (whole.params["locs"] - starts)
    torch.testing.assert_close(moved, torch.full((2,), 10 / 4), atol=1e-3, rtol=0.0)


def test_batch_plate_is_told_from_a_plate_of_the_same_size() -> None:
    def model(x: Tensor) -> None:
        locs = pyro.param("locs", torch.tensor([-1.0, 1.5]))
        with pyro.plate("components", 2):
            pyro.sample("pull", dist.Normal(locs, 1.0), obs=torch.zeros(2))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(locs.mean(), 1.0), obs=x)

    assert start(model, X, strategy=SVI(batch_size=2)).data.batch_plates == {"data"}


def test_plates_that_pyro_scales_are_left_alone() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.3))
        with pyro.plate("data", len(X), subsample_size=len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    state = start(model, X, strategy=SVI(batch_size=5))
    assert state.data.batch_plates == frozenset()
    full = dist.Normal(0.3, 1.0).log_prob(X).sum().item()
    with pyro.get_param_store().scope():
        assert state.data.total(state.bound.value) == pytest.approx(full, abs=1e-5)


@pytest.mark.parametrize("shape", ["tuple", "dict", "tensor"])
def test_loader_unpacks_its_batches(shape: str) -> None:
    rows = [{"x": x} for x in X] if shape == "dict" else TensorDataset(X) if shape == "tuple" else X
    loader = DataLoader(rows, batch_size=4, shuffle=True)
    result = fit(mixture, loader, strategy=SVI(optim=ADAM, max_epochs=3), seed=0, progress=False)
    assert result.n_steps == 9
    with result.use():
        exact = -TraceEnum_ELBO().loss(pyro.infer.config_enumerate(mixture), lambda x: None, X)
    assert result.log_evidence == pytest.approx(exact, abs=1e-8)
    assert result.posterior()["z"].batch_shape == (len(X),)


def test_epoch_visits_every_row_once() -> None:
    for batches in (open_batches((X, "flag"), {}, 4), open_batches((DataLoader(TensorDataset(X), 4, True),), {}, None)):
        assert batches is not None
        rows = torch.cat([batch.args[0] for batch in batches.epoch()])
        assert torch.equal(rows.sort().values, X)
        assert torch.equal(batches.whole()[0][0], X)


# How a run ends -------------------------------------------------------------------------------------------------------


def test_non_finite_loss_keeps_the_last_good_parameters() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).mask(loc > 0.5), obs=x)
        pyro.factor("cliff", torch.where(loc > 0.5, -4 * loc, -torch.inf))

    sgd = partial(torch.optim.SGD, lr=0.1)
    result = fit(model, torch.ones(3), strategy=SVI(optim=sgd, patience=None), progress=False)
    assert result.status is Status.NON_FINITE
    assert not result.converged
    assert result.params["loc"] > 0.5
    assert torch.isfinite(torch.tensor(result.objective))


def test_patience() -> None:
    stopped = fit(mixture, X, strategy=SVI(optim=ADAM, patience=50), progress=False)
    assert stopped.status is Status.PLATEAU
    assert stopped.converged
    going = fit(mixture, X, strategy=SVI(optim=ADAM, patience=None, max_steps=stopped.n_steps + 20), progress=False)
    assert going.status is Status.MAX_STEPS
    assert not going.converged
    assert going.n_steps == stopped.n_steps + 20


def test_fixed_parameters_do_not_move() -> None:
    result = fit(mixture, X, strategy=SVI(optim=ADAM, fixed=("locs",), max_steps=20), progress=False)
    assert torch.equal(result.params["locs"], torch.tensor([-1.0, 1.5]))
    assert not torch.equal(result.params["weights"], torch.tensor([0.4, 0.6]))


@pytest.mark.parametrize(
    "optim",
    [
        pyro.optim.Adam({"lr": 0.05}),
        pyro.optim.ClippedAdam({"lr": 0.05, "clip_norm": 5.0}),
        pyro.optim.Adam(lambda name: {"lr": 0.1 if name == "locs" else 0.02}, {"clip_norm": 1.0}),
        pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.999}),
        partial(torch.optim.RMSprop, lr=0.01),
    ],
)
def test_optimisers(optim: Any) -> None:
    result = fit(mixture, X, strategy=SVI(optim=optim, max_steps=200), progress=False)
    best = fit(mixture, X, strategy=EM(tol=1e-6), progress=False).log_evidence
    assert result.log_evidence == pytest.approx(best, abs=0.05)


def test_results_repeat_by_seed() -> None:
    runs = [fit(mixture, X, strategy=SVI(class_guide, max_steps=30), seed=s, progress=False) for s in (1, 1, 2)]
    assert runs[0].history["objective"].equals(runs[1].history["objective"])
    assert not runs[0].history["objective"].equals(runs[2].history["objective"])
