"""Fit one of the models to its data: `python -m models NAME --strategy em|svi`."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import pyro
import torch

from models import REGISTRY, load_model
from pyro_em import EM, SVI, FitResult, fit

LARGEST_SHOWN = 16


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, or 2 for a model that the strategy refuses."""
    parser, options = _parse(argv)
    if options.list:
        width = max(map(len, REGISTRY))
        print("\n".join(f"{name:<{width}}  {entry.summary}" for name, entry in REGISTRY.items()))
        return 0
    if options.name is None:
        parser.error("give the NAME of a model, or --list")
    try:
        result = _fit(options.name, options.strategy, options.seed, options.max_steps)
    except (ValueError, ImportError) as error:
        print(f"{options.name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(_report(result))
    return 0


def _parse(argv: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(prog="python -m models", description=__doc__)
    parser.add_argument("name", metavar="NAME", nargs="?", choices=[*REGISTRY], help="see --list")
    parser.add_argument("--strategy", choices=["em", "svi"], default="em", help="default: em")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--max-steps", type=int, metavar="N", help="default: the model's own")
    parser.add_argument("--list", action="store_true", help="name the models and stop")
    return parser, parser.parse_args(argv)


def _fit(name: str, strategy: str, seed: int, max_steps: int | None) -> FitResult:
    pyro.set_rng_seed(seed)
    module = load_model(name)
    model, guide = module.make()
    if strategy == "em":
        chosen = EM() if max_steps is None else EM(max_steps=max_steps)
    else:
        chosen = _svi(name, guide, max_steps)
    return fit(model, *module.load(), strategy=chosen, seed=seed)


def _svi(name: str, guide: Any, max_steps: int | None) -> SVI:
    """Adam with what the registry says of the model; a cap on steps replaces one on epochs."""
    options = dict(REGISTRY[name].svi)
    optim = partial(torch.optim.Adam, lr=options.pop("lr"))
    if max_steps is not None:
        options.pop("max_epochs", None)
        options["max_steps"] = max_steps
    return SVI(guide, optim=optim, **options)


def _report(result: FitResult) -> str:
    evidence = result.log_evidence
    rows = {
        "objective": f"{result.objective:.4f} ({result.objective_kind})",
        "log_evidence": "not available" if evidence is None else f"{evidence:.4f}",
        "n_steps": f"{result.n_steps} in {result.seconds:.1f} s",
        "status": f"{result.status.name}: {result.status}",
    }
    rows |= {name: _show(value) for name, value in result.params.items()}
    width = max(map(len, rows)) + 2
    indent = "\n" + " " * width
    return "\n".join(f"{name:<{width}}{text}".replace("\n", indent) for name, text in rows.items())


def _show(value: torch.Tensor) -> str:
    if value.numel() > LARGEST_SHOWN:
        return f"tensor of shape {tuple(value.shape)}"
    rounded = value.detach().double().round(decimals=4) + 0.0  # no negative zeros
    digits = max(len(f"{number:.4f}") for number in rounded.flatten().tolist())

    def rows(tensor: torch.Tensor) -> str:
        if tensor.dim() == 0:
            return f"{tensor.item():{digits}.4f}"
        return ("  " if tensor.dim() == 1 else "\n").join(map(rows, tensor))

    return rows(rounded)


if __name__ == "__main__":
    sys.exit(main())
