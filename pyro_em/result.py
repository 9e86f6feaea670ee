"""What a fit hands back: numbers, the history, and everything that can be asked of the fitted model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd
from torch import Tensor

from pyro_em.data import dense, whole
from pyro_em.diagnostics import Criteria, Fitted, Information, criteria, num_params, observed_information
from pyro_em.export import to_arviz
from pyro_em.params import ParamSpace
from pyro_em.predict import posterior_guide, predict
from pyro_em.rng import isolated_rng, seeded
from pyro_em.status import Status
from pyro_em.strategy import EXPLAINED, Inference, ObjectiveKind

__all__ = ["FitResult"]


@dataclass(frozen=True, eq=False, repr=False)
class FitResult:
    """A fitted model, the same whatever strategy made it.

    Attributes:
        params: constrained values by name: ``pyro.param``, ``PyroParam``, module parameters (the guide's too) and
            point-estimated global latents.
        objective: the maximised objective at ``params``, total nats.
        objective_kind: ``"log_evidence"``, ``"log_joint"`` (with priors) or ``"elbo"``.
        log_evidence: exact log p(x; params) where all latents can be summed out, else ``None``.
        history: one row a step: step, objective, seconds, restart.
        status: how the fit ended, as a sentence.
        n_steps: completed steps.
        seconds: wall time.
        model: the model that was fitted.
    """

    params: dict[str, Tensor]
    objective: float
    objective_kind: ObjectiveKind
    log_evidence: float | None
    history: pd.DataFrame
    status: Status
    n_steps: int
    seconds: float
    model: Callable[..., Any]
    _args: tuple[Any, ...] = ()
    _kwargs: dict[str, Any] = field(default_factory=dict)
    _space: ParamSpace = field(default_factory=ParamSpace)
    _inference: Inference | None = None

    @property
    def converged(self) -> bool:
        """Whether the strategy's stopping rule was met; never true for a cap or a non-finite value."""
        return self.status.converged

    def explain(self) -> pd.DataFrame:
        """Who maximised which parameter, and how it reaches the model's distributions.

        Returns:
            One row for each parameter and distribution argument, with columns ``parameter``, ``site``, ``argument``,
            ``family``, ``verdict`` (selection, linked, affine or opaque), ``link``, ``owner`` (closed form, newton,
            least squares, statistics: numerically over the same expected statistics; gradient: through runs of the
            model; fixed) and ``reason``, why it has no closed form.
        """
        return pd.DataFrame(self._checked_inference.explain(), columns=list(EXPLAINED))

    @contextmanager
    def use(self) -> Iterator[FitResult]:
        """Put the fitted values into Pyro's param store and the model's modules for the body of a ``with``.

        ``Predictive``, ``pyro.param`` and the modules themselves see them; afterwards all is as it was before.
        """
        with self._space.active():
            yield self

    def posterior(self, *args: Any, **kwargs: Any) -> Any:
        """The posterior over the latents, on the training data (no arguments) or given the model's arguments."""
        args, kwargs = self._arguments(args, kwargs)
        with self.use(), isolated_rng():
            return self._checked_inference.posterior(args, kwargs)

    def predict(self, *args: Any, num_samples: int = 100, seed: int | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """Posterior predictive draws of every sample site.

        Latents are drawn from their posterior given the arguments (none: the training data), then every observed site
        is drawn anew given them. Arguments under which nothing is observed give draws from the fitted model.

        Returns:
            By site, a tensor of shape (num_samples, *the site's shape).
        """
        args, kwargs = self._arguments(args, kwargs)
        with self.use(), seeded(seed):
            return predict(self.model, self._checked_inference, args, kwargs, num_samples)

    @property
    def guide(self) -> Callable[..., None]:
        """A Pyro guide that samples the (exact or amortised) posterior given the model's arguments.

        It puts the fitted parameters in place by itself, so it can be called anywhere. Under EM each site is a point
        mass whose log-density is that of the exact posterior draw, so that log p(x, z) - log q(z) is log p(x) exactly
        (not through Pyro's ELBOs where the model masks a latent: they drop its density on the model's side only).
        """
        return posterior_guide(self._checked_inference, self.use)

    def to_arviz(self, num_samples: int = 50, num_chains: int = 4, seed: int | None = None) -> Any:
        """An ArviZ object: posterior, log_likelihood, observed_data, sample_stats.

        Parameters are point estimates and repeat over the draws; latents are drawn from their posterior. The sum of
        ``log_likelihood`` over data is ``log_evidence``; it is left out where that is not exact. See
        :func:`pyro_em.export.to_arviz`.

        Args:
            num_samples: draws in each chain.
            num_chains: number of chains.
            seed: start of the random stream; ``None`` draws from the caller's.
        """
        with self.use(), seeded(seed):
            data = self._arguments((), {})
            return to_arviz(
                self.model, self._checked_inference, data, self.params, self.history, num_samples, num_chains
            )

    def stderr(self) -> dict[str, Tensor]:
        """The standard error of each element of each parameter, in constrained space.

        sqrt(diag(J I^-1 J')): I is the observed information, minus the Hessian of log p(x) (with the log-priors that
        the fit counted) in unconstrained coordinates at ``params``, exact by automatic differentiation; J is the
        derivative of the constrained values (the delta method). Latents are summed out, so that what they leave unknown
        is counted. Fixed parameters and those of a guide have none.

        Returns:
            By parameter, a tensor of its shape.

        Raises:
            ModelError: log p(x) is not known exactly (a continuous latent).
            InformationError: a parameter at the edge of its constraint, or one the data do not determine.

        Source: Louis (1982), "Finding the observed information matrix when using the EM algorithm"; here without his
        formula, since log p(x) is at hand.
        """
        errors = self._information.stderr()
        return {name: errors[first] for name, first in self._first_names.items() if first in errors}

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
        with self._fitted() as fitted:
            return observed_information(fitted.objective, fitted.leaves())

    @property
    def num_params(self) -> int:
        """Free dimensions of the model's parameters: K - 1 for a simplex of K, D (D + 1) / 2 for a covariance.

        A tensor under several names counts once, a point-estimated latent as a parameter; fixed parameters and those of
        a guide do not count.
        """
        with self._fitted() as fitted:
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
        """BIC plus twice the entropy of the posterior over finite latents: it asks for clusters that are told apart.

        The integrated completed likelihood of Biernacki, Celeux & Govaert (2000), on the scale of ``bic`` (lower is
        better) and with the posterior in place of the most probable labels.
        """
        return self._criterion(lambda c: c.icl)

    def _criterion(self, which: Callable[[Criteria], float]) -> float:
        with self._fitted() as fitted:
            return which(criteria(fitted))

    @contextmanager
    def _fitted(self) -> Iterator[Fitted]:
        args, kwargs = self._arguments((), {})
        with self.use(), isolated_rng():
            priors = self.objective_kind == "log_joint"
            yield Fitted(self.model, self._checked_inference, self._space, args, kwargs, priors)

    @cached_property
    def _first_names(self) -> dict[str, str]:
        """By parameter, the first of the names that its tensor has."""
        with self.use():
            leaves, distinct = self._space.leaves(), self._space.distinct()
        first = {id(leaf.unconstrained): name for name, leaf in distinct.items()}
        return {name: first[id(leaf.unconstrained)] for name, leaf in leaves.items()}

    @property
    def _checked_inference(self) -> Inference:
        assert self._inference is not None
        return self._inference

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return dense(*(whole(args, kwargs) if args or kwargs else whole(self._args, self._kwargs)))

    def __repr__(self) -> str:
        known = self.log_evidence is None or self.objective_kind == "log_evidence"
        evidence = "" if known else f", log_evidence={self.log_evidence:.4f}"
        return (
            f"FitResult({self.objective_kind}={self.objective:.4f}{evidence}, status={self.status.name}, "
            f"n_steps={self.n_steps}, params={list(self.params)})"
        )
