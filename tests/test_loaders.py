"""A DataLoader shows the whole of its data set, or it is refused."""

from functools import partial

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
