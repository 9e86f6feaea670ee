"""Python's collector of reference cycles, held back while many objects are made that stay.

A trace of a long loop makes millions of objects, none of them garbage; walking them over and over takes a third of the
time.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["no_collection"]


@contextmanager
def no_collection() -> Iterator[None]:
    """Hold the collector back for the body of a ``with``, or the call of a function."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
