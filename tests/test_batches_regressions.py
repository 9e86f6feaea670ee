"""Regressions and networks in batches: sums over batches differ from those of all data by rounding only."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from batch_cases import agree, run
from family_examples import EXAMPLES
from pyro.distributions.constraints import positive, simplex
from torch.utils.data import DataLoader, TensorDataset

from models import latent_class_regression
from pyro_em import DegenerateError
from pyro_em.em import shares
from pyro_em.families import FAMILIES, Cells
from pyro_em.families.pieces import in_pieces

f64 = partial(torch.tensor, dtype=torch.float64)
N = 46
STEPS = {"max_steps": 20, "tol": 0}


def covariate():
    return torch.randn(N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def first_kind():
    return torch.rand(N, generator=torch.Generator().manual_seed(1)) < 0.4


def noise():
    return torch.randn(N, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def waits():
    x = covariate()
    return x, torch.where(first_kind(), 1.5 * x + 1, -0.7 * x - 1) + 0.5 * noise()


def counts():
    x = covariate()
    rates = torch.where(first_kind(), 0.8 * x + 1, -0.5 * x + 2).exp()
    return x, torch.poisson(rates, generator=torch.Generator().manual_seed(3))


def answers():
    x = covariate()
    return x, (noise() < torch.where(first_kind(), 2 * x + 1, -x)).to(torch.float64)


def choices():
    x, y = waits()
    return x, torch.bucketize(y, f64([-1.0, 1.0]))


def coefficients():
    return pyro.param("slopes", f64([0.8, -0.5])), pyro.param("levels", f64([0.1, 0.9]))


def kinds():
    return dist.Categorical(pyro.param("weights", f64([0.4, 0.6]), constraint=simplex))


def lines(x, y):
    slopes, levels = coefficients()
    scales = pyro.param("scales", f64([1.0, 1.2]), constraint=positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", kinds())
        pyro.sample("y", dist.Normal(levels[z] + slopes[z] * x, scales[z]), obs=y)


def parallels(x, y):
    """Coefficients that depend on the scales, so that they are solved for in turn."""
    slope, levels = pyro.param("slope", f64(0.8)), pyro.param("levels", f64([0.1, 0.9]))
    scales = pyro.param("scales", f64([1.0, 1.2]), constraint=positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", kinds())
        pyro.sample("y", dist.Normal(levels[z] + slope * x, scales[z]), obs=y)


def rates(x, y):
    slopes, levels = coefficients()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", kinds())
        pyro.sample("y", dist.Poisson((levels[z] + slopes[z] * x).exp()), obs=y)


def odds(x, y):
    slopes, levels = coefficients()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", kinds())
        pyro.sample("y", dist.Bernoulli(logits=levels[z] + slopes[z] * x), obs=y)


def logits(x, y):
    slopes = pyro.param("slopes", f64([[0.8, -0.5], [-0.2, 0.3]]))
    levels = pyro.param("levels", f64([[0.1, 0.9], [-0.4, 0.2]]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", kinds())
        free = levels[z] + slopes[z] * x.unsqueeze(-1)
        pyro.sample("y", dist.Categorical(logits=torch.nn.functional.pad(free, (0, 1))), obs=y)


def with_a_prior(x, y):
    """A level with a prior, which L-BFGS moves over sums of all batches."""
    slopes = pyro.param("slopes", f64([0.8, -0.5]))
    with pyro.plate("components", 2):
        levels = pyro.sample("levels", dist.Normal(f64(0.0), 2.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", kinds())
        pyro.sample("y", dist.Normal(levels[z] + slopes[z] * x, 0.7), obs=y)


CASES = {
    "lines": (lines, waits),
    "parallels": (parallels, waits),
    "rates": (rates, counts),
    "odds": (odds, answers),
    "logits": (logits, choices),
}


@pytest.fixture(params=["held", "read anew"])
def memory(request, monkeypatch):
    """Whether batches, read once per M-step, stay in memory, as few do."""
    if request.param == "read anew":
        monkeypatch.setattr(shares, "MAX_HELD", 0)


@pytest.mark.parametrize("size", [15, N - 1, N])
@pytest.mark.parametrize("name", ["lines", "rates", "odds", "logits"])
def test_regressions_in_batches_are_those_of_the_whole(name, size):
    """The last batch of 15 and of N - 1 has one row."""
    model, make = CASES[name]
    found, whole = run(model, *make(), batch_size=size, **STEPS), run(model, *make(), **STEPS)
    agree(found, whole)
    assert found.history.objective.tolist() == pytest.approx(whole.history.objective.tolist(), abs=1e-8)
    assert found.explain().owner.tolist() == whole.explain().owner.tolist()
    assert "gradient" not in found.explain().owner.tolist()


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("name", ["parallels", "rates"])
def test_memory_changes_nothing(name):
    model, make = CASES[name]
    steps = {"max_steps": 3, "tol": 0}
    agree(run(model, *make(), batch_size=11, **steps), run(model, *make(), **steps))


def test_a_prior_on_a_coefficient():
    found, whole = run(with_a_prior, *waits(), batch_size=45, **STEPS), run(with_a_prior, *waits(), **STEPS)
    assert set(found.explain().owner) == {"closed form", "least squares"}
    agree(found, whole, atol=1e-7)


def test_classes_with_covariates():
    """The last batch has one row of 601."""
    data = latent_class_regression.load()
    start = run(latent_class_regression.model, *data, max_steps=0).params  # computed from all of the data
    found = run(latent_class_regression.model, *data, init=start, batch_size=200, **STEPS)
    agree(found, run(latent_class_regression.model, *data, init=start, **STEPS))


def test_batches_of_regressions_converge_where_the_whole_does():
    found, whole = run(lines, *waits(), batch_size=15), run(lines, *waits())
    assert found.converged and found.n_steps == whole.n_steps
    agree(found, whole)
    assert run(lines, *waits(), init=found, max_steps=0).objective == pytest.approx(found.objective, abs=1e-9)


def test_regressions_from_a_loader_and_a_file(tmp_path):
    x, y = waits()
    whole = run(lines, x, y, max_steps=5, tol=0)
    agree(run(lines, DataLoader(TensorDataset(x, y), batch_size=15), max_steps=5, tol=0), whole)
    files = [np.memmap(tmp_path / name, dtype=np.float64, mode="w+", shape=(N,)) for name in "xy"]
    for file, column in zip(files, (x, y), strict=True):
        file[:] = column.numpy()
    agree(run(lines, *files, batch_size=15, max_steps=5, tol=0), whole)


def test_regressions_in_batches_with_weights():
    weights = 1.0 + (torch.arange(N) % 3)
    whole = run(rates, *counts(), weights=weights, **STEPS)
    agree(run(rates, *counts(), weights=weights, batch_size=15, **STEPS), whole)


def test_squarem_on_regressions_in_batches():
    steps = {"max_steps": 9, "tol": 0, "accelerate": "squarem"}
    agree(run(lines, *waits(), batch_size=15, **steps), run(lines, *waits(), **steps))


def test_a_batch_whose_covariates_are_zero():
    """No slope reaches it."""
    x, y = waits()
    x[15:30] = 0.0
    agree(run(lines, x, y, batch_size=15, **STEPS), run(lines, x, y, **STEPS))


def test_a_batch_that_is_another_model():
    """Covariates that a batch squares are its own design; coefficients that one squares are left to the gradient."""
    start = float(waits()[0][0])

    def model(x, y):
        slope, level = pyro.param("slope", f64(0.8)), pyro.param("level", f64(0.3))
        odd = float(x[0]) == start
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(level + (slope * x if odd else slope**2 * x), 1.0), obs=y)

    found = run(model, *waits(), batch_size=15, max_steps=50, tol=1e-9)
    assert set(found.explain().owner) == {"gradient"}


def test_a_scale_that_collapses_in_batches():
    x, y = torch.linspace(-1, 1, 23, dtype=torch.float64), noise()[:23]
    y[[4, 11, 17]] = 10 + 2 * x[[4, 11, 17]]

    def model(x, y):
        weights = pyro.param("weights", f64([0.2, 0.8]), constraint=simplex)
        slopes, levels = pyro.param("slopes", f64([2.0, 0.0])), pyro.param("levels", f64([10.0, 0.0]))
        scales = pyro.param("scales", f64([0.1, 1.0]), constraint=positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("y", dist.Normal(levels[z] + slopes[z] * x, scales[z]), obs=y)

    with pytest.raises(DegenerateError, match=r"scale of Normal, given by parameter 'scales' at \[0\]"):
        run(model, x, y, batch_size=6)
    options = {"on_degenerate": "floor", "max_steps": 20, "tol": 0}
    agree(run(model, x, y, batch_size=6, **options), run(model, x, y, **options))


# Families -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAMILIES.values(), ids=lambda kind: kind.__name__)
def test_a_family_solves_in_pieces(kind):
    example = EXAMPLES[kind.__name__]
    family = FAMILIES[type(example.fn)].of(example.fn, example.fn.sample((9,)).to(torch.float64))
    width = family.coefficients(**example.args).shape[-1]
    stats = torch.rand(3, width, dtype=torch.float64).square().cumsum(-1)
    group = torch.tensor([0, 0, 1])
    for name in (a.name for a in family.args if a.rank == 0):
        whole = family.solve(name, Cells(stats, example.args, group, 2))
        parts = [slice(1), slice(1, 3)]
        pieces = [(family, Cells(stats[p], {n: a[p] for n, a in example.args.items()}, group[p], 2)) for p in parts]
        found = in_pieces(lambda f, c, name=name: f.solve(name, c), pieces)
        assert (found is None) == (whole is None)
        if whole is not None:
            torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-12, equal_nan=True)
