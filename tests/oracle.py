"""Exact inference by listing every joint assignment: slow, obvious, and independent of `pyro_em`.

It runs the user's model once per assignment, unenumerated, as a person would who wrote the sum by
hand, and shares no code with the elimination it judges. Conventions, those of `TraceEnum_ELBO`:

- a site counts under its mask, but a latent that is summed keeps its normalised prior under a False
  mask: it sums to one and vanishes unless something else depends on it;
- a scale common to every term that depends on a latent multiplies the log of the sum; terms that
  depend on no latent keep their own scale.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from programs import PROGRAMS, Program
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

__all__ = ["PYRO_IS_NOT_EXACT", "Oracle", "brute_force", "pyro_evidence", "summed"]

Index = tuple[int, ...]
Term = tuple[float, float]


@dataclass(frozen=True)
class Oracle:
    """log p(x) = log sum_z p(x, z), and p(z | x) as a list of weighted assignments.

    A *variable* is one element of the batch shape of a latent site: `z` in a plate of size N is N
    variables. `codes[a, v]` is the position of variable `v`'s value in its support under assignment
    `a`; `supports[name]` has shape (K, *batch_shape, *event_shape).
    """

    log_evidence: float
    assignments: list[dict[str, Tensor]]
    weights: Tensor
    codes: Tensor
    variables: list[tuple[str, Index]]
    supports: dict[str, Tensor]
    batch_shapes: dict[str, torch.Size]

    def marginal(self, name: str) -> Tensor:
        """p(name = k | x), shape (*batch_shape, K)."""
        size = len(self.supports[name])
        columns = [self.codes[:, i] for i, v in enumerate(self.variables) if v[0] == name]
        return torch.stack([self._table(column, size) for column in columns]).reshape(*self.batch_shapes[name], size)

    def pairwise(self, name_a: str, index_a: Index, name_b: str, index_b: Index) -> Tensor:
        """p(a = j, b = k | x) for one element of each of two sites, shape (K_a, K_b)."""
        size_a, size_b = len(self.supports[name_a]), len(self.supports[name_b])
        code_a = self.codes[:, self.variables.index((name_a, tuple(index_a)))]
        code_b = self.codes[:, self.variables.index((name_b, tuple(index_b)))]
        return self._table(code_a * size_b + code_b, size_a * size_b).reshape(size_a, size_b)

    def map(self) -> dict[str, Tensor]:
        """The most probable joint assignment (for a chain: the Viterbi path)."""
        return self.assignments[int(self.weights.argmax())]

    def _table(self, codes: Tensor, size: int) -> Tensor:
        return self.weights.new_zeros(size).index_add_(0, codes, self.weights)


@torch.no_grad()
def brute_force(
    model: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    given: Mapping[str, Tensor] | None = None,
    priors: bool = True,
    max_assignments: int = 200_000,
) -> Oracle:
    """Sum `model` over every joint assignment of its discrete latents.

    Parameters come from Pyro's param store, or are initialised there by the first run; the global
    RNG is left as it was. `given` fixes latent sites (continuous ones must be), and `priors=False`
    leaves out their log-probs. Raises `ValueError` where the sum is not exact or not affordable.
    """
    with torch.random.fork_rng(), pyro.validation_enabled(False):
        run = _Runner(partial(model, *args, **(kwargs or {})), given or {}, priors)
        sizes = [len(run.supports[name]) for name, _ in run.variables]
        if (total := math.prod(sizes)) > max_assignments:
            raise ValueError(f"{total} assignments to list; at most {max_assignments} allowed.")
        rows = list(itertools.product(*map(range, sizes)))
        codes = torch.tensor(rows, dtype=torch.long).reshape(total, len(sizes))
        values = {name: run.decode(name, codes) for name in run.supports}
        assignments = [{name: v[a] for name, v in values.items()} for a in range(total)]
        run.check_imputed(assignments[0])
        log_evidence, weights = _normalise([run.terms(a) for a in assignments], run.supports)
    return Oracle(log_evidence, assignments, weights, codes, run.variables, run.supports, run.batch_shapes)


class _Hold(Messenger):
    """Set latents without calling them observed, as `poutine.condition` would: masks differ."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"], msg["done"] = self.values[msg["name"]], True


class _Runner:
    """Runs the model with all its latents held, and says what each site contributed.

    The first run finds the latents. Whatever else it drew (subsampled indices, imputed values of
    `obs_mask` sites) is held from then on, so that all assignments are scored on the same program.
    """

    def __init__(self, model: Callable[[], Any], given: Mapping[str, Tensor], priors: bool) -> None:
        self.model = model
        latent = {name: site for name, site in self._run(given) if not site["is_observed"]}
        if unknown := sorted(given.keys() - latent.keys()):
            raise ValueError(f"Given sites are not latents of the model: {unknown}.")
        self.held = {name: site["value"] for name, site in latent.items()}
        latent = {name: site for name, site in latent.items() if name not in given}
        fns = {name: site["fn"] for name, site in latent.items() if not site_is_subsample(site)}
        summed = {name: fn for name, fn in fns.items() if fn.has_enumerate_support}
        self.imputed = fns.keys() - summed.keys()
        self.left_out = self.imputed | (set() if priors else given.keys())
        if lost := sorted(n for n in self.imputed if not n.endswith("_unobserved")):
            raise ValueError(f"Latents without finite support need a value in `given`: {lost}.")
        self.supports = {name: fn.enumerate_support() for name, fn in summed.items()}
        self.batch_shapes = {name: fn.batch_shape for name, fn in summed.items()}
        self.variables: list[tuple[str, Index]] = [
            (name, index)
            for name, shape in self.batch_shapes.items()
            for index in itertools.product(*map(range, shape))
        ]

    def decode(self, name: str, codes: Tensor) -> Tensor:
        """The values that rows of codes stand for, shape (A, *batch_shape, *event_shape)."""
        support, shape = self.supports[name], self.batch_shapes[name]
        columns = [i for i, (site, _) in enumerate(self.variables) if site == name]
        flat = support.reshape(len(support), len(columns), *support.shape[1 + len(shape) :])
        return flat[codes[:, columns], torch.arange(len(columns))].reshape(-1, *support.shape[1:])

    def terms(self, values: Mapping[str, Tensor]) -> dict[str, Term]:
        """(log-prob, scale) of every site that counts; the log-prob is unscaled, in float64."""
        sites = [s for s in self._run({**self.held, **values}) if s[0] not in self.left_out]
        return {name: _term(name, site, name in self.supports) for name, site in sites}

    def check_imputed(self, values: Mapping[str, Tensor]) -> None:
        """Leaving out an imputed value is exact only if nothing downstream looks at it."""
        moved = {name: self.held[name] + 1 for name in self.imputed}
        if moved and self.terms(values) != self.terms({**values, **moved}):
            raise ValueError(f"The model uses imputed continuous values: {sorted(moved)}.")

    def _run(self, values: Mapping[str, Tensor]) -> list[tuple[str, Any]]:
        with _Hold(values):
            trace = poutine.trace(self.model).get_trace()
        return [(name, site) for name, site in trace.nodes.items() if site["type"] == "sample"]


def _term(name: str, site: Any, summed: bool) -> Term:
    fn, mask = site["fn"], site["mask"]
    while summed and isinstance(fn, dist.MaskedDistribution):
        fn = fn.base_dist
    log_prob = fn.log_prob(site["value"])
    if mask is not None and not summed:
        log_prob = torch.where(torch.as_tensor(mask), log_prob, 0.0)
    total = log_prob.double().sum().item()
    scale = torch.as_tensor(site["scale"], dtype=torch.float64)
    if math.isnan(total) or scale.dim():
        raise ValueError(f"Site '{name}' has a NaN log-prob or a scale that is not a scalar.")
    return total, scale.item()


def _normalise(terms: list[dict[str, Term]], latents: Mapping[str, Tensor]) -> tuple[float, Tensor]:
    """Log evidence and posterior weights from the site terms of each assignment."""
    sites = list(terms[0])
    if any(list(row) != sites for row in terms):
        raise ValueError("The model's sites change with the values of its latents.")
    table = torch.tensor([list(row.values()) for row in terms], dtype=torch.float64)
    logs, scales = table.reshape(-1, len(sites), 2).unbind(-1)
    varies = (logs != logs[0]).any(0) | torch.tensor([site in latents for site in sites])
    common = scales[:, varies].unique()
    if len(common) > 1:
        raise ValueError(f"Terms that depend on latents have scales {common.tolist()}.")
    log_joint = logs[:, varies].sum(1)
    constant = (scales[0] * logs[0])[~varies].sum()
    log_evidence = constant + common.sum() * log_joint.logsumexp(0)
    if not log_evidence.isfinite():
        raise ValueError(f"The log evidence is {log_evidence}: no assignment explains the data.")
    return log_evidence.item(), log_joint.softmax(0)


def summed(program: Program, priors: bool = True) -> Oracle:
    """The sum for a program of the corpus at its `given` values, computed once per process."""
    return _summed(program.name, priors or not program.given)


@cache
def _summed(name: str, priors: bool) -> Oracle:
    program = next(p for p in PROGRAMS if p.name == name)
    model, args, kwargs = program.make()
    with pyro.get_param_store().scope():
        return brute_force(model, args, kwargs, given=program.given, priors=priors)


# Programs on which Pyro's own enumeration is not exact, and why.
PYRO_IS_NOT_EXACT = {
    "obs_mask_continuous": "Pyro draws `x_unobserved` and scores `x` against the draw",
}


def pyro_evidence(
    model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], given: Mapping[str, Tensor]
) -> float:
    """log p(x, given) by Pyro's own enumeration: a second opinion, by other people's code.

    Needs double precision as the default dtype where the model has deterministic sites or factors.
    """
    if given:
        model = poutine.condition(model, data=dict(given))
    elbo = TraceEnum_ELBO(max_plate_nesting=2)
    return -elbo.loss(config_enumerate(model), lambda *args, **kwargs: None, *args, **kwargs)
