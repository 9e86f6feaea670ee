"""Capture and recapture: an animal that is not seen again may be dead, or alive and overlooked.

    z_{i,f_i} = 1,    z_{i,t} | z_{i,t-1}  ~ Bernoulli(z_{i,t-1} survival)      i = 1 ... N animals
    x_{i,t} | z_{i,t}  ~ Bernoulli(z_{i,t} detection)                           t = f_i + 1 ... l_i occasions

where f_i is the animal's first capture, given which the rest is drawn, and l_i the last occasion at which it could be
caught. An animal that is caught and set free again is one that is removed and another one set free: the likelihood is
the same, and so all there is to know of captures is a table of how many of those set free at one time were first seen
again at another. Dippers: survival 0.5602 a year and detection 0.9026, at -333.4188.

Source: Cormack (1964), Biometrika 51, 429-438; Jolly (1965) and Seber (1965), Biometrika 52, 225-259. Data and value:
Lebreton, Burnham, Clobert & Anderson (1992), Ecological Monographs 62, 67-118, see `data/README.md`.
"""

import csv
from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

__all__ = ["TRUTH", "load", "make", "model", "simulate"]

DATA = Path(__file__).parent / "data" / "dipper_releases.csv"
OCCASIONS = 7

# What `simulate` draws from.
TRUTH = {
    "survival": torch.tensor(0.7, dtype=torch.float64),
    "detection": torch.tensor(0.6, dtype=torch.float64),
}


def model(x: Tensor, last: Tensor | None = None) -> None:
    """Draw captures `x` (N, T), zeros and ones with a one in every row, sites `z_1, x_1, ...` in plate "animals".

    `last` (N,), integers below T, has the last occasion at which each animal could be caught: T - 1 without it.
    Parameters: `survival` from one occasion to the next, and `detection`, in [0, 1].
    """
    N, T = x.shape
    last = torch.full((N,), T - 1) if last is None else last
    first = x.argmax(-1)
    survival = pyro.param("survival", x.new_tensor(0.5), constraint=constraints.unit_interval)
    detection = pyro.param("detection", x.new_tensor(0.5), constraint=constraints.unit_interval)
    with pyro.plate("animals", N):
        z = x.new_ones(N)
        for t in pyro.markov(range(1, T)):
            z = pyro.sample(f"z_{t}", dist.Bernoulli(torch.where(first < t, survival * z, 1.0)))
            with poutine.mask(mask=(first < t) & (t <= last)):
                pyro.sample(f"x_{t}", dist.Bernoulli(detection * z), obs=x[:, t])


def make() -> tuple[Callable[..., None], None]:
    """The model, and no guide: being alive is binary and can be summed out."""
    return model, None


def load() -> tuple[Tensor, Tensor]:
    """Dippers in eastern France, 1981 to 1987: captures (426, 7), one row for each time that one was set free, and the
    last occasion for that row, (426,).
    """
    with DATA.open(newline="") as file:
        rows = list(csv.DictReader(file))
    captures, last = [], []
    for row in rows:
        seen = [int(row[name]) - 1 for name in ("released", "recaptured") if row[name]]
        captures += [[float(t in seen) for t in range(OCCASIONS)]] * int(row["count"])
        last += [seen[1] if len(seen) > 1 else OCCASIONS - 1] * int(row["count"])
    return torch.tensor(captures, dtype=torch.float64), torch.tensor(last)


def simulate(num: int = 200, length: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Captures of `num` animals on `length` occasions drawn at `TRUTH`, and the last of these for all.

    First captures are uniform on all occasions but the last; the global generator is left alone.
    """
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(length - 1, (num,), generator=generator)
    z, x = torch.ones(num, dtype=torch.float64), []
    for t in range(length):
        alive = torch.bernoulli(TRUTH["survival"].expand(num), generator=generator)
        caught = torch.bernoulli(TRUTH["detection"].expand(num), generator=generator)
        z = torch.where(first < t, z * alive, 1.0)
        x.append(torch.where(first < t, z * caught, (first == t).to(z)))
    return torch.stack(x, dim=-1), torch.full((num,), length - 1)
