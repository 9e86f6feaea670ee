"""Sites of a guide that are a point mass where the model has a density."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.infer.inspect import TrackProvenance
from pyro.util import get_rng_state, set_rng_state

from pyro_em.diagnostics.bound import Arguments
from pyro_em.graph import Intervention
from pyro_em.graph.core import core_of
from pyro_em.graph.trace import draw_guide, is_latent, run
from pyro_em.guide_posterior import depends_on_draws

__all__ = ["point_masses"]


def point_masses(model: Callable[..., Any], guide: Callable[..., Any], data: Arguments) -> list[str]:
    """Continuous latents, auxiliary ones too, that the guide sets to a value which depends on no draw.

    What depends on draws is a function of them, with a density of its own. The random stream stays as it is.
    """
    state = get_rng_state()
    with torch.no_grad():
        with TrackProvenance():
            tracked = run(guide, *data, Intervention())
        drawn, intervention = draw_guide(guide, *data, {})
        seen = run(model, *data, intervention).nodes
    set_rng_state(state)
    deltas = [n for n, s in drawn.nodes.items() if is_latent(s) and isinstance(core_of(s["fn"]).fn, dist.Delta)]
    continuous = [n for n in deltas if n not in seen or not seen[n]["fn"].support.is_discrete]
    return [n for n in continuous if not depends_on_draws(tracked, n)]
