"""Dives of seals: chains within individuals within groups, in the structure of Pyro's mixed hidden Markov model.

Steps are gammas, turns von Mises, activities betas; steps and activities are zero at times, by a switch of their own.
`sizes` names the numbers of groups, individuals, kinds and states; `seen` has tensors (individuals, groups, times), and
masks of the same shape, and `known` (individuals, groups) masks individuals that do not exist. `group` and `individual`
say how their random effects are drawn: "discrete", "continuous" or "none".
"""

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.ops.indexing import Vindex
from torch import Tensor
from torch.distributions import constraints

__all__ = ["dives"]

ZERO = 0.0


def start(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@config_enumerate
def dives(
    seen: Mapping[str, Tensor],
    known: Tensor,
    sizes: Mapping[str, int],
    group: str = "discrete",
    individual: str = "discrete",
) -> None:
    kinds, states, groups = sizes["kinds"], sizes["states"], sizes["groups"]
    if group == "discrete":
        group_law = pyro.param("group_law", lambda: start(kinds).softmax(-1), constraint=constraints.simplex)
        group_effects = pyro.param("group_effects", lambda: start(kinds, states**2))
    if individual == "discrete":
        law = pyro.param("law", lambda: start(groups, kinds).softmax(-1), constraint=constraints.simplex)
        effects = pyro.param("effects", lambda: start(groups, kinds, states**2))

    def positive(name: str) -> Tensor:
        return pyro.param(name, lambda: 1.0 + torch.arange(states) / 2, constraint=constraints.positive)

    step_zero = pyro.param("step_zero", lambda: torch.zeros(states, 2))
    active_zero = pyro.param("active_zero", lambda: torch.zeros(states, 2))
    shape, rate = positive("shape"), positive("rate")
    turn_loc, turn_concentration = pyro.param("turn_loc", lambda: start(states).abs()), positive("turn_concentration")
    off, on = positive("off"), positive("on")
    logits = torch.zeros(states**2)

    with pyro.plate("group", groups, dim=-1):
        if group == "discrete":
            logits = logits + Vindex(group_effects)[..., pyro.sample("kind_of_group", dist.Categorical(group_law)), :]
        elif group == "continuous":
            effect = dist.Normal(torch.zeros(states**2), torch.ones(states**2)).to_event(1)
            logits = logits + pyro.sample("group_effect", effect)
        with pyro.plate("individual", sizes["individuals"], dim=-2), poutine.mask(mask=known):
            if individual == "discrete":
                logits = logits + Vindex(effects)[..., pyro.sample("kind", dist.Categorical(law)), :]
            elif individual == "continuous":
                effect = dist.Normal(torch.zeros(groups, states**2), torch.ones(groups, states**2)).to_event(1)
                logits = logits + pyro.sample("effect", effect)
            table = logits.reshape((*logits.shape[:-1], states, states))
            y = torch.tensor(0)
            for t in pyro.markov(range(seen["mask"].shape[-1])):
                with poutine.mask(mask=seen["mask"][..., t]):
                    y = pyro.sample(f"y_{t}", dist.Categorical(logits=Vindex(table)[..., y, :]))
                    step = dist.Gamma(Vindex(shape)[..., y], Vindex(rate)[..., y])
                    inflated(f"step_{t}", step, Vindex(step_zero)[..., y, :], seen["step"][..., t])
                    turn = dist.VonMises(Vindex(turn_loc)[..., y], Vindex(turn_concentration)[..., y])
                    pyro.sample(f"turn_{t}", turn, obs=seen["turn"][..., t])
                    active = dist.Beta(Vindex(on)[..., y], Vindex(off)[..., y])
                    inflated(f"active_{t}", active, Vindex(active_zero)[..., y, :], seen["active"][..., t])


def inflated(name: str, fn: dist.Distribution, logits: Tensor, value: Tensor) -> None:
    """A switch that says whether the value is zero, and the value."""
    is_zero = value == ZERO
    pyro.sample(f"{name}_zero", dist.Categorical(logits=logits), obs=is_zero.long())
    pyro.sample(name, dist.MaskedMixture(is_zero, fn, dist.Delta(torch.tensor(ZERO))), obs=value)
