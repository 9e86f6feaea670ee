"""The M-step of sites whose arguments are affine in the parameters: least squares, and Newton's method (IRLS).

Families whose arguments are coupled, such as a Gamma, take all of them together (see :mod:`.together`). Of the others,
in turn: the coefficients behind each affine argument, by Newton's method on their predictors, which for the mean of a
Normal is weighted least squares and done in one step (Nelder & Wedderburn 1972); then every other argument by its
family's own solution, the elements as cells. None of these lowers Q. All that is needed of the data are sums over them,
so that they may come in batches: a step of Newton's method is then one pass.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pyro_em.compiled.elements import ElementFactor, ElementRoute
from pyro_em.compiled.numeric import climb
from pyro_em.compiled.pieces import Piece, Pieces
from pyro_em.compiled.pooled import Pooled
from pyro_em.compiled.priors import Prior, log_prior
from pyro_em.compiled.solve import Guard
from pyro_em.compiled.still import is_still
from pyro_em.compiled.together import Together
from pyro_em.families.coupled import Density, expansion
from pyro_em.probing import Coordinates
from pyro_em.probing.affine import PREDICTORS
from pyro_em.summed import summed

__all__ = ["Regressions"]

SWEEPS = 200
ITERATIONS = 100
STILL = 1e-12
LITTLE = 1e-14  # of Q, that a sweep gains


@dataclass(frozen=True)
class Regressions:
    """Raises Q over the parameters of element factors.

    Attributes:
        factors: connected with an affine argument, directly or through shared parameters; of the first batch.
        coordinates: of the parameters.
        priors: those that count.
        affine: for each argument name, the columns of theta that Newton's method moves.
        closed: what families solve for.
        together: families whose arguments move together.
        numeric: parameters maximised numerically.
    """

    factors: tuple[ElementFactor, ...]
    coordinates: Coordinates
    priors: Mapping[str, Prior]
    affine: Mapping[str, Tensor]
    closed: tuple[Pooled, ...]
    numeric: tuple[str, ...]
    together: tuple[Together, ...] = ()

    def maximise(self, theta: Tensor, pieces: Pieces, guard: Guard) -> Tensor:
        """theta with these parameters at a maximum of Q over each in turn.

        Args:
            pieces: the data, with the posteriors of their states.
            guard: what to do about components that collapse.

        Raises:
            DegenerateError: a spread beside an affine argument went to nothing, or a concentration beyond all limits,
                under a guard that does not floor.
        """
        pieces, height = pieces.held(), -math.inf
        turns = len(self.affine) + len(self.closed) + len(self.together) + bool(self.numeric)
        for _ in range(SWEEPS):
            before, below = theta, height
            for family in self.together:
                theta = family.maximise(theta, pieces, guard)
            for name, columns in self.affine.items():
                theta = self._newton(name, columns, theta, pieces)
            for argument in self.closed:
                theta = argument.solve(theta, pieces, guard)
            if self.numeric:
                theta = climb(lambda t: self._q(t, pieces, self.numeric), self.coordinates, theta, self.numeric)
            if turns == 1 or is_still(theta, before, STILL):
                break
            with torch.no_grad():
                height = float(self._q(theta, pieces, self.priors))
            if height - below <= LITTLE * (1 + abs(height)):
                break
        return theta

    def expected(self, theta: Tensor, pieces: Pieces) -> Tensor:
        """The part of Q that these sites make, in nats; differentiable in theta."""
        return summed((_of_piece(piece, theta) for piece in pieces), [theta])

    def _q(self, theta: Tensor, pieces: Pieces, params: Collection[str]) -> Tensor:
        priors = {n: p for n, p in self.priors.items() if n in params}
        return log_prior(priors, self.coordinates, theta) + self.expected(theta, pieces)

    def is_held(self, theta: Tensor, slack: float) -> bool:
        """Whether a spread beside an affine argument is at most ``slack`` times its floor."""
        closed = [*self.closed, *(argument for family in self.together for argument in family.closed)]
        return any(argument.is_held(self.factors, theta, slack) for argument in closed)

    def _newton(self, name: str, columns: Tensor, theta: Tensor, pieces: Pieces) -> Tensor:
        """Newton's method over the coefficients behind one argument, with steps halved until Q does not fall."""
        starts, own = self.coordinates.starts(), set(columns.tolist())
        priors = {n: p for n, p in self.priors.items() if starts[n] in own}
        prior = partial(log_prior, priors, self.coordinates) if priors else None
        here = _Expansion.at(theta, name, columns, pieces, prior)
        for _ in range(ITERATIONS):
            step = _solve(here.curvature, here.slope)
            promised = float(here.slope @ step)
            if promised <= max(1e-15 * (1 + abs(here.value)), here.noise):
                break
            there = _halved(here, step, name, columns, pieces, prior)
            if there is None:
                break
            here = there
        return here.theta


@dataclass(frozen=True)
class _Expansion:
    """Q at theta, its gradient in the columns of one argument, and minus its second derivatives.

    Attributes:
        noise: what rounding leaves undecided of the value, whose terms may cancel: beside a scale at its floor, say.
    """

    theta: Tensor
    value: float
    noise: float
    slope: Tensor
    curvature: Tensor

    @classmethod
    def at(cls, theta: Tensor, name: str, columns: Tensor, pieces: Pieces, prior: Density | None) -> _Expansion:
        size = len(columns)
        value, noise, slope, curvature = 0.0, 0.0, theta.new_zeros(size), theta.new_zeros(size, size)
        if prior is not None:
            height, slope, hessian = expansion(lambda v: prior(theta.index_put((columns,), v)), theta[columns])
            value, curvature = float(height), -hessian
        place = torch.full((len(theta),), -1, dtype=torch.long)
        place[columns] = torch.arange(size)
        for piece in pieces:
            for f in piece.factors:
                if name not in f.routes or not f.routes[name].is_affine:
                    continue
                own, magnitude, first, second = _in_predictor(f, name, theta, piece.stats[f.name])
                value, noise = value + own, noise + torch.finfo(theta.dtype).eps * magnitude
                _add_derivatives(f.routes[name], first, second, place, slope, curvature)
        return cls(theta, value if value == value else -torch.inf, noise, slope, curvature)


def _halved(
    here: _Expansion, step: Tensor, name: str, columns: Tensor, pieces: Pieces, prior: Density | None
) -> _Expansion | None:
    for halving in range(40):
        trial = here.theta.clone()
        trial[columns] += step * 0.5**halving
        there = _Expansion.at(trial, name, columns, pieces, prior)
        if there.value >= here.value - max(1e-14 * abs(here.value), here.noise):
            return there
    return None


def _add_derivatives(
    route: ElementRoute, first: Tensor, second: Tensor, place: Tensor, slope: Tensor, curvature: Tensor
) -> None:
    """Add what one site makes of the derivatives in theta, in place, from those in its predictor."""
    assert route.design is not None and route.columns is not None
    used = place[route.columns]
    design = route.design[..., used >= 0]
    used = used[used >= 0]
    full = design.expand(*first.shape, design.shape[-1])
    slope.index_add_(0, used, (full * first.unsqueeze(-1)).flatten(0, -2).sum(0))
    is_block = second.dim() == first.dim() + 1
    curved = second @ full if is_block else second.unsqueeze(-1) * full
    curvature[used.unsqueeze(1), used.unsqueeze(0)] -= full.flatten(0, -2).T @ curved.flatten(0, -2)


def _of_piece(piece: Piece, theta: Tensor) -> Tensor:
    parts = [_expected(f, f.args(theta, slice(None)), piece.stats[f.name]).sum() for f in piece.factors]
    return torch.stack(parts).sum()


def _expected(factor: ElementFactor, args: dict[str, Tensor], stats: Tensor) -> Tensor:
    coefficients = factor.family.coefficients(**args)
    return torch.where(stats == 0, 0.0, coefficients * stats)


def _in_predictor(
    factor: ElementFactor, name: str, theta: Tensor, stats: Tensor
) -> tuple[float, float, Tensor, Tensor]:
    """Q of one site and the size of its terms, with first and second derivatives in the predictor of each element."""
    route, every = factor.routes[name], slice(None)
    block = route.predictor(theta, every).shape[3:]
    eta = route.predictor(theta, every).expand(*stats.shape[:3], *block).clone().requires_grad_(True)
    args = {n: r.value(factor.coordinates, theta, every) for n, r in factor.routes.items() if n != name}
    with torch.enable_grad():
        terms = _expected(factor, {**args, name: PREDICTORS[route.link][1](eta)}, stats)
        value = terms.sum()
        (first,) = torch.autograd.grad(value, eta, create_graph=True)
        if not block:
            (second,) = torch.autograd.grad(first.sum(), eta)
        else:
            rows = [torch.autograd.grad(first[..., v].sum(), eta, retain_graph=True)[0] for v in range(block[0])]
            second = torch.stack(rows, -2)
    return float(value.detach()), float(terms.detach().abs().sum()), first.detach(), second


def _solve(curvature: Tensor, slope: Tensor) -> Tensor:
    """A direction of ascent: Newton's where Q is concave, none where it is flat or overflows.

    What is flat shows in units in which all second derivatives are one: a small coefficient is not.
    """
    if not bool(torch.isfinite(curvature).all()):
        return torch.zeros_like(slope)
    unit = curvature.diagonal().abs().clamp_min(1e-150).rsqrt()
    levels, axes = torch.linalg.eigh(curvature * unit.unsqueeze(-1) * unit)
    size = levels.abs()
    usable = size > 1e-11 * size.max()
    along = (axes.T @ (unit * slope)) / size.clamp_min(torch.finfo(size.dtype).tiny)
    return unit * (axes @ torch.where(usable, along, 0.0))
