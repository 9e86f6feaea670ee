"""Newton's method from bad starts, on hard data, and on groups without data."""

from typing import Any

import pytest
import torch
from scipy import optimize, special
from torch import Tensor, tensor
from torch.distributions import biject_to

from pyro_em.families.base import expected_log_likelihood
from pyro_em.families.beta import Beta
from pyro_em.families.dirichlet import Dirichlet
from pyro_em.families.gamma import Gamma
from pyro_em.families.negative_binomial import NegativeBinomial
from pyro_em.families.newton import newton
from pyro_em.families.normal import Normal
from pyro_em.families.student_t import StudentT
from pyro_em.families.von_mises import VonMises
from pyro_em.families.zero_inflated_poisson import ZeroInflatedPoisson

DATA = tensor([0.02, 0.3, 0.31, 0.45, 0.5, 0.62, 0.81, 0.97], dtype=torch.float64)
COUNTS = tensor([0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 9.0, 12.0], dtype=torch.float64)
PARTS = tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.3, 0.35, 0.35]], dtype=torch.float64).T
HARD: dict[str, tuple[Any, Tensor]] = {
    "beta": (Beta(), DATA),
    "dirichlet": (Dirichlet(), PARTS),
    "gamma": (Gamma(), DATA),
    "negative binomial": (NegativeBinomial((1, 2, 3, 9, 12)), COUNTS),
    "normal": (Normal(), DATA),
    "von mises": (VonMises(), DATA),
    "zero-inflated poisson": (ZeroInflatedPoisson(), COUNTS),
}


def statistics(family: Any, x: Tensor) -> Tensor:
    """One cell of data without weights: shape (1, S + 1)."""
    features = family.features(x)
    return torch.cat([features.sum(-1), features.new_full((1,), features.shape[-1])]).unsqueeze(0)


def climb(family: Any, stats: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every argument by Newton's method, each cell for itself; asserts that no cell falls."""
    best = newton(family, list(values), stats, values, None, len(stats), values)
    before, after = (expected_log_likelihood(family, stats, args) for args in (values, best))
    assert (after >= before - 1e-12 * before.abs()).all()
    return best


def concentration(x: Tensor) -> float:
    """The maximum likelihood estimate of a Gamma's, by bisection."""
    gap = float(x.mean().log() - x.log().mean())
    return float(optimize.brentq(lambda a: special.digamma(a) - special.xlogy(1, a) + gap, 1e-9, 1e14, xtol=1e-14))


@pytest.mark.parametrize("name", HARD)
def test_every_start_leads_to_the_same_maximum(name: str) -> None:
    family, x = HARD[name]
    cells = 60
    torch.manual_seed(3)
    values = {}
    for argument in family.args:
        block = (3,) if argument.rank else ()
        far = 1.0 if argument.name == "loc" else 8.0
        values[argument.name] = biject_to(argument.domain)(far * torch.randn(cells, *block))
    best = climb(family, statistics(family, x).expand(cells, -1), values)
    for value in best.values():
        torch.testing.assert_close(value, value[:1].expand_as(value), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("spread", [3.0, 1.0, 1e-1, 1e-2, 1e-3])
def test_gamma_is_exact_however_constant_the_data(spread: float) -> None:
    torch.manual_seed(4)
    x = (spread * torch.randn(200)).exp()
    one = torch.ones(1)
    best = climb(Gamma(), statistics(Gamma(), x), {"concentration": 1e-6 * one, "rate": 1e6 * one})
    # What rounding of the statistics leaves: their gap is 1 / (2 concentration).
    exact = tensor([concentration(x)])
    torch.testing.assert_close(best["concentration"], exact, rtol=1e-9 + 4e-15 * float(exact), atol=0)
    torch.testing.assert_close(best["rate"] * x.mean(), best["concentration"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("factor", [1e-12, 1e-3, 1e12])
@pytest.mark.parametrize("name", HARD)
def test_only_proportions_of_counts_matter(name: str, factor: float) -> None:
    family, x = HARD[name]
    values = {each.name: torch.full((1, 3) if each.rank else (1,), 0.4) for each in family.args}
    stats = statistics(family, x)
    few, many = (climb(family, scale * stats, values) for scale in (factor, 1.0))
    for argument in values:
        torch.testing.assert_close(few[argument], many[argument], rtol=1e-9, atol=1e-9)


def test_groups_without_count_or_with_statistics_out_of_range_keep_their_values() -> None:
    stats = statistics(Gamma(), DATA).repeat(4, 1)
    stats[1] = 0.0
    stats[2, 0] = torch.nan
    values = {"concentration": tensor([1.0, 0.1, 0.7, 5.0]), "rate": tensor([1.0, 0.3, 7.0, 2.0])}
    best = newton(Gamma(), ["concentration", "rate"], stats, values, None, 4, values)
    for name, value in best.items():
        assert (value[1:3] == values[name][1:3]).all()
        torch.testing.assert_close(value[0], value[3], rtol=1e-9, atol=0)


def test_groups_are_independent() -> None:
    torch.manual_seed(5)
    stats = torch.cat([statistics(Beta(), torch.rand(30) ** power) for power in (0.2, 1.0, 7.0)])
    values = {"concentration1": torch.rand(3), "concentration0": 50 * torch.rand(3)}
    together = climb(Beta(), stats, values)
    for g in range(3):
        alone = climb(Beta(), stats[g : g + 1], {name: value[g : g + 1] for name, value in values.items()})
        for name in values:
            torch.testing.assert_close(alone[name], together[name][g : g + 1], rtol=1e-10, atol=0)


def test_tied_cells_are_one() -> None:
    stats = torch.cat([statistics(Gamma(), part) for part in (DATA[:3], 2 * DATA, DATA[3:])])
    args = {"concentration": torch.ones(3), "rate": torch.ones(3)}
    values = {name: value[:2] for name, value in args.items()}
    tied = newton(Gamma(), list(args), stats, args, tensor([0, 1, 0]), 2, values)
    whole = climb(Gamma(), statistics(Gamma(), DATA), {name: value[:1] for name, value in args.items()})
    for name in args:
        torch.testing.assert_close(tied[name][:1], whole[name], rtol=1e-10, atol=0)


def test_other_arguments_are_held() -> None:
    stats = statistics(Gamma(), DATA).repeat(2, 1)
    rate = tensor([2.0, 0.01])
    args = {"rate": rate, "concentration": torch.full((2,), 1e3)}
    best = newton(Gamma(), ["concentration"], stats, args, None, 2, {"concentration": args["concentration"]})
    assert list(best) == ["concentration"]
    torch.testing.assert_close(best["concentration"].digamma() - rate.log(), DATA.log().mean().expand(2))


def test_degrees_of_freedom_are_exact() -> None:
    x, df = tensor([-9.0, -1.0, -0.2, 0.1, 0.4, 1.3, 3.0]), tensor(4.0)
    features = StudentT().augment(x, df=df, loc=tensor(0.0), scale=tensor(1.0))
    stats = torch.cat([features.sum(-1), tensor([7.0])]).expand(3, -1)
    args = {"df": tensor([1e-5, 4.0, 1e7]), "loc": torch.zeros(3), "scale": torch.ones(3)}
    best = newton(StudentT(), ["df"], stats, args, None, 3, {"df": args["df"]})["df"]
    gap = float((features[0] - features[3]).mean() - 1)
    half = optimize.brentq(lambda a: special.digamma(a) - special.xlogy(1, a) + gap, 1e-6, 1e6, xtol=1e-14)
    torch.testing.assert_close(best, torch.full((3,), 2 * half), rtol=1e-9, atol=0)


@pytest.mark.parametrize("data", [[2.0, 2.0, 3.0], [0.0, 0.0, 0.0], [5.0, 5.0, 5.0]])
@pytest.mark.parametrize("family", [NegativeBinomial((2, 3, 5)), ZeroInflatedPoisson()])
def test_a_maximum_at_the_edge_is_approached(family: Any, data: list[float]) -> None:
    values = {each.name: torch.full((1,), 0.4) for each in family.args}
    best = climb(family, statistics(family, tensor(data)), values)
    assert all(value.isfinite().all() for value in best.values())


def test_an_argument_on_the_edge_stays() -> None:
    stats = statistics(ZeroInflatedPoisson(), COUNTS)
    values = {"gate": torch.zeros(1), "rate": torch.ones(1)}
    best = newton(ZeroInflatedPoisson(), ["gate"], stats, values, None, 1, {"gate": values["gate"]})
    assert best["gate"].item() == 0.0


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_units_do_not_matter(unit: float) -> None:
    x = unit * (DATA - 0.5)
    best = climb(Normal(), statistics(Normal(), x), {"loc": tensor([3.0]) * unit, "scale": tensor([10.0]) * unit})
    torch.testing.assert_close(best["loc"], x.mean().unsqueeze(0), rtol=1e-8, atol=0)
    torch.testing.assert_close(best["scale"], x.std(correction=0).unsqueeze(0), rtol=1e-9, atol=0)
