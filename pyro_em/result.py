"""What a fit hands back: numbers, the history, and everything that can be asked of the fitted model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from pyro import poutine
from torch import Tensor

from pyro_em.checked import check_count
from pyro_em.data import dense, hinting, whole
from pyro_em.diagnostics import Diagnosed, Fitted
from pyro_em.errors import InformationError, ModelError
from pyro_em.export import to_arviz
from pyro_em.params import ParamSpace
from pyro_em.predict import posterior_guide, predict
from pyro_em.rng import isolated_rng, seeded
from pyro_em.save import encode, opened, write
from pyro_em.show import Sentences, page, plot_history, summary
from pyro_em.status import Status
from pyro_em.strategy import EXPLAINED, Inference, ObjectiveKind

__all__ = ["FitResult"]


@dataclass(frozen=True, eq=False, repr=False)
class FitResult(Diagnosed):
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
        return Sentences(self._checked_inference.explain(), columns=list(EXPLAINED))

    @contextmanager
    def use(self) -> Iterator[FitResult]:
        """Put the fitted values into Pyro's param store and the model's modules for the body of a ``with``.

        ``Predictive``, ``pyro.param`` and the modules themselves see them; afterwards all is as it was before.
        """
        with self._space.active():
            yield self

    def posterior(self, *args: Any, **kwargs: Any) -> Any:
        """The posterior over the latents, on the training data (no arguments) or given the model's arguments.

        Each datum is there once: ``fit(weights=...)`` counts in ``result.log_evidence``, not here. Nor do posteriors
        know ``poutine.scale``.
        """
        args, kwargs = self._arguments(args, kwargs)
        with self.use(), isolated_rng(), hinting(args, kwargs):
            return self._checked_inference.posterior(args, kwargs)

    def predict(self, *args: Any, num_samples: int = 100, seed: int | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """Posterior predictive draws of every sample site.

        Latents are drawn from their posterior given the arguments (none: the training data), then every observed site
        is drawn anew given them. Arguments under which nothing is observed give draws from the fitted model.

        Returns:
            By site, a tensor of shape (num_samples, *the site's shape).

        Raises:
            ValueError: ``num_samples`` below one.
        """
        check_count("num_samples", num_samples)
        args, kwargs = self._arguments(args, kwargs)
        with poutine.block(), self.use(), seeded(seed), hinting(args, kwargs):
            return predict(self.model, self._checked_inference, args, kwargs, num_samples)

    @property
    def guide(self) -> Callable[..., None]:
        """A Pyro guide that samples the (exact or amortised) posterior given the model's arguments.

        It puts the fitted parameters in place by itself, so it can be called anywhere. Under EM each site is a point
        mass whose log-density is that of the exact posterior draw, so that log p(x, z) - log q(z) is log p(x) exactly
        (not through Pyro's ELBOs where the model masks a latent: they drop its density on the model's side only), each
        log-density under its ``poutine.scale``. Draws know no scale: where elements of a plate have scales of their
        own and a latent outside that plate depends on them, it is drawn as if they had none, and the difference varies.
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

        Raises:
            ValueError: ``num_samples`` or ``num_chains`` below one.
        """
        check_count("num_samples", num_samples)
        check_count("num_chains", num_chains)
        with self.use(), seeded(seed):
            data = self._arguments((), {})
            return to_arviz(
                self.model, self._checked_inference, data, self.params, self.history, num_samples, num_chains
            )

    def summary(self, level: float = 0.95) -> pd.DataFrame:
        """A row for each element of each parameter, labelled ``name[i,j]``.

        Columns are ``estimate``, ``stderr``, ``lower`` and ``upper`` (see :meth:`confint`), and ``note``, which says
        why the others are empty: the parameter was fixed, is the guide's, or there are no standard errors.
        """
        try:
            errors, bounds, reason = self.stderr(), self.confint(level), ""
        except (ModelError, InformationError) as error:
            errors, bounds, reason = {}, pd.DataFrame(columns=["lower", "upper"], dtype=float), str(error)
        fixed = self._checked_inference.fixed
        others = reason or "no parameter of the model's own"
        notes = {n: "fixed" if n in fixed else others for n in self.params if n not in errors}
        return summary(self.params, errors, bounds, notes)

    def plot_history(self, ax: Any = None, **style: Any) -> Any:
        """Plot the objective by step, a line for each start, and return the matplotlib axes.

        Args:
            ax: axes to draw on; ``None`` makes a figure.
            **style: handed to ``ax.plot``.
        """
        return plot_history(self.history, self.objective_kind, ax, **style)

    def _repr_html_(self) -> str:
        evidence = "not known exactly" if self.log_evidence is None else f"{self.log_evidence:.4f} nats"
        facts = {
            self.objective_kind.replace("_", " "): f"{self.objective:.4f} nats",
            **({} if self.objective_kind == "log_evidence" else {"log evidence": evidence}),
            "status": f"{self.status.name}: {self.status}",
            "steps": f"{self.n_steps} in {self.seconds:.2f} s",
        }
        return page(facts, self.params)

    def save(self, path: str | Path, data: bool = True) -> None:
        """Write the fit to a file that holds no code: tensors, numbers and names.

        Training data are stored with it where they are tensors, numbers, strings, and lists, tuples and dictionaries of
        these; others (a ``DataLoader``, a ``numpy.memmap``) are asked for again by :meth:`load`. The optimiser is not
        stored: a fit that goes on by ``init=`` from a file starts it anew.

        Args:
            data: whether to store training data at all.

        Raises:
            SaveError: a fit of a strategy that is not of this package.
        """
        with self.use(), isolated_rng():
            arguments = (self._args, self._kwargs) if data else None
            write(path, encode(vars(self), self.model, self._checked_inference, self._space, arguments))

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: Callable[..., Any],
        *args: Any,
        guide: Callable[..., Any] | None = None,
        **kwargs: Any,
    ) -> FitResult:
        """Read a fit that :meth:`save` wrote; it answers as it did before.

        The model is run once, so that its parameters exist. They must be those of the file by name, shape, dtype and
        constraint. The global param store, the random state and the model's modules stay as they are.

        Args:
            model: the program that was fitted.
            *args, **kwargs: its arguments; none: those in the file.
            guide: under SVI, the guide that was fitted. Without it, whatever draws from it raises.

        Raises:
            SaveError: no such file, another model's, or one without data when none are given.
        """
        found = opened(path, model, guide, (args, kwargs))
        own = {"_args": found.data[0], "_kwargs": found.data[1], "_space": found.space, "_inference": found.inference}
        return cls(**{**found.fields, **own, "model": model})

    @property
    def _checked_inference(self) -> Inference:
        assert self._inference is not None
        return self._inference

    @contextmanager
    def _fitted(self, args: tuple[Any, ...], kwargs: dict[str, Any], seed: int | None) -> Iterator[Fitted]:
        is_training = not args and not kwargs
        data = self._arguments(args, kwargs)
        with self.use(), seeded(seed):
            priors = self.objective_kind == "log_joint"
            yield Fitted(self.model, self._checked_inference, self._space, *data, priors, is_training)

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return dense(*(whole(args, kwargs) if args or kwargs else whole(self._args, self._kwargs)))

    def __repr__(self) -> str:
        known = self.log_evidence is None or self.objective_kind == "log_evidence"
        evidence = "" if known else f", log_evidence={self.log_evidence:.4f}"
        return (
            f"FitResult({self.objective_kind}={self.objective:.4f}{evidence}, status={self.status.name}, "
            f"n_steps={self.n_steps}, params={list(self.params)})"
        )
