"""Animals caught and seen again, in the five structures of Pyro's tour of capture and recapture.

`seen` (N, T), zeros and ones, says when each animal was seen; `male` (N,) is zero or one. An animal is alive until it
is not, and what happens before its first capture is masked. Survival and detection have priors, as there.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

__all__ = ["by_sex", "by_sex_and_time", "constant", "random_effects", "varying"]


def chance(name: str) -> Tensor:
    return pyro.sample(name, dist.Uniform(0.0, 1.0))


def step(t: int, seen: Tensor, alive: Tensor, entered: Tensor, survival: Tensor | float, detection: Tensor) -> Tensor:
    """Whether each animal is alive at time t, and whether it is seen, given that it has entered."""
    with poutine.mask(mask=entered):
        staying = entered.to(seen.dtype) * survival * alive + (1 - entered.to(seen.dtype))
        alive = pyro.sample(f"z_{t}", dist.Bernoulli(staying), infer={"enumerate": "parallel"})
        pyro.sample(f"y_{t}", dist.Bernoulli(detection * alive), obs=seen[:, t])
    return alive


def constant(seen: Tensor, male: Tensor) -> None:
    """One survival and one detection for all."""
    survival, detection = chance("survival"), chance("detection")
    with pyro.plate("animals", len(seen), dim=-1):
        alive, entered = torch.ones(len(seen)), torch.zeros(len(seen)).bool()
        for t in pyro.markov(range(seen.shape[1])):
            alive = step(t, seen, alive, entered, survival, detection)
            entered |= seen[:, t].bool()


def varying(seen: Tensor, male: Tensor) -> None:
    """A survival for each time, drawn inside of the loop and outside of the plate."""
    detection = chance("detection")
    alive, entered = torch.ones(len(seen)), torch.zeros(len(seen)).bool()
    animals = pyro.plate("animals", len(seen), dim=-1)
    for t in pyro.markov(range(seen.shape[1])):
        survival = chance(f"survival_{t}") if t > 0 else 1.0
        with animals:
            alive = step(t, seen, alive, entered, survival, detection)
        entered |= seen[:, t].bool()


def random_effects(seen: Tensor, male: Tensor) -> None:
    """Logits of survival scatter about a mean that is drawn itself."""
    mean, spread, detection = chance("mean"), pyro.sample("spread", dist.Uniform(0.0, 10.0)), chance("detection")
    alive, entered = torch.ones(len(seen)), torch.zeros(len(seen)).bool()
    animals = pyro.plate("animals", len(seen), dim=-1)
    for t in pyro.markov(range(seen.shape[1])):
        about = dist.Normal(mean.log() - (-mean).log1p(), spread)
        survival = pyro.sample(f"logit_{t}", about).sigmoid() if t > 0 else torch.tensor(0.5)
        with animals:
            alive = step(t, seen, alive, entered, survival, detection)
        entered |= seen[:, t].bool()


def by_sex(seen: Tensor, male: Tensor) -> None:
    """Males and females survive each in their own way."""
    survival = male * chance("survival_male") + (1.0 - male) * chance("survival_female")
    detection = chance("detection")
    with pyro.plate("animals", len(seen), dim=-1):
        alive, entered = torch.ones(len(seen)), torch.zeros(len(seen)).bool()
        for t in pyro.markov(range(seen.shape[1])):
            alive = step(t, seen, alive, entered, survival, detection)
            entered |= seen[:, t].bool()


def by_sex_and_time(seen: Tensor, male: Tensor) -> None:
    """Logits of survival are the sum of an effect of sex and one of time."""
    sex = male * pyro.sample("sex", dist.Normal(0.0, 10.0))
    detection = chance("detection")
    alive, entered = torch.ones(len(seen)), torch.zeros(len(seen)).bool()
    animals = pyro.plate("animals", len(seen), dim=-1)
    for t in pyro.markov(range(seen.shape[1])):
        effect = pyro.sample(f"time_{t}", dist.Normal(0.0, 10.0)) if t > 0 else 0.0
        survival = torch.sigmoid(sex + effect)
        with animals:
            alive = step(t, seen, alive, entered, survival, detection)
        entered |= seen[:, t].bool()
