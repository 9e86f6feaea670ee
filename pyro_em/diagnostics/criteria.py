"""Criteria for choosing between models fitted to the same data: lower is better."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyro_em.diagnostics.evidence import Fitted
from pyro_em.diagnostics.freedom import free_dimensions

__all__ = ["Criteria", "criteria", "num_params"]


@dataclass(frozen=True)
class Criteria:
    """AIC = 2k - 2L, BIC = k log n - 2L and ICL = BIC + 2H, in nats doubled.

    k counts free dimensions, L = log p(x; params), n the elements of the outermost data plate, and H is the entropy of
    the posterior over finite latents.

    Source: Akaike (1974); Schwarz (1978); Biernacki, Celeux & Govaert (2000), with expected labels in place of the most
    probable ones.
    """

    num_params: int
    log_evidence: float
    fitted: Fitted

    @property
    def aic(self) -> float:
        return 2 * self.num_params - 2 * self.log_evidence

    @property
    def bic(self) -> float:
        return self.num_params * math.log(self.fitted.num_data()) - 2 * self.log_evidence

    @property
    def icl(self) -> float:
        return self.bic + 2 * self.fitted.entropy()


def num_params(fitted: Fitted) -> int:
    """Free dimensions of the parameters that moved."""
    return sum(free_dimensions(leaf) for leaf in fitted.leaves().values())


def criteria(fitted: Fitted) -> Criteria:
    """The criteria of a fit whose log evidence is exact.

    Raises:
        ModelError: it is not.
    """
    return Criteria(num_params(fitted), fitted.log_evidence(), fitted)
