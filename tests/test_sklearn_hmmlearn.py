"""One EM iteration from the same start is, digit for digit, that of scikit-learn and of hmmlearn.

Both maximise Q in closed form, so the M-step here is L-BFGS run to the end. Their regularisers and priors are switched
off: `reg_covar=0`; Dirichlet priors of 1; `covars_prior=0` with `covars_weight=1` (hmmlearn's default prior of 0.01 is
added to every sum of squares).
"""

from functools import partial

import hmmlearn.hmm
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.constraints import lower_cholesky, positive, simplex
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from pyro_em import EM, GradientMStep, fit

f64 = partial(torch.tensor, dtype=torch.float64)
LBFGS = partial(
    torch.optim.LBFGS,
    max_iter=400,
    history_size=50,
    tolerance_grad=1e-11,
    tolerance_change=1e-16,
    line_search_fn="strong_wolfe",
)
ONE_STEP = EM(max_steps=1, tol=0, m_step=GradientMStep(LBFGS, num_steps=2))


def agree(found, expected):
    torch.testing.assert_close(found, torch.as_tensor(np.asarray(expected)), atol=1e-6, rtol=1e-6)


# Gaussian mixtures ----------------------------------------------------------------------------------------

WEIGHTS = f64([0.5, 0.3, 0.2])
LOCS = f64([[-1.5, 0.2], [1.3, 1.1], [0.4, -1.6]])
TRILS = f64([[[0.9, 0.0], [0.3, 1.1]], [[1.2, 0.0], [-0.4, 0.8]], [[0.7, 0.0], [0.1, 1.0]]])
SCALES = f64([[0.9, 1.1], [1.2, 0.8], [0.7, 1.0]])


def points():
    generator = torch.Generator().manual_seed(3)
    z = torch.multinomial(WEIGHTS, 120, replacement=True, generator=generator)
    return LOCS[z] * 1.2 + 0.8 * torch.randn(120, 2, generator=generator, dtype=torch.float64)


STARTS = {"full": TRILS, "tied": TRILS[0], "diag": SCALES, "spherical": SCALES[:, 0]}


def mixture(x, kind):
    weights = pyro.param("weights", WEIGHTS, constraint=simplex)
    locs = pyro.param("locs", LOCS)
    spread = pyro.param("spread", STARTS[kind], constraint=lower_cholesky if kind in ("full", "tied") else positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        if kind in ("full", "tied"):
            fn = dist.MultivariateNormal(locs[z], scale_tril=spread[z] if kind == "full" else spread)
        else:
            fn = dist.Normal(locs[z], spread[z] if kind == "diag" else spread[z].unsqueeze(-1)).to_event(1)
        pyro.sample("x", fn, obs=x)


def covariances(kind, spread):
    """In scikit-learn's layout for the kind."""
    return spread @ spread.mT if kind in ("full", "tied") else spread.square()


def sklearn_step(x, kind):
    start = covariances(kind, STARTS[kind])
    model = GaussianMixture(
        3,
        covariance_type=kind,
        max_iter=1,
        reg_covar=0.0,
        weights_init=WEIGHTS.numpy(),
        means_init=LOCS.numpy(),
        precisions_init=(torch.linalg.inv(start) if kind in ("full", "tied") else 1 / start).numpy(),
        random_state=0,
    )
    with pytest.warns(ConvergenceWarning):
        return model.fit(x.numpy())


@pytest.mark.parametrize("kind", STARTS)
def test_gaussian_mixture(kind):
    x = points()
    result, theirs = fit(mixture, x, kind, strategy=ONE_STEP, progress=False), sklearn_step(x, kind)
    assert result.history.objective[0] == pytest.approx(theirs.lower_bound_ * len(x), abs=1e-8)
    assert result.objective == pytest.approx(theirs.score(x.numpy()) * len(x), abs=1e-6)
    agree(result.params["weights"], theirs.weights_)
    agree(result.params["locs"], theirs.means_)
    agree(covariances(kind, result.params["spread"]), theirs.covariances_)
    agree(result.posterior()["z"].probs, theirs.predict_proba(x.numpy()))
    assert result.posterior()["z"].probs.argmax(-1).tolist() == theirs.predict(x.numpy()).tolist()


# Hidden Markov models -------------------------------------------------------------------------------------

INIT, TRANS = f64([0.6, 0.4]), f64([[0.7, 0.3], [0.2, 0.8]])
EMIT = f64([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]])
HMM_LOCS, HMM_SCALES = f64([[-1.0, 0.3], [1.2, 0.9]]), f64([[0.8, 1.0], [1.1, 0.7]])
LENGTHS = torch.tensor([9, 6, 4])


def chain(emission, x, lengths):
    """States z_0, z_1, ... of padded sequences x (B, T, ...), each with an emission."""
    init = pyro.param("init", INIT, constraint=simplex)
    trans = pyro.param("trans", TRANS, constraint=simplex)
    draw, z = emission(), None
    with pyro.plate("sequences", len(x)):
        for t in pyro.markov(range(x.shape[1])):
            with poutine.mask(mask=t < lengths):
                z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[z]))
                pyro.sample(f"x_{t}", draw(z), obs=x[:, t])


def gaussian():
    locs = pyro.param("locs", HMM_LOCS)
    scales = pyro.param("scales", HMM_SCALES, constraint=positive)
    return lambda z: dist.Normal(locs[z], scales[z]).to_event(1)


def categorical():
    emit = pyro.param("emit", EMIT, constraint=simplex)
    return lambda z: dist.Categorical(emit[z])


def multinomial():
    emit = pyro.param("emit", EMIT, constraint=simplex)
    return lambda z: dist.Multinomial(4, probs=emit[z])


def observations(emission, batch, length):
    generator = torch.Generator().manual_seed(5)
    if emission is gaussian:
        return torch.randn(batch, length, 2, generator=generator, dtype=torch.float64) * 1.5
    symbols = torch.randint(0, 3, (batch, length, 4), generator=generator)
    if emission is categorical:
        return symbols[..., 0]
    return torch.nn.functional.one_hot(symbols, 3).sum(-2).to(torch.float64)


def hmmlearn_model(emission):
    common = {"n_iter": 1, "init_params": "", "startprob_prior": 1.0, "transmat_prior": 1.0}
    if emission is gaussian:
        off = {"means_weight": 0.0, "covars_prior": 0.0, "covars_weight": 1.0, "min_covar": 0.0}
        model = hmmlearn.hmm.GaussianHMM(2, covariance_type="diag", params="stmc", **off, **common)
        model.means_, model.covars_ = HMM_LOCS.numpy(), HMM_SCALES.square().numpy()
    elif emission is categorical:
        model = hmmlearn.hmm.CategoricalHMM(2, n_features=3, params="ste", emissionprob_prior=1.0, **common)
        model.emissionprob_ = EMIT.numpy()
    else:
        model = hmmlearn.hmm.MultinomialHMM(2, n_trials=4, params="ste", **common)
        model.n_features, model.emissionprob_ = 3, EMIT.numpy()
    model.startprob_, model.transmat_ = INIT.numpy(), TRANS.numpy()
    return model


def hmmlearn_layout(emission, x, lengths):
    rows = torch.cat([row[:length] for row, length in zip(x, lengths, strict=True)])
    rows = rows.unsqueeze(-1) if emission is categorical else rows
    return (rows if emission is gaussian else rows.long()).numpy(), lengths.numpy()


def compare_chain(emission, x, lengths):
    result = fit(chain, emission, x, lengths, strategy=ONE_STEP, progress=False)
    theirs, data = hmmlearn_model(emission), hmmlearn_layout(emission, x, lengths)
    assert result.history.objective[0] == pytest.approx(theirs.score(*data), abs=1e-8)
    theirs.fit(*data)
    agree(result.params["init"], theirs.startprob_)
    agree(result.params["trans"], theirs.transmat_)
    if emission is gaussian:
        agree(result.params["locs"], theirs.means_)
        agree(result.params["scales"].square(), np.stack([np.diag(c) for c in theirs.covars_]))
    else:
        agree(result.params["emit"], theirs.emissionprob_)
    assert result.objective == pytest.approx(theirs.score(*data), abs=1e-7)
    return result.posterior(), theirs, data


EMISSIONS = pytest.mark.parametrize("emission", [gaussian, categorical, multinomial])


@EMISSIONS
def test_hidden_markov_model(emission):
    """One series; then the states' posterior and the Viterbi path at the new parameters."""
    posterior, theirs, data = compare_chain(emission, observations(emission, 1, 18), torch.tensor([18]))
    states = torch.cat([posterior[f"z_{t}"].probs for t in range(18)])
    agree(states, theirs.predict_proba(*data))
    path = torch.cat([posterior.map()[f"z_{t}"] for t in range(18)])
    assert path.tolist() == theirs.decode(*data)[1].tolist()


@EMISSIONS
def test_ragged_sequences(emission):
    """hmmlearn has no padding: what a mask hides must not count in the M-step either."""
    compare_chain(emission, observations(emission, 3, 9), LENGTHS)
