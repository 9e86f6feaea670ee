"""Chains end where depmixS4, statsmodels, Program MARK and a general optimiser end: maxima, parameters, how many.

Unless another number is said, one start does: the model's own.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from gold import ROOT, Gold, columns, num_params, table
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from models import (
    capture_recapture,
    categorical_hmm,
    factorial_hmm,
    gaussian_hmm,
    markov_switching,
    poisson_hmm,
)
from models.poisson_hmm import stationary_law
from pyro_em import EM, FitResult, fit

CASES = json.loads((ROOT / "tests" / "data" / "gold_chains.json").read_text())
SINGLE = EM(tol=1e-7, accelerate="squarem")
BY_GRADIENT = EM(tol=1e-5)  # an iteration runs the model where the transitions decide the initial law


def expected(name: str) -> Gold:
    """The case of that name, its states in the order of ours."""
    case = CASES[name]
    params = {key: torch.tensor(value, dtype=torch.float64) for key, value in case["params"].items()}
    return Gold(name, case["log_likelihood"], case["tol"], case["num_params"], params)


def settle(
    name: str,
    model: Callable[..., Any],
    args: tuple[Tensor, ...],
    strategy: EM,
    init: Mapping[str, Tensor] | None = None,
) -> tuple[Gold, FitResult]:
    """The fit, which has as many parameters as the case."""
    found = expected(name)
    assert num_params(model, *args) == found.num_params
    return found, fit(model, *args, strategy=strategy, init=init, seed=0, progress=False)


def ordered(result: FitResult, by: str, renamed: Mapping[str, str]) -> dict[str, Tensor]:
    """Parameters by published name, with states in the order of one of them, lowest first."""
    key = result.params[by]
    order = (key if key.dim() == 1 else key[:, 0]).argsort()
    found = {renamed.get(n, n): v[order] if v.dim() and len(v) == len(order) else v for n, v in result.params.items()}
    return {n: v[:, order] if n == "trans" else v for n, v in found.items()}


def by_order(case: Gold, by: str) -> Gold:
    """The case with its states in the order of one of its parameters."""
    key = case.params[by]
    order = (key if key.dim() == 1 else key[:, 0]).argsort()
    params = {n: v[order] if v.dim() and len(v) == len(order) else v for n, v in case.params.items()}
    params = {n: v[:, order] if n == "trans" else v for n, v in params.items()}
    return Gold(case.name, case.log_likelihood, case.tol, case.num_params, params)


# Free starts --------------------------------------------------------------------------------------

LENGTHS = (168, 134, 137)  # of the three series of `speed`


def padded(x: Tensor) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(x.split(LENGTHS), batch_first=True)


def speed(*names: str) -> tuple[Tensor, ...]:
    """Columns of the series of response times and of right answers, and their lengths."""
    rows = [{"rt": row["rt"], "corr": str(int(row["corr"] == "cor"))} for row in table("speed.csv")]
    return (*(padded(columns(rows, name).squeeze(-1)) for name in names), torch.tensor(LENGTHS))


def answers() -> tuple[Tensor, Tensor]:
    right, lengths = speed("corr")
    return right.long(), lengths


def returns() -> tuple[Tensor]:
    return (columns(table("sp500.csv"), "logret").squeeze(-1),)


def responses(times: Tensor, right: Tensor, lengths: Tensor, num_states: int = 2) -> None:
    """A time and an answer at each step, independent given the state."""
    K, used = num_states, torch.arange(times.shape[1]) < lengths.unsqueeze(-1)
    init = pyro.param("init", times.new_full((K,), 1 / K), constraint=constraints.simplex)
    trans = poisson_hmm.transitions(times, K)
    locs = pyro.param("locs", lambda: gaussian_hmm.start_locs(times[used], K))
    scales = pyro.param("scales", lambda: times[used].std().expand(K).clone(), constraint=constraints.positive)
    probs = pyro.param("probs", times.new_full((K,), 0.5), constraint=constraints.unit_interval)
    with pyro.plate("sequences", len(times)):
        z = None
        for t in pyro.markov(range(times.shape[1])):
            with poutine.mask(mask=used[:, t]):
                z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[z]))
                pyro.sample(f"x_{t}", dist.Normal(locs[z], scales[z]), obs=times[:, t])
                pyro.sample(f"y_{t}", dist.Bernoulli(probs[z]), obs=right[:, t])


NORMAL = {"locs": "means", "scales": "sds"}
FREE: dict[str, tuple[Callable[..., Any], Callable[[], tuple[Tensor, ...]], EM, str, Mapping[str, str]]] = {
    "poishmm_earthquakes_k2_freeinit": (poisson_hmm.model, poisson_hmm.load, SINGLE, "rates", {}),
    "poishmm_earthquakes_k3_freeinit": (
        partial(poisson_hmm.model, num_states=3),
        poisson_hmm.load,
        SINGLE,
        "rates",
        {},
    ),
    "gausshmm_geyser_waiting_k2": (gaussian_hmm.model, gaussian_hmm.load, SINGLE, "locs", NORMAL),
    "gausshmm_speed_rt_k2": (gaussian_hmm.model, partial(speed, "rt"), SINGLE, "locs", NORMAL),
    "gausshmm_sp500_k2": (gaussian_hmm.model, returns, SINGLE, "locs", NORMAL),
    "cathmm_geyser_waiting4_k2": (categorical_hmm.model, categorical_hmm.load, SINGLE, "probs", {}),
    "cathmm_speed_corr_k2": (categorical_hmm.model, answers, SINGLE, "probs", {}),
    "multihmm_speed_rt_corr_k2": (
        responses,
        partial(speed, "rt", "corr"),
        SINGLE,
        "locs",
        {**NORMAL, "probs": "p_correct"},
    ),
}
# Of two maxima, ten starts of depmixS4 found the lower one only, and the model's own does; states that last find this.
STICKY = {"cathmm_speed_corr_k2": {"trans": torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64)}}


@pytest.mark.parametrize("name", FREE)
def test_chains_with_a_free_start_end_where_depmix_does(name: str) -> None:
    model, load, strategy, by, renamed = FREE[name]
    case, result = settle(name, model, load(), strategy, STICKY.get(name))
    found = ordered(result, by, renamed)
    by_order(case, renamed.get(by, by)).check(result, found, {}, tol=2e-3)


def test_two_chains_add_up() -> None:
    """Their order is that of what they add."""
    case, result = settle("fhmm_earthquakes_pois_2x2", factorial_hmm.model, factorial_hmm.load(), SINGLE)
    case.check(result, dict(result.params), {}, tol=2e-3)


# Animals ------------------------------------------------------------------------------------------


def test_dippers_survive_as_in_program_mark() -> None:
    case, result = settle("cjs_dipper_const", capture_recapture.model, capture_recapture.load(), SINGLE)
    case.check(result, {"phi": result.params["survival"], "p": result.params["detection"]}, {}, tol=1e-4)


def test_histories_of_animals_have_the_likelihood_of_the_table() -> None:
    """294 birds as they were caught, or 426 releases that end at the next capture."""
    histories = [[float(caught) for caught in row["ch"]] for row in table("dipper.csv")]
    whole = fit(capture_recapture.model, torch.tensor(histories), strategy=SINGLE, progress=False)
    cut = fit(capture_recapture.model, *capture_recapture.load(), strategy=SINGLE, progress=False)
    assert whole.log_evidence == pytest.approx(cut.log_evidence, abs=1e-6)


# Stationary starts --------------------------------------------------------------------------------


def binary() -> tuple[Tensor]:
    """Old Faithful's eruptions: one of three minutes or more is long."""
    return ((columns(table("geyser.csv"), "duration").squeeze(-1) >= 3.0).long(),)


STATIONARY = {
    "poishmm_earthquakes_k1": (poisson_hmm, 1, poisson_hmm.load, "rates"),
    "poishmm_earthquakes_k2_stationary": (poisson_hmm, 2, poisson_hmm.load, "rates"),
    "poishmm_earthquakes_k3_stationary": (poisson_hmm, 3, poisson_hmm.load, "rates"),
    "poishmm_earthquakes_k4_stationary": (poisson_hmm, 4, poisson_hmm.load, "rates"),
    "cathmm_geyser_binary_k2_stationary": (categorical_hmm, 2, binary, "probs"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STATIONARY)
def test_chains_with_a_stationary_start_end_where_the_literature_does(name: str) -> None:
    """From where a free start ends, which closed forms find soon."""
    module, K, load, by = STATIONARY[name]
    model, free = partial(module.stationary, num_states=K), partial(module.model, num_states=K)
    near = fit(free, *load(), strategy=EM(tol=1e-4, accelerate="squarem"), progress=False).params
    case, result = settle(name, model, load(), BY_GRADIENT, {n: v for n, v in near.items() if n != "init"})
    found = ordered(result, by, {})
    found["init"] = stationary_law(found["trans"])
    case = by_order(case, by) if by in case.params else case
    case.check(result, {n: v for n, v in found.items() if n in case.params}, {}, tol=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "load"),
    [("msreg_fedfunds_k2", markov_switching.load), ("msreg_fedfunds_k2_lag", markov_switching.lagged)],
)
def test_switching_regressions_end_where_statsmodels_does(name: str, load: Callable[[], tuple[Tensor, ...]]) -> None:
    case, result = settle(name, markov_switching.model, load(), BY_GRADIENT)
    trans, coefs = result.params["trans"], result.params["coefs"]
    if name.endswith("lag"):  # the first regime is the one of the larger intercept
        order = coefs[:, 0].argsort(descending=True)
        found = {"trans": trans[order][:, order], "coefs": coefs[order]}
    else:
        order = coefs[:, 0].argsort()
        found = {"trans": trans[order][:, order], "means": coefs[order, 0]}
        found["init"] = stationary_law(found["trans"])
    case.check(result, {**found, "sd": result.params["scale"]}, {}, tol=5e-3)
