"""Files of fits: what comes back answers as before."""

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from shared.saving import ADAM, X, amortised, fitted, mixture
from torch import Tensor
from torch.distributions.constraints import simplex
from torch.utils.data import DataLoader, TensorDataset
from untouched import untouched

from pyro_em import EM, SVI, FitResult, SaveError


def there_and_back(result: FitResult, path: Path, **options: Any) -> FitResult:
    result.save(path)
    return FitResult.load(path, result.model, **options)


def assert_same(one: FitResult, two: FitResult) -> None:
    names = ("objective", "objective_kind", "log_evidence", "status", "n_steps", "seconds", "converged")
    assert [getattr(one, n) for n in names] == [getattr(two, n) for n in names]
    assert one.history.equals(two.history)
    assert list(one.params) == list(two.params)
    assert all(torch.equal(one.params[n], two.params[n]) for n in one.params)
    assert one.explain().equals(two.explain())


# There and back -------------------------------------------------------------------------------------------------------


def test_em_answers_as_before(tmp_path: Path) -> None:
    one = fitted(weights=torch.arange(10.0), strategy=EM(tol=1e-6, restarts=2, fixed=("scale",)))
    two = there_and_back(one, tmp_path / "fit.pt")
    assert_same(one, two)
    new = torch.tensor([0.3, -4.0])
    for args in ((), (new,)):
        assert torch.equal(one.posterior(*args)["z"].probs, two.posterior(*args)["z"].probs)
        assert torch.equal(one.predict(*args, seed=1)["x"], two.predict(*args, seed=1)["x"])
    assert one.confint().equals(two.confint())
    assert (one.num_params, one.bic, one.icl) == (two.num_params, two.bic, two.icl)
    assert one.gap() == two.gap()
    with two.use():
        assert torch.equal(pyro.param("locs"), one.params["locs"])
    assert repr(one) == repr(two)


def test_the_file_holds_no_code(tmp_path: Path) -> None:
    fitted().save(tmp_path / "fit.pt")
    payload = torch.load(tmp_path / "fit.pt", weights_only=True)
    assert torch.equal(payload["params"]["locs"], fitted().params["locs"])


def test_point_estimates_come_back(tmp_path: Path) -> None:
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(2 * torch.ones(2)))
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc * (2.0 * z - 1), 1.0), obs=x)

    one = fitted(model)
    two = there_and_back(one, tmp_path / "fit.pt")
    assert_same(one, two)
    assert one.objective_kind == "log_joint"
    torch.testing.assert_close(two.stderr(), one.stderr(), rtol=0.0, atol=0.0)
    assert torch.equal(two.posterior()["loc"].v, one.posterior()["loc"].v)


def test_svi_with_a_guide_in_another_script(tmp_path: Path) -> None:
    model, guide = amortised()
    one = fitted(model, strategy=SVI(guide, optim=ADAM, max_steps=30))
    one.save(tmp_path / "fit.pt")
    other_model, other_guide = amortised(seed=7)
    other_guide.net.eval()
    guide.net.eval()
    before = {n: v.clone() for n, v in other_guide.net.state_dict().items()}
    with untouched():
        two = FitResult.load(tmp_path / "fit.pt", other_model, guide=other_guide)
    assert all(torch.equal(v, before[n]) for n, v in other_guide.net.state_dict().items())
    assert_same(one, two)
    with two.use():
        assert other_guide.net[0].num_batches_tracked > 0  # running statistics are values of the fit too
        assert other_guide.net.training  # as it was fitted
    assert not other_guide.net.training
    with one.use():
        guide.net.eval()
        expected = guide.net(X[:, None])
    with two.use():
        other_guide.net.eval()
        torch.testing.assert_close(other_guide.net(X[:, None]), expected)
    assert two.gap(num_samples=3, steps=2, seed=1).elbo == pytest.approx(one.gap(num_samples=3, steps=2, seed=1).elbo)


def test_without_the_guide_what_needs_it_says_so(tmp_path: Path) -> None:
    model, guide = amortised()
    one = fitted(model, strategy=SVI(guide, optim=ADAM, max_steps=5))
    two = there_and_back(one, tmp_path / "fit.pt")
    assert_same_but_explain(one, two)
    with two.use():
        assert torch.equal(pyro.param("slope"), one.params["slope"])
    for ask in (lambda: two.posterior().sample(1), two.gap, two.predict, lambda: two.guide(X)):
        with pytest.raises(SaveError, match=r"guide of this fit was not given.*guide=guide"):
            ask()


def test_without_the_guide_the_model_still_has_its_errors(tmp_path: Path) -> None:
    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=torch.stack([-slope * x, slope * x], -1)))

    one = fitted(strategy=SVI(guide, max_steps=0, fixed=("slope", "scale")), init=fitted())
    two = there_and_back(one, tmp_path / "fit.pt")
    assert two.num_params == one.num_params == 3
    assert two.confint().equals(one.confint())
    assert two.bic == one.bic


def assert_same_but_explain(one: FitResult, two: FitResult) -> None:
    assert one.objective == two.objective
    assert all(torch.equal(one.params[n], two.params[n]) for n in one.params)


def test_svi_without_a_guide_and_with_an_automatic_one(tmp_path: Path) -> None:
    summed = fitted(strategy=SVI(optim=ADAM, max_steps=20))
    assert_same(summed, there_and_back(summed, tmp_path / "summed.pt"))

    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    one = fitted(model, strategy=SVI(optim=ADAM, max_steps=20))
    two = there_and_back(one, tmp_path / "auto.pt")
    assert_same(one, two)
    torch.manual_seed(0)
    expected = one.posterior().sample(3)["loc"]
    torch.manual_seed(0)
    assert torch.equal(two.posterior().sample(3)["loc"], expected)


def test_a_resumed_fit_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    half = there_and_back(fitted(strategy=EM(tol=0, max_steps=10)), tmp_path / "fit.pt")
    resumed = fitted(strategy=EM(tol=0, max_steps=10), init=half)
    whole = fitted(strategy=EM(tol=0, max_steps=20))
    torch.testing.assert_close(resumed.params, whole.params, rtol=1e-10, atol=1e-12)
    assert resumed.log_evidence == pytest.approx(whole.log_evidence, abs=1e-10)


def test_file_is_written_at_once(tmp_path: Path) -> None:
    one = fitted()
    one.save(tmp_path / "fit.pt")
    one.save(str(tmp_path / "fit.pt"))
    assert [p.name for p in tmp_path.iterdir()] == ["fit.pt"]


# Data -----------------------------------------------------------------------------------------------------------------


def test_plain_arguments_are_stored_whatever_they_are_made_of(tmp_path: Path) -> None:
    big = torch.cat([X, torch.zeros(10_000)])[: len(X)]
    one = fitted(mixture, big, {"labels": [1, "a", None, (2.0, torch.ones(2))]}, components=3)
    two = there_and_back(one, tmp_path / "fit.pt")
    assert (tmp_path / "fit.pt").stat().st_size < 40_000  # not the storage that the data are a view of
    assert torch.equal(two.posterior()["z"].probs, one.posterior()["z"].probs)
    assert two.params["locs"].shape == (3,)


@pytest.mark.parametrize("kind", ["loader", "memmap", "left out"])
def test_other_data_are_asked_for(kind: str, tmp_path: Path) -> None:
    if kind == "memmap":
        np.save(tmp_path / "x.npy", X.numpy())
    data: dict[str, Any] = {
        "loader": lambda: DataLoader(TensorDataset(X), batch_size=4),
        "memmap": lambda: np.load(tmp_path / "x.npy", mmap_mode="r"),
        "left out": lambda: X,
    }
    args = data[kind]()
    one = fitted(mixture, args, strategy=EM(tol=1e-6, batch_size=4 if kind == "memmap" else None))
    one.save(tmp_path / "fit.pt", data=kind != "left out")
    with pytest.raises(SaveError, match=r"does not hold the training data.*FitResult.load\(path, model, \*args\)"):
        FitResult.load(tmp_path / "fit.pt", mixture)
    two = FitResult.load(tmp_path / "fit.pt", mixture, args)
    assert_same(one, two)
    assert torch.equal(two.posterior()["z"].probs, one.posterior()["z"].probs)


def test_sparse_data(tmp_path: Path) -> None:
    def topics(x: Tensor) -> None:
        weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=simplex)
        probs = pyro.param("probs", torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]]), constraint=simplex)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Multinomial(total_count=5, probs=probs[z], validate_args=False), obs=x)

    x = torch.tensor([[3.0, 0.0, 2.0], [0.0, 1.0, 4.0], [5.0, 0.0, 0.0]]).to_sparse_csr()
    one = fitted(topics, x)
    two = there_and_back(one, tmp_path / "fit.pt")
    assert_same(one, two)
    assert torch.equal(two.posterior()["z"].probs, one.posterior()["z"].probs)
