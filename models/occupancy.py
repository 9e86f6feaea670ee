"""Site occupancy: a species that was not seen may be absent, or present and overlooked.

    z_i              ~ Bernoulli(occupancy)                    i = 1 ... N sites
    x_{i,t} | z_i    ~ Bernoulli(z_i detection)                t = 1 ... T_i visits

    log p(x) = sum_i log(occupancy prod_t detection^x_{i,t} (1 - detection)^(1 - x_{i,t})
                         + (1 - occupancy) [nothing seen at i])

There are no false detections, and no site changes between visits. Visits that did not take place
are masked. The share of sites with a detection is a lower bound of `occupancy`: for the beetle of
the data, 10 of 27.

Source: MacKenzie et al. (2002), Ecology 83, 2248-2255. Data: Kéry & Schaub (2012), see
`data/README.md`.
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

DATA = Path(__file__).parent / "data" / "bluebug.csv"

# What `simulate` draws from.
TRUTH = {
    "occupancy": torch.tensor(0.6, dtype=torch.float64),
    "detection": torch.tensor(0.4, dtype=torch.float64),
}


def model(x: Tensor) -> Tensor:
    """Draw the detections `x` (N, T), zeros and ones, NaN for no visit; return the occupied sites (N, 1).

    Parameters: `occupancy` and `detection`, in [0, 1].
    """
    half = x.new_tensor(0.5)
    occupancy = pyro.param("occupancy", half.clone(), constraint=constraints.unit_interval)
    detection = pyro.param("detection", half.clone(), constraint=constraints.unit_interval)
    with pyro.plate("sites", len(x), dim=-2):
        z = pyro.sample("z", dist.Bernoulli(occupancy))
        with pyro.plate("visits", x.shape[-1], dim=-1), poutine.mask(mask=~x.isnan()):
            pyro.sample("x", dist.Bernoulli(z * detection), obs=x.nan_to_num())
    return z


def make() -> tuple[Callable[..., Tensor], None]:
    """The model, and no guide: `z` is binary and can be summed out."""
    return model, None


def load() -> tuple[Tensor]:
    """Detections of Rosalia alpina on up to six visits to 27 piles of wood, (27, 6)."""
    with DATA.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    return (torch.tensor([[float(value or "nan") for value in row] for row in rows], dtype=torch.float64),)


def simulate(num: int = 200, seed: int = 0) -> tuple[Tensor]:
    """`num` sites with two to five visits drawn at `TRUTH`, (num, 5); the global generator is left alone."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.bernoulli(TRUTH["occupancy"].expand(num, 1), generator=generator)
    x = torch.bernoulli((z * TRUTH["detection"]).expand(num, 5), generator=generator)
    visited = torch.arange(5) < torch.randint(2, 6, (num, 1), generator=generator)
    return (x.masked_fill(~visited, torch.nan),)
