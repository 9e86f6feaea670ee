"""Multinomial counts: densities and base measures against torch's own, which take more time and memory."""

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_em.families.categorical import Multinomial
from pyro_em.graph.impossible import with_true_zeros

N, K, V = 6, 3, 5
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def counts() -> Tensor:
    """Rows with zeros, ones and more, one of them of a single category, one empty."""
    x = torch.randint(0, 4, (N, V)).double()
    x[0], x[1] = torch.tensor([4.0, 0, 0, 0, 0]), 0.0
    return x


def weights(zeros: bool) -> Tensor:
    w = torch.rand(K, 1, V, dtype=torch.float64) + 0.1
    if zeros:
        w[0, 0, 1], w[1, 0] = 0.0, torch.tensor([1.0, 0, 0, 0, 0])
    return w / w.sum(-1, keepdim=True)


@DTYPES
@pytest.mark.parametrize("expanded", [False, True])
@pytest.mark.parametrize("given", ["probs", "logits"])
@pytest.mark.parametrize("zeros", [False, True])
def test_the_density_is_that_of_torch(zeros: bool, given: str, expanded: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, p = counts().to(dtype), weights(zeros).to(dtype)
    wanted = dist.Multinomial(logits=p.log(), validate_args=False).log_prob(x)
    argument = p if given == "probs" else p.log()
    fn = dist.Multinomial(**{given: argument}, validate_args=False)
    found = with_true_zeros(fn.expand((K, N)) if expanded else fn).log_prob(x)
    assert bool((wanted == -torch.inf).any()) == zeros
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("batch", [(), (4,), (2, N), (K, N)])
def test_the_shape_is_that_of_torch(batch: tuple[int, ...]) -> None:
    p, x = torch.ones(V).double() / V, counts()
    fn = dist.Multinomial(probs=p, validate_args=False).expand(batch)
    value = x if batch[-1:] != (4,) else x[:1]
    assert with_true_zeros(fn).log_prob(value).shape == fn.log_prob(value).shape


def test_the_gradient_is_that_of_torch() -> None:
    torch.manual_seed(0)
    x, one = counts(), weights(False).requires_grad_()
    other = one.detach().clone().requires_grad_()
    r = torch.rand(K, N, dtype=torch.float64)
    (with_true_zeros(dist.Multinomial(probs=one, validate_args=False).expand((K, N))).log_prob(x) * r).sum().backward()
    (dist.Multinomial(probs=other, validate_args=False).log_prob(x) * r).sum().backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-12)


def test_data_outside_of_the_support_are_refused() -> None:
    fn = dist.Multinomial(2, probs=torch.ones(V).double() / V, validate_args=True)
    with pytest.raises(ValueError, match="within the support"):
        with_true_zeros(fn).log_prob(torch.tensor([-1.0, 3, 0, 0, 0]).double())


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor made, views of smaller ones aside."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.most = max(self.most, out.untyped_storage().nbytes() // out.element_size())
        return out


def test_no_tensor_of_data_by_states_by_categories() -> None:
    fn = dist.Multinomial(probs=weights(False), validate_args=False).expand((K, N))
    with Largest() as seen:
        with_true_zeros(fn).log_prob(counts())
    assert 0 < seen.most <= max(N * V, K * V, K * N)


def test_the_base_measure_counts_the_orders() -> None:
    torch.manual_seed(0)
    x = torch.cat([counts(), 0.5 * counts(), torch.full((1, V), 150.0).double()]).T.reshape(V, -1, 1, 1)
    wanted = torch.lgamma(x.sum(0) + 1) - torch.lgamma(x + 1).sum(0)
    torch.testing.assert_close(Multinomial(V).base_measure(x), wanted, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(Multinomial(V).base_measure(x[:, 0, 0, 0]), wanted[0, 0, 0], rtol=1e-13, atol=1e-13)
