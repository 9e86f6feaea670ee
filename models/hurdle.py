"""Hurdle counts: one law says whether there is any, another how many there are then.

    [y_n > 0]        ~ Bernoulli(logits = design_n . hurdle_coefs)                 n = 1 ... N
    y_n | y_n > 0    ~ f(. ; m_n) truncated to 1, 2, ...,   m_n = exp(design_n . count_coefs)

    log p(y) = sum_n log p([y_n > 0]) + sum_{y_n > 0} log f(y_n; m_n) - log(1 - f(0; m_n))

with f Poisson, or negative binomial of variance m_n + m_n^2 / size. Unlike a zero-inflated model it
has no latent: EM is plain maximum likelihood here, and the two laws are fitted apart. Articles of
915 biochemists: -1605.3117 (Poisson), -1552.5966 (negative binomial).

Source: Mullahy (1986), Journal of Econometrics 33, 341-365; Zeileis, Kleiber & Jackman (2008),
Journal of Statistical Software 27(8), equation 5. Data: as `zero_inflated`.
"""

from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from models.zero_inflated import Counts, load, negative_binomial, poisson, start_coefs

__all__ = ["TRUTH", "ZeroTruncated", "load", "make", "model", "negative_binomial", "poisson", "simulate"]

# What `simulate` draws from.
TRUTH = {
    "hurdle_coefs": torch.tensor([0.5, -1.0], dtype=torch.float64),
    "count_coefs": torch.tensor([1.0, 0.6], dtype=torch.float64),
}


class ZeroTruncated(dist.TorchDistribution):
    """A distribution of counts, given that they are positive."""

    arg_constraints = {}  # noqa: RUF012 - torch's own form
    support = constraints.positive_integer

    def __init__(self, counts: dist.TorchDistribution) -> None:
        self.counts = counts
        super().__init__(counts.batch_shape, validate_args=False)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw until all are positive: quick unless the means are tiny."""
        draws = self.counts.sample(sample_shape)
        while (draws == 0).any():
            draws = torch.where(draws == 0, self.counts.sample(sample_shape), draws)
        return draws

    def log_prob(self, value: Tensor) -> Tensor:
        at_zero = self.counts.log_prob(torch.zeros_like(value))
        return self.counts.log_prob(value) - (-at_zero.expm1()).log()


def model(y: Tensor, design: Tensor, counts: Counts = poisson) -> None:
    """Draw the counts `y` (N,) given `design` (N, P).

    Parameters: `hurdle_coefs` (P,), log odds of a positive count; `count_coefs` (P,), log means of
    what is truncated; and those of `counts`.
    """
    hurdle_coefs = pyro.param("hurdle_coefs", y.new_zeros(design.shape[-1]))
    count_coefs = pyro.param("count_coefs", lambda: start_coefs(y, design))
    with pyro.plate("data", len(y)):
        pyro.sample("positive", dist.Bernoulli(logits=design @ hurdle_coefs), obs=(y > 0).to(y))
        how_many = ZeroTruncated(counts((design @ count_coefs).exp()))
        pyro.sample("y", how_many.mask(y > 0), obs=y.clamp(min=1))


def make(counts: Counts = poisson) -> tuple[Callable[..., None], None]:
    """The model with one of the laws of counts, and no guide: there is nothing latent."""
    return partial(model, counts=counts), None


def simulate(num: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
    """`num` counts drawn at `TRUTH`, and their design (num, 2); the global generator is left alone."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, generator=generator, dtype=torch.float64)
    design = torch.stack([torch.ones_like(x), x], dim=-1)
    positive = torch.bernoulli((design @ TRUTH["hurdle_coefs"]).sigmoid(), generator=generator)
    mean = (design @ TRUTH["count_coefs"]).exp()
    # The first event of a Poisson process, given that there is one in time, and those that follow it.
    first = -torch.log1p(torch.rand(num, generator=generator, dtype=torch.float64) * (-mean).expm1())
    return positive * (1 + torch.poisson(mean - first, generator=generator)), design
