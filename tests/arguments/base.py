"""What an entry of this corpus is: a small model, and the route by which each parameter reaches the distributions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from programs.base import Made, f64
from torch import Tensor

__all__ = [
    "CASES",
    "LINKS",
    "OWNERS",
    "SELECTED",
    "VERDICTS",
    "Case",
    "Made",
    "Route",
    "affine",
    "case",
    "either",
    "f64",
    "linked",
    "opaque",
    "selection",
    "unused",
]

VERDICTS = {
    "selection": "each element of the argument is an element of the parameter, or a constant",
    "linked": "so it is after an elementwise or row-wise function that a closed form can undo",
    "affine": "each element is a weighted sum of the parameter's elements, plus a constant (perhaps within a link)",
    "opaque": "anything else, and whatever only looks like one of the above at some values",
}
LINKS = frozenset({"exp", "log", "softplus", "sigmoid", "sqrt", "square", "reciprocal", "softmax", "normalise"})
LINKS |= {"reciprocal sqrt", "cholesky", "precision_cholesky"}  # scale_tril of a covariance or precision matrix
OWNERS = frozenset({"closed form", "newton", "least squares", "statistics", "gradient", "fixed"})
UNTRACED = OWNERS - {"gradient", "fixed"}


@dataclass(frozen=True)
class Route:
    """How a parameter is to be found in a distribution's argument, and what one step is to make of it.

    Attributes:
        verdicts: those that are right.
        links: those that are right where the verdict is "linked"; what "affine" may add, too.
        exact: solved without tracing the model; ``False``, by the traced gradient; ``None``, by either.
        same: whether one step takes the parameter to where the full maximisation of Q takes it.
        argument: the family's argument that this is about; ``None``, all of them.
        optional: whether ``explain()`` may leave it out.
        idle: whether nothing moves the parameter, so that "fixed" is an owner as well.
    """

    verdicts: frozenset[str]
    links: frozenset[str] = frozenset()
    exact: bool | None = True
    same: bool = True
    argument: str | None = None
    optional: bool = False
    idle: bool = False

    def __post_init__(self) -> None:
        assert self.verdicts <= VERDICTS.keys() and self.links <= LINKS

    @property
    def owners(self) -> frozenset[str]:
        """Who may move the parameter."""
        found = UNTRACED if self.exact is True else {"gradient"} if self.exact is False else UNTRACED | {"gradient"}
        return frozenset(found | {"fixed"} if self.idle else found)

    def admits(self, row: Mapping[str, Any]) -> bool:
        """Whether a row of ``explain()`` is as expected, its owner apart."""
        if row["verdict"] not in self.verdicts or self.argument not in (None, row["argument"]):
            return False
        return row["verdict"] != "linked" or row["link"] in self.links


@dataclass(frozen=True)
class Case:
    """One entry of the corpus; ``make()`` returns a fresh ``(model, args, kwargs)`` at each call.

    Attributes:
        routes: for each parameter and point-estimated latent, how it reaches the distributions.
        maximal: whether one step maximises Q, so that its objective is that of the full gradient M-step. ``False``
            where parameters that Q couples are moved in turn, or a gradient stops early: then it climbs part of the
            way. A maximal step has no unique parameters where the model is redundant: ``Route.same`` tells.
        given: starting values of the point-estimated latents.
        refusal: what the message matches where the model is refused.
    """

    name: str
    make: Callable[[], Made]
    routes: Mapping[str, tuple[Route, ...]]
    maximal: bool = True
    given: Mapping[str, Tensor] = field(default_factory=dict)
    refusal: str | None = None

    def __repr__(self) -> str:
        return self.name


CASES: list[Case] = []


def case(
    routes: Mapping[str, Route | tuple[Route, ...]], **options: Any
) -> Callable[[Callable[[], Made]], Callable[[], Made]]:
    """Decorate a `make` to enter it in the corpus under its own name; the options are those of :class:`Case`."""
    listed = {name: route if isinstance(route, tuple) else (route,) for name, route in routes.items()}

    def register(make: Callable[[], Made]) -> Callable[[], Made]:
        CASES.append(Case(make.__name__, make, listed, **options))
        return make

    return register


def selection(**options: Any) -> Route:
    """Elements of the parameter, picked."""
    return Route(frozenset({"selection"}), **options)


SELECTED = selection()


def linked(*links: str, **options: Any) -> Route:
    """Elements of the parameter under one of these functions."""
    return Route(frozenset({"linked"}), frozenset(links), **options)


def affine(*links: str, exact: bool | None = None, **options: Any) -> Route:
    """Weighted sums of elements: least squares for a normal mean, for other arguments as the family can."""
    return Route(frozenset({"affine"}), frozenset(links), exact=exact, **options)


def opaque(*, exact: bool | None = False, same: bool = False, **options: Any) -> Route:
    """Whatever must be traced."""
    return Route(frozenset({"opaque"}), exact=exact, same=same, **options)


def either(*verdicts: str, links: tuple[str, ...] = (), exact: bool | None = None, **options: Any) -> Route:
    """Several verdicts are right, as where two functions agree on all values that the model can take."""
    return Route(frozenset(verdicts), frozenset(links), exact=exact, **options)


def unused() -> Route:
    """A parameter that reaches no distribution, and stays as it is."""
    return Route(frozenset(VERDICTS), LINKS, exact=None, optional=True, idle=True)
