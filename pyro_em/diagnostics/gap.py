"""How far a bound lies below the log evidence, and whose fault it is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor

from pyro_em.diagnostics.bound import exact_bound, finite_guide, log_ratio
from pyro_em.diagnostics.climb import climb, rise
from pyro_em.diagnostics.evidence import Fitted
from pyro_em.diagnostics.masses import point_masses
from pyro_em.diagnostics.refine import free_guide
from pyro_em.diagnostics.tables import best_table_bound
from pyro_em.errors import ModelError

__all__ = ["Gap", "measure_gap"]


@dataclass(frozen=True)
class Gap:
    """The inference gap of a fit, total nats: total = log p(x) - L(q) = approximation + amortization.

    Attributes:
        log_evidence: log p(x; params), or ``None`` where it is not known.
        elbo: L at the fitted guide.
        total: KL(q || p(z | x)); zero under EM, whose q is the posterior.
        approximation: what would remain under the best arguments for every datum, because the guide's family does not
            hold the posterior.
        amortization: what is lost because one function computes the arguments for all data.
        elbo_stderr: Monte Carlo standard error of ``elbo``; zero where it is exact.
        amortization_stderr: that of ``amortization``, whose two bounds are taken at the same random numbers.
        reason: why a part is ``None``: the log evidence is not known, the guide is a point mass from which there is no
            KL to a density, or its parts cannot be told apart.
    """

    log_evidence: float | None
    elbo: float
    total: float | None
    approximation: float | None
    amortization: float | None
    elbo_stderr: float = 0.0
    amortization_stderr: float = 0.0
    reason: str = ""


def measure_gap(fitted: Fitted, evidence: float | Tensor | None, num_samples: int, steps: int) -> Gap:
    """Measure the gap at the parameters in place; see :meth:`pyro_em.FitResult.gap`."""
    inference, data = fitted.inference, fitted.data
    if num_samples < 2:
        raise ValueError(f"num_samples must be at least 2, for a standard error; got {num_samples}.")
    if not inference.guided:
        exact = fitted.log_evidence()
        return Gap(exact, exact, 0.0, 0.0, 0.0)
    known = _known(fitted) if evidence is None else float(torch.as_tensor(evidence, dtype=torch.float64).sum())
    pair = finite_guide(inference, inference.guide, data)
    if pair is not None:
        elbo = float(exact_bound(pair))
        best = best_table_bound(pair)
        if isinstance(best, str):
            return _split(known, elbo, None, reason=best)
        return _split(known, elbo, best - elbo)
    return _by_draws(fitted, known, num_samples, steps)


def _known(fitted: Fitted) -> float | None:
    try:
        return fitted.log_evidence()
    except ModelError:
        return None


def _by_draws(fitted: Fitted, known: float | None, num_samples: int, steps: int) -> Gap:
    inference, data = fitted.inference, fitted.data
    masses = point_masses(fitted.model, inference.guide, data)
    state = get_rng_state()
    with torch.no_grad():
        values = _draws(partial(log_ratio, inference, inference.guide, data), num_samples)
    elbo, error = float(values.mean()), _stderr(values)
    if masses:
        return Gap(known, elbo, None, None, None, error, reason=POINT_MASS.format(masses[0]))
    free = free_guide(inference.guide, data)
    if isinstance(free, str):
        return _split(known, elbo, None, error, reason=free)
    settled = climb(free, inference, data, steps)
    set_rng_state(state)  # the same random numbers for both, so that most of their noise cancels
    with torch.no_grad():
        best = _draws(partial(log_ratio, inference, free, data), num_samples)
    gain = rise(values, best)
    if not settled or gain.falls(FAR):
        return _split(known, elbo, None, error, reason=FALLS)
    if known is not None and not float(best.mean()) - known <= FAR * _stderr(best) + ROUNDING * (1 + abs(known)):
        return _split(known, elbo, None, error, reason=ABOVE)
    return _split(known, elbo, gain.mean, error, gain.stderr)


def _draws(value: partial[Tensor], count: int) -> Tensor:
    return torch.stack([value() for _ in range(count)])


def _stderr(values: Tensor) -> float:
    return float(values.std() / len(values) ** 0.5)


def _split(
    known: float | None,
    elbo: float,
    amortization: float | None,
    error: float = 0.0,
    gain_error: float = 0.0,
    reason: str = "",
) -> Gap:
    if reason:
        reason = f"No split: {reason}."
    if known is None:
        reason = f"{reason} {UNKNOWN}".strip()
        return Gap(None, elbo, None, None, amortization, error, gain_error, reason)
    total = known - elbo
    approximation = None if amortization is None else total - amortization
    return Gap(known, elbo, total, approximation, amortization, error, gain_error, reason)


FAR = 4.0  # standard errors
ROUNDING = 1e-5  # of a log evidence by quadrature
FALLS = "with arguments of their own the guide's distributions end lower than it, however short the steps"
ABOVE = "the bound of free arguments comes out above the log evidence by more than its Monte Carlo error"
POINT_MASS = (
    "No total: site {!r} of the guide is a point mass, and there is no KL from a point mass to a density. elbo is the "
    "log joint there."
)
UNKNOWN = (
    "The log evidence is not known exactly: pass log_evidence=, for instance "
    "result.evidence_by_quadrature().log_evidence where each datum has at most three continuous latents."
)
