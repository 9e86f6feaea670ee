"""EM on a compiled model: no run of the program inside the loop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.distributions import transform_to

from pyro_em.compiled import Expectation, TensorModel
from pyro_em.compiled.drop import maximised
from pyro_em.compiled.evaluate import ALL
from pyro_em.compiled.maximise import Maximiser, Moved
from pyro_em.compiled.numeric import expected
from pyro_em.compiled.point import Point, Tally
from pyro_em.compiled.priors import log_prior
from pyro_em.compiled.sparse import SparseFactor
from pyro_em.em.agreement import Agreement
from pyro_em.em.batched import BatchedModel
from pyro_em.em.edges import coordinates_of, is_near_edge
from pyro_em.em.placing import by_rows, drawn, members
from pyro_em.em.stopping import resolution
from pyro_em.errors import ModelError
from pyro_em.graph import Variable
from pyro_em.optim import TRIAL
from pyro_em.params import ParamSpace

__all__ = ["TensorEngine", "TensorExpectation"]


@dataclass(frozen=True)
class TensorExpectation:
    """An E-step: the objective, and the expected statistics."""

    objective: float
    log_evidence: float | None
    spread: float
    model: Expectation


class TensorEngine:
    """E- and M-steps on theta, the vector of all constrained values, which reaches the program when the fit ends.

    Args:
        model: the compiled model.
        maximiser: solves for theta; with the priors that count.
        space: the parameters.
        fixed: names of parameters that stay.
        drops: whether to go on without a component that collapses.
        agreement: compares the model with the program; ``None`` trusts it.
    """

    is_stuck = False
    undefined: tuple[str, ...] = ()
    breaks = False
    runs_program = False

    def __init__(
        self,
        model: TensorModel | BatchedModel,
        maximiser: Maximiser,
        space: ParamSpace,
        fixed: tuple[str, ...],
        drops: bool = False,
        agreement: Agreement | None = None,
    ) -> None:
        self.agreement = agreement
        self.model, self.maximiser, self.space, self.fixed = model, maximiser, space, fixed
        self.counts_priors, self.drops = bool(maximiser.priors), drops
        values = space.values()
        self.theta = model.coordinates.flat(values)
        self._known = Moved(self.theta)
        self._compared: tuple[Tensor, bool] | None = None

    def anew(self) -> TensorEngine:
        """An engine of its own on the same tensors, at the parameters in place."""
        maximiser = replace(self.maximiser, guard=self.maximiser.guard.anew())
        return TensorEngine(self.model, maximiser, self.space, self.fixed, self.drops, self.agreement)

    def serves(self) -> bool:
        """Whether the program says here, at a start where it was not probed, what its tensors say."""
        return self.agreement is None or self.agreement.holds(self.theta, self._in_memory)

    @property
    def dtype(self) -> torch.dtype:
        """What limits the meaning of a change of the objective."""
        return self.model.dtype

    @property
    def has_free(self) -> bool:
        """Whether there is a parameter to move."""
        return bool(self._free)

    @property
    def _in_memory(self) -> TensorModel:
        return self.model.first if isinstance(self.model, BatchedModel) else self.model

    @cached_property
    def _free(self) -> dict[str, torch.Size]:
        """Names of the parameters that move, with the shapes of their unconstrained coordinates."""
        return {name: leaf.shape for name, leaf in self.space.free(self.fixed).items()}

    def point(self) -> Tensor:
        """The parameters, for :meth:`move`."""
        return self.theta

    def move(self, point: Tensor) -> None:
        """Put parameters back."""
        self.theta = point

    def coordinates(self) -> Tensor:
        """The free parameters in unconstrained coordinates, one vector, float64."""
        values = self.model.coordinates.split(self.theta)
        parts = [coordinates_of(values[n], self.model.coordinates.constraints[n]).reshape(-1) for n in self._free]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    def move_to(self, vector: Tensor) -> None:
        """Put the free parameters at a point of :meth:`coordinates`."""
        self.theta = self._theta_at(vector).detach()

    def values(self) -> Tensor:
        """The free parameters as they are, one vector, float64."""
        values = self.model.coordinates.split(self.theta)
        return torch.cat([values[n].reshape(-1) for n in self._free]) if self._free else self.theta[:0]

    def is_near_edge(self) -> bool:
        """Whether one of them is a probability next to zero or one."""
        values, constraints = self.model.coordinates.split(self.theta), self.model.coordinates.constraints
        return any(is_near_edge(values[n], constraints[n]) for n in self._free)

    def expect(self) -> TensorExpectation:
        """The E-step at the parameters in place."""
        with self._without_gradients():
            found = self.model.expect(self.theta, self._known.values if self._known.theta is self.theta else None)
            prior = float(self._log_prior(self.theta)) if self.counts_priors else 0.0
        return TensorExpectation(found.log_evidence + prior, found.log_evidence, found.spread, found)

    def maximise(self, expectation: TensorExpectation) -> bool:
        """Move to the maximum of Q."""
        lifted = self.maximiser.is_held(self.theta, 1 - 1e-6)  # the floor lifts a start below it
        with self._without_gradients():
            given = self.maximiser, self._in_memory, self.theta, expectation.model
            moved, dropped = maximised(*given, self._free, self.drops, expectation.model.point)
        self.breaks = lifted or bool(dropped)
        self.theta = moved.theta.clone()
        self._known = Moved(self.theta, moved.values)
        return True

    def refuse(self, expectation: TensorExpectation) -> None:
        """M-steps see all collapses here."""

    def _without_gradients(self) -> AbstractContextManager[None]:
        """Tensors that no gradient can ever be asked of are quicker to make, where none is asked for."""
        direct = isinstance(self.model, TensorModel) and self.model.is_direct and self.maximiser.is_closed
        return torch.inference_mode() if direct else torch.no_grad()

    def can_gain(self, nats: float, keep: bool = False) -> bool:
        """Whether L-BFGS on the objective itself would raise it by this much; and, with ``keep``, stay there.

        The gradient of the log evidence is that of Q at the same parameters (Fisher's identity), which the statistics
        give; so a trial costs one E-step.
        """
        if self.is_held():
            return False  # at a floor the objective has an edge, which a climb would step over
        start, point = self.expect().objective, self.coordinates().requires_grad_(True)
        if not len(point):
            return False
        optimizer = TRIAL([point])

        def closure() -> float:
            optimizer.zero_grad()
            value = self._objective(point)
            if float(value.detach()) - start >= nats:
                raise _Enough
            if not math.isfinite(float(value.detach())):
                return math.inf
            (-value).backward()
            return -float(value.detach())

        try:
            optimizer.step(closure)
        except _Enough:
            if keep:
                self.move_to(point.detach())
            return True
        return False

    def variables(self) -> list[Variable]:
        """The latents that are summed out."""
        return list({v.name: v for f in self.model.factors for v in drawn(f)}.values())

    def block_size(self) -> int:
        """Dimensions of the largest covariance."""
        return max((getattr(b.family, "size", 1) for b in self.model.books if b.location is not None), default=1)

    def observed(self, site: str) -> tuple[tuple[Variable, ...], Tensor]:
        """The one latent of an observed site, or those of its like along a chain, and the data."""
        factor = next((f for f in self.model.factors if site in members(f)), None)
        if (
            factor is None
            or factor.own is not None
            or isinstance(factor, SparseFactor)
            or len(factor.scope) != 1
            or factor.x.shape[0] != factor.num_rows
        ):
            raise ModelError(
                f"A start from data needs an observed site of dense data with one latent; {site!r} is none."
            )
        return drawn(factor), factor.x.flatten(1)

    def place(self, states: Mapping[str, Tensor], chosen: Mapping[str, Tensor], rest: float = 0.0) -> None:
        """Move to the maximum of Q under latents that have been labelled; spreads are held at a floor."""
        tally = Tally.of(Point.at(self.theta, self.model.books, self.model.coordinates))
        for f in self.model.factors:
            tally.add(f, by_rows(f, states, chosen, rest), ALL)
        found = self.model.expectation(tally, 0.0, 0.0)
        careful = replace(self.maximiser, guard=replace(self.maximiser.guard, floor=True))
        with torch.no_grad():
            moved = self.model.coordinates.split(careful.maximise(self.theta, found.stats, found.pieces).theta)
            theta = self.model.coordinates.flat({n: self.space.exact(n, v) for n, v in moved.items()})
            self.theta = torch.where(torch.isfinite(theta), theta, self.theta)  # labels may all be impossible

    def is_held(self) -> bool:
        """Whether a spread is at the floor that ``on_degenerate`` asked for, or below."""
        return self.maximiser.is_held(self.theta)

    def slack(self, expectation: TensorExpectation) -> float:
        """What rounding can take from the objective at worst, nats: errors of equal data do not average out."""
        return self.noise(expectation) + 8 * torch.finfo(self.dtype).eps * expectation.model.magnitude

    def noise(self, expectation: TensorExpectation) -> float:
        """Rounding errors of the objective, nats: of its terms, which add up at random, and of the products of features
        and coefficients that they are made of, which cancel.
        """
        stats, total = expectation.model.stats, expectation.model.magnitude
        count = max((float(s[:, -1].sum()) for s in stats), default=1.0)
        cancelled = 8 * torch.finfo(self.dtype).eps * total / max(count, 1.0) ** 0.5
        return resolution(expectation.spread, self.dtype) + cancelled

    def agrees(self) -> bool:
        """Whether the program, at theta, says what its tensors say."""
        self.finish()
        if self.agreement is None:
            return True
        if self._compared is None or not self._is_near(self._compared[0]):
            self._compared = self.theta, self._compare(self.agreement)
        return self._compared[1]

    def _compare(self, agreement: Agreement) -> bool:
        if isinstance(self.model, BatchedModel):
            return agreement.holds_in_batches(self.theta, self.model)
        return agreement.holds(self.theta, self.model)

    def finish(self) -> bool:
        """Hand theta to the program; whether an edge of a constraint moved it by more than rounding."""
        before, values = self.theta, self.model.coordinates.split(self.theta)
        self.space.assign_nearest({name: values[name] for name in self._free})
        self.theta = self.model.coordinates.flat(self.space.values())
        return not self._is_near(before)

    def _is_near(self, theta: Tensor) -> bool:
        """Whether the parameters are there, up to rounding."""
        return torch.allclose(self.theta, theta, rtol=64 * torch.finfo(self.dtype).eps, atol=1e-300)

    def _objective(self, point: Tensor) -> Tensor:
        """The objective, with its gradient, at unconstrained coordinates."""
        with torch.enable_grad():
            theta = self._theta_at(point)
            found = self.model.expect(theta.detach())
            q = expected(self.maximiser.books, self.model.coordinates, {}, found.stats, theta)
            if self.maximiser.regressions is not None:
                q = q + self.maximiser.regressions.expected(theta, found.pieces)
            prior = self._log_prior(theta) if self.counts_priors else torch.zeros((), dtype=torch.float64)
            return found.log_evidence + (q - q.detach()) + prior

    def _theta_at(self, vector: Tensor) -> Tensor:
        parts, values, at = [], self.model.coordinates.split(self.theta), 0
        for name, constraint in self.model.coordinates.constraints.items():
            value = values[name]
            if name in self._free:
                shape = self._free[name]
                size = shape.numel()
                value = self.space.exact(name, transform_to(constraint)(vector[at : at + size].reshape(shape)))
                at += size
            parts.append(value.reshape(-1))
        return torch.cat(parts)

    def _log_prior(self, theta: Tensor) -> Tensor:
        return log_prior(self.maximiser.priors, self.model.coordinates, theta)


class _Enough(Exception):
    """The question is answered before the optimiser is done."""
