"""Free dimensions by constraint, and AIC, BIC and ICL against scikit-learn and sums written by hand."""

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import brute_force
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import positive, simplex

from models.gaussian_mixture import load
from pyro_em import EM, SVI, FitResult, ModelError, fit
from pyro_em.diagnostics.freedom import Freedom, free_dimensions
from pyro_em.params import Leaf


def fitted(model: Any, *args: Any, strategy: Any = None, **options: Any) -> FitResult:
    return fit(model, *args, strategy=strategy or EM(max_steps=5), seed=0, progress=False, **options)


def mixture(x: Tensor, covariance: bool = True) -> None:
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=simplex)
    locs = pyro.param("locs", torch.tensor([[2.0, 55.0], [4.5, 80.0]]))
    covs = pyro.param(
        "covs", torch.tensor([0.3, 40.0]).diag().repeat(2, 1, 1), constraint=constraints.positive_definite
    )
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(locs[z], covs[z]), obs=x)


CONSTRAINTS = [
    (constraints.real, (3, 2), 6),
    (constraints.positive, (), 1),
    (constraints.unit_interval, (4,), 4),
    (constraints.simplex, (5,), 4),
    (constraints.simplex, (2, 3, 4), 18),
    (constraints.positive_definite, (3, 4, 4), 30),
    (constraints.lower_cholesky, (3, 3), 6),
    (dist.constraints.softplus_lower_cholesky, (2, 3, 3), 12),
    (dist.constraints.unit_lower_cholesky, (3, 3), 3),
    (constraints.corr_cholesky, (4, 4), 6),
    (dist.constraints.corr_matrix, (2, 4, 4), 12),
    (dist.constraints.ordered_vector, (5,), 5),
    (dist.constraints.positive_ordered_vector, (2, 3), 6),
    (dist.constraints.sphere, (2, 3), 4),
    (constraints.independent(constraints.positive, 1), (4,), 4),
    (constraints.independent(constraints.simplex, 1), (2, 3), 4),
    (constraints.stack([constraints.positive, constraints.real], dim=-1), (3, 2), 6),
    (constraints.cat([constraints.simplex, constraints.positive], dim=-1, lengths=[3, 2]), (5,), 4),
]


@pytest.mark.parametrize(("constraint", "shape", "expected"), CONSTRAINTS, ids=lambda v: str(v)[:24])
def test_free_dimensions(constraint: Any, shape: tuple[int, ...], expected: int) -> None:
    transform = torch.distributions.transform_to(constraint)
    u = torch.randn(transform.inverse_shape(torch.Size(shape)), generator=torch.Generator().manual_seed(0))
    leaf = Leaf("p", u, constraint)
    assert tuple(leaf.value().shape) == shape
    assert free_dimensions(leaf) == expected
    freedom = Freedom(leaf)
    assert freedom.size == expected
    # What the directions leave out does not move the value; what they hold does.
    jacobian = torch.autograd.functional.jacobian(lambda v: transform(v).reshape(-1), u).reshape(-1, u.numel())
    slope = torch.block_diag(*freedom.slope)
    assert torch.linalg.matrix_rank(slope) == expected == torch.linalg.matrix_rank(jacobian)
    torch.testing.assert_close(slope @ slope.mT, jacobian @ jacobian.mT)


def test_against_scikit_learn() -> None:
    """GaussianMixture.aic and .bic of scikit-learn, at the parameters fitted here."""
    x = load()[0].double()
    result = fitted(mixture, x, strategy=EM(tol=1e-8))
    peer = GaussianMixture(2, covariance_type="full")
    peer.weights_, peer.means_ = result.params["weights"].numpy(), result.params["locs"].numpy()
    peer.covariances_ = result.params["covs"].numpy()
    peer.precisions_cholesky_ = np.linalg.cholesky(np.linalg.inv(peer.covariances_))
    assert result.num_params == peer._n_parameters() == 11
    assert result.aic == pytest.approx(peer.aic(x.numpy()), abs=1e-6)
    assert result.bic == pytest.approx(peer.bic(x.numpy()), abs=1e-6)
    probs = peer.predict_proba(x.numpy())
    entropy = -(probs * np.log(np.where(probs > 0, probs, 1.0))).sum()
    assert result.icl - result.bic == pytest.approx(2 * entropy, rel=1e-6)
    assert entropy > 0.1


def test_bic_of_mclust() -> None:
    """R's mclust 6: Mclust(faithful, 2, "VVV")$bic = -2322.192 (it reports minus what is here)."""
    assert fitted(mixture, load()[0].double(), strategy=EM(tol=1e-8)).bic == pytest.approx(2322.192, abs=0.01)


def test_entropy_of_a_chain_is_that_of_the_joint() -> None:
    def chain(x: Tensor) -> None:
        stay = pyro.param("stay", torch.tensor([[0.8, 0.2], [0.3, 0.7]]), constraint=simplex)
        locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
        with pyro.plate("sequences", x.shape[1]):
            z = 0
            for t in pyro.markov(range(len(x))):
                z = pyro.sample(f"z_{t}", dist.Categorical(stay[z]))
                pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[t])

    x = torch.tensor([[0.3, -0.2], [1.1, 0.4], [-0.6, 0.1], [0.2, 0.9]])
    result = fitted(chain, x, strategy=EM(max_steps=1))
    with result.use():
        weights = brute_force(chain, (x,)).weights
    entropy = -(weights * weights.log()).sum().item()
    assert result.icl - result.bic == pytest.approx(2 * entropy, rel=1e-9)
    assert result.bic == pytest.approx(4 * math.log(2) - 2 * result.log_evidence, abs=1e-9)  # n: two sequences


def count(x: Tensor) -> None:
    rate = pyro.param("rate", torch.tensor(1.0), constraint=positive)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Poisson(rate), obs=x)


def test_weights_count_as_rows() -> None:
    x, weights = torch.tensor([1.0, 4.0, 2.0]), torch.tensor([3.0, 1.0, 2.0])
    weighted = fitted(count, x, weights=weights)
    repeated = fitted(count, torch.repeat_interleave(x, weights.long()))
    assert weighted.bic == pytest.approx(repeated.bic, abs=1e-9)
    assert weighted.bic == pytest.approx(math.log(6) - 2 * weighted.log_evidence, abs=1e-9)


def test_batches_count_all_data() -> None:
    x = torch.arange(10.0)
    assert fitted(count, x, strategy=EM(batch_size=3)).bic == pytest.approx(fitted(count, x).bic, abs=1e-8)


def test_fixed_tied_and_guide_parameters() -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Parameter(torch.tensor([0.1, 0.5]))
            self.b = self.a

    two = Two()

    def model(x: Tensor) -> None:
        pyro.module("two", two)
        scale = pyro.param("scale", torch.tensor(1.0), constraint=positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(two.a[z.long()] + two.b[0], scale), obs=x)

    def guide(x: Tensor) -> None:
        logits = pyro.param("logits", torch.zeros(len(x)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=logits), infer={"enumerate": "parallel"})

    x = torch.tensor([0.2, 1.0, -0.4])
    assert fitted(model, x).num_params == 3
    assert fitted(model, x, strategy=EM(max_steps=1, fixed="scale")).num_params == 2
    assert fitted(model, x, strategy=SVI(guide, max_steps=1)).num_params == 3
    assert fitted(model, x, strategy=SVI(guide, max_steps=1, fixed="two$$$a")).num_params == 1


def test_point_estimates_count_and_their_prior_is_no_likelihood() -> None:
    def model(x: Tensor) -> None:
        probs = pyro.sample("probs", dist.Dirichlet(2 * torch.ones(3)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Categorical(probs), obs=x)

    result = fitted(model, torch.tensor([0, 1, 1, 2, 2, 2]))
    assert result.objective_kind == "log_joint"
    assert result.num_params == 2
    assert result.aic == pytest.approx(4 - 2 * result.log_evidence, abs=1e-9)
    assert result.icl == result.bic  # nothing is hidden


def test_several_outermost_plates_add_up() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        rate = pyro.param("rate", torch.tensor(1.0), constraint=positive)
        with pyro.plate("first", len(x)):
            pyro.sample("x", dist.Poisson(rate), obs=x)
        for i in pyro.plate("second", len(y)):
            pyro.sample(f"y_{i}", dist.Exponential(rate), obs=y[i])

    result = fitted(model, torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.4, 0.2]))
    assert result.bic == pytest.approx(math.log(5) - 2 * result.log_evidence, abs=1e-9)


def test_no_plate_no_bic() -> None:
    def model(x: Tensor) -> None:
        pyro.sample("x", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0).expand([3]).to_event(1), obs=x)

    result = fitted(model, torch.ones(3))
    assert result.aic == pytest.approx(2 - 2 * result.log_evidence)
    with pytest.raises(ModelError, match="outermost plate that holds data; the model has none"):
        result.bic  # noqa: B018


def test_continuous_latents_have_no_criteria() -> None:
    def model(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(slope * c, 0.5), obs=x)

    result = fitted(model, torch.ones(3), strategy=SVI(max_steps=1))
    assert result.num_params == 1
    with pytest.raises(ModelError, match=r"\['c'\] cannot be summed out"):
        result.aic  # noqa: B018
