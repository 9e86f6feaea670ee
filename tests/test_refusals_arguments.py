"""Starts, data and guides that cannot be used are refused, and nothing changes."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.constraints import positive, simplex
from torch.utils.data import DataLoader, TensorDataset
from untouched import refused, untouched

from pyro_em import EM, SVI, ModelError, StartError, Status, fit

X = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
BOTH = pytest.mark.parametrize("strategy", [EM(max_steps=2), SVI(max_steps=2)], ids=["em", "svi"])


def mixture(x, shares=(0.4, 0.6), loc=(-1.0, 1.0), scale=1.0):
    weights = pyro.param("weights", torch.tensor(shares), constraint=simplex)
    loc = pyro.param("loc", torch.tensor(loc))
    scale = pyro.param("scale", torch.tensor(scale), constraint=positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], scale), obs=x)


def factor_model(x):
    """One continuous latent per datum, one for all."""
    with pyro.plate("data", len(x)):
        h = pyro.sample("h", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(h * pyro.param("slope", torch.tensor(1.0)), 1.0), obs=x)


# Starts ---------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("init", "match"),
    [
        ({"locs": torch.zeros(2)}, r"\['locs'\].*\['loc', 'scale', 'weights'\]"),
        ({"loc": torch.zeros(3)}, r"'loc' has shape \(2,\); init gives \(3,\)"),
        ({"scale": torch.tensor(-1.0)}, "'scale' must satisfy.*-1"),
        ({"weights": torch.tensor([0.5, 0.6])}, "'weights' must satisfy.*0.6"),
        ({"loc": torch.tensor([0.0, torch.nan])}, "'loc'.*nan"),
        ({"loc": torch.tensor([0.0, torch.inf])}, "'loc'.*boundary.*finite"),
        ({"scale": torch.tensor(0.0)}, "'scale'.*"),
    ],
)
def test_init(init, match, strategy):
    """A good value beside the bad one is not written either."""
    with refused(StartError, match):
        fit(mixture, X, strategy=strategy, init={"loc": torch.ones(2), **init}, progress=False)


def one_normal(x):
    loc = pyro.param("centre", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


@BOTH
def test_init_by_a_result_of_another_model(strategy):
    """No name of it fits: the fit began at the model's own start."""
    other = fit(one_normal, X, strategy=EM(), progress=False)
    with refused(StartError, r"\['centre'\] are none of the model's, \['loc', 'scale', 'weights'\]"):
        fit(mixture, X, strategy=strategy, init=other, progress=False)


@BOTH
def test_init_by_a_result_that_shares_some_names(strategy):
    def wider(x):
        pyro.param("others", torch.zeros(2))
        mixture(x)

    init = {"loc": torch.tensor([-3.0, 3.0]), "scale": torch.tensor(2.0)}
    other = fit(wider, X, strategy=EM(max_steps=0), init=init, progress=False)
    found = fit(mixture, X, strategy=type(strategy)(max_steps=0), init=other, progress=False)
    assert found.params["loc"].tolist() == pytest.approx([-3.0, 3.0]) and "others" not in found.params
    assert found.params["scale"].item() == pytest.approx(2.0)


@BOTH
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scale", 0.0),
        ("scale", torch.nan),
        ("loc", [torch.nan, 0.0]),
        ("loc", [torch.inf, 0.0]),
    ],
)
def test_the_models_own_start(name, value, strategy):
    with refused(StartError, f"'{name}'"):
        fit(mixture, X, **{"shares" if name == "weights" else name: value}, strategy=strategy, progress=False)


def impossible(x):
    """State 0 cannot emit symbol 1, and state 1 cannot occur."""
    emit = pyro.param("emit", torch.zeros(2))
    z = pyro.sample("z", dist.Categorical(logits=torch.tensor([0.0, -torch.inf])))
    logits = torch.stack([torch.tensor([0.0, -torch.inf]), emit])[z]
    pyro.sample("x", dist.Categorical(logits=logits), obs=torch.tensor(1))


def test_an_impossible_start():
    with refused(StartError, "-inf.*outside the support.*init="):
        fit(impossible, X, strategy=EM(), progress=False)
    with untouched():
        result = fit(impossible, X, strategy=SVI(max_steps=3), progress=False)
    assert result.status is Status.NON_FINITE and not result.converged


@BOTH
def test_missing_data_without_a_mask(strategy):
    with refused(ModelError, r"'x' observes NaN.*poutine\.mask"):
        fit(mixture, torch.tensor([0.3, torch.nan]), strategy=strategy, progress=False)


@BOTH
def test_fixed_names_a_parameter(strategy):
    strategy = type(strategy)(fixed=["loc", "nope"])
    with refused(StartError, r"\['nope'\].*\['loc', 'scale', 'weights'\]"):
        fit(mixture, X, strategy=strategy, progress=False)


@BOTH
def test_a_failing_model_leaves_nothing_behind(strategy):
    def model(x):
        mixture(x)
        raise RuntimeError("the user's own")

    with refused(RuntimeError, "the user's own"):
        fit(model, X, strategy=strategy, progress=False, seed=3)


# Data -----------------------------------------------------------------------------------------------------


def loader(size=2):
    return DataLoader(TensorDataset(X), batch_size=size)


def test_batch_size_twice():
    with refused(ValueError, "batch_size=.*DataLoader"):
        fit(mixture, loader(), strategy=SVI(batch_size=2), progress=False)


def test_two_loaders():
    with refused(ValueError, "One positional argument.*got 2"):
        fit(mixture, loader(), loader(), strategy=SVI(), progress=False)


def test_nothing_to_cut():
    with refused(ValueError, "batch_size=.*no tensor"):
        fit(mixture, X.tolist(), strategy=SVI(batch_size=2), progress=False)


def test_minibatches_need_a_plate_over_the_data():
    def model(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        pyro.sample("x", dist.Normal(loc, 1.0).expand([len(x)]).to_event(1), obs=x)

    for strategy, data in [(SVI(batch_size=2), X), (SVI(), loader())]:
        with refused(ModelError, r"plate over the data.*pyro\.plate\('data', len\(x\)\)"):
            fit(model, data, strategy=strategy, progress=False)


# Guides ---------------------------------------------------------------------------------------------------


def test_guide_that_misses_a_continuous_latent():
    def guide(x):
        pyro.param("unused", torch.tensor(0.0))

    with refused(ModelError, r"does not sample.*\['h'\].*Add pyro\.sample"):
        fit(factor_model, X, strategy=SVI(guide), progress=False)


def test_guide_with_a_latent_of_its_own():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("h", dist.Normal(pyro.param("m", torch.zeros(3)), 1.0))
            pyro.sample("g", dist.Normal(0.0, 1.0))

    with refused(ModelError, r"'g'.*guide.*model"):
        fit(factor_model, X, strategy=SVI(guide), progress=False)


def test_guide_of_a_mixture_with_a_latent_of_its_own():
    def guide(x):
        pyro.sample("g", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))

    with refused(ModelError, r"'g'.*guide.*model"):
        fit(mixture, X, strategy=SVI(guide), progress=False)


def labelled(x, y):
    """A label for each datum, and a slope for all."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        label = pyro.sample("label", dist.Bernoulli(0.5), obs=y)
        pyro.sample("x", dist.Normal(slope * label, 1.0), obs=x)


def labelling_guide(x, y, **infer):
    pyro.sample("slope", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("label", dist.Bernoulli(0.5), infer=infer)


@pytest.mark.parametrize("elbo", [None, pyro.infer.Trace_ELBO()], ids=["chosen", "given"])
def test_guide_that_samples_what_the_model_observes(elbo):
    """The bound was too large by the labels' entropy, log 2 each."""
    with refused(ModelError, r"samples \['label'\], which the model observes.*is_auxiliary"):
        fit(labelled, X, X.sign().relu(), strategy=SVI(labelling_guide, elbo=elbo), progress=False)


def test_guide_that_marks_such_a_draw_as_its_own():
    guide = partial(labelling_guide, is_auxiliary=True)
    result = fit(labelled, X, X.sign().relu(), strategy=SVI(guide, max_steps=2), progress=False)
    assert result.n_steps == 2


@pytest.mark.parametrize("data", ["tensor", "loader"])
def test_no_automatic_guide_for_minibatches_of_local_latents(data):
    strategy, data = (SVI(batch_size=2), X) if data == "tensor" else (SVI(), loader())
    with refused(ModelError, r"\['h'\].*one value per datum.*amortised.*SVI\(guide\)"):
        fit(factor_model, data, strategy=strategy, progress=False)


def test_sums_on_both_sides():
    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(0.3))
            b = pyro.sample("b", dist.Bernoulli(0.6))
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)

    def guide(x):
        p = pyro.param("p", torch.full((3,), 0.5), constraint=dist.constraints.unit_interval)
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Bernoulli(p), infer={"enumerate": "parallel"})

    with refused(ModelError, r"both sides: \['a'\].*\['b'\]"):
        fit(model, X, strategy=SVI(guide), progress=False)
