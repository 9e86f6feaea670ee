"""A Markov-switching regression: coefficients that change with a hidden regime.

    z_1 ~ Categorical(init),    z_t | z_{t-1} = j  ~ Categorical(trans[j])      t = 2 ... T
    y_t | z_t = k  ~ Normal(sum_p design_{t,p} coefs[k, p], scale)

where init is no parameter but the law that `trans` keeps. The rate of the US Federal Reserve with an intercept alone,
two levels of interest, reaches -508.6359; with the rate of the quarter before as a second column, -264.7107.

Source: Hamilton (1989), Econometrica 57, 357-384; Stata's manual [TS] mswitch, examples 1 and 2, and statsmodels'
`MarkovRegression`, which have both values. Data: see `data/README.md`.
"""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from models import autoregressive_hmm
from models.poisson_hmm import stationary_law

__all__ = ["TRUTH", "lagged", "load", "make", "model", "simulate"]

# What `simulate` draws from.
TRUTH = {
    "trans": torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64),
    "coefs": torch.tensor([[-1.0, 0.5], [2.0, -0.5]], dtype=torch.float64),
    "scale": torch.tensor(0.7, dtype=torch.float64),
}


def model(y: Tensor, design: Tensor, num_regimes: int = 2) -> None:
    """Draw responses `y` (T,) given `design` (T, P), sites `z_0, y_0, z_1, ...`.

    Parameters: the rows of `trans` (K, K), on the simplex; `coefs` (K, P); `scale`, positive.
    """
    K = num_regimes
    sticky = 0.9 * torch.eye(K) + 0.1 / K
    trans = pyro.param("trans", sticky.to(y), constraint=constraints.simplex)
    coefs = pyro.param("coefs", lambda: start_coefs(y, design, K))
    scale = pyro.param("scale", lambda: y.std() / 2, constraint=constraints.positive)
    init, z = stationary_law(trans), None
    for t in pyro.markov(range(len(y))):
        z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[z]))
        pyro.sample(f"y_{t}", dist.Normal((design[t] * coefs[z]).sum(-1), scale), obs=y[t])


def start_coefs(y: Tensor, design: Tensor, num_regimes: int) -> Tensor:
    """Least squares, the intercepts (first column) apart by one deviation of the residuals."""
    coef = torch.linalg.lstsq(design, y.unsqueeze(-1)).solution.squeeze(-1)
    coefs = coef.repeat(num_regimes, 1)
    coefs[:, 0] += torch.linspace(-1, 1, num_regimes).to(y) * (y - design @ coef).std()
    return coefs


def make() -> tuple[Callable[..., None], None]:
    """The model, and no guide: the regimes have finite support and can be summed out."""
    return model, None


def load() -> tuple[Tensor, Tensor]:
    """The federal funds rate by quarter, 1954 to 2010, in percent, (226,), and an intercept, (226, 1)."""
    (rates,) = autoregressive_hmm.load()
    return rates, torch.ones_like(rates).unsqueeze(-1)


def lagged() -> tuple[Tensor, Tensor]:
    """The same from the second quarter on, (225,), by an intercept and the rate before, (225, 2)."""
    (rates,) = autoregressive_hmm.load()
    return rates[1:], torch.stack([torch.ones_like(rates[1:]), rates[:-1]], dim=-1)


def simulate(length: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
    """`length` responses drawn at `TRUTH`, and their design (length, 2); the global generator is left alone."""
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, length, generator=generator, dtype=torch.float64)
    design = torch.stack([torch.ones_like(x), x], dim=-1)
    probs, states = stationary_law(TRUTH["trans"]), []
    for _ in range(length):
        states.append(torch.multinomial(probs, 1, generator=generator).squeeze(-1))
        probs = TRUTH["trans"][states[-1]]
    return (design * TRUTH["coefs"][torch.stack(states)]).sum(-1) + TRUTH["scale"] * noise, design
