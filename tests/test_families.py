"""Every family's mathematics, against the distribution's own density and sampler and against L-BFGS."""

import importlib
import itertools
import math
import pkgutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from family_examples import EXAMPLES, PRIORS, Args, Example, Prior
from scipy import stats as scipy_stats
from torch import Tensor, tensor
from torch.distributions import biject_to, transform_to

import pyro_em.families
from pyro_em.families import FAMILIES, Cells, expected_log_likelihood, family_of
from pyro_em.families.newton import newton

TIED = tensor([0, 0, 1])
Groups = dict[str, Tensor | None]
LINKS = {link for _, _, link, _, _ in PRIORS} | {"exp", "softmax", "logistic"}
every_family = pytest.mark.parametrize("name", EXAMPLES)


def draw(name: str, n: int) -> tuple[Example, Any, Tensor, Tensor]:
    """An example, its family, and values (n, 3, *event) with weights (n, 3)."""
    torch.manual_seed(1)
    example = EXAMPLES[name]
    value = example.fn.sample((n,)).to(torch.float64)
    return example, FAMILIES[type(example.fn)].of(example.fn, value), value, 0.1 + torch.rand(n, 3)


def feature_first(family: Any, fn: Any, value: Tensor) -> Tensor:
    """The data as (*event, n, 3)."""
    return family.data(fn, value).movedim(tuple(range(-family.rank, 0)), tuple(range(family.rank)))


def statistics(example: Example, family: Any, value: Tensor, weights: Tensor) -> Tensor:
    x = feature_first(family, example.fn, value)
    features = family.augment(x, **example.args) if hasattr(family, "augment") else family.features(x)
    return torch.cat([torch.einsum("snc,nc->cs", features, weights), weights.sum(0).unsqueeze(-1)], -1)


def density(family: Any, x: Tensor, args: Args) -> Tensor:
    """The natural form of log f."""
    if hasattr(family, "augment"):
        return family.log_prob(x, **args) + family.base_measure(x)
    coefficients = family.coefficients(**args)
    products = torch.einsum("s...c,cs->...c", family.features(x), coefficients[:, :-1])
    return products + coefficients[:, -1] + family.base_measure(x)


def charts(family: Any) -> dict[str, Any]:
    """Coordinates without bounds; for matrices, torch knows none that is a bijection."""
    return {each.name: (transform_to if each.rank == 2 else biject_to)(each.domain) for each in family.args}


def lbfgs(objective: Callable[[Args], Tensor], family: Any, start: Args) -> Args:
    """The arguments that maximise an objective, by a method that knows nothing of it."""
    transforms = charts(family)
    at = {
        name: torch.randn(transforms[name].inv(value).shape).mul(0.3).requires_grad_() for name, value in start.items()
    }
    options: dict[str, Any] = {"max_iter": 1000, "tolerance_grad": 1e-13, "tolerance_change": 1e-18, "history_size": 30}
    optimizer = torch.optim.LBFGS(at.values(), line_search_fn="strong_wolfe", **options)

    def closure() -> float:
        optimizer.zero_grad()
        loss = -objective({name: transforms[name](value) for name, value in at.items()})
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    return {name: transforms[name](value).detach() for name, value in at.items()}


def spread(args: Args, groups: Groups) -> Args:
    return {name: value if groups[name] is None else value[groups[name]] for name, value in args.items()}


def maximise(family: Any, stats: Tensor, values: Args, groups: Groups) -> Args:
    """What an M-step does: closed forms, or Newton's method for all arguments of a kind of groups, until they stay."""
    for _ in range(500):
        before = values
        for tied in (None, TIED):
            names = [name for name in values if groups[name] is tied]
            size = 3 if tied is None else 2
            closed = [family.solve(name, Cells(stats, spread(values, groups), tied, size)) for name in names]
            if any(value is None for value in closed):
                start = {name: values[name] for name in names}
                values = values | newton(family, names, stats, spread(values, groups), tied, size, start)
                continue
            for name in names:
                value = family.solve(name, Cells(stats, spread(values, groups), tied, size))
                values = values | {name: value}
        if all(torch.allclose(values[name], before[name], rtol=1e-10, atol=1e-11) for name in values):
            return values
    raise AssertionError(f"{type(family).__name__} did not settle")


def assert_same(actual: Args, expected: Args, tolerance: float = 1e-6) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=tolerance, atol=tolerance)


@every_family
def test_natural_form_is_the_log_density(name: str) -> None:
    example, family, value, _ = draw(name, 50)
    for make in (example.make, *example.others):
        fn = make(**example.args)
        assert family_of(fn) is type(family)
        args = family.arguments(fn)
        assert_same(args, example.args, 1e-12)
        actual = density(family, feature_first(family, fn, value), args)
        torch.testing.assert_close(actual, example.log_prob(args, value), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(actual, fn.log_prob(value), rtol=1e-6, atol=1e-6)


@every_family
def test_statistics_add_up(name: str) -> None:
    example, family, value, weights = draw(name, 40)
    whole = statistics(example, family, value, weights)
    halves = [statistics(example, family, value[part], weights[part]) for part in (slice(15), slice(15, None))]
    torch.testing.assert_close(sum(halves), whole, rtol=1e-12, atol=1e-12)
    twice = statistics(example, family, torch.cat([value, value[:7]]), torch.cat([weights, weights[:7]]))
    weights[:7] *= 2
    torch.testing.assert_close(twice, statistics(example, family, value, weights), rtol=1e-12, atol=1e-12)


@every_family
def test_families_of_two_data_sets_join(name: str) -> None:
    example, family, value, _ = draw(name, 20)
    other = type(family).of(example.fn, value[:3])
    assert family.join(other) == other.join(family) == family


@pytest.mark.parametrize(
    ("name", "tied"),
    [(name, tied) for name, example in EXAMPLES.items() for tied in (None, *example.args)],
)
def test_maximum_is_that_of_lbfgs(name: str, tied: str | None) -> None:
    example, family, value, weights = draw(name, 60)
    groups: Groups = {argument: TIED if argument == tied else None for argument in example.args}
    start = {argument: block[1:] if argument == tied else block for argument, block in example.args.items()}
    stats = statistics(example, family, value, weights)

    def objective(args: Args) -> Tensor:
        args = spread(args, groups)
        if hasattr(family, "augment"):  # of the M-step, whose inner E-step holds still
            return expected_log_likelihood(family, stats, args).sum() / weights.sum()
        return (weights * example.log_prob(args, value)).sum() / weights.sum()

    assert_same(maximise(family, stats, start, groups), lbfgs(objective, family, start))


def test_augmented_steps_stay_at_the_maximum_of_the_density() -> None:
    example, family, value, weights = draw("StudentT", 60)
    best = lbfgs(lambda args: (weights * example.log_prob(args, value)).sum() / weights.sum(), family, example.args)
    stats = statistics(Example(example.make, best), family, value, weights)
    assert_same(maximise(family, stats, best, dict.fromkeys(best)), best)


@every_family
def test_recovers_what_the_sampler_drew_from(name: str) -> None:
    example, family, value, weights = draw(name, 20_000)
    transforms = charts(family)
    truth = {name: transform.inv(example.args[name]) for name, transform in transforms.items()}
    fitted = {name: transform(truth[name] + 0.2) for name, transform in transforms.items()}
    for _ in range(40 if hasattr(family, "augment") else 1):
        stats = statistics(Example(example.make, fitted), family, value, torch.ones_like(weights))
        fitted = maximise(family, stats, fitted, dict.fromkeys(fitted))
    found = {name: transform.inv(fitted[name]) for name, transform in transforms.items()}
    sizes = [part.numel() for part in found.values()]

    def total(at: Tensor) -> Tensor:
        parts = zip(transforms.items(), at.split(sizes), strict=True)
        args = {name: transform(part.reshape(found[name].shape)) for (name, transform), part in parts}
        return example.log_prob(args, value).sum()

    at = torch.cat([part.flatten() for part in found.values()])
    off = at - torch.cat([part.flatten() for part in truth.values()])
    information = -torch.autograd.functional.hessian(total, at)
    used = information.diagonal() != 0  # not what is above a triangle
    errors = torch.linalg.inv(information[used][:, used]).diagonal().sqrt()
    assert (off[used].abs() < 5 * errors).all()


@pytest.mark.parametrize(("name", "argument", "link", "prior", "inverse"), PRIORS)
@pytest.mark.parametrize("size", [3, 2])
def test_conjugate_priors_give_the_mode_of_lbfgs(
    name: str, argument: str, link: str, prior: Prior, inverse: Callable[[Tensor], Tensor], size: int
) -> None:
    example, family, value, weights = draw(name, 30)
    groups: Groups = dict.fromkeys(example.args)
    groups[argument] = None if size == 3 else TIED
    belief = prior(size)
    stats = statistics(example, family, value, weights)

    def objective(args: Args) -> Tensor:
        args, log_prior = spread(example.args | args, groups), belief.log_prob(inverse(args[argument])).sum()
        if hasattr(family, "augment"):
            return expected_log_likelihood(family, stats, args).sum() + log_prior
        return (weights * example.log_prob(args, value)).sum() + log_prior

    cells = Cells(stats, example.args, groups[argument], size, family.pseudo(argument, link, belief))
    expected = lbfgs(lambda args: objective(args) / weights.sum(), family, {argument: example.args[argument][:size]})
    assert_same({argument: family.solve(argument, cells)}, expected)


def test_every_conjugate_prior_is_tested() -> None:
    priors = {prior(3) for _, _, _, prior, _ in PRIORS}
    found = {
        (name, argument, link, type(prior))
        for name in EXAMPLES
        for family in [draw(name, 5)[1]]
        for argument, link, prior in itertools.product(EXAMPLES[name].args, LINKS, priors)
        if family.pseudo(argument, link, prior) is not None
    }
    assert found == {(name, argument, link, type(prior(3))) for name, argument, link, prior, _ in PRIORS}


def test_every_family_has_an_example() -> None:
    modules = {info.name for info in pkgutil.iter_modules(pyro_em.families.__path__)} - {
        "base",
        "coupled",
        "newton",
        "pieces",
    }
    exported = [importlib.import_module(f"pyro_em.families.{module}").__all__ for module in modules]
    assert set(itertools.chain(*exported)) == set(EXAMPLES)
    assert {kind.__name__: family.__name__ for kind, family in FAMILIES.items()} == {name: name for name in EXAMPLES}


def test_unknown_and_derived_distributions_have_no_family() -> None:
    class Mine(dist.Normal):
        pass

    assert family_of(Mine(0.0, 1.0)) is None
    assert family_of(dist.Normal(torch.zeros(3), 1.0).to_event(1)) is None


def test_negative_binomial_refuses_counts_it_has_no_feature_for() -> None:
    family = FAMILIES[dist.NegativeBinomial].of(None, tensor([0.0, 3.0, 7.0]))
    for count in (5.0, 8.0):
        with pytest.raises(ValueError, match=rf"2 positive counts.*Got a count of {count:.0f}"):
            family.features(tensor([0.0, 7.0, count]))


@pytest.mark.parametrize("total_count", [0.0, 1e-9, 0.3, 40.0, 1e5, 1e8])
def test_negative_binomial_of_counts_far_apart(total_count: float) -> None:
    """A feature for each count that was seen, not for each up to the largest."""
    x = tensor([0.0, 1.0, 5.0, 31.0, 32.0, 33.0, 1e3, 1e3 + 1, 1e6], dtype=torch.float64)
    family: Any = FAMILIES[dist.NegativeBinomial].of(None, x)
    assert len(family.features(x)) == len(x)
    r, p = tensor(total_count, dtype=torch.float64), tensor(0.7, dtype=torch.float64)
    rises = (family.coefficients(total_count=r, probs=p)[:-2].cumsum(0)).tolist()
    for count, found in zip(x[1:].tolist(), rises, strict=True):
        exact = float(np.log(total_count + np.arange(count)).sum()) if total_count else -1e30
        assert found == pytest.approx(exact, rel=1e-13)


def test_student_t_has_no_features_without_arguments() -> None:
    family = FAMILIES[dist.StudentT].of(None, tensor([0.0]))
    with pytest.raises(TypeError, match="depend on its arguments"):
        family.features(tensor([0.0]))


def test_von_mises_normaliser_is_that_of_scipy() -> None:
    kappa = torch.logspace(-6, 6, 30)
    coefficients = FAMILIES[dist.VonMises].of(None, kappa).coefficients(loc=torch.zeros(30), concentration=kappa)
    expected = tensor(scipy_stats.vonmises.logpdf(0.0, kappa.numpy())) + math.log(2 * math.pi)
    torch.testing.assert_close(coefficients[:, 0] + coefficients[:, 2], expected, rtol=1e-9, atol=1e-12)
