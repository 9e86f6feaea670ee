"""Hyperparameters and options, held against what they must be where they are given."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import Any

__all__ = ["callables", "check_count", "check_guide", "check_nats"]


def check_count(name: str, value: Any, least: int = 1, *, optional: bool = False) -> None:
    """Refuse what is no whole number of at least ``least``; ``None`` passes where it is ``optional``.

    Raises:
        TypeError: no integer.
        ValueError: too small.
    """
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Integral):
        wanted = "an integer or None" if optional else "an integer"
        raise TypeError(f"{name} must be {wanted}; got {value!r}. Write {name}={least} or more.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}; got {value}.")


def check_nats(name: str, value: Any) -> None:
    """Refuse what is no number of nats from zero up.

    Raises:
        TypeError: no real number.
        ValueError: negative, or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number of nats; got {value!r}. Write {name}=0 to run all steps.")
    if not float(value) >= 0:
        raise ValueError(f"{name} is in nats and must not be negative; got {value}.")


def check_guide(guide: Any) -> None:
    """Refuse a guide that is not there to be called: the class of one, or its name.

    Raises:
        TypeError: neither a callable nor ``None``.
    """
    if isinstance(guide, type):
        raise TypeError(
            f"guide must be a Pyro guide to call, or None; got the class {guide.__name__}. Make one: "
            f"SVI({guide.__name__}(model))."
        )
    if guide is not None and not callable(guide):
        raise TypeError(
            f"guide must be a Pyro guide to call, or None for an automatic one; got {guide!r}. Write a function of the "
            "model's arguments, or take one of pyro.infer.autoguide: SVI(AutoNormal(model))."
        )


def callables(name: str, value: Any) -> tuple[Callable[..., Any], ...]:
    """The items of a collection of callables.

    Raises:
        TypeError: a callable alone, or an item that cannot be called.
    """
    if not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a list of functions; got {value!r}. Put it into a list: {name}=[...].")
    items = tuple(value)
    for item in items:
        if not callable(item):
            raise TypeError(f"{name} must be a list of functions; it holds {item!r}. Take that out.")
    return items
