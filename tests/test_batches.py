"""EM in batches is EM: the same steps and the same numbers, however the data come.

In torchgmm and pycave a fit in minibatches differs from that of all data, and NaN parameters come with converged=True.
"""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.constraints import lower_cholesky, positive, simplex, unit_interval
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pyro_em import EM, RandomDraws, Status, fit

f64 = partial(torch.tensor, dtype=torch.float64)
N = 60
SIZES = (7, 59, 60, 100)  # of which one divides N, and one is larger


def data(num=N, dims=None):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*((num,) if dims is None else (num, dims)), generator=generator, dtype=torch.float64)
    x[: num // 3] -= 2.5
    x[num // 3 :] += 1.5
    return x[torch.randperm(num, generator=generator)]


def mixture(x):
    weights = pyro.param("weights", f64([0.4, 0.6]), constraint=simplex)
    locs = pyro.param("locs", f64([-1.0, 1.5]))
    scales = pyro.param("scales", f64([1.0, 1.2]), constraint=positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], scales[z]), obs=x)


def fulls(x):
    weights = pyro.param("weights", f64([0.4, 0.6]), constraint=simplex)
    locs = pyro.param("locs", f64([[-1.0, -1.0], [1.5, 1.5]]))
    trils = pyro.param("trils", 1.5 * torch.eye(2).repeat(2, 1, 1), constraint=lower_cholesky)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(locs[z], scale_tril=trils[z]), obs=x)


def classes(x):
    weights = pyro.param("weights", f64([0.4, 0.6]), constraint=simplex)
    probs = pyro.param("probs", f64([[0.3, 0.4], [0.6, 0.8]]), constraint=unit_interval)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Bernoulli(probs[z]).to_event(1), obs=(x > 0).to(x.dtype))


def regressions(x, y):
    weights = pyro.param("weights", f64([0.4, 0.6]), constraint=simplex)
    slopes, biases = pyro.param("slopes", f64([0.8, -0.5])), pyro.param("biases", f64([0.1, 0.9]))
    scale = pyro.param("scale", f64(1.0), constraint=positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(slopes[z] * x + biases[z], scale), obs=y)


def chains(x):
    init = pyro.param("init", f64([0.4, 0.6]), constraint=simplex)
    trans = pyro.param("trans", f64([[0.7, 0.3], [0.4, 0.6]]), constraint=simplex)
    locs = pyro.param("locs", f64([-1.0, 1.0]))
    with pyro.plate("sequences", len(x)):
        z = None
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[z]))
            pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[:, t])


CASES = {
    "mixture": (mixture, lambda: (data(),)),
    "fulls": (fulls, lambda: (data(dims=2),)),
    "classes": (classes, lambda: (data(dims=2),)),
    "chains": (chains, lambda: (data(dims=4),)),
}
each_case = pytest.mark.parametrize(("model", "make"), CASES.values(), ids=CASES)


def run(model, *args, init=None, seed=0, weights=None, **options):
    return fit(model, *args, strategy=EM(**options), init=init, seed=seed, weights=weights, progress=False)


def agree(one, other, atol=1e-8):
    torch.testing.assert_close(one.params, other.params, atol=atol, rtol=0)
    assert one.objective == pytest.approx(other.objective, abs=atol)
    assert one.log_evidence == pytest.approx(other.log_evidence, abs=atol)


# Batch size -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size"), [*(("mixture", s) for s in SIZES), *((n, s) for n in CASES for s in (16, 30))]
)
def test_batches_are_the_whole(name, size):
    model, make = CASES[name]
    x = make()
    found, whole = run(model, *x, batch_size=size, max_steps=4, tol=0), run(model, *x, max_steps=4, tol=0)
    agree(found, whole)
    assert found.history.objective.tolist() == pytest.approx(whole.history.objective.tolist(), abs=1e-8)
    assert found.n_steps == 4


def test_batches_of_several_arguments():
    """By gradients, whose every M-step ends a little elsewhere; the maximum is the same."""
    x, y = data(), 0.7 * data().flip(0) + data()
    found, whole = run(regressions, x, y, batch_size=16, max_steps=4, tol=0), run(regressions, x, y, max_steps=4, tol=0)
    agree(found, whole, atol=1e-4)
    loader = DataLoader(TensorDataset(x, y), batch_size=7)
    agree(run(regressions, loader, max_steps=2, tol=0), run(regressions, x, y, max_steps=2, tol=0), atol=1e-4)
    again = run(regressions, x, y, init=found, max_steps=0)
    assert again.objective == pytest.approx(found.objective, abs=1e-9)


def test_batches_of_one():
    x = data(9)
    agree(run(mixture, x, batch_size=1, max_steps=3, tol=0), run(mixture, x, max_steps=3, tol=0))


@pytest.mark.parametrize("size", [7, 30])
def test_batches_converge_where_the_whole_does(size):
    x = data()
    found, whole = run(mixture, x, batch_size=size), run(mixture, x)
    assert found.status is whole.status is Status.CONVERGED and found.n_steps == whole.n_steps
    agree(found, whole)


def test_what_converged_is_finite():
    """An inverted flag let NaN parameters pass for converged."""
    for size in (7, 16, 60):
        result = run(mixture, data(), batch_size=size)
        assert result.converged and all(torch.isfinite(v).all() for v in result.params.values())
        result = run(mixture, data(), batch_size=size, max_steps=2, tol=1e6)
        assert result.status is Status.MAX_STEPS and not result.converged


def test_a_bare_nan_in_a_later_batch_is_no_convergence():
    x = data()
    x[-1] = torch.nan
    try:
        result = run(mixture, x, batch_size=16, max_steps=20)
    except ValueError:
        return
    assert not result.converged and all(torch.isfinite(v).all() for v in result.params.values())


@pytest.mark.parametrize("size", [7, 30])
def test_batches_repeat_and_disturb_nobody(size):
    state = torch.get_rng_state()
    one, other = (run(mixture, data(), batch_size=size, max_steps=3, tol=0, seed=s) for s in (1, 2))
    assert torch.equal(state, torch.get_rng_state())
    agree(one, other)


def test_starts_from_the_first_batch():
    """Initial values that the model computes from its data are those of the first batch: it is all there is to see."""

    def model(x):
        weights = pyro.param("weights", f64([0.4, 0.6]), constraint=simplex)
        locs = pyro.param("locs", lambda: torch.stack([x.min(), x.max()]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)

    x = data().sort().values
    first = run(model, x[:16], max_steps=0).params
    agree(run(model, x, batch_size=16, max_steps=3, tol=0), run(model, x, init=first, max_steps=3, tol=0))


# With the rest of EM --------------------------------------------------------------------------------------


class Shifted:
    def place(self, engine):
        engine.move_to(engine.coordinates() + 0.2)


@pytest.mark.parametrize("size", [7, 30])
def test_batches_and_the_options_of_em(size):
    x = data()
    for options in (
        {"accelerate": "squarem"},
        {"fixed": "locs"},
        {"start": Shifted()},
        {"on_degenerate": "floor"},
    ):
        options |= {"max_steps": 6, "tol": 0}
        agree(run(mixture, x, batch_size=size, **options), run(mixture, x, **options), atol=1e-7)


def test_batches_and_restarts():
    x = data()
    found = run(mixture, x, batch_size=16, restarts=3, start=RandomDraws(0.3), max_steps=25)
    assert sorted(found.history.restart.unique()) == [0, 1, 2]
    assert found.objective == pytest.approx(found.history.objective.max(), abs=1e-9)
    assert run(mixture, x, init=found, max_steps=0).objective == pytest.approx(found.objective, abs=1e-9)


def test_batches_and_weights():
    x, weights = data(), 1.0 + (torch.arange(N) % 3)
    options = {"max_steps": 3, "tol": 0}
    whole = run(mixture, x, weights=weights, **options)
    agree(run(mixture, x, weights=weights, batch_size=16, **options), whole)
    agree(run(mixture, x.repeat_interleave(1 + torch.arange(N) % 3), batch_size=16, **options), whole)


def test_the_posterior_is_that_of_all_data():
    x = data()
    found, whole = run(mixture, x, batch_size=16, max_steps=3, tol=0), run(mixture, x, max_steps=3, tol=0)
    torch.testing.assert_close(found.posterior()["z"].probs, whole.posterior()["z"].probs, atol=1e-7, rtol=0)
    assert found.posterior()["z"].probs.shape == (N, 2)


# Loaders and files ----------------------------------------------------------------------------------------


@each_case
@pytest.mark.parametrize("size", [16, 30])
def test_a_loader_is_the_whole(model, make, size):
    x = make()
    loader = DataLoader(TensorDataset(*x), batch_size=size)
    agree(run(model, loader, max_steps=3, tol=0), run(model, *x, max_steps=3, tol=0))


def test_a_loader_that_shuffles_is_the_whole():
    x = data()
    loader = DataLoader(TensorDataset(x), batch_size=16, shuffle=True)
    agree(run(mixture, loader, max_steps=3, tol=0), run(mixture, x, max_steps=3, tol=0))


def test_a_data_set_that_reads_rows_one_by_one():
    x = data()

    class Rows(Dataset):
        def __len__(self):
            return len(x)

        def __getitem__(self, i):
            return {"x": x[i]}

    loader = DataLoader(Rows(), batch_size=16)
    agree(run(mixture, loader, max_steps=3, tol=0), run(mixture, x, max_steps=3, tol=0))


@pytest.fixture
def on_disk(tmp_path):
    """Data in a file, and in memory."""
    x = data()
    file = np.memmap(tmp_path / "x.bin", dtype=np.float64, mode="w+", shape=(N,))
    file[:] = x.numpy()
    file.flush()
    return np.memmap(tmp_path / "x.bin", dtype=np.float64, mode="r", shape=(N,)), x


@pytest.mark.parametrize("size", [7, 30, 100])
def test_a_file_is_the_whole(on_disk, size):
    file, x = on_disk
    found = run(mixture, file, batch_size=size, max_steps=4, tol=0)
    agree(found, run(mixture, x, max_steps=4, tol=0))
    assert all(v.dtype is torch.float64 for v in found.params.values())


def test_a_file_in_columns(tmp_path):
    x = data(dims=2)
    file = np.memmap(tmp_path / "xy.bin", dtype=np.float64, mode="w+", shape=(N, 2))
    file[:] = x.numpy()
    agree(run(fulls, file, batch_size=16, max_steps=3, tol=0), run(fulls, x, max_steps=3, tol=0))
    assert np.array_equal(file, x.numpy())


# Refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, -3])
def test_batch_size_is_positive(size):
    with pytest.raises(ValueError, match=f"batch_size.*{size}"):
        EM(batch_size=size)


def test_batch_size_twice():
    with pytest.raises(ValueError, match=r"batch_size=.*DataLoader"):
        run(mixture, DataLoader(TensorDataset(data()), batch_size=7), batch_size=7)


def test_nothing_to_cut():
    with pytest.raises(ValueError, match=r"batch_size=.*no tensor"):
        run(mixture, data().tolist(), batch_size=7)


def test_batches_need_a_plate_over_the_data():
    def model(x):
        loc = pyro.param("loc", f64(0.0))
        pyro.sample("x", dist.Normal(loc, 1.0).expand([len(x)]).to_event(1), obs=x)

    with pytest.raises(ValueError, match="plate"):
        run(model, data(), batch_size=7)


def test_a_latent_for_all_data_is_refused_or_exact():
    """Batches of a model whose data hang together by a latent are no sum over batches."""

    def model(x):
        regime = pyro.sample("regime", dist.Bernoulli(pyro.param("p", f64(0.3), constraint=unit_interval)))
        locs = pyro.param("locs", f64([-1.0, 1.5]))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(locs[regime.long()], 1.0), obs=x)

    try:
        found = run(model, data(), batch_size=7, max_steps=3, tol=0)
    except ValueError as error:
        assert "regime" in str(error)
        return
    agree(found, run(model, data(), max_steps=3, tol=0))
