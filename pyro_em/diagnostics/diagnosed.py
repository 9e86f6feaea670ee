"""The questions that a result answers about its own worth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import pandas as pd
from torch import Tensor

from pyro_em.diagnostics.criteria import Criteria, criteria, num_params
from pyro_em.diagnostics.evidence import Fitted
from pyro_em.diagnostics.gap import Gap, measure_gap
from pyro_em.diagnostics.information import Information, observed_information
from pyro_em.diagnostics.quadrature import Quadrature, integrate

__all__ = ["Diagnosed"]


class Diagnosed(ABC):
    """Gaps, standard errors and criteria of whatever can put its fitted parameters in place."""

    @abstractmethod
    def _fitted(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], seed: int | None
    ) -> AbstractContextManager[Fitted]:
        """The fit with its parameters in place, on these data (none: those of training) and random stream."""

    def gap(
        self,
        *args: Any,
        log_evidence: float | Tensor | None = None,
        num_samples: int = 200,
        steps: int = 1000,
        seed: int | None = None,
        **kwargs: Any,
    ) -> Gap:
        """How far the bound lies below the log evidence, and why: log p(x) - L = approximation + amortization.

        The amortization gap is what L gains when each datum has arguments of its own in the guide's distributions, the
        model being held fixed; the approximation gap is the rest. Under EM all are zero. A guide over finite latents is
        summed over exactly, and its best tables are found site by site in closed form. Otherwise L is a mean over
        draws, and arguments climb by Adam from where the guide puts them, which needs reparameterised sites whose
        arguments do not depend on other draws: without these there is no split, and ``reason`` says so. Nor is there a
        total where the guide is a point mass on a continuous latent. The climb never ends below where it began.

        Args:
            *args, **kwargs: the model's arguments; none: the training data.
            log_evidence: log p(x) where it cannot be summed exactly: a number, or one for each datum.
            num_samples: draws for L.
            steps: of the climb.
            seed: start of the random stream; ``None`` draws from the caller's.

        Source: Cremer, Li & Duvenaud (2018), "Inference suboptimality in variational autoencoders".
        """
        with self._fitted(args, kwargs, seed) as fitted:
            return measure_gap(fitted, log_evidence, num_samples, steps)

    def evidence_by_quadrature(self, *args: Any, num_points: int = 25, width: float = 6.0, **kwargs: Any) -> Quadrature:
        """log p(x_n) where each datum has one to three continuous latents, by integrating them out.

        The trapezoidal rule on a grid of ``num_points`` nodes a dimension, ``width`` standard deviations to each side
        of the mean of each datum's posterior; it converges geometrically for smooth integrands. Means and covariances
        start from the guide's draws and are found by quadrature themselves (Naylor & Smith 1982). Every node is one run
        of the model on all data; finite latents beside are summed out. A mode that no node comes near is missed.

        Args:
            *args, **kwargs: the model's arguments; none: the training data.
            num_points: odd.
            width: half of a grid's side.

        Raises:
            ModelError: more latents, latents that data share, or nothing to integrate.

        Source: Trefethen & Weideman (2014), "The exponentially convergent trapezoidal rule".
        """
        with self._fitted(args, kwargs, seed=0) as fitted:
            return integrate(fitted, num_points, width)

    def stderr(self) -> dict[str, Tensor]:
        """The standard error of each element of each parameter, in constrained space.

        sqrt(diag(J I^-1 J')): I is the observed information, minus the Hessian of log p(x) (with the log-priors that
        the fit counted) in unconstrained coordinates at ``params``, exact by automatic differentiation; J is the
        derivative of the constrained values (the delta method). Latents are summed out, so that what they leave unknown
        is counted. Fixed parameters and those of a guide have none; probabilities that stay at exactly zero have an
        error of zero.

        Returns:
            By parameter, a tensor of its shape; one that has several names is under the first of them.

        Raises:
            ModelError: log p(x) is not known exactly (a continuous latent).
            InformationError: a parameter at the edge of its constraint, or one the data do not determine.

        Source: Louis (1982), "Finding the observed information matrix when using the EM algorithm"; here without his
        formula, since log p(x) is at hand.
        """
        return self._information.stderr()

    def vcov(self) -> pd.DataFrame:
        """Covariances of the estimates in constrained space, rows and columns labelled ``name[i,j]``; see
        :meth:`stderr`. A tensor that has several names is there once.
        """
        return self._information.vcov()

    def confint(self, level: float = 0.95) -> pd.DataFrame:
        """Wald intervals by element: rows ``name[i,j]``, columns ``lower`` and ``upper``.

        Elementwise constraints: estimate ± z stderr in unconstrained coordinates (the logarithm of a positive number,
        the log-odds of a probability), mapped back, so that the interval respects the constraint and is not symmetric.
        Elements of a simplex: the same in the log-odds of the element. All others (matrices, ordered vectors):
        estimate ± z stderr as they are, which may leave the constraint.

        Args:
            level: coverage, between 0 and 1.
        """
        return self._information.confint(level)

    @cached_property
    def _information(self) -> Information:
        with self._fitted((), {}, seed=0) as fitted:
            return observed_information(fitted.objective, fitted.leaves())

    @property
    def num_params(self) -> int:
        """Free dimensions of the model's parameters, K - 1 for a simplex of K, D (D + 1) / 2 for a covariance.

        Probabilities that start at exactly zero stay there, and do not count: a row of K with k zeros has K - 1 - k. A
        tensor under several names counts once, a point-estimated latent as a parameter; fixed parameters and those of
        a guide do not count.
        """
        with self._fitted((), {}, seed=0) as fitted:
            return num_params(fitted)

    @property
    def aic(self) -> float:
        """Akaike's criterion 2 k - 2 log p(x; params), k = ``num_params``; lower is better.

        Raises:
            ModelError: log p(x) is not known exactly. So do ``bic`` and ``icl``.
        """
        return self._criterion(lambda c: c.aic)

    @property
    def bic(self) -> float:
        """Schwarz's criterion k log n - 2 log p(x; params); lower is better.

        n is the number of elements of the outermost data plate, or the sum of their weights where they have any. Under
        priors, log p(x; params) is still the log evidence alone.
        """
        return self._criterion(lambda c: c.bic)

    @property
    def icl(self) -> float:
        """BIC plus twice the entropy of the posterior over finite latents, to ask for clusters told apart.

        The integrated completed likelihood of Biernacki, Celeux & Govaert (2000), on the scale of ``bic`` (lower is
        better) and with the posterior in place of the most probable labels.
        """
        return self._criterion(lambda c: c.icl)

    def _criterion(self, which: Callable[[Criteria], float]) -> float:
        with self._fitted((), {}, seed=0) as fitted:
            return which(criteria(fitted))
