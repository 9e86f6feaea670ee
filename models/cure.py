"""A cure model: of those who are followed, some will never see the event, and nobody knows who.

    uncured_n               ~ Bernoulli(logits = design_n . cure_coefs)        n = 1 ... N
    T_n | uncured_n = 1     ~ survival S(t) = exp(-t^shape exp(design_n . rate_coefs))
    T_n | uncured_n = 0     = infinity

    log p = sum_{events} log(p_n f_n(t_n)) + sum_{censored} log(1 - p_n + p_n S_n(t_n))

with f = -S', a Weibull density, and p_n = P(uncured_n = 1). The E-step asks of each censored person
how likely a cure is. Years in remission under 6-mercaptopurine: -4.9377, with 44 % cured; of those
on placebo all relapsed, which leaves nothing to estimate.

Source: Farewell (1982), Biometrics 38, 1041-1046; Sy & Taylor (2000), Biometrics 56, 227-236. Data:
Freireich et al. (1963), see `data/README.md`.
"""

import csv
from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

__all__ = ["TRUTH", "load", "make", "model", "simulate"]

DATA = Path(__file__).parent / "data" / "leukemia.csv"
WEEKS = 365.25 / 7

# What `simulate` draws from.
TRUTH = {
    "cure_coefs": torch.tensor([1.0, -1.5], dtype=torch.float64),
    "rate_coefs": torch.tensor([0.5, -0.5], dtype=torch.float64),
    "shape": torch.tensor(1.5, dtype=torch.float64),
}


def model(time: Tensor, event: Tensor, design: Tensor) -> Tensor:
    """Score `time` (N,), positive, until the event (`event` (N,) one) or until censored (zero), given `design` (N, P).

    Returns who is uncured, zeros and ones (N,). Parameters: `cure_coefs` (P,), log odds of being
    uncured; `rate_coefs` (P,), log hazards; `shape`, positive, one for a constant hazard.
    """
    cure_coefs = pyro.param("cure_coefs", time.new_zeros(design.shape[-1]))
    rate_coefs = pyro.param("rate_coefs", time.new_zeros(design.shape[-1]))
    shape = pyro.param("shape", time.new_ones(()), constraint=constraints.positive)
    log_rate = design @ rate_coefs
    log_survival = -(time**shape) * log_rate.exp()
    log_hazard = shape.log() + (shape - 1) * time.log() + log_rate
    with pyro.plate("people", len(time)):
        uncured = pyro.sample("uncured", dist.Bernoulli(logits=design @ cure_coefs))
        impossible = event.log1p().where(event == 0, -torch.inf)
        pyro.factor("time", torch.where(uncured == 1, event * log_hazard + log_survival, impossible))
    return uncured


def make() -> tuple[Callable[..., Tensor], None]:
    """The model, and no guide: `uncured` is binary and can be summed out."""
    return model, None


def load() -> tuple[Tensor, Tensor, Tensor]:
    """Years in remission of 21 children treated for leukemia, relapse or not, and the design 1, (21, 1)."""
    with DATA.open(newline="") as file:
        rows = [row[:2] for row in csv.reader(file) if row[2] == "1"]
    weeks, relapsed = torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64).T
    return weeks / WEEKS, relapsed, torch.ones_like(weeks).unsqueeze(-1)


def simulate(num: int = 300, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """`num` people at `TRUTH`, half of them treated, followed for up to 3 years; the global generator is left alone."""
    generator = torch.Generator().manual_seed(seed)
    treated = (torch.arange(num) % 2).double()
    design = torch.stack([torch.ones_like(treated), treated], dim=-1)
    uncured = torch.bernoulli((design @ TRUTH["cure_coefs"]).sigmoid(), generator=generator)
    draws = torch.rand(2, num, generator=generator, dtype=torch.float64)
    latest = 0.5 + 2.5 * draws[0]
    time = (-draws[1].log() / (design @ TRUTH["rate_coefs"]).exp()) ** (1 / TRUTH["shape"])
    event = (uncured == 1) & (time <= latest)
    return time.where(event, latest), event.double(), design
