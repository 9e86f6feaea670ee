"""A fit as an ArviZ object, for either generation of ArviZ (``InferenceData`` up to 0.2x, a ``DataTree`` from 1.0)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import arviz as az
import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from pyro_em.graph import Intervention, survey
from pyro_em.graph.build import plates_of
from pyro_em.graph.hidden import states_of
from pyro_em.predict import is_constant
from pyro_em.strategy import Inference

__all__ = ["to_arviz"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def to_arviz(
    model: Callable[..., Any],
    inference: Inference,
    data: Arguments,
    params: Mapping[str, Tensor],
    history: pd.DataFrame,
    num_samples: int,
    num_chains: int,
) -> Any:
    """Posterior draws and what ArviZ needs beside them.

    Parameters are point estimates, so they are repeated over the draws; latents are drawn from their posterior given
    them.

    Args:
        model: the fitted model.
        inference: its posterior; the fitted parameters must be in place.
        data: the model's arguments.
        params: fitted parameters by name.
        history: the fit's history.
        num_samples: draws in each chain.
        num_chains: number of chains; draws are independent, so chains only serve ArviZ's diagnostics.

    Returns:
        Groups ``posterior``; ``log_likelihood`` (per datum, latents summed out, so that its sum is the log evidence
        where each counts once;
        only where that is exact and a sum over data); ``observed_data``; ``sample_stats`` (the objective by step).
        Dimensions are named after plates.
    """
    posterior = inference.posterior(*data)
    lead = (num_chains, num_samples)
    draws = {n: v.unflatten(0, lead) for n, v in posterior.sample(num_chains * num_samples).items()}
    seen = survey(model, *data, Intervention(given={n: v[0, 0] for n, v in draws.items()})).trace
    latents = {n: (v, _dims(n, seen)) for n, v in draws.items()}
    repeated = {n: (v.expand(*lead, *v.shape), None) for n, v in params.items() if n not in draws}
    groups = {
        "posterior": _dataset({**repeated, **latents}, lead=("chain", "draw")),
        "observed_data": _dataset(_observed(seen), lead=()),
        "sample_stats": _sample_stats(history),
    }
    pointwise = _log_likelihoods(posterior, seen)
    if pointwise:
        groups["log_likelihood"] = _dataset(
            {n: (_untied(v.expand(*lead, *v.shape)), d) for n, (v, d) in pointwise.items()}, lead=("chain", "draw")
        )
    return _tree({name: dataset.assign_attrs(inference_library="pyro_em") for name, dataset in groups.items()})


def _tree(groups: Mapping[str, xr.Dataset]) -> Any:
    if "InferenceData" in vars(az):  # ArviZ 1 answers hasattr with a shim
        return az.InferenceData(**groups)
    return xr.DataTree.from_dict({f"/{name}": dataset for name, dataset in groups.items()})


def _untied(repeated: Tensor) -> Tensor:
    """The same value in every draw, to one part in 10^10.

    Given point estimates log p(x_n) does not vary over draws, and ArviZ's Pareto smoothing cannot rank equal draws
    (0.2x reports k = inf, 1.x raises). Told apart so little, ``az.loo`` returns the log evidence with p_loo = 0.
    """
    return repeated + 1e-10 * repeated.abs().clamp_min(1.0) * (torch.rand_like(repeated) - 0.5)


Dims = dict[int, str]


def _dims(name: str, seen: Any) -> tuple[Dims, int]:
    """Plate names of a site by negative batch dimension, and its number of event dimensions."""
    behind = next((n for n in seen.nodes if states_of(n) == name), None)  # states have an axis of time
    site = seen.nodes[behind or name]
    plates = {d: p.name for d, p in plates_of(site, site["fn"].batch_shape).items()}
    return plates, 1 if behind else site["fn"].event_dim


def _dataset(variables: Mapping[str, tuple[Tensor, tuple[Dims, int] | None]], lead: tuple[str, ...]) -> xr.Dataset:
    return xr.Dataset({name: _array(name, value, dims, lead) for name, (value, dims) in variables.items()})


def _array(name: str, value: Tensor, dims: tuple[Dims, int] | None, lead: tuple[str, ...]) -> xr.DataArray:
    """Axes that no plate declares and that have one entry are dropped; the others get a name of their own."""
    array = value.detach().cpu().numpy()
    plates, event = dims if dims is not None else ({}, array.ndim)
    names = list(lead)
    keep: list[slice | int] = [slice(None)] * len(lead)
    for position in range(len(lead), array.ndim):
        dim = position - (array.ndim - event)
        if dim < 0 and dim not in plates and array.shape[position] == 1:
            keep.append(0)
            continue
        keep.append(slice(None))
        names.append(plates[dim] if dim < 0 and dim in plates else f"{name}_dim_{position - len(lead)}")
    return xr.DataArray(array[tuple(keep)], dims=names, coords=_coords(array[tuple(keep)].shape, names))


def _coords(shape: tuple[int, ...], names: list[str]) -> dict[str, np.ndarray]:
    return {name: np.arange(size) for name, size in zip(names, shape, strict=True)}


def _observed(seen: Any) -> dict[str, tuple[Tensor, tuple[Dims, int]]]:
    """Observed values and their dimensions, by the name that the model gave the site."""
    sites = {n: s for n, s in seen.nodes.items() if s["type"] == "sample" and s["is_observed"] and not is_constant(s)}
    found = {}
    for name, site in sites.items():
        stem = name.removesuffix("_observed")
        split = stem != name and f"{stem}_unobserved" in seen.nodes
        value = _without_hidden(site) if split else torch.as_tensor(site["value"])
        found[stem if split else name] = (value, _dims(name, seen))
    return found


def _without_hidden(site: Any) -> Tensor:
    """The values of an ``obs_mask`` site, NaN where the mask says that they are not data."""
    value = site["value"]
    value = value if value.is_floating_point() else value.to(torch.get_default_dtype())
    mask = torch.as_tensor(site["mask"])
    return torch.where(mask.reshape(*mask.shape, *[1] * site["fn"].event_dim), value, torch.nan)


def _log_likelihoods(posterior: Any, seen: Any) -> dict[str, tuple[Tensor, tuple[Dims, int]]]:
    """Per plate, named after its observed site where there is one only, as ArviZ expects."""
    try:
        found = posterior.log_likelihoods
    except ValueError:  # a latent is continuous, or shared by all data so that log p(x) is no sum over them
        return {}
    named = {}
    for plate, value in found.items():
        sites = [n for n, (_, dims) in _observed(seen).items() if plate in dims[0].values() or not plate]
        name = sites[0] if len(sites) == 1 else plate or "log_likelihood"
        named[name] = (value, ({-1: plate or f"{name}_dim_0"}, 0))
    return named


def _sample_stats(history: pd.DataFrame) -> xr.Dataset:
    objective = history["objective"].to_numpy()[None]
    return xr.Dataset({"objective": (("chain", "step"), objective)}, coords={"chain": [0], "step": history["step"]})
