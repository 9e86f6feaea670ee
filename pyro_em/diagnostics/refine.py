"""The best bound of a guide's family: its distributions with arguments of their own for every datum.

An amortised guide computes arguments from data by one function for all; here they are set free, the model being held
fixed, and climb the same bound from where the guide puts them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.infer.inspect import TrackProvenance
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints, transform_to

from pyro_em.diagnostics.bound import Arguments
from pyro_em.graph import Intervention
from pyro_em.graph.core import core_of
from pyro_em.graph.trace import is_latent, run
from pyro_em.guide_posterior import depends_on_draws

__all__ = ["FreeGuide", "free_guide"]

# Of arguments that say the same, the first that a distribution knows is set free.
ALTERNATIVES = (("logits", "probs"), ("scale_tril", "covariance_matrix", "precision_matrix"))


@dataclass(frozen=True)
class FreeSite:
    """A site of the guide with free arguments.

    Attributes:
        fn: the guide's own distribution.
        origin: by argument, where it starts in unconstrained coordinates.
        unit: by argument, how far a step of one goes: a standard deviation for what has the data's unit.
        steps: by argument, the free numbers.
        kept: arguments that stay, such as the size of a Binomial.
    """

    fn: Any
    origin: dict[str, Tensor]
    unit: dict[str, Tensor]
    steps: dict[str, Tensor]
    kept: dict[str, Tensor]

    def distribution(self, detached: bool = False) -> Any:
        """The distribution at the free arguments."""
        base = core_of(self.fn).fn
        found = {}
        for name, step in self.steps.items():
            point = self.origin[name] + self.unit[name] * (step.detach() if detached else step)
            found[name] = transform_to(base.arg_constraints[name])(point)
        return _rewrap(self.fn, type(base)(**found, **self.kept, validate_args=False))


@dataclass(frozen=True)
class FreeGuide:
    """A guide whose distributions have arguments of their own."""

    guide: Callable[..., Any]
    sites: dict[str, FreeSite]

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        with _Replace({n: s.distribution() for n, s in self.sites.items()}):
            self.guide(*args, **kwargs)

    @property
    def steps(self) -> list[Tensor]:
        """All free numbers, zero where the guide has its own arguments."""
        return [step for site in self.sites.values() for step in site.steps.values()]

    def scored(self) -> dict[str, Any]:
        """The distributions by site, through which no gradient passes."""
        return {n: s.distribution(detached=True) for n, s in self.sites.items()}


class _Replace(Messenger):
    """Put distributions in the place of the guide's own."""

    def __init__(self, fns: dict[str, Any]) -> None:
        super().__init__()
        self.fns = fns

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.fns:
            msg["fn"] = self.fns[msg["name"]]


def free_guide(guide: Callable[..., Any], data: Arguments) -> FreeGuide | str:
    """The guide with free arguments where it is, or why its family cannot be told from its networks."""
    with torch.no_grad():
        with TrackProvenance():
            tracked = run(guide, *data, Intervention())
        drawn = run(guide, *data, Intervention())
    sites = {}
    for name, site in drawn.nodes.items():
        if not is_latent(site):
            continue
        depends = depends_on_draws(tracked, name)
        if isinstance(core_of(site["fn"]).fn, dist.Delta):
            if not depends:
                return f"site {name!r} of the guide is a point mass"
            continue  # a function of other draws, which are free
        if depends:
            return f"arguments of site {name!r} of the guide depend on draws of other sites"
        if not site["fn"].has_rsample:
            return f"site {name!r} of the guide is drawn without reparameterisation; leave it to the exact sum"
        found = _free_site(site["fn"], site["value"])
        if isinstance(found, str):
            return f"site {name!r} of the guide is a {type(core_of(site['fn']).fn).__name__}, {found}"
        sites[name] = found
    return FreeGuide(guide, sites)


def _rewrap(fn: Any, base: Any) -> Any:
    """The wrappers of ``fn`` around another distribution."""
    if isinstance(fn, torch.distributions.Independent):
        return _rewrap(fn.base_dist, base).to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, MaskedDistribution):
        return _rewrap(fn.base_dist, base).mask(fn._mask)
    return _rewrap(fn.base_dist, base) if isinstance(fn, ExpandedDistribution) else base


def _free_site(fn: Any, value: Tensor) -> FreeSite | str:
    base = core_of(fn).fn
    names = _arguments(base)
    if not names:
        return "which has no arguments of its own"
    if isinstance(inspect.getattr_static(base, "support", None), constraints.dependent_property):
        return "whose support moves with its arguments"  # the score of such a density has no zero mean
    inner = fn.event_dim - len(base.event_shape)
    batch = fn.batch_shape + fn.event_shape[:inner]
    origin, unit, kept = {}, {}, {}
    for name in names:
        constraint = base.arg_constraints[name]
        argument = torch.as_tensor(getattr(base, name)).detach()
        argument = argument.expand(batch + argument.shape[argument.dim() - constraint.event_dim :])
        if constraint.is_discrete:
            kept[name] = argument
            continue
        try:
            origin[name] = transform_to(constraint).inv(argument)
        except NotImplementedError:
            return f"whose argument {name!r} has no unconstrained coordinates"
        if not bool(torch.isfinite(origin[name]).all()):
            return f"whose argument {name!r} is on the edge of its constraint"
        unit[name] = _unit(base, constraint, argument, batch)
    steps = {n: torch.zeros_like(u).requires_grad_(True) for n, u in origin.items()}
    found = FreeSite(fn, origin, unit, steps, kept)
    with torch.no_grad():
        same = torch.allclose(found.distribution().log_prob(value), fn.log_prob(value), rtol=1e-3, atol=1e-3)
    return found if same else "which cannot be made anew from its arguments"


def _arguments(base: Any) -> list[str]:
    names = list(base.arg_constraints)
    for alternatives in ALTERNATIVES:
        known = [n for n in alternatives if n in names]
        names = [n for n in names if n not in known[1:]]
    return names


def _unit(base: Any, constraint: Any, argument: Tensor, batch: torch.Size) -> Tensor:
    """How far a step of one goes."""
    one = torch.ones_like(argument)
    if isinstance(constraint, type(constraints.lower_cholesky)):
        diagonal = argument.diagonal(dim1=-2, dim2=-1)
        return torch.where(torch.eye(argument.shape[-1], dtype=torch.bool), one, diagonal.unsqueeze(-1))
    real = constraint is constraints.real or constraint is constraints.real_vector
    if not real or argument.shape != batch + base.event_shape:
        return one
    try:
        spread = base.stddev.detach().expand(argument.shape)
    except NotImplementedError:
        return one
    return torch.where(torch.isfinite(spread) & (spread > 0), spread, one)
