"""Run the model once with every finite latent enumerated, and say what is wrong where it does not run so."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pyro.poutine as poutine
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_em.errors import ModelError
from pyro_em.graph.guard import JointStatesError, TableTooLargeError
from pyro_em.graph.plan import MAX_TABLE
from pyro_em.graph.trace import Intervention, Model, giving, is_subsample, run

__all__ = ["run_enumerated"]


class _Reached(BaseException):
    """All sites wanted have been seen; no error, so that a model's own ``except Exception`` lets it pass."""


class _Until(Messenger):
    """End a run at the last of some sites."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.left = set(names)

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.left:
            self.left.remove(msg["name"])
            if not self.left:
                raise _Reached


def run_enumerated(
    model: Model,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    intervention: Intervention,
    max_plate_nesting: int,
    until: Collection[str] = (),
) -> poutine.Trace:
    """A trace in which each latent with finite support takes all its values, along a dimension of its own.

    Args:
        until: sites at the last of which the run ends; none for a whole run.

    Raises:
        ModelError: the model runs plainly but not with the extra dimensions, and the message names the last site
            reached; or it does not run plainly either.
    """
    tracer = poutine.trace()
    try:
        with (
            tracer,
            giving(intervention),
            EnumMessenger(first_available_dim=-1 - max_plate_nesting),
            intervention,
            _Until(until) if until else nullcontext(),
        ):
            model(*args, **kwargs)
    except JointStatesError:
        raise
    except _Reached:
        pass
    except TableTooLargeError as error:
        raise ModelError(_too_many_states(tracer.trace, error.entries)) from error
    except Exception as error:
        plain = _plain_failure(model, args, kwargs, intervention)
        raise ModelError(plain or _broken_run(tracer.trace, intervention.reached, error)) from error
    return tracer.trace


def _plain_failure(model: Model, args: tuple[Any, ...], kwargs: dict[str, Any], intervention: Intervention) -> str:
    """What is wrong with a run in which latents are drawn, so that enumeration is not to blame; empty: nothing."""
    try:
        trace = run(model, args, kwargs, replace(intervention, enumerate_all=False, joint=None))
    except Exception as error:
        return (
            "The model does not run on these arguments, be its discrete latents enumerated or drawn: it failed with "
            f"{type(error).__name__}: {error}"
        )
    sites = {n: s["value"] for n, s in trace.nodes.items() if s["type"] == "sample" and s["is_observed"]}
    for name, value in sites.items():
        if not isinstance(value, Tensor):
            return (
                f"The model does not run on these arguments: site {name!r} observes a {type(value).__name__}, and a "
                "density takes a tensor. Pass obs=torch.as_tensor(...)."
            )
    return ""


def _too_many_states(trace: poutine.Trace, entries: int) -> str:
    dims = {n: s["infer"].get("_enumerate_dim") for n, s in trace.nodes.items()}
    names = list({d: n for n, d in dims.items() if d is not None}.values())  # the last to take each dimension
    return (
        f"The latents {', '.join(names[:8])}{' ...' if len(names) > 8 else ''} meet in one density, whose table over "
        f"their joint states has {entries:.3g} entries, more than the limit of {MAX_TABLE:.3g}. Use "
        "strategy=SVI(guide) with a guide for some of these latents, or fewer states."
    )


def _broken_run(trace: poutine.Trace, reached: str, error: Exception) -> str:
    sites = [name for name, site in trace.nodes.items() if site["type"] == "sample" and not is_subsample(site)]
    enumerated = [name for name in sites if trace.nodes[name]["infer"].get("_enumerate_dim") is not None]
    dims = [-trace.nodes[name]["infer"]["_enumerate_dim"] for name in enumerated]
    if "64 dim" in str(error) or (dims and max(dims) >= 60):
        return (
            f"The model enumerates {len(enumerated)} latents that all stay in scope at once, and a tensor holds at "
            "most 64 dimensions. Write the loop as `for t in pyro.markov(range(T)):`, which forgets latents that are "
            "no longer used."
        )
    if "Inhomogeneous total count" in str(error):
        return (
            f"The Binomial latent {reached!r} has a total_count that differs between data, so its support differs "
            "too. Give it one common total_count, or one plate per count."
        )
    shape = f"After site {sites[-1]!r}" if sites else "Before the first site"
    latent = enumerated[-1] if enumerated else "z"
    return (
        f"The model runs by itself but not with its discrete latents enumerated. {shape} it failed with "
        f"{type(error).__name__}: {error}\nUnder enumeration the latent {latent!r} has an extra dimension on the left, "
        "one entry per state, so code that indexes or stacks by shape, concatenates ('cat'), or feeds it to a network "
        f"must broadcast over leading dimensions; `if`, `int({latent})` and `.item()` on it cannot work."
    )
