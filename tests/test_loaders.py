"""A DataLoader shows the whole of its data set, or it is refused."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from batch_cases import N, agree, data, mixture, run
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from untouched import refused

from pyro_em import EM, SVI, fit
from pyro_em.data import open_batches

BOTH = pytest.mark.parametrize("strategy", [EM(max_steps=2), SVI(max_steps=2)], ids=["em", "svi"])


# Samplers -------------------------------------------------------------------------------------------------


class Buckets(BatchSampler):
    """Batches as it likes."""


def own_samplers(x):
    rows = TensorDataset(x)
    first = BatchSampler(SubsetRandomSampler(range(20)), 16, False)
    yield "SubsetRandomSampler", DataLoader(rows, 16, sampler=SubsetRandomSampler(range(20)))
    yield "WeightedRandomSampler", DataLoader(rows, 16, sampler=WeightedRandomSampler([1.0] * len(x), len(x)))
    yield "RandomSampler", DataLoader(rows, 16, sampler=RandomSampler(rows, replacement=True))
    yield "RandomSampler", DataLoader(rows, 16, sampler=RandomSampler(rows, num_samples=20))
    yield "SequentialSampler", DataLoader(rows, 16, sampler=SequentialSampler(range(20)))
    yield "SubsetRandomSampler", DataLoader(rows, batch_sampler=first)
    yield "Buckets", DataLoader(rows, batch_sampler=Buckets(SequentialSampler(rows), 16, False))
    yield "list", DataLoader(rows, batch_sampler=[[0, 1], [2, 3]])
    yield "SubsetRandomSampler", DataLoader([x], batch_size=None, sampler=SubsetRandomSampler([0, 0]))


@BOTH
@pytest.mark.parametrize(("name", "loader"), list(own_samplers(data())))
def test_a_sampler_of_its_own_is_refused(name, loader, strategy):
    """EM would fit all rows, and SVI take N and its objective from all rows."""
    with refused(ValueError, rf"{name}, shows other data.*Subset\(ds, rows\)"):
        fit(mixture, loader, strategy=strategy, progress=False)


def test_a_subset_is_what_it_holds():
    x = data()
    part = Subset(TensorDataset(x), range(20))
    agree(run(mixture, DataLoader(part, 8, shuffle=True), max_steps=3), run(mixture, x[:20], max_steps=3))
    found = fit(mixture, DataLoader(part, 8, shuffle=True), strategy=SVI(max_steps=3), seed=0, progress=False)
    at_end = fit(mixture, x[:20], strategy=EM(max_steps=0), init=found, progress=False)
    assert found.log_evidence == pytest.approx(at_end.log_evidence, abs=1e-9)


def test_a_batch_sampler_over_all_rows():
    x = data()
    rows = TensorDataset(x)
    loader = DataLoader(rows, batch_sampler=BatchSampler(RandomSampler(rows), 16, True))
    agree(run(mixture, loader, max_steps=3), run(mixture, x, max_steps=3))
    assert open_batches((loader,), {}, None).batch_size == 16


@BOTH
def test_no_data(strategy):
    with refused(ValueError, "DataLoader must have data.*length 0"):
        fit(mixture, DataLoader(TensorDataset(torch.zeros(0)), 4), strategy=strategy, progress=False)


# The rest that drop_last leaves out -----------------------------------------------------------------------


def test_what_is_left_out_of_steps_counts_in_the_end():
    x = data()
    loader = DataLoader(TensorDataset(x), 16, shuffle=True, drop_last=True)
    agree(run(mixture, loader, max_steps=3), run(mixture, x, max_steps=3))
    found = fit(mixture, loader, strategy=SVI(max_epochs=2), seed=0, progress=False)
    assert found.n_steps == 2 * (N // 16)
    at_end = fit(mixture, x, strategy=EM(max_steps=0), init=found, progress=False)
    assert found.log_evidence == pytest.approx(at_end.log_evidence, abs=1e-9)


def test_nothing_is_left():
    loader = partial(DataLoader, TensorDataset(data()), drop_last=True)
    with refused(ValueError, f"drop_last=True leaves out its {N} data"):
        fit(mixture, loader(100), strategy=SVI(max_steps=2), progress=False)
    agree(run(mixture, loader(100), max_steps=3), run(mixture, data(), max_steps=3))


# A data set of whole batches ------------------------------------------------------------------------------


def mean(x):
    m = pyro.sample("m", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(m, 1.2), obs=x)


def guide(x):
    loc = pyro.param("loc", torch.zeros((), dtype=torch.float64))
    scale = pyro.param("scale", torch.full((), 0.3, dtype=torch.float64), constraint=dist.constraints.positive)
    pyro.sample("m", dist.Normal(loc, scale))


@pytest.mark.parametrize("sizes", [(50, 50, 50, 50), (20, 80, 30, 70)], ids=["alike", "unlike"])
def test_rows_of_whole_batches_count(sizes):
    """The posterior of the mean has precision 1 / 4 + 200 / 1.44; with N = 4 batches its deviation came out at 0.5."""
    x = data(200)
    loader = DataLoader([(part,) for part in x.split(sizes)], batch_size=None, shuffle=True)
    batches = open_batches((loader,), {}, None)
    assert batches is not None and (batches.total, batches.batch_size) == (200, max(sizes))
    assert torch.equal(batches.whole()[0][0], x)
    optim = pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.97})
    strategy = SVI(guide, optim=optim, max_epochs=120, patience=None, num_particles=5)
    found = fit(mean, loader, strategy=strategy, seed=0, progress=False)
    precision = 1 / 4 + 200 / 1.44
    assert found.params["scale"].item() == pytest.approx(precision**-0.5, rel=0.05)
    assert found.params["loc"].item() == pytest.approx(x.sum().item() / 1.44 / precision, abs=0.03)


def test_em_on_whole_batches():
    x = data()
    loader = DataLoader(list(x.split([10, 30, 20])), batch_size=None)
    agree(run(mixture, loader, max_steps=3, tol=0), run(mixture, x, max_steps=3, tol=0))
