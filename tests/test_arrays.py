"""Arrays that are no tensors: a file on disk is read, others are named where the model fails on them."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from batch_cases import data, mixture, run

from pyro_em import EM, SVI, ModelError, fit

X = data().numpy()
BOTH = pytest.mark.parametrize("strategy", [EM(max_steps=2), SVI(max_steps=2)], ids=["em", "svi"])


@pytest.fixture
def on_disk(tmp_path):
    file = np.memmap(tmp_path / "x.bin", dtype=np.float64, mode="w+", shape=X.shape)
    file[:] = X
    return file


def scaled(*, x, factor):
    mixture(x * factor)


@pytest.mark.parametrize("restarts", [1, 2])
def test_svi_reads_a_file_whole(on_disk, restarts):
    strategy = SVI(max_steps=20, restarts=restarts)
    found, held = (fit(mixture, x, strategy=strategy, seed=0, progress=False) for x in (on_disk, data()))
    assert found.history.objective.tolist() == held.history.objective.tolist()
    torch.testing.assert_close(found.params, held.params, rtol=0, atol=0)
    assert found.log_evidence == held.log_evidence == found.posterior().log_evidence


def test_svi_reads_a_file_given_by_name(on_disk):
    found = fit(scaled, x=on_disk, factor=2.0, strategy=SVI(max_steps=5), seed=0, progress=False)
    held = fit(scaled, x=data(), factor=2.0, strategy=SVI(max_steps=5), seed=0, progress=False)
    assert found.history.objective.tolist() == held.history.objective.tolist()


@BOTH
@pytest.mark.parametrize(
    ("x", "match"),
    [
        (X, r"Argument 0 .* numpy\.ndarray.*torch\.as_tensor\(x\)"),
        (pd.Series(X), r"Argument 0 .* pandas\.Series.*torch\.as_tensor\(x\.to_numpy\(\)\)"),
        (pd.DataFrame({"x": X}), r"Argument 0 .* pandas\.DataFrame.*to_numpy"),
    ],
    ids=["array", "series", "frame"],
)
def test_a_model_that_fails_on_an_array(x, match, strategy):
    with pytest.raises(AttributeError, match=match):
        fit(mixture, x, strategy=strategy, progress=False)


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
def test_a_step_that_fails_on_an_array():
    """The first runs, without gradients, pass."""

    def model(x, y):
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("y", dist.Normal(slope * x * z, 1.0), obs=y)

    with pytest.raises((RuntimeError, ModelError), match=r"Argument 0 .* numpy\.ndarray"):
        run(model, X, data(), max_steps=1)


def test_a_posterior_that_fails_on_an_array():
    found = run(mixture, data(), max_steps=1)
    for ask in (found.posterior, found.predict):
        with pytest.raises((AttributeError, ModelError), match=r"Argument 0 .* numpy\.ndarray"):
            ask(X)


def test_an_array_that_the_model_wants():
    def model(x, rows):
        assert isinstance(rows, np.ndarray)
        mixture(x[torch.from_numpy(rows)])

    found = run(model, data(), np.arange(20), max_steps=2)
    assert found.log_evidence == pytest.approx(run(mixture, data()[:20], max_steps=2).log_evidence, abs=1e-9)


def test_a_refusal_is_no_matter_of_arrays():
    def model(x, rows):
        with pyro.plate("data", len(x)):
            h = pyro.sample("h", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(h * pyro.param("slope", torch.tensor(1.0)), 1.0), obs=x)

    with pytest.raises(ModelError, match="'h'") as caught:
        run(model, data(), np.arange(20))
    assert not hasattr(caught.value, "__notes__")
