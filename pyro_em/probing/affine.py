"""Arguments that are affine in the parameters, for each of a few links: the design matrix, confirmed elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pyro_em.families import Argument
from pyro_em.probing.coordinates import Coordinates
from pyro_em.probing.routes import Affine

__all__ = ["affine"]

MAX_COLUMNS = 256
MAX_DESIGN = 2**26


def affine(
    argument: Argument,
    draws: Sequence[Tensor],
    thetas: Sequence[Tensor],
    leaves: dict[str, Tensor],
    coordinates: Coordinates,
) -> Affine | None:
    """offset + design @ theta[columns], mapped by a link, if the argument is that in all draws; else ``None``.

    Args:
        draws: the argument at each theta; the first with the graph behind it, in float64 or float32.
        leaves: the tensors that graph ends in.
    """
    return None
