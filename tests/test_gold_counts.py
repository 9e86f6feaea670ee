"""Mixtures and regressions of counts, lines and survival times end where R's packages and scipy end."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from gold import columns, gold, num_params, table
from torch import Tensor

from models import (
    abo,
    binomial_mixture,
    cure,
    documents,
    linkage,
    mixture_of_experts,
    multinomial_mixture,
    occupancy,
    poisson_mixture,
    poisson_regressions,
    regression_mixture,
    two_coins,
    zero_inflated,
)
from pyro_em import EM, RandomDraws, fit

SINGLE = EM(tol=1e-9, accelerate="squarem")


def with_intercept(*covariates: Tensor) -> Tensor:
    return torch.stack([torch.ones_like(covariates[0]), *covariates], dim=-1)


# Mixtures of counts -------------------------------------------------------------------------------


def test_death_notices() -> None:
    """One row a number of notices, weighted by days: the textbook case of a flat ridge."""
    expected, rows = gold("poismix_times_k2"), columns(table("deaths_times.csv"), "deaths", "days")
    assert num_params(poisson_mixture.model, *poisson_mixture.load()) == expected.num_params
    start = {"rates": torch.tensor([1.0, 3.0])}
    result = fit(poisson_mixture.model, rows[:, 0], weights=rows[:, 1], strategy=SINGLE, init=start, progress=False)
    expected.check(result, result.params, {"weights": 0, "rates": 0}, tol=1e-3)


def test_earthquakes() -> None:
    expected, x = gold("poismix_earthquakes_k2"), columns(table("earthquakes.csv"), "count").squeeze(-1)
    assert num_params(poisson_mixture.model, x) == expected.num_params
    result = fit(poisson_mixture.model, x, strategy=SINGLE, progress=False)
    expected.check(result, result.params, {"weights": 0, "rates": 0}, tol=1e-4)


def test_boys_in_saxony() -> None:
    """6115 families by 13 numbers of boys; after 1500 plain iterations flexmix is still 0.005 short."""
    expected, rows = gold("binmix_saxony_k2"), columns(table("saxony.csv"), "males", "families")
    males, families = rows.T
    data = (males, torch.full_like(males, 12))
    assert num_params(binomial_mixture.model, *data) == expected.num_params
    start = {"probs": torch.tensor([0.4, 0.6])}
    result = fit(binomial_mixture.model, *data, weights=families, strategy=SINGLE, init=start, progress=False)
    expected.check(result, result.params, {"weights": 0, "probs": 0}, tol=1e-3)


def test_margarine() -> None:
    expected, data = gold("multmix_margarine_k2"), multinomial_mixture.load()
    assert num_params(multinomial_mixture.model, *data) == expected.num_params
    strategy = EM(tol=1e-9, accelerate="squarem", restarts=30, start=RandomDraws())
    result = fit(multinomial_mixture.model, *data, strategy=strategy, seed=0, progress=False)
    expected.check(result, result.params, {"weights": 0, "probs": 0}, tol=1e-4)


def test_documents_are_counts_without_their_coefficients() -> None:
    (counts,), data = multinomial_mixture.load(), documents.load()
    start = fit(multinomial_mixture.model, counts, strategy=SINGLE, progress=False)
    nested = fit(documents.model, *data, strategy=EM(max_steps=0), init=start, progress=False)
    coefficients = (counts.sum(-1) + 1).lgamma().sum() - (counts + 1).lgamma().sum()
    assert nested.log_evidence + coefficients.item() == pytest.approx(start.log_evidence, rel=1e-12)


def test_two_coins() -> None:
    """Ten plain iterations give the figures of the paper, and convergence those of an optimiser."""
    expected, data = gold("coins_do_batzoglou_fixed"), two_coins.load()
    assert num_params(two_coins.model, *data) == expected.num_params
    ten = fit(two_coins.model, *data, strategy=EM(max_steps=10, tol=0), progress=False)
    assert ten.params["probs"].tolist() == pytest.approx([0.80, 0.52], abs=0.005)
    result = fit(two_coins.model, *data, strategy=SINGLE, progress=False)
    expected.check(result, {"theta": result.params["probs"]}, {"theta": 0}, tol=1e-5)


# Regressions --------------------------------------------------------------------------------------


def test_a_line_and_a_parabola() -> None:
    """mixtools' maximum; flexmix divides residual variances by n - p and stays at -642.5452."""
    expected, data = gold("regmix_npreg_k2"), regression_mixture.load()
    assert num_params(regression_mixture.model, *data) == expected.num_params
    start = {"coefs": torch.tensor([[0.0, 5.0, 0.0], [15.0, 10.0, -1.0]])}  # those the data were simulated with
    result = fit(regression_mixture.model, *data, strategy=SINGLE, init=start, progress=False)
    found = {"weights": result.params["weights"], "coef": result.params["coefs"], "sds": result.params["scales"]}
    expected.check(result, found, {"weights": 0, "coef": 0, "sds": 0}, tol=1e-4)


def decayed_teeth() -> tuple[Tensor, Tensor]:
    """At the end, and the logs of what was there at the beginning."""
    begin, end = columns(table("dmft.csv"), "Begin", "End").T
    return end, with_intercept((begin + 0.5).log())


@pytest.mark.parametrize(
    ("name", "data", "K", "restarts"),
    [
        ("poisreg_dmft_k2", decayed_teeth, 2, 1),
        ("poisreg_patent_k3", poisson_regressions.load, 3, 10),
    ],
)
def test_poisson_regressions(name: str, data: Callable[[], tuple[Tensor, Tensor]], K: int, restarts: int) -> None:
    expected, model = gold(name), partial(poisson_regressions.model, num_components=K)
    assert num_params(model, *data()) == expected.num_params
    strategy = EM(tol=1e-9, accelerate="squarem", restarts=restarts)
    result = fit(model, *data(), strategy=strategy, seed=0, progress=False)
    found = {"weights": result.params["weights"], "coef": result.params["coefs"]}
    expected.check(result, found, {"weights": 0, "coef": 0}, tol=1e-4)


def test_patents_gated_by_a_covariate() -> None:
    """The gate's log odds are centred: against the last component they depend on its label."""
    expected, data = gold("moe_patent_rds_k3"), mixture_of_experts.load()
    assert num_params(mixture_of_experts.model, *data) == expected.num_params
    result = fit(mixture_of_experts.model, *data, strategy=SINGLE, progress=False)
    gate = torch.nn.functional.pad(result.params["gate"], (0, 1)).T
    found = {
        "gate": gate - gate.mean(0),
        "coef": result.params["coefs"],
        "weights": (data[2] @ gate.T).softmax(-1).mean(0),
    }
    expected.check(result, found, {"gate": 0, "coef": 0, "weights": 0}, tol=1e-3)


@pytest.mark.parametrize(("name", "columns_used"), [("zip_biochemists_full", 6), ("zip_biochemists_intercept", 1)])
def test_biochemists(name: str, columns_used: int) -> None:
    expected, (y, design) = gold(name), zero_inflated.load()
    data = (y, design[:, :columns_used])
    assert num_params(zero_inflated.model, *data) == expected.num_params
    result = fit(zero_inflated.model, *data, strategy=EM(tol=1e-6), progress=False)
    found = {"count_coef": result.params["count_coefs"], "zero_coef": result.params["zero_coefs"]}
    expected.check(result, found, {}, tol=1e-3)


# Genetics, ecology, survival ----------------------------------------------------------------------


def test_blood_groups() -> None:
    expected, data = gold("abo_clarke"), abo.load()
    assert num_params(abo.model, *data) == expected.num_params
    result = fit(abo.model, *data, strategy=SINGLE, progress=False)
    expected.check(result, dict(zip(("pA", "pB", "pO"), result.params["freqs"], strict=True)), {}, tol=1e-6)


def test_linkage() -> None:
    """The root of a quadratic, and Dempster, Laird and Rubin's path from 1/2 (in their section 1)."""
    expected, data = gold("linkage_dlr"), linkage.load()
    assert num_params(linkage.model, *data) == expected.num_params
    result = fit(linkage.model, *data, strategy=SINGLE, progress=False)
    expected.check(result, result.params, {}, tol=1e-6)
    assert result.params["theta"].item() == pytest.approx((15 + 53809**0.5) / 394, abs=1e-6)
    path = [fit(linkage.model, *data, strategy=EM(tol=0, max_steps=n), progress=False) for n in (1, 2, 3)]
    assert [step.params["theta"].item() for step in path] == pytest.approx([0.608247423, 0.624321051, 0.626488879])


def test_salamanders() -> None:
    expected, rows = gold("occupancy_salamanders"), table("salamanders.csv")
    x = columns(rows, *rows[0])
    assert num_params(occupancy.model, x) == expected.num_params
    result = fit(occupancy.model, x, strategy=SINGLE, progress=False)
    found = {"psi": result.params["occupancy"], "p": result.params["detection"]}
    expected.check(result, found, {}, tol=1e-4)


def test_bone_marrow_transplants() -> None:
    expected, rows = gold("cure_bmt_weibull"), columns(table("bmt_smcure.csv"), "Time", "Status", "TRT")
    data = (rows[:, 0] / 365.25, rows[:, 1], with_intercept(rows[:, 2]))
    assert num_params(cure.model, *data) == expected.num_params
    result = fit(cure.model, *data, strategy=EM(tol=1e-7), progress=False)
    names = {"uncured_logit": "cure_coefs", "log_rate": "rate_coefs", "shape": "shape"}
    expected.check(result, {ours: result.params[name] for ours, name in names.items()}, {}, tol=1e-3)
