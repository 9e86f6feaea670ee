"""Fits as files: tensors, numbers and names, no pickled code.

A file holds what a fit found, not the program it was found with. To read it, the model (and its guide) are run once, so
that their parameters come into being, and the values are put into them to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import Module

from pyro_em.data import copied, dense, is_plain, open_batches
from pyro_em.em.inference import ExactInference
from pyro_em.errors import SaveError
from pyro_em.graph import Intervention, Program
from pyro_em.graph.trace import draw_guide, run
from pyro_em.modules import named_modules
from pyro_em.params import ParamSpace
from pyro_em.rng import isolated_rng
from pyro_em.status import Status
from pyro_em.strategy import Inference
from pyro_em.svi.inference import GuideInference
from pyro_em.svi.prepare import automatic_guide, no_sites

__all__ = ["Opened", "encode", "opened", "write"]

FORMAT = 1
FEW = 64  # rows of data that are on disk
NUMBERS = ("objective", "objective_kind", "log_evidence", "n_steps", "seconds")

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Opened:
    """What a file says, put together with the program it belongs to.

    Attributes:
        fields: the plain fields of a result.
        data: the model's arguments.
        space: its parameters, with the saved values kept.
        inference: what the fit knows of its latents.
    """

    fields: dict[str, Any]
    data: Arguments
    space: ParamSpace
    inference: Inference


def encode(
    fields: dict[str, Any], model: Callable[..., Any], inference: Inference, space: ParamSpace, data: Arguments | None
) -> dict[str, Any]:
    """A result as plain data; its parameters must be in place.

    Args:
        fields: of the result: params, history, status, and numbers.
        data: the model's arguments; left out of the file where they are not plain, or ``None``.
    """
    leaves = space.leaves()
    own_guide = inference.guide if inference.guided and not getattr(inference, "automatic", False) else None
    modules = named_modules(model=model, guide=own_guide)
    return {
        "format": FORMAT,
        **{name: fields[name] for name in NUMBERS},
        "status": fields["status"].name,
        "history": fields["history"].to_dict("list"),
        "params": {n: v.detach().clone() for n, v in fields["params"].items()},
        "point": {n: leaf.unconstrained.detach().clone() for n, leaf in leaves.items()},
        "zeros": {n: z.clone() for n, z in space.zeros().items()},
        "constraints": {n: str(leaf.constraint) for n, leaf in leaves.items()},
        "buffers": {n: b.detach().clone() for n, b in _buffers(modules).items()},
        "training": {n: m.training for n, m in modules.items()},
        "inference": _encode_inference(inference),
        "data": None if data is None or not is_plain(list(data)) else copied(list(data)),
    }


def write(path: str | Path, payload: dict[str, Any]) -> None:
    """Write a file at once: a crash half way leaves the old one."""
    target = Path(path)
    part = target.with_name(target.name + ".part")
    torch.save(payload, part)
    part.replace(target)


def opened(path: str | Path, model: Callable[..., Any], guide: Callable[..., Any] | None, data: Arguments) -> Opened:
    """Read a file and put its values into the model; see :meth:`pyro_em.FitResult.load`."""
    payload = _read(path)
    data = _data(path, payload, data)
    saved = payload["inference"]
    if guide is not None and not saved.get("needs_guide"):
        raise SaveError(f"{str(path)!r} holds a fit without a guide of its own; leave guide= out.")
    first = _first(data)
    space = ParamSpace(model, guide, *data)
    with isolated_rng(0), space.active():
        chosen = _guide(saved, guide, model, first)
        given: dict[str, Tensor] = {}
        if chosen is not None and chosen is not missing_guide:
            given = dict(draw_guide(chosen, *first, {})[1].given)
        trace = run(model, *first, Intervention(given=given))
        _add_latents(saved, trace.nodes, space)
        space.track()
        _fill(str(path), payload, space, model, guide, chosen is missing_guide)
        space.save()
    fields = {name: payload[name] for name in (*NUMBERS, "params")}
    fields |= {"status": Status[payload["status"]], "history": pd.DataFrame(payload["history"])}
    return Opened(fields, data, space, _inference(saved, model, chosen, space))


def _read(path: str | Path) -> dict[str, Any]:
    try:
        payload = torch.load(path, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # what torch raises for bytes that are not its own is anything
        raise SaveError(f"{str(path)!r} is no file that FitResult.save wrote: {error}") from error
    if not isinstance(payload, dict) or "format" not in payload or "inference" not in payload:
        raise SaveError(f"{str(path)!r} is no file that FitResult.save wrote.")
    if payload["format"] != FORMAT:
        raise SaveError(
            f"{str(path)!r} has format {payload['format']}; this version reads {FORMAT}. Read it with the pyro_em that "
            "wrote it."
        )
    return payload


def _data(path: str | Path, payload: dict[str, Any], given: Arguments) -> Arguments:
    if given[0] or given[1]:
        return given
    if payload["data"] is None:
        raise SaveError(
            f"{str(path)!r} does not hold the training data, and the model is run once to make its parameters. Give "
            "its arguments: FitResult.load(path, model, *args)."
        )
    args, kwargs = payload["data"]
    return tuple(args), kwargs


def _first(data: Arguments) -> Arguments:
    """Arguments to run the model on once: of a stream, the first rows."""
    on_disk = any(isinstance(a, np.memmap) for a in (*data[0], *data[1].values()))
    batches = open_batches(*data, FEW if on_disk else None)
    if batches is None:
        return dense(*data)
    batch = next(batches.in_order())
    return dense(batch.args, batch.kwargs)


def missing_guide(*args: Any, **kwargs: Any) -> None:
    """Stands where a guide was."""
    raise SaveError(
        "The guide of this fit was not given when it was loaded, and its latents cannot be drawn without it: "
        "FitResult.load(path, model, guide=guide)."
    )


def _guide(
    saved: dict[str, Any], guide: Callable[..., Any] | None, model: Callable[..., Any], first: Arguments
) -> Callable[..., Any] | None:
    if saved["kind"] == "exact":
        return None
    if not saved["guided"]:
        return no_sites
    if saved["automatic"]:
        return automatic_guide(model, first, in_batches=False)
    return missing_guide if guide is None else guide


def _add_latents(saved: dict[str, Any], nodes: Any, space: ParamSpace) -> None:
    """Point-estimated latents, as parameters."""
    for name in saved["priors"] if saved["kind"] == "exact" else ():
        if name not in nodes:
            raise SaveError(f"The file has an estimate of the latent {name!r}, which the model does not sample.")
        space.add_latent(name, nodes[name]["value"], nodes[name]["fn"].support)


def _fill(
    path: str,
    payload: dict[str, Any],
    space: ParamSpace,
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    lacks_guide: bool,
) -> None:
    """Put saved values into parameters and buffers that are the same by name, shape, dtype and constraint."""
    leaves, point = space.leaves(), dict(payload["point"])
    if lacks_guide:
        point = {n: u for n, u in point.items() if n in payload["inference"]["model_params"]}
    buffers = {n: b for n, b in payload["buffers"].items() if not (lacks_guide and n.startswith("guide."))}
    found = {n: leaf.unconstrained for n, leaf in leaves.items()}
    modules = named_modules(model=model, guide=guide)
    present = _buffers(modules)
    _check_same(path, "parameter", point, found)
    _check_same(path, "buffer", buffers, present)
    for name in point:
        if str(leaves[name].constraint) != payload["constraints"][name]:
            raise SaveError(
                f"Parameter {name!r} is under {payload['constraints'][name]} in {path!r}, and under "
                f"{leaves[name].constraint} in the model: the file belongs to another model."
            )
    space.restore(point)
    space.put_zeros({n: z for n, z in _zeros(payload).items() if n in point})
    for name, value in buffers.items():
        present[name].data.copy_(value)
    for name, module in modules.items():
        module.training = payload["training"].get(name, module.training)


def _zeros(payload: dict[str, Any]) -> dict[str, Tensor]:
    """Where probabilities are exactly zero; in files from before these were written down, as the values have it."""
    if "zeros" in payload:
        return dict(payload["zeros"])
    simplex = str(constraints.simplex)
    found = {n: v == 0 for n, v in payload["params"].items() if payload["constraints"].get(n) == simplex}
    return {n: zeros for n, zeros in found.items() if bool(zeros.any())}


def _buffers(modules: dict[str, Module]) -> dict[str, Tensor]:
    return {f"{key}:{n}": b for key, module in modules.items() for n, b in module.named_buffers(recurse=False)}


def _check_same(path: str, kind: str, saved: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    missing, extra = sorted(saved.keys() - found.keys()), sorted(found.keys() - saved.keys())
    if missing or extra:
        raise SaveError(
            f"The {kind}s of {path!r} are not those of the model: the model lacks {missing}, and has {extra}, which "
            "the file lacks. It belongs to another model or guide."
        )
    for name, value in saved.items():
        here = found[name]
        if value.shape != here.shape or value.dtype != here.dtype:
            raise SaveError(
                f"The {kind} {name!r} is {_kind(value)} in {path!r}, and {_kind(here)} in the model (in unconstrained "
                "coordinates). Make the model of the same size, and under the same torch.set_default_dtype."
            )


def _kind(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"


def _encode_inference(inference: Inference) -> dict[str, Any]:
    if not isinstance(inference, ExactInference | GuideInference):
        raise SaveError(
            f"Fits of a strategy of your own cannot be saved: {type(inference).__name__} is not known here."
        )
    program = inference.program
    shared: dict[str, Any] = {
        "max_plate_nesting": program.max_plate_nesting,
        "ignored": sorted(program.ignored),
        "fixed": list(inference.fixed),
    }
    if isinstance(inference, ExactInference):
        return shared | {
            "kind": "exact",
            "priors": sorted(program.priors),
            "report": [dict(row) for row in inference.report],
            "weights": dict(inference.weights),
        }
    return shared | {
        "kind": "guide",
        "guided": inference.guided,
        "automatic": inference.automatic,
        "needs_guide": inference.guided and not inference.automatic,
        "global_sites": sorted(inference.global_sites),
        "model_params": list(inference.model_params),
    }


def _inference(
    saved: dict[str, Any], model: Callable[..., Any], guide: Callable[..., Any] | None, space: ParamSpace
) -> Inference:
    program = Program(model, saved["max_plate_nesting"], frozenset(saved["ignored"]))
    fixed = tuple(n for n in saved["fixed"] if guide is not missing_guide or n in saved["model_params"])
    if saved["kind"] == "exact":
        program = Program(model, saved["max_plate_nesting"], frozenset(saved["ignored"]), frozenset(saved["priors"]))
        return ExactInference(program, space, tuple(saved["report"]), fixed, saved["weights"])
    assert guide is not None
    return GuideInference(
        program,
        guide,
        space,
        saved["guided"],
        frozenset(saved["global_sites"]),
        fixed,
        saved["automatic"],
        tuple(saved["model_params"]),
    )
