"""Random starts, and starts of one's own, find what the model's own initial values do not."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from shared.starts import (
    TRUE,
    answers,
    chains,
    classes,
    clusters,
    counts,
    f64,
    gated,
    mixture,
    network,
    poissons,
    run,
    sequences,
    starts_of,
)

from pyro_em import EM, KMeans, RandomDraws, RandomResponsibilities

# Random starts on any model -------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [RandomResponsibilities(), RandomResponsibilities(rows=6)])
def test_random_responsibilities_on_gaussians(start):
    result = run(mixture, clusters(), restarts=8, start=start, seed=5)
    torch.testing.assert_close(result.params["locs"].sort().values, TRUE, atol=0.4, rtol=0)


@pytest.mark.parametrize("start", [None, RandomResponsibilities(rows=6), RandomDraws()])
def test_starts_on_poissons(start):
    """From nearly equal rates."""
    result = run(poissons, counts(), restarts=8, start=start, tol=1e-4)
    torch.testing.assert_close(result.params["rates"].sort().values, f64([1.0, 8.0, 25.0]), atol=2.0, rtol=0)


@pytest.mark.parametrize("start", [None, RandomResponsibilities(rows=6), RandomDraws()])
def test_starts_on_latent_classes(start):
    """The model's own start has equal classes, which EM does not leave: only restarts can."""
    x = answers()
    assert run(classes, x).params["probs"].diff(dim=0).abs().max() < 1e-6
    probs = run(classes, x, restarts=4, start=start).params["probs"]
    truth = f64([0.9, 0.8, 0.9, 0.1, 0.2, 0.1])
    found = probs[probs[:, 0].argmax()]
    torch.testing.assert_close(found, truth, atol=0.2, rtol=0)


@pytest.mark.parametrize("start", [None, RandomResponsibilities(rows=8), RandomDraws(), KMeans("x_2")])
def test_starts_on_chains(start):
    """KMeans labels every latent, and finds the same clusters whatever its seeds."""
    result = run(chains, sequences(), restarts=4, start=start, max_steps=40)
    assert len(starts_of(result).unique()) == (1 if isinstance(start, KMeans) else 4)
    torch.testing.assert_close(result.params["locs"].sort().values, f64([-4.0, 4.0]), atol=0.6, rtol=0)
    torch.testing.assert_close(result.params["trans"].sum(-1), torch.ones(2))


@pytest.mark.parametrize("start", [None, RandomResponsibilities(rows=10), RandomDraws(0.5)])
def test_starts_on_a_network(start):
    x = clusters()[30:90]
    before = torch.nn.utils.parameters_to_vector((net := network()).parameters()).detach().clone()
    result = run(gated(net), x, restarts=3, start=start, max_steps=3)
    assert len(starts_of(result).unique()) == 3
    assert result.objective == pytest.approx(result.history.objective.max(), abs=1e-8)
    assert torch.equal(before, torch.nn.utils.parameters_to_vector(net.parameters()))


def test_random_draws_without_latents():
    def model(x):
        loc = pyro.param("loc", f64(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    for start in (RandomDraws(), RandomResponsibilities()):
        result = run(model, clusters(), restarts=2, start=start)
        assert result.params["loc"].item() == pytest.approx(clusters().mean().item(), abs=1e-6)


def test_random_draws_of_no_scale_are_the_models_own_start():
    plain, drawn = run(mixture, clusters(), max_steps=0), run(mixture, clusters(), max_steps=0, start=RandomDraws(0.0))
    torch.testing.assert_close(drawn.params, plain.params, atol=1e-12, rtol=0)


# Starts of one's own --------------------------------------------------------------------------------------


class Shifted:
    """Moves by a fixed amount in unconstrained coordinates, and counts how often it was asked."""

    def __init__(self, by):
        self.by, self.calls = by, 0

    def place(self, engine):
        self.calls += 1
        engine.move_to(engine.coordinates() + self.by)


@pytest.mark.parametrize("make", [lambda: mixture, lambda: gated(network())], ids=["compiled", "traced"])
def test_a_start_of_ones_own(make):
    """Moved by the same amount, a location moves by it and a scale by its exponential."""
    start, model = Shifted(0.25), make()
    plain, moved = run(model, clusters(), max_steps=0), run(model, clusters(), max_steps=0, start=start)
    assert start.calls == 1
    assert moved.objective == pytest.approx(run(model, clusters(), max_steps=0, init=moved).objective, abs=1e-9)
    torch.testing.assert_close(moved.params["locs"], plain.params["locs"] + 0.25)
    torch.testing.assert_close(moved.params["scale"].log(), plain.params["scale"].log() + 0.25)
    run(model, clusters(), max_steps=1, start=start, restarts=3)
    assert start.calls == 4


def test_a_start_of_ones_own_places_labels():
    """By the quarter of the data each row lies in."""

    class Quarters:
        def place(self, engine):
            (latent,) = engine.variables()
            engine.place({latent.name: torch.arange(4).repeat_interleave(30)}, {})

    x = clusters()
    start = run(mixture, x, start=Quarters(), max_steps=0).params
    torch.testing.assert_close(start["locs"], x.reshape(4, -1).mean(1), atol=1e-9, rtol=0)
    torch.testing.assert_close(start["weights"], torch.full((4,), 0.25), atol=1e-9, rtol=0)
    assert run(mixture, x, start=Quarters()).converged


def test_a_start_that_fails_leaves_nothing_behind():
    class Broken:
        def place(self, engine):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(mixture, clusters(), start=Broken())
    assert not dict(pyro.get_param_store())


# Hyperparameters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"restarts": 0}, ValueError, "restarts must be at least 1; got 0"),
        ({"restarts": -2}, ValueError, "restarts.*-2"),
        ({"start": "kmeans"}, TypeError, r"start must be a start object, such as KMeans\('x'\).*'kmeans'"),
        ({"start": 3}, TypeError, "start must be.*got 3"),
        ({"accelerate": "anderson"}, ValueError, "accelerate.*'squarem' or None.*'anderson'"),
        ({"accelerate": True}, ValueError, "accelerate.*True"),
        ({"on_degenerate": "ignore"}, ValueError, "on_degenerate.*'floor'.*'restart'.*'ignore'"),
        ({"on_degenerate": None}, ValueError, "on_degenerate.*None"),
    ],
)
def test_hyperparameters(options, error, match):
    with pytest.raises(error, match=match):
        EM(**options)
